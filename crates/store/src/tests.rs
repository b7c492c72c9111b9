use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;

fn open(dir: &Path) -> Store {
    Store::open(dir, |_| Ok(())).expect("opens")
}

fn put(store: &mut Store, kind: &str, key: &str, body: &str) {
    store.change(|change| change.put(kind, key, body)).expect("written");
}

fn bodies(store: &Store, kind: &str) -> Vec<String> {
    store.rows(kind).expect("read").into_iter().map(|(_, body)| body).collect()
}

#[test]
fn rows_survive_and_other_processes_see_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = open(dir.path());
    let mut other = open(dir.path());
    let before = other.version().expect("read");
    put(&mut store, "order", "all", "1");
    put(&mut store, "order", "all", "2");
    put(&mut store, "order", "x", "3");
    assert_ne!(other.version().expect("read"), before);
    assert_eq!(bodies(&other, "order"), ["2", "3"]);
    let unseen = other.version().expect("read");
    store.change(|change| change.delete("order", "x")).expect("written");
    assert_ne!(other.version().expect("read"), unseen);
    put(&mut other, "machine", "m", "4");
    drop((store, other));
    let store = open(dir.path());
    assert_eq!((bodies(&store, "order"), bodies(&store, "machine")), (vec!["2".to_owned()], vec!["4".to_owned()]));
    assert_eq!(store.lost().expect("read"), None);
    store.check().expect("sound");
}

#[test]
fn a_failed_change_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = open(dir.path());
    put(&mut store, "order", "all", "1");
    let before = store.generation().expect("read");
    let failed: Result<()> = store.change(|change| {
        change.put("order", "all", "2")?;
        Err(StoreError::Newer { path: "x".into(), found: 9 })
    });
    assert!(failed.is_err());
    assert_eq!((bodies(&store, "order"), store.generation().expect("read")), (vec!["1".to_owned()], before));
}

#[test]
fn a_database_that_is_gone_or_old_is_known_to_be() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(FILE);
    {
        let mut store = open(dir.path());
        put(&mut store, "order", "all", "1");
    }
    let yesterday = fs::read(&path).expect("read");
    put(&mut open(dir.path()), "order", "all", "2");
    fs::write(&path, yesterday).expect("written");
    let mut store = open(dir.path());
    let lost = store.lost().expect("read").expect("noticed");
    assert!(lost.contains("is older than it was"), "{lost}");
    assert_eq!(store.change(|change| change.accept_loss()).expect("accepted"), Some(lost));
    drop(store);
    assert_eq!(open(dir.path()).lost().expect("read"), None, "accepted for good");

    fs::remove_file(&path).expect("removed");
    for _ in 0..2 {
        let lost = open(dir.path()).lost().expect("read").expect("noticed");
        assert!(lost.ends_with("room.sqlite is gone"), "{lost}");
    }
    // An empty store has nothing to lose.
    let dir = tempfile::tempdir().expect("a directory");
    drop(open(dir.path()));
    fs::remove_file(dir.path().join(FILE)).expect("removed");
    assert_eq!(open(dir.path()).lost().expect("read"), None);
}

#[test]
fn a_damaged_witness_is_a_loss() {
    let dir = tempfile::tempdir().expect("a directory");
    let witness = dir.path().join("room.witness");
    put(&mut open(dir.path()), "order", "all", "1");
    for text in ["\u{1}", "change x rows 1", "change 99999999999999999999 rows 1"] {
        fs::write(&witness, text).expect("written");
        let mut store = open(dir.path());
        assert!(store.lost().expect("read").expect("noticed").contains("room.witness is damaged"), "{text}");
        store.change(|change| change.accept_loss()).expect("accepted");
        drop(store);
        assert_eq!(open(dir.path()).lost().expect("read"), None, "{text}: the next change has mended it");
    }
    // Without a witness there is nothing to compare with; the rows have their own sums.
    fs::remove_file(&witness).expect("removed");
    assert_eq!(bodies(&open(dir.path()), "order"), ["1"]);
}

#[test]
fn the_file_under_an_open_store_is_watched() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    assert!(store.is_in_place());
    fs::rename(dir.path().join(FILE), dir.path().join("x")).expect("renamed");
    assert!(!store.is_in_place());
    fs::copy(dir.path().join("x"), dir.path().join(FILE)).expect("copied");
    assert!(!store.is_in_place());
}

#[test]
fn every_flipped_byte_is_noticed_or_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    {
        let mut store = open(dir.path());
        for number in 0..40 {
            put(&mut store, "machine", &format!("m{number:02}"), &"x".repeat(300));
        }
        put(&mut store, "order", "all", "golden");
        put(&mut store, "order", "held", "teacher");
    }
    let path = dir.path().join(FILE);
    let sound = fs::read(&path).expect("read");
    let expected = |store: &Store| -> Result<_> { Ok((store.rows("machine")?, store.rows("order")?)) };
    let rows = expected(&open(dir.path())).expect("sound");
    let (mut noticed, mut harmless) = (0, 0);
    for at in (0..sound.len()).step_by(61) {
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (at % 8);
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", path.display()));
        }
        fs::write(&path, &bytes).expect("written");
        let read = Store::open(dir.path(), |_| Ok(())).and_then(|store| {
            store.check()?;
            Ok((store.lost()?, expected(&store)?))
        });
        match read {
            Ok((None, read)) => {
                assert_eq!(read, rows, "byte {at}");
                harmless += 1;
            }
            Ok((Some(_), _)) | Err(_) => noticed += 1,
        }
    }
    assert!(noticed > 100 && harmless > 0, "{noticed} noticed, {harmless} harmless");
}

#[test]
fn what_can_be_read_of_a_damaged_database_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    {
        let mut store = open(dir.path());
        for number in 0..200 {
            put(&mut store, "machine", &format!("m{number:03}"), &format!("{number} {}", "x".repeat(300)));
        }
        put(&mut store, "order", "all", "golden");
    }
    let path = dir.path().join(FILE);
    let bytes = fs::read(&path).expect("read");
    let needle = b"117 xxx";
    let at = bytes.windows(needle.len()).position(|window| window == needle).expect("there");
    let file = OpenOptions::new().write(true).open(&path).expect("opens");
    file.write_all_at(b"119 xxx", at as u64).expect("written");
    let error = open(dir.path()).check().expect_err("noticed");
    assert!(error.is_damage() && error.to_string().contains("machine \"m117\" is not as it was written"), "{error}");
    let store = Store::salvage(dir.path(), &error.to_string()).expect("salvaged");
    assert_eq!((store.rows("machine").expect("read").len(), bodies(&store, "order")), (199, vec!["golden".to_owned()]));
    assert!(store.lost().expect("read").expect("noted").contains("200 rows of it could be read"));
    drop(store);
    for garbage in [&b"SQLite"[..], &bytes[..5000], &[7; 9000], &[0; 9000]] {
        fs::write(&path, garbage).expect("written");
        let opened = Store::open(dir.path(), |_| Ok(())).and_then(|store| store.check().and_then(|()| store.lost()));
        match opened {
            // A file without a header is an empty database to SQLite, so it counts as one that is gone.
            Ok(lost) => assert!(lost.expect("noticed").contains("is gone")),
            Err(error) => {
                assert!(error.is_damage(), "{error}");
                Store::salvage(dir.path(), &error.to_string()).expect("a new one");
            }
        }
        assert!(open(dir.path()).lost().expect("read").is_some());
    }
    let aside = fs::read_dir(dir.path()).expect("a directory").flatten();
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().contains("damaged")).count();
    assert!(aside <= 6, "{aside} files are kept aside");
}

#[test]
fn a_newer_format_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(open(dir.path()));
    let set = |sql: &str| Connection::open(dir.path().join(FILE)).expect("opens").execute_batch(sql).expect("written");
    for version in [0, 4097] {
        set(&format!("PRAGMA user_version = {version}"));
        let error = Store::open(dir.path(), |_| Ok(())).expect_err("a flipped bit");
        assert!(error.is_damage() && error.to_string().contains("its header says format"), "{error}");
    }
    set("PRAGMA user_version = 1");
    put(&mut open(dir.path()), OWN, SCHEMA_KEY, "7");
    set("PRAGMA user_version = 7");
    let error = Store::open(dir.path(), |_| Ok(())).expect_err("newer");
    assert!(error.to_string().contains("has format 7, and this version knows 1 at most"), "{error}");
    assert!(!error.is_damage());
}

#[test]
fn a_header_that_sqlite_refuses_is_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(dir.path(), |_| Ok(())).expect("opens");
    store.change(|change| change.put("order", "all", "x")).expect("written");
    drop(store);
    let path = dir.path().join(FILE);
    let mut bytes = fs::read(&path).expect("read");
    // The schema format number (<https://sqlite.org/fileformat2.html>, 1.3.8), from 4 to 20.
    bytes[47] ^= 0x10;
    fs::write(&path, bytes).expect("written");
    let error = Store::open(dir.path(), |_| Ok(())).expect_err("a flipped bit");
    assert!(error.is_damage() && error.to_string().contains("unsupported file format"), "{error}");
    let store = Store::salvage(dir.path(), "damaged").expect("a new one");
    assert!(store.lost().expect("read").is_some_and(|why| why.contains("damaged")));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    #[test]
    fn any_changes_add_up(changes in proptest::collection::vec((0u8..3, 0u8..5, proptest::option::of(".{0,20}")), 1..30)) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = open(dir.path());
        let mut model = std::collections::BTreeMap::new();
        for (kind, key, body) in changes {
            let (kind, key) = (format!("k{kind}"), format!("{key}"));
            match body {
                Some(body) => {
                    put(&mut store, &kind, &key, &body);
                    model.insert((kind, key), body);
                }
                None => {
                    store.change(|change| change.delete(&kind, &key)).expect("written");
                    model.remove(&(kind, key));
                }
            }
        }
        for kind in ["k0", "k1", "k2"] {
            let expected: Vec<_> = model.iter().filter(|((of, _), _)| of == kind).map(|((_, key), body)| (key.clone(), body.clone())).collect();
            proptest::prop_assert_eq!(store.rows(kind).expect("read"), expected);
        }
        store.check().expect("sound");
    }
}

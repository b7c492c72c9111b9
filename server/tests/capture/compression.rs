//! Compressed images: the same bytes for whoever reads them, and an image that is stored in another way is whole at any moment.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::tools::{Junk, Place, need, text};

const MIB: usize = 1 << 20;
/// Kills of `a_kill_at_any_moment_leaves_a_whole_image`; more with EZIO_TEST_KILLS.
const KILLS: u32 = 10;

/// A disk of text, zeros and what does not shrink, a third each.
fn disk(place: &Place, mib: usize) -> String {
    let mut bytes = vec![0; mib * MIB];
    let third = bytes.len() / 3;
    Junk(5).fill(&mut bytes[..third]);
    for (at, byte) in bytes[third..2 * third].iter_mut().enumerate() {
        *byte =
            b"every machine gets the same image, "[at % 35].wrapping_add(u8::try_from(at >> 16 & 3).expect("small"));
    }
    let path = place.text("source.img");
    fs::write(&path, bytes).expect("write");
    path
}

#[test]
fn a_compressed_image_gives_the_same_bytes_and_infohash() {
    need(&["blkid", "zstd"]);
    let place = Place::new();
    let source = disk(&place, 24);
    let bytes = fs::read(&source).expect("read");
    let forms: [(&str, &[&str]); 4] = [
        ("adaptive", &[]),
        ("small", &["--level", "9"]),
        ("short", &["--piece-len", "16K", "--level", "1"]),
        ("plain", &["--uncompressed"]),
    ];
    for (name, more) in forms {
        place.ezio_ok(&[&["capture", &source, "--name", name, "--whole"], more].concat());
        assert_eq!(place.stored(name).ends_with("content"), name == "plain");
        assert!(place.content(name) == bytes, "{name}");
        assert!(place.ezio_ok(&["image", "verify", name]).contains("is good"));
        let raw = place.text("raw");
        place.ezio_ok(&["image", "export", name, "--raw", &raw, "--force"]);
        assert!(fs::read(&raw).expect("exported") == bytes, "{name}");
        let target = place.text("target");
        place.ezio_restore(name, &target);
        assert!(fs::read(&target).expect("restored") == bytes, "{name}");
        fs::remove_file(&target).expect("removed");
        if name != "plain" {
            let stored = place.stored(name);
            assert!(fs::metadata(&stored).expect("there").len() < bytes.len() as u64 / 2, "{name}");
            let zstd = crate::tools::command("zstd").arg("-dcq").arg(&stored).output().expect("zstd runs");
            assert!(zstd.status.success() && zstd.stdout == bytes, "{name}: any zstd reads it");
            // A file of it seeds as well as one of plain content, for a torrent alone.
            let torrent = place.image(name).join("image.torrent").display().to_string();
            place.ezio_ok(&[
                "image",
                "import",
                &torrent,
                stored.to_str().expect("UTF-8"),
                "--name",
                "copy",
                "--verify",
                "--replace",
            ]);
            assert!(place.content("copy") == bytes, "{name}");
        }
    }
    let infohash = |name| place.meta(name).infohash;
    assert_eq!([infohash("adaptive"), infohash("small")], [infohash("plain"); 2]);
    let manifest = |name| fs::read_to_string(place.image(name).join("manifest.json")).expect("the manifest");
    assert!(manifest("plain").contains("\"schema\": 1") && !manifest("plain").contains("compressed"));
    assert!(manifest("small").contains("\"schema\": 2") && manifest("small").contains("\"zstd-seekable\""));
    for (args, why) in [
        (&["--level", "0"][..], "from 1 (fast) to 19 (small)"),
        (&["--level", "3", "--uncompressed"], "cannot be used with"),
        (&["--live", "--uncompressed"], "cannot be used with"),
    ] {
        let said = place.ezio_refuses(&[&["capture", &source, "--name", "x", "--whole"], args].concat());
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn what_is_damaged_in_a_compressed_image_is_named_and_never_restored() {
    need(&["blkid"]);
    let place = Place::new();
    let source = disk(&place, 24);
    place.ezio_ok(&["capture", &source, "--name", "golden", "--whole", "--piece-len", "256K"]);
    let stored = place.stored("golden");
    let good = fs::read(&stored).expect("read");
    let change = |at: usize, byte: u8| {
        let file = File::options().write(true).open(&stored).expect("the content");
        file.write_all_at(&[byte], at as u64).expect("write");
    };
    // The first third does not shrink, so its 64 frames lie as they are, 12 bytes longer each: byte 5,000,000 is of piece 19.
    // Text comes behind that, from piece 32 on.
    for (at, words) in
        [(5_000_000, &["piece 19 is bad"][..]), (8 * MIB + 64 * 12, &["piece 32 is bad", "; frame 64 (bytes"])]
    {
        change(at, good[at] ^ 0x55);
        let output = place.ezio(&["image", "verify", "golden"]).output().expect("ezio runs");
        let said = text(&output);
        assert!(!output.status.success() && words.iter().all(|words| said.contains(words)), "{at}: {said}");
        assert!(said.contains("1 of 96 pieces are bad"), "{at}: {said}");
        let refused = place.ezio_refuses(&["image", "compress", "golden", "--uncompressed"]);
        assert!(refused.contains("is bad") || refused.contains("is damaged"), "{refused}");
        let target = place.text("target");
        let refused = place.ezio_refuses(&["restore", "golden", &target, "--yes"]);
        assert!(refused.contains("is not complete"), "{refused}");
        // Or the next one would keep what is right in it.
        fs::remove_file(&target).expect("removed");
        change(at, good[at]);
    }
    place.ezio_ok(&["image", "verify", "golden"]);
    // A table that lies, and a file that was cut short.
    change(good.len() - 9 - 5, good[good.len() - 9 - 5] ^ 1);
    let said = place.ezio_refuses(&["image", "verify", "golden"]);
    assert!(said.contains("content.zst") && said.contains("table of frames is damaged"), "{said}");
    fs::write(&stored, &good[..good.len() - 1]).expect("write");
    let list = place.ezio_ok(&["image", "list"]);
    assert!(list.contains("damaged") && list.contains("capture it again"), "{list}");
}

#[test]
fn an_image_is_stored_in_another_way_and_back() {
    need(&["blkid"]);
    let place = Place::new();
    let source = disk(&place, 24);
    let bytes = fs::read(&source).expect("read");
    place.ezio_ok(&["capture", &source, "--name", "golden", "--whole", "--uncompressed"]);
    place.ezio_ok(&["capture", &source, "--name", "live", "--whole", "--live"]);
    let infohash = place.meta("golden").infohash;
    let len = || fs::metadata(place.stored("golden")).expect("there").len();
    let mut lens = Vec::new();
    for how in [&[][..], &["--level", "1"], &["--level", "12"], &["--uncompressed"]] {
        place.ezio_ok(&[&["image", "compress", "golden"], how].concat());
        let inside = fs::read_dir(place.image("golden")).expect("read").count();
        assert_eq!((place.listed().len(), place.unfinished(), inside), (2, 0, 3), "{how:?}");
        assert!(place.content("golden") == bytes && place.meta("golden").infohash == infohash, "{how:?}");
        lens.push(len());
    }
    assert!(lens[0] < bytes.len() as u64 / 2 && lens[2] <= lens[1] && lens[3] == bytes.len() as u64, "{lens:?}");
    let again = place.ezio_ok(&["image", "compress", "golden", "--uncompressed"]);
    assert!(again.contains("not compressed"), "{again}");
    place.ezio_ok(&["image", "compress", "golden"]);
    let again = place.ezio_ok(&["image", "compress", "golden"]);
    assert!(again.contains("compressed already; --level N"), "{again}");
    let refused = place.ezio_refuses(&["image", "compress", "live"]);
    assert!(refused.contains("is live"), "{refused}");
    assert!(place.ezio_refuses(&["image", "compress", "silver"]).contains("there is no image"));
}

#[test]
fn a_kill_at_any_moment_leaves_a_whole_image() {
    need(&["blkid"]);
    let place = Place::new();
    let source = disk(&place, 24);
    let bytes = fs::read(&source).expect("read");
    place.ezio_ok(&["capture", &source, "--name", "golden", "--whole", "--level", "1"]);
    let how = |round: u32| if round.is_multiple_of(2) { &["--uncompressed"][..] } else { &["--level", "1"] };
    let compress = |round| {
        let mut command = place.ezio(&[&["image", "compress", "golden"], how(round)].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ezio runs")
    };
    // How long it takes, so that kills come at every moment of it.
    let started = Instant::now();
    assert!(compress(0).wait().expect("its end").success());
    let whole = started.elapsed();

    let kills = std::env::var("EZIO_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let mut random = [0; 4];
    let mut junk = Junk(u64::from(std::process::id()) | 1);
    let mut killed = 0;
    for round in 1..=kills {
        junk.fill(&mut random);
        // Ascending with some chance, so that few kills cover all of it as well.
        let share = (f64::from(round) - f64::from(random[0]) / 256.0) / f64::from(kills) * 1.1;
        let until = Instant::now() + Duration::from_secs_f64(whole.as_secs_f64() * share);
        let mut child = compress(round);
        while Instant::now() < until && child.try_wait().expect("its state").is_none() {
            std::thread::yield_now();
        }
        let _ = child.kill();
        killed += u32::from(child.wait().expect("its end").signal().is_some());
        assert_eq!(place.listed(), ["golden"], "round {round}, {share} of {whole:?}");
        assert!(place.content("golden") == bytes, "round {round}, {share} of {whole:?}");
        let list = place.ezio_ok(&["image", "list"]);
        assert!(!list.contains("damaged"), "round {round}: {list}");
    }
    assert!(killed > 0, "none of {kills} was killed before its end");
    place.ezio_ok(&["image", "verify", "golden"]);
    place.ezio_ok(&["image", "compress", "golden", "--level", "2"]);
    assert_eq!((place.unfinished(), place.content("golden") == bytes), (0, true), "what was left is cleared away");
}

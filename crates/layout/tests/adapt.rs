//! Tables made by sgdisk and sfdisk are adapted, and both programs check the result. `scripts/setup` installs them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use layout::DiskRange;
use layout::parttable::adapt::{AdaptError, Adapted, Grow, Original, Wish, adapt, revert};
use layout::parttable::{Table, TableKind};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HEAD_LEN: usize = 1 << 20;

/// A disk of `len` bytes that takes no space.
fn sparse(dir: &TempDir, name: &str, len: u64) -> PathBuf {
    let path = dir.path().join(name);
    File::create(&path).and_then(|file| file.set_len(len)).expect("sparse file");
    path
}

/// Runs a partitioning program and returns all its output.
fn run(program: &str, args: &[&str], disk: &Path, input: &str) -> String {
    // Debian puts them there, and it is not in an ordinary user's path.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new(program)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .args(args)
        .arg(disk)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; run scripts/setup"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads its input");
    let output = child.wait_with_output().expect("it ends");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

fn sgdisk(args: &[&str], disk: &Path) -> String {
    run("sgdisk", args, disk, "")
}

fn sfdisk(script: &str, disk: &Path) {
    run("sfdisk", &["--quiet"], disk, script);
}

fn head(disk: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    File::open(disk).expect("there").take(HEAD_LEN as u64).read_to_end(&mut head).expect("readable");
    head
}

fn write(made: &Adapted, disk: &Path) {
    let disk = OpenOptions::new().write(true).open(disk).expect("there");
    disk.write_all_at(&made.head, 0).expect("written");
    if let Some((at, bytes)) = &made.tail {
        disk.write_all_at(bytes, at.0).expect("written");
    }
}

/// Asserts that both programs find no fault, and that sgdisk finds the same oddities in the image.
fn assert_good(device: &Path, image: &Path, kind: TableKind) {
    let said = run("sfdisk", &["--verify"], device, "");
    assert!(said.contains("No errors detected"), "{said}");
    if kind == TableKind::Gpt {
        let said = sgdisk(&["-v"], device);
        assert!(said.contains("No problems found"), "{said}");
        let before = sgdisk(&["-v"], image);
        for remark in said.lines().filter(|line| line.starts_with("Warning") || line.starts_with("Caution")) {
            assert!(before.contains(remark), "{said}");
        }
    }
}

/// The partitions as sfdisk sees them, without the device's name.
fn dump(disk: &Path) -> Vec<String> {
    let said = run("sfdisk", &["--dump"], disk, "");
    let name = disk.to_str().expect("plain name");
    said.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect()
}

fn table(disk: &Path) -> Table {
    let mut file = File::open(disk).expect("there");
    let len = file.metadata().expect("there").len();
    Table::read(&mut file, len, 512).expect("good table")
}

/// Adapts `image` to a disk of `device_len`, checks the result with both programs, and reverts it.
fn check(dir: &TempDir, image: &Path, kind: TableKind, device_len: u64, wish: &Wish) -> (PathBuf, Adapted) {
    let image_len = image.metadata().expect("there").len();
    let head = head(image);
    let made = adapt(&head, kind, 512, image_len, device_len, wish).expect("fits");
    let device = sparse(dir, "device", device_len);
    write(&made, &device);
    assert_good(&device, image, kind);
    if made.grown.is_none() {
        assert_eq!(dump(image), dump(&device));
    }

    let back = revert(&made.head, kind, 512, device_len, image_len, &made.original).expect("way back");
    assert!(back.head == head, "the head is the image's again");
    if let Some((at, bytes)) = &back.tail {
        let mut theirs = vec![0; bytes.len()];
        File::open(image).expect("there").read_exact_at(&mut theirs, at.0).expect("readable");
        assert!(*bytes == theirs, "and so is the backup");
        assert_eq!(made.stale, Some(DiskRange::new(at.0..image_len)));
    }
    (device, made)
}

/// A GPT of three partitions; the last one extends to the end.
fn gpt_by(program: &str, dir: &TempDir, len: u64) -> PathBuf {
    let image = sparse(dir, "image", len);
    match program {
        "sgdisk" => drop(sgdisk(&["-n1:0:+8M", "-t1:ef00", "-n2:0:+4M", "-A2:set:2", "-n3:0:0", "-c3:root"], &image)),
        _ => sfdisk("label: gpt\nsize=8M, type=U\nsize=4M\nname=root\n", &image),
    }
    image
}

#[test]
fn their_gpts_fit_larger_disks() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for program in ["sgdisk", "sfdisk"] {
        for (len, device_len) in [
            (64 * MIB, 64 * MIB + 512),
            (64 * MIB, 100 * MIB + 7 * 512),
            (64 * MIB, 3000 * GIB),
            (20 * GIB, 40 * GIB),
            (3000 * GIB, 4000 * GIB),
        ] {
            let image = gpt_by(program, &dir, len);
            for (grow, new_disk_id) in [(Grow::No, None), (Grow::Last, None), (Grow::Number(3), Some([0x5a; 16]))] {
                let (device, made) = check(&dir, &image, TableKind::Gpt, device_len, &Wish { grow, new_disk_id });
                let table = table(&device);
                assert_eq!(table.warnings, Vec::<String>::new());
                assert_eq!(made.grown.is_some(), grow != Grow::No && device_len >= len + 2 * MIB);
                if let Some(grown) = made.grown {
                    assert_eq!((grown.number, table.partitions[2].range().end.0 % MIB), (3, 0));
                    assert!(device_len - table.partitions[2].range().end.0 <= 2 * MIB);
                    assert_eq!(table.partitions[2].guid, self::table(&image).partitions[2].guid);
                }
                if new_disk_id.is_some() {
                    assert_eq!(table.disk_id, "5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a");
                }
            }
        }
    }
}

#[test]
fn their_gpts_fit_smaller_disks_that_hold_the_partitions() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = sparse(&dir, "image", 64 * MIB);
    sgdisk(&["-n1:0:+8M", "-n2:0:+8M"], &image);
    check(&dir, &image, TableKind::Gpt, 18 * MIB, &Wish::default());
    check(&dir, &image, TableKind::Gpt, 40 * MIB, &Wish { grow: Grow::Last, new_disk_id: None });
    let refused = adapt(&head(&image), TableKind::Gpt, 512, 64 * MIB, 17 * MIB, &Wish::default());
    assert!(matches!(refused, Err(AdaptError::TooSmall { .. })));
}

#[test]
fn the_entries_of_a_hybrid_stay() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = gpt_by("sgdisk", &dir, 64 * MIB);
    sgdisk(&["-h1:2"], &image);
    let before = head(&image);
    let made = adapt(&before, TableKind::Gpt, 512, 64 * MIB, 128 * MIB, &Wish::default()).expect("fits");
    assert!(made.head[..512] == before[..512]);
    let device = sparse(&dir, "device", 128 * MIB);
    write(&made, &device);
    let said = sgdisk(&["-v"], &device);
    assert!(said.contains("No problems found"), "{said}");
}

#[test]
fn their_mbrs_grow() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let wish = Wish { grow: Grow::Last, new_disk_id: Some([0x5a; 16]) };
    for (len, device_len, sectors) in [
        (64 * MIB, 100 * MIB, (100 - 9) * 2048),
        (64 * MIB, 100 * GIB, (100 * 1024 - 9) * 2048),
        (20 * GIB, 3000 * GIB, (1u64 << 32) - 9 * 2048),
    ] {
        let image = sparse(&dir, "image", len);
        sfdisk("label: dos\nsize=8M, bootable\nsize=16M, type=7\n", &image);
        let (device, made) = check(&dir, &image, TableKind::Mbr, device_len, &wish);
        let line = &dump(&device)[1];
        assert!(line.contains(&format!("size={sectors:>12},")), "{line}");
        assert_eq!(table(&device).disk_id, "5a5a5a5a");
        let grown = made.grown.expect("room");
        assert_eq!((grown.type_name, grown.is_capped), ("NTFS/exFAT", device_len > 2048 * GIB));
        check(&dir, &image, TableKind::Mbr, device_len, &Wish::default());
    }
}

#[test]
fn their_logical_partitions_stay_as_they_are() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = sparse(&dir, "image", 64 * MIB);
    sfdisk("label: dos\nsize=8M\ntype=extended\nsize=8M\nsize=8M\n", &image);
    let try_it = |grow| {
        let wish = Wish { grow, new_disk_id: None };
        adapt(&head(&image), TableKind::Mbr, 512, 64 * MIB, 128 * MIB, &wish)
    };
    assert!(matches!(try_it(Grow::Last), Err(AdaptError::Logical(2))));
    assert!(matches!(try_it(Grow::Number(5)), Err(AdaptError::Logical(5))));
    assert!(matches!(try_it(Grow::Number(1)), Err(AdaptError::NoRoom { number: 1, next: 2 })));
    assert_eq!(try_it(Grow::No).expect("nothing to do").original, Original::default());
}

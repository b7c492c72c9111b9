//! Blocks of zeros in used data, left out of the image and written again by the machine.

use std::fs;

use crate::tools::{Junk, Place, need, run};

const MIB: u64 = 1 << 20;
const KIB64: u64 = 64 << 10;

/// A disk of 64 MiB with one partition of something unknown: junk, holes, zeros that are written, and data of one byte.
fn disk(place: &Place) -> String {
    let disk = place.blank("disk.img", 64);
    run("sgdisk", &["-n", "1:2048:0", &disk]);
    let mut junk = vec![0; 3 << 20];
    Junk(3).fill(&mut junk);
    fs::write(place.path("junk"), &junk).expect("write");
    // Zeros that are no hole, from the middle of a block to the middle of another.
    junk[1_000_000..2_000_000].fill(0);
    fs::write(place.path("zeros"), &junk).expect("write");
    fs::write(place.path("byte"), [1]).expect("write");
    for (file, at) in [("junk", 2 * MIB), ("zeros", 10 * MIB), ("byte", 30 * MIB), ("byte", 31 * MIB + KIB64 - 1)] {
        place.paste(&place.text(file), &disk, at);
    }
    disk
}

#[test]
fn zeros_are_left_out_and_come_back() {
    need(&["sgdisk", "blkid"]);
    let place = Place::new();
    let disk = disk(&place);
    place.ezio_ok(&["capture", &disk, "--name", "plain"]);
    let said = place.ezio_ok(&["capture", &disk, "--name", "lean", "--skip-zeros", "--threads", "1"]);
    assert!(said.contains(" of zeros left out) of 64.0 MiB"), "{said}");
    place.ezio_ok(&["capture", &disk, "--name", "again", "--skip-zeros", "--threads", "4"]);
    // The same bytes without a single hole.
    fs::write(place.path("solid.img"), fs::read(&disk).expect("read")).expect("write");
    place.ezio_ok(&["capture", &place.text("solid.img"), "--name", "solid", "--skip-zeros"]);
    let (plain, lean) = (place.meta("plain"), place.meta("lean"));
    assert_eq!(lean.infohash, place.meta("again").infohash, "whatever the number of threads");
    assert_eq!(lean.infohash, place.meta("solid").infohash, "whatever the holes");
    assert_ne!(lean.infohash, plain.infohash);

    let zeros = lean.facts.expect("facts").zeros;
    let blocks = |from: u64, to: u64| from..to;
    let wanted = [
        // The first MiB belongs to the table, and so does the last.
        blocks(MIB, 2 * MIB),
        blocks(5 * MIB, 10 * MIB),
        blocks(10 * MIB + 16 * KIB64, 10 * MIB + 30 * KIB64),
        blocks(13 * MIB, 30 * MIB),
        blocks(30 * MIB + KIB64, 31 * MIB),
        blocks(31 * MIB + KIB64, 63 * MIB),
    ];
    assert_eq!(zeros.ranges(), wanted);
    let content_len = lean.geometry.content_len();
    assert_eq!(content_len + zeros.len(), plain.geometry.content_len());
    assert!(content_len < 9 * MIB, "{content_len}");

    let text = fs::read_to_string(place.image("lean").join("manifest.json")).expect("the manifest");
    assert!(text.contains(&format!("\"zeros_len\": {}", zeros.len())), "{text}");
    assert!(!fs::read_to_string(place.image("plain").join("manifest.json")).expect("it").contains("zeros_len"));
    let shown = place.ezio_ok(&["image", "show", "lean"]);
    assert!(shown.contains("of zeros left out)"), "{shown}");
    assert!(place.ezio_ok(&["image", "verify", "lean"]).contains("lean is good"));

    place.restore("lean", &disk);
    let content = place.stored("lean");
    let deployed = place.deploy("lean", &[content.to_str().expect("UTF-8")], 64 * MIB);
    assert!(fs::read(&deployed).expect("read") == fs::read(&disk).expect("read"), "every byte of the disk");
}

#[test]
fn imports_leave_zeros_out_as_well() {
    need(&["sgdisk", "blkid", "qemu-img"]);
    let place = Place::new();
    let disk = disk(&place);
    let qcow2 = place.text("disk.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &disk, &qcow2]);
    fs::create_dir(place.path("img")).expect("a directory");
    fs::write(place.path("img/parts"), "sda\n").expect("write");
    fs::copy(&disk, place.path("img/sda.dd-img")).expect("copied");
    for (more, name) in [(&["--skip-zeros"][..], "usual"), (&["--skip-zeros", "--piece-len", "64K"], "short")] {
        place.ezio_ok(&[&["capture", &disk, "--name", name], more].concat());
        for source in [&disk, &qcow2, &place.text("img")] {
            let said = place.ezio_ok(&[&["image", "import", source, "--name", "x", "--replace"], more].concat());
            assert!(said.contains(" of zeros left out) of 64.0 MiB"), "{said}");
            assert_eq!(place.meta("x").infohash, place.meta(name).infohash, "{source} {name}");
        }
    }
    assert_eq!(place.meta("x").geometry.piece_len(), 64 << 10);
    // What has its pieces already keeps them.
    fs::create_dir(place.path("bt")).expect("a directory");
    fs::write(place.path("bt/torrent.info"), "").expect("write");
    for more in [&["--skip-zeros"][..], &["--piece-len", "64K"]] {
        let said = place.ezio_refuses(&[&["image", "import", &place.text("bt"), "--name", "y"], more].concat());
        assert!(said.contains("do not go with BT files"), "{said}");
    }
}

#[test]
fn a_file_system_with_zeros_in_files_comes_back() {
    need(&["mkfs.ext4", "partclone.ext4", "e2fsck", "debugfs"]);
    let place = Place::new();
    let files = place.files("files");
    // mkfs.ext4 leaves blocks of zeros out of a file, so they are made of something else first.
    let database = place.path("files").join("database");
    fs::write(&database, vec![0x5a; 20 << 20]).expect("write");
    let bare = place.ext4("bare.img", 90, &files);
    let mut bytes = fs::read(&bare).expect("read");
    bytes.chunks_mut(1024).filter(|block| block.iter().all(|&byte| byte == 0x5a)).for_each(|block| block.fill(0));
    fs::write(&bare, bytes).expect("write");
    fs::write(&database, vec![0; 20 << 20]).expect("write");
    place.ezio_ok(&["capture", &bare, "--name", "plain"]);
    place.ezio_ok(&["capture", &bare, "--name", "lean", "--skip-zeros"]);
    let lens = ["plain", "lean"].map(|name| place.meta(name).geometry.content_len());
    assert!(lens[1] + 19 * MIB < lens[0], "{lens:?}");
    let restored = place.restore("lean", &bare);
    place.check_ext4(&restored, &files);
}

#[test]
fn a_plain_image_has_the_infohash_it_always_had() {
    need(&["blkid"]);
    let place = Place::new();
    let mut junk = vec![0; 2 << 20];
    Junk(11).fill(&mut junk);
    junk[1 << 20..].fill(0);
    fs::write(place.path("disk.img"), &junk).expect("write");
    place.ezio_ok(&["capture", &place.text("disk.img"), "--name", "plain", "--whole", "--piece-len", "256K"]);
    // As ezio made it before it knew --skip-zeros.
    assert_eq!(place.meta("plain").infohash.to_string(), "7150c9909069fd7314f2253fddb949471d9f3b9b");
}

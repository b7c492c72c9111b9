//! What partclone wrote for BitTorrent becomes an image, byte for byte.

use std::fs;
use std::os::unix::fs::symlink;

use metainfo::{FileEntry, Metainfo, NewTorrent};

use crate::tools::{Place, command, need, run};

#[test]
fn a_partclone_directory_becomes_the_image_that_capture_makes() {
    need(&["mkfs.ext4", "partclone.ext4", "e2fsck", "debugfs"]);
    let place = Place::new();
    let files = place.files("files");
    let source = place.ext4("fs.img", 90, &files);
    let bt = place.text("bt");
    let log = place.text("log");
    run("partclone.ext4", &["-c", "-T", "-s", &source, "-O", &bt, "-L", &log]);

    place.ezio_ok(&["image", "import", "--name", "trusted", &bt]);
    place.ezio_ok(&["image", "import", "--name", "verified", "--verify", &bt]);
    place.ezio_ok(&["capture", &source, "--name", "captured", "--piece-len", "16M"]);
    assert_eq!(place.content("trusted"), place.content("captured"), "the used blocks, as capture finds them");
    assert_eq!(place.meta("trusted").infohash, place.meta("verified").infohash);
    assert_eq!(place.meta("trusted").infohash, place.meta("captured").infohash, "partclone hashes as we do");
    place.ezio_ok(&["image", "verify", "trusted"]);
    let shown = place.ezio_ok(&["image", "show", "trusted"]);
    assert!(shown.contains("ext4") && shown.contains("label root"), "{shown}");
    let restored = place.restore("trusted", &source);
    place.check_ext4(&restored, &files);

    // One changed byte: trusted without a look, found with one.
    let first = place.path("bt").join("0".repeat(32));
    let mut bytes = fs::read(&first).expect("read");
    bytes[5000] ^= 1;
    // partclone leaves its files read-only.
    fs::remove_file(&first).expect("remove");
    fs::write(&first, &bytes).expect("write");
    let said = place.ezio_refuses(&["image", "import", "--name", "x", "--verify", &bt]);
    assert!(said.contains("piece 0") && said.contains("damaged"), "{said}");
    bytes.pop();
    fs::write(&first, &bytes).expect("write");
    let said = place.ezio_refuses(&["image", "import", "--name", "x", &bt]);
    assert!(said.contains("not the runs that torrent.info lists"), "{said}");
    fs::remove_file(&first).expect("remove");
    assert!(place.ezio_refuses(&["image", "import", "--name", "x", &bt]).contains("not the runs"));
    fs::remove_file(place.path("bt").join("torrent.info")).expect("remove");
    assert!(place.ezio_refuses(&["image", "import", "--name", "x", &bt]).contains("torrent.info"));
    assert_eq!((place.listed().len(), place.unfinished()), (3, 0));
}

/// A link is as long as the path in it, so a directory can be made that any file of this server fits into.
#[test]
fn links_among_bt_files_are_refused() {
    let place = Place::new();
    let secret = place.text("secret");
    fs::write(&secret, vec![7; 4096]).expect("write");
    fs::create_dir(place.path("bt")).expect("a directory");
    let len = secret.len();
    let info = format!("block_size: 512\nblocks_total: 16\noffset: 0\nlength: {len:x}\nsha1: {}\n", "0".repeat(40));
    fs::write(place.path("bt").join("torrent.info"), info).expect("write");
    symlink(&secret, place.path("bt").join("0")).expect("a link");
    let is_refused = |args: &[&str]| {
        let said = place.ezio_refuses(&[&["image", "import", "--name", "x"], args].concat());
        assert!(said.contains("bt/0") && said.contains("symbolic link"), "{args:?}: {said}");
    };
    is_refused(&[&place.text("bt")]);
    let torrent = NewTorrent {
        name: "root".into(),
        announce: None,
        piece_len: 16384,
        files: vec![FileEntry { length: len as u64, path: vec!["0".into()] }],
        hashes: vec![[0; 20]],
        facts: None,
        private: true,
    };
    fs::write(place.path("x.torrent"), torrent.to_bytes().expect("a torrent")).expect("write");
    is_refused(&[&place.text("x.torrent"), &place.text("bt")]);
    fs::rename(place.path("bt").join("torrent.info"), place.path("info")).expect("moved");
    symlink(place.path("info"), place.path("bt").join("torrent.info")).expect("a link");
    let said = place.ezio_refuses(&["image", "import", "--name", "x", &place.text("bt")]);
    assert!(said.contains("torrent.info") && said.contains("symbolic link"), "{said}");
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));
}

#[test]
fn partclone_itself_still_writes_what_is_read_here() {
    need(&["mkfs.vfat", "mcopy", "partclone.vfat"]);
    let place = Place::new();
    let fat = place.blank("fat.img", 40);
    run("mkfs.vfat", &["-F", "32", &fat]);
    let files = place.files("files");
    run("mcopy", &["-i", &fat, "-s", &format!("{files}/big"), "::"]);
    let bt = place.text("bt");
    let status = command("partclone.vfat")
        .args(["-c", "-T", "-s", &fat, "-O", &bt, "-z", "16777216", "-L", &place.text("log")])
        .output()
        .expect("partclone runs");
    assert!(status.status.success(), "{status:?}");
    place.ezio_ok(&["image", "import", "--name", "fat", "--verify", &bt]);
    let restored = place.restore("fat", &fat);
    run("mcopy", &["-i", &restored, "::BIG", &place.text("big.back")]);
    let equal =
        fs::read(place.path("big.back")).expect("read") == fs::read(place.path("files").join("big")).expect("read");
    assert!(equal, "the file is the same");
}

#[test]
fn an_ezio_torrent_and_its_files_become_the_same_image() {
    need(&["mkfs.ext4", "partclone.ext4"]);
    let place = Place::new();
    let source = place.ext4("fs.img", 90, &place.files("files"));
    let bt = place.text("bt");
    run("partclone.ext4", &["-c", "-T", "-s", &source, "-O", &bt, "-L", &place.text("log")]);
    place.ezio_ok(&["image", "import", "--name", "partclone", &bt]);
    // As EZIO makes them: no facts of ours, a tracker, the partition's name, offsets as short as they are.
    let ours = place.meta("partclone");
    let shorter = |file: &FileEntry| {
        let digits = file.path[0].trim_start_matches('0');
        FileEntry { length: file.length, path: vec![if digits.is_empty() { "0" } else { digits }.to_owned()] }
    };
    let torrent = NewTorrent {
        name: "sda1".into(),
        announce: Some("http://192.168.1.1:6969/announce".into()),
        piece_len: ours.geometry.piece_len(),
        files: ours.files.iter().map(shorter).collect(),
        hashes: ours.geometry.pieces().map(|piece| *ours.piece_hash(piece)).collect(),
        facts: None,
        private: false,
    };
    let torrent = torrent.to_bytes().expect("a torrent");
    fs::write(place.path("sda1.torrent"), &torrent).expect("write");
    let path = place.text("sda1.torrent");
    let infohash = Metainfo::parse(&torrent).expect("a torrent").infohash;

    assert!(place.ezio_refuses(&["image", "import", &path, "--name", "x"]).contains("BT files as well"));
    assert!(place.ezio_refuses(&["image", "import", &bt, &bt, "--name", "x"]).contains("goes with a .torrent"));
    place.ezio_ok(&["image", "import", &path, &bt, "--name", "trusted"]);
    place.ezio_ok(&["image", "import", &path, &bt, "--name", "verified", "--verify"]);
    let flat = place.stored("partclone");
    place.ezio_ok(&["image", "import", &path, flat.to_str().expect("UTF-8"), "--name", "flat", "--verify"]);
    place.ezio_ok(&["image", "import", &path, &bt, "--name", "plain", "--uncompressed"]);
    let plain = place.stored("plain");
    place.ezio_ok(&["image", "import", &path, plain.to_str().expect("UTF-8"), "--name", "again", "--verify"]);
    for name in ["trusted", "verified", "flat", "plain", "again"] {
        let meta = place.meta(name);
        assert_eq!((meta.infohash, meta.announce), (infohash, None), "{name}: the torrent is the same");
        assert_eq!(place.content(name), place.content("partclone"), "{name}");
        place.ezio_ok(&["image", "verify", name]);
    }
    for name in ["trusted", "plain"] {
        assert!(place.ezio_ok(&["image", "show", name]).contains("ext4"), "the file system is found in the content");
    }

    let first = place.path("bt").join("0".repeat(32));
    let mut bytes = fs::read(&first).expect("read");
    bytes[5000] ^= 1;
    fs::remove_file(&first).expect("remove");
    let missing = place.ezio_refuses(&["image", "import", &path, &bt, "--name", "x"]);
    assert!(missing.contains("no file with the bytes at disk offset 0x0"), "{missing}");
    fs::write(&first, &bytes).expect("write");
    let said = place.ezio_refuses(&["image", "import", &path, &bt, "--name", "x", "--verify"]);
    assert!(said.contains("piece 0") && said.contains("damaged"), "{said}");
    fs::write(place.path("short"), "x").expect("write");
    let said = place.ezio_refuses(&["image", "import", &path, &place.text("short"), "--name", "x"]);
    assert!(said.contains("not this torrent's content"), "{said}");
    assert_eq!((place.listed().len(), place.unfinished()), (6, 0));
}

//! What partclone wrote for BitTorrent becomes an image, byte for byte.

use std::fs;

use crate::tools::{Place, command, have, run};

#[test]
fn a_partclone_directory_becomes_the_image_that_capture_makes() {
    if !have(&["mkfs.ext4", "partclone.ext4", "e2fsck", "debugfs"]) {
        return;
    }
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

#[test]
fn partclone_itself_still_writes_what_is_read_here() {
    if !have(&["mkfs.vfat", "mcopy", "partclone.vfat"]) {
        return;
    }
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

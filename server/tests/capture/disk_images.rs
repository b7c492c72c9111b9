//! Disk images of virtual machines come in, and raw ones go out.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use crate::disks::{GPT_TOOLS, gpt_disk};
use crate::refusals::wait_for;
use crate::tools::{Place, need, run, text};

#[test]
fn a_disk_image_becomes_the_image_that_capture_makes() {
    need(&GPT_TOOLS);
    need(&["qemu-img"]);
    let place = Place::new();
    let (disk, _) = gpt_disk(&place);
    place.ezio_ok(&["capture", &disk, "--name", "captured"]);
    let infohash = place.meta("captured").infohash;
    for (format, option) in [
        ("raw", ""),
        ("qcow2", "preallocation=metadata"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vhdx", "subformat=dynamic"),
        ("vpc", "force_size=on"),
        ("vpc", "force_size=on,subformat=fixed"),
        ("vdi", "static=off"),
        ("qed", "cluster_size=65536"),
    ] {
        let image = place.text(&format!("disk.{format}"));
        let option: &[&str] = if option.is_empty() { &[] } else { &["-o", option] };
        run("qemu-img", &[&["convert", "-f", "raw", "-O", format, &disk, &image], option].concat());
        let said = place.ezio_ok(&["image", "import", &image, "--name", "imported", "--replace"]);
        assert!(said.contains("imported imported:"), "{format}: {said}");
        assert_eq!(place.meta("imported").infohash, infohash, "{format} {option:?}");
        let shown = place.ezio_ok(&["image", "show", "imported"]);
        assert!(shown.contains(&format!("import of a {format} disk image of {image}")), "{shown}");
        let listing: Vec<_> = fs::read_dir(place.image("imported")).expect("read").collect();
        assert_eq!(listing.len(), 3, "nothing but the image is left of {format}");
    }
    assert_eq!(place.unfinished(), 0);
}

#[test]
fn disk_images_that_reach_out_or_are_damaged_are_refused() {
    need(&["mkfs.ext4", "qemu-img"]);
    let place = Place::new();
    let source = place.blank("fs.img", 30);
    run("mkfs.ext4", &["-q", "-F", &source]);
    let refused = |image: &str| place.ezio_refuses(&["image", "import", image, "--name", "x"]);

    let qcow2 = place.text("base.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &source, &qcow2]);
    let over = place.text("over.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &qcow2, &over]);
    let said = refused(&over);
    assert!(
        said.contains("is only a part") && said.contains("base.qcow2") && said.contains("qemu-img convert"),
        "{said}"
    );
    let apart = place.text("apart.qcow2");
    let data_file = format!("data_file={},data_file_raw=on", place.text("data.raw"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &data_file, &apart, "30M"]);
    assert!(refused(&apart).contains("data.raw"));

    // Cut short at a cluster's end, each reads as zeros from there on.
    for format in ["qcow2", "vmdk", "vdi"] {
        let whole = place.text(&format!("whole.{format}"));
        let filled = place.ext4("filled.img", 60, &place.files("files"));
        run("qemu-img", &["convert", "-f", "raw", "-O", format, &filled, &whole]);
        place.ezio_ok(&["image", "import", &whole, "--name", format]);
        place.ezio_ok(&["image", "remove", format]);
        let mut bytes = fs::read(&whole).expect("read");
        bytes.truncate((bytes.len() * 7 / 10).next_multiple_of(1 << 20));
        let cut = place.text(&format!("cut.{format}"));
        fs::write(&cut, bytes).expect("write");
        let said = refused(&cut);
        assert!(said.contains("cut short") && said.contains("copy it again"), "{said}");
    }

    // A VHD that holds only the differences from another: 4 for the type of disk, in both copies of its footer.
    let vhd = place.text("child.vhd");
    run("qemu-img", &["create", "-q", "-f", "vpc", &vhd, "30M"]);
    let mut bytes = fs::read(&vhd).expect("read");
    let last = bytes.len() - 512;
    for footer in [0, last] {
        assert_eq!(bytes[footer..footer + 8], *b"conectix");
        assert_eq!(bytes[footer + 63], 3);
        bytes[footer + 63] = 4;
        // The one's complement of the sum of all bytes.
        bytes[footer + 67] -= 1;
    }
    fs::write(&vhd, bytes).expect("write");
    let said = refused(&vhd);
    assert!(said.contains("is only a part") && said.contains("merge both"), "{said}");

    // A VMDK whose data is any file of this server.
    fs::create_dir(place.path("elsewhere")).expect("a directory");
    fs::copy(&source, place.path("elsewhere/secret")).expect("copied");
    let extent = format!("RW {} FLAT \"elsewhere/secret\" 0", (30 << 20) / 512);
    let vmdk = format!(
        "# Disk DescriptorFile\nversion=1\nCID=01020304\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n{extent}\n"
    );
    fs::write(place.path("thief.vmdk"), vmdk).expect("write");
    let said = refused(&place.text("thief.vmdk"));
    assert!(said.contains("only files beside it are read"), "{said}");

    let mut bytes = fs::read(&qcow2).expect("read");
    bytes[24..32].fill(0xff);
    fs::write(place.path("bad.qcow2"), &bytes).expect("write");
    let said = refused(&place.text("bad.qcow2"));
    assert!(said.contains("qemu-img could not read") && said.contains("bad.qcow2"), "{said}");

    let import = ["image", "import", &qcow2, "--name", "x"];
    let output = place.ezio(&import).env("PATH", "/nowhere").output().expect("ezio runs");
    assert!(!output.status.success());
    assert!(text(&output).contains("apt install qemu-utils"), "{}", text(&output));
    let junk = place.blank("junk.img", 2);
    assert!(refused(&junk).contains("--whole"));
    place.ezio_ok(&["image", "import", &junk, "--name", "junk", "--whole"]);
    assert_eq!((place.listed(), place.unfinished()), (vec!["junk".to_owned()], 0));
}

#[test]
fn a_conversion_that_is_stopped_leaves_nothing() {
    need(&["qemu-img"]);
    let place = Place::new();
    let disk = place.blank("disk.img", 64);
    // An impostor that never ends stands for a disk that takes long; nobody else may be left with it.
    let qemu = place.path("bin");
    fs::create_dir(&qemu).expect("a directory");
    let script = "#!/bin/sh\ncase $1 in convert) echo $$ >\"$0.pid\"; exec sleep 1000;; *) exec /usr/bin/qemu-img \"$@\";; esac\n";
    fs::write(qemu.join("qemu-img"), script).expect("write");
    run("chmod", &["+x", &place.text("bin/qemu-img")]);
    symlink("/usr/bin/sleep", qemu.join("sleep")).expect("a link");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &disk, &place.text("disk.qcow2")]);
    let start = || {
        let _ = fs::remove_file(place.path("bin/qemu-img.pid"));
        let import = ["image", "import", &place.text("disk.qcow2"), "--name", "x"];
        let mut child = place.ezio(&import).env("PATH", &qemu).spawn().expect("ezio runs");
        let pid = wait_for(&place.path("bin/qemu-img.pid"), &mut child);
        (child, pid.trim().to_owned())
    };
    let (mut child, pid) = start();
    run("sh", &["-c", &format!("kill -TERM {}", child.id())]);
    assert!(!child.wait().expect("its end").success());
    assert!(!Path::new("/proc").join(pid).exists(), "the program it ran is gone as well");
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));

    let (mut child, pid) = start();
    child.kill().and_then(|()| child.wait()).expect("kill -9");
    run("kill", &[&pid]);
    assert_eq!((place.listed().len(), place.unfinished()), (0, 1));
    assert!(place.ezio_ok(&["image", "list"]).contains("no images"));
    place.ezio_ok(&["image", "import", &disk, "--name", "other", "--whole"]);
    assert_eq!((place.listed(), place.unfinished()), (vec!["other".to_owned()], 0), "the next one clears it away");
}

#[test]
fn an_image_goes_out_as_the_disk_it_came_from() {
    need(&GPT_TOOLS);
    need(&["mkswap", "blkid"]);
    let place = Place::new();
    let (disk, files) = gpt_disk(&place);
    let swap = place.blank("swap.img", 20);
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    run("mkswap", &["-q", "-L", "swappy", "-U", uuid, &swap]);
    run("sgdisk", &["-n", "3:0:+20M", "-t", "3:8200", &disk]);
    place.paste(&swap, &disk, 161 << 20);
    place.ezio_ok(&["capture", &disk, "--name", "golden", "--uncompressed"]);

    let raw = place.text("out.img");
    let torrent = place.text("out.torrent");
    let said = place.ezio_ok(&["image", "export", "golden", "--raw", &raw, "--torrent", &torrent]);
    assert!(said.contains("a disk of 200.0 MiB") && said.contains("infohash"), "{said}");
    assert_eq!(fs::read(&torrent).expect("read"), fs::read(place.image("golden").join("image.torrent")).expect("read"));
    place.check_used("golden", &raw, &disk);
    let found = fs::metadata(&raw).expect("the file");
    assert_eq!(found.len(), 200 << 20);
    assert!(found.blocks() * 512 < 60 << 20, "it is sparse: {} blocks", found.blocks());
    assert_eq!(found.mode() & 0o400, 0o400);
    assert!(run("sgdisk", &["-v", &raw]).contains("No problems found"));
    place.check_ext4(&place.cut(&raw, 41 << 20, 120 << 20, "root.back"), &files);
    let swap = run("blkid", &["-p", "-o", "export", &place.cut(&raw, 161 << 20, 20 << 20, "swap.back")]);
    assert!(swap.contains("LABEL=swappy") && swap.contains(&format!("UUID={uuid}")), "{swap}");

    let piped = place.ezio(&["image", "export", "golden", "--raw", "-"]).output().expect("ezio runs");
    assert!(piped.status.success());
    assert!(piped.stdout == fs::read(&raw).expect("read"), "a pipe gets the same bytes");

    // Gaps read as zeros, so what comes back in is the same image.
    place.ezio_ok(&["image", "import", &raw, "--name", "again"]);
    assert_eq!(place.meta("again").infohash, place.meta("golden").infohash);

    let refused = |args: &[&str]| place.ezio_refuses(&[&["image", "export", "golden"], args].concat());
    assert!(refused(&["--raw", &raw]).contains("--force"));
    assert!(refused(&["--torrent", &torrent]).contains("--force"));
    assert!(refused(&["--raw", "/dev/null"]).contains("is not a file"));
    assert!(refused(&["--raw", &place.text("missing/out.img")]).contains("making"));
    assert!(refused(&[]).contains("--raw"));
    let block = fs::read_dir("/dev").expect("read").filter_map(Result::ok).map(|entry| entry.path());
    let block =
        block.into_iter().find(|path| fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()));
    let block = block.expect("a machine with a disk");
    let said = refused(&["--force", "--raw", block.to_str().expect("UTF-8")]);
    assert!(said.contains("ezio restore"), "{said}");

    // A damaged image leaves what was there before.
    let content = place.image("golden").join("content");
    let mut bytes = fs::read(&content).expect("read");
    bytes[300_000] ^= 1;
    fs::write(&content, bytes).expect("write");
    fs::write(&raw, "before").expect("write");
    let said = refused(&["--raw", &raw, "--force"]);
    assert!(said.contains("is damaged: piece 1 is bad"), "{said}");
    assert_eq!(fs::read(&raw).expect("read"), b"before");
    let left = fs::read_dir(place.path(".")).expect("read").filter_map(Result::ok);
    assert!(!left.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".ezio-export")));
    place.ezio_ok(&["image", "export", "again", "--raw", &raw, "--force"]);
    assert_eq!(fs::metadata(&raw).expect("the file").len(), 200 << 20);
}

#[test]
fn the_list_says_what_images_cost_and_save() {
    need(&["mkfs.ext4", "partclone.ext4"]);
    let place = Place::new();
    let source = place.ext4("fs.img", 100, &place.files("files"));
    place.ezio_ok(&["capture", &source, "--name", "used", "--uncompressed"]);
    place.ezio_ok(&["capture", &source, "--name", "whole", "--whole", "--uncompressed"]);
    let list = place.ezio_ok(&["image", "list"]);
    for word in ["in use", "in library", "disk", "saved", "total", "100.0 MiB", "200.0 MiB", "   0 %"] {
        assert!(list.contains(word), "{word}: {list}");
    }
    fs::write(place.image("whole").join("manifest.json"), "{}").expect("write");
    let json = place.ezio_ok(&["image", "list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let (used, whole, totals) = (&json["images"][0], &json["images"][1], &json["totals"]);
    let content_len = place.meta("used").geometry.content_len();
    assert_eq!((used["name"].as_str(), used["content_len"].as_u64()), (Some("used"), Some(content_len)));
    assert_eq!(used["disk_len"].as_u64(), Some(100 << 20));
    assert_eq!(used["infohash"].as_str().map(str::len), Some(40));
    let library_len = used["library_len"].as_u64().expect("a number");
    assert!((9_000_000..content_len + 100_000).contains(&library_len), "{library_len} of {content_len}");
    let saved = used["saved_percent"].as_f64().expect("a number");
    assert!((saved - 100.0 * (1.0 - content_len as f64 / f64::from(100 << 20))).abs() < 0.1, "{saved}");
    assert!(whole["error"].as_str().is_some_and(|why| why.contains("manifest.json")), "{whole}");
    assert_eq!(totals["content_len"], used["content_len"]);
    assert!(totals["library_len"].as_u64() > Some(library_len), "a damaged image takes room as well: {totals}");
    assert_eq!(json["unfinished"], serde_json::json!([]));

    // Compressed, the same bytes take less.
    assert_eq!((used["stored_len"].as_u64(), used["k"].as_f64()), (Some(content_len), Some(1.0)));
    place.ezio_ok(&["image", "compress", "used"]);
    let json = place.ezio_ok(&["image", "list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let used = &json["images"][0];
    let stored_len = fs::metadata(place.stored("used")).expect("there").len();
    assert_eq!((used["content_len"].as_u64(), used["stored_len"].as_u64()), (Some(content_len), Some(stored_len)));
    let k = (10.0 * content_len as f64 / stored_len as f64).round() / 10.0;
    assert!(k > 1.0 && used["k"].as_f64() == Some(k), "{used}");
    let list = place.ezio_ok(&["image", "list"]);
    assert!(list.lines().any(|line| line.starts_with("used") && line.contains(&format!(" {k:.1} "))), "{k}: {list}");
    let shown = place.ezio_ok(&["image", "show", "used"]);
    assert!(shown.contains("stored compressed in") && shown.contains(&format!("k {k:.1}")), "{shown}");
}

//! Disk images of virtual machines come in.

use std::fs;
use std::os::unix::fs::symlink;

use crate::disks::{GPT_TOOLS, gpt_disk};
use crate::tools::{Place, have, run, text};

#[test]
fn a_disk_image_becomes_the_image_that_capture_makes() {
    if !have(&GPT_TOOLS) || !have(&["qemu-img"]) {
        return;
    }
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
    if !have(&["mkfs.ext4", "qemu-img"]) {
        return;
    }
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
    if !have(&["qemu-img"]) {
        return;
    }
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
    let mut child = place
        .ezio(&["image", "import", &place.text("disk.qcow2"), "--name", "x"])
        .env("PATH", &qemu)
        .spawn()
        .expect("ezio runs");
    let pid = crate::refusals::wait_for(&place.path("bin/qemu-img.pid"), &mut child);
    run("sh", &["-c", &format!("kill -TERM {}", child.id())]);
    assert!(!child.wait().expect("its end").success());
    assert!(!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists(), "the program it ran is gone as well");
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));
}

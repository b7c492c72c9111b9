//! Whole disks and bare file systems, there and back.

use std::fs;
use std::os::unix::fs::symlink;

use crate::tools::{Junk, Place, need, run};

const MIB: u64 = 1 << 20;

/// GPT with an ESP and an ext4 root: the disk of nearly everyone.
pub fn gpt_disk(place: &Place) -> (String, String) {
    let files = place.files("files");
    let root = place.ext4("root.img", 120, &files);
    let esp = place.blank("esp.img", 40);
    run("mkfs.vfat", &["-F", "32", "-n", "EFI", &esp]);
    fs::write(place.path("hello"), "hello from the ESP\n").expect("write");
    run("mcopy", &["-i", &esp, &place.text("hello"), "::HELLO.TXT"]);
    let disk = place.blank("disk.img", 200);
    run("sgdisk", &["-n", "1:2048:+40M", "-t", "1:ef00", "-c", "1:boot", "-n", "2:0:+120M", "-t", "2:8300", &disk]);
    place.paste(&esp, &disk, MIB);
    place.paste(&root, &disk, 41 * MIB);
    (disk, files)
}

pub const GPT_TOOLS: [&str; 9] =
    ["mkfs.ext4", "mkfs.vfat", "mcopy", "mtype", "sgdisk", "partclone.ext4", "partclone.vfat", "e2fsck", "debugfs"];

#[test]
fn a_gpt_disk_comes_back_with_its_files() {
    need(&GPT_TOOLS);
    let place = Place::new();
    let (disk, files) = gpt_disk(&place);
    let said = place.ezio_ok(&["capture", &disk, "--name", "one"]);
    assert!(said.contains("captured one:") && said.contains("EFI system") && said.contains("ext4"), "{said}");

    let restored = place.restore("one", &disk);
    assert_eq!(run("sgdisk", &["-p", &restored]).replace("restored", "disk.img"), run("sgdisk", &["-p", &disk]));
    assert!(run("sgdisk", &["-v", &restored]).contains("No problems found"));
    assert_eq!(run("mtype", &["-i", &format!("{restored}@@1M"), "::HELLO.TXT"]), "hello from the ESP\n");
    let root = place.cut(&restored, 41 * MIB, 120 * MIB, "root.back");
    place.check_ext4(&root, &files);

    let meta = place.meta("one");
    let content_len = meta.geometry.content_len();
    assert!(content_len < 60 * MIB, "free blocks were left out of {content_len} bytes");
    assert!(meta.private && meta.announce.is_none());
    assert!(meta.files.iter().all(|file| file.path[0].len() == 32), "names have 32 digits");
    let facts = meta.facts.expect("facts");
    assert_eq!((facts.table.as_str(), facts.sector_size, facts.disk_size), ("gpt", 512, 200 * MIB));

    assert!(place.ezio_ok(&["image", "list"]).contains("one"));
    let shown = place.ezio_ok(&["image", "show", "one"]);
    assert!(shown.contains("label EFI") && shown.contains("partclone v0") && shown.contains("in use"), "{shown}");
    assert!(place.ezio_ok(&["image", "verify", "one"]).contains("one is good"));
    place.ezio_ok(&["image", "remove", "one"]);
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));
}

#[test]
fn the_same_disk_has_the_same_infohash() {
    need(&GPT_TOOLS);
    let place = Place::new();
    let (disk, _) = gpt_disk(&place);
    for (name, threads) in [("one", "1"), ("five", "5")] {
        place.ezio_ok(&["capture", &disk, "--name", name, "--threads", threads]);
    }
    // With nothing but these in PATH there is no losetup: partitions are copied for partclone instead.
    let bin = place.path("bin");
    fs::create_dir(&bin).expect("a directory");
    for tool in ["blkid", "partclone.ext4", "partclone.vfat"] {
        symlink(format!("/usr/sbin/{tool}"), bin.join(tool)).expect("a link");
    }
    let status = place.ezio(&["capture", &disk, "--name", "copied"]).env("PATH", &bin).status().expect("ezio runs");
    assert!(status.success());
    let infohashes = ["one", "five", "copied"].map(|name| place.meta(name).infohash);
    assert_eq!(infohashes[0], infohashes[1]);
    assert_eq!(infohashes[0], infohashes[2]);
    place.ezio_ok(&["capture", &disk, "--name", "one", "--replace", "--piece-len", "64K"]);
    assert_eq!(place.meta("one").geometry.piece_len(), 65_536);
    assert_eq!(place.content("one"), place.content("five"));
    assert_eq!(place.unfinished(), 0, "the image that was replaced is gone");
}

#[test]
fn an_mbr_disk_with_logical_partitions_comes_back() {
    need(&["mkfs.ext4", "mkswap", "sfdisk", "partclone.ext4", "e2fsck", "debugfs"]);
    let place = Place::new();
    let files = place.files("files");
    let disk = place.blank("disk.img", 160);
    let script = "label: dos\nlabel-id: 0xc0ffee00\nstart=2048,size=81920,type=83,bootable\nstart=83968,type=5\n\
                  start=86016,size=122880,type=83\nstart=210944,size=20480,type=82\nstart=233472,size=4096,type=da\n";
    fs::write(place.path("script"), script).expect("write");
    let sfdisk = format!("sfdisk -q {disk} < {}", place.text("script"));
    run("sh", &["-c", &sfdisk]);
    let first = place.ext4("first.img", 40, &files);
    let logical = place.ext4("logical.img", 60, &files);
    let swap = place.blank("swap.img", 10);
    run("mkswap", &["-q", "-L", "swappy", "-U", "01234567-89ab-cdef-0123-456789abcdef", &swap]);
    let mut unknown = vec![0; 2 << 20];
    Junk(5).fill(&mut unknown);
    fs::write(place.path("unknown"), &unknown).expect("write");
    let mut boot_code = [0; 400];
    Junk(6).fill(&mut boot_code);
    fs::write(place.path("boot"), boot_code).expect("write");
    for (file, sector) in [(&first, 2048), (&logical, 86_016), (&swap, 210_944), (&place.text("unknown"), 233_472)] {
        place.paste(file, &disk, sector * 512);
    }
    place.paste(&place.text("boot"), &disk, 0);
    place.paste(&place.text("boot"), &disk, 1024);

    let said = place.ezio_ok(&["capture", &disk, "--name", "mbr"]);
    assert!(said.contains("holds the logical partitions") && said.contains("4.0 KiB in use"), "{said}");
    let restored = place.restore("mbr", &disk);
    let dump = |disk: &str| run("sfdisk", &["-d", disk]).replace(disk, "disk");
    assert_eq!(dump(&restored), dump(&disk), "every link of the chain is there");
    for (sector, mib) in [(2048, 40), (86_016, 60)] {
        let back = place.cut(&restored, sector * 512, mib * MIB, "part.back");
        place.check_ext4(&back, &files);
    }
    assert_eq!(fs::read(place.cut(&restored, 233_472 * 512, 2 * MIB, "part.back")).expect("read"), unknown);
    for at in [0, 1024] {
        let back = fs::read(place.cut(&restored, at, 400, "part.back")).expect("read");
        assert_eq!(back, boot_code, "boot code at {at}");
    }
    let header = |disk: &str| fs::read(place.cut(disk, 210_944 * 512, 4096, "header")).expect("read");
    assert_eq!(header(&restored), header(&disk), "the header of the swap area, label and all");
    let swapped_out = 210_944 * 512 + 4096..(210_944 + 20_480) * 512;
    let starts = place.meta("mbr").files.into_iter().map(|file| u64::from_str_radix(&file.path[0], 16).expect("hex"));
    assert!(starts.into_iter().all(|start| !swapped_out.contains(&start)), "what is swapped out is left out");
}

#[test]
fn an_odd_disk_comes_back() {
    need(&GPT_TOOLS);
    let place = Place::new();
    let files = place.files("files");
    let disk = place.blank("disk.img", 160);
    // Numbers against the order on the disk, starts at odd sectors, boot loaders in partitions of their own and in a gap,
    // and an MBR that names one of the partitions as well.
    const ROOT: u64 = 100_001 * 512;
    const BIOS: u64 = 2_048 * 512;
    const PREP: u64 = 5_003 * 512;
    let starts = ["-n", "1:100001:+90M", "-n", "2:5003:+4M", "-n", "3:2048:+1M"];
    let types = ["-t", "1:8300", "-t", "2:4100", "-t", "3:ef02", "-h", "1"];
    run("sgdisk", &[&["-a", "1"], &starts[..], &types, &[&disk]].concat());
    place.paste(&place.ext4("root.img", 90, &files), &disk, ROOT);
    let junk = |name: &str, len: usize, seed: u64| {
        let mut bytes = vec![0; len];
        Junk(seed).fill(&mut bytes);
        fs::write(place.path(name), &bytes).expect("write");
        place.text(name)
    };
    let loaders = [(junk("code", 440, 1), 0), (junk("bios", 1 << 20, 2), BIOS), (junk("prep", 4 << 20, 3), PREP)];
    for (file, at) in loaders.iter().chain(&[(junk("table gap", 5_000, 4), 40 * 512)]) {
        place.paste(file, &disk, *at);
    }

    let said = place.ezio_ok(&["capture", &disk, "--name", "odd"]);
    assert!(said.contains("BIOS boot") && said.contains("PReP") && said.contains("ext4"), "{said}");
    let restored = place.restore("odd", &disk);
    let dump = |disk: &str| run("sgdisk", &["-p", "-O", disk]).replace(disk, "disk");
    assert_eq!(dump(&restored), dump(&disk), "both tables are as they were");
    assert!(dump(&disk).contains("0x83"), "the hybrid names partition 1: {}", dump(&disk));
    for (file, at) in loaders.iter().chain(&[(place.text("table gap"), 40 * 512)]) {
        let bytes = fs::read(file).expect("read");
        let back = fs::read(place.cut(&restored, *at, bytes.len() as u64, "part.back")).expect("read");
        assert!(back == bytes, "{file} at {at}");
    }
    place.check_ext4(&place.cut(&restored, ROOT, 90 * MIB, "root.back"), &files);
    let content_len = place.meta("odd").geometry.content_len();
    assert!(content_len < 60 * MIB, "free blocks were left out of {content_len} bytes");
}

#[test]
fn a_disk_of_large_sectors_comes_back() {
    need(&GPT_TOOLS);
    need(&["fdisk"]);
    let place = Place::new();
    let files = place.files("files");
    let disk = place.blank("disk.img", 120);
    // A GPT, and in it a partition from sector 1,000 to 20,000.
    fs::write(place.path("keys"), "g\nn\n1\n1000\n20000\nw\n").expect("write");
    run("sh", &["-c", &format!("fdisk -b 4096 {disk} < {}", place.text("keys"))]);
    place.paste(&place.ext4("root.img", 70, &files), &disk, 1000 * 4096);
    place.ezio_ok(&["capture", &disk, "--name", "large"]);
    let restored = place.restore("large", &disk);
    let list = |disk: &str| run("fdisk", &["-b", "4096", "-l", disk]).replace(disk, "disk");
    assert_eq!(list(&restored), list(&disk));
    assert!(list(&disk).contains("20000"), "{}", list(&disk));
    place.check_ext4(&place.cut(&restored, 1000 * 4096, 70 * MIB, "root.back"), &files);
    let facts = place.meta("large").facts.expect("facts");
    assert_eq!((facts.table.as_str(), facts.sector_size, facts.disk_size), ("gpt", 4096, 120 * MIB));
}

#[test]
fn a_file_system_without_a_table_comes_back() {
    need(&["mkfs.ext4", "partclone.ext4", "e2fsck", "debugfs"]);
    let place = Place::new();
    let files = place.files("files");
    let bare = place.ext4("bare.img", 90, &files);
    place.ezio_ok(&["capture", &bare, "--name", "bare"]);
    let restored = place.restore("bare", &bare);
    place.check_ext4(&restored, &files);
    assert_eq!(place.meta("bare").facts.expect("facts").table.as_str(), "none");
    place.ezio_ok(&["capture", &bare, "--name", "whole", "--whole"]);
    assert_eq!(place.content("whole"), fs::read(&bare).expect("read"));
}

/// File systems whose used blocks we find ourselves, as a partition of a disk.
#[test]
fn a_disk_with_file_systems_that_partclone_does_not_know_comes_back() {
    need(&["mkfs.jfs", "mkfs.nilfs2", "mkfs.reiserfs", "sgdisk"]);
    let place = Place::new();
    let disk = place.blank("disk.img", 700);
    run("sgdisk", &["-n", "1:2048:+200M", "-n", "2:0:+200M", "-n", "3:0:+200M", &disk]);
    for (n, make) in
        [&["mkfs.jfs", "-q"][..], &["mkfs.nilfs2", "-q"], &["mkfs.reiserfs", "-q", "-f", "-f"]].iter().enumerate()
    {
        let image = place.blank("fs.img", 200);
        run(make[0], &[&make[1..], &[image.as_str()]].concat());
        place.paste(&image, &disk, (1 + 200 * n as u64) * MIB);
    }
    let said = place.ezio_ok(&["capture", &disk, "--name", "odd"]);
    for line in ["jfs", "nilfs2", "reiserfs"].map(|name| said.lines().find(|line| line.contains(name)).expect(name)) {
        assert!(line.contains("in use"), "{line}");
    }
    let content_len = place.meta("odd").geometry.content_len();
    assert!(content_len < 200 * MIB, "free blocks were left out of {content_len} bytes");
    let restored = place.restore("odd", &disk);
    for n in 0..3 {
        let cut = |from: &str| place.cut(from, (1 + 200 * n) * MIB, 200 * MIB, "back.img");
        let tool =
            [("jfs_fsck", &["-n", "-f"][..]), ("blkid", &["-p"]), ("reiserfsck", &["--check", "-y", "-q"])][n as usize];
        let back = cut(&restored);
        run(tool.0, &[tool.1, &[back.as_str()]].concat());
    }
}

#[test]
fn a_stamp_of_a_finished_disk_is_no_part_of_its_image() {
    use std::os::unix::fs::FileExt;

    need(&["sgdisk", "blkid"]);
    let place = Place::new();
    let disk = place.blank("disk.img", 32);
    run("sgdisk", &["-n", "1:2048:+20M", &disk]);
    fs::write(place.path("junk"), vec![7; 3 << 20]).expect("write");
    place.paste(&place.text("junk"), &disk, 2 * MIB);
    let stamp = layout::parttable::stamp::Stamp { deployment: "7f".into(), infohash: [9; 20] };
    let file = fs::File::options().write(true).open(&disk).expect("a disk");
    for at in [MIB - 512, 32 * MIB - 34 * 512] {
        let record = stamp.to_record(layout::DiskOffset(at), 32 * MIB).expect("short");
        file.write_all_at(&record, at).expect("written");
    }
    drop(file);
    place.ezio_ok(&["capture", &disk, "--name", "two", "--at-own-risk"]);
    let layout = |name: &str| layout::Layout::new(&place.meta(name)).expect("extents");
    for at in [MIB - 512, 32 * MIB - 34 * 512] {
        let sector = layout::DiskRange::new(at..at + 512);
        assert!(!layout("two").touches(sector), "the stamp at byte {at}");
    }
    assert!(layout("two").touches(layout::DiskRange::new(MIB - 1024..MIB - 512)), "the rest of the gap is");
    let deployed = place.deploy("two", &[], 32 * MIB);
    assert!(run("sgdisk", &["-v", &deployed]).contains("No problems found"));
}

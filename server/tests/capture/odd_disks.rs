//! Sane disks on which a signature is not the whole partition, or the partitions are not the whole disk: nothing of them is
//! left out in silence. Those that docs/filesystems.md lists are in `tests/filesystems`.

use std::fs;

use crate::tools::{Place, need, run};

const MIB: u64 = 1 << 20;

/// Captures, and checks that every page with data comes back; returns what was said.
fn keeps_all(place: &Place, disk: &str, options: &[&str]) -> String {
    let said = place.ezio_ok(&[&["capture", disk, "--name", "odd", "--replace"], options].concat());
    let (lost, data) = place.lost("odd", disk);
    assert!(data > 0 && lost == 0, "{lost} of {data} pages with data are lost of {disk}:\n{said}");
    said
}

#[test]
fn what_lies_behind_a_file_system_is_kept() {
    need(&[
        "mkfs.ext4",
        "mkfs.xfs",
        "mkfs.btrfs",
        "mkfs.vfat",
        "mkfs.exfat",
        "mkfs.f2fs",
        "mkntfs",
        "mkfs.jfs",
        "mkswap",
    ]);
    need(&["veritysetup", "sgdisk"]);
    let place = Place::new();
    let tail = place.junk("tail", 4_100_000, 3);
    for (mkfs, mib) in [
        (&["mkfs.ext4", "-q", "-F"][..], 40),
        (&["mkfs.xfs", "-q", "-f"], 300),
        (&["mkfs.btrfs", "-q", "-f", "-m", "single"], 120),
        (&["mkfs.vfat", "-F", "32"], 40),
        (&["mkfs.exfat"], 40),
        (&["mkfs.f2fs", "-q", "-f"], 60),
        (&["mkntfs", "-q", "-F", "-Q"], 40),
        (&["mkfs.jfs", "-q"], 40),
        (&["mkswap", "-q"], 20),
    ] {
        let volume = place.blank("volume", mib);
        run(mkfs[0], &[&mkfs[1..], &[volume.as_str()]].concat());
        // In a partition, and without one; the data far from both ends of what is behind.
        let bare = place.blank("bare", mib + 20);
        place.paste(&volume, &bare, 0);
        place.paste(&tail, &bare, (mib + 7) * MIB);
        let disk = place.blank("disk", mib + 24);
        run("sgdisk", &["-n", &format!("1:2048:{}", (mib + 21) * 2048 - 1), &disk]);
        place.paste(&bare, &disk, MIB);
        for source in [&bare, &disk] {
            place.ezio_ok(&["capture", source, "--name", "odd", "--replace"]);
            let at = if source == &disk { MIB } else { 0 } + (mib + 7) * MIB;
            let restored = place.restore("odd", source);
            let back = fs::read(place.cut(&restored, at, 4_100_000, "back")).expect("read");
            assert!(back == fs::read(&tail).expect("read"), "{mkfs:?}: what lies behind it is lost");
        }
    }

    let files = place.files("files");
    let part = place.blank("part", 100);
    run("mkfs.ext4", &["-q", "-F", "-O", "^has_journal", "-b", "4096", "-d", &files, &part, "60m"]);
    let format = ["format", "--data-blocks=15360", "--hash-offset=62914560", &part, &part];
    let said = run("veritysetup", &format);
    let hash = said.lines().find_map(|line| line.strip_prefix("Root hash:")).expect("a hash").trim().to_owned();
    place.ezio_ok(&["capture", &part, "--name", "verity"]);
    let restored = place.restore("verity", &part);
    run("veritysetup", &["verify", "--hash-offset=62914560", &restored, &restored, &hash]);

    // The tree in a partition of its own.
    let disk = place.blank("disk", 100);
    run("sgdisk", &["-n", "1:2048:+60M", "-n", "2:0:+10M", &disk]);
    let (root, tree) = (place.cut(&part, 0, 60 * MIB, "root"), place.blank("tree", 10));
    let said = run("veritysetup", &["format", &root, &tree]);
    let hash = said.lines().find_map(|line| line.strip_prefix("Root hash:")).expect("a hash").trim().to_owned();
    place.paste(&root, &disk, MIB);
    place.paste(&tree, &disk, 61 * MIB);
    let said = place.ezio_ok(&["capture", &disk, "--name", "pair"]);
    assert!(said.contains("dm-verity"), "{said}");
    let restored = place.restore("pair", &disk);
    let (root, tree) = (place.cut(&restored, MIB, 60 * MIB, "root"), place.cut(&restored, 61 * MIB, 10 * MIB, "tree"));
    run("veritysetup", &["verify", &root, &tree, &hash]);
}

#[test]
fn data_outside_of_partitions_is_kept_or_left_out_as_asked() {
    need(&["sfdisk", "mkfs.ext4"]);
    let place = Place::new();
    let files = place.files("files");
    let root = place.ext4("root", 30, &files);
    let junk = place.junk("junk", 256 << 10, 5);
    for table in ["dos", "gpt"] {
        let disk = place.blank("disk", 120);
        place.sfdisk(&disk, &format!("label: {table}\nstart=2048, size=61440\nstart=104448, size=61440\n"));
        place.paste(&root, &disk, MIB);
        place.paste(&root, &disk, 51 * MIB);
        // Between the partitions, and behind the last.
        place.paste(&junk, &disk, 40 * MIB + 512);
        place.paste(&junk, &disk, 100 * MIB);
        let said = keeps_all(&place, &disk, &[]);
        assert!(said.contains("data outside of file systems"), "{said}");
        let shown = place.ezio_ok(&["image", "show", "odd"]);
        assert!(shown.contains(&format!("of {} bytes: ", 120 * MIB)) && shown.contains("left out"), "{shown}");
        let said = place.ezio_ok(&["capture", &disk, "--name", "odd", "--replace", "--partitions-only"]);
        assert!(said.contains("outside of partitions, left out as asked"), "{said}");
        assert_eq!(place.lost("odd", &disk).0, 2 * 64 + 1, "the junk, and nothing else");
    }
}

#[test]
fn what_has_several_signatures_or_a_table_of_its_own_is_copied_whole() {
    need(&["sgdisk", "sfdisk", "mkfs.ext4", "mkfs.vfat"]);
    let place = Place::new();
    let files = place.files("files");
    let fat = place.blank("fat", 30);
    run("mkfs.vfat", &["-F", "32", &fat]);
    let both = place.ext4("both", 30, &files);
    place.paste(&place.cut(&fat, 0, 512, "sector"), &both, 0);
    let nested = place.blank("nested", 30);
    place.sfdisk(&nested, "label: dos\nstart=2048, size=40960\nstart=45056, size=10240\n");
    place.paste(&place.ext4("small", 20, &files), &nested, MIB);
    for (part, words) in
        [(&both, "signatures of several kinds: vfat, ext4"), (&nested, "it has a partition table of its own")]
    {
        let disk = place.blank("disk", 40);
        run("sgdisk", &["-n", "1:2048:+30M", &disk]);
        place.paste(part, &disk, MIB);
        let said = keeps_all(&place, &disk, &[]);
        assert!(said.contains(words) && said.contains("copied whole"), "{said}");
    }
    // Alone, nobody knows what it is meant to be.
    let said = place.ezio_refuses(&["capture", &both, "--name", "both"]);
    assert!(said.contains("vfat and ext4") && said.contains("--whole"), "{said}");
    place.ezio_ok(&["capture", &both, "--name", "both", "--whole"]);
}

#[test]
fn a_swap_area_is_what_it_was() {
    need(&["mkswap", "blkid"]);
    let place = Place::new();
    let boot_code = place.junk("code", 1000, 6);
    for (label, options) in [
        ("Größe", &[][..]),
        ("подкач", &[]),
        ("fifteen-letters", &[]),
        ("", &[]),
        ("pages", &["--pagesize", "65536"]),
        ("other", &[]),
    ] {
        let swap = place.blank("swap", 20);
        run("mkswap", &[&["-q", "-L", label], options, &[&swap]].concat());
        place.paste(&boot_code, &swap, 0);
        if label == "other" {
            fs::write(place.path("latin"), b"Gr\xf6\xdfe\0").expect("write");
            place.paste(&place.text("latin"), &swap, 1052);
        }
        let said = place.ezio_ok(&["capture", &swap, "--name", "swap", "--replace"]);
        assert!(label == "other" || said.contains(label), "{said}");
        assert!(place.meta("swap").geometry.content_len() <= 65_536, "only its header");
        let restored = place.restore("swap", &swap);
        let len = if label == "pages" { 65_536 } else { 4096 };
        let [before, after] = [&swap, &restored].map(|disk| fs::read(place.cut(disk, 0, len, "page")).expect("read"));
        assert!(before == after, "{label}");
        let blkid = |disk: &str| run("blkid", &["-p", "-o", "udev", disk]);
        assert_eq!(blkid(&restored), blkid(&swap));
    }
}

#[test]
fn clean_file_systems_that_partclone_does_not_know_are_copied_whole() {
    need(&["mkfs.xfs", "mkfs.f2fs", "mkfs.ext4"]);
    let place = Place::new();
    let xfs = place.blank("xfs", 320);
    run("mkfs.xfs", &["-q", "-f", "-r", &format!("rtdev={}", place.blank("rt", 100)), &xfs]);
    let f2fs = place.blank("f2fs", 100);
    run("mkfs.f2fs", &["-q", "-f", "-c", &place.blank("second", 100), &f2fs]);
    let ext4 = place.blank("ext4", 60);
    run("mkfs.ext4", &["-q", "-F", "-O", "bigalloc", &ext4]);
    for (source, words) in
        [(&xfs, "real-time section"), (&f2fs, "F2FS over several devices"), (&ext4, "partclone does not")]
    {
        let said = keeps_all(&place, source, &[]);
        assert!(said.contains("copied whole") && said.contains(words), "{said}");
        assert!(!said.contains("shut down"), "{said}");
    }
}

//! Tables that Linux reads are read, sector sizes are found, and `--whole` copies every byte even if the table is wrong.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::tools::{Place, need, run};

const MIB: u64 = 1 << 20;

/// A small ext4 with data, and a disk with one at each of these sectors.
fn disk_of(place: &Place, mib: u64, script: &str, starts: &[u64], sector: u64) -> String {
    let files = place.files("files");
    let root = place.ext4("root", 20, &files);
    let disk = place.blank("disk", mib);
    place.sfdisk(&disk, script);
    starts.iter().for_each(|start| place.paste(&root, &disk, start * sector));
    disk
}

fn keeps_all(place: &Place, disk: &str, options: &[&str]) -> String {
    let said = place.ezio_ok(&[&["capture", disk, "--name", "odd", "--replace"], options].concat());
    let (lost, data) = place.lost("odd", disk);
    assert!(data > 0 && lost == 0, "{lost} of {data} pages with data are lost of {disk}:\n{said}");
    if options.contains(&"--whole") {
        assert!(place.content("odd") == fs::read(disk).expect("read"), "{options:?}: every byte");
    }
    said
}

#[test]
fn logical_partitions_may_have_any_order() {
    need(&["sfdisk", "mkfs.ext4"]);
    let place = Place::new();
    let script = "label: dos\n1 : start=2048, size=40960, type=83\n4 : start=45056, size=350000, type=5\n\
                  5 : start=200000, size=45000, type=83\n6 : start=250000, size=45000, type=83\n\
                  7 : start=51200, size=50000, type=83\n";
    let disk = disk_of(&place, 200, script, &[2048, 200_000, 250_000, 51_200], 512);
    let said = keeps_all(&place, &disk, &[]);
    assert_eq!(said.matches(" in use").count(), 5, "four, and the sum: {said}");
    keeps_all(&place, &disk, &["--whole"]);
}

#[test]
fn a_partition_may_end_a_little_past_the_disk() {
    need(&["sfdisk", "mkfs.ext4"]);
    let place = Place::new();
    let script = "label: dos\n1 : start=2048, size=40960, type=83\n2 : start=43008, size=161792, type=83\n";
    let disk = disk_of(&place, 100, script, &[2048], 512);
    File::options().write(true).open(&disk).and_then(|file| file.set_len(99 * MIB)).expect("cut");
    keeps_all(&place, &disk, &[]);
    keeps_all(&place, &disk, &["--whole"]);
    // Half of it is more than a little.
    File::options().write(true).open(&disk).and_then(|file| file.set_len(50 * MIB)).expect("cut");
    let said = place.ezio_refuses(&["capture", &disk, "--name", "cut"]);
    assert!(said.contains("cut off") && said.contains("--whole"), "{said}");
    keeps_all(&place, &disk, &["--whole"]);
}

#[test]
fn odd_gpts_are_read() {
    need(&["sfdisk", "mkfs.ext4"]);
    let place = Place::new();
    let script = "label: gpt\n1 : start=4096, size=81920\n";
    let many = format!("label: gpt\ntable-length: 2048\n{}", script.trim_start_matches("label: gpt\n"));
    let disk = disk_of(&place, 100, &many, &[4096], 512);
    assert!(keeps_all(&place, &disk, &[]).contains("ext4"));

    let disk = disk_of(&place, 100, script, &[4096], 512);
    File::options().write(true).open(&disk).and_then(|file| file.write_all_at(&[1], 446)).expect("a flag");
    assert!(keeps_all(&place, &disk, &[]).contains("ext4"));

    // Whatever is wrong with the table, every byte is every byte.
    let write = |bytes: &[u8], at: u64| {
        let file = File::options().write(true).open(&disk).expect("the disk");
        file.write_all_at(bytes, at).expect("written");
    };
    write(&[0xff; 40], 512 + 16);
    let said = place.ezio_refuses(&["capture", &disk, "--name", "damaged"]);
    assert!(said.contains("sgdisk") && said.contains("--whole"), "{said}");
    keeps_all(&place, &disk, &["--whole"]);
    write(&[0xff; 40], 100 * MIB - 512 + 16);
    let said = place.ezio_refuses(&["capture", &disk, "--name", "damaged"]);
    assert!(said.contains("--sector-size") && said.contains("--whole"), "{said}");
    keeps_all(&place, &disk, &["--whole"]);
    write(&[0; 512], 0);
    write(b"EFI PART", 512);
    keeps_all(&place, &disk, &["--whole"]);
}

#[test]
fn a_protective_mbr_may_be_left_over() {
    need(&["sgdisk", "mkfs.ext4"]);
    let place = Place::new();
    let files = place.files("files");
    let bare = place.ext4("bare", 40, &files);
    let gpt = place.blank("gpt", 40);
    run("sgdisk", &["-n", "1:2048:0", &gpt]);
    place.paste(&place.cut(&gpt, 0, 512, "sector"), &bare, 0);
    let said = place.ezio_refuses(&["capture", &bare, "--name", "bare"]);
    assert!(said.contains("--whole"), "{said}");
    keeps_all(&place, &bare, &["--whole"]);
    place.check_ext4(&place.restore("odd", &bare), &files);
}

#[test]
fn the_sector_size_of_a_file_is_found() {
    need(&["losetup", "sfdisk", "mkfs.ext4"]);
    assert!(nix::unistd::geteuid().is_root(), "only root can attach loop devices: run the tests as root");
    let place = Place::new();
    let files = place.files("files");
    let root = place.ext4("root", 40, &files);
    for (kind, has_data) in [("dos", true), ("gpt", true), ("dos", false)] {
        let disk = place.blank("disk", 200);
        fs::write(place.path("script"), format!("label: {kind}\nstart=256, size=12800\nstart=25856, size=12800\n"))
            .expect("write");
        let divide =
            "d=$(losetup -b 4096 -f --show \"$1\") && trap 'losetup -d $d' EXIT && sfdisk -q --no-reread $d < \"$2\"";
        run("sh", &["-c", divide, "sh", &disk, &place.text("script")]);
        if has_data {
            place.paste(&root, &disk, MIB);
            place.paste(&root, &disk, 101 * MIB);
            keeps_all(&place, &disk, &[]);
            assert_eq!(place.meta("odd").facts.expect("facts").sector_size, 4096);
            keeps_all(&place, &disk, &["--sector-size", "4096"]);
            keeps_all(&place, &disk, &["--whole"]);
            assert_eq!(place.meta("odd").facts.expect("facts").sector_size, 4096);
            continue;
        }
        // Nothing says which it is.
        place.paste(&place.junk("junk", 1 << 20, 8), &disk, 101 * MIB);
        let said = place.ezio_refuses(&["capture", &disk, "--name", "blank"]);
        assert!(said.contains("--sector-size") && said.contains("--whole"), "{said}");
        for options in [&["--sector-size", "4096"][..], &["--sector-size", "512"], &["--whole"]] {
            keeps_all(&place, &disk, options);
        }
        for bad in ["0", "513", "8192", "x"] {
            let said = place.ezio_refuses(&["capture", &disk, "--name", "bad", "--sector-size", bad]);
            assert!(said.contains("512, 1024, 2048 or 4096"), "{said}");
        }
    }
}

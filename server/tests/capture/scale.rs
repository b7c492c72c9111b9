//! File systems of very many small pieces, and very large ones.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::tools::{Place, Running, need, run};

/// A FAT32 of clusters of one sector, of which every second is in use.
fn scattered(place: &Place, clusters: u32) -> String {
    let mib = u64::from(clusters / 2048) + 40;
    let volume = place.blank("volume", mib);
    run("mkfs.vfat", &["-F", "32", "-s", "1", "-f", "1", &volume]);
    let file = File::options().read(true).write(true).open(&volume).expect("the volume");
    let mut boot = [0; 512];
    file.read_exact_at(&mut boot, 0).expect("a boot sector");
    let reserved = u64::from(u16::from_le_bytes([boot[14], boot[15]]));
    let entries: Vec<u8> =
        (0..clusters).flat_map(|n| if n % 2 == 0 { 0x0fff_fff8u32 } else { 0 }.to_le_bytes()).collect();
    // The first entries are the table's own, and the root directory is cluster 2.
    file.write_all_at(&entries[16..], reserved * 512 + 16).expect("entries");
    volume
}

#[test]
fn very_many_places_become_few() {
    need(&["mkfs.vfat", "partclone.vfat", "fsck.fat"]);
    let place = Place::new();
    let volume = scattered(&place, 500_000);
    let said = place.ezio_ok(&["capture", &volume, "--name", "scattered"]);
    assert!(said.contains("small holes between them are copied along"), "{said}");
    let meta = place.meta("scattered");
    assert!(meta.files.len() <= 100_000, "{} places", meta.files.len());
    let restored = place.restore("scattered", &volume);
    place.check_used("scattered", &restored, &volume);
}

/// partclone looks at every cluster of an exFAT, which takes minutes here.
#[test]
fn a_long_look_is_announced_and_ends_when_told_to() {
    need(&["mkfs.exfat", "partclone.exfat"]);
    let place = Place::new();
    let volume = place.text("volume");
    File::create(&volume).and_then(|file| file.set_len(4 << 40)).expect("a sparse file of 4 TiB");
    run("mkfs.exfat", &[&volume]);
    let mut capture = place.ezio(&["capture", &volume, "--name", "large"]);
    let mut child = Running(capture.stderr(Stdio::piped()).spawn().expect("ezio runs"));
    let lines = BufReader::new(child.0.stderr.take().expect("piped")).lines();
    let announced = lines.map_while(Result::ok).find(|line| line.contains("is finding the blocks in use"));
    assert!(announced.expect("it says what it does").contains("partclone.exfat"));
    let told = Instant::now();
    run("kill", &["-TERM", &child.0.id().to_string()]);
    assert!(!child.0.wait().expect("it ends").success());
    assert!(told.elapsed() < Duration::from_secs(30), "it took {:?}", told.elapsed());
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));
}

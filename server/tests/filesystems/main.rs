//! What is promised of each file system, shown on a real one: made by its own mkfs, filled by its own driver in a virtual
//! machine, captured and restored by `ezio` onto a disk full of other bytes, then judged by its own fsck and file by file.
//!
//! docs/filesystems.md has to say what was seen.

mod document;
mod odd;
mod scripts;
mod volumes;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use metainfo::Metainfo;
use odd::ODD;
use testvm::{Vm, program, run};
use volumes::{Fsck, Life, Make, VOLUMES, Volume};

const EZIO: &str = env!("CARGO_BIN_EXE_ezio");

/// Drivers of the file systems, and what they ask the kernel for while they are mounted.
const MODULES: &[&str] = &[
    "crc32_generic",
    "crc32c_generic",
    "xxhash_generic",
    "blake2b_generic",
    "sha256_generic",
    "nls_ascii",
    "nls_utf8",
    "nls_cp437",
    "ext4",
    "xfs",
    "btrfs",
    "f2fs",
    "fuse",
    "vfat",
    "exfat",
    "hfsplus",
    "minix",
    "jfs",
    "nilfs2",
    "reiserfs",
    "ufs",
    "udf",
    "dm_mod",
    "dm_crypt",
    "xts",
    "ecb",
    "aes_generic",
    "algif_skcipher",
    "algif_hash",
];

/// What was seen of one volume.
pub struct Seen {
    /// Who found the used blocks.
    found_by: String,
    /// Bytes of the volume.
    len: u64,
    /// Bytes in use, as the file system says, if it is mounted.
    used: Option<u64>,
    /// Bytes in the image.
    captured: u64,
    /// How many files were compared.
    files: usize,
}

/// What was seen of an odd disk.
pub struct SeenOdd {
    /// How it was captured, in words.
    how: String,
    /// Bytes of the disk.
    len: u64,
    /// Bytes in the image.
    captured: u64,
    /// Sectors of 512 bytes with data, all of which came back; `None` where free blocks hold data as well.
    sectors: Option<usize>,
}

#[test]
fn every_file_system_survives() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let started = Instant::now();
    let golden = make(dir.path());
    let before = in_machine(dir.path(), &golden, true);
    println!("made and filled after {:?}", started.elapsed());

    let restored: Vec<PathBuf> = golden.iter().map(|volume| volume.with_extension("restored")).collect();
    let mut seen = Vec::new();
    for (number, volume) in VOLUMES.iter().enumerate() {
        seen.push(capture_and_restore(volume, &golden[number], &restored[number]));
        check(volume, &restored[number]);
    }
    println!("captured and restored after {:?}", started.elapsed());

    let after = in_machine(dir.path(), &restored, false);
    for (number, volume) in VOLUMES.iter().enumerate() {
        let lines_before = &before[number];
        let [before, after] = [lines_before, &after[number]].map(|lines| sums(lines));
        assert_eq!(before, after, "{}: what was before, and what came back", volume.name);
        let seen = &mut seen[number];
        seen.used = used(lines_before);
        seen.files = before.iter().filter(|line| line.starts_with("SUM ")).count();
        if matches!(volume.life, Life::Filled(..) | Life::Read(..)) {
            assert!(seen.files > 60, "{}: {before:?}", volume.name);
        }
    }
    println!("compared after {:?}", started.elapsed());
    let odd: Vec<SeenOdd> = ODD
        .iter()
        .enumerate()
        .map(|(number, odd)| odd::survive(odd, &dir.path().join(format!("odd{number}"))))
        .collect();
    println!("odd disks after {:?}", started.elapsed());
    document::check(&seen, &odd);
}

/// Makes all volumes.
fn make(dir: &Path) -> Vec<PathBuf> {
    let tree = dir.join("tree");
    volumes::make_tree(&tree);
    let make = |(number, volume): (usize, &Volume)| {
        let path = dir.join(format!("volume{number}"));
        File::create(&path).and_then(|file| file.set_len(volume.mib << 20)).expect("an empty volume");
        match volume.make {
            Make::Mkfs(words) => {
                run(Command::new(program(words[0])).args(&words[1..]).arg(&path));
            }
            Make::With(make) => make(&path, &tree),
        }
        path
    };
    VOLUMES.iter().enumerate().map(make).collect()
}

/// Boots a machine with all volumes, which fills or only reads them; what it said of each.
fn in_machine(work: &Path, volumes: &[PathBuf], is_filling: bool) -> Vec<Vec<String>> {
    let mut script = scripts::prelude();
    if is_filling {
        script += "make_tree\n";
    }
    for (disk, volume) in ('a'..='z').zip(VOLUMES) {
        script += &format!("echo VOLUME\ndevice=/dev/vd{disk}\n");
        script += &match (&volume.life, is_filling) {
            (Life::Filled(kind, options, links), true) => {
                // Read again from the disk, as the restored one will be, and not from the driver's memory.
                let again = format!("volume {kind} {options},ro $device; sums; leave");
                format!("volume {kind} {options} $device; fill '{links}'; leave; {again}\n")
            }
            (Life::Filled(kind, options, _), false) => format!("volume {kind} {options},ro $device; sums; leave\n"),
            (Life::Read(kind, options), _) => format!("volume {kind} {options} $device; sums; leave\n"),
            (Life::Script(fill, _), true) => format!("{fill}\n"),
            (Life::Script(_, read), false) => format!("{read}\n"),
            (Life::None, _) => String::new(),
        };
    }
    let disks: Vec<&Path> = volumes.iter().map(PathBuf::as_path).collect();
    let vm = Vm { work, modules: MODULES, programs: &["lvm", "cryptsetup", "mkfs.ext2", "ntfs-3g"], disks: &disks };
    let lines = vm.run(&script);
    let parts: Vec<_> = lines.split(|line| line == "VOLUME").skip(1).map(<[String]>::to_vec).collect();
    assert_eq!(parts.len(), VOLUMES.len(), "{lines:?}");
    parts
}

/// What has to be the same afterwards.
fn sums(lines: &[String]) -> Vec<String> {
    let is_sum = |line: &&String| line.starts_with("SUM ") || line.starts_with("TREE ");
    let mut sums: Vec<String> = lines.iter().filter(is_sum).cloned().collect();
    sums.sort();
    sums
}

/// Bytes in use, as df says.
fn used(lines: &[String]) -> Option<u64> {
    let df = lines.iter().find_map(|line| line.strip_prefix("DF "))?;
    let kib: u64 = df.split_whitespace().nth(2)?.parse().ok()?;
    Some(kib * 1024)
}

/// Captures a volume, and restores it from a peer onto a disk of random bytes.
fn capture_and_restore(volume: &Volume, golden: &Path, target: &Path) -> Seen {
    let library = golden.with_extension("library");
    run(Command::new(EZIO).arg("capture").arg(golden).args(["--name", "image", "--library"]).arg(&library));
    let image = library.join("images/image");
    let manifest = fs::read(image.join("manifest.json")).expect("the manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let [partition] = &manifest["partitions"].as_array().expect("partitions")[..] else { panic!("one: {manifest}") };
    assert_eq!(partition["file_system"], volume.probed, "{}: {partition}", volume.name);
    let is_partclones = manifest["origin"]["tools"].get("partclone").is_some();
    let found_by = match partition["captured"].as_str().expect("how") {
        "used-blocks" if is_partclones => "partclone",
        "used-blocks" => "EZIO",
        "recipe" => "made again",
        "whole" => "copied whole",
        other => panic!("{}: {other}", volume.name),
    };
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let (len, captured) = (number(&partition["length"]), number(&partition["captured_len"]));
    println!("{}: {captured} bytes of {len}, {found_by}, {}", volume.name, partition["note"]);

    volumes::scribble(target, fs::metadata(golden).expect("the volume").len());
    let torrent = image.join("image.torrent");
    let seeder = Seeder::start(&torrent, &image.join("content.zst"));
    run(Command::new(EZIO).arg("restore").arg(&torrent).arg(target).args(["--yes", "--peer", &seeder.address]));
    drop(seeder);
    let meta = Metainfo::parse(&fs::read(&torrent).expect("the torrent")).expect("a good torrent");
    assert_same(&meta, golden, target);
    fs::remove_dir_all(library).expect("removed");
    Seen { found_by: found_by.to_owned(), len, used: None, captured, files: 0 }
}

/// The bytes that the image has are on the target as they were; what it does not have was not touched.
fn assert_same(meta: &Metainfo, golden: &Path, target: &Path) {
    let [golden, target] = [golden, target].map(|path| fs::read(path).expect("a volume"));
    for file in &meta.files {
        let start = usize::from_str_radix(&file.path[0], 16).expect("an offset");
        let place = start..start + usize::try_from(file.length).expect("small");
        assert!(golden[place.clone()] == target[place.clone()], "{place:?} came back different");
    }
}

/// `ezio seed` on a port of its own, stopped when it is dropped.
struct Seeder {
    child: Child,
    address: String,
}

impl Seeder {
    fn start(torrent: &Path, content: &Path) -> Seeder {
        let mut seed = Command::new(EZIO);
        seed.arg("seed").arg(torrent).arg(content).args(["--as", "flat", "--listen", "127.0.0.1:0"]);
        let mut child = seed.stdout(Stdio::piped()).spawn().expect("our own binary");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.split_whitespace().last().unwrap_or_default().to_owned();
        Seeder { child, address }
    }
}

impl Drop for Seeder {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets the file system's own checker look.
fn check(volume: &Volume, restored: &Path) {
    if let Fsck::Tool(words, wanted) | Fsck::AndScrub(words, wanted) = &volume.fsck {
        let said = run(Command::new(program(words[0])).args(&words[1..]).arg(restored));
        assert!(said.contains(wanted) && !said.contains("[Fail]"), "{words:?}: {said}");
    }
    if let Fsck::AndScrub(..) = &volume.fsck {
        volumes::scrub(restored);
    }
}

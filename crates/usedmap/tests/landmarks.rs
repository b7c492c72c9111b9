//! partclone's maps of real volumes, completed by their landmarks: the covered bytes must make a complete file system
//! again, on a disk full of other bytes.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use testvm::{program, run};
use usedmap::{Landmarks, Ranges, landmarks};

const MIB: u64 = 1 << 20;

/// A directory for volumes, and for files to fill them with.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut random = SmallRng::seed_from_u64(5);
        for number in 0..60usize {
            let parent = dir.path().join(format!("tree/dir{}", number % 5));
            fs::create_dir_all(&parent).expect("a directory");
            let mut bytes = vec![0; number * number * 997 % 300_000];
            random.fill_bytes(&mut bytes);
            fs::write(parent.join(format!("file{number}")), bytes).expect("a file");
        }
        fs::create_dir(dir.path().join("mnt")).expect("a directory");
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tree(&self) -> PathBuf {
        self.path("tree")
    }

    /// The files of the tree, without the directories.
    fn files(&self) -> Vec<PathBuf> {
        let dirs = fs::read_dir(self.tree()).expect("the tree").map(|entry| entry.expect("an entry").path());
        dirs.flat_map(|dir| fs::read_dir(dir).expect("a directory"))
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }

    /// An empty volume of this length.
    fn blank(&self, len: u64) -> PathBuf {
        let path = self.path("volume");
        File::create(&path).and_then(|file| file.set_len(len)).expect("an empty volume");
        path
    }

    /// Runs a script in a separate mount namespace; its mounts end with it.
    fn mounted(&self, script: &str) -> String {
        let script = format!("set -e; cd {}\n{script}", self.dir.path().display());
        run(Command::new("unshare").args(["-m", "sh", "-c", &script]))
    }

    /// Reads the landmarks, completes partclone's map with them, and copies the covered bytes over other bytes.
    fn survive(&self, volume: &Path, file_system: &str, partclone: &str) -> (PathBuf, Landmarks) {
        let found = self.landmarks(volume, file_system);
        let mut source = File::open(volume).expect("the volume");
        let volume_len = source.metadata().expect("its length").len();
        let map = self.partclone_map(volume, partclone, volume_len);
        let mapped = sum(&map);
        let completed = found.complete(map.clone());
        assert!(completed.windows(2).all(|pair| pair[0].end < pair[1].start), "ascending and coalesced");
        assert!(completed.iter().all(|range| range.start < range.end && range.end <= volume_len), "inside");
        assert!(map.iter().all(|range| covers(&completed, range)), "nothing gets lost");
        assert!(found.places.iter().all(|range| covers(&completed, range)), "places are in it");
        println!(
            "{file_system}: {volume_len} bytes, len {:?}, partclone maps {mapped}, at least {:?}, completed {}, {} \
             places, {} mirrors",
            found.len,
            found.used_min,
            sum(&completed),
            found.places.len(),
            found.mirrors.len()
        );
        assert!(
            found.used_min.is_none_or(|min| min <= mapped),
            "partclone maps {mapped}, {:?} is less",
            found.used_min
        );
        let clone = self.path("clone");
        copy(&mut source, volume_len, &completed, &clone);
        (clone, found)
    }

    fn landmarks(&self, volume: &Path, file_system: &str) -> Landmarks {
        let mut source = File::open(volume).expect("the volume");
        let len = source.metadata().expect("its length").len();
        landmarks(file_system, &mut source, len).unwrap_or_else(|error| panic!("{error}"))
    }

    fn partclone_map(&self, volume: &Path, name: &str, len: u64) -> Vec<Range<u64>> {
        let map = self.path("map");
        let mut partclone = Command::new(program(name));
        partclone.args(["-D", "-L", "/dev/null", "-s"]).arg(volume).arg("-O").arg(&map).env("TERM", "dumb");
        run(&mut partclone);
        let text = fs::read_to_string(map).expect("the map");
        let mut ranges = Ranges::new(len);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let [at, count, "+"] = line.split_whitespace().collect::<Vec<_>>()[..] {
                let number = |word: &str| u64::from_str_radix(&word[2..], 16).expect("a number");
                ranges.insert(number(at)..number(at) + number(count));
            }
        }
        ranges.finish()
    }
}

fn sum(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

fn covers(ranges: &[Range<u64>], inner: &Range<u64>) -> bool {
    ranges.iter().any(|range| range.start <= inner.start && inner.end <= range.end)
}

/// Writes ranges of a volume to a file that holds only 0xa5 elsewhere.
fn copy(source: &mut File, len: u64, ranges: &[Range<u64>], to: &Path) {
    let mut target = File::create(to).expect("the clone");
    std::io::copy(&mut std::io::repeat(0xa5).take(len), &mut target).expect("junk");
    for range in ranges {
        source.seek(SeekFrom::Start(range.start)).expect("inside");
        target.seek(SeekFrom::Start(range.start)).expect("inside");
        std::io::copy(&mut (&*source).take(range.end - range.start), &mut target).expect("a range");
    }
}

fn command(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program(name));
    command.args(args);
    command
}

/// The number in a line with this start.
fn number_in(said: &str, line: &str) -> u64 {
    let rest =
        said.lines().find_map(|other| other.trim().strip_prefix(line)).unwrap_or_else(|| panic!("{line}: {said}"));
    let digits: String =
        rest.trim_start_matches([' ', '\t', ':', '=', '[', '#']).chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{line}{rest}"))
}

/// Reads every copy of everything in a mounted clone, and prints the result.
const SCRUB: &str = "mount -o loop,ro clone mnt; btrfs scrub start -B -r mnt || echo failed; umount mnt";

/// Checks a clone of a btrfs, unmounted and mounted; every copy of everything is read.
fn check_btrfs(place: &Place, clone: &Path) {
    run(command("btrfs", &["check", "--check-data-csum"]).arg(clone));
    let said = place.mounted(SCRUB);
    assert!(said.contains("no errors found") && !said.contains("failed"), "{said}");
    place.mounted("mount -o loop,ro clone mnt; diff -r tree mnt/tree; umount mnt");
}

#[test]
fn btrfs_is_completed() {
    let place = Place::new();
    fs::create_dir(place.path("root")).expect("a directory");
    run(Command::new("cp").arg("-r").arg(place.tree()).arg(place.path("root")));
    let variants: [(u64, &[&str], bool); 10] = [
        (256, &[], true),
        (256, &["-m", "single"], false),
        (400, &["-d", "dup", "-m", "dup"], true),
        (256, &["--mixed"], false),
        (256, &["--mixed", "-m", "dup", "-d", "dup"], true),
        (256, &["-n", "4096"], true),
        (256, &["-n", "65536"], true),
        (256, &["--csum", "xxhash"], true),
        (256, &["--csum", "sha256"], true),
        (256, &["-m", "dup", "-O", "^no-holes,^extref", "-R", "^free-space-tree"], true),
    ];
    for (mib, options, has_mirrors) in variants {
        println!("{options:?}");
        let volume = place.blank(mib * MIB + 4096 * 77);
        run(command("mkfs.btrfs", &["-q", "-f"]).args(options).arg("-r").arg(place.path("root")).arg(&volume));
        let (clone, found) = place.survive(&volume, "btrfs", "partclone.btrfs");
        let said = run(command("btrfs", &["inspect-internal", "dump-super"]).arg(&volume));
        assert_eq!(found.len, Some(number_in(&said, "dev_item.total_bytes")));
        assert_eq!(found.used_min, Some(number_in(&said, "bytes_used")));
        assert_eq!((found.devices, found.is_clean), (Some(1), None));
        assert_eq!(found.mirrors.is_empty(), !has_mirrors, "{:?}", found.mirrors);
        assert!(sum(&found.places) >= found.used_min.unwrap_or(0) + MIB, "the extents are in it");
        assert!([0..MIB, 64 * MIB..64 * MIB + 4096].iter().all(|range| covers(&found.places, range)));
        check_btrfs(&place, &clone);
    }
}

/// If it were complete, no landmarks would be needed.
#[test]
fn btrfs_is_not_complete_by_itself() {
    let place = Place::new();
    let volume = place.blank(256 * MIB);
    run(command("mkfs.btrfs", &["-q", "-f", "-r"]).arg(place.tree()).arg(&volume));
    let map = place.partclone_map(&volume, "partclone.btrfs", 256 * MIB);
    copy(&mut File::open(&volume).expect("the volume"), 256 * MIB, &map, &place.path("clone"));
    let said = place.mounted(SCRUB);
    assert!(!said.contains("no errors found"), "{said}");
}

/// The chunks were moved, and the file system is shorter than its volume.
#[test]
fn btrfs_is_completed_after_a_long_life() {
    let place = Place::new();
    let volume = place.blank(1200 * MIB);
    run(command("mkfs.btrfs", &["-q", "-f", "-n", "4096"]).arg(&volume));
    place.mounted(
        "mount -o loop volume mnt; cd mnt
        for i in 1 2 3 4 5 6; do head -c 30000000 /dev/urandom >large$i; cp -r ../tree tree$i; done; sync
        btrfs balance start --full-balance .
        rm -r large2 large5 tree3; btrfs subvolume snapshot . snapshot
        for i in 7 8 9; do head -c 30000000 /dev/urandom >large$i; cp -r ../tree tree$i; done; sync
        btrfs balance start -m -dusage=100 . ; btrfs filesystem resize -220m .
        mv tree9 tree; sync; cd ..; umount mnt",
    );
    let (clone, found) = place.survive(&volume, "btrfs", "partclone.btrfs");
    assert_eq!(found.len, Some(980 * MIB));
    assert!(found.mirrors.len() > 1, "{:?}", found.mirrors);
    check_btrfs(&place, &clone);
    // The landmarks cover all of it without partclone, too.
    let alone = found.complete(Vec::new());
    println!("{} bytes in {} ranges without partclone", sum(&alone), alone.len());
    copy(&mut File::open(&volume).expect("the volume"), 1200 * MIB, &alone, &place.path("clone"));
    check_btrfs(&place, &clone);
}

/// Snapshots share parts of trees, and partclone leaves out some of them.
#[test]
fn btrfs_is_completed_with_snapshots() {
    let place = Place::new();
    let volume = place.blank(512 * MIB);
    run(command("mkfs.btrfs", &["-q", "-f"]).arg(&volume));
    place.mounted(
        "mount -o loop volume mnt; cd mnt; btrfs subvolume create sub; cp -r ../tree .
        for dir in $(seq 1 20); do mkdir sub/$dir; (cd sub/$dir; seq 1 1000 | xargs touch); done; sync
        btrfs subvolume snapshot -r sub snapshot1; rm -r sub/3 sub/7; touch sub/1/x sub/20/x; sync
        btrfs subvolume snapshot -r sub snapshot2; rm -r sub/9; sync
        btrfs subvolume snapshot -r sub snapshot3; touch sub/5/x; sync; cd ..; umount mnt",
    );
    let (clone, _) = place.survive(&volume, "btrfs", "partclone.btrfs");
    check_btrfs(&place, &clone);
    // Mirrors alone do not help if a node is left out in each copy.
    let found = Landmarks { places: Vec::new(), ..place.landmarks(&volume, "btrfs") };
    let mirrored = found.complete(place.partclone_map(&volume, "partclone.btrfs", 512 * MIB));
    copy(&mut File::open(&volume).expect("the volume"), 512 * MIB, &mirrored, &clone);
    let output = command("btrfs", &["check"]).arg(&clone).output().expect("btrfs check");
    assert!(!output.status.success(), "partclone leaves out nothing any more");
}

#[test]
fn what_is_on_several_devices_says_so() {
    let place = Place::new();
    let (volume, second) = (place.blank(256 * MIB), place.path("second"));
    let blank_second = || File::create(&second).and_then(|file| file.set_len(256 * MIB)).expect("an empty volume");
    blank_second();
    run(command("mkfs.btrfs", &["-q", "-f", "-m", "raid1"]).args([&volume, &second]));
    for path in [&volume, &second] {
        let found = place.landmarks(path, "btrfs");
        assert_eq!((found.devices, found.used_min, found.mirrors.len()), (Some(2), None, 0));
        assert_eq!((found.places.len(), found.places[0].clone()), (1, 0..256 * MIB), "all of it");
    }
    place.blank(256 * MIB);
    blank_second();
    run(command("mkfs.f2fs", &["-q", "-f", "-c"]).args([&second, &volume]));
    let found = place.landmarks(&volume, "f2fs");
    assert_eq!((found.devices, found.used_min, found.len), (Some(2), None, None));
}

#[test]
fn ext_is_completed() {
    let place = Place::new();
    let variants: [(&str, u64, &[&str]); 13] = [
        ("ext2", 150, &["-b", "1024"]),
        ("ext3", 300, &["-b", "4096"]),
        ("ext4", 300, &["-b", "1024"]),
        ("ext4", 1100, &["-b", "4096"]),
        ("ext4", 300, &["-b", "2048", "-O", "^flex_bg,^64bit"]),
        ("ext4", 300, &["-b", "1024", "-O", "meta_bg,^resize_inode"]),
        ("ext4", 1100, &["-b", "4096", "-g", "4096", "-O", "meta_bg,^resize_inode,^sparse_super"]),
        ("ext4", 300, &["-b", "1024", "-O", "sparse_super2"]),
        ("ext2", 300, &["-b", "1024", "-O", "^sparse_super", "-r", "0"]),
        ("ext4", 300, &["-b", "1024", "-O", "uninit_bg,^metadata_csum"]),
        ("ext4", 300, &["-b", "4096", "-E", "lazy_itable_init=1"]),
        ("ext4", 300, &["-b", "4096", "-O", "bigalloc", "-C", "8192"]),
        ("ext4", 300, &["-b", "1024", "-O", "bigalloc", "-C", "4096"]),
    ];
    for (kind, mib, options) in variants {
        println!("{kind} {options:?}");
        let volume = place.blank(mib * MIB + 512 * 77);
        run(command("mke2fs", &["-q", "-F", "-t", kind]).args(options).arg("-d").arg(place.tree()).arg(&volume));
        let is_bigalloc = options.contains(&"bigalloc");
        let (clone, found) = if is_bigalloc {
            // partclone refuses it.
            (volume.clone(), place.landmarks(&volume, kind))
        } else {
            place.survive(&volume, kind, &format!("partclone.{kind}"))
        };
        let said = run(command("dumpe2fs", &[]).arg(&volume));
        let [blocks, size, free] = ["Block count:", "Block size:", "Free blocks:"].map(|line| number_in(&said, line));
        assert_eq!(found.len, Some(blocks * size));
        assert_eq!(found.used_min, (!is_bigalloc).then_some((blocks - free) * size));
        run(command("e2fsck", &["-f", "-n"]).arg(&clone));
        let mut backups = 0;
        for line in said.lines().filter(|line| line.contains("ackup superblock at ")) {
            let block = number_in(line, "Backup superblock at ");
            let options = format!("superblock={block}");
            let size = format!("blocksize={size}");
            // A backup follows the first superblock, and dumpe2fs reports the same for both.
            let dump = |path| {
                let output = command("dumpe2fs", &["-o", &options, "-o", &size]).arg(path).output().expect("dumpe2fs");
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            let backup = dump(&clone);
            assert!(number_in(&backup, "Block count:") == blocks && backup == dump(&volume), "{backup}");
            backups += 1;
        }
        println!("{backups} backups");
        assert!(backups > 0);
        // Compared with dumpe2fs: everything that it names in a group is in the places, except bitmaps and inodes.
        for line in said.lines().filter(|line| line.contains(" superblock at ") || line.contains("descriptor")) {
            for part in line.trim().split(", ") {
                let Some((_, numbers)) = part.split_once(" at ") else { continue };
                let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
                let block = |word: &str| word.trim().parse::<u64>().expect("a block");
                let bytes = block(first) * size..(block(last) + 1) * size;
                assert!(covers(&found.places, &bytes), "{part}: {bytes:?} is not in {:?}", found.places);
            }
        }
    }
}

#[test]
fn xfs_is_completed() {
    let place = Place::new();
    let mut proto = "none\n0 0\nd--755 0 0\n".to_owned();
    for (number, file) in place.files().iter().enumerate() {
        proto += &format!("f{number} ---644 0 0 {}\n", file.display());
    }
    proto += "$\n";
    fs::write(place.path("proto"), proto).expect("a description");
    let variants: [(u64, &[&str]); 4] = [
        (320, &[]),
        (600, &["-d", "agcount=9"]),
        (320, &["-b", "size=1024", "-s", "size=512"]),
        (320, &["-m", "crc=0", "-s", "size=4096"]),
    ];
    for (mib, options) in variants {
        println!("{options:?}");
        let volume = place.blank(mib * MIB + 512 * 77);
        run(command("mkfs.xfs", &["-q", "-f", "-p"]).arg(place.path("proto")).args(options).arg(&volume));
        let (clone, found) = place.survive(&volume, "xfs", "partclone.xfs");
        let print = "p dblocks fdblocks blocksize agcount agblocks sectsize";
        let said = run(command("xfs_db", &["-r", "-c", "sb 0", "-c", print]).arg(&volume));
        let [blocks, free, size, groups, per_group, sector] =
            ["dblocks", "fdblocks", "blocksize", "agcount", "agblocks", "sectsize"]
                .map(|field| number_in(&said, field));
        assert_eq!(found.len, Some(blocks * size));
        assert_eq!(found.used_min, Some((blocks - free) * size));
        for group in 0..groups {
            let start = group * per_group * size;
            assert!(covers(&found.places, &(start..start + 4 * sector)), "{:?}", found.places);
            let copy = format!("sb {group}");
            let copy = run(command("xfs_db", &["-r", "-c", &copy, "-c", "p magicnum dblocks"]).arg(&clone));
            assert_eq!(number_in(&copy, "dblocks"), blocks, "{copy}");
        }
        assert_eq!(found.places.len() as u64, groups);
        run(command("xfs_repair", &["-n", "-f"]).arg(&clone));
    }
}

#[test]
fn ntfs_is_completed() {
    let place = Place::new();
    for options in [&["-s", "512", "-c", "4096"][..], &["-s", "4096", "-c", "4096"], &["-s", "512", "-c", "65536"]] {
        let volume = place.blank(60 * MIB + 4096 * 77);
        run(command("mkntfs", &["-F", "-q", "-Q"]).args(options).arg(&volume));
        for (number, file) in place.files().iter().enumerate().take(20) {
            run(command("ntfscp", &["-q"]).arg(&volume).arg(file).arg(format!("f{number}")));
        }
        let (clone, found) = place.survive(&volume, "ntfs", "partclone.ntfs");
        let sector: u64 = options[1].parse().expect("a number");
        assert_eq!(found.len, Some(60 * MIB + 4096 * 77), "mkntfs leaves the last sector for the copy");
        let len = found.len.expect("checked");
        assert_eq!(found.places, [0..8192, len - sector..len]);
        let mut both = [0; 1024];
        let file = File::open(&clone).expect("the clone");
        file.read_exact_at(&mut both[..512], 0).expect("the boot sector");
        file.read_exact_at(&mut both[512..], len - sector).expect("its copy");
        assert_eq!(both[..512], both[512..]);
        run(command("ntfsresize", &["-i", "-f"]).arg(&clone));
        for (number, file) in place.files().iter().enumerate().take(20) {
            let output = command("ntfscat", &[]).arg(&clone).arg(format!("f{number}")).output().expect("ntfscat");
            assert_eq!(output.stdout, fs::read(file).expect("the file"));
        }
        // If the partition ends with the file system's last sector, there is no copy.
        let cut = landmarks("ntfs", &mut File::open(&volume).expect("the volume"), len - sector).expect("good");
        assert_eq!((cut.len, cut.places.len()), (Some(len), 1));
    }
}

#[test]
fn vfat_is_completed() {
    let place = Place::new();
    let variants: [(&str, u64, &[&str]); 5] = [
        ("12", 8, &[]),
        ("16", 40, &[]),
        ("16", 60, &["-S", "4096", "-s", "1"]),
        ("32", 100, &[]),
        ("32", 400, &["-S", "4096", "-s", "1", "-R", "40", "-b", "20"]),
    ];
    for (bits, mib, options) in variants {
        let volume = place.blank(mib * MIB + 512 * 77);
        run(command("mkfs.fat", &["-F", bits]).args(options).arg(&volume));
        for file in place.files().iter().take(20) {
            run(command("mcopy", &["-i"]).arg(&volume).arg(file).arg("::"));
        }
        let (clone, found) = place.survive(&volume, "vfat", &format!("partclone.fat{bits}"));
        let is_clean = (bits != "12").then_some(true);
        assert_eq!((found.is_clean, found.used_min), (is_clean, None), "FAT{bits}");
        let said = run(command("minfo", &["-i"]).arg(&volume).arg("::"));
        let [sector, reserved] = ["sector size:", "reserved (boot) sectors:"].map(|line| number_in(&said, line));
        assert_eq!((found.places.len(), found.places[0].clone()), (1, 0..sector * reserved));
        let size = if said.contains("big size:") { "big size:" } else { "small size:" };
        let sectors = number_in(&said, size);
        assert_eq!(found.len, Some(sectors * sector), "{said}");
        run(command("fsck.fat", &["-n"]).arg(&clone));
        if bits == "12" {
            continue;
        }
        // The state while it is mounted.
        let (at, bit) = if bits == "16" { (3, 0x80) } else { (7, 0x08) };
        let file = File::options().read(true).write(true).open(&volume).expect("the volume");
        let mut byte = [0];
        file.read_exact_at(&mut byte, sector * reserved + at).expect("the table");
        file.write_all_at(&[byte[0] & !bit], sector * reserved + at).expect("the table");
        let found = landmarks("vfat", &mut &file, mib * MIB).expect("good");
        assert_eq!(found.is_clean, Some(false), "FAT{bits}");
    }
}

#[test]
fn exfat_is_completed() {
    let place = Place::new();
    for options in [&[][..], &["-c", "64K", "-L", "Größe"]] {
        let volume = place.blank(90 * MIB + 512 * 77);
        run(command("mkfs.exfat", &[]).args(options).arg(&volume));
        let (clone, found) = place.survive(&volume, "exfat", "partclone.exfat");
        let said = run(command("dump.exfat", &[]).arg(&volume));
        assert_eq!(found.len, Some(number_in(&said, "Volume Length(sectors):") * 512), "{said}");
        assert_eq!(found.places.len(), 1);
        assert_eq!(found.places[0], 0..24 * 512);
        run(command("fsck.exfat", &["-n"]).arg(&clone));
    }
}

#[test]
fn f2fs_is_completed() {
    let place = Place::new();
    for options in [&[][..], &["-O", "extra_attr,inode_checksum,sb_checksum"], &["-i"]] {
        let volume = place.blank(200 * MIB + 4096 * 7);
        run(command("mkfs.f2fs", &["-q", "-f"]).args(options).arg(&volume));
        run(command("sload.f2fs", &["-f"]).arg(place.tree()).arg(&volume));
        let (clone, found) = if options == ["-i"] {
            // partclone refuses it.
            (volume.clone(), place.landmarks(&volume, "f2fs"))
        } else {
            place.survive(&volume, "f2fs", "partclone.f2fs")
        };
        let said = run(command("dump.f2fs", &["-d", "1"]).arg(&volume));
        assert_eq!((found.devices, found.places.len(), found.places[0].clone()), (Some(1), 1, 0..8192));
        assert_eq!(found.len, Some(200 * MIB + 4096 * 7), "{said}");
        assert!(said.contains(&format!(": {}]", 200 * MIB / 4096 + 7)), "{said}");
        // Each directory and each file, including the root.
        assert!(found.used_min.is_some_and(|min| min >= 66 * 4096), "{:?}", found.used_min);
        run(command("fsck.f2fs", &["--dry-run"]).arg(&clone));
    }
}

#[test]
fn lengths_are_what_mkfs_says() {
    let place = Place::new();
    let len = 50 * MIB + 512 * 77;
    let variants: [(&str, &[&str], &str, u64); 4] = [
        ("mkfs.minix", &["-1"], "minix", len / 1024 * 1024),
        ("mkfs.minix", &["-2"], "minix", len / 1024 * 1024),
        ("mkfs.minix", &["-3"], "minix", len / 1024 * 1024),
        // mkfs rounds down.
        ("mkfs.reiser4", &["-y", "-f", "-f"], "reiser4", 50 * MIB),
    ];
    for (mkfs, options, name, wanted) in variants {
        let volume = place.blank(len);
        run(command(mkfs, options).arg(&volume));
        assert_eq!(place.landmarks(&volume, name).len, Some(wanted), "{mkfs} {options:?}");
    }
}

//! Sane disks that are not what their table or their first signature says: each is captured, restored over junk, compared
//! sector by sector, and judged by the deepest check there is.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use testvm::{program, run};

use crate::volumes::{noise, scribble, scrub};
use crate::{EZIO, SeenOdd};

const MIB: u64 = 1 << 20;

/// A row of the table.
pub struct Odd {
    /// What people call it.
    pub name: &'static str,
    /// Makes the disk in a directory of its own, and returns it and what the check needs to know.
    make: fn(&Path) -> (PathBuf, String),
    /// What judges the restored disk, in words.
    pub check: &'static str,
    /// Judges it.
    judge: fn(&Path, &str),
}

const NOTHING: &str = "-";

/// All of them. Whatever is free in their file systems is zeros, so that every sector with data has to come back.
pub const ODD: &[Odd] = &[
    Odd { name: "OpenBSD slice: UFS2, swap, UFS2", make: openbsd, check: NOTHING, judge: |_, _| {} },
    Odd { name: "FreeBSD slice: UFS1, UFS1", make: freebsd, check: NOTHING, judge: |_, _| {} },
    Odd { name: "NetBSD slice that begins with swap", make: netbsd, check: NOTHING, judge: |_, _| {} },
    Odd { name: "Windows dynamic disk, MBR", make: ldm_mbr, check: "`ntfsresize --info` of both", judge: ntfs_pair },
    Odd { name: "Windows dynamic disk, GPT", make: ldm_gpt, check: "`ntfsresize --info` of both", judge: ntfs_pair },
    Odd {
        name: "hybrid CD, table entry of type 00",
        make: |dir| hybrid(dir, &["-isohybrid-gpt-basdat"]),
        check: NOTHING,
        judge: |_, _| {},
    },
    Odd { name: "hybrid CD, table entry of type 17", make: |dir| hybrid(dir, &[]), check: NOTHING, judge: |_, _| {} },
    Odd {
        name: "hybrid CD, partition at sector 16",
        make: |dir| hybrid(dir, &["-partition_offset", "16"]),
        check: NOTHING,
        judge: |_, _| {},
    },
    Odd { name: "ext4 with a dm-verity tree behind it", make: verity, check: "`veritysetup verify`", judge: verify },
    Odd {
        name: "MBR of 4096-byte sectors, in a file",
        make: large_sectors,
        check: "`e2fsck -f -n` of both",
        judge: ext4s,
    },
    Odd { name: "logical partitions in another order", make: logical, check: "`e2fsck -f -n` of all", judge: ext4s },
    Odd {
        name: "GPT with a header of 512 bytes",
        make: long_header,
        check: "`e2fsck -f -n`, `sfdisk --verify`",
        judge: long_header_judge,
    },
    Odd {
        name: "boot data between partitions, and behind them",
        make: gaps,
        check: "`e2fsck -f -n` of both",
        judge: ext4s,
    },
    Odd { name: "member of a firmware RAID", make: array, check: "`e2fsck -f -n`", judge: ext4s },
    Odd {
        name: "Btrfs, metadata in two copies (its default)",
        make: |dir| btrfs(dir, &[]),
        check: "`btrfs check`, `btrfs scrub`",
        judge: btrfs_judge,
    },
    Odd {
        name: "Btrfs, single metadata",
        make: |dir| btrfs(dir, &["-m", "single"]),
        check: "`btrfs check`, `btrfs scrub`",
        judge: btrfs_judge,
    },
    Odd {
        name: "Btrfs, all in two copies",
        make: |dir| btrfs(dir, &["-m", "dup", "-d", "dup"]),
        check: "`btrfs check`, `btrfs scrub`",
        judge: btrfs_judge,
    },
    Odd {
        name: "Btrfs, mixed groups",
        make: |dir| btrfs(dir, &["--mixed"]),
        check: "`btrfs check`, `btrfs scrub`",
        judge: btrfs_judge,
    },
    Odd {
        name: "Btrfs, nodes of 4 KiB, SHA-256",
        make: |dir| btrfs(dir, &["-n", "4096", "--csum", "sha256"]),
        check: "`btrfs check`, `btrfs scrub`",
        judge: btrfs_judge,
    },
    Odd {
        name: "XFS with a realtime section",
        make: realtime,
        check: "`xfs_repair -n` with the section",
        judge: realtime_judge,
    },
    Odd {
        name: "swap, label in UTF-8",
        make: |dir| swap(dir, "подкач".as_bytes(), 4096, false),
        check: "`blkid`, byte for byte",
        judge: blkid_judge,
    },
    Odd {
        name: "swap, label in Latin-1",
        make: |dir| swap(dir, b"Gr\xf6\xdfe", 4096, false),
        check: "`blkid`, byte for byte",
        judge: blkid_judge,
    },
    Odd {
        name: "swap, big-endian, pages of 64 KiB",
        make: |dir| swap(dir, b"other", 65_536, true),
        check: "`blkid`, byte for byte",
        judge: blkid_judge,
    },
];

/// Captures, restores and judges one of them.
pub fn survive(odd: &Odd, dir: &Path) -> SeenOdd {
    fs::create_dir(dir).expect("a directory");
    let (disk, facts) = (odd.make)(dir);
    let library = dir.join("library");
    run(Command::new(EZIO).arg("capture").arg(&disk).args(["--name", "image", "--library"]).arg(&library));
    let manifest = fs::read(library.join("images/image/manifest.json")).expect("the manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let len = fs::metadata(&disk).expect("the disk").len();
    let restored = dir.join("restored");
    scribble(&restored, len);
    let mut restore = Command::new(EZIO);
    restore.args(["restore", "image"]).arg(&restored).arg("--library").arg(&library).arg("--yes");
    run(&mut restore);
    let (lost, sectors) = lost(&disk, &restored);
    // mkfs.btrfs leaves nodes behind in blocks that it gave up: there its scrub has to do.
    let is_compared = !odd.check.contains("btrfs");
    let is_all = lost == 0 || !is_compared;
    assert!(sectors > 0 && is_all, "{}: {lost} of {sectors} sectors with data did not come back", odd.name);
    (odd.judge)(&restored, &facts);
    let partitions = manifest["partitions"].as_array().expect("partitions");
    let is_whole = |partition: &&serde_json::Value| partition["captured"] == "whole";
    let whole = partitions.iter().filter(is_whole).count();
    let how = match whole {
        0 => "blocks in use".to_owned(),
        _ if whole == partitions.len() => "whole".to_owned(),
        _ => format!("{whole} of {} partitions whole", partitions.len()),
    };
    let seen = SeenOdd {
        how,
        len,
        captured: manifest["content_len"].as_u64().expect("a number"),
        sectors: is_compared.then_some(sectors),
    };
    println!("{}: {} of {len} bytes, {}", odd.name, seen.captured, seen.how);
    fs::remove_dir_all(dir).expect("removed");
    seen
}

/// Sectors with data that are something else on the other disk, and all with data.
fn lost(disk: &Path, other: &Path) -> (usize, usize) {
    let [disk, other] = [disk, other].map(|path| fs::read(path).expect("a disk"));
    let sectors = disk.chunks(512).zip(other.chunks(512)).filter(|(sector, _)| sector.iter().any(|&byte| byte != 0));
    sectors.fold((0, 0), |(lost, all), (sector, back)| (lost + usize::from(sector != back), all + 1))
}

fn tool(words: &[&str]) -> String {
    run(Command::new(program(words[0])).args(&words[1..]))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn blank(path: PathBuf, mib: u64) -> PathBuf {
    File::create(&path).and_then(|file| file.set_len(mib * MIB)).expect("an empty file");
    path
}

fn paste(bytes: &[u8], disk: &Path, at: u64) {
    File::options().write(true).open(disk).and_then(|file| file.write_all_at(bytes, at)).expect("written");
}

fn paste_file(file: &Path, disk: &Path, at: u64) {
    paste(&fs::read(file).expect("read"), disk, at);
}

fn sfdisk(disk: &Path, script: &str) {
    let path = disk.with_extension("script");
    fs::write(&path, script).expect("written");
    tool(&["sh", "-c", &format!("sfdisk -q --no-reread {} < {}", text(disk), text(&path))]);
}

/// A directory with files of noise.
fn tree(dir: &Path, count: usize, len: usize) -> PathBuf {
    let tree = dir.join(format!("tree{count}x{len}"));
    if !tree.exists() {
        fs::create_dir(&tree).expect("a directory");
        (0..count).for_each(|n| fs::write(tree.join(n.to_string()), noise(len, n as u64)).expect("written"));
    }
    tree
}

fn ufs(dir: &Path, name: &str, version: u32, mib: u64, len: usize) -> PathBuf {
    let volume = dir.join(name);
    let options = format!("version={version}");
    tool(&["makefs", "-t", "ffs", "-o", &options, "-s", &format!("{mib}m"), text(&volume), text(&tree(dir, 1, len))]);
    volume
}

/// A BSD disklabel (`sys/disklabel.h`, little-endian) of partitions: start and length in bytes, and type.
fn disklabel(partitions: &[(u64, u64, u8)]) -> Vec<u8> {
    let mut label = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| label[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0x8256_4557u32.to_le_bytes());
    put(40, &512u32.to_le_bytes());
    put(132, &0x8256_4557u32.to_le_bytes());
    put(138, &u16::try_from(partitions.len()).expect("few").to_le_bytes());
    for (index, (start, len, kind)) in partitions.iter().enumerate() {
        let sectors = |bytes: &u64| u32::try_from(bytes / 512).expect("small").to_le_bytes();
        put(148 + 16 * index, &sectors(len));
        put(152 + 16 * index, &sectors(start));
        put(160 + 16 * index, &[*kind]);
    }
    let words = label.chunks(2).take((148 + 16 * partitions.len()) / 2);
    let sum = words.fold(0, |sum, word| sum ^ u16::from_le_bytes([word[0], word[1]]));
    label[136..138].copy_from_slice(&sum.to_le_bytes());
    label
}

/// A slice of this type with a disklabel, and a UFS at each of these places in it.
fn bsd(dir: &Path, kind: &str, version: u32, places: [u64; 2]) -> (PathBuf, String) {
    let disk = blank(dir.join("disk"), 200);
    sfdisk(&disk, &format!("label: dos\n1 : start=2048, size=400000, type={kind}\n"));
    let [a, d] = [("a", 30, 3_000_000), ("d", 60, 9_000_000)].map(|(name, mib, len)| ufs(dir, name, version, mib, len));
    paste_file(&a, &disk, MIB + places[0]);
    paste_file(&d, &disk, MIB + places[1]);
    let swap = MIB + places[0] + 30 * MIB;
    let parts = [(MIB + places[0], 30 * MIB, 7), (swap, MIB, 1), (0, 200 * MIB, 0), (MIB + places[1], 60 * MIB, 7)];
    paste(&disklabel(&parts), &disk, MIB + 512);
    (disk, String::new())
}

fn openbsd(dir: &Path) -> (PathBuf, String) {
    bsd(dir, "a6", 2, [0, 70 * MIB])
}

fn freebsd(dir: &Path) -> (PathBuf, String) {
    bsd(dir, "a5", 1, [0, 33 * MIB])
}

fn netbsd(dir: &Path) -> (PathBuf, String) {
    bsd(dir, "a9", 2, [20 * MIB, 90 * MIB])
}

fn ldm(dir: &Path, table: &str) -> PathBuf {
    let disk = blank(dir.join("disk"), 150);
    sfdisk(&disk, table);
    let junk = dir.join("junk");
    fs::write(&junk, noise(8_000_000, 1)).expect("written");
    for (mib, at) in [(40, MIB), (60, 44 * MIB)] {
        let volume = blank(dir.join("volume"), mib);
        tool(&["mkntfs", "-q", "-F", "-Q", text(&volume)]);
        tool(&["ntfscp", "-q", text(&volume), text(&junk), "file.bin"]);
        paste_file(&volume, &disk, at);
    }
    disk
}

fn ldm_mbr(dir: &Path) -> (PathBuf, String) {
    let disk = ldm(dir, "label: dos\n1 : start=2048, size=297000, type=42\n");
    paste(b"PRIVHEAD", &disk, 6 * 512);
    paste(&noise(1 << 20, 2), &disk, 149 * MIB);
    (disk, String::new())
}

fn ldm_gpt(dir: &Path) -> (PathBuf, String) {
    (ldm(dir, "label: gpt\n1 : start=2048, size=290000, type=AF9B60A0-1431-4F62-BC68-3311714A69AD\n"), String::new())
}

fn cut(disk: &Path, at: u64, len: u64) -> PathBuf {
    let part = disk.with_extension("part");
    let mut bytes = vec![0; usize::try_from(len).expect("small")];
    File::open(disk).and_then(|disk| disk.read_exact_at(&mut bytes, at)).expect("inside the disk");
    fs::write(&part, bytes).expect("written");
    part
}

fn ntfs_pair(disk: &Path, _: &str) {
    for (at, mib) in [(MIB, 40), (44 * MIB, 60)] {
        let said = tool(&["ntfsresize", "--info", "--force", text(&cut(disk, at, mib * MIB))]);
        assert!(said.contains("Collecting resizing constraints"), "{said}");
    }
}

fn hybrid(dir: &Path, options: &[&str]) -> (PathBuf, String) {
    let tree = tree(dir, 3, 1_000_000);
    fs::create_dir(tree.join("isolinux")).expect("a directory");
    fs::copy("/usr/lib/ISOLINUX/isolinux.bin", tree.join("isolinux/isolinux.bin")).expect("isolinux");
    tool(&["mkfs.fat", text(&blank(tree.join("efi.img"), 1))]);
    let disk = dir.join("disk");
    let words = [
        &["xorriso", "-as", "mkisofs", "-quiet", "-o", text(&disk), "-J", "-R"][..],
        &["-isohybrid-mbr", "/usr/lib/ISOLINUX/isohdpfx.bin", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"],
        &["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-eltorito-alt-boot", "-e", "efi.img"],
        &["-no-emul-boot"],
        options,
        &[text(&tree)],
    ];
    tool(&words.concat());
    (disk, String::new())
}

fn verity(dir: &Path) -> (PathBuf, String) {
    let disk = blank(dir.join("disk"), 100);
    let tree = tree(dir, 20, 1_000_000);
    tool(&["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-b", "4096", "-d", text(&tree), text(&disk), "60m"]);
    let said =
        tool(&["veritysetup", "format", "--data-blocks=15360", "--hash-offset=62914560", text(&disk), text(&disk)]);
    let hash = said.lines().find_map(|line| line.strip_prefix("Root hash:")).expect("a hash").trim().to_owned();
    (disk, hash)
}

fn verify(disk: &Path, hash: &str) {
    tool(&["veritysetup", "verify", "--hash-offset=62914560", text(disk), text(disk), hash]);
}

/// An ext4 of 20 MiB at each of these places; where they are is what the check needs to know.
fn ext4s_at(dir: &Path, disk: PathBuf, places: &[u64]) -> (PathBuf, String) {
    let volume = blank(dir.join("volume"), 20);
    tool(&["mkfs.ext4", "-q", "-F", "-d", text(&tree(dir, 10, 500_000)), text(&volume)]);
    places.iter().for_each(|&at| paste_file(&volume, &disk, at));
    let facts: Vec<String> = places.iter().map(u64::to_string).collect();
    (disk, facts.join(" "))
}

fn ext4s(disk: &Path, places: &str) {
    for at in places.split(' ') {
        tool(&["e2fsck", "-f", "-n", text(&cut(disk, at.parse().expect("a number"), 20 * MIB))]);
    }
}

fn large_sectors(dir: &Path) -> (PathBuf, String) {
    let disk = blank(dir.join("disk"), 200);
    let script = dir.join("script");
    fs::write(&script, "label: dos\nstart=256, size=12800\nstart=25856, size=12800\n").expect("written");
    let divide =
        "d=$(losetup -b 4096 -f --show \"$1\") && trap 'losetup -d $d' EXIT && sfdisk -q --no-reread $d < \"$2\"";
    tool(&["sh", "-c", divide, "sh", text(&disk), text(&script)]);
    ext4s_at(dir, disk, &[MIB, 101 * MIB])
}

fn logical(dir: &Path) -> (PathBuf, String) {
    let disk = blank(dir.join("disk"), 200);
    sfdisk(
        &disk,
        "label: dos\n1 : start=2048, size=40960, type=83\n4 : start=45056, size=350000, type=5\n\
         5 : start=204800, size=45000, type=83\n6 : start=256000, size=45000, type=83\n7 : start=51200, size=50000, type=83\n",
    );
    ext4s_at(dir, disk, &[2048, 204_800, 256_000, 51_200].map(|sector| sector * 512))
}

fn long_header(dir: &Path) -> (PathBuf, String) {
    let disk = blank(dir.join("disk"), 60);
    sfdisk(&disk, "label: gpt\n1 : start=2048, size=81920\n");
    let file = File::options().read(true).write(true).open(&disk).expect("the disk");
    for sector in [1, 60 * 2048 - 1] {
        let mut header = [0; 512];
        file.read_exact_at(&mut header, sector * 512).expect("a header");
        header[12..16].copy_from_slice(&512u32.to_le_bytes());
        header[16..20].fill(0);
        let sum = crc32(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&header, sector * 512).expect("written");
    }
    ext4s_at(dir, disk, &[MIB])
}

/// The CRC-32 of UEFI (section 5.3.2), and of everybody else.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn long_header_judge(disk: &Path, places: &str) {
    ext4s(disk, places);
    let said = tool(&["sfdisk", "--verify", text(disk)]);
    assert!(said.contains("No errors detected"), "{said}");
}

fn gaps(dir: &Path) -> (PathBuf, String) {
    let disk = blank(dir.join("disk"), 120);
    sfdisk(&disk, "label: gpt\nstart=2048, size=61440\nstart=104448, size=61440\n");
    paste(&noise(256 << 10, 3), &disk, 40 * MIB + 512);
    paste(&noise(256 << 10, 4), &disk, 100 * MIB);
    ext4s_at(dir, disk, &[MIB, 51 * MIB])
}

fn array(dir: &Path) -> (PathBuf, String) {
    let disk = blank(dir.join("disk"), 60);
    sfdisk(&disk, "label: dos\nstart=2048, size=61440\n");
    // Intel's mark lies in the last sector but one.
    paste(b"Intel Raid ISM Cfg Sig. 1.0.00", &disk, 60 * MIB - 1024);
    ext4s_at(dir, disk, &[MIB])
}

fn btrfs(dir: &Path, options: &[&str]) -> (PathBuf, String) {
    let disk = blank(dir.join("disk"), 400);
    let tree = tree(dir, 300, 20_000);
    tool(&[&["mkfs.btrfs", "-q", "-f", "-r", text(&tree)], options, &[text(&disk)]].concat());
    (disk, String::new())
}

fn btrfs_judge(disk: &Path, _: &str) {
    tool(&["btrfs", "check", "--readonly", "--check-data-csum", text(disk)]);
    scrub(disk);
}

fn realtime(dir: &Path) -> (PathBuf, String) {
    let (disk, section) = (blank(dir.join("disk"), 320), blank(dir.join("section"), 100));
    tool(&["mkfs.xfs", "-q", "-f", "-r", &format!("rtdev={}", text(&section)), text(&disk)]);
    let section = text(&section).to_owned();
    (disk, section)
}

fn realtime_judge(disk: &Path, section: &str) {
    tool(&["xfs_repair", "-n", "-f", "-r", section, text(disk)]);
}

/// A swap area as a machine with such pages makes it; mkswap only knows the byte order of this one.
fn swap(dir: &Path, label: &[u8], page_len: u64, is_big_endian: bool) -> (PathBuf, String) {
    let disk = blank(dir.join("disk"), 20);
    tool(&["mkswap", "-q", "--pagesize", &page_len.to_string(), text(&disk)]);
    // Code of a boot loader, as LILO puts it in front.
    paste(&noise(1000, 5), &disk, 0);
    paste(label, &disk, 1052);
    if is_big_endian {
        let mut numbers = fs::read(&disk).expect("the area")[1024..1036].to_vec();
        numbers.chunks_mut(4).for_each(<[u8]>::reverse);
        paste(&numbers, &disk, 1024);
    }
    let said = tool(&["blkid", "-p", "-o", "udev", text(&disk)]);
    assert!(said.contains("ID_FS_TYPE=swap"), "{said}");
    (disk, said)
}

fn blkid_judge(disk: &Path, before: &str) {
    assert_eq!(tool(&["blkid", "-p", "-o", "udev", text(disk)]), before);
}

//! Volumes with wrong data: a reader always ends, does not panic, and returns ranges inside the volume or an error. One
//! flipped bit in a good volume never makes a used byte free.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use usedmap::{Kind, Landmarks, Used, UsedError, detect, landmarks, used};

/// Longest time that a reader may take for a volume of some MiB.
const PATIENCE: Duration = Duration::from_secs(20);

/// A volume with a few bytes replaced, which costs no copy. The bytes after the base are zeros.
struct Patched<'a> {
    base: &'a [u8],
    len: u64,
    patches: Vec<(u64, Vec<u8>)>,
    at: u64,
}

impl Read for Patched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        let start = usize::try_from(self.at).unwrap_or(usize::MAX).min(self.base.len());
        let from_base = count.min(self.base.len() - start);
        buffer[..from_base].copy_from_slice(&self.base[start..start + from_base]);
        buffer[from_base..count].fill(0);
        for (offset, bytes) in &self.patches {
            for (byte, at) in bytes.iter().zip(*offset..) {
                if let Some(place) = at.checked_sub(self.at).and_then(|at| usize::try_from(at).ok())
                    && place < count
                {
                    buffer[place] = *byte;
                }
            }
        }
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Patched<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(at) => self.at = at,
            SeekFrom::Current(_) | SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(self.at)
    }
}

/// A fresh volume of the real mkfs, and its used bytes.
struct Good {
    name: &'static str,
    kind: Kind,
    bytes: Vec<u8>,
    used: Used,
}

fn good() -> &'static [Good] {
    static GOOD: OnceLock<Vec<Good>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let tree = dir.path().join("tree");
        for number in 0..9usize {
            let parent = tree.join(format!("dir{}", number % 3));
            fs::create_dir_all(&parent).expect("a directory");
            fs::write(parent.join(number.to_string()), vec![7; number * 9999]).expect("a file");
        }
        let tree = tree.to_str().expect("a plain path");
        let of = |name: &'static str, kind, len: u64, program, options: &[&str], more: &[&str]| {
            let path = dir.path().join(name);
            fs::File::create(&path).and_then(|file| file.set_len(len)).expect("an empty volume");
            run(Command::new(find(program)).args(options).arg(&path).args(more));
            let bytes = fs::read(&path).expect("the volume");
            let used = read(kind, &bytes, Vec::new()).expect("a good volume");
            assert!(used.len() < len && used.notes.is_empty(), "{name}: {:?}", used.notes);
            Good { name, kind, bytes, used }
        };
        let mib = 1 << 20;
        let ufs = ["-t", "ffs", "-s", "24m", "-o"];
        vec![
            of("jfs", Kind::Jfs, 64 * mib, "mkfs.jfs", &["-q"], &[]),
            of("nilfs2", Kind::Nilfs2, 64 * mib, "mkfs.nilfs2", &["-q", "-b", "1024", "-B", "16"], &[]),
            of("reiserfs", Kind::Reiserfs, 200 * mib, "mkfs.reiserfs", &["-q", "-ff", "-s", "513"], &[]),
            of("ufs1", Kind::Ufs, 24 * mib, "makefs", &[&ufs[..], &["version=1", "-B", "be"]].concat(), &[tree]),
            of("ufs2", Kind::Ufs, 24 * mib, "makefs", &[&ufs[..], &["version=2", "-B", "le"]].concat(), &[tree]),
        ]
    })
}

fn find(name: &str) -> PathBuf {
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
    dirs.into_iter().find(|path| path.is_file()).unwrap_or_else(|| panic!("{name} is not installed: run scripts/setup"))
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Reads a patched volume and checks properties that must hold whatever is in it.
fn read(kind: Kind, base: &[u8], patches: Vec<(u64, Vec<u8>)>) -> Result<Used, UsedError> {
    let len = base.len() as u64;
    let started = Instant::now();
    let mut source = Patched { base, len, patches, at: 0 };
    detect(&mut source, len).expect("nothing fails to be read");
    let result = used(kind, &mut source, len);
    assert!(started.elapsed() < PATIENCE, "{kind:?} took {:?}", started.elapsed());
    if let Ok(used) = &result {
        assert!(!used.is_empty());
        assert!(used.ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{kind:?}: ascending, coalesced");
        assert!(used.ranges.iter().all(|range| range.start < range.end && range.end <= len), "{kind:?}: inside");
        assert!(used.spans <= len, "{kind:?}: {} of {len}", used.spans);
        assert!(used.notes.len() < 30);
    }
    assert!(!matches!(result, Err(UsedError::Read { .. })), "read past the end");
    result
}

/// Whether every byte of `inner` is in `outer`.
fn covers(outer: &[Range<u64>], inner: &[Range<u64>]) -> bool {
    let is_inside = |range: &Range<u64>| outer.iter().any(|other| other.start <= range.start && range.end <= other.end);
    inner.iter().all(is_inside)
}

/// A place in a good volume to overwrite: near the start, or anywhere in use.
fn place(good: &Good, near: bool, pick: u64) -> u64 {
    let ranges = if near { &good.used.ranges[..1] } else { &good.used.ranges[..] };
    let used: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let mut left = pick % if near { used.min(100_000) } else { used };
    let mut at = 0;
    for range in ranges {
        if left < range.end - range.start {
            at = range.start + left;
            break;
        }
        left -= range.end - range.start;
    }
    // Most of it is zeros, so continue to the next byte that is not.
    let at = usize::try_from(at).expect("inside");
    let next = good.bytes[at..].iter().position(|byte| *byte != 0).unwrap_or(0);
    (at + next) as u64
}

/// CRC-32 as NILFS2 uses it.
fn crc32(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_flipped_bit_loses_nothing(which in 0usize..5, near: bool, pick: u64, bit in 0u32..8) {
        let good = &good()[which];
        let at = place(good, near, pick);
        let byte = good.bytes[usize::try_from(at).expect("inside")] ^ (1 << bit);
        if let Ok(used) = read(good.kind, &good.bytes, vec![(at, vec![byte])]) {
            prop_assert!(
                covers(&used.ranges, &good.used.ranges),
                "{}: bit {} of byte {} loses {:?} of {:?}", good.name, bit, at, used.ranges, good.used.ranges
            );
        }
    }

    #[test]
    fn damage_is_survived(
        which in 0usize..5,
        damage in proptest::collection::vec((any::<bool>(), any::<u64>(), any::<u64>(), 1usize..9), 1..6),
    ) {
        let good = &good()[which];
        let patches = damage.iter().map(|&(near, pick, value, len)| {
            (place(good, near, pick).saturating_sub(value % 8), value.to_le_bytes()[..len.min(8)].to_vec())
        });
        let _ = read(good.kind, &good.bytes, patches.collect());
    }

    /// Fields that a checksum would protect are damaged before the checksum is computed.
    #[test]
    fn a_superblock_of_nilfs2_may_say_anything(
        at in prop_oneof![Just(0x14u64), Just(0x18), Just(0x20), Just(0x28), Just(0x30), Just(0x40), Just(0x48),
            Just(0x90), Just(0x92), Just(0x96), 0u64..0x110],
        value in prop_oneof![any::<u64>(), 0u64..300, (0u32..64).prop_map(|bit| 1 << bit)],
        len in 1usize..9,
    ) {
        let good = &good()[1];
        prop_assert_eq!(good.kind, Kind::Nilfs2);
        let mut superblock = good.bytes[1024..2048].to_vec();
        let at = usize::try_from(at).expect("small");
        superblock[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        let summed = usize::from(u16::from_le_bytes([superblock[8], superblock[9]])).min(1024);
        superblock[16..20].fill(0);
        let seed = u32::from_le_bytes(superblock[12..16].try_into().expect("four bytes"));
        let sum = crc32(seed, &superblock[..summed]);
        superblock[16..20].copy_from_slice(&sum.to_le_bytes());
        let _ = read(good.kind, &good.bytes, vec![(1024, superblock)]);
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        seed in proptest::collection::vec(any::<u8>(), 1..64),
        magic in 0usize..9,
        len in 0usize..400_000,
    ) {
        let mut bytes: Vec<u8> = seed.iter().copied().cycle().take(len).collect();
        let (at, magic): (usize, &[u8]) = [
            (0x8000, &b"JFS1\x01\0\0\0"[..]),
            (0x1_0034, &b"ReIsEr2Fs\0"[..]),
            (0x2034, &b"ReIsErFs\0\0"[..]),
            (0x2000 + 1372, &[0x54, 0x19, 0x01, 0][..]),
            (1372, &[0, 1, 0x19, 0x54][..]),
            (0x406, &[0x34, 0x34][..]),
            (512, &b"LABELONE"[..]),
            (4086, &b"SWAPSPACE2"[..]),
            (0xfff6, &b"SWAP-SPACE"[..]),
        ][magic];
        if let Some(place) = bytes.get_mut(at..at + magic.len()) {
            place.copy_from_slice(magic);
        }
        for kind in Kind::ALL {
            let _ = read(kind, &bytes, Vec::new());
        }
    }
}

#[test]
fn every_truncation_is_an_error_or_keeps_what_is_left() {
    for good in good() {
        for cut in (1..40u32).map(|part| good.bytes.len() * part as usize / 40).chain([0, 1, 511, 512, 4096, 70_000]) {
            let bytes = &good.bytes[..cut];
            assert!(read(good.kind, bytes, Vec::new()).is_err(), "{} cut to {cut}", good.name);
        }
    }
}

/// The file system is shorter than its partition, and the space after it is not its concern.
#[test]
fn maps_say_how_far_they_speak() {
    for good in good() {
        let len = good.bytes.len() as u64;
        let mut longer = good.bytes.clone();
        longer.resize(good.bytes.len() + (100 << 20), 0xa5);
        let used = read(good.kind, &longer, Vec::new()).expect("the same file system");
        println!("{}: {} and {} of {len}", good.name, good.used.spans, used.spans);
        assert_eq!(used.spans, good.used.spans, "{}", good.name);
        assert!(used.spans <= len && covers(&used.ranges, &good.used.ranges), "{}", good.name);
        let behind: u64 = used.ranges.iter().map(|range| range.end - range.start.max(len).min(range.end)).sum();
        // NILFS2 is searched at the end of the partition.
        assert_eq!(behind, if good.kind == Kind::Nilfs2 { 1024 } else { 0 }, "{}", good.name);
        if good.kind == Kind::Nilfs2 {
            let second = len - 4096..len - 3072;
            assert!(used.spans == len && covers(&good.used.ranges, &[second]), "{:?}", good.used.ranges);
        }
    }
}

#[test]
fn two_signatures_are_none() {
    let [jfs, reiserfs] = [&good()[0], &good()[2]];
    let superblock = reiserfs.bytes[0x1_0000..0x1_0100].to_vec();
    let len = jfs.bytes.len() as u64;
    let mut source = Patched { base: &jfs.bytes, len, patches: vec![(0x1_0000, superblock)], at: 0 };
    assert_eq!(detect(&mut source, len).expect("readable"), None);
    let mut source = Patched { base: &jfs.bytes, len, patches: Vec::new(), at: 0 };
    assert_eq!(detect(&mut source, len).expect("readable"), Some(Kind::Jfs));
    assert_eq!(Kind::from_blkid_name("LVM2_member"), Some(Kind::Lvm2));
    assert_eq!(Kind::from_blkid_name("ext4"), None);
}

/// A fresh volume with landmarks, without the zeros at its end.
struct Marked {
    /// Its name in blkid.
    name: &'static str,
    bytes: Vec<u8>,
    len: u64,
    found: Landmarks,
    /// Where its numbers are.
    numbers: Range<u64>,
    /// Where its nodes are.
    nodes: Vec<usize>,
}

/// The length of a node, in bytes.
const NODE_LEN: usize = 4096;

fn marked() -> &'static [Marked] {
    static MARKED: OnceLock<Vec<Marked>> = OnceLock::new();
    MARKED.get_or_init(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).expect("a directory");
        for number in 0..150usize {
            fs::write(tree.join(format!("a file with a name, {number}")), vec![7; number * 99]).expect("a file");
        }
        let tree = tree.to_str().expect("a plain path");
        let of = |name: &'static str, mib: u64, program, options: &[&str], numbers: Range<u64>| {
            let path = dir.path().join("volume");
            let len = mib << 20;
            fs::File::create(&path).and_then(|file| file.set_len(len)).expect("an empty volume");
            run(Command::new(find(program)).args(options).arg(&path));
            let mut bytes = fs::read(&path).expect("the volume");
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).expect("not empty") + 1);
            let found = read_marks(name, &bytes, len, Vec::new()).expect("a good volume");
            let fsid = bytes.get(0x1_0020..0x1_0030).unwrap_or_default().to_vec();
            // Before that, there is only the superblock.
            let nodes = (0x11_0000..bytes.len() - NODE_LEN).step_by(NODE_LEN);
            let nodes = nodes.filter(|&at| name == "btrfs" && bytes[at + 0x20..at + 0x30] == fsid).collect();
            Marked { name, bytes, len, found, numbers, nodes }
        };
        let btrfs = ["-q", "-f", "-n", "4096", "-r", tree];
        let btrfs = |options: &[&str]| of("btrfs", 128, "mkfs.btrfs", &[&btrfs, options].concat(), 0x1_0020..0x1_0500);
        vec![
            btrfs(&["-m", "single"]),
            btrfs(&["-m", "dup"]),
            of("ext4", 64, "mke2fs", &["-q", "-F", "-t", "ext4"], 1024..1640),
            of("ext4", 64, "mke2fs", &["-q", "-F", "-t", "ext4", "-O", "meta_bg,^resize_inode"], 1024..1640),
            of("xfs", 320, "mkfs.xfs", &["-q", "-f"], 0..300),
            of("ntfs", 16, "mkntfs", &["-F", "-q", "-Q"], 0..90),
            of("vfat", 16, "mkfs.fat", &["-F", "16"], 0..90),
            of("vfat", 64, "mkfs.fat", &["-F", "32"], 0..90),
            of("exfat", 16, "mkfs.exfat", &[], 0..120),
            of("f2fs", 64, "mkfs.f2fs", &["-q", "-f"], 1024..3900),
            of("minix", 16, "mkfs.minix", &["-3"], 1024..1060),
            of("reiser4", 16, "mkfs.reiser4", &["-y", "-f", "-f"], 0x1_0000..0x1_1100),
        ]
    })
}

/// Reads the landmarks of a patched volume and checks properties that must hold whatever is in it.
fn read_marks(name: &str, base: &[u8], len: u64, patches: Vec<(u64, Vec<u8>)>) -> Result<Landmarks, UsedError> {
    let started = Instant::now();
    let result = landmarks(name, &mut Patched { base, len, patches, at: 0 }, len);
    assert!(started.elapsed() < PATIENCE, "{name} took {:?}", started.elapsed());
    if let Ok(found) = &result {
        let is_good = |ranges: &[Range<u64>]| {
            ranges.windows(2).all(|pair| pair[0].end < pair[1].start)
                && ranges.iter().all(|range| range.start < range.end && range.end <= len)
        };
        assert!(is_good(&found.places), "{name}: {:?}", found.places);
        assert!(found.places.len() <= 1 << 19 && found.mirrors.len() <= 1 << 18);
        let copies = |mirror: &usedmap::Mirror| {
            let len = mirror.len;
            mirror.copies.iter().map(move |copy| *copy..copy + len).collect::<Vec<_>>()
        };
        let mut copies: Vec<Range<u64>> = found.mirrors.iter().flat_map(copies).collect();
        copies.sort_unstable_by_key(|copy| copy.start);
        assert!(copies.iter().all(|copy| copy.start < copy.end && copy.end <= len), "{name}: {copies:?}");
        assert!(copies.windows(2).all(|pair| pair[0].end <= pair[1].start), "{name}: {copies:?}");
        let part = len / 3..len / 2;
        let completed = found.complete(vec![part.clone()]);
        assert!(is_good(&completed) && covers(&completed, &[part]), "{name}: {completed:?}");
        assert!(covers(&completed, &found.places), "{name}: {completed:?}");
    }
    assert!(!matches!(result, Err(UsedError::Read { .. })), "read past the end");
    result
}

/// Writes the CRC-32C of a block of btrfs to its start.
fn seal(block: &mut [u8]) {
    let crc = block[0x20..].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    });
    block[..4].copy_from_slice(&(!crc).to_le_bytes());
}

/// Numbers that are likely to do damage.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..300,
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u32..64).prop_map(|bit| (1u64 << bit).wrapping_sub(1)),
        (0u64..128).prop_map(|mib| mib << 20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_superblock_may_say_anything(
        which in 0usize..12,
        damage in proptest::collection::vec((any::<u64>(), number(), 1usize..9), 1..4),
        is_big_endian: bool,
        is_huge: bool,
    ) {
        let marked = &marked()[which];
        let numbers = marked.numbers.clone();
        let range = usize::try_from(numbers.start).expect("small")..usize::try_from(numbers.end).expect("small");
        let mut bytes = marked.bytes[range].to_vec();
        for (at, value, len) in damage {
            let at = usize::try_from(at % bytes.len() as u64).expect("inside");
            let value = if is_big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
            let len = len.min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&value[..len]);
        }
        let mut patch = (numbers.start, bytes);
        if marked.name == "btrfs" {
            let mut superblock = marked.bytes[0x1_0000..0x1_1000].to_vec();
            superblock[0x20..0x20 + patch.1.len()].copy_from_slice(&patch.1);
            seal(&mut superblock);
            patch = (0x1_0000, superblock);
        }
        // On a volume of 16 TiB, large numbers make sense.
        let len = if is_huge { 16 << 40 } else { marked.len };
        let _ = read_marks(marked.name, &marked.bytes, len, vec![patch]);
    }

    #[test]
    fn a_node_may_say_anything(
        which in 0usize..2,
        node in any::<proptest::sample::Index>(),
        damage in proptest::collection::vec((any::<bool>(), 0usize..NODE_LEN, number(), 1usize..9), 1..4),
    ) {
        let marked = &marked()[which];
        let at = *node.get(&marked.nodes);
        let mut bytes = marked.bytes[at..at + NODE_LEN].to_vec();
        seal(&mut bytes);
        prop_assert_eq!(&bytes[..], &marked.bytes[at..at + NODE_LEN]);
        for (near, at, value, len) in damage {
            // Most of a node's numbers are at its start.
            let at = if near { 0x20 + at % 200 } else { at };
            let len = len.min(NODE_LEN - at);
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
        seal(&mut bytes);
        let _ = read_marks("btrfs", &marked.bytes, marked.len, vec![(at as u64, bytes)]);
    }

    #[test]
    fn one_flipped_bit_changes_no_landmark_of_btrfs(
        which in 0usize..2, node in any::<proptest::sample::Index>(), at in 0usize..NODE_LEN, bit in 0u32..8,
        in_superblock in proptest::bool::weighted(0.1),
    ) {
        let marked = &marked()[which];
        let at = if in_superblock { 0x1_0000 } else { *node.get(&marked.nodes) } + at;
        let patch = (at as u64, vec![marked.bytes[at] ^ (1 << bit)]);
        if let Ok(found) = read_marks("btrfs", &marked.bytes, marked.len, vec![patch]) {
            prop_assert_eq!(&found, &marked.found);
        }
    }
}

/// Data that was synced before the power went is only in the log tree.
#[test]
fn btrfs_with_a_log_is_used_as_a_whole() {
    let marked = &marked()[0];
    let mut superblock = marked.bytes[0x1_0000..0x1_1000].to_vec();
    superblock[0x60..0x68].copy_from_slice(&(30u64 << 20).to_le_bytes());
    seal(&mut superblock);
    let found = read_marks("btrfs", &marked.bytes, marked.len, vec![(0x1_0000, superblock)]).expect("a good volume");
    assert_eq!((found.places.len(), found.places[0].clone()), (1, 0..marked.len));
    assert_eq!((found.len, found.used_min), (marked.found.len, None));
}

#[test]
fn truncated_volumes_have_landmarks_or_none() {
    for marked in marked() {
        println!("{}: {} nodes, {:?}", marked.name, marked.nodes.len(), marked.found.len);
        assert!(marked.name != "btrfs" || marked.nodes.len() > 20);
        for cut in (0..40u64).map(|part| marked.len * part / 40).chain([1, 511, 512, 1024, 4096, 70_000]) {
            let base = &marked.bytes[..marked.bytes.len().min(usize::try_from(cut).expect("small"))];
            if let Ok(found) = read_marks(marked.name, base, cut, Vec::new()) {
                assert!(found.len.is_none_or(|len| len > cut), "{} says that it is cut to {cut}", marked.name);
            }
        }
    }
}

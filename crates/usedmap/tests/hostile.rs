//! Volumes that lie: whatever is in them, a reader ends, does not panic, and gives ranges inside the volume or an error.
//! And one bit that flips in a good volume never makes a used byte free.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use usedmap::{Kind, Used, UsedError, detect, used};

/// Longest that a reader may look at a volume of some MiB.
const PATIENCE: Duration = Duration::from_secs(20);

/// A volume with a few bytes of it replaced, which costs no copy.
struct Patched<'a> {
    base: &'a [u8],
    patches: Vec<(u64, Vec<u8>)>,
    at: u64,
}

impl Read for Patched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(self.at).unwrap_or(usize::MAX).min(self.base.len());
        let count = buffer.len().min(self.base.len() - start);
        buffer[..count].copy_from_slice(&self.base[start..start + count]);
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

/// A fresh volume of the real mkfs, and what is used of it.
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

/// Reads a patched volume and checks what must hold whatever is in it.
fn read(kind: Kind, base: &[u8], patches: Vec<(u64, Vec<u8>)>) -> Result<Used, UsedError> {
    let len = base.len() as u64;
    let started = Instant::now();
    let mut source = Patched { base, patches, at: 0 };
    detect(&mut source, len).expect("nothing fails to be read");
    let result = used(kind, &mut source, len);
    assert!(started.elapsed() < PATIENCE, "{kind:?} took {:?}", started.elapsed());
    if let Ok(used) = &result {
        assert!(!used.is_empty());
        assert!(used.ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{kind:?}: ascending, coalesced");
        assert!(used.ranges.iter().all(|range| range.start < range.end && range.end <= len), "{kind:?}: inside");
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

/// A place in a good volume where something is written: near the start, or anywhere in use.
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
    // Most of it is zeros: on to what is not.
    let at = usize::try_from(at).expect("inside");
    let next = good.bytes[at..].iter().position(|byte| *byte != 0).unwrap_or(0);
    (at + next) as u64
}

/// CRC-32 as NILFS2 wants it.
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

    /// Fields that a checksum would protect are damaged before it is made.
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
        magic in 0usize..7,
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

#[test]
fn two_signatures_are_none() {
    let [jfs, reiserfs] = [&good()[0], &good()[2]];
    let superblock = reiserfs.bytes[0x1_0000..0x1_0100].to_vec();
    let mut source = Patched { base: &jfs.bytes, patches: vec![(0x1_0000, superblock)], at: 0 };
    assert_eq!(detect(&mut source, jfs.bytes.len() as u64).expect("readable"), None);
    let mut source = Patched { base: &jfs.bytes, patches: Vec::new(), at: 0 };
    assert_eq!(detect(&mut source, jfs.bytes.len() as u64).expect("readable"), Some(Kind::Jfs));
    assert_eq!(Kind::from_blkid_name("LVM2_member"), Some(Kind::Lvm2));
    assert_eq!(Kind::from_blkid_name("ext4"), None);
}

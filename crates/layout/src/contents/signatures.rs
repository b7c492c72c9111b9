//! The signatures, and the place of each format's label.

use std::io::{self, Read, Seek};
use std::ops::Range;

use super::{Found, Part, clean, label_of, read_at};

/// A format that is recognised by fixed bytes at a fixed place.
struct Signature {
    at: usize,
    magic: &'static [u8],
    what: &'static str,
    is_file_system: bool,
    label: Range<usize>,
}

const fn fs(at: usize, magic: &'static [u8], what: &'static str, label: Range<usize>) -> Signature {
    Signature { at, magic, what, is_file_system: true, label }
}

const fn member(at: usize, magic: &'static [u8], what: &'static str, label: Range<usize>) -> Signature {
    Signature { at, magic, what, is_file_system: false, label }
}

/// Magic number of Linux software RAID (`include/uapi/linux/raid/md_p.h`), little-endian.
const MD_MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
/// The GUID that BitLocker To Go keeps in a sector that looks like a FAT boot sector.
const BITLOCKER_TO_GO: &[u8] = b"\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01";
const BCACHE: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";

/// The first match is reported, so containers come before the formats they may contain, and long magics before short
/// ones.
const SIGNATURES: &[Signature] = &[
    member(0, b"LUKS\xba\xbe\x00\x02", "LUKS", 24..72),
    member(0, b"LUKS\xba\xbe", "LUKS", 0..0),
    member(3, b"-FVE-FS-", "BitLocker", 0..0),
    member(0x1a8, BITLOCKER_TO_GO, "BitLocker", 0..0),
    member(4096 + 24, BCACHE, "bcache member", 0..0),
    member(0, b"bluestore block device", "Ceph member", 0..0),
    fs(0x1_0040, b"_BHRfS_M", "btrfs", 0x1_012b..0x1_022b),
    fs(0x1_0034, b"ReIsEr2Fs", "reiserfs", 0x1_0064..0x1_0074),
    fs(0x1_0034, b"ReIsEr3Fs", "reiserfs", 0x1_0064..0x1_0074),
    fs(0x1_0034, b"ReIsErFs", "reiserfs", 0..0),
    fs(3, b"NTFS    ", "NTFS", 0..0),
    fs(3, b"EXFAT   ", "exFAT", 0..0),
    fs(3, b"ReFS\0\0\0\0", "ReFS", 0..0),
    fs(0, b"XFSB", "XFS", 108..120),
    fs(32, b"NXSB", "APFS", 0..0),
    fs(0x8000, b"JFS1", "jfs", 0x8098..0x80a8),
    fs(0x8001, b"CD001", "ISO9660", 0x8028..0x8048),
    fs(0x8001, b"BEA01", "UDF", 0..0),
    fs(1024, b"H+\x00\x04", "HFS+", 0..0),
    fs(1024, b"HX\x00\x05", "HFS+", 0..0),
    fs(0, b"hsqs", "squashfs", 0..0),
];

impl Part {
    /// Finds the format. The disk is read again only for the label of a FAT.
    pub(super) fn find(&self, disk: &mut (impl Read + Seek)) -> io::Result<Option<Found>> {
        let found = self.raid().or_else(|| self.lvm()).or_else(|| self.by_signature()).or_else(|| self.swap());
        let found = found.or_else(|| self.ext()).or_else(|| self.f2fs()).or_else(|| self.nilfs());
        match found.or_else(|| self.zfs()) {
            Some(found) => Ok(Some(found)),
            None => self.fat(disk),
        }
    }

    fn by_signature(&self) -> Option<Found> {
        let signature = SIGNATURES.iter().find(|signature| self.has(signature.at, signature.magic))?;
        Some(Found {
            what: signature.what,
            label: label_of(self.head.get(signature.label.clone()).unwrap_or_default()),
            is_file_system: signature.is_file_system,
            goes_with_table: signature.what == "ISO9660",
        })
    }

    /// Software RAID: superblocks 1.1 and 1.2 at the start, 1.0 and 0.90 at the end; and the metadata that firmware
    /// writes at the end.
    fn raid(&self) -> Option<Found> {
        let raid = |label: String| Found { what: "RAID member", label, goes_with_table: true, ..Found::default() };
        let in_front = |at: usize| self.bytes(at, 64).filter(|bytes| is_md_1(bytes));
        let sectors = self.len() / 512;
        let version_1_0 = sectors.checked_sub(16).map(|at| (at & !7) * 512);
        let at_end = version_1_0.and_then(|at| self.tail_bytes(at, 64)).filter(|bytes| is_md_1(bytes));
        if let Some(superblock) = in_front(0).or_else(|| in_front(4096)).or(at_end) {
            return Some(raid(label_of(&superblock[32..64])));
        }
        let mut big_endian = MD_MAGIC;
        big_endian.reverse();
        // md_p.h: the last 64 KiB that begin at a multiple of 64 KiB.
        let version_0_90 = (self.len() / 65536).checked_sub(1).and_then(|block| self.tail_bytes(block * 65536, 4));
        let is_0_90 = version_0_90.is_some_and(|magic| magic == MD_MAGIC || magic == big_endian);
        let last = |back: u64, magic: &[u8]| {
            self.len().checked_sub(back).and_then(|at| self.tail_bytes(at, magic.len())) == Some(magic)
        };
        // Intel's is in the last sector but one; the DDF anchor is in the last sector.
        let is_firmware = [512, 4096]
            .iter()
            .any(|sector| last(2 * sector, b"Intel Raid ISM Cfg Sig. ") || last(*sector, &[0xde, 0x11, 0xde, 0x11]));
        (is_0_90 || is_firmware).then(|| raid(String::new()))
    }

    /// The label may be in any of the first four sectors.
    fn lvm(&self) -> Option<Found> {
        let is_there = |at: usize| self.has(at, b"LABELONE") && self.has(at + 24, b"LVM2 001");
        (0..4).any(|sector| is_there(sector * 512)).then(|| Found { what: "LVM member", ..Found::default() })
    }

    /// The magic ends the first page; its size is the page size of the machine that made it.
    fn swap(&self) -> Option<Found> {
        let magics: [&[u8]; 2] = [b"SWAPSPACE2", b"SWAP-SPACE"];
        let hibernated: [&[u8]; 2] = [b"S1SUSPEND\0", b"ULSUSPEND\0"];
        for page in [4096, 8192, 16384, 65536] {
            let magic = self.bytes(page - 10, 10)?;
            let what = match () {
                () if magics.contains(&magic) => "swap",
                () if hibernated.contains(&magic) => "swap with a hibernated system",
                () => continue,
            };
            return Some(Found {
                what,
                label: label_of(self.bytes(1052, 16)?),
                is_file_system: true,
                ..Found::default()
            });
        }
        None
    }

    fn ext(&self) -> Option<Found> {
        const COMPAT_JOURNAL: u32 = 0x4;
        const INCOMPAT_JOURNAL_DEVICE: u32 = 0x8;
        // Extents, 64 bit, flexible groups; huge files, group checksums, many subdirectories, large inodes, checksums.
        const INCOMPAT_EXT4: u32 = 0x40 | 0x80 | 0x200;
        const RO_COMPAT_EXT4: u32 = 0x8 | 0x10 | 0x20 | 0x40 | 0x400;
        if self.u16(1024 + 0x38)? != 0xef53 || self.u32(1024 + 0x18)? > 6 {
            return None;
        }
        let [compat, incompat, ro_compat] = [self.u32(1024 + 0x5c)?, self.u32(1024 + 0x60)?, self.u32(1024 + 0x64)?];
        let what = match () {
            () if incompat & INCOMPAT_JOURNAL_DEVICE != 0 => "journal of an ext4",
            () if incompat & INCOMPAT_EXT4 != 0 || ro_compat & RO_COMPAT_EXT4 != 0 => "ext4",
            () if compat & COMPAT_JOURNAL != 0 => "ext3",
            () => "ext2",
        };
        Some(file_system(what, label_of(self.bytes(1024 + 0x78, 16)?)))
    }

    fn f2fs(&self) -> Option<Found> {
        if self.u32(1024)? != 0xf2f5_2010 {
            return None;
        }
        let units = self.bytes(1024 + 124, 128)?.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let units: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
        Some(file_system("f2fs", clean(&String::from_utf16_lossy(&units))))
    }

    fn nilfs(&self) -> Option<Found> {
        // Two bytes of magic alone would match too many things.
        let is_it = self.u16(1024 + 6)? == 0x3434 && self.u32(1024)? == 2 && self.u32(1024 + 20)? <= 6;
        if is_it { Some(file_system("nilfs2", label_of(self.bytes(1024 + 168, 80)?))) } else { None }
    }

    /// Uberblocks fill the second half of the first label; an unused one is empty.
    fn zfs(&self) -> Option<Found> {
        let magic = 0x00ba_b10c_u64;
        let is_there = |at: usize| self.has(at, &magic.to_le_bytes()) || self.has(at, &magic.to_be_bytes());
        let is_zfs = (128..256).any(|kib| is_there(kib * 1024));
        is_zfs.then(|| Found { what: "ZFS member", ..Found::default() })
    }

    /// FAT has no magic, so its parameters have to make sense (Microsoft's specification of 2000, boot sector and BPB).
    fn fat(&self, disk: &mut (impl Read + Seek)) -> io::Result<Option<Found>> {
        let Some(fat) = Fat::parse(self) else { return Ok(None) };
        // Windows keeps the label in the root directory; it is up to date only there.
        const ROOT_LEN: u64 = 4096;
        let root = match fat.root_at.checked_add(ROOT_LEN) {
            Some(end) if end <= self.len() => read_at(disk, self.place.start.0 + fat.root_at, ROOT_LEN)?,
            _ => Vec::new(),
        };
        let entries = root.chunks_exact(32).take_while(|entry| entry[0] != 0);
        let label =
            entries.filter(|entry| entry[0] != 0xe5 && entry[11] & 0x3f == 0x08).map(|entry| &entry[..11]).next();
        let label = label_of(label.unwrap_or(&fat.label));
        let label = if label == "NO NAME" { String::new() } else { label };
        Ok(Some(file_system(fat.what, label)))
    }
}

struct Fat {
    what: &'static str,
    label: [u8; 11],
    /// Where the root directory starts, in bytes.
    root_at: u64,
}

impl Fat {
    fn parse(part: &Part) -> Option<Fat> {
        let head = part.bytes(0, 512)?;
        let is_jump = head[0] == 0xe9 || (head[0] == 0xeb && head[2] == 0x90);
        let sector = u64::from(part.u16(11)?);
        let cluster = u64::from(head[13]);
        let reserved = u64::from(part.u16(14)?);
        let tables = u64::from(head[16]);
        let root_entries = u64::from(part.u16(17)?);
        let is_media = head[21] == 0xf0 || head[21] >= 0xf8;
        let is_sane = is_jump
            && head[510..] == [0x55, 0xaa]
            && sector.is_power_of_two()
            && (512..=4096).contains(&sector)
            && cluster.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&tables)
            && is_media;
        if !is_sane {
            return None;
        }
        let short = |small: u64, large: u64| if small == 0 { large } else { small };
        let sectors = short(u64::from(part.u16(19)?), u64::from(part.u32(32)?));
        let table_len = short(u64::from(part.u16(22)?), u64::from(part.u32(36)?));
        if table_len == 0 {
            return None;
        }
        // None of these products overflows: the factors have at most 16, 2, 32 and 13 bits.
        let data = reserved + tables * table_len + (root_entries * 32).div_ceil(sector);
        let clusters = sectors.checked_sub(data)? / cluster;
        let is_fat32 = part.u16(22)? == 0;
        let (what, label_at, root_at) = if is_fat32 {
            let root = u64::from(part.u32(44)?).checked_sub(2)?;
            ("FAT32", 0x47, (data + root * cluster) * sector)
        } else {
            let what = if clusters < 4085 { "FAT12" } else { "FAT16" };
            (what, 0x2b, (reserved + tables * table_len) * sector)
        };
        Some(Fat { what, label: part.array(label_at)?, root_at })
    }
}

/// Version 1 superblocks: the magic, then the major version.
fn is_md_1(superblock: &[u8]) -> bool {
    superblock.starts_with(&MD_MAGIC) && superblock.get(4..8) == Some(&[1, 0, 0, 0])
}

fn file_system(what: &'static str, label: String) -> Found {
    Found { what, label, is_file_system: true, goes_with_table: false }
}

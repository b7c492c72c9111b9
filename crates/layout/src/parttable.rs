//! GPT and MBR as far as capture and safe restore need them.
//!
//! [`Table::read`] finds out how a disk is divided, and which of its bytes belong to nobody's partition and still have
//! to be in an image: the tables themselves and the gaps in which boot loaders live. It takes what the Linux kernel
//! (`block/partitions`) and libblkid take: partitions in any order and on top of each other, of any type, odd chains of
//! logical ones. What is odd it says in words. A GPT counts only behind a protective MBR, and a file system's own boot
//! sector is no MBR. What it reads is hostile until checked: nothing is allocated or computed from a number before that
//! is bounded.

pub mod adapt;
mod crc32;
mod gpt;
mod mbr;
mod names;

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

pub use gpt::GptFault;

/// A gap up to this long, in bytes, is kept whole: embedded boards and odd installers put boot loaders and their
/// environment some ten MiB deep.
const GAP_WHOLE_MAX: u64 = 64 << 20;
/// Of a longer gap, in bytes, only this much of its start is kept: PC boot loaders live in the first MiB, and a
/// partition deleted from the front of the disk should not come back as gigabytes of content.
const GAP_HEAD_LEN: u64 = 1 << 20;
/// Most partitions of one disk: the kernel has no more names.
const PARTITIONS_MAX: usize = 256;
/// Most warnings about one table. More say nothing more.
const WARNINGS_MAX: usize = 60;
/// What may be missing of a partition at the end of the disk is the disk's length through this. Disks that are sold as
/// of one size differ by less, and so do a disk and its copy made with another sector count; an image that was cut off
/// lacks more.
const MISSING_SHARE: u64 = 16;

/// Which partition table a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// GUID partition table.
    Gpt,
    /// The PC's master boot record, with logical partitions.
    Mbr,
    /// None: at most a file system on the whole device.
    None,
}

impl TableKind {
    /// As torrents and manifests write it: `gpt`, `mbr`, `none`.
    pub fn as_str(self) -> &'static str {
        match self {
            TableKind::Gpt => "gpt",
            TableKind::Mbr => "mbr",
            TableKind::None => "none",
        }
    }
}

/// How a disk is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which table it is.
    pub kind: TableKind,
    /// The sector size it counts in, in bytes.
    pub sector_size: u32,
    /// Disk GUID (GPT), 8 hex digits (MBR), or empty.
    pub disk_id: String,
    /// By number; inside the disk. They may overlap each other and the table.
    pub partitions: Vec<Partition>,
    /// Half-open ranges of the disk that are no partition's and belong into an image: tables and boot gaps. They may
    /// touch and repeat each other, and lie inside the disk.
    pub own: Vec<Range<u64>>,
    /// What is odd about the table without being in the way, in words.
    pub warnings: Vec<String>,
}

/// One partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    /// As the kernel numbers it: GPT entry, 1 to 4 for primary ones, logical ones from 5.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes, never zero.
    pub len: u64,
    /// Bytes of it past the end of the disk; `len` is what is there.
    pub missing: u64,
    /// Type GUID, or type byte as two hex digits.
    pub type_id: String,
    /// The type in words, or empty.
    pub type_name: &'static str,
    /// Name (GPT).
    pub name: String,
    /// Unique GUID (GPT).
    pub guid: String,
    /// Attribute bits (GPT), or 0x80 if active (MBR).
    pub attributes: u64,
    /// Whether it only holds logical partitions.
    pub is_extended: bool,
}

impl Partition {
    /// Its bytes on the disk, half-open.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }

    /// Its length as the table has it, in bytes.
    fn full_len(&self) -> u64 {
        self.len + self.missing
    }
}

/// Why a partition table cannot be trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The device could not be read.
    #[error("reading the partition table at byte {at}")]
    Read {
        /// Where on the disk.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A sector size that no disk has.
    #[error("a sector size of {0} bytes is not a power of two from 512 to 4096")]
    SectorSize(u32),
    /// The first GPT is broken, the copy at the end is not.
    #[error(
        "the GPT at the start of the disk is damaged, its backup at the end is good: \
         repair it with `sgdisk -e DISK` (or gdisk's recovery menu), look at it with `sgdisk -p DISK`, and try again"
    )]
    PrimaryDamaged(#[source] GptFault),
    /// A protective MBR, and no GPT that could be read.
    #[error(
        "the disk says it has a GPT, but neither the one at its start nor the backup at its end can be read \
         with {sector_size}-byte sectors: it is damaged, or was made with another sector size"
    )]
    NoGpt {
        /// The sector size tried.
        sector_size: u32,
        /// What was wrong with the first.
        #[source]
        source: GptFault,
    },
    /// A GPT that firmware and kernel would ignore.
    #[error("the disk has a GPT but no protective MBR in front of it: write one with `sgdisk -e DISK` and try again")]
    NoProtectiveMbr,
    /// Numbers in a GPT header that make no sense.
    #[error("the GPT header is damaged: {0}")]
    GptHeader(String),
    /// A partition that leaves the disk by more than a sixteenth of it.
    #[error("partition {number} ends at byte {end}, past the end of the disk at {disk_len}: is the image cut off?")]
    PastEnd {
        /// Which.
        number: u32,
        /// Where it ends.
        end: u64,
        /// Size of the disk in bytes.
        disk_len: u64,
    },
}

impl Table {
    /// Reads the partition table of a disk of `disk_len` bytes; no table at all is an answer, not an error.
    ///
    /// # Errors
    /// [`TableError`] if the disk cannot be read or its table cannot be trusted.
    pub fn read(disk: &mut (impl Read + Seek), disk_len: u64, sector_size: u32) -> Result<Table, TableError> {
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            return Err(TableError::SectorSize(sector_size));
        }
        let mut disk = Disk { inner: disk, len: disk_len, sector_size: u64::from(sector_size) };
        let mut table = match mbr::first_sector(&mut disk)? {
            mbr::FirstSector::Protective => gpt::read(&mut disk)?,
            mbr::FirstSector::Mbr(header) => mbr::read(&mut disk, &header)?,
            mbr::FirstSector::Nothing if gpt::has_primary(&mut disk)? => return Err(TableError::NoProtectiveMbr),
            mbr::FirstSector::Nothing | mbr::FirstSector::FileSystem => {
                Table { kind: TableKind::None, ..Table::empty(sector_size) }
            }
        };
        table.partitions.sort_by_key(|partition| partition.number);
        Ok(table)
    }

    fn empty(sector_size: u32) -> Table {
        Table {
            kind: TableKind::None,
            sector_size,
            disk_id: String::new(),
            partitions: Vec::new(),
            own: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Keeps the gap between the bytes `from` and `until`: whole up to [`GAP_WHOLE_MAX`], else its head.
    fn keep_gap(&mut self, from: u64, until: u64) {
        let len = until.saturating_sub(from);
        let kept = if len <= GAP_WHOLE_MAX { len } else { GAP_HEAD_LEN };
        self.own.push(from..from + kept);
    }

    /// Adds `partition`, which has `count` sectors from `lba` on: as much of it as is on the disk, with a warning if
    /// that is not all.
    fn take<R: Read + Seek>(
        &mut self,
        disk: &Disk<'_, R>,
        partition: Partition,
        lba: u64,
        count: u64,
    ) -> Result<(), TableError> {
        let number = partition.number;
        let disk_end = disk.sectors() * disk.sector_size;
        let start = lba.saturating_mul(disk.sector_size);
        let end = lba.saturating_add(count).saturating_mul(disk.sector_size);
        let missing = end.saturating_sub(disk_end);
        if disk.lacks_much(lba, count) {
            return Err(TableError::PastEnd { number, end, disk_len: disk.len });
        }
        if start >= disk_end {
            self.warn(format!("partition {number} starts past the end of the disk, it is left out"));
            return Ok(());
        }
        if missing > 0 {
            self.warn(format!("the last {missing} bytes of partition {number} are past the end of the disk"));
        }
        self.partitions.push(Partition { start, len: end.min(disk_end) - start, missing, ..partition });
        Ok(())
    }

    /// Says which partitions share bytes, but for logical ones with the extended one that holds them. Each is named
    /// with the one before it that reaches farthest.
    fn warn_of_overlaps(&mut self) {
        let mut found = Vec::new();
        let is_inner = |partition: &&Partition| !partition.is_extended;
        let is_primary = |partition: &&Partition| self.kind == TableKind::Mbr && partition.number <= 4;
        let groups: [Vec<&Partition>; 2] =
            [self.partitions.iter().filter(is_inner).collect(), self.partitions.iter().filter(is_primary).collect()];
        for mut group in groups {
            group.sort_by_key(|partition| (partition.start, partition.number));
            let mut farthest: Option<&Partition> = None;
            for partition in group {
                if let Some(other) = farthest.filter(|other| other.range().end > partition.start) {
                    found.push((other.number.min(partition.number), other.number.max(partition.number)));
                }
                if farthest.is_none_or(|other| other.range().end < partition.range().end) {
                    farthest = Some(partition);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found.into_iter().for_each(|(one, other)| self.warn(format!("partitions {one} and {other} overlap")));
    }

    fn warn(&mut self, warning: impl Into<String>) {
        match self.warnings.len() {
            0..WARNINGS_MAX => self.warnings.push(warning.into()),
            WARNINGS_MAX => self.warnings.push("there is more that is odd about the partition table".to_owned()),
            _ => {}
        }
    }
}

/// The sector sizes, in bytes, that a disk or its image may have been used with, as far as its GPT tells: those at which
/// a first header that matches its checksum lies, or if there is none, at which something lies that calls itself one.
/// A disk may have several, left by tools that thought otherwise of its sectors; an MBR does not say.
///
/// # Errors
/// [`TableError::Read`].
pub fn gpt_sector_sizes(disk: &mut (impl Read + Seek), disk_len: u64) -> Result<Vec<u32>, TableError> {
    let (mut good, mut named) = (Vec::new(), Vec::new());
    for sector_size in [512, 1024, 2048, 4096] {
        let mut disk = Disk { inner: disk, len: disk_len, sector_size: u64::from(sector_size) };
        if gpt::has_primary(&mut disk)? {
            named.push(sector_size);
            if gpt::has_good_primary(&mut disk)? {
                good.push(sector_size);
            }
        }
    }
    Ok(if good.is_empty() { named } else { good })
}

/// The first of [`gpt_sector_sizes`], or 512.
///
/// # Errors
/// [`TableError::Read`].
pub fn guess_sector_size(disk: &mut (impl Read + Seek), disk_len: u64) -> Result<u32, TableError> {
    Ok(gpt_sector_sizes(disk, disk_len)?.first().copied().unwrap_or(512))
}

/// A disk that knows its bounds.
struct Disk<'a, R> {
    inner: &'a mut R,
    len: u64,
    sector_size: u64,
}

impl<R: Read + Seek> Disk<'_, R> {
    fn sectors(&self) -> u64 {
        self.len / self.sector_size
    }

    /// The first 512 bytes of a sector, or `None` if it is past the end of the disk.
    fn sector_head(&mut self, lba: u64) -> Result<Option<[u8; 512]>, TableError> {
        if lba >= self.sectors() {
            return Ok(None);
        }
        let at = lba * self.sector_size;
        let mut head = [0; 512];
        self.inner
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.inner.read_exact(&mut head))
            .map_err(|source| TableError::Read { at, source })?;
        Ok(Some(head))
    }

    /// The byte range of `count` sectors from `lba` on, if all of them are on the disk.
    fn bytes_of(&self, lba: u64, count: u64) -> Option<Range<u64>> {
        let end = lba.checked_add(count).filter(|&end| end <= self.sectors())?;
        Some(lba * self.sector_size..end * self.sector_size)
    }

    /// Whether more of these sectors is missing than a disk that is a little too short explains.
    fn lacks_much(&self, lba: u64, count: u64) -> bool {
        let end = lba.saturating_add(count);
        end.saturating_sub(self.sectors()).saturating_mul(self.sector_size) > self.len / MISSING_SHARE
    }

    /// A range that is on the disk.
    fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>, TableError> {
        let at = range.start;
        let failed = |source| TableError::Read { at, source };
        let mut bytes = vec![0; usize::try_from(range.end - at).map_err(|error| failed(io::Error::other(error)))?];
        self.inner.seek(SeekFrom::Start(at)).and_then(|_| self.inner.read_exact(&mut bytes)).map_err(failed)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;

//! GPT and MBR as far as capture and safe restore need them.
//!
//! [`Table::read`] finds out how a disk is divided, and which of its bytes belong to nobody's partition and still have
//! to be in an image: the tables themselves and the gaps in which boot loaders live. It follows the Linux kernel where
//! the formats leave room: a GPT counts only behind a protective MBR, and a file system's own boot sector is no MBR.
//! What it reads is hostile until checked: nothing is allocated or computed from a number before that is bounded.

pub mod adapt;
mod gpt;
mod mbr;
mod names;

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

/// A gap up to this long, in bytes, is kept whole: embedded boards and odd installers put boot loaders and their
/// environment some ten MiB deep.
const GAP_WHOLE_MAX: u64 = 64 << 20;
/// Of a longer gap, in bytes, only this much of its start is kept: PC boot loaders live in the first MiB, and a
/// partition deleted from the front of the disk should not come back as gigabytes of content.
const GAP_HEAD_LEN: u64 = 1 << 20;

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
    /// By number; inside the disk and, but for logical partitions in their extended one, disjoint.
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
    PrimaryDamaged(#[source] Option<gptman::Error>),
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
        source: Option<gptman::Error>,
    },
    /// A GPT that firmware and kernel would ignore.
    #[error("the disk has a GPT but no protective MBR in front of it: write one with `sgdisk -e DISK` and try again")]
    NoProtectiveMbr,
    /// Numbers in a GPT header that make no sense.
    #[error("the GPT header is damaged: {0}")]
    GptHeader(String),
    /// A partition of no length, or with its end before its start.
    #[error("partition {0} has an impossible length: the partition table is damaged")]
    Length(u32),
    /// A partition that leaves the disk.
    #[error("partition {number} ends at byte {end}, past the end of the disk at {disk_len}: is the image cut off?")]
    PastEnd {
        /// Which.
        number: u32,
        /// Where it ends.
        end: u64,
        /// Size of the disk in bytes.
        disk_len: u64,
    },
    /// Two partitions that share sectors.
    #[error("partitions {0} and {1} overlap: the partition table is damaged")]
    Overlap(u32, u32),
    /// A partition on top of the table that describes it.
    #[error("partition {0} lies on top of the partition table: the table is damaged")]
    OnTable(u32),
    /// A chain of logical partitions that leaves its extended partition, loops, or does not end.
    #[error("the chain of logical partitions is damaged at sector {lba}: {problem}")]
    Chain {
        /// Sector of the link.
        lba: u64,
        /// What is wrong.
        problem: &'static str,
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

    /// Keeps the gap between `from` and the first of `starts`: whole up to [`GAP_WHOLE_MAX`], else its head.
    fn keep_gap(&mut self, from: u64, until: u64) {
        let len = until.saturating_sub(from);
        let kept = if len <= GAP_WHOLE_MAX { len } else { GAP_HEAD_LEN };
        self.own.push(from..from + kept);
    }
}

/// The sector size that a disk image was made with, as far as it can be told: where its GPT header is. 512 if it has
/// none: an MBR does not say.
///
/// # Errors
/// [`TableError::Read`].
pub fn guess_sector_size(disk: &mut (impl Read + Seek), disk_len: u64) -> Result<u32, TableError> {
    for sector_size in [512, 1024, 2048, 4096] {
        let mut disk = Disk { inner: disk, len: disk_len, sector_size: u64::from(sector_size) };
        if gpt::has_primary(&mut disk)? {
            return Ok(sector_size);
        }
    }
    Ok(512)
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

    /// The same for partition `number`.
    fn partition_bytes(&self, number: u32, lba: u64, count: u64) -> Result<Range<u64>, TableError> {
        let past_end = || TableError::PastEnd {
            number,
            end: lba.saturating_add(count).saturating_mul(self.sector_size),
            disk_len: self.len,
        };
        if count == 0 { Err(TableError::Length(number)) } else { self.bytes_of(lba, count).ok_or_else(past_end) }
    }
}

/// Checks that partitions share no byte with each other.
fn check_disjoint(partitions: &[&Partition]) -> Result<(), TableError> {
    let mut sorted = partitions.to_vec();
    sorted.sort_by_key(|partition| partition.start);
    match sorted.windows(2).find(|pair| pair[0].range().end > pair[1].start) {
        Some(pair) => Err(TableError::Overlap(pair[0].number, pair[1].number)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;

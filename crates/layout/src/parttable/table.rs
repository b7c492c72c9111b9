//! The data of a partition table, and the disk it is read from.

use super::gpt::GptFault;
use crate::DiskRange;
use metainfo::TableKind;
use std::io::{self, Read, Seek, SeekFrom};

/// A partition at the end of the disk may lack at most the disk's length divided by this. Disks sold with the same size
/// differ by less, and so do a disk and its copy made with another sector count; an image that was cut off lacks more.
pub(super) const MISSING_SHARE: u64 = 16;

/// Of a longer gap, only this many bytes of its start are kept: PC boot loaders live in the first MiB, and a partition
/// deleted from the front of the disk should not return as gigabytes of content.
pub(super) const GAP_HEAD_LEN: u64 = 1 << 20;

/// Most partitions of one disk: the kernel has no names for more.
pub(super) const PARTITIONS_MAX: usize = 256;

/// How a disk is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The kind of the table.
    pub kind: TableKind,
    /// The sector size it counts in, in bytes.
    pub sector_size: u32,
    /// Disk GUID (GPT), 8 hex digits (MBR), or empty.
    pub disk_id: String,
    /// In order of their numbers; inside the disk. They may overlap each other and the table.
    pub partitions: Vec<Partition>,
    /// Ranges of the disk outside all partitions that belong into an image: tables and boot gaps. They may touch and
    /// repeat each other, and lie inside the disk.
    pub own: Vec<DiskRange>,
    /// Oddities of the table that do no harm, as text.
    pub warnings: Vec<String>,
}

/// One partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    /// Numbered as the kernel does: GPT entry, 1 to 4 for primary partitions, from 5 on for logical ones.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes, never zero.
    pub len: u64,
    /// Bytes of it past the end of the disk; `len` does not include them.
    pub missing: u64,
    /// Type GUID, or type byte as two hex digits.
    pub type_id: String,
    /// The type as text, or empty.
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
    /// Its bytes on the disk.
    pub fn range(&self) -> DiskRange {
        DiskRange::new(self.start..self.start + self.len)
    }

    /// Its length in the table, in bytes.
    pub(super) fn full_len(&self) -> u64 {
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
    /// The first GPT is broken, but the copy at the end is not.
    #[error(
        "the GPT at the start of the disk is damaged, its backup at the end is good: \
         repair it with `sgdisk -e DISK` (or gdisk's recovery menu), look at it with `sgdisk -p DISK`, and try again"
    )]
    PrimaryDamaged(#[source] GptFault),
    /// There is a protective MBR, but no GPT that could be read.
    #[error(
        "the disk says it has a GPT, but neither the one at its start nor the backup at its end can be read \
         with {sector_size}-byte sectors: it is damaged, or was made with another sector size"
    )]
    NoGpt {
        /// The sector size that was tried.
        sector_size: u32,
        /// What was wrong with the first GPT.
        #[source]
        source: GptFault,
    },
    /// There is a GPT that firmware and kernel would ignore.
    #[error("the disk has a GPT but no protective MBR in front of it: write one with `sgdisk -e DISK` and try again")]
    NoProtectiveMbr,
    /// Numbers in a GPT header make no sense.
    #[error("the GPT header is damaged: {0}")]
    GptHeader(String),
    /// A partition extends past the disk by more than a sixteenth of the disk's length.
    #[error("partition {number} ends at byte {end}, past the end of the disk at {disk_len}: is the image cut off?")]
    PastEnd {
        /// Which partition.
        number: u32,
        /// Where it ends.
        end: u64,
        /// Size of the disk in bytes.
        disk_len: u64,
    },
}

/// A disk with a known length.
pub(super) struct Disk<'a, R> {
    pub(super) inner: &'a mut R,
    pub(super) len: u64,
    pub(super) sector_size: u64,
}

impl<R: Read + Seek> Disk<'_, R> {
    pub(super) fn sectors(&self) -> u64 {
        self.len / self.sector_size
    }

    /// The first 512 bytes of a sector, or `None` if it is past the end of the disk.
    pub(super) fn sector_head(&mut self, lba: u64) -> Result<Option<[u8; 512]>, TableError> {
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
    pub(super) fn bytes_of(&self, lba: u64, count: u64) -> Option<DiskRange> {
        let end = lba.checked_add(count).filter(|&end| end <= self.sectors())?;
        Some(DiskRange::new(lba * self.sector_size..end * self.sector_size))
    }

    /// Whether more of these sectors are missing than a slightly too short disk explains.
    pub(super) fn lacks_much(&self, lba: u64, count: u64) -> bool {
        let end = lba.saturating_add(count);
        end.saturating_sub(self.sectors()).saturating_mul(self.sector_size) > self.len / MISSING_SHARE
    }

    /// Reads a range that is on the disk.
    pub(super) fn read(&mut self, range: DiskRange) -> Result<Vec<u8>, TableError> {
        let at = range.start.0;
        let failed = |source| TableError::Read { at, source };
        let mut bytes = vec![0; usize::try_from(range.len()).map_err(|error| failed(io::Error::other(error)))?];
        self.inner.seek(SeekFrom::Start(at)).and_then(|_| self.inner.read_exact(&mut bytes)).map_err(failed)?;
        Ok(bytes)
    }
}

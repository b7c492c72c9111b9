//! The changes to make for a device, and the rules for them.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::str::FromStr;

use crate::parttable::table::{Partition, Table, TableError};
use crate::{DiskOffset, DiskRange};
use metainfo::TableKind;

/// Partitions that grow end at a multiple of this, in bytes, as all current tools align them. Growing by less than one
/// such unit is not worth a change.
pub const ALIGN: u64 = 1 << 20;

/// Which partition uses the additional space of a larger disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grow {
    /// None: the space stays free.
    #[default]
    No,
    /// The last one on the disk.
    Last,
    /// The one with this number, up to what lies after it.
    Number(u32),
}

/// Text that is not a [`Grow`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a partition to grow: write `no`, `last`, or the number of a partition")]
pub struct GrowError(String);

impl FromStr for Grow {
    type Err = GrowError;

    fn from_str(text: &str) -> Result<Grow, GrowError> {
        match text.trim() {
            "" | "no" => Ok(Grow::No),
            "last" => Ok(Grow::Last),
            number => match number.parse() {
                Ok(number) if number > 0 => Ok(Grow::Number(number)),
                _ => Err(GrowError(text.chars().take(60).collect())),
            },
        }
    }
}

impl fmt::Display for Grow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grow::No => f.write_str("no"),
            Grow::Last => f.write_str("last"),
            Grow::Number(number) => number.fmt(f),
        }
    }
}

/// Changes wanted on the device, besides those that its size requires.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The partition that grows. Only its entry grows; other code grows the file system in it.
    pub grow: Grow,
    /// A new identity for the disk, in the disk's byte order: the disk GUID for a GPT; an MBR takes its first four
    /// bytes as the signature. Partition GUIDs stay. An MBR's `PARTUUID`s and Windows' boot configuration depend on the
    /// identity, so an image that boots by these needs the old one.
    pub new_disk_id: Option<[u8; 16]>,
}

/// What [`adapt`] replaced and the device no longer shows; needed by [`revert`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Original {
    /// Number of the partition that grew, and its length in the image in bytes.
    pub grown: Option<(u32, u64)>,
    /// The image's own disk GUID, or MBR signature followed by zeros.
    pub disk_id: Option<[u8; 16]>,
}

/// A table that fits its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapted {
    /// The start of the disk, as long as the given head.
    pub head: Vec<u8>,
    /// Disk offset and bytes of the backup GPT, entries and header, up to the disk's last sector; `None` if it stays as
    /// the image has it.
    pub tail: Option<(DiskOffset, Vec<u8>)>,
    /// Where the image has its backup GPT, if that moved: these bytes mean nothing on this disk. They belong to no
    /// partition of the image, but may belong to one that grew.
    pub stale: Option<DiskRange>,
    /// The partition whose length differs from the given head.
    pub grown: Option<Grown>,
    /// The values that [`revert`] needs.
    pub original: Original,
}

/// A partition of a new length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Its number.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes before.
    pub old_len: u64,
    /// Length in bytes now.
    pub new_len: u64,
    /// Its type as text, or empty.
    pub type_name: &'static str,
    /// Whether there was more room than an MBR can describe: it counts up to 2^32 sectors (2 TiB with 512-byte
    /// sectors).
    pub is_capped: bool,
}

/// Why a table cannot be made to fit. Nothing has been changed in that case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdaptError {
    /// The given table is damaged.
    #[error("the image's partition table cannot be fitted to this disk")]
    Table(#[from] TableError),
    /// The table is of another kind than expected, or missing.
    #[error("the image should have a partition table of kind {expected}, what it starts with is of kind {found}")]
    Kind {
        /// The kind that the image states.
        expected: &'static str,
        /// The kind that was found.
        found: &'static str,
    },
    /// A wish needs a table, and the image has none.
    #[error("the image has no partition table: no partition can be grown and no disk identity be changed")]
    NoTable,
    /// More bytes were given than the disk has.
    #[error("the first {head_len} bytes of a disk of {disk_len} bytes: that cannot be")]
    Head {
        /// Bytes given.
        head_len: u64,
        /// Size of the disk in bytes.
        disk_len: u64,
    },
    /// The entries are not at the start of the disk.
    #[error(
        "the image's GPT keeps its entries at bytes {start} to {end}, outside of the first {head_len} bytes of the disk: \
         such a table cannot be fitted to another disk"
    )]
    EntriesOutside {
        /// First byte of the entries.
        start: u64,
        /// Byte after them.
        end: u64,
        /// Bytes given.
        head_len: u64,
    },
    /// The entries do not match the header's checksum.
    #[error(
        "the partitions in the image's GPT do not match their checksum, the table is damaged: \
         repair it on the golden disk (`sgdisk -v DISK` tells more) and capture again"
    )]
    EntriesChecksum,
    /// Partitions and table do not fit onto the device.
    #[error("the image's partitions and their table need a disk of {needed} bytes, this one has {device}")]
    TooSmall {
        /// Bytes needed.
        needed: u64,
        /// Bytes the device has.
        device: u64,
    },
    /// The last partition should grow, but there is none.
    #[error("there is no partition to grow: the image's partition table is empty")]
    NoPartition,
    /// A partition should grow that does not exist.
    #[error("there is no partition {0} to grow")]
    NoSuchPartition(u32),
    /// The table of this partition is in the middle of the disk, not at its start.
    #[error(
        "partition {0} is a logical partition or holds some, and these are not grown: \
         choose a primary partition, or `no`"
    )]
    Logical(u32),
    /// There is no room between two partitions.
    #[error("partition {number} cannot grow: partition {next} follows it directly")]
    NoRoom {
        /// The one that should grow.
        number: u32,
        /// The one in the way.
        next: u32,
    },
    /// The partition shares bytes with another one.
    #[error(
        "partition {number} shares bytes with partition {other}, and such a partition is not grown: choose another one, \
         or `no`"
    )]
    Overlapping {
        /// The one that should grow.
        number: u32,
        /// The other.
        other: u32,
    },
    /// [`revert`] was given a length that cannot be right.
    #[error("partition {number} cannot have been {len} bytes long")]
    OriginalLen {
        /// Which partition.
        number: u32,
        /// The length.
        len: u64,
    },
    /// The new table does not read back as intended.
    #[error("the partition table made for this disk does not read back as it should")]
    ReadBack(#[source] Option<TableError>),
}

/// The new length of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resize {
    No,
    Last,
    Number(u32),
    /// Number and length in bytes.
    To(u32, u64),
}

/// One table to change, in either direction.
pub(super) struct Job<'a> {
    pub(super) head: &'a [u8],
    pub(super) sector_size: u32,
    pub(super) from_len: u64,
    pub(super) to_len: u64,
    pub(super) resize: Resize,
    pub(super) disk_id: Option<[u8; 16]>,
    /// Whether it is for [`revert`].
    pub(super) is_back: bool,
}

impl Job<'_> {
    pub(super) fn unchanged(&self) -> Adapted {
        Adapted { head: self.head.to_vec(), tail: None, stale: None, grown: None, original: Original::default() }
    }

    pub(super) fn sector_len(&self) -> u64 {
        u64::from(self.sector_size)
    }

    pub(super) fn sectors_before(&self) -> u64 {
        self.from_len / self.sector_len()
    }

    pub(super) fn sectors_after(&self) -> u64 {
        self.to_len / self.sector_len()
    }

    /// Decides which partition gets another length. `end` is the byte after the space that partitions may use; `cap` is
    /// the byte after what the table can describe.
    pub(super) fn resized(&self, table: &Table, end: u64, cap: u64) -> Result<Option<Grown>, AdaptError> {
        let (chosen, new_len) = match self.resize {
            Resize::No => return Ok(None),
            Resize::Last => {
                let last = table.partitions.iter().max_by_key(|partition| partition.start);
                (last.ok_or(AdaptError::NoPartition)?, None)
            }
            Resize::Number(number) => (numbered(table, number)?, None),
            Resize::To(number, len) => (numbered(table, number)?, Some(len)),
        };
        let number = chosen.number;
        if table.kind == TableKind::Mbr && (chosen.is_extended || number > 4) {
            return Err(AdaptError::Logical(number));
        }
        if let Some(other) = overlapping(table, chosen) {
            return Err(AdaptError::Overlapping { number, other });
        }
        // A count covers one sector less than start and count together can describe.
        let cap = if chosen.start == 0 { cap - self.sector_len() } else { cap };
        let next = table.partitions.iter().filter(|other| other.start > chosen.start).min_by_key(|other| other.start);
        let room = next.map_or(end, |next| next.start);
        let until = room.min(cap);
        let old_len = chosen.full_len();
        let new_len = match new_len {
            Some(len) => {
                let new_end = chosen.start.checked_add(len).filter(|&new_end| new_end <= until);
                if len == 0 || len % self.sector_len() != 0 || new_end.is_none() {
                    return Err(AdaptError::OriginalLen { number, len });
                }
                len
            }
            None => match ((until - until % ALIGN).checked_sub(chosen.start), next) {
                (Some(len), _) if len > old_len => len,
                (_, Some(next)) if room <= cap => return Err(AdaptError::NoRoom { number, next: next.number }),
                _ => old_len,
            },
        };
        let grown =
            Grown { number, start: chosen.start, old_len, new_len, type_name: chosen.type_name, is_capped: room > cap };
        Ok((new_len != old_len).then_some(grown))
    }

    /// The byte after the last partition, once the partition with the given length has it; the others have `len`.
    pub(super) fn end_of_partitions(&self, table: &Table, len: impl Fn(&Partition) -> u64) -> u64 {
        let end = |partition: &Partition| match self.resize {
            Resize::To(number, len) if number == partition.number => partition.start.saturating_add(len),
            _ => partition.start.saturating_add(len(partition)),
        };
        table.partitions.iter().map(end).max().unwrap_or(0)
    }
}

/// Another partition that shares bytes with this one.
pub(super) fn overlapping(table: &Table, chosen: &Partition) -> Option<u32> {
    let others = table.partitions.iter().filter(|other| other.number != chosen.number);
    let mut shared = others.filter(|other| !other.range().intersect(chosen.range()).is_empty());
    shared.next().map(|other| other.number)
}

/// Compares the new table, read back, with the table it was made from. On a disk of another length, more or less of a
/// partition at the end is present, or one that was past the end appears.
pub(super) fn check(
    job: &Job<'_>,
    before: &Table,
    grown: Option<&Grown>,
    after: Result<Table, TableError>,
) -> Result<(), AdaptError> {
    let after = after.map_err(|error| AdaptError::ReadBack(Some(error)))?;
    let whole = |partition: &Partition| Partition { len: partition.full_len(), missing: 0, ..partition.clone() };
    let mut expected: Vec<Partition> = before.partitions.iter().map(whole).collect();
    for partition in &mut expected {
        if let Some(grown) = grown.filter(|grown| grown.number == partition.number) {
            partition.len = grown.new_len;
        }
    }
    let found: Vec<Partition> = after.partitions.iter().map(whole).collect();
    let is_kept = expected.iter().all(|one| found.contains(one) || one.range().end.0 > job.to_len);
    let is_known = found.iter().all(|one| expected.contains(one) || one.range().end.0 > job.from_len);
    let is_good = after.kind == before.kind
        && is_kept
        && is_known
        && !after.warnings.iter().any(|warning| crate::parttable::gpt::is_of_backup(warning));
    if is_good { Ok(()) } else { Err(AdaptError::ReadBack(None)) }
}

pub(super) fn numbered(table: &Table, number: u32) -> Result<&Partition, AdaptError> {
    let found = table.partitions.iter().find(|partition| partition.number == number);
    // Records of logical partitions are not in the head, so it is not known here whether this one exists.
    let is_logical = table.kind == TableKind::Mbr && number > 4;
    found.ok_or(if is_logical { AdaptError::Logical(number) } else { AdaptError::NoSuchPartition(number) })
}

pub(in crate::parttable) fn is_sector_size(sector_size: u32) -> bool {
    sector_size.is_power_of_two() && (512..=4096).contains(&sector_size)
}

pub(super) fn len_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("memory is smaller than 2^64 bytes")
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A disk of which only some parts are known; the rest reads as zeros.
pub(in crate::parttable) struct Sparse<'a> {
    /// Disk offset and bytes, ascending and disjoint.
    pub(super) parts: Vec<(u64, &'a [u8])>,
    pub(super) len: u64,
    pub(super) at: u64,
}

impl<'a> Sparse<'a> {
    pub(in crate::parttable) fn new(parts: Vec<(u64, &'a [u8])>, len: u64) -> Sparse<'a> {
        Sparse { parts, len, at: 0 }
    }
}

impl Read for Sparse<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = buf.len().min(left);
        let buf = &mut buf[..count];
        buf.fill(0);
        let end = self.at + len_of(buf);
        for &(start, bytes) in &self.parts {
            let from = self.at.max(start);
            let to = end.min(start + len_of(bytes));
            if from < to {
                let within = |origin: u64| {
                    let inside = |at: u64| usize::try_from(at - origin).expect("inside a part in memory");
                    inside(from)..inside(to)
                };
                buf[within(self.at)].copy_from_slice(&bytes[within(start)]);
            }
        }
        self.at = end;
        Ok(count)
    }
}

impl Seek for Sparse<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

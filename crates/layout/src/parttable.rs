//! GPT and MBR, to the extent that capture and safe restore need them.
//!
//! [`Table::read`] finds out how a disk is divided, and which bytes outside all partitions still belong into an image:
//! the tables themselves and the gaps in which boot loaders live. It accepts what the Linux kernel (`block/partitions`)
//! and libblkid accept: partitions of any type, in any order and overlapping, and odd chains of logical ones. It
//! describes oddities as text. A GPT counts only after a protective MBR, and a file system's boot sector is no MBR. Its
//! input is hostile until checked: a number is bounded before anything is allocated or computed from it.

pub mod adapt;
mod crc32;
mod gpt;
mod mbr;
mod names;
pub mod stamp;
mod table;

use std::io::{Read, Seek};

use crate::DiskRange;
pub use gpt::GptFault;
pub use metainfo::TableKind;
use table::{Disk, GAP_HEAD_LEN};
pub use table::{Partition, Table, TableError};

/// A gap up to this long, in bytes, is kept whole: embedded boards and odd installers put boot loaders and their
/// environment as deep as about ten MiB.
const GAP_WHOLE_MAX: u64 = 64 << 20;
/// Most warnings about one table. More would not help.
const WARNINGS_MAX: usize = 60;
impl Table {
    /// Reads the partition table of a disk of `disk_len` bytes. Having no table is a result, not an error.
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

    /// Keeps the gap between the bytes `from` and `until`: all of it up to [`GAP_WHOLE_MAX`], otherwise only its start.
    fn keep_gap(&mut self, from: u64, until: u64) {
        let len = until.saturating_sub(from);
        let kept = if len <= GAP_WHOLE_MAX { len } else { GAP_HEAD_LEN };
        self.own.push(DiskRange::new(from..from + kept));
    }

    /// Adds `partition`, which has `count` sectors from `lba` on. Only the part that is on the disk is added, with a
    /// warning if that is not all of it.
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

    /// Warns about partitions that share bytes, except logical ones inside their extended one. Each is reported with
    /// the partition before it that extends farthest.
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
                if let Some(other) = farthest.filter(|other| other.range().end > partition.range().start) {
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

/// The sector sizes, in bytes, that a disk or its image may have been used with, judged by its GPT. A size counts if a
/// first header with a matching checksum lies where this size puts it; if there is none, the header's signature is
/// enough. A disk may have several, left by tools that assumed other sector sizes; an MBR does not record the size.
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

#[cfg(test)]
mod tests;

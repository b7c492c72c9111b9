//! The stamp that a finished disk carries: which deployment wrote and proved it. One record of 512 bytes in a sector that is
//! nothing else's, so that a machine knows what is done even where its server has lost the record of it.
//!
//! ```text
//!  0: "EZIO done stamp\0"   16: version, 1   20: CRC-32 of the record, this field as zero   24: own place, in bytes
//! 32: length of the device  40: infohash     60: zeros   64: length of the deployment       66: deployment, UTF-8; zeros
//! ```
//! Numbers are little-endian. Place and length are in it so that a copy of the sector elsewhere, or of the disk on another
//! one, is no stamp.

use std::io::{Read, Seek};

use metainfo::TableKind;

use super::adapt::{Sparse, is_sector_size};
use super::crc32::crc32;
use super::gpt::primary_header;
use super::table::{Disk, Table};
use crate::{DiskOffset, DiskRange, Layout};

/// Length of a record in bytes; it starts a sector.
pub const STAMP_LEN: usize = 512;
/// Stamps lie in the first and the last so many bytes of a disk: what a restore takes away before it writes anything else.
const WINDOW_LEN: u64 = 1 << 20;
/// In front of the first partition, no stamp lies in the first so many bytes: boot loaders put themselves there (GRUB's core
/// begins in sector 1, and has some hundred KiB where it holds drivers for encryption and RAID).
const BOOT_LOADERS_LEN: u64 = 512 << 10;
const MAGIC: &[u8; 16] = b"EZIO done stamp\0";
const VERSION: u32 = 1;
const CRC_AT: usize = 20;
const TEXT_AT: usize = 66;

/// What a finished disk holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The deployment's id, as its order has it.
    pub deployment: String,
    /// The infohash of the image's torrent.
    pub infohash: [u8; 20],
}

impl Stamp {
    /// The record for byte `at` of a device of `device_len` bytes; `None` for a deployment that is empty or too long.
    pub fn to_record(&self, at: DiskOffset, device_len: u64) -> Option<[u8; STAMP_LEN]> {
        let text = self.deployment.as_bytes();
        if text.is_empty() || text.len() > STAMP_LEN - TEXT_AT {
            return None;
        }
        let mut record = [0; STAMP_LEN];
        let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(16, &VERSION.to_le_bytes());
        put(24, &at.0.to_le_bytes());
        put(32, &device_len.to_le_bytes());
        put(40, &self.infohash);
        put(64, &u16::try_from(text.len()).unwrap_or_default().to_le_bytes());
        put(TEXT_AT, text);
        let crc = crc32(&[&record]);
        record[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        Some(record)
    }

    /// What a record says that was read at byte `at` of a device of `device_len` bytes; `None` if it is none, is damaged, was
    /// made for another place or device, or by a newer version.
    pub fn from_record(record: &[u8], at: DiskOffset, device_len: u64) -> Option<Stamp> {
        let record = record.get(..STAMP_LEN)?;
        let len = usize::from(u16::from_le_bytes([record[64], record[65]]));
        let text = record.get(TEXT_AT..TEXT_AT + len)?;
        let stamp = Stamp {
            deployment: str::from_utf8(text).ok()?.to_owned(),
            infohash: record[40..60].try_into().unwrap_or_default(),
        };
        // What is written back must be what was read: one comparison for every field.
        stamp.to_record(at, device_len).filter(|own| own == record).map(|_| stamp)
    }
}

/// Whether a sector begins like a stamp, be it damaged, newer, or of another disk.
pub fn looks_like_stamp(sector: &[u8]) -> bool {
    sector.starts_with(MAGIC)
}

/// Where on a device of this length, in bytes, stamps are looked for: ascending and disjoint.
pub fn windows(device_len: u64) -> Vec<DiskRange> {
    let head = device_len.min(WINDOW_LEN);
    // Down to a whole sector of any size.
    let tail = (device_len.saturating_sub(WINDOW_LEN) / 4096 * 4096).max(head);
    [0..head, tail..device_len].map(DiskRange::new).into_iter().filter(|range| !range.is_empty()).collect()
}

/// The sector of a disk that a stamp goes to; `None` where there is no place for one.
///
/// It is outside of the image's content and zeros, of `others` (its swap areas), of every partition, and of the partition
/// table as it is going to be on this device: `parts` are the bytes at both ends, with their disk offsets, ascending and
/// disjoint. First choice is the last free sector in front of the first partition, well behind boot code; else the last one
/// behind all partitions. An image without a partition table only leaves what is behind it, if it is of a whole disk.
///
/// `sector_size` and `device_len` are in bytes.
pub fn place(
    layout: &Layout,
    others: &[DiskRange],
    parts: Vec<(u64, &[u8])>,
    sector_size: u32,
    device_len: u64,
) -> Option<DiskRange> {
    if !is_sector_size(sector_size) {
        return None;
    }
    let sector_len = u64::from(sector_size);
    let end = device_len / sector_len * sector_len;
    let window = |from: u64, to: u64| DiskRange::new(from.next_multiple_of(sector_len)..to.max(from));
    let tail_from = device_len.saturating_sub(WINDOW_LEN).max(WINDOW_LEN);
    let (choices, table) = match layout.table() {
        TableKind::None if layout.is_whole_disk() => (vec![window(tail_from.max(layout.disk_size()), end)], None),
        TableKind::None => return None,
        kind => {
            let mut disk = Sparse::new(parts, device_len);
            let table = Table::read(&mut disk, device_len, sector_size).ok().filter(|table| table.kind == kind)?;
            let (usable_from, usable_to) = usable(&mut disk, kind, sector_len, device_len)?;
            let first = table.partitions.iter().map(|partition| partition.start).min().unwrap_or(WINDOW_LEN);
            let last = table.partitions.iter().map(|partition| partition.range().end.0).max().unwrap_or(0);
            let gap = window(usable_from.max(BOOT_LOADERS_LEN), first.min(WINDOW_LEN).min(end));
            let tail = window(tail_from.max(last), usable_to.min(end));
            (vec![gap, tail], Some(table))
        }
    };
    let partitions = table.iter().flat_map(|table| &table.partitions).map(super::Partition::range);
    let taken: Vec<DiskRange> = partitions.chain(others.iter().copied()).collect();
    let is_free =
        |sector: &DiskRange| !layout.touches(*sector) && taken.iter().all(|range| range.intersect(*sector).is_empty());
    choices.into_iter().find_map(|choice| sectors_from_the_end(choice, sector_len).find(is_free))
}

/// The whole sectors of a range that begins with one, the last first.
fn sectors_from_the_end(range: DiskRange, sector_len: u64) -> impl Iterator<Item = DiskRange> {
    let count = range.end.0.saturating_sub(range.start.0) / sector_len;
    (0..count).rev().map(move |index| {
        let start = range.start.0 + index * sector_len;
        DiskRange::new(start..start + sector_len)
    })
}

/// The bytes that the table itself leaves: behind its front, and before its copy at the end.
fn usable(disk: &mut (impl Read + Seek), kind: TableKind, sector_len: u64, device_len: u64) -> Option<(u64, u64)> {
    let sectors = device_len / sector_len;
    if kind != TableKind::Gpt {
        return Some((sector_len, sectors * sector_len));
    }
    let mut disk = Disk { inner: disk, len: device_len, sector_size: sector_len };
    let header = primary_header(&mut disk)?;
    let entry_sectors = header.array_len().ok()?.div_ceil(sector_len);
    let from = header.entries_lba().checked_add(entry_sectors)?;
    // Wherever the header says that its copy is, one may be put at the end of the disk.
    let to = header.last_usable_lba().saturating_add(1).min(sectors.checked_sub(entry_sectors + 1)?);
    Some((from.checked_mul(sector_len)?, to.checked_mul(sector_len)?))
}

#[cfg(test)]
mod tests;

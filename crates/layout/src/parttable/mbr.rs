//! The master boot record and the chains of extended boot records after it, as the kernel (`block/partitions/msdos.c`)
//! and libblkid read them.

use std::collections::BTreeSet;
use std::io::{Read, Seek};

use super::names;
use metainfo::TableKind;

use super::table::{Disk, GAP_HEAD_LEN, PARTITIONS_MAX, Partition, Table, TableError};
use crate::DiskRange;

/// Most records of a chain that are followed without finding a partition in them.
const EMPTY_MAX: u32 = 100;
/// Type byte of the entry that marks the table as a GPT.
pub(super) const PROTECTIVE: u8 = 0xee;
/// Where a boot record keeps its four entries.
pub(super) const ENTRIES_AT: [usize; 4] = [446, 462, 478, 494];
/// The last two bytes of a boot record.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// AIX starts a disk with "IBMA" in EBCDIC; what follows is not a table in this format.
const AIX: [u8; 4] = [0xc9, 0xc2, 0xd4, 0xc1];

/// What the first sector of a disk contains.
pub(super) enum FirstSector {
    /// A GPT follows (alone, or as a hybrid beside other entries).
    Protective,
    /// A partition table.
    Mbr(Box<[u8; 512]>),
    /// A file system's boot sector.
    FileSystem,
    /// None of these.
    Nothing,
}

/// Looks at the first sector.
pub(super) fn first_sector(disk: &mut Disk<'_, impl Read + Seek>) -> Result<FirstSector, TableError> {
    let Some(sector) = disk.sector_head(0)? else { return Ok(FirstSector::Nothing) };
    let is_file_system = is_boot_sector_of_file_system(&sector);
    let nothing = if is_file_system { FirstSector::FileSystem } else { FirstSector::Nothing };
    if !has_signature(&sector) {
        return Ok(nothing);
    }
    let entries = Entry::all(&sector);
    let mut used = entries.iter().filter(|entry| entry.count > 0);
    // Distinguishes boot code from entries.
    let has_flags = entries.iter().all(|entry| matches!(entry.flag, 0 | 0x80));
    let is_on_disk = |entry: &Entry| entry.start < disk.sectors();
    if is_file_system {
        // Tools that format a whole disk may leave an entry that covers it from sector 0, including the boot sector.
        let is_table = has_flags && used.clone().all(|entry| entry.start > 0 && is_on_disk(entry));
        if !is_table || used.clone().next().is_none() {
            return Ok(nothing);
        }
    }
    if entries.iter().any(|entry| entry.sys == PROTECTIVE) {
        return Ok(FirstSector::Protective);
    }
    // An entry without a type that is not on the disk is just boot code.
    let counts = |entry: &Entry| entry.sys != 0 || is_on_disk(entry) && !disk.lacks_much(entry.start, entry.count);
    let is_table = has_flags && !sector.starts_with(&AIX) && used.any(counts);
    Ok(if is_table { FirstSector::Mbr(Box::new(sector)) } else { nothing })
}

/// Reads primary and logical partitions of the disk that starts with `sector`.
pub(super) fn read(disk: &mut Disk<'_, impl Read + Seek>, sector: &[u8; 512]) -> Result<Table, TableError> {
    let mut table = Table {
        kind: TableKind::Mbr,
        disk_id: format!("{:08x}", u32::from_le_bytes([sector[440], sector[441], sector[442], sector[443]])),
        ..Table::empty(u32::try_from(disk.sector_size).unwrap_or(0))
    };
    let entries = Entry::all(sector);
    for (number, entry) in (1..).zip(&entries).filter(|(_, entry)| entry.count > 0) {
        take(disk, &mut table, number, entry.start, entry)?;
    }
    if let Some(on_table) = table.partitions.iter().find(|partition| partition.start < disk.sector_size) {
        let warning = format!("partition {} lies on top of the partition table", on_table.number);
        table.warn(warning);
    }
    let first = table.partitions.iter().map(|partition| partition.start).min();
    table.own.push(DiskRange::new(0..disk.sector_size));
    table.keep_gap(0, first.unwrap_or(GAP_HEAD_LEN.min(disk.len)));

    let starts = entries.iter().filter(|entry| entry.count > 0).map(|entry| entry.start).collect();
    let mut logical = Logical { table, next: 5, starts, gaps: Vec::new() };
    for entry in entries.iter().filter(|entry| entry.count > 0 && entry.is_extended()) {
        logical.follow(disk, entry)?;
    }
    let mut table = logical.table;
    table.warn_of_overlaps();
    // The space between a record and the next partition: some boot loaders install themselves there.
    let mut starts: Vec<u64> = table.partitions.iter().filter(|p| !p.is_extended).map(|p| p.start).collect();
    starts.sort_unstable();
    for from in logical.gaps {
        if let Some(&until) = starts.get(starts.partition_point(|&start| start < from)) {
            table.keep_gap(from, until);
        }
    }
    Ok(table)
}

/// Adds a partition, wherever it lies. If no type marks an entry as intended, it is ignored when it extends past the
/// disk.
fn take(
    disk: &Disk<'_, impl Read + Seek>,
    table: &mut Table,
    number: u32,
    lba: u64,
    entry: &Entry,
) -> Result<(), TableError> {
    let partition = Partition {
        number,
        type_id: format!("{:02x}", entry.sys),
        type_name: names::mbr_type(entry.sys),
        attributes: u64::from(entry.flag & 0x80),
        // Logical partitions do not nest: inside the chain these types are links, not partitions.
        is_extended: number <= 4 && entry.is_extended(),
        ..Partition::default()
    };
    match table.take(disk, partition, lba, entry.count) {
        Err(TableError::PastEnd { .. }) if entry.sys == 0 => {
            table.warn(format!("partition {number} has no type and leaves the disk, it is left out"));
            Ok(())
        }
        result => result,
    }
}

/// Logical partitions found so far.
struct Logical {
    table: Table,
    /// Number of the next one.
    next: u32,
    /// First sectors of all partitions so far, including those that were left out.
    starts: BTreeSet<u64>,
    /// Where the records that describe a partition are, in bytes.
    gaps: Vec<u64>,
}

impl Logical {
    /// Follows the chain of extended boot records inside `container`. Each describes partitions, relative to itself,
    /// and the next record, relative to the container. Most have one partition before the link, but DR-DOS put the link
    /// first, and OS/2 used all four entries.
    fn follow(&mut self, disk: &mut Disk<'_, impl Read + Seek>, container: &Entry) -> Result<(), TableError> {
        let (base, end) = (container.start, container.start + container.count);
        let (mut lba, mut len) = (base, container.count);
        let mut empty = 0;
        let mut visited = BTreeSet::from([0]);
        loop {
            let is_first = lba == base && visited.len() == 1;
            if !visited.insert(lba) {
                return self.stop(lba, "it is linked twice");
            }
            empty += 1;
            if empty > EMPTY_MAX {
                return self.stop(lba, "there are too many records without a partition");
            }
            let Some(record) = disk.sector_head(lba)? else {
                return if is_first { Ok(()) } else { self.stop(lba, "it is past the end of the disk") };
            };
            self.table.own.push(DiskRange::new(lba * disk.sector_size..(lba + 1) * disk.sector_size));
            if !has_signature(&record) {
                // An extended partition that was never used has no record.
                return if is_first { Ok(()) } else { self.stop(lba, "there is no boot record") };
            }
            let entries = Entry::all(&record);
            for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.is_data()) {
                let start = lba + entry.start;
                // Leftovers of a sector's earlier use in the last two entries are usually out of bounds.
                let is_garbage = entry.start + entry.count > len || start + entry.count > end;
                if index >= 2 && is_garbage || !self.starts.insert(start) {
                    continue;
                }
                if usize::try_from(self.next).is_ok_and(|number| number > PARTITIONS_MAX) {
                    return self.stop(lba, "there are too many partitions");
                }
                take(disk, &mut self.table, self.next, start, entry)?;
                self.next += 1;
                if empty > 0 {
                    self.gaps.push(lba * disk.sector_size);
                    empty = 0;
                }
            }
            let Some(link) = entries.iter().find(|entry| entry.count > 0 && entry.is_extended()) else {
                return Ok(());
            };
            (lba, len) = (base + link.start, link.count);
        }
    }

    fn stop(&mut self, lba: u64, why: &str) -> Result<(), TableError> {
        self.table.warn(format!("the chain of logical partitions ends before the record at sector {lba}: {why}"));
        Ok(())
    }
}

/// One entry of a boot record; its sectors have the disk's sector size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) flag: u8,
    pub(super) sys: u8,
    pub(super) start: u64,
    pub(super) count: u64,
}

impl Entry {
    /// ```text
    /// 0: flag   1..4: CHS   4: type   5..8: CHS   8..12: start   12..16: count, both little-endian
    /// ```
    fn read(sector: &[u8; 512], at: usize) -> Entry {
        let number = |at: usize| -> u64 {
            let bytes = [sector[at], sector[at + 1], sector[at + 2], sector[at + 3]];
            u64::from(u32::from_le_bytes(bytes))
        };
        Entry { flag: sector[at], sys: sector[at + 4], start: number(at + 8), count: number(at + 12) }
    }

    pub(super) fn all(sector: &[u8; 512]) -> [Entry; 4] {
        ENTRIES_AT.map(|at| Entry::read(sector, at))
    }

    fn is_extended(&self) -> bool {
        matches!(self.sys, 0x05 | 0x0f | 0x85)
    }

    /// Whether it is a partition and not a link, if it is in an extended boot record.
    fn is_data(&self) -> bool {
        self.count > 0 && !self.is_extended()
    }
}

fn has_signature(sector: &[u8; 512]) -> bool {
    sector[510..] == SIGNATURE
}

/// FAT, exFAT and NTFS begin with a sector that ends in the same signature as an MBR.
fn is_boot_sector_of_file_system(sector: &[u8; 512]) -> bool {
    let is_jump = matches!(sector[0], 0xeb | 0xe9);
    let has = |at: usize, text: &[u8]| sector[at..].starts_with(text);
    is_jump
        && (has(3, b"NTFS    ")
            || has(3, b"EXFAT   ")
            || has(54, b"FAT")
            || has(82, b"FAT32   ")
            || has(3, b"-FVE-FS-"))
}

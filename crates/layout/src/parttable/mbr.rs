//! The master boot record and the chain of extended boot records behind it.

use std::io::{Cursor, Read, Seek};

use mbrman::{MBRHeader, MBRPartitionEntry};

use super::{Disk, GAP_HEAD_LEN, Partition, Table, TableError, TableKind, check_disjoint, names};

/// Most logical partitions followed. The kernel stops at 255 partitions; a longer chain is damage.
const LOGICAL_MAX: usize = 256;
/// Type byte of the entry that says "the table is a GPT".
const PROTECTIVE: u8 = 0xee;
/// Where an extended boot record keeps its two entries: its own partition, and the link to the next record.
const EBR_ENTRIES: [usize; 2] = [446, 462];

/// What the first sector of a disk is.
pub(super) enum FirstSector {
    /// A GPT follows (alone, or as a hybrid beside other entries).
    Protective,
    /// A partition table.
    Mbr(Box<MBRHeader>),
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
    // It fails on a wrong signature and on boot flags other than 0 and 0x80, which also tells boot code from entries.
    let Ok(header) = MBRHeader::read_from(&mut Cursor::new(sector)) else { return Ok(nothing) };
    let used: Vec<&MBRPartitionEntry> =
        header.iter().map(|(_, entry)| entry).filter(|entry| entry.is_used() && entry.sectors > 0).collect();
    // Tools that format a whole disk may leave an entry that covers it from sector 0, boot sector included.
    let is_plausible =
        |entry: &&MBRPartitionEntry| entry.starting_lba > 0 && u64::from(entry.starting_lba) < disk.sectors();
    if used.is_empty() || (is_file_system && !used.iter().all(is_plausible)) {
        Ok(nothing)
    } else if used.iter().any(|entry| entry.sys == PROTECTIVE) {
        Ok(FirstSector::Protective)
    } else {
        Ok(FirstSector::Mbr(Box::new(header)))
    }
}

/// Reads primary and logical partitions.
pub(super) fn read(disk: &mut Disk<'_, impl Read + Seek>, header: &MBRHeader) -> Result<Table, TableError> {
    let mut table = Table {
        kind: TableKind::Mbr,
        disk_id: format!("{:08x}", u32::from_le_bytes(header.disk_signature)),
        ..Table::empty(u32::try_from(disk.sector_size).unwrap_or(0))
    };
    for (number, entry) in (1..).zip(header.iter().map(|(_, entry)| entry)) {
        if entry.is_used() && entry.sectors > 0 {
            let lba = u64::from(entry.starting_lba);
            table.partitions.push(partition(disk, number, lba, u64::from(entry.sectors), entry.sys, entry.boot)?);
        }
    }
    check_disjoint(&table.partitions.iter().collect::<Vec<_>>())?;
    if let Some(on_table) = table.partitions.iter().find(|partition| partition.start < disk.sector_size) {
        return Err(TableError::OnTable(on_table.number));
    }
    let first = table.partitions.iter().map(|partition| partition.start).min();
    table.own.push(0..disk.sector_size);
    table.keep_gap(0, first.unwrap_or(GAP_HEAD_LEN.min(disk.len)));

    let extended: Vec<Partition> = table.partitions.iter().filter(|partition| partition.is_extended).cloned().collect();
    for container in extended {
        read_logical(disk, &container, &mut table)?;
    }
    let logical: Vec<&Partition> = table.partitions.iter().filter(|partition| partition.number > 4).collect();
    check_disjoint(&logical)?;
    Ok(table)
}

/// Follows the chain of extended boot records inside `container`: each describes one logical partition, relative to
/// itself, and the next record, relative to the container.
fn read_logical(
    disk: &mut Disk<'_, impl Read + Seek>,
    container: &Partition,
    table: &mut Table,
) -> Result<(), TableError> {
    let base = container.start / disk.sector_size;
    let inside = base..container.range().end / disk.sector_size;
    let mut lba = base;
    for _ in 0..LOGICAL_MAX {
        let damaged = |problem| TableError::Chain { lba, problem };
        table.own.push(lba * disk.sector_size..(lba + 1) * disk.sector_size);
        let record = disk.sector_head(lba)?.ok_or_else(|| damaged("it is past the end of the disk"))?;
        if record[510..] != [0x55, 0xaa] {
            // An extended partition that was never used has no record at all.
            return if lba == base { Ok(()) } else { Err(damaged("there is no boot record")) };
        }
        let [own, next] = EBR_ENTRIES.map(|at| Entry::read(&record, at));
        if own.sys != 0 && own.sectors > 0 {
            // A number is given here even where a damaged primary table has none left: 5 and up.
            let logical = table.partitions.iter().filter(|partition| partition.number > 4).count();
            let number = u32::try_from(logical + 5).expect("at most LOGICAL_MAX a container");
            let start = lba + own.start;
            let logical = partition(disk, number, start, own.sectors, own.sys, own.boot)?;
            if own.start == 0 || start + own.sectors > inside.end {
                return Err(damaged("its partition is outside of the extended one"));
            }
            table.keep_gap(lba * disk.sector_size, logical.start);
            table.partitions.push(logical);
        }
        if next.sys == 0 || next.sectors == 0 {
            return Ok(());
        }
        let next = base + next.start;
        if next <= lba {
            return Err(damaged("its link goes back"));
        }
        if !inside.contains(&next) {
            return Err(damaged("its link leaves the extended partition"));
        }
        lba = next;
    }
    Err(TableError::Chain { lba, problem: "it does not end" })
}

/// One entry of an extended boot record.
struct Entry {
    boot: u8,
    sys: u8,
    start: u64,
    sectors: u64,
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
        Entry { boot: sector[at], sys: sector[at + 4], start: number(at + 8), sectors: number(at + 12) }
    }
}

fn partition(
    disk: &Disk<'_, impl Read + Seek>,
    number: u32,
    lba: u64,
    sectors: u64,
    sys: u8,
    boot: u8,
) -> Result<Partition, TableError> {
    let range = disk.partition_bytes(number, lba, sectors)?;
    Ok(Partition {
        number,
        start: range.start,
        len: range.end - range.start,
        type_id: format!("{sys:02x}"),
        type_name: names::mbr_type(sys),
        attributes: u64::from(boot & 0x80),
        // Logical partitions do not nest: inside the chain these types are links, not partitions.
        is_extended: number <= 4 && matches!(sys, 0x05 | 0x0f | 0x85),
        ..Partition::default()
    })
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

//! The GUID partition table (UEFI 2.10, section 5.3), primary and backup.

use std::io::{Cursor, Read, Seek};
use std::ops::Range;

use gptman::{GPTHeader, GPTPartitionEntry};

use super::{Disk, GAP_HEAD_LEN, Partition, Table, TableError, TableKind, check_disjoint, names};

/// Most entries a table may have. The usual number is 128, and the kernel names at most 256 partitions of a disk.
pub(super) const ENTRIES_MAX: u32 = 1024;
/// Length of an entry in bytes. Others are allowed by the standard and made by nobody.
pub(super) const ENTRY_LEN: u32 = 128;

/// Whether a GPT header is where the first one belongs.
pub(super) fn has_primary(disk: &mut Disk<'_, impl Read + Seek>) -> Result<bool, TableError> {
    Ok(disk.sector_head(1)?.is_some_and(|sector| sector.starts_with(b"EFI PART")))
}

/// Reads the table of a disk whose first sector is a protective MBR.
pub(super) fn read(disk: &mut Disk<'_, impl Read + Seek>) -> Result<Table, TableError> {
    let last = disk.sectors().saturating_sub(1);
    let (header, entries) = match read_one(disk, 1)? {
        Ok(good) => good,
        Err(source) if last > 1 && read_one(disk, last)?.is_ok() => return Err(TableError::PrimaryDamaged(source)),
        Err(source) => {
            return Err(TableError::NoGpt { sector_size: u32::try_from(disk.sector_size).unwrap_or(0), source });
        }
    };
    if header.primary_lba != 1 {
        return Err(TableError::GptHeader(format!("it says that it is at sector {}, not 1", header.primary_lba)));
    }

    let mut table = Table {
        kind: TableKind::Gpt,
        disk_id: names::guid(&header.disk_guid),
        ..Table::empty(u32::try_from(disk.sector_size).unwrap_or(0))
    };
    // Header and entries are on the disk, or reading them had failed.
    let own = table_sectors(disk, &header).into_iter().flatten().collect::<Vec<_>>();
    table.own.extend([0..disk.sector_size.min(disk.len), disk.sector_size..2 * disk.sector_size]);
    table.own.extend(own);
    keep_backup(disk, &header, &entries, &mut table)?;

    for (index, entry) in (1..).zip(&entries) {
        if entry.is_used() {
            table.partitions.push(partition(disk, index, entry)?);
        }
    }
    check_disjoint(&table.partitions.iter().collect::<Vec<_>>())?;
    for partition in &table.partitions {
        let range = partition.range();
        if table.own.iter().any(|own| own.start < range.end && range.start < own.end) {
            return Err(TableError::OnTable(partition.number));
        }
    }
    let first = table.partitions.iter().map(|partition| partition.start).min();
    table.keep_gap(0, first.unwrap_or(GAP_HEAD_LEN.min(disk.len)));
    Ok(table)
}

type OneTable = (GPTHeader, Vec<GPTPartitionEntry>);

/// One header and its entries, both checksums checked; the inner error is why it is not good (`None`: it is not on
/// the disk or its numbers make no sense), the outer one that the disk could not be read.
fn read_one(
    disk: &mut Disk<'_, impl Read + Seek>,
    lba: u64,
) -> Result<Result<OneTable, Option<gptman::Error>>, TableError> {
    let Some(sector) = disk.sector_head(lba)? else { return Ok(Err(None)) };
    let header = match GPTHeader::read_from(&mut Cursor::new(sector)) {
        Ok(header) => header,
        Err(error) => return Ok(Err(Some(error))),
    };
    // The crate believes these numbers and panics if entries have another length, so they are checked first.
    let is_sane = header.size_of_partition_entry == ENTRY_LEN
        && (1..=ENTRIES_MAX).contains(&header.number_of_partition_entries)
        && entry_sectors(disk, &header).is_some();
    if !is_sane {
        return Ok(Err(None));
    }
    match header.read_partitions(disk.inner, disk.sector_size) {
        Ok(entries) => Ok(Ok((header, entries))),
        Err(gptman::Error::Io(source)) => {
            Err(TableError::Read { at: header.partition_entry_lba * disk.sector_size, source })
        }
        Err(error) => Ok(Err(Some(error))),
    }
}

/// The bytes of the entries that `header` names, if they are on the disk.
fn entry_sectors(disk: &Disk<'_, impl Read + Seek>, header: &GPTHeader) -> Option<Range<u64>> {
    let len = u64::from(header.number_of_partition_entries) * u64::from(ENTRY_LEN);
    disk.bytes_of(header.partition_entry_lba, len.div_ceil(disk.sector_size))
}

/// The bytes of the header and of its entries.
fn table_sectors(disk: &Disk<'_, impl Read + Seek>, header: &GPTHeader) -> [Option<Range<u64>>; 2] {
    [disk.bytes_of(header.primary_lba, 1), entry_sectors(disk, header)]
}

/// Adds the copy at the end to what is kept, and warns where it is not what it should be. A bad copy does not stop a
/// capture: everything reads the first table.
fn keep_backup(
    disk: &mut Disk<'_, impl Read + Seek>,
    header: &GPTHeader,
    entries: &[GPTPartitionEntry],
    table: &mut Table,
) -> Result<(), TableError> {
    // A place that cannot be read has no good copy either.
    let backup = if header.backup_lba > 1 { read_one(disk, header.backup_lba).ok().and_then(Result::ok) } else { None };
    match backup {
        Some((copy, copied)) if copy.primary_lba == header.backup_lba => {
            table.own.extend(table_sectors(disk, &copy).into_iter().flatten());
            if copied != entries {
                table.warnings.push("the backup GPT differs from the first one; both are kept as they are".into());
            }
            if header.backup_lba + 1 != disk.sectors() {
                let why = "the backup GPT is not at the end of the disk (it grew?); `sgdisk -e` moves it";
                table.warnings.push(why.into());
            }
        }
        _ => table.warnings.push("the backup GPT is missing or damaged; `sgdisk -e` writes a new one".into()),
    }
    Ok(())
}

fn partition(
    disk: &Disk<'_, impl Read + Seek>,
    number: u32,
    entry: &GPTPartitionEntry,
) -> Result<Partition, TableError> {
    let last = entry.ending_lba.checked_sub(entry.starting_lba).ok_or(TableError::Length(number))?;
    let range = disk.partition_bytes(number, entry.starting_lba, last.saturating_add(1))?;
    let type_id = names::guid(&entry.partition_type_guid);
    Ok(Partition {
        number,
        start: range.start,
        len: range.end - range.start,
        type_name: names::gpt_type(&type_id),
        type_id,
        name: entry.partition_name.as_str().to_owned(),
        guid: names::guid(&entry.unique_partition_guid),
        attributes: entry.attribute_bits,
        is_extended: false,
    })
}

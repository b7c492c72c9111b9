//! GPT: header, one entry, the backup, and the protective MBR.

use std::ops::Range;

use gptman::{GPTHeader, GPTPartitionEntry};

use super::super::gpt::{ENTRIES_MAX, ENTRY_LEN};
use super::super::{Table, TableError, TableKind};
use super::{ALIGN, AdaptError, Adapted, Job, Sparse, check, len_of, put, u32_at};

/// Length in bytes of what a header's checksum covers; gptman takes no other.
const HEADER_LEN: usize = 92;
/// [`ENTRY_LEN`] for indexing.
const ENTRY_SIZE: usize = 128;
/// Where an entry keeps its last sector.
const ENTRY_END_AT: usize = 40;
/// Type byte of the MBR entry that stands for a GPT.
const PROTECTIVE: u8 = 0xee;

pub(super) fn adapt(job: &Job<'_>) -> Result<Adapted, AdaptError> {
    let Primary { mut header, mut entries, array } = primary(job)?;
    let table = Table::read(&mut Sparse::new(vec![(0, job.head)], job.from_len), job.from_len, job.sector_size)?;
    if table.kind != TableKind::Gpt {
        return Err(AdaptError::Kind { expected: TableKind::Gpt.as_str(), found: table.kind.as_str() });
    }
    if header.first_usable_lba > header.last_usable_lba {
        let why = "its first usable sector is behind its last one";
        return Err(TableError::GptHeader(why.to_owned()).into());
    }

    let sector_len = job.sector_len();
    let entry_sectors = u64::from(header.number_of_partition_entries) * u64::from(ENTRY_LEN);
    let entry_sectors = entry_sectors.div_ceil(sector_len);
    let lowest = job.end_of_partitions(&table).div_ceil(sector_len).max(header.first_usable_lba.saturating_add(1)) - 1;
    let too_small = || AdaptError::TooSmall {
        needed: lowest.saturating_add(entry_sectors + 2).saturating_mul(sector_len).max(len_of(job.head)),
        device: job.to_len,
    };
    let ends = Ends::of(job, &header, entry_sectors, lowest).ok_or_else(too_small)?;
    let tail_at = (ends.backup_lba - entry_sectors) * sector_len;
    if tail_at < len_of(job.head) {
        return Err(too_small());
    }

    let mut made = job.unchanged();
    if header.backup_lba != ends.backup_lba {
        made.stale = stale(job, &header, entry_sectors, &table);
    }
    header.backup_lba = ends.backup_lba;
    header.last_usable_lba = ends.last_usable_lba;
    if let Some(id) = job.disk_id {
        made.original.disk_id = Some(header.disk_guid);
        header.disk_guid = id;
    }
    made.grown = job.resized(&table, (ends.last_usable_lba + 1) * sector_len, u64::MAX)?;
    if let Some(grown) = &made.grown {
        let index = usize::try_from(grown.number - 1).expect("at most ENTRIES_MAX");
        entries[index].ending_lba = (grown.start + grown.new_len) / sector_len - 1;
        let at = array.start + index * ENTRY_SIZE + ENTRY_END_AT;
        put(&mut made.head, at, &entries[index].ending_lba.to_le_bytes());
        made.original.grown = Some((grown.number, grown.old_len));
    }
    header.update_partition_entry_array_crc32(&entries);
    header.update_crc32_checksum();
    put(&mut made.head, usize::try_from(sector_len).expect("at most 4096"), &bytes_of(&header));
    if job.sectors_before() != job.sectors_after() {
        protect(&mut made.head, job.sectors_before(), job.sectors_after());
    }
    if made.head == job.head && job.sectors_before() == job.sectors_after() {
        return Ok(job.unchanged());
    }

    let mut tail = made.head[array].to_vec();
    tail.resize(usize::try_from((entry_sectors + 1) * sector_len).expect("at most ENTRIES_MAX"), 0);
    let header_at = tail.len() - usize::try_from(sector_len).expect("at most 4096");
    header.primary_lba = ends.backup_lba;
    header.backup_lba = 1;
    header.partition_entry_lba = ends.backup_lba - entry_sectors;
    header.update_crc32_checksum();
    put(&mut tail, header_at, &bytes_of(&header));
    let parts = vec![(0, made.head.as_slice()), (tail_at, tail.as_slice())];
    let after = Table::read(&mut Sparse::new(parts, job.to_len), job.to_len, job.sector_size);
    check(&table, made.grown.as_ref(), after)?;
    made.tail = Some((tail_at, tail));
    Ok(made)
}

/// The table at the start of the disk.
struct Primary {
    header: GPTHeader,
    entries: Vec<GPTPartitionEntry>,
    /// Where the entries are in the head.
    array: Range<usize>,
}

/// Reads header and entries as far as needed to change them; whether they make sense [`Table::read`] decides, and its
/// word comes first where there is no header at all.
fn primary(job: &Job<'_>) -> Result<Primary, AdaptError> {
    let mut disk = Sparse::new(vec![(0, job.head)], job.from_len);
    let refused = |disk: &mut Sparse<'_>, found| match Table::read(disk, job.from_len, job.sector_size) {
        Err(error) => AdaptError::Table(error),
        Ok(table) if table.kind == TableKind::Gpt => AdaptError::Table(TableError::GptHeader(found)),
        Ok(table) => AdaptError::Kind { expected: TableKind::Gpt.as_str(), found: table.kind.as_str() },
    };
    let sector_len = usize::try_from(job.sector_len()).expect("at most 4096");
    let sector = job.head.get(sector_len..2 * sector_len).unwrap_or(&[]);
    let header = match GPTHeader::read_from(&mut std::io::Cursor::new(sector)) {
        Ok(header) => header,
        Err(error) => return Err(refused(&mut disk, error.to_string())),
    };
    // gptman believes these numbers, so they are bounded first.
    let is_sane = header.size_of_partition_entry == ENTRY_LEN
        && (1..=ENTRIES_MAX).contains(&header.number_of_partition_entries)
        && header.partition_entry_lba > 1;
    if !is_sane {
        return Err(refused(&mut disk, "number, length or place of its entries make no sense".to_owned()));
    }
    let start = header.partition_entry_lba.saturating_mul(job.sector_len());
    let end = start.saturating_add(u64::from(header.number_of_partition_entries) * u64::from(ENTRY_LEN));
    let head_len = len_of(job.head);
    let array = match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if end <= job.head.len() => start..end,
        _ => return Err(AdaptError::EntriesOutside { start, end, head_len }),
    };
    let entries = header.read_partitions(&mut disk, job.sector_len()).map_err(AdaptError::EntriesChecksum)?;
    Ok(Primary { header, entries, array })
}

/// What a header says about the end of its disk.
struct Ends {
    backup_lba: u64,
    last_usable_lba: u64,
}

impl Ends {
    /// `None` if the disk ends too early: `lowest` is the first sector that may be the last usable one.
    fn of(job: &Job<'_>, header: &GPTHeader, entry_sectors: u64, lowest: u64) -> Option<Ends> {
        let backup_lba = job.sectors_after().checked_sub(1)?;
        // Backup header and entries lie behind the usable space.
        let nearest = entry_sectors + 1;
        let highest = backup_lba.checked_sub(nearest).filter(|&lba| lba >= lowest)?;
        let fits = |lba: &u64| (lowest..=highest).contains(lba);
        let last_usable_lba = if header.backup_lba == backup_lba {
            Some(header.last_usable_lba)
        } else {
            // Keeping the distance is what makes the way back exact, whatever the tool's taste. A large one is no
            // taste, but a table that was never told how large its disk is.
            let distance = header.backup_lba.checked_sub(header.last_usable_lba);
            let distance = distance.filter(|&sectors| sectors <= nearest + ALIGN / job.sector_len());
            distance.and_then(|sectors| backup_lba.checked_sub(sectors))
        };
        Some(Ends { backup_lba, last_usable_lba: last_usable_lba.filter(fits).unwrap_or(highest) })
    }
}

/// The bytes of the backup that `header` names, if they are nobody's else: a header may name anything.
fn stale(job: &Job<'_>, header: &GPTHeader, entry_sectors: u64, table: &Table) -> Option<Range<u64>> {
    let start = header.backup_lba.checked_sub(entry_sectors)?.checked_mul(job.sector_len())?;
    let end = header.backup_lba.checked_add(1)?.checked_mul(job.sector_len())?;
    let is_free = table.partitions.iter().all(|partition| end <= partition.start || partition.range().end <= start);
    (is_free && start >= len_of(job.head) && end <= job.from_len).then_some(start..end)
}

/// A header as it is on the disk (UEFI 2.10, table 5-5).
pub(super) fn bytes_of(header: &GPTHeader) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    let mut at = 0;
    let mut push = |field: &[u8]| {
        put(&mut bytes, at, field);
        at += field.len();
    };
    push(&header.signature);
    push(&header.revision);
    push(&header.header_size.to_le_bytes());
    push(&header.crc32_checksum.to_le_bytes());
    push(&header.reserved);
    push(&header.primary_lba.to_le_bytes());
    push(&header.backup_lba.to_le_bytes());
    push(&header.first_usable_lba.to_le_bytes());
    push(&header.last_usable_lba.to_le_bytes());
    push(&header.disk_guid);
    push(&header.partition_entry_lba.to_le_bytes());
    push(&header.number_of_partition_entries.to_le_bytes());
    push(&header.size_of_partition_entry.to_le_bytes());
    push(&header.partition_entry_array_crc32.to_le_bytes());
    bytes
}

/// Makes the protective entry cover the new disk if it covered the old one. A hybrid's entry that ends before the
/// partitions beside it stays, and so does the CHS address of its end: nothing reads that, and it could not be told
/// back.
fn protect(head: &mut [u8], from_sectors: u64, to_sectors: u64) {
    let is_used = |head: &[u8], at: usize| head[at + 4] != 0 && u32_at(head, at + 12) > 0;
    let places = [446, 462, 478, 494];
    let is_alone = places.iter().filter(|&&at| is_used(head, at)).count() == 1;
    for at in places {
        if head[at + 4] != PROTECTIVE {
            continue;
        }
        let start = u64::from(u32_at(head, at + 8));
        let count = u32_at(head, at + 12);
        let whole = |sectors: u64| sectors.checked_sub(start).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let covers_disk = if is_alone { start == 1 } else { start + u64::from(count) == from_sectors };
        // Windows always writes the largest number.
        let covers_any = count == u32::MAX && whole(from_sectors) != Some(u32::MAX);
        if let Some(count) = whole(to_sectors)
            && covers_disk
            && !covers_any
        {
            put(head, at + 12, &count.to_le_bytes());
        }
    }
}

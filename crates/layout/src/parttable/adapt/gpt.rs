//! GPT: header, one entry, the backup, and the protective MBR.

use std::ops::Range;

use super::super::crc32::crc32;
use super::super::gpt::{ENTRY_LEN, ENTRY_SIZE, Header};
use super::super::mbr::{ENTRIES_AT, PROTECTIVE};
use super::super::table::{Table, TableError};
use super::job::{ALIGN, AdaptError, Adapted, Job, Sparse, check, len_of, put, u32_at};
use crate::{DiskOffset, DiskRange};
use metainfo::TableKind;

/// Where an entry keeps its last sector.
const ENTRY_END_AT: usize = 40;

pub(super) fn adapt(job: &Job<'_>) -> Result<Adapted, AdaptError> {
    let Primary { mut header, array } = primary(job)?;
    let table = Table::read(&mut Sparse::new(vec![(0, job.head)], job.from_len), job.from_len, job.sector_size)?;
    if table.kind != TableKind::Gpt {
        return Err(AdaptError::Kind { expected: TableKind::Gpt.as_str(), found: table.kind.as_str() });
    }
    if header.first_usable_lba() > header.last_usable_lba() {
        let why = "its first usable sector is behind its last one";
        return Err(TableError::GptHeader(why.to_owned()).into());
    }

    let sector_len = job.sector_len();
    let entry_sectors = u64::from(header.entry_count()) * u64::from(ENTRY_LEN);
    let entry_sectors = entry_sectors.div_ceil(sector_len);
    // All of a partition that was cut off has to fit: Linux does not show a partition that ends after the usable space.
    let lowest = job.end_of_partitions(&table, |partition| partition.full_len()).div_ceil(sector_len);
    let lowest = lowest.max(header.first_usable_lba().saturating_add(1)) - 1;
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
    if header.alternate_lba() != ends.backup_lba {
        made.stale = stale(job, &header, entry_sectors, &table);
    }
    let entries_lba = header.entries_lba();
    header.set_places(1, ends.backup_lba, entries_lba);
    header.set_last_usable_lba(ends.last_usable_lba);
    if let Some(id) = &job.disk_id {
        made.original.disk_id = Some(header.disk_guid());
        header.set_disk_guid(id);
    }
    made.grown = job.resized(&table, (ends.last_usable_lba + 1) * sector_len, u64::MAX)?;
    if let Some(grown) = &made.grown {
        let index = usize::try_from(grown.number - 1).expect("at most ENTRIES_MAX");
        let at = array.start + index * ENTRY_SIZE + ENTRY_END_AT;
        put(&mut made.head, at, &((grown.start + grown.new_len) / sector_len - 1).to_le_bytes());
        made.original.grown = Some((grown.number, grown.old_len));
    }
    header.set_entries_checksum(&made.head[array.clone()]);
    header.seal();
    put(&mut made.head, usize::try_from(sector_len).expect("at most 4096"), header.bytes());
    if job.sectors_before() != job.sectors_after() {
        protect(&mut made.head, job.sectors_before(), job.sectors_after());
    }
    if made.head == job.head && job.sectors_before() == job.sectors_after() {
        return Ok(job.unchanged());
    }

    let tail = tail(job, header, ends.backup_lba, &made.head[array]);
    let parts = vec![(0, made.head.as_slice()), (tail_at, tail.as_slice())];
    let after = Table::read(&mut Sparse::new(parts, job.to_len), job.to_len, job.sector_size);
    check(job, &table, made.grown.as_ref(), after)?;
    made.tail = Some((DiskOffset(tail_at), tail));
    Ok(made)
}

/// The table at the start of the disk.
struct Primary {
    header: Header,
    /// Where the entries are in the head.
    array: Range<usize>,
}

/// Reads header and entries as far as needed to change them. [`Table::read`] decides whether they make sense, and its
/// error comes first if there is no header at all.
fn primary(job: &Job<'_>) -> Result<Primary, AdaptError> {
    let mut disk = Sparse::new(vec![(0, job.head)], job.from_len);
    let mut refused = |found: String| match Table::read(&mut disk, job.from_len, job.sector_size) {
        Err(error) => AdaptError::Table(error),
        Ok(table) if table.kind == TableKind::Gpt => AdaptError::Table(TableError::GptHeader(found)),
        Ok(table) => AdaptError::Kind { expected: TableKind::Gpt.as_str(), found: table.kind.as_str() },
    };
    let sector_len = usize::try_from(job.sector_len()).expect("at most 4096");
    let sector = job.head.get(sector_len..2 * sector_len).unwrap_or(&[]);
    let (header, len) = match Header::parse(sector.to_vec()).and_then(|h| h.array_len().map(|len| (h, len))) {
        Ok(good) => good,
        Err(fault) => return Err(refused(fault.to_string())),
    };
    if header.entries_lba() < 2 {
        return Err(refused("its entries lie on top of the header".to_owned()));
    }
    let start = header.entries_lba().saturating_mul(job.sector_len());
    let end = start.saturating_add(len);
    let head_len = len_of(job.head);
    let array = match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if end <= job.head.len() => start..end,
        _ => return Err(AdaptError::EntriesOutside { start, end, head_len }),
    };
    if crc32(&[&job.head[array.clone()]]) != header.entries_checksum() {
        return Err(AdaptError::EntriesChecksum);
    }
    Ok(Primary { header, array })
}

/// The backup at the end of the disk: the entries, then the header in the last sector.
fn tail(job: &Job<'_>, mut header: Header, backup_lba: u64, entries: &[u8]) -> Vec<u8> {
    let sector_len = usize::try_from(job.sector_len()).expect("at most 4096");
    let mut tail = entries.to_vec();
    tail.resize(entries.len().next_multiple_of(sector_len) + sector_len, 0);
    let header_at = tail.len() - sector_len;
    let entry_sectors = len_of(&tail[..header_at]) / job.sector_len();
    header.set_places(backup_lba, 1, backup_lba - entry_sectors);
    header.seal();
    put(&mut tail, header_at, header.bytes());
    tail
}

/// What a header says about the end of its disk.
struct Ends {
    backup_lba: u64,
    last_usable_lba: u64,
}

impl Ends {
    /// `None` if the disk ends too early: `lowest` is the first sector that may be the last usable one.
    fn of(job: &Job<'_>, header: &Header, entry_sectors: u64, lowest: u64) -> Option<Ends> {
        let backup_lba = job.sectors_after().checked_sub(1)?;
        // Backup header and entries lie after the usable space.
        let nearest = entry_sectors + 1;
        let highest = backup_lba.checked_sub(nearest).filter(|&lba| lba >= lowest)?;
        let fits = |lba: &u64| (lowest..=highest).contains(lba);
        let last_usable_lba = if header.alternate_lba() == backup_lba {
            Some(header.last_usable_lba())
        } else {
            // Keeping the distance makes the way back exact, whatever distance the tool prefers. A large distance is no
            // preference: that table does not know how large its disk is.
            let distance = header.alternate_lba().checked_sub(header.last_usable_lba());
            let distance = distance.filter(|&sectors| sectors <= nearest + ALIGN / job.sector_len());
            distance.and_then(|sectors| backup_lba.checked_sub(sectors))
        };
        Some(Ends { backup_lba, last_usable_lba: last_usable_lba.filter(fits).unwrap_or(highest) })
    }
}

/// The bytes of the backup that `header` names, if nothing else uses them: a header may name anything.
fn stale(job: &Job<'_>, header: &Header, entry_sectors: u64, table: &Table) -> Option<DiskRange> {
    let start = header.alternate_lba().checked_sub(entry_sectors)?.checked_mul(job.sector_len())?;
    let end = header.alternate_lba().checked_add(1)?.checked_mul(job.sector_len())?;
    let is_free = table.partitions.iter().all(|partition| end <= partition.start || partition.range().end.0 <= start);
    (is_free && start >= len_of(job.head) && end <= job.from_len).then_some(DiskRange::new(start..end))
}

/// Makes the protective entry cover the new disk if it covered the old one. A hybrid's entry that ends before the
/// partitions beside it stays. The CHS address of its end stays too: no program reads it, and it could not be restored.
fn protect(head: &mut [u8], from_sectors: u64, to_sectors: u64) {
    let is_used = |head: &[u8], at: usize| head[at + 4] != 0 && u32_at(head, at + 12) > 0;
    let is_alone = ENTRIES_AT.iter().filter(|&&at| is_used(head, at)).count() == 1;
    for at in ENTRIES_AT {
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

//! MBR: one entry and the disk signature.

use super::super::mbr::{FirstSector, first_sector, read};
use super::super::table::{Disk, MISSING_SHARE, Table};
use super::job::{AdaptError, Adapted, Job, Sparse, check, put};
use metainfo::TableKind;

/// Where the disk signature is.
const SIGNATURE_AT: usize = 440;
/// Where the entries start, and the length of one.
const ENTRIES_AT: usize = 446;
const ENTRY_SIZE: usize = 16;
/// How many sectors of a disk the table can describe: starts and counts have 32 bits. Some systems also add them in 32
/// bits, so going further is not worth the risk.
const SECTORS_MAX: u64 = 1 << 32;

pub(super) fn adapt(job: &Job<'_>) -> Result<Adapted, AdaptError> {
    let table = read_table(job, job.head, job.from_len)?;
    let sector_len = job.sector_len();
    let end = job.sectors_after() * sector_len;
    // Back on the captured disk, a partition may be cut off again.
    let end = if job.is_back { end.saturating_add(job.to_len / MISSING_SHARE) } else { end };
    let needed = job.end_of_partitions(&table, |partition| partition.len);
    if needed > end {
        return Err(AdaptError::TooSmall { needed, device: job.to_len });
    }
    let grown = job.resized(&table, end, SECTORS_MAX * sector_len)?;

    let mut made = Adapted { grown, ..job.unchanged() };
    if let Some(id) = job.disk_id {
        let mut old = [0; 16];
        put(&mut old, 0, &made.head[SIGNATURE_AT..SIGNATURE_AT + 4]);
        made.original.disk_id = Some(old);
        put(&mut made.head, SIGNATURE_AT, &id[..4]);
    }
    if let Some(grown) = &made.grown {
        let at = ENTRIES_AT + usize::try_from(grown.number - 1).expect("1 to 4") * ENTRY_SIZE;
        let last = |len: u64| (grown.start + len) / sector_len - 1;
        let count = u32::try_from(grown.new_len / sector_len).expect("`resized` keeps below SECTORS_MAX");
        put(&mut made.head, at + 12, &count.to_le_bytes());
        // Addresses of another geometry stay: all systems read the sector numbers.
        if made.head[at + 5..at + 8] == chs(last(grown.old_len)) {
            put(&mut made.head, at + 5, &chs(last(grown.new_len)));
        }
        made.original.grown = Some((grown.number, grown.old_len));
    }
    if made.head == job.head {
        return Ok(job.unchanged());
    }
    let after = read_table(job, &made.head, job.to_len).map_err(|error| match error {
        AdaptError::Table(error) => AdaptError::ReadBack(Some(error)),
        other => other,
    })?;
    check(job, &table, made.grown.as_ref(), Ok(after))?;
    Ok(made)
}

/// The primary partitions. Records of logical ones lie elsewhere on the disk, and one that happens to be in the head
/// may link to others, so none is read.
fn read_table(job: &Job<'_>, head: &[u8], disk_len: u64) -> Result<Table, AdaptError> {
    let first = &head[..head.len().min(512)];
    let mut sparse = Sparse::new(vec![(0, first)], disk_len);
    let mut disk = Disk { inner: &mut sparse, len: disk_len, sector_size: job.sector_len() };
    let found = match first_sector(&mut disk)? {
        FirstSector::Mbr(sector) => return Ok(read(&mut disk, &sector)?),
        FirstSector::Protective => TableKind::Gpt,
        FirstSector::FileSystem | FirstSector::Nothing => TableKind::None,
    };
    Err(AdaptError::Kind { expected: TableKind::Mbr.as_str(), found: found.as_str() })
}

/// The address of a sector in the geometry that all tools use, 255 heads and 63 sectors per track. Past its end, the
/// address that marks this.
fn chs(lba: u64) -> [u8; 3] {
    let (cylinder, head, sector) = (lba / (255 * 63), lba / 63 % 255, lba % 63 + 1);
    if cylinder > 1023 {
        return [0xfe, 0xff, 0xff];
    }
    // Bits 8 and 9 of the cylinder are the upper bits of the sector's byte.
    [head, sector | cylinder >> 8 << 6, cylinder & 0xff].map(|part| u8::try_from(part).expect("masked"))
}

//! Describes the contents of a disk as text, for the person who decides which disk may be overwritten.
//!
//! It looks only at signatures, in a bounded number of reads, and trusts nothing: labels are cut short and stripped of
//! characters that a terminal might obey. The text is for people; no decision may depend on it.

mod signatures;

use std::io::{self, Read, Seek, SeekFrom};

use crate::DiskRange;
use crate::parttable::{Partition, Table, TableError, TableKind};

/// Most partitions that are listed. More would push the other disks off the screen.
const PARTITIONS_TOLD: usize = 8;
/// Bytes searched at the start of a disk or partition: the farthest signature is ZFS's, from 128 KiB on.
const HEAD_LEN: u64 = 256 << 10;
/// Bytes searched at the end: the oldest RAID superblock lies up to 128 KiB before it.
const TAIL_LEN: u64 = 128 << 10;
/// Places that are read before a disk without any signature is called blank. An interrupted restore leaves zeros at
/// both ends, and data between them.
const SAMPLES: u64 = 32;
/// Bytes read at each place.
const SAMPLE_LEN: u64 = 4096;
/// Most characters of a label.
const LABEL_MAX: usize = 32;

/// Describes the contents of a disk of `disk_len` bytes: `GPT: 1 FAT32 "ESP", 2 ext4 "root", 3 swap`, `NTFS on the
/// whole disk`, `LVM member`, `blank`, `unknown data`, or `unreadable: …`.
pub fn describe(disk: &mut (impl Read + Seek), disk_len: u64, sector_size: u32) -> String {
    words(disk, disk_len, sector_size).unwrap_or_else(|cause| format!("unreadable: {cause}"))
}

fn words(disk: &mut (impl Read + Seek), disk_len: u64, sector_size: u32) -> io::Result<String> {
    let table = match Table::read(disk, disk_len, sector_size) {
        Err(TableError::Read { source, .. }) => return Err(source),
        table => table,
    };
    let whole = Part::read(disk, DiskRange::new(0..disk_len))?.find(disk)?;
    match (table, whole) {
        // Mirrors with their superblock at the end, and hybrid CD images, also have a partition table.
        (Ok(table), Some(found)) if table.kind != TableKind::None && found.goes_with_table => {
            Ok(format!("{}; {}", found.words(), table_words(disk, &table)?))
        }
        (Ok(table), _) if table.kind != TableKind::None => table_words(disk, &table),
        (_, Some(found)) if found.is_file_system => Ok(format!("{} on the whole disk", found.words())),
        (_, Some(found)) => Ok(found.words()),
        (Err(error), None) => Ok(damage(&error).to_owned()),
        (Ok(_), None) if is_blank(disk, disk_len)? => Ok("blank".to_owned()),
        (Ok(_), None) => Ok("unknown data".to_owned()),
    }
}

fn damage(error: &TableError) -> &'static str {
    match error {
        TableError::PrimaryDamaged(_) => "GPT, damaged at the start of the disk",
        TableError::NoGpt { .. } => "GPT, damaged or made with another sector size",
        TableError::NoProtectiveMbr => "GPT without a protective MBR",
        _ => "damaged partition table",
    }
}

fn table_words(disk: &mut (impl Read + Seek), table: &Table) -> io::Result<String> {
    let kind = if table.kind == TableKind::Gpt { "GPT" } else { "MBR" };
    let partitions: Vec<_> = table.partitions.iter().filter(|partition| !partition.is_extended).collect();
    if partitions.is_empty() {
        return Ok(format!("{kind} without partitions"));
    }
    let told = partitions.iter().take(PARTITIONS_TOLD);
    let mut told = told.map(|partition| partition_words(disk, partition)).collect::<io::Result<Vec<_>>>()?;
    match partitions.len().saturating_sub(PARTITIONS_TOLD) {
        0 => {}
        more => told.push(format!("{more} more")),
    }
    Ok(format!("{kind}: {}", told.join(", ")))
}

fn partition_words(disk: &mut (impl Read + Seek), partition: &Partition) -> io::Result<String> {
    let part = Part::read(disk, partition.range())?;
    let what = match part.find(disk)? {
        Some(found) => found.words(),
        None if !partition.type_name.is_empty() => partition.type_name.to_owned(),
        None if part.is_blank() => "blank".to_owned(),
        None => "unknown data".to_owned(),
    };
    Ok(format!("{} {what}", partition.number))
}

/// Whether both ends, and places evenly spread between them, are blank.
fn is_blank(disk: &mut (impl Read + Seek), disk_len: u64) -> io::Result<bool> {
    if !Part::read(disk, DiskRange::new(0..disk_len))?.is_blank() {
        return Ok(false);
    }
    for index in 0..SAMPLES {
        let at = disk_len / SAMPLES * index / SAMPLE_LEN * SAMPLE_LEN;
        if !is_uniform(&read_at(disk, at, SAMPLE_LEN.min(disk_len - at))?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Zeros, or the value that erased flash reads as.
fn is_uniform(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0) || bytes.iter().all(|&byte| byte == 0xff)
}

fn read_at(disk: &mut (impl Read + Seek), at: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    disk.seek(SeekFrom::Start(at))?;
    disk.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Both ends of a disk or partition.
struct Part {
    /// Its bytes on the disk.
    place: DiskRange,
    /// Bytes from its start.
    head: Vec<u8>,
    /// Bytes up to its end.
    tail: Vec<u8>,
}

impl Part {
    fn read(disk: &mut (impl Read + Seek), place: DiskRange) -> io::Result<Part> {
        let len = place.len();
        let head = read_at(disk, place.start.0, HEAD_LEN.min(len))?;
        let tail_len = TAIL_LEN.min(len);
        let tail = read_at(disk, place.end.0 - tail_len, tail_len)?;
        Ok(Part { place, head, tail })
    }

    fn len(&self) -> u64 {
        self.place.len()
    }

    fn is_blank(&self) -> bool {
        is_uniform(&self.head) && is_uniform(&self.tail)
    }

    /// Bytes at `at` from the start, if all of them were read.
    fn bytes(&self, at: usize, len: usize) -> Option<&[u8]> {
        self.head.get(at..at.checked_add(len)?)
    }

    fn has(&self, at: usize, magic: &[u8]) -> bool {
        self.bytes(at, magic.len()) == Some(magic)
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes(at, N)?.try_into().ok()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// Bytes at `at` from the start, if they were read as part of the end.
    fn tail_bytes(&self, at: u64, len: usize) -> Option<&[u8]> {
        let from = at.checked_sub(self.len().checked_sub(self.tail.len() as u64)?)?;
        let from = usize::try_from(from).ok()?;
        self.tail.get(from..from.checked_add(len)?)
    }
}

/// A signature that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    what: &'static str,
    label: String,
    is_file_system: bool,
    /// Whether it may stand beside a partition table without contradiction.
    goes_with_table: bool,
}

impl Found {
    fn words(&self) -> String {
        if self.label.is_empty() { self.what.to_owned() } else { format!("{} \"{}\"", self.what, self.label) }
    }
}

/// A label that is safe to show: up to the first NUL, trimmed, short, without characters that a terminal might obey.
fn label_of(bytes: &[u8]) -> String {
    let bytes = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    clean(&String::from_utf8_lossy(bytes))
}

fn clean(text: &str) -> String {
    let shown = |c: char| if c.is_control() || c == '"' { '?' } else { c };
    text.trim().chars().take(LABEL_MAX).map(shown).collect()
}

#[cfg(test)]
mod tests;

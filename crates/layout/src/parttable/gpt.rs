//! The GUID partition table (UEFI 2.10, section 5.3), primary and backup.

use std::io::{Read, Seek};
use std::ops::Range;

use super::crc32::crc32;
use super::names;
use metainfo::TableKind;

use super::table::{Disk, GAP_HEAD_LEN, PARTITIONS_MAX, Partition, Table, TableError};
use crate::DiskRange;

/// Most entries that a table may have (4 MiB): the kernel accepts no more. The usual number is 128.
pub(super) const ENTRIES_MAX: u32 = 32768;
/// Length of an entry in bytes. The standard allows others, but no system reads them.
pub(super) const ENTRY_LEN: u32 = 128;
/// [`ENTRY_LEN`] for indexing.
pub(super) const ENTRY_SIZE: usize = 128;
/// Minimum length of a header in bytes; it may be longer, up to a sector.
const HEADER_LEN_MIN: usize = 92;
/// Where the header keeps its checksum, which is computed with this field as zero.
const HEADER_CRC: Range<usize> = 16..20;

const BACKUP_DIFFERS: &str = "the backup GPT differs from the first one; both are kept as they are";
const BACKUP_MOVED: &str = "the backup GPT is not at the end of the disk (it grew?); `sgdisk -e` moves it";
const BACKUP_MISSING: &str = "the backup GPT is missing or damaged; `sgdisk -e` writes a new one";

/// Why a GPT is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GptFault {
    /// The disk is too small, or there is no signature at that place.
    #[error("there is no GPT header")]
    NoHeader,
    /// The header is shorter than its fields or longer than a sector.
    #[error("the GPT header says that it is {0} bytes long")]
    HeaderLen(u32),
    /// The header does not match its checksum.
    #[error("the GPT header does not match its checksum")]
    HeaderChecksum,
    /// The entries are in a form that no system can read.
    #[error("the GPT header names {count} entries of {len} bytes from sector {lba} on: that cannot be")]
    Entries {
        /// The number of entries in the header.
        count: u32,
        /// The length of an entry in the header, in bytes; only 128 is read.
        len: u32,
        /// Sector of the first entry.
        lba: u64,
    },
    /// The entries do not match their checksum.
    #[error("the partitions in the GPT do not match their checksum")]
    EntriesChecksum,
}

/// A header with the bytes after it, as one sector holds them (UEFI 2.10, table 5-5).
/// ```text
///  0: "EFI PART"    8: revision        12: length of the header   16: CRC-32 of that much, this field as zero
/// 24: own sector   32: sector of the other header   40: first usable sector   48: last usable sector
/// 56: disk GUID    72: sector of the entries        80: their number          84: length of one   88: their CRC-32
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    sector: Vec<u8>,
    /// How many bytes of the sector belong to the header.
    len: usize,
}

impl Header {
    /// Parses a whole sector.
    pub(super) fn parse(sector: Vec<u8>) -> Result<Header, GptFault> {
        if !has_signature(&sector) || sector.len() < HEADER_LEN_MIN {
            return Err(GptFault::NoHeader);
        }
        let said = le_u32(&sector, 12);
        let len = usize::try_from(said).unwrap_or(usize::MAX);
        if !(HEADER_LEN_MIN..=sector.len()).contains(&len) {
            return Err(GptFault::HeaderLen(said));
        }
        let header = Header { sector, len };
        if header.checksum() == le_u32(&header.sector, HEADER_CRC.start) {
            Ok(header)
        } else {
            Err(GptFault::HeaderChecksum)
        }
    }

    fn checksum(&self) -> u32 {
        let (before, behind) = (&self.sector[..HEADER_CRC.start], &self.sector[HEADER_CRC.end..self.len]);
        crc32(&[before, &[0; 4], behind])
    }

    /// The bytes that its checksum covers.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.sector[..self.len]
    }

    pub(super) fn my_lba(&self) -> u64 {
        le_u64(&self.sector, 24)
    }

    /// Where the other header is.
    pub(super) fn alternate_lba(&self) -> u64 {
        le_u64(&self.sector, 32)
    }

    pub(super) fn first_usable_lba(&self) -> u64 {
        le_u64(&self.sector, 40)
    }

    pub(super) fn last_usable_lba(&self) -> u64 {
        le_u64(&self.sector, 48)
    }

    /// The disk GUID in the byte order of the disk.
    pub(super) fn disk_guid(&self) -> [u8; 16] {
        guid_at(&self.sector, 56)
    }

    pub(super) fn entries_lba(&self) -> u64 {
        le_u64(&self.sector, 72)
    }

    pub(super) fn entry_count(&self) -> u32 {
        le_u32(&self.sector, 80)
    }

    /// Length of all entries in bytes, if their number and length can be read.
    pub(super) fn array_len(&self) -> Result<u64, GptFault> {
        let (count, len) = (self.entry_count(), le_u32(&self.sector, 84));
        if len == ENTRY_LEN && (1..=ENTRIES_MAX).contains(&count) {
            Ok(u64::from(count) * u64::from(len))
        } else {
            Err(GptFault::Entries { count, len, lba: self.entries_lba() })
        }
    }

    pub(super) fn entries_checksum(&self) -> u32 {
        le_u32(&self.sector, 88)
    }

    pub(super) fn set_places(&mut self, my_lba: u64, alternate_lba: u64, entries_lba: u64) {
        self.put(24, &my_lba.to_le_bytes());
        self.put(32, &alternate_lba.to_le_bytes());
        self.put(72, &entries_lba.to_le_bytes());
    }

    pub(super) fn set_last_usable_lba(&mut self, lba: u64) {
        self.put(48, &lba.to_le_bytes());
    }

    pub(super) fn set_disk_guid(&mut self, guid: &[u8; 16]) {
        self.put(56, guid);
    }

    pub(super) fn set_entries_checksum(&mut self, entries: &[u8]) {
        self.put(88, &crc32(&[entries]).to_le_bytes());
    }

    /// Writes the checksum of its current bytes.
    pub(super) fn seal(&mut self) {
        let checksum = self.checksum();
        self.put(HEADER_CRC.start, &checksum.to_le_bytes());
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.sector[at..at + value.len()].copy_from_slice(value);
    }
}

fn has_signature(sector: &[u8]) -> bool {
    sector.starts_with(b"EFI PART")
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le_u32(bytes, at + 4)) << 32 | u64::from(le_u32(bytes, at))
}

fn guid_at(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut guid = [0; 16];
    guid.copy_from_slice(&bytes[at..at + 16]);
    guid
}

/// Whether a sector with a GPT header's signature is where the first header belongs.
pub(super) fn has_primary(disk: &mut Disk<'_, impl Read + Seek>) -> Result<bool, TableError> {
    Ok(disk.sector_head(1)?.is_some_and(|sector| has_signature(&sector)))
}

/// Whether a header with a matching checksum is there.
pub(super) fn has_good_primary(disk: &mut Disk<'_, impl Read + Seek>) -> Result<bool, TableError> {
    Ok(read_header(disk, 1)?.is_ok())
}

/// The header at the start of the disk, if it matches its checksum.
pub(super) fn primary_header(disk: &mut Disk<'_, impl Read + Seek>) -> Option<Header> {
    read_header(disk, 1).ok()?.ok()
}

/// Reads the table of a disk whose first sector is a protective MBR.
pub(super) fn read(disk: &mut Disk<'_, impl Read + Seek>) -> Result<Table, TableError> {
    let last = disk.sectors().saturating_sub(1);
    let gpt = match read_one(disk, 1)? {
        Ok(good) => good,
        Err(fault) if last > 1 && read_one(disk, last)?.is_ok_and(|copy| copy.header.my_lba() == last) => {
            return Err(TableError::PrimaryDamaged(fault));
        }
        Err(source) => {
            return Err(TableError::NoGpt { sector_size: u32::try_from(disk.sector_size).unwrap_or(0), source });
        }
    };
    let my_lba = gpt.header.my_lba();
    if my_lba != 1 {
        return Err(TableError::GptHeader(format!("it says that it is at sector {my_lba}, not 1")));
    }

    let mut table = Table {
        kind: TableKind::Gpt,
        disk_id: names::guid(&gpt.header.disk_guid()),
        ..Table::empty(u32::try_from(disk.sector_size).unwrap_or(0))
    };
    table.own.push(DiskRange::new(0..disk.sector_size));
    table.own.extend(gpt.sectors(disk));
    keep_backup(disk, &gpt, &mut table);
    read_entries(disk, &gpt, &mut table)?;
    warn_of_overlaps(disk, &gpt.header, &mut table);
    let first = table.partitions.iter().map(|partition| partition.start).min();
    table.keep_gap(0, first.unwrap_or(GAP_HEAD_LEN.min(disk.len)));
    Ok(table)
}

/// A header and its entries.
struct OneTable {
    header: Header,
    array: Vec<u8>,
}

impl OneTable {
    /// The bytes of the sectors that contain header and entries.
    fn sectors(&self, disk: &Disk<'_, impl Read + Seek>) -> Vec<DiskRange> {
        let array_len = u64::try_from(self.array.len()).unwrap_or(u64::MAX);
        let places = [(self.header.my_lba(), 1), (self.header.entries_lba(), array_len.div_ceil(disk.sector_size))];
        places.into_iter().filter_map(|(lba, count)| disk.bytes_of(lba, count)).collect()
    }
}

fn read_header(disk: &mut Disk<'_, impl Read + Seek>, lba: u64) -> Result<Result<Header, GptFault>, TableError> {
    Ok(match disk.bytes_of(lba, 1) {
        Some(range) => Header::parse(disk.read(range)?),
        None => Err(GptFault::NoHeader),
    })
}

/// Reads one header and its entries, and checks both checksums. The inner error says why it is not good; the outer
/// error says that the disk could not be read.
fn read_one(disk: &mut Disk<'_, impl Read + Seek>, lba: u64) -> Result<Result<OneTable, GptFault>, TableError> {
    let (header, len) = match read_header(disk, lba)?.and_then(|header| header.array_len().map(|len| (header, len))) {
        Ok(good) => good,
        Err(fault) => return Ok(Err(fault)),
    };
    let entries_lba = header.entries_lba();
    let Some(sectors) = disk.bytes_of(entries_lba, len.div_ceil(disk.sector_size)) else {
        return Ok(Err(GptFault::Entries { count: header.entry_count(), len: ENTRY_LEN, lba: entries_lba }));
    };
    let array = disk.read(DiskRange::new(sectors.start.0..sectors.start.0 + len))?;
    if crc32(&[&array]) != header.entries_checksum() {
        return Ok(Err(GptFault::EntriesChecksum));
    }
    Ok(Ok(OneTable { header, array }))
}

/// Adds the copy at the end to what is kept, and warns if it is not as it should be. A bad copy does not stop a
/// capture, because all systems read the first table.
fn keep_backup(disk: &mut Disk<'_, impl Read + Seek>, gpt: &OneTable, table: &mut Table) {
    let lba = gpt.header.alternate_lba();
    // A place that cannot be read has no good copy either.
    let backup = if lba > 1 { read_one(disk, lba).ok().and_then(Result::ok) } else { None };
    match backup {
        Some(copy) if copy.header.my_lba() == lba => {
            table.own.extend(copy.sectors(disk));
            if copy.array != gpt.array {
                table.warn(BACKUP_DIFFERS);
            }
            if lba + 1 != disk.sectors() {
                table.warn(BACKUP_MOVED);
            }
        }
        _ => table.warn(BACKUP_MISSING),
    }
}

/// Whether a warning of [`read`] is about a faulty backup.
pub(super) fn is_of_backup(warning: &str) -> bool {
    [BACKUP_DIFFERS, BACKUP_MOVED, BACKUP_MISSING].contains(&warning)
}

fn read_entries(disk: &Disk<'_, impl Read + Seek>, gpt: &OneTable, table: &mut Table) -> Result<(), TableError> {
    for (number, entry) in (1..).zip(gpt.array.chunks_exact(ENTRY_SIZE)) {
        if entry[..16] == [0; 16] {
            continue;
        }
        if table.partitions.len() == PARTITIONS_MAX {
            table.warn(format!(
                "the table has more than {PARTITIONS_MAX} partitions, those from number {number} on are not looked at"
            ));
            break;
        }
        let (first, last) = (le_u64(entry, 32), le_u64(entry, 40));
        match last.checked_sub(first) {
            Some(sectors) => table.take(disk, partition(number, entry), first, sectors.saturating_add(1))?,
            None => table.warn(format!("partition {number} ends before it starts, it is left out")),
        }
    }
    Ok(())
}

/// ```text
/// 0: type GUID   16: unique GUID   32: first sector   40: last sector   48: attributes   56..128: name in UTF-16
/// ```
fn partition(number: u32, entry: &[u8]) -> Partition {
    let type_id = names::guid(&guid_at(entry, 0));
    let name = entry[56..ENTRY_SIZE].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let name: Vec<u16> = name.take_while(|&unit| unit != 0).collect();
    Partition {
        number,
        type_name: names::gpt_type(&type_id),
        type_id,
        name: String::from_utf16_lossy(&name),
        guid: names::guid(&guid_at(entry, 16)),
        attributes: le_u64(entry, 48),
        ..Partition::default()
    }
}

/// Warns about partitions that are where none should be.
fn warn_of_overlaps(disk: &Disk<'_, impl Read + Seek>, header: &Header, table: &mut Table) {
    let usable = header.first_usable_lba()..=header.last_usable_lba();
    if usable.is_empty() || *usable.end() >= disk.sectors() {
        table.warn(format!(
            "the GPT says that sectors {} to {} may be used, which this disk has not: Linux shows no partition of it, \
             `sgdisk -e` repairs that",
            usable.start(),
            usable.end()
        ));
    }
    let mut odd = Vec::new();
    for partition in &table.partitions {
        let range = partition.range();
        if table.own.iter().any(|own| own.start < range.end && range.start < own.end) {
            odd.push(format!("partition {} lies on top of the partition table", partition.number));
        }
        let last = (partition.start + partition.full_len()) / disk.sector_size - 1;
        if !usable.contains(&(partition.start / disk.sector_size)) || !usable.contains(&last) {
            odd.push(format!("partition {} leaves the space that the GPT says may be used", partition.number));
        }
    }
    odd.into_iter().for_each(|warning| table.warn(warning));
    table.warn_of_overlaps();
}

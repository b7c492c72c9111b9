//! Tables made by the crates that write them, by hand, and by chance.

use std::io::Cursor;

use gptman::{GPT, GPTPartitionEntry};
use proptest::prelude::*;

use super::{Table, TableError, TableKind, guess_sector_size};

pub(super) const MIB: u64 = 1 << 20;

pub(super) type Bytes = Cursor<Vec<u8>>;

pub(super) fn blank(len: u64) -> Bytes {
    Cursor::new(vec![0; usize::try_from(len).expect("small")])
}

pub(super) fn gpt_disk(len: u64, sector_size: u32, partitions: &[(u64, u64)]) -> Bytes {
    let mut disk = blank(len);
    let mut gpt = GPT::new_from(&mut disk, u64::from(sector_size), [7; 16]).expect("large enough");
    GPT::write_protective_mbr_into(&mut disk, u64::from(sector_size)).expect("in memory");
    let backup = gpt.write_into(&mut disk).expect("in memory");
    // The crate's own table refuses to be wrong; its headers write whatever they are given.
    let mut entries = vec![GPTPartitionEntry::empty(); 128];
    for (number, (entry, &(start, end))) in (1u8..).zip(entries.iter_mut().zip(partitions)) {
        *entry = GPTPartitionEntry {
            partition_type_guid: [0x11; 16],
            unique_partition_guid: [number; 16],
            starting_lba: start,
            ending_lba: end,
            attribute_bits: 4,
            partition_name: "data".into(),
        };
    }
    for mut header in [gpt.header, backup] {
        header.write_into(&mut disk, u64::from(sector_size), &entries).expect("in memory");
    }
    disk
}

/// An MBR or EBR sector with entries of `(type, start, count)`.
pub(super) fn boot_record(disk: &mut Bytes, lba: u64, entries: &[(u8, u32, u32)]) {
    let at = usize::try_from(lba * 512).expect("small");
    let sector = &mut disk.get_mut()[at..at + 512];
    for (entry, &(sys, start, count)) in sector[446..510].chunks_mut(16).zip(entries) {
        entry[4] = sys;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&count.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
}

/// Primary 2048+100, extended 4096..8192 with logical partitions at 4160+1000 and 5263+500.
pub(super) fn mbr_disk() -> Bytes {
    let mut disk = blank(8 * MIB);
    boot_record(&mut disk, 0, &[(0x83, 2048, 100), (0x05, 4096, 4096)]);
    boot_record(&mut disk, 4096, &[(0x83, 64, 1000), (0x05, 1104, 600)]);
    boot_record(&mut disk, 5200, &[(0x82, 63, 500)]);
    disk
}

fn read(disk: &mut Bytes, sector_size: u32) -> Result<Table, TableError> {
    let len = disk.get_ref().len() as u64;
    Table::read(disk, len, sector_size)
}

fn places(table: &Table) -> Vec<(u32, u64, u64)> {
    table.partitions.iter().map(|p| (p.number, p.start, p.len)).collect()
}

fn owns(table: &Table, byte: u64) -> bool {
    table.own.iter().any(|range| range.contains(&byte))
}

fn error_of(disk: &mut Bytes) -> String {
    read(disk, 512).expect_err("refused").to_string()
}

#[test]
fn a_gpt_reads_with_both_sector_sizes() {
    for sector_size in [512u32, 4096] {
        let bytes = u64::from(sector_size);
        let len = 4096 * bytes;
        let mut disk = gpt_disk(len, sector_size, &[(100, 199), (300, 300)]);
        assert_eq!(guess_sector_size(&mut disk, len).expect("in memory"), sector_size);
        let table = read(&mut disk, sector_size).expect("good table");
        assert_eq!(table.kind, TableKind::Gpt);
        assert_eq!(places(&table), [(1, 100 * bytes, 100 * bytes), (2, 300 * bytes, bytes)]);
        assert_eq!(table.partitions[0].name, "data");
        assert_eq!(table.disk_id, "07070707-0707-0707-0707-070707070707");
        assert!(owns(&table, 0) && owns(&table, bytes) && owns(&table, 100 * bytes - 1), "head and boot gap");
        assert!(!owns(&table, 100 * bytes) && !owns(&table, 250 * bytes), "partitions and later gaps are not its own");
        assert!(owns(&table, len - 1) && owns(&table, len - 2 * bytes), "backup header and entries");
        assert_eq!(table.warnings, Vec::<String>::new());
    }
}

#[test]
fn a_damaged_primary_says_what_to_run() {
    let mut disk = gpt_disk(2 * MIB, 512, &[(100, 199)]);
    disk.get_mut()[520] ^= 1;
    let error = error_of(&mut disk);
    assert!(error.contains("sgdisk -e") && error.contains("backup at the end is good"), "{error}");
    let len = disk.get_ref().len();
    disk.get_mut()[len - 500] ^= 1;
    assert!(error_of(&mut disk).contains("neither"), "both are bad");
}

#[test]
fn entries_that_do_not_match_their_checksum_are_damage() {
    let mut disk = gpt_disk(2 * MIB, 512, &[(100, 199)]);
    disk.get_mut()[1024 + 40] ^= 1;
    assert!(matches!(read(&mut disk, 512), Err(TableError::PrimaryDamaged(Some(_)))));
}

#[test]
fn a_bad_or_moved_backup_is_a_warning() {
    let mut disk = gpt_disk(2 * MIB, 512, &[(100, 199)]);
    let grown = {
        let mut grown = disk.clone();
        grown.get_mut().resize(3 << 20, 0);
        read(&mut grown, 512).expect("good primary")
    };
    assert!(grown.warnings[0].contains("not at the end"), "{:?}", grown.warnings);
    let len = disk.get_ref().len();
    disk.get_mut()[len - 500] ^= 1;
    let table = read(&mut disk, 512).expect("good primary");
    assert!(table.warnings[0].contains("missing or damaged"), "{:?}", table.warnings);
}

#[test]
fn hostile_gpt_headers_are_refused_before_they_are_believed() {
    let with_header = |change: fn(&mut gptman::GPTHeader)| {
        let mut disk = gpt_disk(2 * MIB, 512, &[(100, 199)]);
        let mut header = gptman::GPT::read_from(&mut disk, 512).expect("good").header;
        change(&mut header);
        header.update_crc32_checksum();
        let mut bytes = Vec::new();
        for part in [&header.signature[..], &header.revision, &header.header_size.to_le_bytes()] {
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(&header.crc32_checksum.to_le_bytes());
        bytes.extend_from_slice(&header.reserved);
        for lba in [header.primary_lba, header.backup_lba, header.first_usable_lba, header.last_usable_lba] {
            bytes.extend_from_slice(&lba.to_le_bytes());
        }
        bytes.extend_from_slice(&header.disk_guid);
        bytes.extend_from_slice(&header.partition_entry_lba.to_le_bytes());
        for number in [header.number_of_partition_entries, header.size_of_partition_entry] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&header.partition_entry_array_crc32.to_le_bytes());
        disk.get_mut()[512..512 + bytes.len()].copy_from_slice(&bytes);
        // Without its backup, so that the primary's own trouble decides.
        let len = disk.get_ref().len();
        disk.get_mut()[len - 512..].fill(0);
        read(&mut disk, 512)
    };
    assert!(with_header(|_| {}).is_ok(), "the header written here is good if nothing is changed");
    for change in [
        (|h| h.number_of_partition_entries = u32::MAX) as fn(&mut gptman::GPTHeader),
        |h| h.number_of_partition_entries = 0,
        |h| h.size_of_partition_entry = 0,
        |h| h.size_of_partition_entry = 256,
        |h| h.partition_entry_lba = u64::MAX,
        |h| h.partition_entry_lba = u64::MAX / 512,
    ] {
        assert!(matches!(with_header(change), Err(TableError::NoGpt { source: None, .. })));
    }
    assert!(with_header(|h| h.backup_lba = u64::MAX).is_ok_and(|table| !table.warnings.is_empty()));
    assert!(matches!(with_header(|h| h.primary_lba = 9), Err(TableError::GptHeader(_))));
}

#[test]
fn gpt_partitions_that_make_no_sense_are_named() {
    let refused = |partitions: &[(u64, u64)]| error_of(&mut gpt_disk(2 * MIB, 512, partitions));
    assert!(refused(&[(100, 199), (199, 200)]).contains("partitions 1 and 2 overlap"));
    assert!(refused(&[(100, 99)]).contains("partition 1 has an impossible length"));
    assert!(refused(&[(100, 5000)]).contains("past the end of the disk"));
    assert!(refused(&[(0, u64::MAX)]).contains("past the end of the disk"));
    assert!(refused(&[(20, 40)]).contains("on top of the partition table"));
    assert!(refused(&[(4000, 4095)]).contains("on top of the partition table"));
}

#[test]
fn logical_partitions_are_followed() {
    let table = read(&mut mbr_disk(), 512).expect("good table");
    assert_eq!(table.kind, TableKind::Mbr);
    let sectors: Vec<_> = places(&table).into_iter().map(|(n, start, len)| (n, start / 512, len / 512)).collect();
    assert_eq!(sectors, [(1, 2048, 100), (2, 4096, 4096), (5, 4160, 1000), (6, 5263, 500)]);
    assert!(table.partitions[1].is_extended && !table.partitions[2].is_extended);
    for lba in [0, 2047, 4096, 4159, 5200, 5262] {
        assert!(owns(&table, lba * 512), "sector {lba}");
    }
    for lba in [2048, 2148, 4160, 5160, 5199, 5263, 5763] {
        assert!(!owns(&table, lba * 512), "sector {lba}");
    }
}

#[test]
fn an_extended_partition_may_be_empty() {
    let mut disk = mbr_disk();
    disk.get_mut()[4096 * 512..4097 * 512].fill(0);
    let table = read(&mut disk, 512).expect("good table");
    assert_eq!(places(&table).len(), 2);
}

#[test]
fn broken_chains_are_refused() {
    let refused = |lba: u64, entries: &[(u8, u32, u32)]| {
        let mut disk = mbr_disk();
        disk.get_mut()[usize::try_from(lba * 512 + 446).expect("small")..][..64].fill(0);
        boot_record(&mut disk, lba, entries);
        error_of(&mut disk)
    };
    assert!(refused(5200, &[(0x83, 63, 500), (0x05, 0, 600)]).contains("goes back"));
    assert!(refused(5200, &[(0x83, 63, 500), (0x05, u32::MAX, 600)]).contains("leaves the extended"));
    assert!(refused(5200, &[(0x83, 63, 500), (0x05, 2000, 600)]).contains("no boot record"));
    assert!(refused(5200, &[(0x83, 63, 5000)]).contains("outside of the extended"));
    assert!(refused(5200, &[(0x83, u32::MAX, 1)]).contains("past the end"));
    assert!(refused(4096, &[(0x83, 64, 2000), (0x05, 1104, 600)]).contains("overlap"));
    assert!(refused(0, &[(0x83, 2048, 3000), (0x05, 4096, 4096)]).contains("overlap"));
    assert!(refused(0, &[(0x83, 2048, u32::MAX)]).contains("past the end of the disk"));
    assert!(refused(0, &[(0x83, 0, 3000)]).contains("on top of the partition table"));
}

#[test]
fn a_file_system_without_a_table_is_no_table() {
    let mut disk = blank(MIB);
    assert_eq!(read(&mut disk, 512).expect("blank").kind, TableKind::None);
    // As mkfs.vfat leaves a whole disk: boot sector, signature, and an entry that covers all of it from sector 0.
    boot_record(&mut disk, 0, &[(0x0c, 0, 2048)]);
    disk.get_mut()[..11].copy_from_slice(b"\xeb\x3c\x90mkfs.fat");
    disk.get_mut()[82..90].copy_from_slice(b"FAT32   ");
    let table = read(&mut disk, 512).expect("file system");
    assert_eq!((table.kind, table.own), (TableKind::None, vec![]));
    assert_eq!(read(&mut Cursor::new(Vec::new()), 512).expect("empty").kind, TableKind::None);
}

#[test]
fn a_gpt_without_protective_mbr_says_so() {
    let mut disk = gpt_disk(2 * MIB, 512, &[(100, 199)]);
    disk.get_mut()[..512].fill(0);
    assert!(error_of(&mut disk).contains("no protective MBR"));
}

#[test]
fn long_gaps_keep_their_head_only() {
    let mut disk = blank(100 * MIB);
    boot_record(&mut disk, 0, &[(0x83, 80 * 2048, 2048)]);
    let table = read(&mut disk, 512).expect("good table");
    assert!(owns(&table, MIB - 1) && !owns(&table, MIB));
    boot_record(&mut disk, 0, &[(0x83, 60 * 2048, 2048)]);
    let table = read(&mut disk, 512).expect("good table");
    assert!(owns(&table, 60 * MIB - 1));
}

fn check_sane(disk: &mut Bytes, sector_size: u32) -> Result<(), TestCaseError> {
    let len = disk.get_ref().len() as u64;
    let _ = guess_sector_size(disk, len);
    let Ok(table) = Table::read(disk, len, sector_size) else { return Ok(()) };
    for partition in &table.partitions {
        prop_assert!(partition.len > 0 && partition.range().end <= len, "{:?}", partition);
    }
    for range in &table.own {
        prop_assert!(range.start <= range.end && range.end <= len, "{:?}", range);
    }
    let inner: Vec<_> = table.partitions.iter().filter(|partition| !partition.is_extended).collect();
    prop_assert!(super::check_disjoint(&inner).is_ok());
    Ok(())
}

proptest! {
    #[test]
    fn mutated_tables_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        is_gpt: bool,
        fix_checksums: bool,
        len in 0usize..(2 << 20),
    ) {
        let mut disk = if is_gpt { gpt_disk(2 * MIB, 512, &[(100, 199), (300, 400)]) } else { mbr_disk() };
        // Where the tables are: elsewhere changes are boring.
        let interesting: Vec<usize> = if is_gpt {
            (446..604).chain(1024..1280).collect()
        } else {
            (446..512).chain(4096 * 512 + 446..4097 * 512).chain(5200 * 512 + 446..5201 * 512).collect()
        };
        for (at, byte) in changes {
            disk.get_mut()[interesting[at.index(interesting.len())]] = byte;
        }
        if is_gpt && fix_checksums {
            fix_header_checksum(disk.get_mut());
        }
        check_sane(&mut disk, 512)?;
        check_sane(&mut disk, 4096)?;
        disk.get_mut().truncate(len);
        check_sane(&mut disk, 512)?;
    }
}

/// Makes a changed header pass its checksum, so that its numbers are looked at. CRC-32 as UEFI and Ethernet use it.
fn fix_header_checksum(disk: &mut [u8]) {
    disk[528..532].fill(0);
    let mut crc = !0u32;
    for &byte in &disk[512..604] {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    disk[528..532].copy_from_slice(&(!crc).to_le_bytes());
}

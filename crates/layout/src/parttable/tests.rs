//! Tests with tables made by the crates that write them, by hand, and at random.

use std::io::{self, Cursor, Read, Seek, SeekFrom};

use gptman::{GPT, GPTHeader, GPTPartitionEntry};
use proptest::prelude::*;

use super::crc32::crc32;
use super::{GptFault, Table, TableError, TableKind, gpt_sector_sizes, guess_sector_size};
use crate::DiskOffset;

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
    // The crate's table type refuses wrong values; its headers write any value.
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

/// The header of length 92 as stored on the disk.
pub(super) fn header_bytes(header: &GPTHeader) -> Vec<u8> {
    let mut bytes = [&header.signature[..], &header.revision, &header.header_size.to_le_bytes()].concat();
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
    bytes
}

/// Bytes for the head and the tail of a GPT, written only by this function: a header of `header_len` bytes with noise
/// after byte 92, and `count` entries, some of which are `(number, first, last)`.
pub(super) fn raw_gpt(len: u64, header_len: u32, count: u32, partitions: &[(usize, u64, u64)]) -> Bytes {
    let mut disk = blank(len);
    let (last, entry_sectors) = (len / 512 - 1, u64::from(count).div_ceil(4));
    let mut array = vec![0; usize::try_from(count).expect("small") * 128];
    for &(number, first, end) in partitions {
        let entry = &mut array[(number - 1) * 128..number * 128];
        entry[..16].fill(0x11);
        entry[16..32].fill(u8::try_from(number % 256).expect("a byte"));
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&end.to_le_bytes());
    }
    boot_record(&mut disk, 0, &[(0xee, 1, u32::try_from(last).expect("small"))]);
    for (lba, other, entries_lba) in [(1, last, 2), (last, 1, last - entry_sectors)] {
        let mut header = [0xa5; 512];
        header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
        header[12..16].copy_from_slice(&header_len.to_le_bytes());
        header[20..24].fill(0);
        for (at, number) in [(24, lba), (32, other), (40, 2 + entry_sectors), (48, last - entry_sectors - 1)] {
            header[at..at + 8].copy_from_slice(&u64::to_le_bytes(number));
        }
        header[56..72].fill(7);
        header[72..80].copy_from_slice(&entries_lba.to_le_bytes());
        header[80..84].copy_from_slice(&count.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        let at = |lba: u64| usize::try_from(lba * 512).expect("small");
        disk.get_mut()[at(lba)..][..512].copy_from_slice(&header);
        disk.get_mut()[at(entries_lba)..][..array.len()].copy_from_slice(&array);
        seal(disk.get_mut(), at(lba));
        if lba > 1 {
            let unused = at(lba) + usize::try_from(header_len).expect("small");
            disk.get_mut()[unused..at(lba) + 512].fill(0);
        }
    }
    disk
}

/// Makes the GPT header at byte `at` match its checksums, as far as its numbers make sense.
pub(super) fn seal(disk: &mut [u8], at: usize) {
    let number = |disk: &[u8], at: usize| {
        usize::try_from(u32::from_le_bytes(disk[at..at + 4].try_into().expect("four"))).expect("small")
    };
    let entries = number(disk, at + 72).saturating_mul(512);
    let len = number(disk, at + 80).saturating_mul(128);
    if let Some(array) = disk.get(entries..entries.saturating_add(len)) {
        let sum = crc32(&[array]);
        disk[at + 88..at + 92].copy_from_slice(&sum.to_le_bytes());
    }
    disk[at + 16..at + 20].fill(0);
    let sum = crc32(&[&disk[at..at + number(disk, at + 12).clamp(92, 512)]]);
    disk[at + 16..at + 20].copy_from_slice(&sum.to_le_bytes());
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
    table.own.iter().any(|range| range.contains(DiskOffset(byte)))
}

/// Numbers, starts and lengths of the partitions, in sectors.
fn sectors(table: &Table) -> Vec<(u32, u64, u64)> {
    places(table).into_iter().map(|(n, start, len)| (n, start / 512, len / 512)).collect()
}

fn good(disk: &mut Bytes) -> Table {
    read(disk, 512).expect("good table")
}

fn warns(table: &Table, words: &str) -> bool {
    table.warnings.iter().any(|warning| warning.contains(words))
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
    assert!(matches!(read(&mut disk, 512), Err(TableError::PrimaryDamaged(GptFault::EntriesChecksum))));
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
    let with_header = |change: fn(&mut GPTHeader)| {
        let mut disk = gpt_disk(2 * MIB, 512, &[(100, 199)]);
        let mut header = GPT::read_from(&mut disk, 512).expect("good").header;
        change(&mut header);
        header.update_crc32_checksum();
        let bytes = header_bytes(&header);
        disk.get_mut()[512..512 + bytes.len()].copy_from_slice(&bytes);
        // The backup is removed, so that the fault of the primary decides.
        let len = disk.get_ref().len();
        disk.get_mut()[len - 512..].fill(0);
        read(&mut disk, 512)
    };
    assert!(with_header(|_| {}).is_ok(), "the header written here is good if nothing is changed");
    for change in [
        (|h| h.number_of_partition_entries = u32::MAX) as fn(&mut GPTHeader),
        |h| h.number_of_partition_entries = 0,
        |h| h.size_of_partition_entry = 0,
        |h| h.size_of_partition_entry = 256,
        |h| h.partition_entry_lba = u64::MAX,
        |h| h.partition_entry_lba = u64::MAX / 512,
    ] {
        assert!(matches!(with_header(change), Err(TableError::NoGpt { source: GptFault::Entries { .. }, .. })));
    }
    assert!(with_header(|h| h.backup_lba = u64::MAX).is_ok_and(|table| !table.warnings.is_empty()));
    assert!(matches!(with_header(|h| h.primary_lba = 9), Err(TableError::GptHeader(_))));
}

#[test]
fn gpt_partitions_in_odd_places_are_taken_and_told() {
    let odd = |partitions: &[(u64, u64)], words: &str| {
        let table = good(&mut gpt_disk(2 * MIB, 512, partitions));
        assert!(warns(&table, words), "{words}: {:?}", table.warnings);
        sectors(&table)
    };
    assert_eq!(odd(&[(100, 199), (199, 200)], "partitions 1 and 2 overlap"), [(1, 100, 100), (2, 199, 2)]);
    assert_eq!(odd(&[(100, 400), (120, 130), (300, 310)], "partitions 1 and 3 overlap").len(), 3);
    assert_eq!(odd(&[(100, 98), (200, 300)], "partition 1 ends before it starts"), [(2, 200, 101)]);
    assert_eq!(odd(&[(20, 40)], "on top of the partition table"), [(1, 20, 21)]);
    assert_eq!(odd(&[(0, 40)], "on top of the partition table"), [(1, 0, 41)]);
    assert_eq!(odd(&[(4000, 4095)], "on top of the partition table"), [(1, 4000, 96)]);
    assert_eq!(odd(&[(4000, 4095)], "leaves the space"), [(1, 4000, 96)]);
    let refused = |partitions: &[(u64, u64)]| error_of(&mut gpt_disk(2 * MIB, 512, partitions));
    assert!(refused(&[(100, 5000)]).contains("past the end of the disk"));
    assert!(refused(&[(0, u64::MAX)]).contains("is the image cut off?"));
}

#[test]
fn what_a_header_has_behind_its_fields_is_part_of_it() {
    for header_len in [92, 93, 100, 511, 512] {
        let mut disk = raw_gpt(2 * MIB, header_len, 128, &[(1, 100, 199)]);
        let table = good(&mut disk);
        assert_eq!((sectors(&table), table.warnings), (vec![(1, 100, 100)], vec![]), "{header_len}");
        let behind = 512 + usize::try_from(header_len).expect("small") - 1;
        disk.get_mut()[behind] ^= 1;
        assert!(matches!(read(&mut disk, 512), Err(TableError::PrimaryDamaged(GptFault::HeaderChecksum))));
    }
    for header_len in [0, 91, 513, u32::MAX] {
        let mut disk = raw_gpt(2 * MIB, 92, 128, &[(1, 100, 199)]);
        disk.get_mut()[524..528].copy_from_slice(&header_len.to_le_bytes());
        seal(disk.get_mut(), 512);
        let refused = read(&mut disk, 512);
        assert!(matches!(refused, Err(TableError::PrimaryDamaged(GptFault::HeaderLen(len))) if len == header_len));
    }
}

#[test]
fn a_gpt_may_have_many_entries() {
    let mut disk = raw_gpt(4 * MIB, 92, 2048, &[(1, 1000, 1999), (2048, 2000, 2009)]);
    let table = good(&mut disk);
    assert_eq!((sectors(&table), table.warnings), (vec![(1, 1000, 1000), (2048, 2000, 10)], vec![]));
    let many: Vec<_> = (1..=300).map(|number| (number, 1000 + number as u64, 1000 + number as u64)).collect();
    let table = good(&mut raw_gpt(4 * MIB, 92, 2048, &many));
    assert_eq!(table.partitions.len(), 256);
    assert!(warns(&table, "more than 256 partitions, those from number 257 on"), "{:?}", table.warnings);
    for (count, is_good) in [(32768, true), (32769, false), (0, false)] {
        assert_eq!(read(&mut raw_gpt(16 * MIB, 92, count, &[]), 512).is_ok(), is_good, "{count}");
    }
}

#[test]
fn names_and_attributes_may_be_anything() {
    let mut disk = raw_gpt(2 * MIB, 92, 128, &[(1, 100, 199)]);
    disk.get_mut()[1024 + 48..1024 + 56].fill(0xff);
    disk.get_mut()[1024 + 56..1024 + 62].copy_from_slice(&[b'a', 0, 0, 0xd8, b'b', 0]);
    seal(disk.get_mut(), 512);
    let table = good(&mut disk);
    assert_eq!((table.partitions[0].name.as_str(), table.partitions[0].attributes), ("a\u{fffd}b", u64::MAX));
}

#[test]
fn usable_space_that_the_disk_has_not_is_told() {
    for (first, last) in [(34, 4096u64), (5000, 6000), (3000, 2000)] {
        let mut disk = raw_gpt(2 * MIB, 92, 128, &[(1, 100, 199)]);
        disk.get_mut()[552..560].copy_from_slice(&u64::to_le_bytes(first));
        disk.get_mut()[560..568].copy_from_slice(&last.to_le_bytes());
        seal(disk.get_mut(), 512);
        let table = good(&mut disk);
        assert!(warns(&table, "Linux shows no partition of it"), "{:?}", table.warnings);
        assert_eq!(sectors(&table), [(1, 100, 100)]);
    }
}

#[test]
fn any_protective_entry_leads_to_the_gpt() {
    for entry in [[1, 0, 0, 0, 0xee], [0xff, 1, 2, 3, 0xee]] {
        for at in [446, 494] {
            let mut disk = raw_gpt(2 * MIB, 92, 128, &[(1, 100, 199)]);
            disk.get_mut()[446..510].fill(0);
            // The entry covers no sector, but is valid.
            disk.get_mut()[at..at + 5].copy_from_slice(&entry);
            assert_eq!((good(&mut disk).kind, sectors(&good(&mut disk))), (TableKind::Gpt, vec![(1, 100, 100)]));
        }
    }
}

#[test]
fn a_disk_may_have_headers_of_several_sector_sizes() {
    let sizes = |disk: &mut Bytes| {
        let len = disk.get_ref().len() as u64;
        let sizes = gpt_sector_sizes(disk, len).expect("in memory");
        assert_eq!(guess_sector_size(disk, len).expect("in memory"), sizes.first().copied().unwrap_or(512));
        sizes
    };
    assert_eq!(sizes(&mut blank(MIB)), []);
    assert_eq!(sizes(&mut blank(100)), []);
    let mut disk = gpt_disk(16 * MIB, 4096, &[(100, 199)]);
    assert_eq!(sizes(&mut disk), [4096]);
    let other = raw_gpt(16 * MIB, 92, 4, &[]);
    disk.get_mut()[512..1024].copy_from_slice(&other.get_ref()[512..1024]);
    assert_eq!(sizes(&mut disk), [512, 4096]);
    disk.get_mut()[512 + 60] ^= 1;
    assert_eq!(sizes(&mut disk), [4096], "one with a good checksum comes first");
    disk.get_mut()[4096 + 60] ^= 1;
    assert_eq!(sizes(&mut disk), [512, 4096], "none has one");
}

#[test]
fn what_is_a_little_past_the_end_is_cut() {
    // A partition that ends with a disk of 100 MiB, of which 99 MiB are present.
    let mut disk = blank(99 * MIB);
    boot_record(&mut disk, 0, &[(0x83, 2048, 2048), (0x83, 4096, 100 * 2048 - 4096)]);
    let table = good(&mut disk);
    let last = &table.partitions[1];
    assert_eq!((last.start, last.len, last.missing), (2 * MIB, 97 * MIB, MIB));
    assert!(warns(&table, "last 1048576 bytes of partition 2 are past the end"), "{:?}", table.warnings);
    assert_eq!(table.partitions[0].missing, 0);

    let mut disk =
        raw_gpt(100 * MIB, 92, 128, &[(1, 2048, 4095), (3, 202752, 202900), (4, 4096, 204000), (7, 5000, 5001)]);
    disk.get_mut().truncate(usize::try_from(99 * MIB).expect("small"));
    let table = good(&mut disk);
    assert_eq!(sectors(&table), [(1, 2048, 2048), (4, 4096, 99 * 2048 - 4096), (7, 5000, 2)]);
    assert!(warns(&table, "partition 3 starts past the end of the disk, it is left out"), "{:?}", table.warnings);
    assert_eq!(table.partitions[1].missing, (204001 - 99 * 2048) * 512);
}

#[test]
fn what_is_far_past_the_end_is_a_disk_that_was_cut_off() {
    let with_end = |end: u32| {
        let mut disk = blank(16 * MIB);
        boot_record(&mut disk, 0, &[(0x83, 2048, end - 2048)]);
        read(&mut disk, 512)
    };
    assert_eq!(with_end(17 * 2048).expect("a sixteenth").partitions[0].missing, MIB);
    assert!(matches!(with_end(17 * 2048 + 1), Err(TableError::PastEnd { number: 1, .. })));
    let mut disk = blank(16 * MIB);
    boot_record(&mut disk, 0, &[(0x83, 2048, 2048), (0x83, 16 * 2048, 100)]);
    let table = good(&mut disk);
    assert_eq!(sectors(&table), [(1, 2048, 2048)]);
    assert!(warns(&table, "partition 2 starts past the end"));
}

#[test]
fn hybrid_images_have_partitions_from_sector_0_on() {
    for sys in [0x00, 0x17] {
        let mut disk = blank(8 * MIB);
        boot_record(&mut disk, 0, &[(sys, 0, 12000), (0xef, 300, 5000)]);
        let table = good(&mut disk);
        assert_eq!((table.kind, sectors(&table)), (TableKind::Mbr, vec![(1, 0, 12000), (2, 300, 5000)]));
        assert_eq!(table.partitions[0].type_id, format!("{sys:02x}"));
        assert_eq!(table.warnings, ["partition 1 lies on top of the partition table", "partitions 1 and 2 overlap"]);
        assert!(owns(&table, 0) && !owns(&table, 512), "there is no gap");
    }
}

#[test]
fn an_entry_without_a_type_has_to_be_on_the_disk() {
    let mut disk = blank(8 * MIB);
    boot_record(&mut disk, 0, &[(0, 0x6c6c_6548, 0x216f), (0x83, 2048, 2048), (0, 4096, 0x7fff_ffff)]);
    let table = good(&mut disk);
    assert_eq!(sectors(&table), [(2, 2048, 2048)]);
    assert!(warns(&table, "partition 1 has no type and leaves the disk"), "{:?}", table.warnings);
    assert!(warns(&table, "partition 3 has no type"), "{:?}", table.warnings);
    // An entry like that alone is no table.
    boot_record(&mut disk, 0, &[(0, 0x6c6c_6548, 0x216f), (0x83, 2048, 0)]);
    assert_eq!(good(&mut disk).kind, TableKind::None);
}

#[test]
fn other_boot_sectors_are_no_table() {
    let mut disk = mbr_disk();
    disk.get_mut()[446] = 1;
    assert_eq!(good(&mut disk).kind, TableKind::None, "a flag that none has");
    let mut disk = mbr_disk();
    disk.get_mut()[..4].copy_from_slice(&[0xc9, 0xc2, 0xd4, 0xc1]);
    assert_eq!(good(&mut disk).kind, TableKind::None, "AIX");
    let mut disk = mbr_disk();
    disk.get_mut()[511] = 0;
    assert_eq!(good(&mut disk).kind, TableKind::None, "no signature");
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

/// [`mbr_disk`] with another record at `lba`.
fn with_record(lba: u64, entries: &[(u8, u32, u32)]) -> Bytes {
    let mut disk = mbr_disk();
    disk.get_mut()[usize::try_from(lba * 512 + 446).expect("small")..][..64].fill(0);
    boot_record(&mut disk, lba, entries);
    disk
}

#[test]
fn chains_end_where_they_make_no_sense() {
    let ends = |lba: u64, entries: &[(u8, u32, u32)], words: &str| {
        let table = good(&mut with_record(lba, entries));
        assert!(warns(&table, words), "{words}: {:?}", table.warnings);
        sectors(&table)[2..].to_vec()
    };
    let both = [(5, 4160, 1000), (6, 5263, 500)];
    assert_eq!(ends(5200, &[(0x83, 63, 500), (0x05, 0, 600)], "sector 4096: it is linked twice"), both);
    assert_eq!(ends(5200, &[(0x83, 63, 500), (0x05, 1104, 600)], "sector 5200: it is linked twice"), both);
    assert_eq!(ends(5200, &[(0x83, 63, 500), (0x05, u32::MAX, 600)], "past the end of the disk"), both);
    assert_eq!(ends(5200, &[(0x83, 63, 500), (0x05, 2000, 600)], "sector 6096: there is no boot record"), both);
}

#[test]
fn logical_partitions_overlap_what_they_like() {
    let found = |lba: u64, entries: &[(u8, u32, u32)]| good(&mut with_record(lba, entries));
    let table = found(4096, &[(0x83, 64, 2000), (0x05, 1104, 600)]);
    assert!(warns(&table, "partitions 5 and 6 overlap"), "{:?}", table.warnings);
    let table = found(0, &[(0x83, 2048, 3000), (0x05, 4096, 4096)]);
    assert!(warns(&table, "partitions 1 and 2 overlap") && warns(&table, "partitions 1 and 5 overlap"));
    let table = found(5200, &[(0x83, 63, 5000)]);
    assert_eq!(sectors(&table)[3], (6, 5263, 5000), "it reaches past the extended one");
    assert!(error_of(&mut with_record(5200, &[(0x83, u32::MAX, 1)])).contains("past the end of the disk"));
    assert!(error_of(&mut with_record(0, &[(0x83, 2048, u32::MAX)])).contains("past the end of the disk"));
}

#[test]
fn logical_partitions_are_numbered_along_the_chain() {
    let mut disk = blank(8 * MIB);
    // The chain goes 4096, 9000, 6000: forwards and back.
    boot_record(&mut disk, 0, &[(0x0f, 4096, 8192)]);
    boot_record(&mut disk, 4096, &[(0x83, 64, 100), (0x05, 9000 - 4096, 600)]);
    boot_record(&mut disk, 9000, &[(0x83, 63, 200), (0x85, 6000 - 4096, 600)]);
    boot_record(&mut disk, 6000, &[(0x83, 32, 300)]);
    let table = good(&mut disk);
    assert_eq!(sectors(&table)[1..], [(5, 4160, 100), (6, 9063, 200), (7, 6032, 300)]);
    assert_eq!(table.warnings, Vec::<String>::new());
    for lba in [4096, 4159, 6000, 6031, 9000, 9062] {
        assert!(owns(&table, lba * 512), "sector {lba}");
    }
    for lba in [4160, 4260, 5999, 6032, 8999, 9063] {
        assert!(!owns(&table, lba * 512), "sector {lba}");
    }
}

#[test]
fn all_entries_of_a_record_are_read() {
    let mut disk = blank(8 * MIB);
    boot_record(&mut disk, 0, &[(0x05, 4096, 8192)]);
    // As DR-DOS writes it: the link comes first; a second link is ignored.
    boot_record(&mut disk, 4096, &[(0x05, 2000, 1000), (0x83, 64, 100), (0x05, 3000, 1000)]);
    // As OS/2 writes it: four partitions; the last two have to be inside the length in the link (1000 sectors).
    boot_record(&mut disk, 6096, &[(0x06, 10, 10), (0x06, 2000, 10), (0x06, 30, 10), (0x06, 990, 11)]);
    let table = good(&mut disk);
    assert_eq!(sectors(&table)[1..], [(5, 4160, 100), (6, 6106, 10), (7, 8096, 10), (8, 6126, 10)]);
    // An entry with the same start is the same partition.
    boot_record(&mut disk, 6096, &[(0x06, 10, 10), (0x06, 10, 20), (0x06, 30, 10)]);
    assert_eq!(sectors(&good(&mut disk))[1..], [(5, 4160, 100), (6, 6106, 10), (7, 6126, 10)]);
}

#[test]
fn several_extended_partitions_are_read_one_after_the_other() {
    let mut disk = blank(8 * MIB);
    boot_record(&mut disk, 0, &[(0x05, 8192, 4096), (0, 0, 0), (0x0f, 2048, 4096)]);
    boot_record(&mut disk, 8192, &[(0x83, 1, 10), (0x05, 100, 100)]);
    boot_record(&mut disk, 8292, &[(0x83, 1, 20)]);
    boot_record(&mut disk, 2048, &[(0x83, 1, 30)]);
    let table = good(&mut disk);
    let expected = [(1, 8192, 4096), (3, 2048, 4096), (5, 8193, 10), (6, 8293, 20), (7, 2049, 30)];
    assert_eq!(sectors(&table), expected);
    assert_eq!(table.partitions.iter().filter(|partition| partition.is_extended).count(), 2);
    assert_eq!(table.warnings, Vec::<String>::new());
}

#[test]
fn chains_have_an_end() {
    let chain = |records: u32, is_empty: bool| {
        let mut disk = blank(8 * MIB);
        boot_record(&mut disk, 0, &[(0x05, 100, 16000)]);
        for index in 0..records {
            let is_last = index + 1 == records;
            let link = if is_last { (0, 0, 0) } else { (0x05, (index + 1) * 4, 4) };
            let own = if is_empty && !is_last { (0, 0, 0) } else { (0x83, 1, 2) };
            boot_record(&mut disk, u64::from(100 + index * 4), &[own, link]);
        }
        good(&mut disk)
    };
    assert_eq!(chain(252, false).partitions.len(), 253);
    let table = chain(253, false);
    assert_eq!((table.partitions.len(), table.partitions[252].number), (253, 256));
    assert!(warns(&table, "too many partitions"), "{:?}", table.warnings);
    assert_eq!(chain(100, true).partitions.len(), 2);
    let table = chain(101, true);
    assert_eq!(table.partitions.len(), 1);
    assert!(warns(&table, "too many records without a partition"), "{:?}", table.warnings);
}

#[test]
fn an_mbr_counts_in_sectors_of_its_disk() {
    let mut disk = blank(8 * MIB);
    boot_record(&mut disk, 0, &[(0x83, 256, 100), (0x05, 512, 1000)]);
    boot_record(&mut disk, 512 * 8, &[(0x83, 16, 10), (0x05, 100, 100)]);
    boot_record(&mut disk, 612 * 8, &[(0x83, 1, 2)]);
    let table = read(&mut disk, 4096).expect("good table");
    let found: Vec<_> = places(&table).into_iter().map(|(n, start, len)| (n, start / 4096, len / 4096)).collect();
    assert_eq!(found, [(1, 256, 100), (2, 512, 1000), (5, 528, 10), (6, 613, 2)]);
    assert!(owns(&table, 612 * 4096 + 4095));
}

#[test]
fn an_extended_partition_on_top_of_the_table_has_no_chain() {
    let mut disk = blank(8 * MIB);
    boot_record(&mut disk, 0, &[(0x05, 0, 4096), (0x83, 5000, 100)]);
    let table = good(&mut disk);
    assert_eq!(sectors(&table), [(1, 0, 4096), (2, 5000, 100)]);
    assert!(warns(&table, "linked twice"), "{:?}", table.warnings);
}

#[test]
fn a_file_system_without_a_table_is_no_table() {
    let mut disk = blank(MIB);
    assert_eq!(read(&mut disk, 512).expect("blank").kind, TableKind::None);
    // As mkfs.vfat formats a whole disk: boot sector, signature, and an entry that covers all of it from sector 0.
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

/// A disk that counts how often it is read.
struct Counted<'a> {
    disk: &'a mut Bytes,
    reads: usize,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        self.disk.read(buf)
    }
}

impl Seek for Counted<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.disk.seek(to)
    }
}

/// Four chains with the maximum number of partitions, and the maximum number of empty records between them.
const READS_MAX: usize = 4 * 256 * 101;

fn check_sane(disk: &mut Bytes, sector_size: u32) -> Result<(), TestCaseError> {
    let len = disk.get_ref().len() as u64;
    let mut disk = Counted { disk, reads: 0 };
    let _ = guess_sector_size(&mut disk, len);
    let table = Table::read(&mut disk, len, sector_size);
    prop_assert!(disk.reads < READS_MAX, "{} reads", disk.reads);
    let Ok(table) = table else { return Ok(()) };
    for partition in &table.partitions {
        prop_assert!(partition.len > 0 && partition.range().end.0 <= len, "{:?}", partition);
        prop_assert!(partition.missing <= len / 16, "{:?}", partition);
    }
    for range in &table.own {
        prop_assert!(range.start <= range.end && range.end.0 <= len, "{:?}", range);
    }
    prop_assert!(table.partitions.is_sorted_by_key(|partition| partition.number));
    prop_assert!(table.partitions.len() <= 256 && table.warnings.len() <= 61);
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
        // Bytes of the tables; changes elsewhere would test nothing.
        let interesting: Vec<usize> = if is_gpt {
            (446..604).chain(1024..1280).collect()
        } else {
            (446..512).chain(4096 * 512 + 446..4097 * 512).chain(5200 * 512 + 446..5201 * 512).collect()
        };
        for (at, byte) in changes {
            disk.get_mut()[interesting[at.index(interesting.len())]] = byte;
        }
        if is_gpt && fix_checksums {
            seal(disk.get_mut(), 512);
        }
        check_sane(&mut disk, 512)?;
        check_sane(&mut disk, 4096)?;
        disk.get_mut().truncate(len);
        check_sane(&mut disk, 512)?;
    }
    #[test]
    fn noise_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..20_000),
        (has_signature, has_header, small) in any::<(bool, bool, bool)>(),
        sector_size in prop_oneof![Just(512u32), Just(1024), Just(4096)],
    ) {
        let mut bytes = bytes;
        if has_signature && bytes.len() > 4200 {
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
            bytes[446..510].iter_mut().step_by(16).for_each(|flag| *flag &= 0x80);
            // Numbers that point to somewhere on the disk.
            for at in (454..510).step_by(16).filter(|_| small) {
                bytes[at + 1..at + 4].fill(0);
                bytes[at + 5..at + 8].fill(0);
            }
        }
        if has_header && bytes.len() > 9000 {
            bytes[450] = 0xee;
            let at = usize::try_from(sector_size).expect("small");
            bytes[at..at + 16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
            bytes[at + 24..at + 32].copy_from_slice(&1u64.to_le_bytes());
            bytes[at + 72..at + 80].copy_from_slice(&2u64.to_le_bytes());
            bytes[at + 80..at + 88].copy_from_slice(&[4, 0, 0, 0, 128, 0, 0, 0]);
            let sum = crc32(&[&bytes[2 * at..2 * at + 512]]);
            bytes[at + 88..at + 92].copy_from_slice(&sum.to_le_bytes());
            bytes[at + 16..at + 20].fill(0);
            let sum = crc32(&[&bytes[at..at + 92]]);
            bytes[at + 16..at + 20].copy_from_slice(&sum.to_le_bytes());
        }
        check_sane(&mut Cursor::new(bytes), sector_size)?;
    }

    #[test]
    fn chains_by_chance_end(
        records in proptest::collection::vec(
            (1u32..4000, proptest::collection::vec((prop_oneof![Just(5u8), Just(0x83)], 0u32..4000, 0u32..400), 4)),
            1..60,
        ),
    ) {
        let mut disk = blank(4 * MIB);
        boot_record(&mut disk, 0, &[(0x05, 10, 4000), (0x05, 100, 8000)]);
        boot_record(&mut disk, 10, &records[0].1);
        for (lba, entries) in &records {
            boot_record(&mut disk, u64::from(*lba), entries);
        }
        check_sane(&mut disk, 512)?;
    }
}

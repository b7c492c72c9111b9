//! Tests with tables made by gptman and by hand; `tests/adapt.rs` has those of other programs.

use std::io::Cursor;

use proptest::prelude::*;

use super::super::table::*;
use super::super::tests::{MIB, blank, boot_record, gpt_disk, header_bytes, mbr_disk, raw_gpt, seal};
use super::job::*;
use super::*;
use crate::DiskRange;

const GIB: u64 = 1 << 30;

fn head_of(disk: &Cursor<Vec<u8>>) -> Vec<u8> {
    disk.get_ref().iter().copied().take(usize::try_from(MIB).expect("small")).collect()
}

fn grow(grow: Grow) -> Wish {
    Wish { grow, new_disk_id: None }
}

/// An image of 16 MiB with partitions of `(first, last)` sectors, put on a disk of `device_len`.
fn gpt(partitions: &[(u64, u64)], device_len: u64, wish: &Wish) -> Result<Adapted, AdaptError> {
    adapt(&head_of(&gpt_disk(16 * MIB, 512, partitions)), TableKind::Gpt, 512, 16 * MIB, device_len, wish)
}

fn mbr(entries: &[(u8, u32, u32)], len: u64, device_len: u64, wish: &Wish) -> Result<Adapted, AdaptError> {
    let mut disk = blank(MIB);
    boot_record(&mut disk, 0, entries);
    adapt(disk.get_ref(), TableKind::Mbr, 512, len, device_len, wish)
}

/// The table as a reader finds it on the device.
fn table(made: &Adapted, device_len: u64, sector_size: u32) -> Table {
    let mut parts = vec![(0, made.head.as_slice())];
    parts.extend(made.tail.iter().map(|(at, bytes)| (at.0, bytes.as_slice())));
    Table::read(&mut Sparse::new(parts, device_len), device_len, sector_size).expect("good table")
}

fn new_len(made: &Adapted) -> Option<u64> {
    made.grown.as_ref().map(|grown| grown.new_len)
}

fn error(result: Result<Adapted, AdaptError>) -> String {
    let error = result.expect_err("refused");
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}")
}

#[test]
fn wishes_are_read_as_they_are_written() {
    for (text, expected) in [("", Grow::No), ("no", Grow::No), (" last\n", Grow::Last), ("3", Grow::Number(3))] {
        assert_eq!(text.parse(), Ok(expected), "{text:?}");
        assert_eq!(expected.to_string().parse(), Ok(expected));
    }
    for text in ["0", "-1", "first", "3 4", "99999999999"] {
        let error = text.parse::<Grow>().expect_err(text);
        assert!(error.to_string().contains("`no`, `last`, or the number"), "{error}");
    }
}

#[test]
fn a_disk_of_the_same_size_is_not_even_looked_at() {
    let made = adapt(b"anything", TableKind::Gpt, 7, MIB, MIB, &Wish::default()).expect("unchanged");
    assert_eq!((made.head.as_slice(), made.tail, made.stale, made.grown), (&b"anything"[..], None, None, None));
    let head = head_of(&gpt_disk(16 * MIB, 512, &[(2048, 32734)]));
    let same = [grow(Grow::Last), grow(Grow::Number(1)), Wish { new_disk_id: Some([7; 16]), ..Wish::default() }];
    for wish in &same {
        let made = adapt(&head, TableKind::Gpt, 512, 16 * MIB, 16 * MIB, wish).expect("nothing to do");
        assert!(made.head == head && made.tail.is_none() && made.stale.is_none(), "{wish:?}");
        assert_eq!(made.original, Original::default());
    }
}

#[test]
fn a_gpt_moves_with_the_end_of_the_disk() {
    for sector_size in [512u32, 4096] {
        let bytes = u64::from(sector_size);
        let (len, device_len) = (4096 * bytes, 9000 * bytes);
        let disk = gpt_disk(len, sector_size, &[(1024, 2047), (2048, 4000)]);
        let head = head_of(&disk);
        let made = adapt(&head, TableKind::Gpt, sector_size, len, device_len, &Wish::default()).expect("larger");
        let (at, tail) = made.tail.as_ref().expect("backup");
        assert_eq!(at.0 + len_of(tail), device_len, "to the very end");
        let entries = (128u64 * 128).div_ceil(bytes);
        assert_eq!(made.stale, Some(DiskRange::new(len - (entries + 1) * bytes..len)));
        let table = table(&made, device_len, sector_size);
        assert_eq!(table.warnings, Vec::<String>::new());
        assert_eq!(table.partitions.iter().map(|p| p.len / bytes).collect::<Vec<_>>(), [1024, 1953]);

        let back =
            revert(&made.head, TableKind::Gpt, sector_size, device_len, len, &Original::default()).expect("back");
        assert!(back.head == head);
        let (at, tail) = back.tail.expect("the image's backup");
        assert!(disk.get_ref()[usize::try_from(at.0).expect("small")..] == tail);
    }
}

#[test]
fn only_the_fields_that_have_to_change_do() {
    let mut disk = gpt_disk(16 * MIB, 512, &[(2048, 4095), (4096, 8191)]);
    // Boot code, CHS addresses, the header's padding, the gap after the table.
    for range in [0..446, 447..450, 451..454, 512 + 92..1024, 34 * 512..2048 * 512] {
        disk.get_mut()[range].fill(0xa5);
    }
    let head = head_of(&disk);
    let wish = Wish { grow: Grow::Last, new_disk_id: Some([9; 16]) };
    let made = adapt(&head, TableKind::Gpt, 512, 16 * MIB, 64 * MIB, &wish).expect("larger");
    let may = [458..462, 528..532, 544..552, 560..568, 568..584, 600..604, 1024 + 128 + 40..1024 + 128 + 48];
    for (at, (old, new)) in head.iter().zip(&made.head).enumerate() {
        assert!(old == new || may.iter().any(|range| range.contains(&at)), "byte {at}");
    }
    assert_eq!(made.original, Original { grown: Some((2, 2 * MIB)), disk_id: Some([7; 16]) });
    let back = revert(&made.head, TableKind::Gpt, 512, 64 * MIB, 16 * MIB, &made.original).expect("back");
    assert!(back.head == head);
}

#[test]
fn a_gpt_partition_grows_to_a_full_mib() {
    let to_end = gpt(&[(2048, 4095), (4096, 8191)], 64 * MIB, &grow(Grow::Last)).expect("room");
    assert_eq!(
        to_end.grown,
        Some(Grown { number: 2, start: 2 * MIB, old_len: 2 * MIB, new_len: 61 * MIB, type_name: "", is_capped: false })
    );
    // Numbers need not follow the order on the disk.
    let first = gpt(&[(8192, 9000), (2048, 4095)], 64 * MIB, &grow(Grow::Last)).expect("room");
    assert_eq!((first.grown.as_ref().map(|g| g.number), new_len(&first)), (Some(1), Some(59 * MIB)));
    let between = gpt(&[(8192, 9000), (2048, 4095)], 64 * MIB, &grow(Grow::Number(2))).expect("a gap");
    assert_eq!(new_len(&between), Some(3 * MIB), "up to partition 1");
    let same_size = gpt(&[(2048, 4095)], 16 * MIB, &grow(Grow::Number(1))).expect("free space behind");
    assert_eq!(new_len(&same_size), Some(14 * MIB));
    // The partition ends inside the last free MiB: 32 more sectors are no reason to change it.
    let little = gpt(&[(2048, 32734)], 16 * MIB + 32 * 512, &grow(Grow::Last)).expect("moved");
    assert_eq!(little.grown, None);
    assert_eq!(new_len(&gpt(&[(2048, 32734)], 18 * MIB, &grow(Grow::Last)).expect("room")), Some(16 * MIB));
}

#[test]
fn a_partition_without_room_says_who_is_in_the_way() {
    let refused = |grow_it| error(gpt(&[(2048, 4095), (4096, 8191)], 64 * MIB, &grow(grow_it)));
    assert!(refused(Grow::Number(1)).contains("partition 1 cannot grow: partition 2 follows it directly"));
    assert!(refused(Grow::Number(3)).contains("no partition 3 to grow"));
    assert!(error(gpt(&[], 64 * MIB, &grow(Grow::Last))).contains("no partition to grow"));
}

#[test]
fn a_smaller_disk_will_do_if_the_partitions_fit() {
    let smaller = |end| gpt(&[(2048, end)], 8 * MIB, &Wish::default());
    let made = smaller(16384 - 34).expect("exactly");
    assert_eq!(table(&made, 8 * MIB, 512).warnings, Vec::<String>::new());
    assert_eq!(made.stale, Some(DiskRange::new(16 * MIB - 33 * 512..16 * MIB)));
    let text = error(smaller(16384 - 33));
    assert!(text.contains(&format!("need a disk of {} bytes", 8 * MIB + 512)), "{text}");
    assert!(error(gpt(&[], MIB + 512, &Wish::default())).contains("need a disk of"), "the backup behind the first MiB");
    assert!(error(gpt(&[], 4096, &Wish::default())).contains("need a disk of"));
}

#[test]
fn an_odd_distance_to_the_backup_is_kept() {
    for (distance, kept) in [(33, 33), (40, 40), (2048, 2048), (5000, 33u64)] {
        let mut disk = gpt_disk(16 * MIB, 512, &[(2048, 4095)]);
        rewrite_header(&mut disk, |header| header.last_usable_lba = header.backup_lba - distance);
        let head = head_of(&disk);
        let made = adapt(&head, TableKind::Gpt, 512, 16 * MIB, 64 * MIB, &Wish::default()).expect("larger");
        assert_eq!(made.head[560..568], (64 * 2048 - 1 - kept).to_le_bytes());
        let back = revert(&made.head, TableKind::Gpt, 512, 64 * MIB, 16 * MIB, &Original::default()).expect("back");
        assert_eq!(back.head == head, distance == kept);
    }
}

fn rewrite_header(disk: &mut Cursor<Vec<u8>>, change: impl FnOnce(&mut gptman::GPTHeader)) {
    let mut gpt = gptman::GPTHeader::read_from(&mut Cursor::new(disk.get_ref()[512..1024].to_vec())).expect("good");
    change(&mut gpt);
    gpt.update_crc32_checksum();
    put(disk.get_mut(), 512, &header_bytes(&gpt));
}

#[test]
fn the_protective_entry_covers_the_disk_it_covered() {
    let count = |entries: &[(u8, u32, u32)], from: u64, to: u64| {
        let mut disk = gpt_disk(16 * MIB, 512, &[(2048, 4095)]);
        disk.get_mut()[446..510].fill(0);
        boot_record(&mut disk, 0, entries);
        let made = adapt(&head_of(&disk), TableKind::Gpt, 512, from, to, &Wish::default()).expect("larger");
        let places = [446usize, 462, 478, 494];
        places.map(|at| u32_at(&made.head, at + 12)).into_iter().take(entries.len()).collect::<Vec<_>>()
    };
    assert_eq!(count(&[(0xee, 1, 32767)], 16 * MIB, 64 * MIB), [131071]);
    assert_eq!(count(&[(0xee, 1, 32767)], 16 * MIB, 4096 * GIB), [u32::MAX]);
    assert_eq!(count(&[(0xee, 1, 1000)], 16 * MIB, 64 * MIB), [131071], "one that was wrong");
    assert_eq!(count(&[(0xee, 1, u32::MAX)], 16 * MIB, 64 * MIB), [u32::MAX], "Windows");
    assert_eq!(count(&[(0xee, 1, u32::MAX)], 4096 * GIB, 16 * MIB), [32767], "back from a large disk");
    let hybrid = [(0xee, 1, 2047), (0x83, 2048, 2048)];
    assert_eq!(count(&hybrid, 16 * MIB, 64 * MIB), [2047, 2048]);
    let hybrid = [(0xee, 1, 2047), (0x83, 2048, 2048), (0xee, 4096, 32768 - 4096)];
    assert_eq!(count(&hybrid, 16 * MIB, 64 * MIB), [2047, 2048, 131072 - 4096]);
}

#[test]
fn damaged_and_strange_gpts_are_refused_in_words() {
    let refused = |change: &dyn Fn(&mut Cursor<Vec<u8>>)| {
        let mut disk = gpt_disk(16 * MIB, 512, &[(2048, 4095), (8192, 9000)]);
        change(&mut disk);
        error(adapt(&head_of(&disk), TableKind::Gpt, 512, 16 * MIB, 64 * MIB, &grow(Grow::Last)))
    };
    let is = |text: String, words: &str| assert!(text.contains(words), "{text}");
    is(refused(&|disk| disk.get_mut()[1024 + 50] ^= 1), "do not match their checksum");
    is(refused(&|disk| disk.get_mut()[512 + 60] ^= 1), "is damaged");
    is(refused(&|disk| disk.get_mut()[..512].fill(0)), "no protective MBR");
    is(refused(&|disk| disk.get_mut()[446 + 4] = 0x83), "kind gpt, what it starts with is of kind mbr");
    is(refused(&|disk| disk.get_mut().fill(0)), "kind gpt, what it starts with is of kind none");
    is(refused(&|disk| disk.get_mut().truncate(600)), "is damaged");
    is(refused(&|disk| disk.get_mut().truncate(1024 + 127 * 128)), "outside of the first 17280 bytes");
    is(refused(&|disk| rewrite_header(disk, |header| header.partition_entry_lba = 2048 - 31)), "outside of the first");
    is(refused(&|disk| rewrite_header(disk, |header| header.partition_entry_lba = u64::MAX)), "outside of the first");
    is(refused(&|disk| rewrite_header(disk, |header| header.partition_entry_lba = 1)), "can be read");
    is(refused(&|disk| rewrite_header(disk, |header| header.first_usable_lba = u64::MAX)), "first usable sector");
    is(refused(&|disk| rewrite_header(disk, |header| header.primary_lba = 9)), "not 1");
    is(refused(&|disk| disk.get_mut()[512 + 12] = 91), "is damaged");
    is(error(adapt(&[0; 2048], TableKind::Gpt, 512, 1024, 4096, &Wish::default())), "that cannot be");
    is(error(adapt(&[0; 512], TableKind::Gpt, 500, 1024, 4096, &Wish::default())), "sector size of 500");
}

#[test]
fn a_header_cannot_make_a_partition_stale() {
    for (backup_lba, expected) in [
        (4000, None),
        (4096 + 32, Some(DiskRange::new(4096 * 512..4129 * 512))),
        (100, None),
        (32767, Some(DiskRange::new(16 * MIB - 33 * 512..16 * MIB))),
        (32768, None),
        (0, None),
        (u64::MAX, None),
    ] {
        let mut disk = gpt_disk(16 * MIB, 512, &[(2048, 4095)]);
        rewrite_header(&mut disk, |header| header.backup_lba = backup_lba);
        let made = adapt(&head_of(&disk), TableKind::Gpt, 512, 16 * MIB, 64 * MIB, &Wish::default()).expect("larger");
        assert_eq!(made.stale, expected, "{backup_lba}");
    }
}

#[test]
fn an_mbr_does_not_depend_on_its_disk() {
    let entries = [(0x83, 2048, 2048), (0x05, 8192, 4096)];
    let made = mbr(&entries, 16 * MIB, 64 * MIB, &Wish::default()).expect("larger");
    assert!(made.tail.is_none() && made.stale.is_none() && made.grown.is_none());
    assert!(mbr(&entries, 16 * MIB, 12288 * 512, &Wish::default()).is_ok(), "smaller, and all partitions fit");
    assert!(error(mbr(&entries, 16 * MIB, 12287 * 512, &Wish::default())).contains("need a disk of 6291456 bytes"));
    let made = mbr(&entries, MIB * 16, MIB * 16, &Wish { new_disk_id: Some([9; 16]), ..Wish::default() });
    let made = made.expect("a new signature");
    assert_eq!((&made.head[440..444], &made.head[444..446]), (&[9; 4][..], &[0; 2][..]));
    assert_eq!(made.original.disk_id, Some([0; 16]));
}

#[test]
fn primary_partitions_grow() {
    let last = mbr(&[(0x05, 2048, 2048), (0x83, 8192, 2048)], 16 * MIB, 64 * MIB, &grow(Grow::Last)).expect("room");
    assert_eq!(new_len(&last), Some(60 * MIB), "the last one is primary");
    let between = mbr(&[(0x83, 63, 2000), (0x83, 8192, 2048)], 16 * MIB, 16 * MIB, &grow(Grow::Number(1)));
    assert_eq!(new_len(&between.expect("a gap")), Some(8192 * 512 - 63 * 512));
    let directly = mbr(&[(0x83, 63, 8129), (0x83, 8192, 2048)], 16 * MIB, 64 * MIB, &grow(Grow::Number(1)));
    assert!(error(directly).contains("partition 2 follows it directly"));
}

#[test]
fn an_mbr_counts_to_2_tib() {
    let one = |device_len| mbr(&[(0x83, 2048, 2048)], GIB, device_len, &grow(Grow::Last)).expect("room").grown;
    let grown = |len: u64, is_capped| {
        Some(Grown { number: 1, start: MIB, old_len: MIB, new_len: len, type_name: "Linux", is_capped })
    };
    assert_eq!(one(2048 * GIB), grown(2048 * GIB - MIB, false));
    assert_eq!(one(3000 * GIB), grown(2048 * GIB - MIB, true));
    let full = mbr(&[(0x83, 2048, u32::MAX - 2047)], 2048 * GIB, 3000 * GIB, &grow(Grow::Last)).expect("nothing to do");
    assert_eq!(full.grown, None);
}

#[test]
fn logical_partitions_are_not_grown() {
    for (wish, number) in [(Grow::Last, 2), (Grow::Number(2), 2), (Grow::Number(6), 6)] {
        let disk = mbr_disk();
        let result = adapt(&head_of(&disk), TableKind::Mbr, 512, 8 * MIB, 64 * MIB, &grow(wish));
        assert!(error(result).contains(&format!("partition {number} is a logical partition or holds some")));
    }
    // A chain that starts in the head and continues after it is not followed.
    let mut disk = blank(MIB);
    boot_record(&mut disk, 0, &[(0x05, 63, 8000), (0x83, 16384, 2048)]);
    boot_record(&mut disk, 63, &[(0x83, 63, 1000), (0x05, 3000, 600)]);
    let made = adapt(disk.get_ref(), TableKind::Mbr, 512, 16 * MIB, 64 * MIB, &grow(Grow::Last)).expect("primary");
    assert_eq!(made.grown.expect("room").number, 2);
}

#[test]
fn addresses_in_the_usual_geometry_are_kept_right() {
    let mut disk = blank(MIB);
    boot_record(&mut disk, 0, &[(0x83, 2048, 16384)]);
    // The CHS address that sfdisk writes for the end of sectors 2048 to 18431.
    put(disk.get_mut(), 451, &[0x25, 0x24, 0x01]);
    for (device_len, expected) in [(10 * MIB, [0x46, 0x05, 0x01]), (64 * GIB, [0xfe, 0xff, 0xff])] {
        let made = adapt(disk.get_ref(), TableKind::Mbr, 512, 9 * MIB, device_len, &grow(Grow::Last)).expect("room");
        assert_eq!(made.head[451..454], expected);
        let back = revert(&made.head, TableKind::Mbr, 512, device_len, 9 * MIB, &made.original).expect("back");
        assert!(back.head == *disk.get_ref());
    }
    put(disk.get_mut(), 451, &[1, 2, 3]);
    let made = adapt(disk.get_ref(), TableKind::Mbr, 512, 9 * MIB, GIB, &grow(Grow::Last)).expect("room");
    assert_eq!(made.head[451..454], [1, 2, 3], "another geometry");
}

#[test]
fn mbrs_that_are_none_are_refused_in_words() {
    let refused = |disk: &Cursor<Vec<u8>>| {
        error(adapt(&head_of(disk), TableKind::Mbr, 512, 16 * MIB, 64 * MIB, &grow(Grow::Last)))
    };
    assert!(refused(&gpt_disk(16 * MIB, 512, &[])).contains("kind mbr, what it starts with is of kind gpt"));
    assert!(refused(&blank(MIB)).contains("kind mbr, what it starts with is of kind none"));
    assert!(refused(&blank(0)).contains("of kind none"));
    let two = [(0x83, 2048, 2049), (0x83, 4096, 1)];
    assert!(
        error(mbr(&two, 16 * MIB, 64 * MIB, &grow(Grow::Last))).contains("partition 2 shares bytes with partition 1")
    );
    let none = adapt(&[0; 512], TableKind::None, 512, MIB, 2 * MIB, &grow(Grow::Last));
    assert!(error(none).contains("no partition table"));
    let none = adapt(&[3; 512], TableKind::None, 512, MIB, 2 * MIB, &Wish::default()).expect("nothing to do");
    assert_eq!(none.head, [3; 512]);
}

#[test]
fn partitions_that_overlap_stay_as_they_are() {
    let both = [(2048, 8191), (4096, 6000)];
    let made = gpt(&both, 64 * MIB, &Wish::default()).expect("larger");
    let found = table(&made, 64 * MIB, 512);
    assert_eq!(found.partitions.iter().map(|p| p.len / 512).collect::<Vec<_>>(), [6144, 1905]);
    assert_eq!(found.warnings, ["partitions 1 and 2 overlap"]);
    let back = revert(&made.head, TableKind::Gpt, 512, 64 * MIB, 16 * MIB, &Original::default()).expect("back");
    assert!(back.head == head_of(&gpt_disk(16 * MIB, 512, &both)));
    for wish in [Grow::Last, Grow::Number(1)] {
        let text = error(gpt(&both, 64 * MIB, &grow(wish)));
        assert!(text.contains("shares bytes with partition") && text.contains("is not grown"), "{text}");
    }
    // A stick made from a CD image: the first partition covers all of it from sector 0.
    let stick = [(0x00, 0, 20000), (0xef, 300, 5000)];
    let made = mbr(&stick, 16 * MIB, 64 * MIB, &Wish { new_disk_id: Some([9; 16]), ..Wish::default() }).expect("fits");
    let back = revert(&made.head, TableKind::Mbr, 512, 64 * MIB, 16 * MIB, &made.original).expect("back");
    assert_eq!(
        (&back.head[440..444], back.original.disk_id),
        (&[0; 4][..], Some([&[9; 4][..], &[0; 12]].concat().try_into().expect("16")))
    );
}

#[test]
fn a_partition_from_sector_0_on_grows() {
    let made = mbr(&[(0x17, 0, 2048)], 16 * MIB, 64 * MIB, &grow(Grow::Last)).expect("room");
    assert_eq!(new_len(&made), Some(64 * MIB));
    let largest = mbr(&[(0x17, 0, 2048)], 16 * MIB, 3000 * GIB, &grow(Grow::Last)).expect("room").grown.expect("room");
    assert_eq!((largest.new_len, largest.is_capped), (2048 * GIB - MIB, true), "2^32 sectors are one too many");
}

#[test]
fn what_a_header_has_behind_its_fields_goes_along() {
    for header_len in [92, 100, 512] {
        let disk = raw_gpt(16 * MIB, header_len, 128, &[(1, 2048, 4095), (2, 4096, 8191)]);
        let head = head_of(&disk);
        let wish = Wish { grow: Grow::Last, new_disk_id: Some([9; 16]) };
        let made = adapt(&head, TableKind::Gpt, 512, 16 * MIB, 64 * MIB, &wish).expect("larger");
        let (at, tail) = made.tail.as_ref().expect("backup");
        assert!(made.head[512 + 92..1024].iter().all(|&byte| byte == 0xa5), "all of the first");
        let header_len = usize::try_from(header_len).expect("small");
        let copy = &tail[tail.len() - 512..];
        assert!(copy[92..header_len].iter().all(|&byte| byte == 0xa5) && copy[header_len..].iter().all(|&b| b == 0));
        assert_eq!(table(&made, 64 * MIB, 512).warnings, Vec::<String>::new(), "both checksums are right");
        assert_eq!(at.0 + len_of(tail), 64 * MIB);
        let back = revert(&made.head, TableKind::Gpt, 512, 64 * MIB, 16 * MIB, &made.original).expect("back");
        assert!(back.head == head);
        let (at, tail) = back.tail.expect("the image's backup");
        assert!(disk.get_ref()[usize::try_from(at.0).expect("small")..] == tail);
    }
}

#[test]
fn many_entries_move_if_the_head_has_them() {
    let disk = raw_gpt(16 * MIB, 92, 2048, &[(1, 2048, 4095), (2000, 4096, 8191)]);
    let head = head_of(&disk);
    let made = adapt(&head, TableKind::Gpt, 512, 16 * MIB, 64 * MIB, &grow(Grow::Last)).expect("larger");
    assert_eq!(made.original.grown, Some((2000, 2 * MIB)));
    assert_eq!(table(&made, 64 * MIB, 512).warnings, Vec::<String>::new());
    let back = revert(&made.head, TableKind::Gpt, 512, 64 * MIB, 16 * MIB, &made.original).expect("back");
    assert!(back.head == head);
    let head = head_of(&raw_gpt(16 * MIB, 92, 32768, &[]));
    assert!(
        error(adapt(&head, TableKind::Gpt, 512, 16 * MIB, 64 * MIB, &Wish::default())).contains("outside of the first")
    );
}

#[test]
fn a_gpt_that_was_cut_off_is_whole_on_a_larger_disk() {
    // 16 MiB of a disk of 17 MiB are present.
    let disk = raw_gpt(17 * MIB, 92, 128, &[(1, 2048, 4095), (2, 4096, 34000), (4, 32800, 34200)]);
    let head = head_of(&disk);
    let fit = |device_len, wish: &Wish| adapt(&head, TableKind::Gpt, 512, 16 * MIB, device_len, wish);
    let made = fit(20 * MIB, &Wish::default()).expect("room for all of it");
    let found = table(&made, 20 * MIB, 512);
    let lens: Vec<_> = found.partitions.iter().map(|p| (p.number, p.len / 512, p.missing)).collect();
    assert_eq!(lens, [(1, 2048, 0), (2, 29905, 0), (4, 1401, 0)]);
    assert_eq!(
        found.warnings,
        ["partitions 2 and 4 overlap"],
        "what was missing overlaps in the table as it always did"
    );
    // Its last sector is 34000, and entries and header follow it.
    assert!(fit(34034 * 512, &Wish::default()).is_ok());
    let text = error(fit(34033 * 512, &Wish::default()));
    assert!(text.contains(&format!("need a disk of {} bytes", 34034 * 512)), "{text}");
    assert!(error(fit(16 * MIB, &grow(Grow::Last))).contains("need a disk of"), "the backup would lie on top of it");
    // Going back to a disk that is too short for the table is impossible, and the error says so.
    assert!(revert(&made.head, TableKind::Gpt, 512, 20 * MIB, 16 * MIB, &Original::default()).is_err());
}

#[test]
fn an_mbr_that_was_cut_off_fits_where_its_bytes_do() {
    let entries = [(0x83, 2048, 2048), (0x83, 4096, 17 * 2048 - 4096)];
    let id = Wish { new_disk_id: Some([9; 16]), ..Wish::default() };
    for device_len in [16 * MIB, 16 * MIB + 512, 17 * MIB, 64 * MIB] {
        let made = mbr(&entries, 16 * MIB, device_len, &id).expect("as much as there was");
        let back = revert(&made.head, TableKind::Mbr, 512, device_len, 16 * MIB, &made.original).expect("back");
        assert_eq!(back.head[..440], made.head[..440]);
        assert_eq!(back.head[440..444], [0; 4]);
    }
    let grown = mbr(&entries, 16 * MIB, 64 * MIB, &grow(Grow::Last)).expect("room");
    assert_eq!(grown.original.grown, Some((2, 15 * MIB)), "as the table had it");
    let back = revert(&grown.head, TableKind::Mbr, 512, 64 * MIB, 16 * MIB, &grown.original).expect("back");
    assert_eq!(u32_at(&back.head, 474), 17 * 2048 - 4096);
    assert!(error(mbr(&entries, 16 * MIB, 16 * MIB - 512, &id)).contains("need a disk of 16777216 bytes"));
}

#[test]
fn entries_past_the_end_may_be_on_a_larger_disk() {
    // Only boot code, and a partition that starts where this disk ends.
    let entries = [(0x83, 2048, 2048), (0x00, 100_000, 10), (0x83, 16 * 2048, 100)];
    let id = Wish { new_disk_id: Some([9; 16]), ..Wish::default() };
    let made = mbr(&entries, 16 * MIB, 64 * MIB, &id).expect("larger");
    assert_eq!(table(&made, 64 * MIB, 512).partitions.len(), 3);
}

#[test]
fn what_never_was_cannot_be_gone_back_to() {
    let head = head_of(&gpt_disk(16 * MIB, 512, &[(2048, 4095), (8192, 9000)]));
    for len in [0, 100, u64::MAX, u64::MAX - 511, 4 * MIB, 1 << 63] {
        let original = Original { grown: Some((1, len)), disk_id: None };
        assert!(revert(&head, TableKind::Gpt, 512, 16 * MIB, 15 * MIB, &original).is_err(), "{len}");
    }
}

fn any_wish() -> impl Strategy<Value = Wish> {
    let grow = prop_oneof![Just(Grow::No), Just(Grow::Last), (1u32..7).prop_map(Grow::Number)];
    (grow, any::<Option<[u8; 16]>>()).prop_map(|(grow, new_disk_id)| Wish { grow, new_disk_id })
}

/// Properties of every table that could be adapted, whatever its source.
fn check_sane(head: &[u8], kind: TableKind, from_len: u64, to_len: u64, wish: &Wish) -> Result<(), TestCaseError> {
    let Ok(made) = adapt(head, kind, 512, from_len, to_len, wish) else { return Ok(()) };
    prop_assert_eq!(made.head.len(), head.len());
    if from_len == to_len && *wish == Wish::default() || kind == TableKind::None {
        return Ok(());
    }
    // Logical partitions are after the head or not read.
    let shown = if kind == TableKind::Mbr { 512 } else { head.len() };
    let before = Table::read(&mut Sparse::new(vec![(0, &head[..shown])], from_len), from_len, 512).expect("good");
    let shown = Adapted { head: made.head[..shown].to_vec(), ..made.clone() };
    let after = table(&shown, to_len, 512);
    let whole = |partition: &Partition| Partition { len: partition.full_len(), missing: 0, ..partition.clone() };
    for old in &before.partitions {
        let new = after.partitions.iter().find(|new| new.number == old.number).expect("none is lost");
        let (old, new) = (whole(old), whole(new));
        match made.grown.as_ref().filter(|grown| grown.number == old.number) {
            Some(grown) => {
                prop_assert!((grown.old_len, grown.new_len) == (old.len, new.len) && new.len > old.len);
                prop_assert_eq!(Partition { len: old.len, ..new }, old.clone());
            }
            None => prop_assert_eq!(new, old.clone()),
        }
        if let Some(stale) = &made.stale {
            prop_assert!(stale.intersect(old.range()).is_empty());
        }
    }
    let known = |new: &Partition| before.partitions.iter().any(|old| old.number == new.number);
    prop_assert!(after.partitions.iter().all(|new| known(new) || whole(new).range().end.0 > from_len));
    if let Some((at, bytes)) = &made.tail {
        prop_assert!(at.0 >= len_of(head) && at.0 + len_of(bytes) == to_len / 512 * 512);
    }
    Ok(())
}

proptest! {
    #[test]
    fn noise_never_panics(
        head in proptest::collection::vec(any::<u8>(), 0..4096),
        has_signature: bool,
        from_len in prop_oneof![0u64..20_000, any::<u64>()],
        to_len in prop_oneof![0u64..20_000, any::<u64>()],
        wish in any_wish(),
        original in (any::<Option<(u32, u64)>>(), any::<Option<[u8; 16]>>()),
    ) {
        let mut head = head;
        if has_signature && head.len() >= 600 {
            put(&mut head, 510, &[0x55, 0xaa]);
            put(&mut head, 512, b"EFI PART");
            head[446..510].iter_mut().step_by(16).for_each(|flag| *flag &= 0x80);
        }
        for kind in [TableKind::Gpt, TableKind::Mbr, TableKind::None] {
            check_sane(&head, kind, from_len, to_len, &wish)?;
            let original = Original { grown: original.0, disk_id: original.1 };
            let _ = revert(&head, kind, 512, from_len, to_len, &original);
        }
    }

    #[test]
    fn mutated_tables_never_panic_and_never_lose_a_partition(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        is_gpt: bool,
        from_len in prop_oneof![Just(16 * MIB), 15 * MIB..17 * MIB],
        to_len in prop_oneof![any::<u64>(), 4 * MIB..64 * MIB],
        wish in any_wish(),
        cut in prop_oneof![Just(1usize << 20), 0usize..40_000],
    ) {
        let mut disk = if is_gpt { gpt_disk(16 * MIB, 512, &[(2048, 4095), (8192, 9000), (4096, 6000)]) } else { mbr_disk() };
        let places: Vec<usize> = if is_gpt { (446..604).chain(1024..1500).collect() } else { (440..512).collect() };
        for (at, byte) in changes {
            disk.get_mut()[places[at.index(places.len())]] = byte;
        }
        let mut head = head_of(&disk);
        if is_gpt {
            seal(&mut head, 512);
        }
        head.truncate(cut);
        let kind = if is_gpt { TableKind::Gpt } else { TableKind::Mbr };
        check_sane(&head, kind, from_len, to_len, &wish)?;
    }

    #[test]
    fn the_way_back_is_exact(
        sector_size in prop_oneof![Just(512u32), Just(4096)],
        sizes in (9100u64..12_000, 9100u64..12_000),
        first in 1024u64..3000,
        len in 1u64..1000,
        gap in 0u64..5000,
        wish in any_wish(),
    ) {
        let bytes = u64::from(sector_size);
        let (from_len, to_len) = (sizes.0 * bytes, sizes.1 * bytes);
        let second = first + len + gap;
        let partitions = [(second, second + 9), (first, first + len - 1)];
        let disk = gpt_disk(from_len, sector_size, &partitions);
        let head = head_of(&disk);
        if let Ok(made) = adapt(&head, TableKind::Gpt, sector_size, from_len, to_len, &wish) {
            let back = revert(&made.head, TableKind::Gpt, sector_size, to_len, from_len, &made.original).expect("back");
            prop_assert!(back.head == head);
            if let Some((at, tail)) = back.tail {
                prop_assert!(disk.get_ref()[usize::try_from(at.0).expect("small")..] == tail);
            }
        } else {
            prop_assert!(wish.grow != Grow::No && wish.grow != Grow::Last);
        }
    }
}

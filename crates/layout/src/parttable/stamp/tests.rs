//! Stamps on tables made by hand and by chance.

use metainfo::{FileEntry, ImageFacts, Metainfo, NewTorrent, Zeros};
use proptest::prelude::*;

use super::*;
use crate::parttable::tests::{MIB, blank, boot_record, gpt_disk};

fn stamp() -> Stamp {
    Stamp { deployment: "7f3a".to_owned(), infohash: [9; 20] }
}

/// The layout of an image with these extents and zeros (offset and length in bytes).
fn layout(table: TableKind, disk_size: u64, sector_size: u32, extents: &[(u64, u64)], zeros: &[(u64, u64)]) -> Layout {
    let files: Vec<_> =
        extents.iter().map(|(at, length)| FileEntry { length: *length, path: vec![format!("{at:x}")] }).collect();
    let len: u64 = extents.iter().map(|(_, len)| len).sum();
    let piece_len = 1 << 20;
    let torrent = NewTorrent {
        name: "root".to_owned(),
        announce: None,
        piece_len,
        hashes: vec![[0; 20]; usize::try_from(len.div_ceil(u64::from(piece_len))).expect("small")],
        files,
        facts: Some(ImageFacts {
            disk_size,
            sector_size,
            table,
            device: "disk".to_owned(),
            zeros: Zeros::new(zeros.iter().map(|(at, len)| *at..at + len).collect()).expect("whole blocks"),
            ..ImageFacts::default()
        }),
        private: true,
    };
    Layout::new(&Metainfo::parse(&torrent.to_bytes().expect("sane")).expect("sane")).expect("sane")
}

fn ends(disk: &[u8]) -> Vec<(u64, &[u8])> {
    let head = disk.len().min(1 << 20);
    let tail = disk.len().saturating_sub(1 << 20).max(head);
    vec![(0, &disk[..head]), (u64::try_from(tail).expect("small"), &disk[tail..])]
}

#[test]
fn a_record_is_for_one_place_of_one_device() {
    let at = DiskOffset(MIB - 512);
    let record = stamp().to_record(at, 12 * MIB).expect("short");
    assert_eq!(Stamp::from_record(&record, at, 12 * MIB), Some(stamp()));
    assert_eq!(Stamp::from_record(&record, DiskOffset(at.0 + 512), 12 * MIB), None, "moved");
    assert_eq!(Stamp::from_record(&record, at, 13 * MIB), None, "another device");
    assert_eq!(Stamp::from_record(&record[..511], at, 12 * MIB), None, "short");
    assert!(looks_like_stamp(&record) && !looks_like_stamp(&[0; 512]));
    for index in 0..record.len() {
        let mut bad = record;
        bad[index] ^= 1;
        assert_eq!(Stamp::from_record(&bad, at, 12 * MIB), None, "byte {index}");
    }
    let named = |deployment: String| Stamp { deployment, ..stamp() }.to_record(at, MIB);
    assert!(named(String::new()).is_none() && named("x".repeat(447)).is_none() && named("x".repeat(446)).is_some());
}

#[test]
fn the_usual_disks_have_a_place() {
    // All of the gap is the image's, as captures have it: then behind the last partition.
    let disk = gpt_disk(64 * MIB, 512, &[(2048, 65535), (65536, 129_023)]).into_inner();
    let whole_gap = [(0, 2 * MIB), (64 * MIB - 33 * 512, 33 * 512)];
    let place = |extents: &[(u64, u64)], disk: &[u8], table, sector_size| {
        let len = u64::try_from(disk.len()).expect("small");
        place(&layout(table, len, sector_size, extents, &[]), &[], ends(disk), sector_size, len).map(DiskRange::bytes)
    };
    let last = 64 * MIB - 34 * 512;
    assert_eq!(place(&whole_gap, &disk, TableKind::Gpt, 512), Some(last..last + 512));
    // The gap is the image's in part.
    let table_only = [(0, 34 * 512), (64 * MIB - 33 * 512, 33 * 512)];
    assert_eq!(place(&table_only, &disk, TableKind::Gpt, 512), Some(MIB - 512..MIB));

    let mut disk = blank(64 * MIB);
    boot_record(&mut disk, 0, &[(0x83, 2048, 100_000)]);
    let disk = disk.into_inner();
    assert_eq!(place(&[(0, 300 << 10)], &disk, TableKind::Mbr, 512), Some(MIB - 512..MIB));
    assert_eq!(place(&[(0, MIB)], &disk, TableKind::Mbr, 512), Some(64 * MIB - 512..64 * MIB));
    // An old gap of 62 sectors is all boot loader's.
    let mut disk = blank(64 * MIB);
    boot_record(&mut disk, 0, &[(0x83, 63, 131_072 - 63)]);
    assert_eq!(place(&[(0, 512)], &disk.into_inner(), TableKind::Mbr, 512), None);
    // One table is said, another one is there.
    assert_eq!(place(&[(0, 512)], &vec![0; 64 << 20], TableKind::Gpt, 512), None);
}

#[test]
fn an_image_without_a_table_leaves_what_is_behind_it() {
    let bare = layout(TableKind::None, 8 * MIB, 512, &[(0, MIB)], &[]);
    assert_eq!(place(&bare, &[], Vec::new(), 512, 8 * MIB), None);
    let found = place(&bare, &[], Vec::new(), 4096, 16 * MIB + 512).map(DiskRange::bytes);
    assert_eq!(found, Some(16 * MIB - 4096..16 * MIB));
    let partition = Layout::of_extents(bare.extents().to_vec()).expect("sane");
    assert_eq!(place(&partition, &[], Vec::new(), 512, 16 * MIB), None, "of a partition, as far as is known");
}

prop_compose! {
    /// A kind of table, a sector size, a length in sectors; partitions, extents, zeros and swap areas in shares of 1000.
    fn disks()(
        kind in 0..3usize,
        is_4k: bool,
        mib in 3u64..20,
        odd in 0u64..9,
        larger in 0u64..4,
        partitions in proptest::collection::vec((0u64..1000, 1u64..400), 0..4),
        extents in proptest::collection::vec((0u64..1000, 1u64..300), 0..6),
        near_ends: [bool; 4],
    ) -> (TableKind, u32, u64, u64, Vec<(u64, u64)>, Vec<(u64, u64)>, [bool; 4]) {
        let sector_size = if is_4k { 4096 } else { 512 };
        let kind = [TableKind::None, TableKind::Mbr, TableKind::Gpt][kind];
        let sectors = mib * MIB / u64::from(sector_size) + odd;
        (kind, sector_size, sectors, larger * (MIB + 4096), partitions, extents, near_ends)
    }
}

proptest! {
    #[test]
    fn a_stamp_is_in_nobodys_way((kind, sector_size, sectors, larger, shares, holes, near_ends) in disks()) {
        let sector_len = u64::from(sector_size);
        let image_len = sectors * sector_len;
        let device_len = image_len + larger;
        let of = |share: u64| sectors * share / 1000;
        let partitions: Vec<(u64, u64)> = shares
            .iter()
            .map(|&(start, len)| (of(start).max(40), (of(start).max(40) + of(len)).min(sectors - 40)))
            .filter(|(first, last)| first <= last)
            .collect();
        let device = match kind {
            TableKind::Gpt => gpt_disk(device_len, sector_size, &partitions),
            TableKind::Mbr => {
                let mut disk = blank(device_len);
                let narrow = |sector: u64| u32::try_from(sector).expect("small");
                let entries: Vec<_> = partitions
                    .iter()
                    .map(|&(first, last)| (0x83, narrow(first), narrow(last - first + 1)))
                    .collect();
                boot_record(&mut disk, 0, if entries.is_empty() { &[(0x83, 40, 1)] } else { &entries });
                disk
            }
            TableKind::None => blank(device_len),
        }
        .into_inner();

        // The table is the image's, and what else is near the ends of the disk, by chance.
        let mut set = crate::ExtentSet::default();
        set.insert(DiskRange::new(0..34 * sector_len));
        let near = [(MIB - 4096, 4096), (600 << 10, 100 << 10), (image_len - MIB, 4096), (image_len - 40 * sector_len, 40 * sector_len)];
        near.iter().zip(near_ends).filter(|(_, has)| *has).for_each(|((at, len), _)| set.insert(DiskRange::new(*at..at + len)));
        holes.iter().for_each(|&(start, len)| {
            set.insert(DiskRange::new(of(start) * sector_len..(of(start) + of(len)).min(sectors) * sector_len));
        });
        let extents: Vec<(u64, u64)> =
            set.into_extents(sector_len, image_len).iter().map(|extent| (extent.disk.0, extent.len)).collect();
        let layout = layout(kind, image_len, sector_size, &extents, &[]);
        let swap = [DiskRange::new(image_len - 8192..image_len - 4096)];
        let found = place(&layout, &swap, ends(&device), sector_size, device_len);

        if let Some(found) = found {
            prop_assert_eq!((found.start.0 % sector_len, found.len()), (0, sector_len));
            prop_assert!(found.end.0 <= device_len && found.start.0 >= BOOT_LOADERS_LEN);
            for &(at, len) in &extents {
                prop_assert!(found.intersect(DiskRange::new(at..at + len)).is_empty(), "content at {at}");
            }
            for &(first, last) in partitions.iter().filter(|_| kind != TableKind::None) {
                let partition = DiskRange::new(first * sector_len..(last + 1) * sector_len);
                prop_assert!(found.intersect(partition).is_empty(), "a partition at sector {first}");
            }
            prop_assert!(found.intersect(swap[0]).is_empty());
            if kind == TableKind::Gpt {
                let copy = DiskRange::new(device_len / sector_len * sector_len - 33 * sector_len..device_len);
                prop_assert!(sector_size == 4096 || found.intersect(copy).is_empty());
                prop_assert!(found.end.0 <= device_len - 5 * sector_len);
            }
            if kind == TableKind::None {
                prop_assert!(found.start.0 >= image_len);
            } else {
                // What a restore takes away first covers it, so that no stamp outlives the image it speaks of.
                let deferred = layout.deferred(device_len);
                prop_assert!(deferred.iter().any(|range| range.start <= found.start && found.end <= range.end));
            }
            prop_assert!(windows(device_len).iter().any(|range| range.start <= found.start && found.end <= range.end));
            // It is found again by looking, and a table with it is still the same table.
            let mut stamped = device.clone();
            let record = stamp().to_record(found.start, device_len).expect("short");
            let at = usize::try_from(found.start.0).expect("small");
            stamped[at..at + STAMP_LEN].copy_from_slice(&record);
            let read = |disk: &Vec<u8>| Table::read(&mut std::io::Cursor::new(disk), device_len, sector_size);
            if kind != TableKind::None {
                prop_assert_eq!(read(&stamped).expect("good"), read(&device).expect("good"));
            }
        }
    }

    #[test]
    fn any_bytes_are_a_stamp_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..600), at: u64, len: u64) {
        let _ = Stamp::from_record(&bytes, DiskOffset(at), len);
        let mut record = MAGIC.to_vec();
        record.extend_from_slice(&bytes);
        let _ = Stamp::from_record(&record, DiskOffset(at), len);
    }
}

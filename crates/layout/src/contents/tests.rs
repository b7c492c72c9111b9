//! Tests with signatures written by hand, tables made by the crates that write them, and random bytes.

use std::io::{self, Cursor, Read, Seek, SeekFrom};

use gptman::{GPT, GPTPartitionEntry};
use proptest::prelude::*;

use super::describe;

const MIB: usize = 1 << 20;

/// Bytes to write at an offset.
type Bytes<'a> = (usize, &'a [u8]);

fn disk(len: usize, parts: &[Bytes<'_>]) -> Vec<u8> {
    let mut disk = vec![0; len];
    put(&mut disk, 0, parts);
    disk
}

fn put(disk: &mut [u8], start: usize, parts: &[Bytes<'_>]) {
    for (at, bytes) in parts {
        disk[start + at..start + at + bytes.len()].copy_from_slice(bytes);
    }
}

fn told(disk: &[u8]) -> String {
    describe(&mut Cursor::new(disk), disk.len() as u64, 512)
}

const EXT: [Bytes<'_>; 2] = [(1024 + 0x38, &[0x53, 0xef]), (1024 + 0x78, b"root\0")];
const EXT4: Bytes<'_> = (1024 + 0x60, &[0x40]);
const FAT32: [Bytes<'_>; 8] = [
    (0, &[0xeb, 0x58, 0x90]),
    // 512-byte sectors, one sector per cluster, 32 of them reserved, two tables.
    (11, &[0, 2, 1, 32, 0, 2]),
    (21, &[0xf8]),
    (32, &[0, 0x10, 0, 0]),
    (36, &[8, 0, 0, 0]),
    (44, &[2]),
    (71, b"ESP        FAT32   "),
    (510, &[0x55, 0xaa]),
];
const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0];

#[test]
fn whole_disks_are_recognized() {
    let cases: &[(&[Bytes<'_>], &str)] = &[
        (&[], "blank"),
        (&[(MIB, b"x")], "unknown data"),
        (&[(3, b"NTFS    ")], "NTFS on the whole disk"),
        (&[(3, b"EXFAT   ")], "exFAT on the whole disk"),
        (&[(3, b"-FVE-FS-")], "BitLocker"),
        (&[(0, b"LUKS\xba\xbe\x00\x01")], "LUKS"),
        (&[(0, b"LUKS\xba\xbe\x00\x02"), (24, b"vault")], "LUKS \"vault\""),
        (&[(512, b"LABELONE"), (512 + 24, b"LVM2 001")], "LVM member"),
        (&[(0, MD)], "RAID member"),
        (&[(4096, MD), (4096 + 32, b"host:0")], "RAID member \"host:0\""),
        (&[(2 * MIB - 16 * 512, MD)], "RAID member"),
        (&[(2 * MIB - 65536, &MD[..4])], "RAID member"),
        (&[(2 * MIB - 1024, b"Intel Raid ISM Cfg Sig. 1.3")], "RAID member"),
        (&EXT, "ext2 \"root\" on the whole disk"),
        (&[EXT[0], (1024 + 0x5c, &[4])], "ext3 on the whole disk"),
        (&[EXT[0], EXT4], "ext4 on the whole disk"),
        (&[(0, b"XFSB"), (108, b"data")], "XFS \"data\" on the whole disk"),
        (&[(0x1_0040, b"_BHRfS_M"), (0x1_012b, b"pool")], "btrfs \"pool\" on the whole disk"),
        (&[(1024, &[0x10, 0x20, 0xf5, 0xf2]), (1148, b"a\0b\0")], "f2fs \"ab\" on the whole disk"),
        (&[(1024, b"H+\x00\x04")], "HFS+ on the whole disk"),
        (&[(32, b"NXSB")], "APFS on the whole disk"),
        (&[(4086, b"SWAPSPACE2"), (1052, b"sw")], "swap \"sw\" on the whole disk"),
        (&[(65526, b"SWAPSPACE2")], "swap on the whole disk"),
        (&[(0x8001, b"CD001"), (0x8028, b"Debian 12   ")], "ISO9660 \"Debian 12\" on the whole disk"),
        (&[(0x8000, b"JFS1")], "jfs on the whole disk"),
        (&[(0x1_0034, b"ReIsEr2Fs")], "reiserfs on the whole disk"),
        (&[(1024, &[2, 0, 0, 0, 0, 0, 0x34, 0x34]), (1192, b"nl")], "nilfs2 \"nl\" on the whole disk"),
        (&[(3, b"ReFS\0\0\0\0")], "ReFS on the whole disk"),
        (&[(132 << 10, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0])], "ZFS member"),
        (&FAT32, "FAT32 \"ESP\" on the whole disk"),
    ];
    for (parts, expected) in cases {
        assert_eq!(told(&disk(2 * MIB, parts)), *expected, "{parts:?}");
    }
    assert_eq!(told(&vec![0xff; MIB]), "blank");
    assert_eq!(told(&[]), "blank");
    assert_eq!(told(&[7]), "unknown data");
}

#[test]
fn a_fat_is_called_what_its_root_directory_says() {
    let mut fat = disk(2 * MIB, &FAT32);
    // The first cluster, after 32 reserved sectors and two tables of 8: a long name, a deleted label, the label.
    put(&mut fat, 48 * 512, &[(0, b"AL\0O\0N\0G\0N\0"), (11, &[0x0f]), (32, b"\xe5LD        "), (43, &[8])]);
    put(&mut fat, 48 * 512 + 64, &[(0, b"WINDOWS    \x08")]);
    assert_eq!(told(&fat), "FAT32 \"WINDOWS\" on the whole disk");
    let mut unnamed = disk(2 * MIB, &FAT32);
    put(&mut unnamed, 71, &[(0, b"NO NAME    ")]);
    assert_eq!(told(&unnamed), "FAT32 on the whole disk");
    put(&mut unnamed, 0, &[(22, &[8, 0]), (32, &[0, 0x10, 0, 0]), (43, b"BOOT       FAT16   ")]);
    assert_eq!(told(&unnamed), "FAT12 \"BOOT\" on the whole disk");
}

fn gpt_disk(len: usize, partitions: &[(u64, u64)]) -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; len]);
    let mut gpt = GPT::new_from(&mut disk, 512, [7; 16]).expect("large enough");
    for (number, &(first, last)) in (1u32..).zip(partitions) {
        gpt[number] = GPTPartitionEntry {
            // EFI system.
            partition_type_guid: [
                0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
            ],
            unique_partition_guid: [u8::try_from(number).expect("few"); 16],
            starting_lba: first,
            ending_lba: last,
            attribute_bits: 0,
            partition_name: "".into(),
        };
    }
    GPT::write_protective_mbr_into(&mut disk, 512).expect("in memory");
    gpt.write_into(&mut disk).expect("in memory");
    disk.into_inner()
}

#[test]
fn partitions_are_told_by_number() {
    let mut gpt = gpt_disk(8 * MIB, &[(2048, 4095), (4096, 8191), (8192, 8199), (8200, 8300)]);
    put(&mut gpt, MIB, &FAT32);
    put(&mut gpt, 2 * MIB, &EXT);
    put(&mut gpt, 2 * MIB, &[EXT4]);
    put(&mut gpt, 4 * MIB, &[(4086, b"SWAPSPACE2")]);
    assert_eq!(told(&gpt), "GPT: 1 FAT32 \"ESP\", 2 ext4 \"root\", 3 swap, 4 EFI system");

    let many: Vec<_> = (0..20).map(|n| (2048 + n * 8, 2048 + n * 8 + 7)).collect();
    assert!(told(&gpt_disk(8 * MIB, &many)).ends_with("8 EFI system, 12 more"));
    assert_eq!(told(&gpt_disk(8 * MIB, &[])), "GPT without partitions");

    let mut mirror = gpt_disk(8 * MIB, &[(2048, 4095)]);
    put(&mut mirror, 8 * MIB - 65536, &[(0, &MD[..4])]);
    assert_eq!(told(&mirror), "RAID member; GPT: 1 EFI system");
}

/// An entry of the master boot record: type, first sector, count.
fn mbr_disk(sys: u8, start: u32, count: u32) -> Vec<u8> {
    let numbers = [start.to_le_bytes(), count.to_le_bytes()].concat();
    disk(2 * MIB, &[(450, &[sys]), (454, &numbers), (510, &[0x55, 0xaa])])
}

#[test]
fn an_mbr_is_told_and_damage_named() {
    let mut mbr = mbr_disk(7, 2048, 2048);
    put(&mut mbr, MIB, &[(3, b"NTFS    ")]);
    assert_eq!(told(&mbr), "MBR: 1 NTFS");
    assert_eq!(told(&mbr_disk(0x83, 2048, 1 << 30)), "damaged partition table");
    assert_eq!(told(&mbr_disk(0xee, 1, 100)), "GPT, damaged or made with another sector size");
    let mut gpt = gpt_disk(8 * MIB, &[]);
    gpt[520] ^= 1;
    assert_eq!(told(&gpt), "GPT, damaged at the start of the disk");
}

#[test]
fn labels_cannot_command_the_terminal() {
    let evil = disk(2 * MIB, &[(0, b"XFSB"), (108, b"\x1b[2J\n\"x\xff\xff")]);
    assert_eq!(told(&evil), "XFS \"?[2J??x\u{fffd}\u{fffd}\" on the whole disk");
}

#[test]
fn a_disk_that_cannot_be_read_says_why() {
    struct Dead;

    impl Read for Dead {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("no medium"))
        }
    }

    impl Seek for Dead {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            Ok(0)
        }
    }

    assert_eq!(describe(&mut Dead, 1 << 40, 512), "unreadable: no medium");
    assert_eq!(describe(&mut Cursor::new([0; 100]), 1 << 40, 512), "unreadable: failed to fill whole buffer");
}

/// Disks with recognisable contents, before random changes.
fn seeds() -> Vec<Vec<u8>> {
    let mut gpt = gpt_disk(MIB, &[(64, 200), (201, 400), (401, 1900)]);
    put(&mut gpt, 64 * 512, &FAT32);
    put(&mut gpt, 201 * 512, &EXT);
    let parts: &[&[Bytes<'_>]] = &[
        &FAT32,
        &EXT,
        &[(0, b"XFSB")],
        &[(1024, &[0x10, 0x20, 0xf5, 0xf2])],
        &[(1024, &[2, 0, 0, 0, 0, 0, 0x34, 0x34])],
        &[(4096, MD)],
    ];
    parts.iter().map(|parts| disk(MIB, parts)).chain([gpt, mbr_disk(7, 2048, 2048)]).collect()
}

proptest! {
    #[test]
    fn nothing_panics(
        seed in proptest::sample::select(seeds()),
        changes in proptest::collection::vec((0usize..4096, any::<u8>()), 0..40),
        cut in prop_oneof![Just(MIB), 0usize..70_000],
        claimed in prop_oneof![3 => Just(None), 1 => any::<u64>().prop_map(Some)],
        sector_size in prop_oneof![Just(512u32), Just(4096u32), any::<u32>()],
    ) {
        let mut bytes = seed;
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(cut);
        let len = claimed.unwrap_or(bytes.len() as u64);
        let words = describe(&mut Cursor::new(&bytes), len, sector_size);
        prop_assert!(!words.is_empty() && words.len() < 1000 && !words.contains(char::is_control));
    }

    #[test]
    fn noise_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert!(!told(&bytes).is_empty());
    }
}

//! Files with the marks of the formats, and files that have such marks by chance.

use super::*;
use proptest::prelude::*;
use std::io::Write;

fn found(bytes: &[u8]) -> Option<Container> {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    recognise(Path::new("app.bin"), &file, bytes.len() as u64).expect("read")
}

/// The message about a file.
fn said(bytes: &[u8]) -> String {
    let container = found(bytes).unwrap_or_else(|| panic!("{:?}", &bytes[..bytes.len().min(16)]));
    let words = container.refusal(Path::new("app.bin"));
    assert!(words.starts_with("app.bin is ") && words.contains(", not a disk: "), "{words}");
    assert!(!words.contains("--whole") && !words.contains("{}"), "{words}");
    words
}

/// A file of 100 KiB that holds only these bytes, at this place.
fn at(place: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 100 << 10];
    file[place..place + bytes.len()].copy_from_slice(bytes);
    file
}

fn set_sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A tar file with members of these names and lengths.
fn tar(magic: &[u8], members: &[(&str, usize)]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, len) in members {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{len:011o}\0").as_bytes());
        header[257..257 + magic.len()].copy_from_slice(magic);
        set_sum(&mut header);
        tar.extend(header);
        tar.resize(tar.len() + len.next_multiple_of(512), 7);
    }
    tar.resize((tar.len() + 1024).next_multiple_of(10240), 0);
    tar
}

#[test]
fn tar_files_are_told_with_the_disk_in_them() {
    for magic in [&b"ustar\x0000"[..], b"ustar  \0", b""] {
        let words = said(&tar(magic, &[("app.ovf", 3000), ("app.mf", 100), ("d.vmdk", 90_000)]));
        assert_eq!(
            words,
            "app.bin is an OVA (a tar file), not a disk: unpack it (`tar xf app.bin`) and import the .vmdk in it (d.vmdk)"
        );
        let words = said(&tar(magic, &[("./disk.raw", 1_000_000)]));
        assert!(
            words.contains("is a tar file, not a disk") && words.ends_with("import the disk in it (disk.raw)"),
            "{words}"
        );
        let words = said(&tar(magic, &[("readme", 5)]));
        assert!(words.ends_with("import the disk in it"), "{words}");
    }
    let words = said(&tar(b"ustar", &[("x.OVF", 1), ("a.VHD", 1), ("b.vhd", 1), ("c.vhd", 1), ("d.vhd", 1)]));
    assert!(words.ends_with("import the .VHD in it (a.VHD, b.vhd, c.vhd, …)"), "{words}");
    assert!(said(&tar(b"ustar", &[("ova.xml", 1), ("Ref:1/00000000", 512)])).contains("XVA"));
    assert!(said(&tar(b"ustar", &[("\x1b[2J.vmdk", 1)])).contains("(?[2J.vmdk)"));
    // The length is not in digits: GNU tar writes 8 GiB and more this way. What follows is past the end.
    let mut large = tar(b"ustar  \0", &[("huge.raw", 0)]);
    large[124..136].copy_from_slice(b"\x80\0\0\0\0\0\0\x0f\0\0\0\0");
    set_sum(&mut large[..512]);
    assert!(said(&large).contains("(huge.raw)"));
    large[128..136].fill(0xff);
    set_sum(&mut large[..512]);
    assert!(said(&large).contains("(huge.raw)"));
}

#[test]
fn no_more_members_are_read_than_are_needed() {
    let names: Vec<String> = (0..70).map(|i| format!("file{i}")).collect();
    let mut members: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 0)).collect();
    members.insert(63, ("last.img", 0));
    assert!(said(&tar(b"ustar", &members)).contains("(last.img)"));
    members.swap(63, 64);
    assert!(said(&tar(b"ustar", &members)).ends_with("import the disk in it"));
}

#[test]
fn archives_are_told() {
    for (bytes, what) in [
        (&b"PK\x03\x04\x14\0"[..], "a zip archive"),
        (b"PK\x07\x08PK\x03\x04", "split zip"),
        (b"7z\xbc\xaf\x27\x1c\0\x04", "a 7z archive"),
        (b"Rar!\x1a\x07\0\xcf", "a RAR archive"),
        (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
        (b"MSCF\0\0\0\0\x10", "a cabinet"),
        (b"!<arch>\nhello.o/", "an ar archive"),
        (b"!<arch>\ndebian-binary   ", "a Debian package"),
        (b"\xed\xab\xee\xdb\x03\0", "an RPM package"),
        (b"07070100000001", "a cpio archive"),
        (b"070707000000", "a cpio archive"),
        (b"xar!\0\x1c\0\x01", "a xar archive"),
    ] {
        assert!(said(&at(0, bytes)).contains(what), "{what}");
    }
}

#[test]
fn binary_cpio_is_told_in_both_byte_orders_by_more_than_its_mark() {
    let numbers = [0o070_707_u16, 1, 2, 0o100_644, 0, 0, 1, 0, 0, 0, 6, 0, 5];
    for (order, swap) in [("little", false), ("big", true)] {
        let bytes = |numbers: [u16; 13]| {
            let mut bytes: Vec<u8> =
                numbers.into_iter().flat_map(|n| if swap { n.to_be_bytes() } else { n.to_le_bytes() }).collect();
            bytes.extend(b"hello\0hello");
            at(0, &bytes)
        };
        assert!(said(&bytes(numbers)).contains("a cpio archive"), "{order}");
        for (field, value) in [(3, 0o070_644), (10, 0), (10, 7), (10, 5000)] {
            let mut other = numbers;
            other[field] = value;
            assert_eq!(found(&bytes(other)), None, "{order} {field} {value}");
        }
    }
}

#[test]
fn compressed_files_are_told_with_what_decompresses_them() {
    for (bytes, command) in [
        (&b"\x1f\x8b\x08\x08"[..], "`gzip -dc app.bin >disk.img`"),
        (b"BZh91AY&SY", "bzip2 -dc"),
        (b"BZh9\x17\x72\x45\x38\x50\x90", "bzip2 -dc"),
        (b"\xfd7zXZ\0\0\x04", "xz -dc"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd -dc"),
        (b"\x50\x2a\x4d\x18\x04\0\0\0\0\0\0\0\x28\xb5\x2f\xfd", "zstd -dc"),
        (b"\x04\x22\x4d\x18\x64", "lz4 -dc"),
        (b"\x02\x21\x4c\x18", "lz4 -dc"),
        (b"LZIP\x01\x17", "lzip -dc"),
        (b"\x89LZO\0\r\n\x1a\n", "lzop -dc"),
        (b"LRZI\0\x06", "lrzip -d"),
        (b"\x1f\x9d\x90", "gzip -dc"),
        (b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0", "xz -dc --format=lzma"),
        (b"\x5d\0\0\0\x03\0\0\0\x40\0\0\0\0\0", "xz -dc --format=lzma"),
    ] {
        let words = said(&at(0, bytes));
        assert!(words.contains("decompress") && words.contains(command), "{words}");
    }
    for other in [
        &b"\x1f\x8b\x08\xff"[..],
        b"BZh9abcdef",
        b"\x50\x2a\x4d\x18\x04\0\0\0\0\0\0\0\0\0\0\0",
        b"\x50\x2a\x4d\x18\xff\xff\xff\xff",
        b"\x1f\x9d\x08",
        b"\x1f\x9d\xf0",
        b"\x5d\0\0\x7f\0\xff\xff\xff\xff\xff\xff\xff\xff\0",
        b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\x7f\0",
        b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"LZIP\x07",
    ] {
        assert_eq!(found(&at(0, other)), None, "{other:?}");
    }
}

#[test]
fn encrypted_files_are_told() {
    for (bytes, what) in [
        (&b"Salted__\x01\x02"[..], "openssl"),
        (b"-----BEGIN PGP MESSAGE-----\n", "OpenPGP"),
        (b"age-encryption.org/v1\n-> X25519 ", "age"),
        (b"-----BEGIN AGE ENCRYPTED FILE-----\n", "age"),
        // A passphrase's packet of 13 bytes, and one of 4 bytes with a head in the new format; then the data.
        (b"\x8c\x0d\x04\x09\x03\x02abcdefgh\xff\xd2", "OpenPGP"),
        (b"\xc3\x04\x04\x09\x00\x08\xd2\x50", "OpenPGP"),
    ] {
        assert!(said(&at(0, bytes)).contains(what), "{bytes:?}");
    }
    let mut rsa = at(0, b"\x85\x01\x0c\x03");
    rsa[3 + 0x10c] = 0xd2;
    assert!(said(&rsa).contains("OpenPGP"));
    rsa[3 + 0x10c] = 0;
    assert_eq!(found(&rsa), None, "nothing follows the key");
    assert_eq!(found(&at(0, b"\x85\x01\x0c\x04")), None, "no such version");
    assert_eq!(found(b"\x85\x01"), None);
    assert_eq!(found(b"\xc1\xd0"), None);
}

#[test]
fn what_other_programs_made_of_disks_is_told() {
    for (place, bytes, what, todo) in [
        (0, &b"\0ntfsclone-image\x0a\0"[..], "ntfsclone", "ntfsclone --restore-image --overwrite disk.img app.bin"),
        (0, b"partclone-image\0", "partclone", "ezio image import app.bin"),
        (0, b"QFI\xfb\0\0\0\x03", "(qcow2)", "ezio image import app.bin"),
        (0x40, b"\x7f\x10\xda\xbe", "(vdi)", "ezio image import app.bin"),
        ((100 << 10) - 512, b"conectix", "(vpc)", "ezio image import app.bin"),
        (0, b"PaRtImAgE-VoLuMe\0", "partimage", "restore it"),
        (0, b"FsA0", "fsarchiver", "fsarchiver restfs app.bin"),
        (4, b"SignedImage ", "FFU", "DISM /Apply-Ffu"),
        (0, b"WLPWM\0\0\0", "WIM", "wimlib-imagex"),
        (0, b"encrcdsa", "DMG", "convert"),
        (0, b"sprs", "Apple", "hdiutil"),
        (0, b"\xb4\x6e\x68\x44", "Acronis", "restore it"),
        (0, b"\xce\x24\xb9\xa2\x20\0\0\0", "Acronis", "restore it"),
        (0, b"\xfe\xef\x01\x03", "Ghost", "restore it"),
        (0, b"EVF\x09\r\n\xff\0", "E01", "ewfexport"),
        (0, b"EVF2\r\n\x81\0", "Ex01", "ewfexport"),
        (0, b"VMA\0\0\0\0\x01", "Proxmox", "vma extract"),
        (0, b"\x3a\xff\x26\xed\x01\0\0\0", "Android", "simg2img"),
        (0, b"xFSdump0", "XFS", "xfsrestore"),
        (0, b"btrfs-stream\0\x01", "btrfs send", "btrfs receive"),
        (8, b"\xac\xcb\xba\xf5\x02\0\0\0", "zfs send", "zfs receive"),
        (8, b"\0\0\0\x02\xf5\xba\xcb\xac", "zfs send", "zfs receive"),
        (0, b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", "git lfs pull"),
        (0, b"<!DOCTYPE HTML>", "web page", "download"),
        (0, b"\xef\xbb\xbf\n <html>", "web page", "download"),
        (0, b"d8:announce3:url4:infod5:files", "torrent", ".torrent"),
        (0, b"<?xml?><Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\">", "OVF", ".vmdk beside it"),
    ] {
        let words = said(&at(place, bytes));
        assert!(words.contains(what) && words.contains(todo), "{what}: {words}");
    }
    let mut dump = at(24, &60_012_u32.to_le_bytes());
    assert_eq!(found(&dump), None, "type 0");
    dump[0] = 1;
    assert!(said(&dump).contains("`restore -rf app.bin`"));
}

#[test]
fn windows_images_are_told_by_kind() {
    let wim = |version: u32, part: u16, parts: u16| {
        let mut head = at(0, b"MSWIM\0\0\0\xd0");
        head[12..16].copy_from_slice(&version.to_le_bytes());
        head[40..42].copy_from_slice(&part.to_le_bytes());
        head[42..44].copy_from_slice(&parts.to_le_bytes());
        said(&head)
    };
    assert!(wim(0x10d00, 1, 1).contains("is a Windows image (WIM)"));
    assert!(wim(0xe00, 1, 1).contains("is a Windows image (ESD)"));
    assert!(wim(0x10d00, 2, 3).contains("is part 2 of 3 of a split Windows image (SWM)"));
}

#[test]
fn trailers_are_told() {
    let end = 100 << 10;
    let koly = b"koly\0\0\0\x04\0\0\x02\0";
    let words = said(&at(end - 512, koly));
    assert!(words.contains("(DMG)") && words.contains("qemu-img convert -f dmg"), "{words}");
    assert_eq!(found(&at(end - 513, koly)), None);
    assert!(said(&at(end - 12, b"MACRIUM_FILE")).contains("Macrium"));
    assert!(said(&at(end - 40, b"__79241006_2651_11D4_")).contains("Macrium"));
    assert_eq!(found(&at(end - 13, b"MACRIUM_FILE")), None);
}

#[test]
fn disks_are_none_of_these() {
    for (what, bytes) in [
        ("nothing", at(0, b"")),
        ("empty", Vec::new()),
        ("a few bytes", b"PK".to_vec()),
        ("an ISO image", at(32768, b"\x01CD001")),
        ("squashfs", at(0, b"hsqs")),
        ("erofs", at(1024, b"\xe2\xe1\xf5\xe0")),
        ("LUKS", at(0, b"LUKS\xba\xbe\0\x02")),
        ("BitLocker", at(3, b"-FVE-FS-")),
        ("NTFS", at(3, b"NTFS    ")),
        ("XFS", at(0, b"XFSB")),
        ("random text", at(0, b"<?xml version=\"1.0\"?><svg>")),
    ] {
        assert_eq!(found(&bytes), None, "{what}");
    }
    // Marks of two or three bytes are chance if a boot sector's end or a GPT follows.
    for faint in [&b"\x1f\x9d\x90"[..], b"\xfe\xef\x01\x03", b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0"] {
        let mut disk = at(0, faint);
        assert!(found(&disk).is_some());
        disk[510..512].copy_from_slice(b"\x55\xaa");
        assert_eq!(found(&disk), None, "{faint:?}");
        let mut disk = at(0, faint);
        disk[4096..4104].copy_from_slice(b"EFI PART");
        assert_eq!(found(&disk), None, "{faint:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_files_never_panic(start in 0usize..40, bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let marks = [&b"\x8c"[..], b"\xc1", b"\x85", b"MSWIM\0\0\0", b"\xc7\x71", b"\x71\xc7", b"\x50\x2a\x4d\x18", b"xar!"];
        let _ = found(&bytes);
        let _ = found(&[marks[start % marks.len()], &bytes].concat());
    }

    #[test]
    fn changed_tar_files_never_panic(place in 0usize..512, bytes in proptest::collection::vec(any::<u8>(), 1..20)) {
        let mut tar = tar(b"ustar", &[("app.ovf", 300), ("d.vmdk", 5000)]);
        tar[place..place + bytes.len()].copy_from_slice(&bytes);
        set_sum(&mut tar[..512]);
        let _ = found(&tar);
    }
}

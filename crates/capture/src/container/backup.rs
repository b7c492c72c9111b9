//! Files of other programs that contain a disk or a file system, or stand in place of one.

use super::disk_format::disk_format;
use super::look::{Container, Look, Mark, mark};

const RESTORE: &str = "restore it to a disk with the program that made it, and capture that disk";
const NO_FILES: &str = "restore it to a file system, make that disk start, and capture the disk";
const EWF: &str = "turn it into a raw disk (`ewfexport {}`), and import that";
const DUMP: &str = "restore it to a file system (`restore -rf {}`), make that disk start, and capture the disk";

/// Marks at the start of files: those of imaging programs come from their sources or from file(1).
const MARKS: &[Mark] = &[
    mark(
        0,
        b"\0ntfsclone-image",
        "an image that ntfsclone made of an NTFS",
        "restore it with `ntfsclone --restore-image --overwrite disk.img {}`, and import disk.img",
    ),
    mark(0, b"partclone-image", "an image that partclone made", "`ezio image import {} --name NAME` reads it"),
    mark(
        0,
        b"PaRtImAgE-VoLuMe",
        "an image that partimage made",
        "restore it to a disk with partimage, and capture that disk",
    ),
    mark(
        0,
        b"FsA0",
        "an archive that fsarchiver made",
        "restore it to a disk (`fsarchiver restfs {} id=0,dest=/dev/…`), and capture that disk",
    ),
    mark(
        4,
        b"SignedImage ",
        "a full flash update of Windows (FFU)",
        "apply it to a disk (`DISM /Apply-Ffu` in Windows), and capture that disk",
    ),
    mark(
        0,
        b"encrcdsa",
        "an encrypted disk image of Apple's (DMG)",
        "on a Mac, convert it to a raw one, and import that",
    ),
    mark(
        0,
        b"sprs",
        "a sparse disk image of Apple's",
        "on a Mac, convert it (`hdiutil convert {} -format UDTO -o disk`), and import that",
    ),
    mark(0, b"\xb4\x6e\x68\x44", "a backup that Acronis True Image made", RESTORE),
    mark(0, b"\xce\x24\xb9\xa2\x20\0\0\0", "a backup that Acronis True Image made", RESTORE),
    mark(0, b"EVF\x09\r\n\xff\0", "a disk image of EnCase's (E01)", EWF),
    mark(0, b"EVF2\r\n\x81\0", "a disk image of EnCase's (Ex01)", EWF),
    mark(0, b"LVF\x09\r\n\xff\0", "an archive of files of EnCase's (L01)", NO_FILES),
    mark(
        0,
        b"AFF10\r\n\0",
        "a disk image in the Advanced Forensic Format",
        "turn it into a raw disk (`affconvert -r {}`), and import that",
    ),
    mark(
        0,
        b"VMA\0\0\0\0\x01",
        "a backup that Proxmox made (VMA)",
        "unpack it (`vma extract {} DIR`) and import the disk in it",
    ),
    mark(
        0,
        b"\x3a\xff\x26\xed\x01\0",
        "a sparse image of Android's",
        "turn it into a raw disk (`simg2img {} disk.img`), and import disk.img",
    ),
    mark(
        0,
        b"xFSdump0",
        "a dump of an XFS",
        "restore it to a file system (`xfsrestore -f {} DIR`), make that disk start, and capture the disk",
    ),
    mark(
        0,
        b"btrfs-stream\0",
        "a stream that `btrfs send` wrote",
        "receive it (`btrfs receive -f {} DIR`), make that disk start, and capture the disk",
    ),
    mark(8, &0x2_f5ba_cbac_u64.to_le_bytes(), "a stream that `zfs send` wrote", ZFS),
    mark(8, &0x2_f5ba_cbac_u64.to_be_bytes(), "a stream that `zfs send` wrote", ZFS),
    mark(
        0,
        b"version https://git-lfs.github.com/",
        "a pointer of Git LFS to a file elsewhere",
        "fetch the file itself (`git lfs pull`)",
    ),
];

const ZFS: &str = "receive it (`zfs receive`), make that disk start, and capture the disk";

/// Finds every other format that is not a disk.
pub(super) fn find(look: &Look<'_>) -> Option<Container> {
    virtual_disk(look)
        .or_else(|| look.first_of(MARKS))
        .or_else(|| wim(look))
        .or_else(|| text(look))
        .or_else(|| trailer(look))
        .or_else(|| if look.starts_like_a_disk() { None } else { faint(look) })
}

/// Disk images that `ezio image import` reads; a capture refuses them with that hint.
fn virtual_disk(look: &Look<'_>) -> Option<Container> {
    let foot = look.tail.get(look.tail.len().saturating_sub(512)..).unwrap_or_default();
    let format = disk_format(&look.head, foot)?;
    Some(
        look.is(
            &format!("a disk image of a virtual machine ({format})"),
            "`ezio image import {} --name NAME` reads it",
        ),
    )
}

/// Windows images: 8 bytes of magic, then the length of the header, the version, flags, the part's number and the
/// number of parts. (`WIMHEADER_V1_PACKED` in Microsoft's "Windows Imaging File Format"; wimlib for `WLPWM` and solid
/// ones.)
fn wim(look: &Look<'_>) -> Option<Container> {
    const APPLY: &str = "it holds files, not blocks: apply it to a disk (Windows Setup, `DISM /Apply-Image`, `wimlib-imagex \
                         apply`), make that disk start, and capture it";
    /// `WIM_VERSION` of files whose data is compressed in one piece.
    const SOLID: u32 = 0xe00;
    if look.has(0, b"WLPWM\0\0\0") {
        return Some(look.is("a Windows image (WIM)", APPLY));
    }
    if !look.has(0, b"MSWIM\0\0\0") {
        return None;
    }
    let version = look.bytes(12).map(u32::from_le_bytes)?;
    let [part, parts] = [40, 42].map(|at| look.bytes(at).map_or(1, u16::from_le_bytes));
    if parts > 1 {
        let advice = "join the parts where it is needed (`wimlib-imagex join`), apply the whole to a disk, and capture that disk";
        return Some(look.is(&format!("part {part} of {parts} of a split Windows image (SWM)"), advice));
    }
    Some(look.is(if version == SOLID { "a Windows image (ESD)" } else { "a Windows image (WIM)" }, APPLY))
}

/// Text that arrived instead of the intended file, or describes it.
fn text(look: &Look<'_>) -> Option<Container> {
    let bytes = look.head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&look.head).trim_ascii_start();
    let starts = |word: &str| bytes.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()));
    if starts("<!doctype html") || starts("<html") {
        let advice = "the server that it came from had something to say: read it, and download the file again";
        return Some(look.is("a web page", advice));
    }
    if (starts("<?xml") || starts("<Envelope") || starts("<ovf:Envelope"))
        && look.mentions(b"Envelope")
        && look.mentions(b"dmtf.org/ovf/envelope")
    {
        return Some(look.is("the description of a virtual machine (OVF)", "import the .vmdk beside it"));
    }
    let is_torrent = ["d8:announce", "d7:comment", "d10:created by", "d13:creation date", "d4:info"].iter();
    if is_torrent.clone().any(|&start| starts(start)) && look.mentions(b"4:infod") {
        return Some(look.is("a torrent", "give its name the ending .torrent, and say where its files are"));
    }
    None
}

/// Formats whose mark is at the end.
fn trailer(look: &Look<'_>) -> Option<Container> {
    let from_end = |len: usize| look.tail.len().checked_sub(len).and_then(|at| look.tail.get(at..));
    // UDIF: version 4, length of the trailer 512.
    if from_end(512).is_some_and(|koly| koly.starts_with(b"koly\0\0\0\x04\0\0\x02\0")) {
        let advice = "turn it into a raw disk (`qemu-img convert -f dmg -O raw {} disk.img`), and import disk.img";
        return Some(look.is("a disk image of Apple's (DMG)", advice));
    }
    // Reflect X: an offset of 8 bytes and these 12 bytes; up to Reflect 8, a longer trailer with these 21 bytes.
    let older = b"__79241006_2651_11D4_";
    let is_older = from_end(64).is_some_and(|end| end.windows(older.len()).any(|window| window == older));
    if look.tail.ends_with(b"MACRIUM_FILE") || is_older {
        return Some(look.is("a backup that Macrium Reflect made", RESTORE));
    }
    None
}

/// Marks of a few bytes only, for files that do not start as disks do.
fn faint(look: &Look<'_>) -> Option<Container> {
    if look.has(0, b"\xfe\xef\x01") && matches!(look.byte(3), Some(0..=9)) {
        return Some(look.is("an image that Norton Ghost made", RESTORE));
    }
    // `NFS_MAGIC` of protocols/dumprestore.h comes after the type, two dates, and three numbers; a tape starts with
    // type 1.
    let is_dump = |magic: [u8; 4], one: [u8; 4]| look.has(24, &magic) && look.has(0, &one);
    if is_dump(60_012_u32.to_le_bytes(), 1_u32.to_le_bytes()) || is_dump(60_012_u32.to_be_bytes(), 1_u32.to_be_bytes())
    {
        return Some(look.is("a dump of a file system", DUMP));
    }
    None
}

//! Archives, and appliances that are archives.
//!
//! Formats: tar follows POSIX.1-1988 and Unix V7, OVA follows DSP0243 (DMTF). The others are recognised as file(1)
//! does.

use std::io;

use super::look::{Container, Look, Mark, mark};

/// Length of a block of a tar file, in bytes.
const BLOCK_LEN: u64 = 512;
/// Most members of a tar file that are read.
const MEMBERS_MAX: usize = 64;
/// Most disks in it that are named.
const DISKS_SHOWN: usize = 3;
/// File name endings of disks.
const DISK_NAMES: [&str; 8] = ["vmdk", "vhd", "vhdx", "vdi", "qcow2", "raw", "img", "iso"];

const MARKS: &[Mark] = &[
    mark(0, b"PK\x03\x04", "a zip archive", "unpack it (`unzip {}`) and import the disk in it"),
    mark(0, b"PK\x05\x06", "a zip archive with nothing in it", "copy it again"),
    mark(
        0,
        b"PK\x07\x08PK\x03\x04",
        "a part of a split zip archive",
        "unpack all parts together and import the disk in it",
    ),
    mark(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it (`7z x {}`) and import the disk in it"),
    mark(0, b"Rar!\x1a\x07\0", "a RAR archive", "unpack it (`unrar x {}`) and import the disk in it"),
    mark(0, b"Rar!\x1a\x07\x01\0", "a RAR archive", "unpack it (`unrar x {}`) and import the disk in it"),
    mark(0, b"MSCF\0\0\0\0", "a cabinet archive", "unpack it (`cabextract {}`) and import the disk in it"),
    mark(
        0,
        b"!<arch>\ndebian-binary",
        "a Debian package",
        "unpack it (`dpkg-deb -x {} DIR`) and import the disk in it",
    ),
    mark(0, b"!<arch>\n", "an ar archive", "unpack it (`ar x {}`) and import the disk in it"),
    mark(0, b"\xed\xab\xee\xdb", "an RPM package", "unpack it (`rpm2cpio {} | cpio -idm`) and import the disk in it"),
    mark(0, b"070701", "a cpio archive", CPIO),
    mark(0, b"070702", "a cpio archive", CPIO),
    mark(0, b"070707", "a cpio archive", CPIO),
];

const CPIO: &str = "unpack it (`cpio -idm <{}`) and import the disk in it";

/// Archives other than tar.
pub(super) fn find(look: &Look<'_>) -> Option<Container> {
    let is_xar = look.has(0, b"xar!") && matches!(look.bytes(4), Some([0, 28..=255, 0, 1]));
    if is_xar {
        return Some(look.is("a xar archive", "unpack it (`xar -xf {}`) and import the disk in it"));
    }
    let is_cpio = is_binary_cpio(look, u16::from_le_bytes) || is_binary_cpio(look, u16::from_be_bytes);
    if is_cpio && !look.starts_like_a_disk() {
        return Some(look.is("a cpio archive", CPIO));
    }
    look.first_of(MARKS)
}

/// The old header of 13 binary numbers, in the byte order of the machine that wrote it: 070707 is first, the mode
/// fourth, the length of the name eleventh. The name follows them and ends with a zero. (cpio(5))
fn is_binary_cpio(look: &Look<'_>, number: fn([u8; 2]) -> u16) -> bool {
    let field = |index: usize| look.bytes(index * 2).map(number);
    let is_file = |mode: u16| matches!(mode >> 12, 1 | 2 | 4 | 6 | 8 | 10 | 12);
    let (Some(0o070_707), Some(mode), Some(name_len @ 2..=1024)) = (field(0), field(3), field(10)) else {
        return false;
    };
    let end = 26 + usize::from(name_len) - 1;
    is_file(mode) && look.byte(end) == Some(0) && look.byte(end - 1).is_some_and(|byte| byte != 0)
}

/// A member of a tar file.
struct Member {
    name: String,
    /// Length of the data after its header, in bytes.
    len: u64,
    /// It is not a directory, nor the attributes of the next member, which have its name too.
    is_file: bool,
}

impl Member {
    /// Reads a header; `None` if it is not one. Byte 0 name, 124 length, 148 checksum, 156 type, 257 `ustar`.
    fn parse(header: &[u8]) -> Option<Member> {
        let header: &[u8; 512] = header.first_chunk()?;
        if header[0] == 0 || !(has_right_sum(header) || header[257..].starts_with(b"ustar")) {
            return None;
        }
        let name = header[..100].split(|&byte| byte == 0).next()?;
        let name = String::from_utf8_lossy(name).chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let len = match header[124..136].first_chunk::<12>()? {
            // A length with too many digits is stored as a binary number, big-endian (GNU).
            [0x80, 0, 0, 0, number @ ..] => u64::from_be_bytes(*number),
            digits => octal(digits)?,
        };
        Some(Member { name, len, is_file: matches!(header[156], 0 | b'0' | b'7') })
    }

    /// The name without directories, if it is a disk's.
    fn disk(&self) -> Option<&str> {
        let name = self.name.rsplit('/').next()?;
        let (_, ending) = name.rsplit_once('.')?;
        DISK_NAMES.iter().any(|known| ending.eq_ignore_ascii_case(known)).then_some(name)
    }

    fn is_ovf(&self) -> bool {
        self.name.len() > 4 && self.name.to_ascii_lowercase().ends_with(".ovf")
    }
}

/// Checks the sum of all bytes, with the checksum field counted as spaces. Some old programs added signed bytes.
fn has_right_sum(header: &[u8; 512]) -> bool {
    let Some(sum) = octal(&header[148..156]).and_then(|sum| i64::try_from(sum).ok()) else { return false };
    let bytes = || header[..148].iter().chain(&header[156..]).copied();
    let spaces = 8 * i64::from(b' ');
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    [unsigned, signed].contains(&(sum - spaces))
}

/// Digits after leading spaces, followed by spaces or zeros.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { u64::from_str_radix(text, 8).ok() } else { None }
}

/// A tar file, with its contents as far as its first members show them.
///
/// # Errors
/// If the file cannot be read.
pub(super) fn tar(look: &Look<'_>) -> io::Result<Option<Container>> {
    let members = members(look)?;
    let Some(first) = members.first() else { return Ok(None) };
    // XenServer's format: an XML file first, then the disk in directories of chunks.
    if first.name == "ova.xml" {
        let advice = "export the disk itself where it came from, as VHD or raw, and import that";
        return Ok(Some(look.is("a virtual machine that XenServer exported (XVA, a tar file)", advice)));
    }
    let is_ova = members.iter().any(Member::is_ovf);
    let what = if is_ova { "an OVA (a tar file)" } else { "a tar file" };
    let disks: Vec<&str> = members.iter().filter(|member| member.is_file).filter_map(Member::disk).collect();
    let inside = match (disks.first().and_then(|disk| disk.rsplit_once('.')), is_ova) {
        (Some((_, ending)), true) => format!("the .{ending} in it ({})", shown(&disks)),
        (Some(_), false) => format!("the disk in it ({})", shown(&disks)),
        (None, true) => "the .vmdk in it".to_owned(),
        (None, false) => "the disk in it".to_owned(),
    };
    let advice = format!("unpack it (`tar xf {}`) and import {inside}", look.path.display());
    Ok(Some(Container::new(what, advice)))
}

fn shown(disks: &[&str]) -> String {
    let more = if disks.len() > DISKS_SHOWN { ", …" } else { "" };
    format!("{}{more}", disks[..disks.len().min(DISKS_SHOWN)].join(", "))
}

/// The first members; empty if it is not a tar file.
fn members(look: &Look<'_>) -> io::Result<Vec<Member>> {
    let mut members = Vec::new();
    let mut at = 0;
    while members.len() < MEMBERS_MAX {
        let Some(member) = Member::parse(&look.read(at, BLOCK_LEN)?) else { break };
        let next =
            member.len.checked_next_multiple_of(BLOCK_LEN).and_then(|len| at.checked_add(BLOCK_LEN)?.checked_add(len));
        members.push(member);
        match next {
            Some(next) if next < look.len => at = next,
            _ => break,
        }
    }
    Ok(members)
}

//! Compressed files: a stream of one file, which may well be a disk.
//!
//! `ezio image import` reads compressed partclone images before this check.

use super::look::{Container, Look};

/// Longest length that an .lzma may state, in bytes; xz(1) treats larger values as invalid.
const LZMA_LEN_MAX: u64 = 256 << 30;

/// Finds the program that decompresses the file, by its first bytes.
pub(super) fn find(look: &Look<'_>) -> Option<Container> {
    let (name, command) = compression(look)?;
    let advice = format!("decompress it first (`{command} {} >disk.img`), and import disk.img", look.path.display());
    Some(Container::new(format!("a file that {name} compressed"), advice))
}

fn compression(look: &Look<'_>) -> Option<(&'static str, &'static str)> {
    let has = |bytes: &[u8]| look.has(0, bytes);
    // RFC 1952: deflate is the only method, and the upper three flags are zero.
    let is_gzip = has(b"\x1f\x8b\x08") && look.byte(3).is_some_and(|flags| flags & 0xe0 == 0);
    // A block starts with the digits of π, the end of the stream with those of π's square root.
    let is_bzip2 = has(b"BZh")
        && matches!(look.byte(3), Some(b'1'..=b'9'))
        && (look.has(4, b"\x31\x41\x59\x26\x53\x59") || look.has(4, b"\x17\x72\x45\x38\x50\x90"));
    let is_lzip = has(b"LZIP") && matches!(look.byte(4), Some(0 | 1));
    Some(match () {
        () if is_gzip => ("gzip", "gzip -dc"),
        () if is_bzip2 => ("bzip2", "bzip2 -dc"),
        () if has(b"\xfd7zXZ\0") => ("xz", "xz -dc"),
        () if has(b"\x28\xb5\x2f\xfd") || is_pzstd(look) => ("zstd", "zstd -dc"),
        () if has(b"\x04\x22\x4d\x18") || has(b"\x02\x21\x4c\x18") => ("lz4", "lz4 -dc"),
        () if is_lzip => ("lzip", "lzip -dc"),
        () if has(b"\x89LZO\0\r\n\x1a\n") => ("lzop", "lzop -dc"),
        () if has(b"LRZI\0") => ("lrzip", "lrzip -d -o -"),
        () if is_compress(look) && !look.starts_like_a_disk() => ("compress", "gzip -dc"),
        () if is_lzma(look) && !look.starts_like_a_disk() => ("lzma", "xz -dc --format=lzma"),
        () => return None,
    })
}

/// A skippable frame, followed by a normal zstd frame (RFC 8878, section 3.1.2); pzstd's files start this way.
fn is_pzstd(look: &Look<'_>) -> bool {
    let Some([0x50..=0x5f, 0x2a, 0x4d, 0x18]) = look.bytes(0) else { return false };
    let Some(len) = look.bytes(4).map(u32::from_le_bytes).and_then(|len| usize::try_from(len).ok()) else {
        return false;
    };
    len.checked_add(8).is_some_and(|at| look.has(at, b"\x28\xb5\x2f\xfd"))
}

/// compress(1): two bytes, then a flag, two bits that are zero, and the width of its codes, from 9 to 16 bits.
fn is_compress(look: &Look<'_>) -> bool {
    matches!(look.bytes(0), Some([0x1f, 0x9d, flags]) if flags & 0x60 == 0 && (9..=16).contains(&(flags & 0x1f)))
}

/// The format has no mark. It starts with the usual properties, the size of the dictionary (2^n or 2^n + 2^(n-1)), the
/// length or -1, and a zero that starts the range coder.
fn is_lzma(look: &Look<'_>) -> bool {
    let dictionary = look.bytes(1).map(u32::from_le_bytes);
    let is_size = |size: u32| {
        size >= 1 << 12 && (size.is_power_of_two() || size.is_multiple_of(3) && (size / 3).is_power_of_two())
    };
    let len = look.bytes(5).map(u64::from_le_bytes);
    look.has(0, b"\x5d\0\0")
        && dictionary.is_some_and(is_size)
        && len.is_some_and(|len| len == u64::MAX || (1..=LZMA_LEN_MAX).contains(&len))
        && look.byte(13) == Some(0)
}

//! Finds out whether a VHDX holds only the differences from another disk (Hyper-V's checkpoints, .avhdx). `qemu-img`
//! refuses such a file without a helpful message.
//!
//! Format: MS-VHDX. The region table at 192 KiB says where the metadata is, and the table there says where the file
//! parameters are: the length of a block in 4 bytes, then flags, the second of which is `HasParent`.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

/// Where the region table and its copy are, in bytes.
const REGIONS_AT: [u64; 2] = [192 << 10, 256 << 10];
/// Most entries of either table.
const ENTRIES_MAX: u64 = 2047;
/// 8B7CA206-4790-4B9A-B8FE-575F050F886E, the region of the metadata.
const METADATA: [u8; 16] = *b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e";
/// CAA16737-FA36-4D43-B3B6-33F0AA44E76B, the file parameters.
const PARAMETERS: [u8; 16] = *b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b";
const HAS_PARENT: u32 = 2;

/// `false` if the file is damaged at these places, which other code reports.
///
/// # Errors
/// If the file cannot be read.
pub(super) fn has_parent(file: &File) -> io::Result<bool> {
    for at in REGIONS_AT {
        match look(file, at) {
            Ok(Some(flags)) => return Ok(flags & HAS_PARENT != 0),
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// The flags of the file parameters, if this region table leads to them.
fn look(file: &File, regions: u64) -> io::Result<Option<u32>> {
    let head: [u8; 16] = read(file, regions)?;
    let count = head[8..12].first_chunk().map_or(0, |count| u64::from(u32::from_le_bytes(*count)));
    if !head.starts_with(b"regi") {
        return Ok(None);
    }
    let Some(region) = entry(file, regions + 16, count, &METADATA)? else { return Ok(None) };
    let metadata = u64::from_le_bytes(region);
    let head: [u8; 16] = read(file, metadata)?;
    let count = u64::from(u16::from_le_bytes([head[10], head[11]]));
    let Some(table) = metadata.checked_add(32).filter(|_| head.starts_with(b"metadata")) else { return Ok(None) };
    let Some([a, b, c, d, ..]) = entry(file, table, count, &PARAMETERS)? else { return Ok(None) };
    let item = metadata.checked_add(u64::from(u32::from_le_bytes([a, b, c, d])));
    let Some(item) = item else { return Ok(None) };
    let [_, _, _, _, flags @ ..]: [u8; 8] = read(file, item)?;
    Ok(Some(u32::from_le_bytes(flags)))
}

/// The 8 bytes after a GUID in a table of entries of 32 bytes.
fn entry(file: &File, table: u64, count: u64, guid: &[u8; 16]) -> io::Result<Option<[u8; 8]>> {
    for index in 0..count.min(ENTRIES_MAX) {
        let Some(at) = table.checked_add(index * 32) else { break };
        let entry: [u8; 24] = read(file, at)?;
        if entry.starts_with(guid) {
            return Ok(entry.last_chunk().copied());
        }
    }
    Ok(None)
}

fn read<const N: usize>(file: &File, at: u64) -> io::Result<[u8; N]> {
    // An offset that no file can reach is past its end.
    let at = i64::try_from(at).map_err(|_| ErrorKind::UnexpectedEof)?.unsigned_abs();
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// The minimal file that leads to the flags.
    fn made(flags: u32) -> Vec<u8> {
        let mut bytes = vec![0; 400 << 10];
        let (regions, metadata): (usize, usize) = (192 << 10, 320 << 10);
        let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
        put(regions, b"regi");
        put(regions + 8, &2_u32.to_le_bytes());
        put(regions + 48, &METADATA);
        put(regions + 64, &(320_u64 << 10).to_le_bytes());
        put(metadata, b"metadata");
        put(metadata + 10, &1_u16.to_le_bytes());
        put(metadata + 32, &PARAMETERS);
        put(metadata + 48, &0x1_0000_u32.to_le_bytes());
        put(metadata + 0x1_0000, &(1_u32 << 20).to_le_bytes());
        put(metadata + 0x1_0004, &flags.to_le_bytes());
        bytes
    }

    fn parent_of(bytes: &[u8]) -> bool {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        has_parent(&file).expect("read")
    }

    #[test]
    fn the_flag_is_found() {
        assert!(parent_of(&made(2)) && parent_of(&made(3)));
        assert!(!parent_of(&made(0)) && !parent_of(&made(1)));
        // The copy of the table counts if the first is missing.
        let mut moved = made(2);
        moved.copy_within((192 << 10)..(193 << 10), 256 << 10);
        moved[192 << 10..(192 << 10) + 4].fill(0);
        assert!(parent_of(&moved));
    }

    #[test]
    fn what_is_cut_short_or_leads_nowhere_has_no_parent() {
        let bytes = made(2);
        for len in [0, 8, 192 << 10, (192 << 10) + 20, 320 << 10, (320 << 10) + 40, (320 << 10) + 0x1_0004] {
            assert!(!parent_of(&bytes[..len]), "{len}");
        }
        let mut far = made(2);
        far[(192 << 10) + 64..(192 << 10) + 72].fill(0xff);
        assert!(!parent_of(&far));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn changed_files_never_panic(place in 0usize..4, bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
            let at = [192 << 10, (192 << 10) + 48, 320 << 10, (320 << 10) + 32][place];
            let mut vhdx = made(2);
            vhdx[at..at + bytes.len()].copy_from_slice(&bytes);
            let _ = parent_of(&vhdx);
        }
    }
}

//! HFS+ and HFSX: finds the volume header and its copy at the end of the volume. Numbers are big-endian.
//!
//! ```text
//! 1024 bytes for a boot loader · header: "H+" or "HX" · attributes u32 4 · block size u32 40 · blocks u32 44 · free u32 48
//! last 1024 bytes of the volume: copy of the header in the first 512
//! ```
//!
//! Source: Apple, Technical Note TN1150, "HFS Plus Volume Format".

use std::io::{Read, Seek};

use super::facts::{Landmarks, places};
use crate::used::UsedError;
use crate::volume::{Fields, Volume};

const HEADER: u64 = 1024;
const HEADER_LEN: u64 = 512;
/// The copy and a reserved sector.
const END_LEN: u64 = 1024;
/// Attribute: unmounted cleanly.
const UNMOUNTED: u32 = 0x100;

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let bytes = volume.read(HEADER, HEADER_LEN)?;
    let fields = Fields::new(&bytes, true);
    match &bytes[..2] {
        b"H+" | b"HX" => {}
        b"BD" => return Err(volume.unsupported("it is wrapped in an HFS volume")),
        _ => return Err(volume.damaged("it has no volume header")),
    }
    let [block_size, blocks, free] = [40, 44, 48].map(|at| u64::from(fields.u32(at)));
    if block_size < 512 || !block_size.is_power_of_two() || blocks == 0 || free > blocks {
        return Err(volume.damaged(format!("{blocks} blocks of {block_size} bytes, {free} free")));
    }
    let len = blocks * block_size;
    // A remainder after the last block, smaller than a block, still belongs to the volume.
    let ends = [len, volume.len()].map(|end| end.saturating_sub(END_LEN)..end);
    let places = places(volume, HEADER + HEADER_LEN, ends);
    let used_min = (fields.u32(4) & UNMOUNTED != 0).then(|| (blocks - free) * block_size);
    Ok(Landmarks { len: Some(len), places, used_min, ..Landmarks::default() })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// 20 blocks of 4 KiB, 7 of them free, in a volume that has 1536 bytes more.
    fn volume(signature: &[u8], attributes: u32) -> Vec<u8> {
        let mut bytes = vec![0; 20 * 4096 + 1536];
        bytes[1024..1026].copy_from_slice(signature);
        for (at, number) in [(4, attributes), (40, 4096), (44, 20), (48, 7)] {
            bytes[1024 + at..1028 + at].copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Landmarks, UsedError> {
        landmarks(&mut Volume::new(&mut Cursor::new(bytes), bytes.len() as u64, "hfsplus"))
    }

    #[test]
    fn the_copy_of_the_header_is_at_either_end() {
        let found = read(&volume(b"H+", 0x8000_0100)).expect("good");
        assert_eq!((found.len, found.used_min), (Some(81_920), Some(13 * 4096)));
        assert_eq!(found.places, [0..1536, 80_896..81_920, 82_432..83_456]);
        let found = read(&volume(b"HX", 0x8000_2000)).expect("good");
        assert_eq!(found.used_min, None, "not unmounted");
        let found = read(&volume(b"H+", 0x100)[..50_000]).expect("the start of one");
        assert_eq!((found.len, found.places), (Some(81_920), vec![0..1536, 48_976..50_000]));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(matches!(read(&volume(b"BD", 0x100)), Err(UsedError::Unsupported { .. })));
        assert!(matches!(read(&volume(b"h+", 0x100)), Err(UsedError::Damaged { .. })));
        for (at, byte) in [(1024 + 42, 0x11), (1024 + 42, 0), (1024 + 47, 6), (1024 + 51, 21)] {
            let mut bytes = volume(b"H+", 0x100);
            bytes[at] = byte;
            assert!(matches!(read(&bytes), Err(UsedError::Damaged { .. })), "{byte} at {at}");
        }
    }
}

//! APFS: finds the length of its container.
//!
//! ```text
//! block 0: container superblock: "NXSB" at 32 · block size u32 36 · blocks u64 40
//! ```
//!
//! Source: Apple, "Apple File System Reference", "nx_superblock_t".

use std::io::{Read, Seek};

use super::facts::{Landmarks, places};
use crate::used::UsedError;
use crate::volume::{Fields, Volume};

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let bytes = volume.read(0, 4096)?;
    let (block_size, blocks) = (u64::from(Fields::little(&bytes).u32(36)), Fields::little(&bytes).u64(40));
    let is_good = &bytes[32..36] == b"NXSB" && (4096..=65_536).contains(&block_size) && block_size.is_power_of_two();
    let Some(len) = blocks.checked_mul(block_size).filter(|len| *len > 0 && is_good) else {
        return Err(volume.damaged(format!("{blocks} blocks of {block_size} bytes")));
    };
    let places = places(volume, block_size, None);
    Ok(Landmarks { len: Some(len), places, ..Landmarks::default() })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::ops::Range;

    use super::*;

    #[test]
    fn a_container_says_how_long_it_is() {
        let mut bytes = vec![0; 9000];
        bytes[32..38].copy_from_slice(b"NXSB\0\x20");
        bytes[40] = 200;
        let read = |bytes: &[u8]| landmarks(&mut Volume::new(&mut Cursor::new(bytes), 9000, "apfs"));
        let found = read(&bytes).expect("good");
        assert_eq!((found.len, &found.places[..]), (Some(200 * 8192), &[Range { start: 0, end: 8192 }][..]));
        for (at, byte) in [(32, b'M'), (37, 0), (36, 1), (40, 0), (47, 0xff)] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            assert!(matches!(read(&bytes), Err(UsedError::Damaged { .. })), "{byte} at {at}");
        }
    }
}

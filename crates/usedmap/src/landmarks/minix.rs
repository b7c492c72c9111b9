//! Minix, versions 1 to 3, of either byte order: finds its length.
//!
//! ```text
//! boot block · superblock at 1024: zones u16 2 (version 1) or u32 20 · magic u16 16 or, version 3, 24 · block u16 28
//! ```
//!
//! Source: Linux, `include/uapi/linux/minix_fs.h`.

use std::io::{Read, Seek};

use super::facts::{Landmarks, places};
use crate::used::UsedError;
use crate::volume::{Fields, Volume};

const SUPERBLOCK: u64 = 1024;
const BLOCK: u64 = 1024;

/// Zones and the size of a block, if this is a superblock in this byte order.
fn zones(fields: Fields<'_>) -> Option<(u64, u64)> {
    match (fields.u16(16), fields.u16(24)) {
        (0x137f | 0x138f, _) => Some((fields.u16(2).into(), BLOCK)),
        (0x2468 | 0x2478, _) => Some((fields.u32(20).into(), BLOCK)),
        (_, 0x4d5a) => Some((fields.u32(20).into(), fields.u16(28).into())),
        _ => None,
    }
}

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let bytes = volume.read(SUPERBLOCK, 32)?;
    let found = [false, true].into_iter().find_map(|is_big_endian| zones(Fields::new(&bytes, is_big_endian)));
    let Some((zones, block_size)) = found.filter(|(zones, block_size)| *zones > 0 && *block_size > 0) else {
        return Err(volume.damaged("it has no superblock"));
    };
    let places = places(volume, SUPERBLOCK + BLOCK, None);
    Ok(Landmarks { len: Some(zones * block_size), places, ..Landmarks::default() })
}

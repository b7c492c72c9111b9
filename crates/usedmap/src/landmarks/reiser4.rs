//! Reiser4: finds its length.
//!
//! ```text
//! 64 KiB for a boot loader · master superblock: "ReIsEr4" · plugin u16 16 · block size u16 18
//! next block, plugin 0: superblock: blocks u64 0 · magic "ReIsEr40FoRmAt" at 52
//! ```
//!
//! Source: reiser4progs, `include/reiser4/master.h` and `plugin/format/format40`.

use std::io::{Read, Seek};

use super::facts::{Landmarks, places};
use crate::used::UsedError;
use crate::volume::{Fields, Volume};

const MASTER: u64 = 64 << 10;
const MAGIC: &[u8] = b"ReIsEr40FoRmAt";

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let master = volume.read(MASTER, 64)?;
    let block_size = u64::from(Fields::little(&master).u16(18));
    if !master.starts_with(b"ReIsEr4") || !(512..=8192).contains(&block_size) || !block_size.is_power_of_two() {
        return Err(volume.damaged("it has no superblock"));
    }
    let superblock = volume.read(MASTER + block_size, 512)?;
    let len = Fields::little(&superblock).u64(0).checked_mul(block_size);
    let Some(len) = len.filter(|len| *len > 0 && superblock[52..].starts_with(MAGIC)) else {
        return Err(volume.damaged("it has no superblock of its format"));
    };
    let places = places(volume, MASTER + 2 * block_size, None);
    Ok(Landmarks { len: Some(len), places, ..Landmarks::default() })
}

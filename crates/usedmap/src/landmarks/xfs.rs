//! XFS: finds the headers of its allocation groups. Numbers are big-endian.
//!
//! ```text
//! each allocation group starts with four sectors: superblock (a copy, except the first), free space, inodes, free list
//! superblock: "XFSB" · block size u32 4 · data blocks u64 8 · blocks of a group u32 84 · groups u32 88 · sector u16 102
//!             free data blocks u64 144
//! ```
//!
//! Source: Linux, `fs/xfs/libxfs/xfs_format.h`.

use std::io::{Read, Seek};

use super::facts::{Landmarks, places};
use crate::used::UsedError;
use crate::volume::{Fields, Volume};

/// Shortest group, in bytes, unless there is only one.
const GROUP_LEN_MIN: u64 = 1 << 24;
const HEADER_SECTORS: u64 = 4;

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let bytes = volume.read(0, 512)?;
    let fields = Fields::new(&bytes, true);
    if !bytes.starts_with(b"XFSB") {
        return Err(volume.damaged("it has no superblock"));
    }
    let [block_size, per_group, group_count] = [4, 84, 88].map(|at| u64::from(fields.u32(at)));
    let (blocks, free, sector) = (fields.u64(8), fields.u64(144), u64::from(fields.u16(102)));
    let is_size = |size: u64, max| (512..=max).contains(&size) && size.is_power_of_two();
    let is_good = is_size(block_size, 65_536)
        && is_size(sector, 32_768)
        && free <= blocks
        && per_group > 0
        && (1..=blocks.div_ceil(per_group.max(1))).contains(&group_count)
        && (group_count == 1 || per_group * block_size >= GROUP_LEN_MIN);
    let Some(len) = blocks.checked_mul(block_size).filter(|_| is_good) else {
        return Err(volume.damaged(format!(
            "{blocks} blocks of {block_size} bytes, {free} free, in {group_count} groups of {per_group}"
        )));
    };
    let group_len = per_group * block_size;
    let in_volume = group_count.min(volume.len() / group_len + 1);
    let headers = (0..in_volume).map(|group| group * group_len..group * group_len + HEADER_SECTORS * sector);
    let places = places(volume, 0, headers);
    let used_min = Some((blocks - free) * block_size);
    Ok(Landmarks { len: Some(len), places, used_min, ..Landmarks::default() })
}

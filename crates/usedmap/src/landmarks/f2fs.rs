//! F2FS: finds its two superblocks, and the number of nodes in its last checkpoint.
//!
//! ```text
//! superblock 1024 bytes into blocks 0 and 1: magic · block 2^n u32 16 · segment 2^n blocks u32 20 · blocks u64 36
//!   first checkpoint u32 76 · devices at 2201: path of 64 bytes, segments u32
//! checkpoint: version u64 0 · blocks u32 136 · nodes u32 144 · place of its checksum u32 164
//! two packs, a segment apart; each starts and ends with the same checkpoint
//! ```
//!
//! A checkpoint's count of valid blocks includes blocks that a file has reserved but that have no place yet, so only
//! nodes are counted here. Source: Linux, `include/linux/f2fs_fs.h`.

use std::io::{Read, Seek};

use super::facts::{Landmarks, places};
use crate::used::UsedError;
use crate::volume::{Fields, Volume, crc32};

const MAGIC: u32 = 0xf2f5_2010;
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: u64 = 3072 - 327;
/// Sizes of a block, as powers of two.
const BLOCK_SHIFTS: [u32; 5] = [12, 13, 14, 15, 16];
const DEVICES: usize = 2201;
const DEVICE_LEN: usize = 68;
const DEVICES_MAX: usize = 8;
/// Length of a checkpoint's fields before its bitmaps, in bytes, at most.
const CHECKPOINT_LEN: usize = 192;
const SEGMENT_SHIFT_MAX: u32 = 16;

/// The first valid superblock, with the size of its blocks as a power of two.
fn superblock(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Option<(u32, Vec<u8>)>, UsedError> {
    let copies = BLOCK_SHIFTS.map(|shift| SUPERBLOCK + (1 << shift));
    for offset in [SUPERBLOCK].into_iter().chain(copies) {
        let Some(bytes) = volume.read_if_inside(offset, SUPERBLOCK_LEN)? else { break };
        let (magic, shift) = (Fields::little(&bytes).u32(0), Fields::little(&bytes).u32(16));
        let is_here = offset == SUPERBLOCK || 1u64.checked_shl(shift) == Some(offset - SUPERBLOCK);
        if magic == MAGIC && BLOCK_SHIFTS.contains(&shift) && is_here {
            return Ok(Some((shift, bytes)));
        }
    }
    Ok(None)
}

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let Some((shift, bytes)) = superblock(volume)? else {
        return Err(volume.damaged("it has no superblock"));
    };
    let fields = Fields::little(&bytes);
    let (blocks, segment_shift) = (fields.u64(36), fields.u32(20));
    let len = blocks.checked_mul(1 << shift).filter(|len| *len > 0);
    let Some(len) = len.filter(|_| segment_shift <= SEGMENT_SHIFT_MAX) else {
        return Err(volume.damaged(format!("{blocks} blocks of 2^{shift} bytes")));
    };
    let paths = bytes[DEVICES..].chunks_exact(DEVICE_LEN).take(DEVICES_MAX).filter(|device| device[0] != 0).count();
    let devices = (paths as u64).max(1);
    let places = places(volume, 2 << shift, None);
    let mut newest: Option<(u64, u64)> = None;
    let first = u64::from(fields.u32(76));
    for pack in [first, first + (1 << segment_shift)] {
        let found = checkpoint(volume, pack, shift)?;
        newest = newest.max(found);
    }
    let used_min = newest.filter(|_| devices == 1).map(|(_, nodes)| nodes << shift);
    let len = (devices == 1).then_some(len);
    Ok(Landmarks { len, places, used_min, devices: Some(devices), ..Landmarks::default() })
}

/// Version and number of nodes of the checkpoint whose pack is at this block, if the pack is complete.
fn checkpoint(
    volume: &mut Volume<'_, impl Read + Seek>,
    block: u64,
    shift: u32,
) -> Result<Option<(u64, u64)>, UsedError> {
    let Some(first) = checkpoint_block(volume, block, shift)? else { return Ok(None) };
    let fields = Fields::little(&first);
    let last = block + u64::from(fields.u32(136)).saturating_sub(1);
    let is_whole = match checkpoint_block(volume, last, shift)? {
        Some(last) => Fields::little(&last).u64(0) == fields.u64(0),
        None => false,
    };
    Ok(is_whole.then(|| (fields.u64(0), u64::from(fields.u32(144)))))
}

fn checkpoint_block(
    volume: &mut Volume<'_, impl Read + Seek>,
    block: u64,
    shift: u32,
) -> Result<Option<Vec<u8>>, UsedError> {
    let Some(bytes) = volume.read_if_inside(block << shift, 1 << shift)? else { return Ok(None) };
    let at = usize::try_from(Fields::little(&bytes).u32(164)).unwrap_or(usize::MAX);
    if !(CHECKPOINT_LEN..=bytes.len() - 4).contains(&at) {
        return Ok(None);
    }
    // With a large map of nodes, the checksum is before the maps, and also before their part.
    let (front, sum, behind) = (&bytes[..at], Fields::little(&bytes).u32(at), &bytes[at + 4..]);
    Ok((crc32(crc32(MAGIC, front), behind) == sum).then_some(bytes))
}

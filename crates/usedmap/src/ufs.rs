//! UFS1 and UFS2 (the fast file system of the BSDs and of Solaris), of either byte order: each cylinder group has a map
//! of free fragments.
//!
//! ```text
//! superblock at 0x10000, 0x2000, 0 or 0x40000; its magic number at 1372
//! group g: copy of the superblock, group block, inodes, data; in UFS1 shifted by `cgoffset × (g & !cgmask)`
//! group block: magic 0x90255 at 4, number at 12, fragments at 20, free blocks and fragments at 28 and 36,
//!              position of the map at 96; a bit is one fragment, the lowest bit of a byte first, set if free
//! ```
//!
//! A group's map is trusted if it agrees with the group's sums, and if all maps together agree with the superblock's
//! sums. Source: Linux, `fs/ufs/ufs_fs.h`; FreeBSD, `sys/ufs/ffs/fs.h`.

use std::io::{Read, Seek};

use crate::ranges::Ranges;
use crate::used::{Used, UsedError};
use crate::volume::{Fields, Volume};

/// In the order in which FreeBSD searches.
const SUPERBLOCKS: [u64; 4] = [0x1_0000, 0x2000, 0, 0x4_0000];
const SUPERBLOCK_LEN: u64 = 8192;
const MAGIC_AT: usize = 1372;
const UFS1: u32 = 0x0001_1954;
const UFS2: u32 = 0x1954_0119;
const GROUP_MAGIC: u32 = 0x0009_0255;
/// `fs_clean` after a clean unmount.
const CLEAN: u8 = 1;
/// `fs_flags`: it was not clean when it was mounted, or it needs fsck.
const NEEDS_CHECK: u32 = 0x1 | 0x4;

/// A superblock, its place, and its byte order.
struct Superblock {
    offset: u64,
    bytes: Vec<u8>,
    is_big_endian: bool,
    is_ufs2: bool,
}

impl Superblock {
    fn find(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Option<Superblock>, UsedError> {
        for offset in SUPERBLOCKS {
            let Some(bytes) = volume.read_if_inside(offset, SUPERBLOCK_LEN)? else { continue };
            for is_big_endian in [false, true] {
                let fields = Fields::new(&bytes, is_big_endian);
                let magic = fields.u32(MAGIC_AT);
                // With blocks of 64 KiB, the first copy of a UFS1 superblock is where the superblock of UFS2 would be.
                let is_ufs2 = magic == UFS2;
                let is_copy = !is_ufs2 && offset == SUPERBLOCKS[0];
                if (magic == UFS1 || is_ufs2) && !is_copy && (!is_ufs2 || fields.u64(1000) == offset) {
                    return Ok(Some(Superblock { offset, bytes, is_big_endian, is_ufs2 }));
                }
            }
        }
        Ok(None)
    }

    fn fields(&self) -> Fields<'_> {
        Fields::new(&self.bytes, self.is_big_endian)
    }

    fn number(&self, at: usize) -> u64 {
        self.fields().u32(at).into()
    }

    /// The value of a field that UFS2 widened and moved.
    fn either(&self, ufs1: usize, ufs2: usize) -> u64 {
        if self.is_ufs2 { self.fields().u64(ufs2) } else { self.number(ufs1) }
    }
}

pub(crate) fn detect(volume: &mut Volume<'_, impl Read + Seek>) -> Result<bool, UsedError> {
    Ok(Superblock::find(volume)?.is_some())
}

pub(crate) fn used(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Used, UsedError> {
    let Some(superblock) = Superblock::find(volume)? else {
        return Err(volume.damaged("it has no superblock"));
    };
    let (block_size, fragment_size, per_block) = (superblock.number(48), superblock.number(52), superblock.number(56));
    let is_size = |size: u64, min| (min..=65_536).contains(&size) && size.is_power_of_two();
    if !is_size(block_size, 4096)
        || !is_size(fragment_size, 512)
        || ![1, 2, 4, 8].contains(&per_block)
        || block_size != fragment_size * per_block
    {
        return Err(volume.damaged(format!("blocks of {block_size} bytes in {per_block} of {fragment_size}")));
    }
    let block_len = superblock.fields().u32(52);
    let fragment_count = superblock.either(36, 1080);
    let (group_count, per_group) = (superblock.number(44), superblock.number(188));
    let end = fragment_count.checked_mul(fragment_size).filter(|end| (1..=volume.len()).contains(end));
    let (Some(end), false) = (end, per_group == 0 || group_count != fragment_count.div_ceil(per_group.max(1))) else {
        return Err(volume.damaged(format!(
            "{fragment_count} fragments of {fragment_size} bytes in {group_count} groups of {per_group} in {} bytes",
            volume.len()
        )));
    };
    let group_len = superblock.number(160);
    let [copy_at, group_at, inodes_at, data_at] = [8, 12, 16, 20].map(|at| superblock.number(at));
    let is_ordered = copy_at < group_at && group_at < inodes_at && inodes_at <= data_at && data_at <= per_group;
    if !is_ordered || !(256..=block_size).contains(&group_len) {
        return Err(
            volume.damaged(format!("groups of {group_len} bytes at {copy_at} {group_at} {inodes_at} {data_at}"))
        );
    }
    let needs_check = superblock.fields().u32(1312) & NEEDS_CHECK != 0 && superblock.is_ufs2;
    if superblock.bytes[209] != CLEAN || needs_check {
        return Ok(Used::whole_of_unclean(volume.len(), block_len));
    }

    let mut ranges = Ranges::new(volume.len());
    ranges.insert(0..superblock.offset + SUPERBLOCK_LEN);
    let summary_at = superblock.either(152, 1096).saturating_mul(fragment_size);
    ranges.insert(summary_at..summary_at.saturating_add(superblock.number(156)));

    let (shift, mask) = if superblock.is_ufs2 { (0, 0) } else { (superblock.number(24), superblock.number(28)) };
    let (mut blocks_free, mut fragments_free) = (0, 0);
    let mut is_doubtful = false;
    for group in 0..group_count {
        let first = group * per_group;
        let count = per_group.min(fragment_count - first);
        // A shift of more than 2^32 fragments is nonsense; it ends outside the volume.
        let start = first.saturating_add(shift.saturating_mul(group & !mask & u64::from(u32::MAX)));
        ranges.insert_blocks(start.saturating_add(copy_at)..start.saturating_add(data_at), fragment_size);
        let group_offset = start.saturating_add(group_at).saturating_mul(fragment_size);
        let bytes = volume.read_if_inside(group_offset, group_len)?;
        let map = bytes.as_deref().and_then(|bytes| free_map(bytes, superblock.is_big_endian, group, count, per_block));
        if let Some(map) = map {
            blocks_free += map.blocks_free;
            fragments_free += map.fragments_free;
            ranges.insert_bits(first, count, fragment_size, |fragment| !is_set(map.bits, fragment));
        } else {
            volume.note(format!("cylinder group {group} is copied whole: its map does not agree with its sums"));
            ranges.insert_blocks(first..first + count, fragment_size);
            is_doubtful = true;
        }
    }
    let sums = (superblock.either(196, 1016), superblock.either(204, 1032));
    if !is_doubtful && (blocks_free, fragments_free) != sums {
        return Err(volume.damaged(format!(
            "its groups have {blocks_free} free blocks and {fragments_free} fragments and its superblock {} and {}",
            sums.0, sums.1
        )));
    }
    let notes = volume.take_notes();
    Ok(Used { ranges: ranges.finish(), spans: end, block_size: block_len, is_clean: Some(true), notes })
}

/// The map of a cylinder group, and its free fragments.
struct FreeMap<'a> {
    bits: &'a [u8],
    blocks_free: u64,
    fragments_free: u64,
}

/// The map in this group block, if it belongs to this group and agrees with its sums.
fn free_map(bytes: &[u8], is_big_endian: bool, group: u64, count: u64, per_block: u64) -> Option<FreeMap<'_>> {
    let fields = Fields::new(bytes, is_big_endian);
    let is_it =
        fields.u32(4) == GROUP_MAGIC && u64::from(fields.u32(12)) == group && u64::from(fields.u32(20)) == count;
    let at = usize::try_from(fields.u32(96)).ok().filter(|_| is_it)?;
    let bits = bytes.get(at..at.checked_add(usize::try_from(count.div_ceil(8)).ok()?)?)?;
    let (mut blocks_free, mut fragments_free) = (0, 0);
    for block in 0..count.div_ceil(per_block) {
        let fragments = block * per_block..count.min((block + 1) * per_block);
        let is_whole = fragments.end - fragments.start == per_block;
        let free = fragments.filter(|&fragment| is_set(bits, fragment)).count() as u64;
        if is_whole && free == per_block { blocks_free += 1 } else { fragments_free += free }
    }
    let sums = (u64::from(fields.u32(28)), u64::from(fields.u32(36)));
    (sums == (blocks_free, fragments_free)).then_some(FreeMap { bits, blocks_free, fragments_free })
}

fn is_set(bits: &[u8], bit: u64) -> bool {
    bits[usize::try_from(bit / 8).expect("a bit of the map")] >> (bit % 8) & 1 == 1
}

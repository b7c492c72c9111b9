//! ext2, ext3 and ext4: superblock, group descriptors, and their backups in other groups.
//!
//! ```text
//! superblock at byte 1024 · descriptors, a table from the next block on, with room behind it to grow
//! backup group: superblock in its first block, then the same table
//! meta_bg: no table; each block of descriptors is in the first, second and last of the groups that it describes
//! ```
//!
//! Which groups have backups is told by the features sparse_super (0, 1, powers of 3, 5 and 7) and sparse_super2 (two
//! named ones); without them, all have. Source: Linux, `Documentation/filesystems/ext4/{blockgroup,super}.rst`.

use std::io::{Read, Seek};
use std::ops::Range;

use super::{Landmarks, places};
use crate::UsedError;
use crate::volume::{Fields, Volume};

const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// Largest block, 2^6 KiB.
const BLOCK_SHIFT_MAX: u32 = 6;
/// Fewest blocks of a group that any mkfs makes.
const GROUP_BLOCKS_MIN: u64 = 256;
/// More groups than a volume of an EiB has with the usual ones of 128 MiB, halved twice.
const GROUPS_MAX: u64 = 1 << 24;
/// `s_state`: unmounted cleanly, without errors.
const CLEAN: u16 = 1;

const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_RECOVER: u32 = 4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const RO_SPARSE_SUPER: u32 = 1;
const RO_BIGALLOC: u32 = 0x200;

/// How the groups are laid out; lengths in blocks.
struct Layout {
    block_size: u64,
    first_block: u64,
    per_group: u64,
    group_count: u64,
    /// Descriptors in a block.
    per_block: u64,
    /// The first group without a table; `None` if all of them are in it.
    meta_group_first: Option<u64>,
    /// Of the table and the room behind it.
    table: u64,
    backups: Backups,
}

/// Which groups have a superblock.
enum Backups {
    All,
    Sparse,
    Two([u64; 2]),
}

impl Backups {
    fn has(&self, group: u64) -> bool {
        let is_power_of = |base: u64| {
            let powers = std::iter::successors(Some(base), |power| power.checked_mul(base));
            powers.take_while(|power| *power <= group).last() == Some(group)
        };
        group == 0
            || match self {
                Backups::All => true,
                Backups::Sparse => group == 1 || group % 2 == 1 && [3, 5, 7].into_iter().any(is_power_of),
                Backups::Two(groups) => groups.contains(&group),
            }
    }
}

impl Layout {
    /// What a group starts with, in bytes.
    fn start_of(&self, group: u64) -> Range<u64> {
        let has_superblock = self.backups.has(group);
        let descriptors = match self.meta_group_first {
            Some(first) if group >= first => {
                let index = group % self.per_block;
                u64::from(index <= 1 || index == self.per_block - 1)
            }
            _ if has_superblock => self.table,
            _ => 0,
        };
        let mut first = self.first_block.saturating_add(group.saturating_mul(self.per_group));
        if group == 0 && self.block_size == SUPERBLOCK {
            // With clusters, the blocks are counted from the boot block on.
            first = 1;
        }
        let end = first.saturating_add(u64::from(has_superblock)).saturating_add(descriptors);
        // Boot code is in front of the first.
        let start = if group == 0 { 0 } else { first };
        start.saturating_mul(self.block_size)..end.saturating_mul(self.block_size)
    }
}

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let bytes = volume.read(SUPERBLOCK, SUPERBLOCK_LEN)?;
    let fields = Fields::little(&bytes);
    if fields.u16(56) != MAGIC {
        return Err(volume.damaged("it has no superblock"));
    }
    let (compat, incompat, read_only) = (fields.u32(92), fields.u32(96), fields.u32(100));
    let is_64bit = incompat & INCOMPAT_64BIT != 0;
    let number = |low, high| u64::from(fields.u32(low)) | if is_64bit { u64::from(fields.u32(high)) << 32 } else { 0 };
    let (blocks, free) = (number(4, 336), number(12, 344));
    let shift = fields.u32(24);
    if shift > BLOCK_SHIFT_MAX {
        return Err(volume.damaged(format!("blocks of 2^{shift} KiB")));
    }
    let block_size = 1024u64 << shift;
    let (first_block, per_group) = (u64::from(fields.u32(20)), u64::from(fields.u32(32)));
    let descriptor_len = if is_64bit { u64::from(fields.u16(254)) } else { 32 };
    let is_good = blocks > first_block
        && first_block <= 1
        && (free <= blocks)
        && per_group >= GROUP_BLOCKS_MIN
        && (32..=block_size).contains(&descriptor_len);
    let Some(len) = blocks.checked_mul(block_size).filter(|_| is_good) else {
        return Err(volume.damaged(format!(
            "{blocks} blocks of {block_size} bytes from {first_block} on, {free} free, in groups of {per_group}"
        )));
    };
    let group_count = (blocks - first_block).div_ceil(per_group);
    let per_block = block_size / descriptor_len;
    let table = group_count.div_ceil(per_block);
    let meta_first = (incompat & INCOMPAT_META_BG != 0).then(|| u64::from(fields.u32(260)));
    let backups = if compat & COMPAT_SPARSE_SUPER2 != 0 {
        Backups::Two([588, 592].map(|at| fields.u32(at).into()))
    } else if read_only & RO_SPARSE_SUPER != 0 {
        Backups::Sparse
    } else {
        Backups::All
    };
    let layout = Layout {
        block_size,
        first_block,
        per_group,
        group_count,
        per_block,
        meta_group_first: meta_first.map(|block| block * per_block),
        table: meta_first.map_or(table, |first| first.min(table)) + u64::from(fields.u16(206)),
        backups,
    };
    if layout.group_count > GROUPS_MAX {
        return Err(volume.unsupported(format!("{group_count} groups")));
    }
    // What a longer file system than the volume says of what is not there has no place.
    let in_volume = layout.group_count.min(volume.len() / (per_group * block_size) + 1);
    let places = places(volume, 0, (0..in_volume).map(|group| layout.start_of(group)));
    let is_counted = read_only & RO_BIGALLOC == 0 && incompat & INCOMPAT_RECOVER == 0 && fields.u16(58) == CLEAN;
    let used_min = is_counted.then(|| (blocks - free) * block_size);
    Ok(Landmarks { len: Some(len), places, used_min, ..Landmarks::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_where_they_are() {
        let groups = |backups: Backups| (0..130).filter(|&group| backups.has(group)).collect::<Vec<u64>>();
        assert_eq!(groups(Backups::Sparse), [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
        assert_eq!(groups(Backups::Two([1, 77])), [0, 1, 77]);
        assert_eq!(groups(Backups::All).len(), 130);
        assert!(!Backups::Sparse.has(u64::MAX));
    }

    #[test]
    fn descriptors_of_meta_groups_are_spread() {
        let layout = Layout {
            block_size: 1024,
            first_block: 1,
            per_group: 8192,
            group_count: 100,
            per_block: 16,
            meta_group_first: Some(32),
            table: 2,
            backups: Backups::Sparse,
        };
        let blocks = |group| {
            let bytes = layout.start_of(group);
            let first = if group == 0 { 0 } else { 1 + group * 8192 };
            assert_eq!(bytes.start, first * 1024);
            bytes.end / 1024 - first
        };
        assert_eq!([0, 1, 2, 25, 32, 33, 34, 47, 48, 49, 81].map(blocks), [4, 3, 0, 3, 1, 1, 0, 1, 1, 2, 2]);
    }
}

//! ext2, ext3 and ext4: superblock, group descriptors, and their backups in other groups.
//!
//! ```text
//! superblock at byte 1024 · descriptors, a table from the next block on, with room after it to grow
//! backup group: superblock in its first block, then the same table
//! meta_bg: no table; each block of descriptors is in the first, second and last of the groups that it describes
//! ```
//!
//! The features decide which groups have backups: sparse_super (0, 1, powers of 3, 5 and 7) or sparse_super2 (two named
//! groups); without these, all groups have them. Source: Linux,
//! `Documentation/filesystems/ext4/{blockgroup,super}.rst`.

use std::io::{Read, Seek};
use std::ops::Range;

use super::facts::{Landmarks, places};
use crate::used::UsedError;
use crate::volume::{Fields, Volume};

const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// Largest block, 2^6 KiB.
const BLOCK_SHIFT_MAX: u32 = 6;
/// Fewest blocks of a group that any mkfs makes.
const GROUP_BLOCKS_MIN: u64 = 256;
/// More groups than a volume of one EiB has with the usual groups of 128 MiB, halved twice.
const GROUPS_MAX: u64 = 1 << 24;
/// `s_state`: unmounted cleanly, without errors.
const CLEAN: u16 = 1;

const COMPAT_RESIZE_INODE: u32 = 0x10;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_RECOVER: u32 = 4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const RO_SPARSE_SUPER: u32 = 1;
const RO_GDT_CSUM: u32 = 0x10;
const RO_BIGALLOC: u32 = 0x200;
const RO_METADATA_CSUM: u32 = 0x400;
/// Flag of a group: its block bitmap was never written, because only the blocks at fixed places are in use.
const BLOCK_UNINIT: u16 = 2;

/// How the groups are laid out; lengths in blocks.
struct Layout {
    block_size: u64,
    first_block: u64,
    per_group: u64,
    group_count: u64,
    /// Descriptors per block.
    per_block: u64,
    /// The first group whose descriptor is not in the table; `None` if all of them are.
    meta_group_first: Option<u64>,
    /// Length of the table and the room after it.
    table: u64,
    backups: Backups,
    /// Length of the file system.
    block_count: u64,
    /// Length of a descriptor, in bytes.
    descriptor_len: u64,
    /// Length of a group's inode table.
    inode_table: u64,
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
    /// The block that a group starts with.
    fn first_of(&self, group: u64) -> u64 {
        self.first_block.saturating_add(group.saturating_mul(self.per_group))
    }

    /// The block with the descriptors of a group and of some after it; `group` has to be the first of these.
    fn descriptors_of(&self, group: u64) -> u64 {
        match self.meta_group_first {
            Some(first) if group >= first => self.first_of(group) + u64::from(self.backups.has(group)),
            _ => SUPERBLOCK / self.block_size + 1 + group / self.per_block,
        }
    }

    /// Whether a group claims to use only the blocks at fixed places, but its count says that more are in use. Nothing
    /// says which blocks these are.
    fn is_in_doubt(&self, group: u64, descriptor: &Fields<'_>) -> bool {
        let has_high = self.descriptor_len >= 64;
        let number = |low: usize, high: usize| {
            u64::from(descriptor.u32(low)) | if has_high { u64::from(descriptor.u32(high)) << 32 } else { 0 }
        };
        let start = self.first_of(group);
        let end = start.saturating_add(self.per_group).min(self.block_count);
        let inside = |first: u64, count: u64| first.saturating_add(count).min(end).saturating_sub(first.max(start));
        let free = u64::from(descriptor.u16(12)) | if has_high { u64::from(descriptor.u16(44)) << 16 } else { 0 };
        let fixed = self.start_of(group);
        let fixed = inside(fixed.start / self.block_size, (fixed.end - fixed.start) / self.block_size)
            + inside(number(0, 32), 1)
            + inside(number(4, 36), 1)
            + inside(number(8, 40), self.inode_table);
        descriptor.u16(18) & BLOCK_UNINIT != 0 && end - start > free.saturating_add(fixed)
    }

    /// The start of a group with metadata, in bytes.
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
        let mut first = self.first_of(group);
        if group == 0 && self.block_size == SUPERBLOCK {
            // With clusters, blocks are counted from the boot block on.
            first = 1;
        }
        let end = first.saturating_add(u64::from(has_superblock)).saturating_add(descriptors);
        // Boot code is before the first group.
        let start = if group == 0 { 0 } else { first };
        start.saturating_mul(self.block_size)..end.saturating_mul(self.block_size)
    }
}

/// Byte ranges of groups whose used blocks are unknown.
///
/// e2fsck considers such a group damaged, but kernels mount it, and its files are there.
fn groups_in_doubt(
    volume: &mut Volume<'_, impl Read + Seek>,
    layout: &Layout,
    groups: u64,
) -> Result<Vec<Range<u64>>, UsedError> {
    let mut found = Vec::new();
    for first in (0..groups).step_by(usize::try_from(layout.per_block).unwrap_or(usize::MAX)) {
        let offset = layout.descriptors_of(first).saturating_mul(layout.block_size);
        let Some(block) = volume.read_if_inside(offset, layout.block_size)? else {
            break;
        };
        let descriptors = block.chunks_exact(usize::try_from(layout.descriptor_len).unwrap_or(usize::MAX));
        for (group, descriptor) in (first..groups.min(first + layout.per_block)).zip(descriptors) {
            if layout.is_in_doubt(group, &Fields::little(descriptor)) {
                let start = layout.first_of(group);
                let end = start.saturating_add(layout.per_group);
                found.push(start.saturating_mul(layout.block_size)..end.saturating_mul(layout.block_size));
            }
        }
    }
    Ok(found)
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
    if compat & COMPAT_RESIZE_INODE != 0 && meta_first.is_some() {
        // The one feature keeps blocks where the other has data.
        return Err(volume.damaged("it has both resize_inode and meta_bg, which exclude each other"));
    }
    let inode_len = if fields.u32(76) == 0 { 128 } else { u64::from(fields.u16(88)) };
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
        block_count: blocks,
        descriptor_len,
        inode_table: (u64::from(fields.u32(40)) * inode_len).div_ceil(block_size),
    };
    if layout.group_count > GROUPS_MAX {
        return Err(volume.unsupported(format!("{group_count} groups")));
    }
    // If the file system is longer than the volume, descriptors of the missing part have no place.
    let in_volume = layout.group_count.min(volume.len() / (per_group * block_size) + 1);
    let has_flags = read_only & (RO_GDT_CSUM | RO_METADATA_CSUM) != 0 && read_only & RO_BIGALLOC == 0;
    let in_doubt = if has_flags { groups_in_doubt(volume, &layout, in_volume)? } else { Vec::new() };
    let places = places(volume, 0, (0..in_volume).map(|group| layout.start_of(group)).chain(in_doubt));
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
            block_count: 1 + 100 * 8192,
            descriptor_len: 64,
            inode_table: 16,
        };
        let blocks = |group| {
            let bytes = layout.start_of(group);
            let first = if group == 0 { 0 } else { 1 + group * 8192 };
            assert_eq!(bytes.start, first * 1024);
            bytes.end / 1024 - first
        };
        assert_eq!([0, 1, 2, 25, 32, 33, 34, 47, 48, 49, 81].map(blocks), [4, 3, 0, 3, 1, 1, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn a_group_that_denies_blocks_in_use_is_in_doubt() {
        let layout = Layout {
            block_size: 1024,
            first_block: 1,
            per_group: 8192,
            group_count: 4,
            per_block: 32,
            meta_group_first: None,
            table: 2,
            backups: Backups::Sparse,
            block_count: 1 + 3 * 8192 + 1000,
            descriptor_len: 32,
            inode_table: 256,
        };
        let descriptor = |group: u64, is_own: bool, free: u64, flags: u16| {
            let metadata = if is_own { layout.first_of(group) + 3 } else { 2 };
            let mut bytes = [0u8; 32];
            for (at, block) in [(0, metadata), (4, metadata + 1), (8, metadata + 2)] {
                bytes[at..at + 4].copy_from_slice(&u32::try_from(block).unwrap().to_le_bytes());
            }
            bytes[12..14].copy_from_slice(&u16::try_from(free).unwrap().to_le_bytes());
            bytes[18..20].copy_from_slice(&flags.to_le_bytes());
            layout.is_in_doubt(group, &Fields::little(&bytes))
        };
        // Superblock and table, and the group's own metadata: bitmaps, inodes.
        assert!(!descriptor(1, true, 8192 - 3 - 258, BLOCK_UNINIT));
        assert!(descriptor(1, true, 8192 - 3 - 259, BLOCK_UNINIT));
        assert!(!descriptor(1, true, 17, 1), "not flagged");
        // The group's metadata is in another group, as with flex_bg.
        assert!(!descriptor(2, false, 8192, BLOCK_UNINIT));
        assert!(descriptor(2, false, 8191, BLOCK_UNINIT));
        // The last group is shorter.
        assert!(!descriptor(3, false, 1000 - 3, BLOCK_UNINIT));
        assert!(descriptor(3, false, 1000 - 4, BLOCK_UNINIT));
    }
}

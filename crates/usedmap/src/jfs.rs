//! JFS: reads the block allocation map, which is the file of aggregate inode 2.
//!
//! ```text
//! byte 0x8000 superblock · 0xb000 aggregate inode table, 512 bytes an inode · 0xf000 second superblock
//! map file, pages of 4 KiB: 0 control · 1 level 2 · 2 level 1 · 3 level 0 · 4.. dmap (8192 blocks each)
//! dmap: blocks u32, free u32, first block u64, tree, working map at 2048, persistent map at 3072
//! ```
//!
//! After 1024 dmaps comes another level 0 page, after 1024 of those another level 1 page. A bit of a map stands for one
//! block, the highest bit of a 32-bit word first, set if used. The working map runs ahead of the persistent one while
//! the volume is mounted; here a block is free only if both maps say so. The map ends before the work space of fsck and
//! the inline log, which are at the end of the volume and are copied. Source: Linux,
//! `fs/jfs/jfs_{superblock,dmap,xtree,filsys}.h`.

use std::io::{Read, Seek};

use crate::ranges::Ranges;
use crate::used::{Used, UsedError};
use crate::volume::{Fields, Volume};

const SUPERBLOCK: u64 = 0x8000;
const INODE_TABLE: u64 = 0xb000;
const INODE_LEN: u64 = 512;
/// Aggregate inode of the block allocation map.
const MAP_INODE: u64 = 2;
/// The fixed area at the start: superblocks, first pages of the inode map and table.
const FIXED_LEN: u64 = 0x1_0000;
/// Block size, and size of every page of the map, in bytes. JFS allows smaller blocks, but Linux and its mkfs do not.
const PAGE: u64 = 4096;
const BLOCKS_PER_DMAP: u64 = 8192;

/// `s_state` of a volume that was unmounted cleanly.
const CLEAN: u32 = 0;
/// `s_flag`: the log is in this volume.
const INLINE_LOG: u32 = 0x800;
/// Node flags of an extent tree.
const LEAF: u8 = 2;
const INTERNAL: u8 = 4;

/// A run of blocks of a file.
struct Extent {
    file_block: u64,
    disk_block: u64,
    count: u64,
}

pub(crate) fn detect(volume: &mut Volume<'_, impl Read + Seek>) -> Result<bool, UsedError> {
    Ok(volume.read_if_inside(SUPERBLOCK, 4)?.is_some_and(|magic| magic == b"JFS1"))
}

pub(crate) fn used(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Used, UsedError> {
    let bytes = volume.read(SUPERBLOCK, 512)?;
    let superblock = Fields::little(&bytes);
    if &bytes[..4] != b"JFS1" {
        return Err(volume.damaged("it has no superblock"));
    }
    let version = superblock.u32(4);
    if !(1..=2).contains(&version) {
        return Err(volume.unsupported(format!("version {version}")));
    }
    if u64::from(superblock.u32(16)) != PAGE {
        return Err(volume.unsupported(format!("a block size of {}", superblock.u32(16))));
    }
    let sector_size = u64::from(superblock.u32(24));
    if !(512..=PAGE).contains(&sector_size) || !sector_size.is_power_of_two() {
        return Err(volume.damaged(format!("a sector of {sector_size} bytes")));
    }
    let end = superblock.u64(8).checked_mul(sector_size).filter(|end| (FIXED_LEN..=volume.len()).contains(end));
    let Some(end) = end else {
        return Err(volume.damaged(format!("{} sectors in {} bytes", superblock.u64(8), volume.len())));
    };
    let block_count = end / PAGE;
    let flags = superblock.u32(36);
    if superblock.u32(40) != CLEAN {
        return Ok(Used::whole_of_unclean(volume.len(), 4096));
    }

    let mut ranges = Ranges::new(volume.len());
    ranges.insert(0..FIXED_LEN);
    let mut own_end = end;
    // Inline log and work space; if the log is elsewhere, there is no such extent.
    for (name, at, is_there) in [("log", 72, flags & INLINE_LOG != 0), ("work space", 80, true)] {
        let (first, count) = extent_at(&bytes, at);
        if !is_there || count == 0 {
            continue;
        }
        let extent_end = (first + count) * PAGE;
        if extent_end > volume.len() {
            return Err(volume.damaged(format!("its {name} ends at byte {extent_end} of {}", volume.len())));
        }
        ranges.insert(first * PAGE..extent_end);
        own_end = own_end.max(extent_end);
    }
    // Nothing between the map's end and the log is free, whatever is there.
    ranges.insert(end / PAGE * PAGE..own_end);

    let extents = map_extents(volume, block_count)?;
    let control = map_page(volume, &extents, 0)?;
    let control = Fields::little(&control);
    let (mapped, free_sum) = (control.u64(0), control.u64(8));
    if mapped != block_count {
        return Err(volume.damaged(format!("the map has {mapped} blocks and the superblock {block_count}")));
    }
    let mut free_count = 0;
    let mut is_doubtful = false;
    for dmap in 0..block_count.div_ceil(BLOCKS_PER_DMAP) {
        let first = dmap * BLOCKS_PER_DMAP;
        let count = BLOCKS_PER_DMAP.min(block_count - first);
        let page = map_page(volume, &extents, dmap_page(dmap));
        match page.and_then(|page| check_dmap(volume, &page, first, count).map(|()| page)) {
            Ok(page) => {
                free_count += u64::from(Fields::little(&page).u32(4));
                ranges.insert_bits(first, count, PAGE, |bit| is_set(&page, 2048, bit) || is_set(&page, 3072, bit));
            }
            Err(error @ UsedError::Read { .. }) => return Err(error),
            Err(error) => {
                volume.note(format!("blocks {first} to {} are copied whole: {error}", first + count - 1));
                ranges.insert_blocks(first..first + count, PAGE);
                is_doubtful = true;
            }
        }
    }
    if !is_doubtful && free_count != free_sum {
        return Err(volume.damaged(format!("the map has {free_count} free blocks and its control page {free_sum}")));
    }
    if flags & INLINE_LOG == 0 {
        volume.note("its log is on another device, which is not part of it");
    }
    let notes = volume.take_notes();
    Ok(Used { ranges: ranges.finish(), spans: own_end, block_size: 4096, is_clean: Some(true), notes })
}

/// Page of the map file that holds a dmap: it follows the control page, three levels, and the level 0 and level 1 pages
/// that come in between.
fn dmap_page(dmap: u64) -> u64 {
    dmap + (dmap >> 10) + (dmap >> 20) + 4
}

/// First block and length of a physical extent: 24 bits of length, 8 + 32 bits of block number.
fn extent_at(bytes: &[u8], at: usize) -> (u64, u64) {
    let (len_and_high, low) = (Fields::little(bytes).u32(at), Fields::little(bytes).u32(at + 4));
    (u64::from(len_and_high >> 24) << 32 | u64::from(low), u64::from(len_and_high & 0xff_ffff))
}

fn is_set(page: &[u8], map: usize, bit: u64) -> bool {
    let bit = usize::try_from(bit).expect("a bit of one page");
    // The highest bit of a little-endian word of 32 is the highest of its last byte.
    page[map + bit / 32 * 4 + 3 - bit % 32 / 8] & (0x80 >> (bit % 8)) != 0
}

/// Whether a dmap belongs to these blocks and agrees with itself.
fn check_dmap<S: Read + Seek>(volume: &Volume<'_, S>, page: &[u8], first: u64, count: u64) -> Result<(), UsedError> {
    let fields = Fields::little(page);
    if fields.u64(8) != first || u64::from(fields.u32(0)) != count {
        return Err(volume.damaged(format!("their map claims {} blocks from {} on", fields.u32(0), fields.u64(8))));
    }
    let free = (0..count).filter(|&bit| !is_set(page, 2048, bit)).count();
    if free as u64 != u64::from(fields.u32(4)) {
        return Err(volume.damaged(format!("their map has {free} free blocks and claims {}", fields.u32(4))));
    }
    Ok(())
}

/// One page of the map file.
fn map_page(volume: &mut Volume<'_, impl Read + Seek>, extents: &[Extent], page: u64) -> Result<Vec<u8>, UsedError> {
    let index = extents.partition_point(|extent| extent.file_block <= page);
    let extent = index.checked_sub(1).map(|index| &extents[index]);
    match extent.filter(|extent| page - extent.file_block < extent.count) {
        Some(extent) => volume.read((extent.disk_block + page - extent.file_block) * PAGE, PAGE),
        None => Err(volume.damaged(format!("the map has no page {page}"))),
    }
}

/// Where the map file is, ascending, according to the extent tree whose root is in its inode.
fn map_extents(volume: &mut Volume<'_, impl Read + Seek>, block_count: u64) -> Result<Vec<Extent>, UsedError> {
    let inode = volume.read(INODE_TABLE + MAP_INODE * INODE_LEN, INODE_LEN)?;
    if u64::from(Fields::little(&inode).u32(8)) != MAP_INODE {
        return Err(volume.damaged("the inode of its map is not there"));
    }
    // An extent has at least one block of the map, so there are at most as many extents as pages; the same holds for
    // nodes.
    let extents_max = usize::try_from(dmap_page(block_count.div_ceil(BLOCKS_PER_DMAP)) + 64).unwrap_or(usize::MAX);
    let mut extents = Vec::new();
    let mut nodes_left = extents_max;
    let mut node = inode[224..].to_vec();
    // Blocks of nodes that are still to be read, the next one last.
    let mut pending = Vec::new();
    loop {
        let (flags, next) = (node[16], usize::from(Fields::little(&node).u16(18)));
        if !(2..=node.len() / 16).contains(&next) || (flags & (LEAF | INTERNAL)).count_ones() != 1 {
            return Err(volume.damaged("the extent tree of its map"));
        }
        nodes_left = nodes_left.checked_sub(next - 2).ok_or_else(|| volume.damaged("its map has too many extents"))?;
        let entries = (2..next).map(|slot| {
            let at = slot * 16;
            let file_block = u64::from(node[at + 3]) << 32 | u64::from(Fields::little(&node).u32(at + 4));
            let (disk_block, count) = extent_at(&node, at + 8);
            Extent { file_block, disk_block, count }
        });
        if flags & LEAF != 0 {
            extents.extend(entries);
        } else {
            pending.extend(entries.rev().map(|child| child.disk_block));
        }
        let Some(block) = pending.pop() else { break };
        node = volume.read(block * PAGE, PAGE)?;
    }
    let is_ordered = extents.windows(2).all(|pair| pair[0].file_block + pair[0].count <= pair[1].file_block);
    if !is_ordered {
        return Err(volume.damaged("the extents of its map are in disorder"));
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dmaps_have_their_pages() {
        // The second thousand's level 0 page is page 1028, after 1024 dmaps.
        for (dmap, page) in [(0, 4), (1, 5), (1023, 1027), (1024, 1029), (2048, 2054), (1 << 20, (1 << 20) + 1024 + 5)]
        {
            assert_eq!(dmap_page(dmap), page, "dmap {dmap}");
        }
    }

    #[test]
    fn the_highest_bit_comes_first() {
        let mut page = vec![0; 4096];
        page[2048..2052].copy_from_slice(&0x8000_0001u32.to_le_bytes());
        page[2052..2056].copy_from_slice(&0x0040_0000u32.to_le_bytes());
        let set: Vec<u64> = (0..8192).filter(|&bit| is_set(&page, 2048, bit)).collect();
        assert_eq!(set, [0, 31, 41]);
    }

    #[test]
    fn extents_have_forty_bits() {
        let bytes = [3, 0, 0, 0xab, 1, 2, 3, 4];
        assert_eq!(extent_at(&bytes, 0), (0xab_0403_0201, 3));
    }
}

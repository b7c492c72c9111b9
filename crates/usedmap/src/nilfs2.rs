//! NILFS2: a log of segments; the segment usage file says which of them are in use.
//!
//! ```text
//! superblock (byte 1024; second: last whole 4 KiB) ─► last log ─► its last block: super root
//! super root: inodes of DAT, cpfile, sufile · DAT: virtual → disk block · sufile: 16 bytes a segment, flags 0 = clean
//! ```
//!
//! The block pointers of the DAT are disk blocks, those of the sufile are virtual blocks that the DAT translates. An
//! inode has either six pointers or the root of a B-tree. A segment with any flag is copied whole. The first block of a
//! clean segment is copied too: recovery after a crash follows the log from segment to segment by the blocks it finds
//! there. On a disk that held a later state of the same volume, it must not find that state. Superblock, log header and
//! super root have checksums; the number of clean segments has to agree with the sufile's header. Source: Linux,
//! `include/uapi/linux/nilfs2_ondisk.h`.

use std::io::{Read, Seek};
use std::ops::Range;

use crate::ranges::Ranges;
use crate::used::{Used, UsedError};
use crate::volume::{Fields, Volume, crc32};

const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: u64 = 1024;
/// Length of the fields of a superblock that every version has.
const SUPERBLOCK_BYTES_MIN: u16 = 0x110;
const MAGIC: u16 = 0x3434;
const REVISION: u32 = 2;
/// `s_state`: unmounted cleanly; errors were found; a resize is pending.
const STATE_VALID: u16 = 1;
const STATE_MASK: u16 = 7;

const LOG_MAGIC: u32 = 0x1eaf_fa11;
const LOG_HEADER_LEN: usize = 64;
/// `ss_flags`: the log ends with a super root.
const LOG_HAS_SUPER_ROOT: u16 = 4;
const SUPER_ROOT_HEAD: usize = 16;

/// Bytes of an inode that hold its pointers.
const BMAP: Range<usize> = 56..112;
const BMAP_IS_TREE: u8 = 1;
const DIRECT_POINTERS: u64 = 6;
const TREE_ROOT_CHILDREN: usize = 3;
const TREE_LEVEL_MAX: u8 = 13;
const NODE_HEAD: usize = 16;

const SEGMENT_BLOCKS_MIN: u64 = 16;

/// The important fields of a superblock.
struct Superblock {
    bytes: Vec<u8>,
}

impl Superblock {
    /// The superblock at this place, if it is valid.
    fn read(volume: &mut Volume<'_, impl Read + Seek>, offset: u64) -> Result<Option<Superblock>, UsedError> {
        let Some(bytes) = volume.read_if_inside(offset, SUPERBLOCK_LEN)? else { return Ok(None) };
        let fields = Fields::little(&bytes);
        let summed = fields.u16(8);
        if fields.u16(6) != MAGIC || !(SUPERBLOCK_BYTES_MIN..=1024).contains(&summed) {
            return Ok(None);
        }
        let mut copy = bytes[..usize::from(summed)].to_vec();
        copy[16..20].fill(0);
        Ok((crc32(fields.u32(12), &copy) == fields.u32(16)).then_some(Superblock { bytes }))
    }

    /// The valid superblock that was written last: the first, unless only the second knows the last checkpoint.
    fn find(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Option<Superblock>, UsedError> {
        let first = Superblock::read(volume, SUPERBLOCK)?;
        let second = match second_superblock(volume.len()) {
            Some(offset) => Superblock::read(volume, offset)?,
            None => None,
        };
        Ok(match (first, second) {
            (Some(first), Some(second)) if second.checkpoint() > first.checkpoint() => Some(second),
            (first, second) => first.or(second),
        })
    }

    fn fields(&self) -> Fields<'_> {
        Fields::little(&self.bytes)
    }

    fn checkpoint(&self) -> u64 {
        self.fields().u64(0x38)
    }
}

/// The place of the second superblock on a device of this many bytes.
fn second_superblock(len: u64) -> Option<u64> {
    (len >> 12).checked_sub(1).map(|block| block << 12)
}

pub(crate) fn detect(volume: &mut Volume<'_, impl Read + Seek>) -> Result<bool, UsedError> {
    Ok(Superblock::find(volume)?.is_some())
}

pub(crate) fn used(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Used, UsedError> {
    let Some(superblock) = Superblock::find(volume)? else {
        return Err(volume.damaged("it has no valid superblock"));
    };
    let fields = superblock.fields();
    if fields.u32(0) != REVISION || fields.u64(0x110) != 0 {
        return Err(volume.unsupported(format!("revision {}, features {:#x}", fields.u32(0), fields.u64(0x110))));
    }
    let block_len = match fields.u32(20) {
        shift @ 0..=6 => 1024u32 << shift,
        shift => return Err(volume.damaged(format!("blocks of 2^{shift} KiB"))),
    };
    let block_size = u64::from(block_len);
    let (segment_count, per_segment, first_block) = (fields.u64(0x18), u64::from(fields.u32(0x30)), fields.u64(0x28));
    let end = per_segment.checked_mul(block_size).and_then(|len| len.checked_mul(segment_count));
    let device_len = fields.u64(0x20);
    let is_inside = end.is_some_and(|end| (1..=volume.len()).contains(&end)) && device_len <= volume.len();
    if !is_inside || per_segment < SEGMENT_BLOCKS_MIN || first_block >= per_segment {
        return Err(volume.damaged(format!(
            "{segment_count} segments of {per_segment} blocks of {block_size} from {first_block} on, in {} bytes",
            volume.len()
        )));
    }
    if fields.u16(0x74) & STATE_MASK != STATE_VALID {
        return Ok(Used::whole_of_unclean(volume.len(), block_len));
    }
    let files = Files::open(volume, &superblock, block_size)?;

    let mut ranges = Ranges::new(volume.len());
    ranges.insert_blocks(0..first_block, block_size);
    ranges.insert(0..2 * SUPERBLOCK_LEN);
    // The remainder of the device is no segment. It contains the second superblock, which is searched at the end of the
    // volume.
    let segments_end = segment_count * per_segment * block_size;
    ranges.insert(segments_end..device_len);
    for offset in [device_len, volume.len()].into_iter().filter_map(second_superblock) {
        ranges.insert(offset..offset + SUPERBLOCK_LEN);
    }
    let last_segments = [files.last_log, files.next_log].map(|block| block / per_segment);
    let (mut clean_count, mut clean_sum) = (0, 0);
    let entry_len = usize::from(fields.u16(0x96));
    let mut sufile_block: Option<(u64, Vec<u8>)> = None;
    let per_sufile_block = block_size / entry_len as u64;
    // The header of 24 bytes takes a whole number of entries.
    let head = 24_usize.div_ceil(entry_len) as u64;
    for segment in 0..segment_count {
        let block = (segment + head) / per_sufile_block;
        if sufile_block.as_ref().is_none_or(|(number, _)| *number != block) {
            let bytes = match files.sufile_block(volume, block)? {
                Some(bytes) => bytes,
                // It is a hole: nothing in it was ever in use. Block 0 has the header and always exists.
                None if block > 0 => vec![0; usize::try_from(block_size).expect("64 KiB at most")],
                None => return Err(volume.damaged("its segment usage file has no first block")),
            };
            if block == 0 {
                clean_sum = Fields::little(&bytes).u64(0);
            }
            sufile_block = Some((block, bytes));
        }
        let (_, bytes) = sufile_block.as_ref().expect("set above");
        let at = usize::try_from((segment + head) % per_sufile_block).expect("in the block") * entry_len;
        let is_clean = Fields::little(bytes).u32(at + 12) == 0;
        let blocks = (segment * per_segment).max(first_block)..(segment + 1) * per_segment;
        if is_clean && !last_segments.contains(&segment) {
            ranges.insert_blocks(blocks.start..blocks.start + 1, block_size);
        } else {
            ranges.insert_blocks(blocks, block_size);
        }
        clean_count += u64::from(is_clean);
    }
    if clean_count != clean_sum {
        return Err(volume.damaged(format!("{clean_count} segments are clean, and their file says {clean_sum}")));
    }
    let (spans, notes) = (segments_end.max(device_len), volume.take_notes());
    Ok(Used { ranges: ranges.finish(), spans, block_size: block_len, is_clean: Some(true), notes })
}

/// The two files that are needed, and the end of the log.
struct Files {
    block_size: u64,
    dat: Vec<u8>,
    sufile: Vec<u8>,
    dat_entry_len: u64,
    /// First block of the last log.
    last_log: u64,
    /// First block of the segment after it.
    next_log: u64,
}

impl Files {
    /// Follows the superblock to the last super root.
    fn open(
        volume: &mut Volume<'_, impl Read + Seek>,
        superblock: &Superblock,
        block_size: u64,
    ) -> Result<Files, UsedError> {
        let fields = superblock.fields();
        let [inode_len, dat_entry_len, _, usage_len] = [0x90, 0x92, 0x94, 0x96].map(|at| u64::from(fields.u16(at)));
        let is_len = |len: u64, min| (min..=block_size / 4).contains(&len);
        if !is_len(inode_len, 128) || !is_len(dat_entry_len, 32) || !is_len(usage_len, 16) {
            return Err(volume.damaged(format!("inodes of {inode_len}, entries of {dat_entry_len} and {usage_len}")));
        }
        let (seed, last_log) = (fields.u32(12), fields.u64(0x40));
        let header = volume.read(last_log.saturating_mul(block_size), block_size)?;
        let log = Fields::little(&header);
        let summed = u64::from(log.u32(48));
        let is_log = log.u32(8) == LOG_MAGIC
            && log.u16(14) & LOG_HAS_SUPER_ROOT != 0
            && usize::from(log.u16(12)) >= LOG_HEADER_LEN - 8
            && log.u64(16) == fields.u64(0x48)
            && (8..=volume.len()).contains(&summed);
        if !is_log {
            return Err(volume.damaged(format!("no log with a super root is at block {last_log}")));
        }
        let summary = volume.read(last_log.saturating_mul(block_size), summed)?;
        if crc32(seed, &summary[8..]) != log.u32(4) {
            return Err(volume.damaged(format!("the log at block {last_log} fails its checksum")));
        }
        let root_block = last_log.saturating_add(u64::from(log.u32(40))).saturating_sub(1);
        let root = volume.read(root_block.saturating_mul(block_size), block_size)?;
        let inode_len = usize::try_from(inode_len).expect("16 bits");
        let root_len = SUPER_ROOT_HEAD + 3 * inode_len;
        let summed = usize::from(Fields::little(&root).u16(4));
        if summed < root_len || summed > root.len() || crc32(seed, &root[4..summed]) != Fields::little(&root).u32(0) {
            return Err(volume.damaged(format!("the super root at block {root_block} fails its checksum")));
        }
        let bmap = |inode: usize| {
            let inode = SUPER_ROOT_HEAD + inode * inode_len;
            root[inode + BMAP.start..inode + BMAP.end].to_vec()
        };
        let next_log = log.u64(32);
        Ok(Files { block_size, dat: bmap(0), sufile: bmap(2), dat_entry_len, last_log, next_log })
    }

    /// A block of the sufile; `None` is a hole.
    fn sufile_block(
        &self,
        volume: &mut Volume<'_, impl Read + Seek>,
        block: u64,
    ) -> Result<Option<Vec<u8>>, UsedError> {
        let Some(pointer) = self.look_up(volume, &self.sufile, block, true)? else { return Ok(None) };
        let disk_block = self.translate(volume, pointer)?;
        volume.read(disk_block.saturating_mul(self.block_size), self.block_size).map(Some)
    }

    /// The disk block of a virtual block.
    fn translate(&self, volume: &mut Volume<'_, impl Read + Seek>, number: u64) -> Result<u64, UsedError> {
        // A group has as many entries as a block has bits: first a block for the bitmap, then the blocks of the
        // entries. Before every run of groups there is a block with four bytes for each of them.
        let per_group = self.block_size * 8;
        let per_block = self.block_size / self.dat_entry_len;
        let group_blocks = per_group.div_ceil(per_block) + 1;
        let groups_per_head = self.block_size / 4;
        let (group, entry) = (number / per_group, number % per_group);
        let head = (group / groups_per_head).checked_mul(groups_per_head * group_blocks + 1);
        let block =
            head.and_then(|head| head.checked_add(2 + group % groups_per_head * group_blocks + entry / per_block));
        let missing = || format!("its translation table has no block {number}");
        let disk_block = match block {
            Some(block) => self.look_up(volume, &self.dat, block, false)?,
            None => None,
        };
        let disk_block = disk_block.ok_or_else(|| volume.damaged(missing()))?;
        let bytes = volume.read(disk_block.saturating_mul(self.block_size), self.block_size)?;
        let at = usize::try_from(entry % per_block * self.dat_entry_len).expect("in the block");
        match Fields::little(&bytes).u64(at) {
            0 => Err(volume.damaged(missing())),
            block => Ok(block),
        }
    }

    /// The pointer to a file's block; `None` is a hole.
    fn look_up(
        &self,
        volume: &mut Volume<'_, impl Read + Seek>,
        bmap: &[u8],
        key: u64,
        is_virtual: bool,
    ) -> Result<Option<u64>, UsedError> {
        let some = |pointer: u64| Some(pointer).filter(|&pointer| pointer != 0);
        if bmap[0] & BMAP_IS_TREE == 0 {
            let at = |key: u64| 8 + 8 * usize::try_from(key).expect("one of six");
            return Ok((key < DIRECT_POINTERS).then(|| Fields::little(bmap).u64(at(key))).and_then(some));
        }
        let mut level = bmap[1];
        if !(1..=TREE_LEVEL_MAX).contains(&level) {
            return Err(volume.damaged(format!("a tree of {level} levels")));
        }
        let mut found = search(bmap, 8, TREE_ROOT_CHILDREN, key);
        while level > 1 {
            let pointer = match found {
                Found::Child { pointer, .. } => pointer,
                Found::Nothing => return Ok(None),
                Found::Damaged => return Err(volume.damaged("a node of a tree")),
            };
            let disk_block = if is_virtual { self.translate(volume, pointer)? } else { pointer };
            let node = volume.read(disk_block.saturating_mul(self.block_size), self.block_size)?;
            level -= 1;
            if node[1] != level {
                return Err(volume.damaged(format!("a node of level {} where {level} is expected", node[1])));
            }
            found = search(&node, NODE_HEAD, (node.len() - NODE_HEAD) / 16, key);
        }
        match found {
            Found::Child { key: found, pointer } if found == key => Ok(some(pointer)),
            Found::Child { .. } | Found::Nothing => Ok(None),
            Found::Damaged => Err(volume.damaged("a node of a tree")),
        }
    }
}

/// The result of searching a node of a tree for a key.
enum Found {
    /// The child with the greatest key that is not greater than the wanted one.
    Child { key: u64, pointer: u64 },
    /// All keys are greater than the wanted one.
    Nothing,
    /// There are more children than fit, or they are out of order.
    Damaged,
}

fn search(node: &[u8], head: usize, children_max: usize, key: u64) -> Found {
    let fields = Fields::little(node);
    let count = usize::from(fields.u16(2));
    if count > children_max {
        return Found::Damaged;
    }
    let keys: Vec<u64> = (0..count).map(|child| fields.u64(head + 8 * child)).collect();
    if !keys.is_sorted() {
        return Found::Damaged;
    }
    match keys.partition_point(|&other| other <= key).checked_sub(1) {
        Some(child) => Found::Child { key: keys[child], pointer: fields.u64(head + 8 * (children_max + child)) },
        None => Found::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_searched() {
        let mut node = vec![0; 56];
        node[2] = 2;
        node[8..16].copy_from_slice(&5u64.to_le_bytes());
        node[16..24].copy_from_slice(&9u64.to_le_bytes());
        node[32..40].copy_from_slice(&50u64.to_le_bytes());
        node[40..48].copy_from_slice(&90u64.to_le_bytes());
        let find = |node: &[u8], key| match search(node, 8, TREE_ROOT_CHILDREN, key) {
            Found::Child { key, pointer } => (key, pointer),
            Found::Nothing => (0, 0),
            Found::Damaged => (1, 1),
        };
        let found: Vec<_> = [4, 5, 8, 9, 10].map(|key| find(&node, key)).into();
        assert_eq!(found, [(0, 0), (5, 50), (5, 50), (9, 90), (9, 90)]);
        node[2] = 4;
        assert_eq!(find(&node, 5), (1, 1));
        node[2] = 2;
        node[8] = 10;
        assert_eq!(find(&node, 5), (1, 1));
    }
}

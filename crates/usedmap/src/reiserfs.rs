//! ReiserFS 3.5 and 3.6: it has one bitmap block for every `block size × 8` blocks.
//!
//! ```text
//! byte 0x10000 (or 0x2000, before 1999) superblock · the block after it: first bitmap · then the journal
//! the others: the first of the blocks they describe (before 1999: all of them in a row)
//! ```
//!
//! A bit stands for one block, the lowest bit of a byte first, set if used. Bitmaps have no checksum. A bitmap counts
//! as good if it marks itself and the other fixed blocks as used, and if all bitmaps together agree with the
//! superblock's number of free blocks. Source: Linux, `fs/reiserfs/reiserfs.h`; reiserfsprogs.

use std::io::{Read, Seek};

use crate::ranges::Ranges;
use crate::used::{Used, UsedError};
use crate::volume::{Fields, Volume};

/// The place of the superblock, and its place before the boot area grew.
const SUPERBLOCKS: [u64; 2] = [0x1_0000, 0x2000];
const SUPERBLOCK_LEN: u64 = 204;
/// This area is not read, and all of it is copied: boot loaders live there.
const BOOT_LEN: u64 = 0x1_0000;
/// 3.5, 3.6, and either of them with a journal of another place or size.
const MAGICS: [&[u8]; 3] = [b"ReIsErFs", b"ReIsEr2Fs", b"ReIsEr3Fs"];
/// `s_umount_state` after a clean unmount.
const CLEAN: u16 = 1;

/// The superblock that counts, and its place.
fn superblock(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Option<(u64, Vec<u8>)>, UsedError> {
    for offset in SUPERBLOCKS {
        if let Some(bytes) = volume.read_if_inside(offset, SUPERBLOCK_LEN)?
            && MAGICS.iter().any(|magic| bytes[52..].starts_with(magic))
        {
            return Ok(Some((offset, bytes)));
        }
    }
    Ok(None)
}

pub(crate) fn detect(volume: &mut Volume<'_, impl Read + Seek>) -> Result<bool, UsedError> {
    Ok(superblock(volume)?.is_some())
}

pub(crate) fn used(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Used, UsedError> {
    let Some((offset, bytes)) = superblock(volume)? else {
        return Err(volume.damaged("it has no superblock"));
    };
    let superblock = Fields::little(&bytes);
    let block_len = superblock.u16(44);
    if !(512..=8192).contains(&block_len) || !block_len.is_power_of_two() {
        return Err(volume.damaged(format!("blocks of {block_len} bytes")));
    }
    let block_size = u64::from(block_len);
    let block_count = u64::from(superblock.u32(0));
    let first_bitmap = offset / block_size + 1;
    if block_count * block_size > volume.len() || block_count <= first_bitmap {
        return Err(volume.damaged(format!("{block_count} blocks of {block_size} in {} bytes", volume.len())));
    }
    if (superblock.u16(50), superblock.u16(62)) != (CLEAN, 0) {
        return Ok(Used::whole_of_unclean(volume.len(), block_len.into()));
    }

    let mut ranges = Ranges::new(volume.len());
    ranges.insert(0..BOOT_LEN.max(offset + block_size));
    let (journal, journal_device) = (u64::from(superblock.u32(12)), superblock.u32(16));
    if journal_device == 0 {
        // The last block is the journal's header.
        let journal = journal..journal + u64::from(superblock.u32(20)) + 1;
        if journal.end > block_count {
            return Err(volume.damaged(format!("its journal ends at block {} of {block_count}", journal.end)));
        }
        ranges.insert_blocks(journal, block_size);
    } else {
        volume.note("its journal is on another device, which is not part of it");
    }

    let bits = block_size * 8;
    let mut free_count = 0;
    let mut is_doubtful = false;
    for group in 0..block_count.div_ceil(bits) {
        let (first, count) = (group * bits, bits.min(block_count - group * bits));
        let own = match group {
            _ if offset != SUPERBLOCKS[0] => first_bitmap + group,
            0 => first_bitmap,
            _ => first,
        };
        ranges.insert_blocks(own..own + 1, block_size);
        if own >= block_count {
            return Err(volume.damaged(format!("a bitmap at block {own} of {block_count}")));
        }
        let bitmap = volume.read(own * block_size, block_size)?;
        let is_used = |bit: u64| bitmap[usize::try_from(bit / 8).expect("in the block")] >> (bit % 8) & 1 == 1;
        let mut fixed = match group {
            0 => 0..first_bitmap + 1,
            _ if own == first => 0..1,
            _ => 0..0,
        };
        if fixed.end > count || !fixed.all(is_used) {
            volume.note(format!(
                "blocks {first} to {} are copied whole: their bitmap does not even have itself as used",
                first + count - 1
            ));
            ranges.insert_blocks(first..first + count, block_size);
            is_doubtful = true;
            continue;
        }
        free_count += (0..count).filter(|&bit| !is_used(bit)).count() as u64;
        ranges.insert_bits(first, count, block_size, is_used);
    }
    let free_sum = u64::from(superblock.u32(4));
    if !is_doubtful && free_count != free_sum {
        return Err(volume.damaged(format!("its bitmaps have {free_count} free blocks and its superblock {free_sum}")));
    }
    let (spans, notes) = (block_count * block_size, volume.take_notes());
    Ok(Used { ranges: ranges.finish(), spans, block_size: block_len.into(), is_clean: Some(true), notes })
}

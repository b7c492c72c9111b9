//! btrfs: reads its tree of extents for used space, and finds the parts that it keeps twice.
//!
//! ```text
//! superblock at 64 KiB, copies at 64 MiB and 256 GiB: checksum · file system id · own place 0x30 · magic 0x40
//!   root tree 0x50 · chunk tree 0x58 · log tree 0x60 · bytes used 0x78 · its device 0xc9 · first chunks 0x32b
//! chunk tree: chunks, which map logical addresses to places on the device
//! root tree: where the extent tree is · extent tree: a key for each stretch of data and each node of any tree
//! ```
//!
//! partclone 0.3.23 walks each tree for its leaves. It leaves out other nodes, unless a leaf happens to be before them
//! in the same 64 KiB, and it leaves out second copies. So all of the extent tree is read here, and everything in it,
//! in all copies, is a place. Its sum has to match that of the superblock, and every node has to pass its checks;
//! otherwise nothing of it is used. A file system on several devices is used as a whole. So is one with a log to be
//! replayed, because the log's data is in no other tree. Source: Linux, `include/uapi/linux/btrfs_tree.h`.

mod chunk;
mod superblock;
mod tree;

use std::io::{Read, Seek};
use std::ops::Range;

use super::facts::{Landmarks, Mirror, places};
use crate::ranges::Ranges;
use crate::used::UsedError;
use crate::volume::Volume;
use chunk::{Chunk, Chunks};
use superblock::{SUPERBLOCK_LEN, Superblock};
use tree::{Key, Pointer, walk};

const COPIES: [u64; 2] = [64 << 20, 256 << 30];
/// This part has no chunks: it is the space for a boot loader, and the superblock.
const RESERVED: u64 = 1 << 20;
const SYSTEM_CHUNKS: usize = 0x32b;
const SYSTEM_CHUNKS_LEN_MAX: usize = 2048;
/// Most chunks that are read: a volume of 256 TiB has no more.
const CHUNKS_MAX: usize = 1 << 18;

/// The key of every chunk, except its place.
const CHUNK: (u64, u8) = (256, 228);
/// The key of the extent tree's root in the root tree.
const EXTENT_TREE: Key = Key { object: 2, kind: 132, offset: 0 };
/// Types of keys in the extent tree: a stretch, whose length is the key's offset; a node.
const EXTENT: u8 = 168;
const NODE: u8 = 169;

/// The root of the tree of roots.
fn root_tree(superblock: &Superblock) -> Pointer {
    let fields = superblock.fields();
    Pointer { logical: fields.u64(0x50), level: superblock.bytes[0xc6], generation: fields.u64(0x48) }
}

/// The root of the tree of chunks.
fn chunk_tree(superblock: &Superblock) -> Pointer {
    let fields = superblock.fields();
    Pointer { logical: fields.u64(0x58), level: superblock.bytes[0xc7], generation: fields.u64(0xa4) }
}

/// The chunks that contain the chunk tree.
fn system_chunks(superblock: &Superblock) -> Result<Vec<Chunk>, String> {
    let len = usize::try_from(superblock.fields().u32(0xa0)).unwrap_or(usize::MAX);
    if len > SYSTEM_CHUNKS_LEN_MAX {
        return Err(format!("{len} bytes of system chunks"));
    }
    let mut left = &superblock.bytes[SYSTEM_CHUNKS..SYSTEM_CHUNKS + len];
    let mut chunks = Vec::new();
    while !left.is_empty() {
        let key = Key::parse(left.get(..Key::LEN).ok_or("a system chunk is cut off")?);
        if (key.object, key.kind) != CHUNK {
            return Err(format!("a system chunk has a key of type {}", key.kind));
        }
        let (chunk, len) = Chunk::parse(key.offset, &left[Key::LEN..], superblock)?;
        chunks.push(chunk);
        left = &left[Key::LEN + len..];
    }
    Ok(chunks)
}

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let superblock = Superblock::read(volume)?;
    let (devices, len) = (superblock.fields().u64(0x88), superblock.device_len);
    let mut found = Landmarks { len: Some(len), devices: Some(devices), ..Landmarks::default() };
    if devices != 1 || superblock.has_log() {
        found.places = places(volume, volume.len(), None);
        return Ok(found);
    }
    let chunks = chunks(volume, &superblock)?;
    let (used, count) = extents(volume, &superblock, &chunks)?;
    if count != superblock.used {
        return Err(
            volume.damaged(format!("its extents are {count} bytes, and its superblock says {}", superblock.used))
        );
    }
    let superblocks = COPIES.map(|copy| copy..copy + SUPERBLOCK_LEN).into_iter().filter(|copy| copy.end <= len);
    found.places = places(volume, RESERVED.min(len), superblocks.chain(used));
    found.used_min = Some(count);
    let mirrored = chunks.all().iter().filter(|chunk| chunk.stripes.len() > 1);
    found.mirrors = mirrored.map(|chunk| Mirror { copies: chunk.stripes.clone(), len: chunk.len() }).collect();
    Ok(found)
}

/// All chunks, from the chunk tree.
fn chunks(volume: &mut Volume<'_, impl Read + Seek>, superblock: &Superblock) -> Result<Chunks, UsedError> {
    let system = system_chunks(superblock).and_then(Chunks::new).map_err(|what| volume.damaged(what))?;
    let mut all = Vec::new();
    walk(volume, superblock, &system, chunk_tree(superblock), |key, item| {
        if (key.object, key.kind) == CHUNK {
            let (chunk, len) = Chunk::parse(key.offset, item, superblock)?;
            if len != item.len() || all.len() == CHUNKS_MAX {
                return Err(format!("chunk {} has {} bytes", all.len(), item.len()));
            }
            all.push(chunk);
        }
        Ok(true)
    })?;
    let chunks = Chunks::new(all).map_err(|what| volume.damaged(what))?;
    chunks.check_places(volume.len()).map_err(|what| volume.damaged(what))?;
    Ok(chunks)
}

/// The used space according to the extent tree, in bytes of the volume, and the number of logical bytes.
fn extents(
    volume: &mut Volume<'_, impl Read + Seek>,
    superblock: &Superblock,
    chunks: &Chunks,
) -> Result<(Vec<Range<u64>>, u64), UsedError> {
    let mut root = None;
    walk(volume, superblock, chunks, root_tree(superblock), |key, item| {
        if key == EXTENT_TREE {
            root = Pointer::of_root(item);
        }
        // The extent tree is the first of all trees.
        Ok(key < EXTENT_TREE)
    })?;
    let root = root.ok_or_else(|| volume.damaged("it has no extent tree"))?;
    let mut used = Ranges::new(volume.len());
    let mut end = 0;
    let mut count = 0u64;
    walk(volume, superblock, chunks, root, |key, _| {
        let len = match key.kind {
            EXTENT => key.offset,
            NODE => superblock.node_size,
            _ => return Ok(true),
        };
        let (stripes, at) = chunks
            .find(key.object, len)
            .filter(|_| key.object >= end && len > 0)
            .ok_or_else(|| format!("an extent of {len} bytes is at logical byte {}", key.object))?;
        stripes.iter().for_each(|stripe| used.insert(stripe + at..stripe + at + len));
        // This is inside a chunk, so it cannot overflow.
        end = key.object + len;
        count = count.saturating_add(len);
        Ok(true)
    })?;
    Ok((used.finish(), count))
}

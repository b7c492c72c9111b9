//! Trees, independent of their content.
//!
//! ```text
//! node: checksum · file system id 0x20 · own place 0x30 · generation 0x50 · items u32 0x60 · level 0x64 · items at 0x65
//! of a leaf: key, place of the item behind the head u32, length u32 · of another: key, child u64, its generation u64
//! ```

use std::io::{Read, Seek};

use super::chunk::Chunks;
use super::superblock::{FSID, Superblock};
use crate::used::UsedError;
use crate::volume::{Fields, Volume};

const HEAD_LEN: usize = 0x65;
const ITEM_LEN: usize = Key::LEN + 8;
const POINTER_LEN: usize = Key::LEN + 16;
const LEVELS: u8 = 8;
/// Shortest item that describes a tree, in bytes.
const ROOT_LEN: usize = 239;

/// A key of any tree; keys are in ascending order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    /// Length in bytes.
    pub(super) const LEN: usize = 17;

    /// # Panics
    /// If there are fewer than 17 bytes.
    pub(super) fn parse(bytes: &[u8]) -> Key {
        let fields = Fields::little(bytes);
        Key { object: fields.u64(0), kind: bytes[8], offset: fields.u64(9) }
    }
}

/// The place of a node, and the values that it must have.
pub(super) struct Pointer {
    pub logical: u64,
    pub level: u8,
    pub generation: u64,
}

impl Pointer {
    /// A pointer to the root of the tree that this item of the root tree describes.
    pub(super) fn of_root(item: &[u8]) -> Option<Pointer> {
        let fields = Fields::little(item.get(..ROOT_LEN)?);
        Some(Pointer { logical: fields.u64(176), level: item[238], generation: fields.u64(160) })
    }
}

/// Visits the items of a tree in the order of their keys, until `visit` returns `false` or a fault in an item.
///
/// # Errors
/// If a node cannot be read or fails its checks. Each node has at least one item, and each item has a greater key than
/// the previous one. So no node is read twice, and the walk ends.
pub(super) fn walk(
    volume: &mut Volume<'_, impl Read + Seek>,
    superblock: &Superblock,
    chunks: &Chunks,
    root: Pointer,
    mut visit: impl FnMut(Key, &[u8]) -> Result<bool, String>,
) -> Result<(), UsedError> {
    if root.level >= LEVELS {
        return Err(volume.damaged(format!("a tree of {} levels", root.level)));
    }
    // The next node is last.
    let mut pending = vec![root];
    let mut last_key = None;
    while let Some(pointer) = pending.pop() {
        let node = read(volume, superblock, chunks, &pointer)?;
        if pointer.level > 0 {
            let children = children(&node, pointer.level - 1).map_err(|what| volume.damaged(what))?;
            pending.extend(children);
            continue;
        }
        for at in entries(&node, ITEM_LEN).map_err(|what| volume.damaged(what))? {
            let key = Key::parse(&node[at..]);
            if last_key.is_some_and(|last| last >= key) {
                return Err(
                    volume.damaged(format!("the keys of the node at logical byte {} are in disorder", pointer.logical))
                );
            }
            last_key = Some(key);
            let item = item(&node, at).ok_or_else(|| volume.damaged("an item is outside of its node"))?;
            if !visit(key, item).map_err(|what| volume.damaged(what))? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Reads a node from the first copy that passes its checks.
fn read(
    volume: &mut Volume<'_, impl Read + Seek>,
    superblock: &Superblock,
    chunks: &Chunks,
    pointer: &Pointer,
) -> Result<Vec<u8>, UsedError> {
    let start = pointer.logical;
    let Some((stripes, at)) = chunks.find(start, superblock.node_size) else {
        return Err(volume.damaged(format!("no chunk has the node at logical byte {start}")));
    };
    for stripe in stripes {
        let bytes = volume.read(stripe + at, superblock.node_size)?;
        let fields = Fields::little(&bytes);
        let is_it = superblock.is_sum_good(&bytes)
            && &bytes[FSID] == superblock.fsid()
            && fields.u64(0x30) == start
            && fields.u64(0x50) == pointer.generation
            && bytes[0x64] == pointer.level;
        if is_it {
            return Ok(bytes);
        }
    }
    Err(volume.damaged(format!("the node at logical byte {start} fails its checks")))
}

/// Offsets of a node's entries of this length; there is at least one.
fn entries(node: &[u8], len: usize) -> Result<impl DoubleEndedIterator<Item = usize> + use<>, String> {
    let count = usize::try_from(Fields::little(node).u32(0x60)).unwrap_or(usize::MAX);
    if !(1..=(node.len() - HEAD_LEN) / len).contains(&count) {
        return Err(format!("a node of a tree has {count} items"));
    }
    Ok((0..count).map(move |index| HEAD_LEN + index * len))
}

/// The children of a node, the first one last.
fn children(node: &[u8], level: u8) -> Result<Vec<Pointer>, String> {
    let fields = Fields::little(node);
    let pointer =
        |at: usize| Pointer { logical: fields.u64(at + Key::LEN), level, generation: fields.u64(at + Key::LEN + 8) };
    Ok(entries(node, POINTER_LEN)?.rev().map(pointer).collect())
}

/// The item of a leaf whose key is at this offset.
fn item(node: &[u8], at: usize) -> Option<&[u8]> {
    let number = |at| usize::try_from(Fields::little(node).u32(at)).ok();
    let start = number(at + Key::LEN)?.checked_add(HEAD_LEN)?;
    node.get(start..start.checked_add(number(at + Key::LEN + 4)?)?)
}

//! Bytes in memory: incoming pieces, and the cache that serves uploads. Both have a budget.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metainfo::{BLOCK_LEN, PieceIndex};

/// Uploads read the store in runs of this many bytes, so that a 64 MiB piece is not read whole for one block.
pub(crate) const SEGMENT_LEN: u32 = 1 << 20;
/// Bytes of empty buffers that are kept for reuse: new memory costs a page fault every 4 KiB.
const SPARE_BYTES: usize = 16 << 20;

/// Locks a mutex. The data is consistent even after a thread panicked, because no lock here is held across user code.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A piece that several links fill at once. A block is stored only once, and none after [`PieceBuf::take`].
pub(crate) struct PieceBuf {
    inner: Mutex<Option<Filling>>,
}

struct Filling {
    data: Vec<u8>,
    /// The link that delivered each block; 0 if none has.
    from: Vec<u64>,
}

impl PieceBuf {
    /// A piece buffer in memory from [`Pool::get`].
    pub(crate) fn new(data: Vec<u8>) -> PieceBuf {
        let blocks = data.len().div_ceil(usize::try_from(BLOCK_LEN).expect("fits usize"));
        PieceBuf { inner: Mutex::new(Some(Filling { data, from: vec![0; blocks] })) }
    }

    /// Stores a block from link `from` (never 0); false if the block is already there or the piece is closed.
    pub(crate) fn put(&self, block: u32, bytes: &[u8], from: u64) -> bool {
        let mut inner = lock(&self.inner);
        let Some(filling) = inner.as_mut() else { return false };
        let index = usize::try_from(block).expect("fits usize");
        let start = index * usize::try_from(BLOCK_LEN).expect("fits usize");
        let Some(giver) = filling.from.get_mut(index).filter(|giver| **giver == 0) else { return false };
        let Some(target) = filling.data.get_mut(start..start + bytes.len()) else { return false };
        target.copy_from_slice(bytes);
        *giver = from;
        true
    }

    /// Closes the piece; returns its bytes, and the links that delivered them, each once.
    pub(crate) fn take(&self) -> Option<(Vec<u8>, Vec<u64>)> {
        let Filling { data, mut from } = lock(&self.inner).take()?;
        from.sort_unstable();
        from.dedup();
        from.retain(|&link| link != 0);
        Some((data, from))
    }
}

/// Empty buffers that are kept for the next piece.
#[derive(Default)]
pub(crate) struct Pool {
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// A buffer of exactly `len` bytes with arbitrary contents.
    pub(crate) fn get(&self, len: usize) -> Vec<u8> {
        let mut buffer = lock(&self.spare).pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    /// Returns a buffer to the pool.
    pub(crate) fn put(&self, buffer: Vec<u8>) {
        let mut spare = lock(&self.spare);
        let held: usize = spare.iter().map(Vec::capacity).sum();
        if held + buffer.capacity() <= SPARE_BYTES && spare.len() < 64 {
            spare.push(buffer);
        }
    }
}

type Key = (PieceIndex, Part);

/// Which bytes of a piece a cache entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Part {
    Whole,
    Segment(u32),
}

/// Pieces just verified and segments just read; the least recently used entry is dropped first.
pub(crate) struct Cache {
    entries: HashMap<Key, (Arc<Vec<u8>>, u64)>,
    by_age: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
    limit: usize,
}

impl Cache {
    /// A cache of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Cache {
        Cache { entries: HashMap::new(), by_age: BTreeMap::new(), clock: 0, bytes: 0, limit }
    }

    /// The cached bytes that include offset `begin` of a piece, and the offset of their first byte in the piece.
    pub(crate) fn get(&mut self, piece: PieceIndex, begin: u32) -> Option<(Arc<Vec<u8>>, u32)> {
        let segment = begin / SEGMENT_LEN;
        for (part, base) in [(Part::Whole, 0), (Part::Segment(segment), segment * SEGMENT_LEN)] {
            if let Some((data, age)) = self.entries.get_mut(&(piece, part)) {
                self.by_age.remove(age);
                self.clock += 1;
                *age = self.clock;
                self.by_age.insert(self.clock, (piece, part));
                return Some((Arc::clone(data), base));
            }
        }
        None
    }

    /// Keeps a whole piece. Returns buffers that are no longer in use.
    pub(crate) fn put_piece(&mut self, piece: PieceIndex, data: Vec<u8>) -> Vec<Vec<u8>> {
        self.put((piece, Part::Whole), Arc::new(data))
    }

    /// Keeps the segment of a piece that starts at `base`. Returns buffers that are no longer in use.
    pub(crate) fn put_segment(&mut self, piece: PieceIndex, base: u32, data: Arc<Vec<u8>>) -> Vec<Vec<u8>> {
        self.put((piece, Part::Segment(base / SEGMENT_LEN)), data)
    }

    fn put(&mut self, key: Key, data: Arc<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut unused = Vec::new();
        if data.capacity() > self.limit {
            unused.extend(Arc::try_unwrap(data).ok());
            return unused;
        }
        self.clock += 1;
        self.bytes += data.capacity();
        self.by_age.insert(self.clock, key);
        if let Some((old, age)) = self.entries.insert(key, (data, self.clock)) {
            self.by_age.remove(&age);
            self.bytes -= old.capacity();
            unused.extend(Arc::try_unwrap(old).ok());
        }
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            let Some((old, _)) = self.entries.remove(&oldest) else { continue };
            self.bytes -= old.capacity();
            unused.extend(Arc::try_unwrap(old).ok());
        }
        unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metainfo::Geometry;

    fn piece(index: u32) -> PieceIndex {
        Geometry::new(5 * 16384, 16384).and_then(|geometry| geometry.piece(index)).expect("one of five")
    }

    #[test]
    fn a_block_is_stored_once_and_never_after_closing() {
        let buf = PieceBuf::new(vec![0; 40_000]);
        assert!(buf.put(2, &[7; 7232], 5));
        assert!(!buf.put(2, &[8; 7232], 6), "already there");
        assert!(!buf.put(3, &[8; 1], 6), "past the end");
        assert!(!buf.put(1, &[8; 30_000], 6), "longer than what is left");
        assert!(buf.put(0, &[1; 16384], 9));
        let (data, from) = buf.take().expect("open");
        assert_eq!((data[32768], data[39_999], from), (7, 7, vec![5, 9]));
        assert!(!buf.put(1, &[8; 16384], 6), "closed");
        assert!(buf.take().is_none());
    }

    #[test]
    fn the_cache_keeps_to_its_budget_and_drops_the_oldest() {
        let mut cache = Cache::new(3000);
        for index in 0..3 {
            assert!(cache.put_piece(piece(index), vec![0; 1000]).is_empty());
        }
        assert!(cache.get(piece(0), 5).is_some());
        assert_eq!(cache.put_piece(piece(3), vec![0; 1000]).len(), 1);
        assert!(cache.get(piece(1), 0).is_none(), "was the oldest");
        assert!(cache.get(piece(0), 0).is_some());
        assert_eq!(cache.put_piece(piece(4), vec![0; 3001]).len(), 1, "larger than the cache");
        assert!(cache.get(piece(4), 0).is_none());
    }

    #[test]
    fn segments_and_whole_pieces_are_found_by_offset() {
        let mut cache = Cache::new(64 << 20);
        let piece = piece(1);
        cache.put_segment(piece, SEGMENT_LEN, Arc::new(vec![1; 10]));
        assert!(cache.get(piece, 0).is_none());
        assert_eq!(cache.get(piece, SEGMENT_LEN + 5).expect("segment").1, SEGMENT_LEN);
        cache.put_piece(piece, vec![0; 20]);
        assert_eq!(cache.get(piece, 0).expect("whole").1, 0);
    }
}

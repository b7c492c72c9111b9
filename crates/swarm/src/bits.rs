//! A set of pieces, with one bit per piece, and its form on the wire.

use metainfo::{Geometry, PieceIndex};

/// A set of the pieces of one torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceSet {
    words: Vec<u64>,
    geometry: Geometry,
    count: u32,
}

impl PieceSet {
    /// The empty set.
    pub fn new(geometry: Geometry) -> PieceSet {
        let words = usize::try_from(geometry.piece_count().div_ceil(64)).expect("fits usize");
        PieceSet { words: vec![0; words], geometry, count: 0 }
    }

    /// The set of all pieces.
    pub fn full(geometry: Geometry) -> PieceSet {
        let mut set = PieceSet::new(geometry);
        geometry.pieces().for_each(|piece| {
            set.insert(piece);
        });
        set
    }

    /// Reads the payload of a bitfield message; `None` if its length is wrong or a spare bit is set (BEP 3).
    pub fn from_wire(bytes: &[u8], geometry: Geometry) -> Option<PieceSet> {
        let len = geometry.piece_count();
        if bytes.len() != wire_len(len) {
            return None;
        }
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_be_bytes(word).reverse_bits()
        };
        let words: Vec<u64> = bytes.chunks(8).map(word).collect();
        let has_spare = !len.is_multiple_of(64) && words.last().is_some_and(|last| last >> (len % 64) != 0);
        let count = words.iter().map(|word| word.count_ones()).sum();
        (!has_spare).then_some(PieceSet { words, geometry, count })
    }

    /// The payload of a bitfield message: the high bit of the first byte is piece 0.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; wire_len(self.geometry.piece_count())];
        for piece in self.iter() {
            bytes[piece.as_usize() / 8] |= 0x80 >> (piece.get() % 8);
        }
        bytes
    }

    /// Whether `piece` is in the set; false past its end.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        piece.get() < self.geometry.piece_count() && self.words[piece.as_usize() / 64] & (1 << (piece.get() % 64)) != 0
    }

    /// Adds `piece`; false if it was there or is past the end.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        let is_new = piece.get() < self.geometry.piece_count() && !self.contains(piece);
        if is_new {
            self.words[piece.as_usize() / 64] |= 1 << (piece.get() % 64);
            self.count += 1;
        }
        is_new
    }

    /// Removes `piece`; false if it was not there.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        let was_there = self.contains(piece);
        if was_there {
            self.words[piece.as_usize() / 64] &= !(1 << (piece.get() % 64));
            self.count -= 1;
        }
        was_there
    }

    /// How many pieces are in the set.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Adds the pieces of `other`; returns those that were not there, ascending.
    pub fn unite(&mut self, other: &PieceSet) -> Vec<PieceIndex> {
        let mut news = Vec::new();
        for (at, (mine, theirs)) in self.words.iter_mut().zip(&other.words).enumerate() {
            news.extend(ones(self.geometry, at, theirs & !*mine));
            *mine |= theirs;
        }
        self.count += u32::try_from(news.len()).expect("piece numbers have 32 bits");
        news
    }

    /// Whether every piece is in the set.
    pub fn is_full(&self) -> bool {
        self.count == self.geometry.piece_count()
    }

    /// Its pieces, ascending.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| ones(self.geometry, at, word))
    }

    /// The pieces in both sets, ascending. Each step handles 64 pieces, so it is cheap if there are few.
    pub fn common<'a>(&'a self, other: &'a PieceSet) -> impl Iterator<Item = PieceIndex> + 'a {
        self.words.iter().zip(&other.words).enumerate().flat_map(|(at, (a, b))| ones(self.geometry, at, a & b))
    }
}

/// Length of a bitfield over `len` pieces, in bytes.
pub fn wire_len(len: u32) -> usize {
    usize::try_from(len.div_ceil(8)).expect("fits usize")
}

/// The pieces whose bits are set in word `at`.
fn ones(geometry: Geometry, at: usize, mut word: u64) -> impl Iterator<Item = PieceIndex> {
    let base = u32::try_from(at * 64).expect("piece numbers have 32 bits");
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        if bit < 64 { geometry.piece(base + bit) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(pieces: u32) -> Geometry {
        Geometry::new(u64::from(pieces) * 16384, 16384).expect("sane")
    }

    fn piece(index: u32) -> PieceIndex {
        of(1000).piece(index).expect("one of a thousand")
    }

    #[test]
    fn spare_bits_and_wrong_lengths_are_refused() {
        assert!(PieceSet::from_wire(&[0xff, 0xc0], of(10)).is_some_and(|set| set.is_full()));
        assert_eq!(PieceSet::from_wire(&[0xff, 0xe0], of(10)), None);
        assert_eq!(PieceSet::from_wire(&[0xff], of(10)), None);
        assert_eq!(PieceSet::from_wire(&[0xff, 0, 0], of(10)), None);
        assert_eq!(PieceSet::from_wire(&[0], of(1)), Some(PieceSet::new(of(1))));
    }

    proptest! {
        #[test]
        fn a_set_behaves_like_a_set(len in 1u32..300, picks in proptest::collection::vec(0u32..320, 0..100)) {
            let mut set = PieceSet::new(of(len));
            let mut model = std::collections::BTreeSet::new();
            for pick in picks {
                if pick % 3 == 0 {
                    prop_assert_eq!(set.remove(piece(pick)), model.remove(&pick));
                } else {
                    prop_assert_eq!(set.insert(piece(pick)), pick < len && model.insert(pick));
                }
            }
            prop_assert_eq!(set.iter().map(PieceIndex::get).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(usize::try_from(set.count()).unwrap(), model.len());
            prop_assert_eq!(PieceSet::from_wire(&set.to_wire(), of(len)), Some(set.clone()));
            prop_assert_eq!(set.common(&PieceSet::full(of(len))).count(), model.len());
            let missing: Vec<_> = (0..len).filter(|pick| !model.contains(pick)).map(piece).collect();
            prop_assert_eq!(set.unite(&PieceSet::full(of(len))), missing);
            prop_assert!(set.is_full() && set.unite(&PieceSet::full(of(len))).is_empty());
        }
    }
}

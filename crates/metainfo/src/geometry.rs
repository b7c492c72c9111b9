//! Piece, block and content-offset arithmetic, in one place.

use std::fmt;
use std::ops::Range;

/// Length of a block, the unit of the peer wire, in bytes. Every stock client requests this length (BEP 3).
pub const BLOCK_LEN: u32 = 16 * 1024;
/// Smallest accepted piece length, in bytes.
pub const MIN_PIECE_LEN: u32 = 16 * 1024;
/// Largest accepted piece length, in bytes: several whole pieces have to fit into the memory of a client with 512 MB.
pub const MAX_PIECE_LEN: u32 = 64 * 1024 * 1024;
/// Range of [`usual_piece_len`], in bytes, as long as the number of pieces allows it.
const USUAL_LEN_MIN: u32 = 256 * 1024;
const USUAL_LEN_MAX: u32 = 4 * 1024 * 1024;
/// Largest result of [`usual_piece_len`], in bytes: a client holds several pieces in memory.
const LEN_MAX: u32 = 16 * 1024 * 1024;
/// Fewest and most pieces that an image should have.
const PIECES_WANTED: u64 = 4_000;
const PIECES_MAX: u64 = 20_000;

/// The number of a piece in its torrent, from 0.
///
/// Only [`Geometry`] makes it, so its torrent has such a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// The number as the peer wire carries it.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number as an index into a slice with one item per piece.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).expect("usize has at least 32 bits on every supported machine")
    }
}

impl fmt::Display for PieceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a torrent's content is cut into pieces and blocks.
///
/// Only [`Geometry::new`] makes it, so the piece count fits into 32 bits and no length is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    content_len: u64,
    piece_len: u32,
    piece_count: u32,
}

impl Geometry {
    /// Takes both lengths in bytes; `None` unless `piece_len` is a power of two between [`MIN_PIECE_LEN`] and
    /// [`MAX_PIECE_LEN`], `content_len` is not zero, and the piece count fits into 32 bits.
    pub fn new(content_len: u64, piece_len: u32) -> Option<Geometry> {
        let lengths_are_sane =
            content_len > 0 && piece_len.is_power_of_two() && (MIN_PIECE_LEN..=MAX_PIECE_LEN).contains(&piece_len);
        if !lengths_are_sane {
            return None;
        }
        let piece_count = u32::try_from(content_len.div_ceil(u64::from(piece_len))).ok()?;
        Some(Geometry { content_len, piece_len, piece_count })
    }

    /// Length of the whole content, in bytes.
    pub fn content_len(&self) -> u64 {
        self.content_len
    }

    /// Length of every piece except perhaps the last, in bytes.
    pub fn piece_len(&self) -> u32 {
        self.piece_len
    }

    /// How many pieces there are; at least one.
    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// The piece with this number, if the torrent has one.
    pub fn piece(&self, index: u32) -> Option<PieceIndex> {
        (index < self.piece_count()).then_some(PieceIndex(index))
    }

    /// The piece that holds this byte of the content, if the torrent has this byte.
    pub fn piece_at(&self, content_offset: u64) -> Option<PieceIndex> {
        let index = content_offset / u64::from(self.piece_len);
        (content_offset < self.content_len).then(|| PieceIndex(u32::try_from(index).expect("checked by new")))
    }

    /// Every piece, ascending.
    pub fn pieces(&self) -> impl DoubleEndedIterator<Item = PieceIndex> + use<> {
        (0..self.piece_count()).map(PieceIndex)
    }

    /// The piece's bytes in the content, half-open.
    pub fn piece_range(&self, piece: PieceIndex) -> Range<u64> {
        let start = u64::from(piece.0) * u64::from(self.piece_len);
        start..(start + u64::from(self.piece_len)).min(self.content_len)
    }

    /// Length of this piece in bytes; only the last piece may be shorter. Zero if the torrent has no such piece.
    pub fn len_of(&self, piece: PieceIndex) -> u32 {
        let range = self.piece_range(piece);
        u32::try_from(range.end.saturating_sub(range.start)).expect("at most piece_len")
    }

    /// How many blocks of [`BLOCK_LEN`] this piece has; only its last block may be shorter.
    pub fn blocks_of(&self, piece: PieceIndex) -> u32 {
        self.len_of(piece).div_ceil(BLOCK_LEN)
    }

    /// Length in bytes of block `block` (numbered from 0) of `piece`; zero past its end.
    pub fn block_len(&self, piece: PieceIndex, block: u32) -> u32 {
        let start = u64::from(block) * u64::from(BLOCK_LEN);
        let left = u64::from(self.len_of(piece)).saturating_sub(start);
        u32::try_from(left.min(u64::from(BLOCK_LEN))).expect("at most a block")
    }
}

/// The piece length that suits content of this many bytes.
///
/// Whatever the size of the image, a room loses about ten to twenty piece times before every link is busy. So pieces
/// are as long as possible, from 256 KiB to 4 MiB, while there are still at least [`PIECES_WANTED`]: longer pieces cost
/// fewer messages and less CPU time. Beyond [`PIECES_MAX`] they grow to 16 MiB, so that the torrent stays short.
pub fn usual_piece_len(content_len: u64) -> u32 {
    let count = |len: u32| content_len.div_ceil(u64::from(len));
    let mut len = USUAL_LEN_MIN;
    while (len < USUAL_LEN_MAX && count(len * 2) >= PIECES_WANTED) || (len < LEN_MAX && count(len) > PIECES_MAX) {
        len *= 2;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(content_len: u64, piece_len: u32) -> Geometry {
        Geometry::new(content_len, piece_len).expect("sane lengths")
    }

    #[test]
    fn insane_lengths_make_no_geometry() {
        for (content_len, piece_len) in
            [(0, 16384), (1, 0), (1, 8192), (1, 16385), (1, 128 << 20), (u64::MAX, 16384), (1 << 60, 1 << 20)]
        {
            assert_eq!(Geometry::new(content_len, piece_len), None, "{content_len} {piece_len}");
        }
    }

    #[test]
    fn last_piece_may_be_short() {
        for (content_len, count, last) in
            [(1, 1, 1), (32767, 1, 32767), (32768, 1, 32768), (32769, 2, 1), (65536, 2, 32768)]
        {
            let g = geometry(content_len, 32768);
            assert_eq!(g.piece_count(), count);
            assert_eq!(g.len_of(PieceIndex(count - 1)), last);
            assert_eq!(g.len_of(PieceIndex(count)), 0, "past the end");
            let sum: u64 = g.pieces().map(|p| u64::from(g.len_of(p))).sum();
            assert_eq!(sum, content_len);
        }
    }

    #[test]
    fn pieces_are_found_by_number_and_by_content_offset() {
        let g = geometry(100_000, 32768);
        assert_eq!((g.piece(3), g.piece(4)), (Some(PieceIndex(3)), None));
        for piece in g.pieces() {
            let range = g.piece_range(piece);
            assert_eq!((g.piece_at(range.start), g.piece_at(range.end - 1)), (Some(piece), Some(piece)));
        }
        assert_eq!((g.piece_at(100_000), g.piece_at(u64::MAX)), (None, None));
        let most = u64::from(u32::MAX) * 16384;
        assert_eq!(geometry(most, 16384).piece_at(most - 1), Some(PieceIndex(u32::MAX - 1)));
        assert_eq!(Geometry::new(most + 1, 16384), None);
    }

    #[test]
    fn blocks_add_up_to_the_piece() {
        for content_len in [1, 16383, 16384, 16385, 40000, 65536, 65537] {
            let g = geometry(content_len, 65536);
            for piece in g.pieces() {
                let sum: u32 = (0..g.blocks_of(piece)).map(|b| g.block_len(piece, b)).sum();
                assert_eq!(sum, g.len_of(piece));
                assert_eq!(g.block_len(piece, g.blocks_of(piece)), 0);
            }
        }
    }

    #[test]
    fn usual_pieces_are_many_and_neither_tiny_nor_huge() {
        const MIB: u64 = 1 << 20;
        for (content_len, len) in [
            (0, 256 << 10),
            (1, 256 << 10),
            (256 * MIB, 256 << 10),
            (1_999 * MIB, 256 << 10),
            (2_000 * MIB, 512 << 10),
            (8_000 * MIB, 2 << 20),
            (80_000 * MIB, 4 << 20),
            (80_000 * MIB + 1, 8 << 20),
            (u64::MAX, 16 << 20),
        ] {
            assert_eq!(usual_piece_len(content_len), len, "{content_len}");
        }
        for mib in (1_000..320_000).step_by(777) {
            let pieces = (mib * MIB).div_ceil(u64::from(usual_piece_len(mib * MIB)));
            assert!((PIECES_WANTED..=PIECES_MAX).contains(&pieces), "{mib} MiB: {pieces}");
        }
    }
}

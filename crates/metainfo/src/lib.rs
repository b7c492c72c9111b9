//! The content of a `.torrent`: bencode, the typed metainfo of BEP 3, its infohash, and piece geometry.
//!
//! Everything here is pure: bytes in, values out. A torrent is hostile until [`Metainfo::parse`] has accepted it.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

pub mod bencode;
mod geometry;
mod table_kind;
mod torrent;
mod zeros;

pub use geometry::{BLOCK_LEN, Geometry, MAX_PIECE_LEN, MIN_PIECE_LEN, PieceIndex, usual_piece_len};
pub use table_kind::{TableKind, UnknownTable};
pub use torrent::{
    FileEntry, ImageFacts, Infohash, Metainfo, MetainfoError, NewTorrent, PieceHash, SwapFacts, TORRENT_LEN_MAX,
};
pub use zeros::{MAX_ZERO_RANGES, ZERO_BLOCK_LEN, Zeros, ZerosError};

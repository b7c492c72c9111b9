//! Content in the zstd seekable format: independent zstd frames of a fixed raw length, then their table in a skippable frame.
//!
//! Any zstd tool unpacks such a file (`zstd -dc`), because it passes over the table. This crate reads it at any offset of the
//! plain content, one frame at a time ([`Reader`]), and packs and lists frames ([`Packer`], [`TableWriter`]). It has no files and
//! no threads: bytes come through [`ReadAt`].
//!
//! A raw length of a frame is a power of two, and so is a torrent's piece length. [`frame_len_for`] makes no frame longer than a
//! piece, so a piece is a whole number of frames: it is read without bytes of others, and a damaged frame costs one piece.
//!
//! What a file says is never believed: no allocation is larger than the length that the caller expects allows, and a frame cannot
//! grow past its raw length.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

mod cache;
mod packer;
mod plain;
mod reader;
mod table;

use std::io;

pub use self::packer::{LEVELS, Packer};
pub use self::reader::Reader;
pub use self::table::{Table, TableError, TableWriter, has_table};

/// Raw length of a frame in bytes, unless a piece is shorter.
pub const FRAME_LEN: u32 = 128 << 10;
/// Shortest and longest raw length of a frame that is read, in bytes.
const FRAME_LEN_MIN: u32 = 16 << 10;
const FRAME_LEN_MAX: u32 = 1 << 20;

/// The raw length of frames for pieces of that length, a power of two: a piece holds a whole number of frames.
pub fn frame_len_for(piece_len: u32) -> u32 {
    piece_len.clamp(FRAME_LEN_MIN, FRAME_LEN)
}

/// Bytes that can be read from any offset on, by several threads at a time.
pub trait ReadAt {
    /// Fills `buf` from byte `at` on.
    ///
    /// # Errors
    /// If there are fewer bytes, or they cannot be read.
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let start = usize::try_from(at).map_err(io::Error::other)?;
        let found = start.checked_add(buf.len()).and_then(|end| self.get(start..end));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buf, at)
    }
}

#[cfg(test)]
mod tests;

//! Packs frames.

use std::io;
use std::ops::RangeInclusive;

use zstd::bulk::Compressor;
use zstd::zstd_safe::compress_bound;

use crate::{FRAME_LEN_MAX, plain};

/// Levels of compression: from fast to small. Higher ones of zstd gain nothing on frames of this length.
pub const LEVELS: RangeInclusive<i32> = 1..=19;
/// A frame that shrinks by less than this share of its length is kept as it is: reading it then costs nothing.
const LEAST_GAIN: u32 = 32;

/// Packs one frame after another. It has about a MiB of memory, and more at high levels.
pub struct Packer {
    compressor: Compressor<'static>,
    level: i32,
}

impl Packer {
    /// For a level of [`LEVELS`]; others are taken as the nearest.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(level: i32) -> io::Result<Packer> {
        let level = level.clamp(*LEVELS.start(), *LEVELS.end());
        Ok(Packer { compressor: Compressor::new(level)?, level })
    }

    /// From now on with another level.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn set_level(&mut self, level: i32) -> io::Result<()> {
        let level = level.clamp(*LEVELS.start(), *LEVELS.end());
        if level != self.level {
            self.compressor.set_compression_level(level)?;
            self.level = level;
        }
        Ok(())
    }

    /// Appends one frame that holds `raw` to `out`, and returns its length in bytes. What does not shrink is kept as it is.
    ///
    /// # Errors
    /// If `raw` is empty or longer than a frame may be, or there is no memory.
    pub fn pack(&mut self, raw: &[u8], out: &mut Vec<u8>) -> io::Result<u32> {
        let raw_len = u32::try_from(raw.len()).ok().filter(|len| (1..=FRAME_LEN_MAX).contains(len));
        let raw_len = raw_len.ok_or_else(|| io::Error::other(format!("{} bytes are no frame to pack", raw.len())))?;
        let plain_len = plain::stored_len(raw_len);
        let start = out.len();
        out.resize(start + compress_bound(raw.len()), 0);
        let packed = self.compressor.compress_to_buffer(raw, &mut out[start..])?;
        let packed_len = u32::try_from(packed).map_err(io::Error::other)?;
        if packed_len <= plain_len - raw_len.div_ceil(LEAST_GAIN) {
            out.truncate(start + packed);
            return Ok(packed_len);
        }
        out.truncate(start);
        plain::pack(raw, raw_len, out);
        Ok(plain_len)
    }
}

//! Decisions of the user, as written on the command line.

use anyhow::bail;
use metainfo::{MAX_PIECE_LEN, MIN_PIECE_LEN};

/// The user's decisions about a capture.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choices {
    /// Take every byte.
    pub whole: bool,
    /// Take file systems that are hibernated or not shut down, and sources that another program writes to.
    pub at_own_risk: bool,
    /// Leave out the space outside partitions.
    pub partitions_only: bool,
    /// Continue where the source cannot be read.
    pub rescue: bool,
    /// Sector size in bytes, for sources that do not show it.
    pub sector_size: Option<u32>,
}

/// A piece length as people write it.
///
/// # Errors
/// If the text is not a valid piece length.
pub fn parse_piece_len(text: &str) -> anyhow::Result<u32> {
    let (digits, unit) = match text.trim_end_matches(['i', 'B']).char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        _ => (text, 1),
    };
    let len = digits.parse::<u32>().ok().and_then(|len| len.checked_mul(unit));
    match len {
        Some(len) if len.is_power_of_two() && (MIN_PIECE_LEN..=MAX_PIECE_LEN).contains(&len) => Ok(len),
        _ => bail!("a piece length is a power of two from 16K to 64M, such as 4M"),
    }
}

/// A sector size as people write it.
///
/// # Errors
/// If no disk has such a sector size.
pub fn parse_sector_size(text: &str) -> anyhow::Result<u32> {
    match text.parse::<u32>() {
        Ok(size) if size.is_power_of_two() && (512..=4096).contains(&size) => Ok(size),
        _ => bail!("a sector size is 512, 1024, 2048 or 4096 bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piece_lengths_are_read_as_people_write_them() {
        for (text, len) in
            [("16K", 16 << 10), ("4M", 4 << 20), ("4MiB", 4 << 20), ("1048576", 1 << 20), ("64m", 64 << 20)]
        {
            assert_eq!(parse_piece_len(text).expect(text), len);
        }
        for bad in ["", "M", "3M", "8K", "128M", "4G", "-4M", "é", "4294967296", "5000000M"] {
            assert!(parse_piece_len(bad).is_err(), "{bad}");
        }
    }
}

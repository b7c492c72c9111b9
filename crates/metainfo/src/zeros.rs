//! Stretches of the disk that hold zeros and are not content: a recipe that travels in a torrent's facts.
//!
//! On the wire it is one string of bytes. Each range has two numbers: how many blocks of 64 KiB lie between it and the
//! previous range, and how many blocks it has. A number is written in groups of seven bits, the lowest first, with the
//! top bit set in all bytes but the last (unsigned LEB128). So ranges cannot be out of order or overlap, and most of
//! them take two or three bytes.

use std::fmt;
use std::ops::Range;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::{ByteBuf, Bytes};

/// Ranges begin and end at multiples of this, in bytes. Every range costs the torrent one more extent (66 bytes) and
/// the disk a seek, so it is better to copy shorter runs of zeros.
pub const ZERO_BLOCK_LEN: u64 = 64 << 10;

/// Most ranges that a torrent may have: 4 MiB of memory, less than the extents around them take.
pub const MAX_ZERO_RANGES: usize = 1 << 18;

/// Half-open ranges of disk bytes that hold zeros: ascending, disjoint, not touching, never empty, in whole blocks, and
/// below the largest offset that a file can have.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Zeros {
    ranges: Vec<Range<u64>>,
}

/// Why ranges are not [`Zeros`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZerosError {
    /// A range is empty, is not in whole blocks, touches the previous one, or is past the end of the largest possible
    /// disk.
    #[error("range {0} of zeros cannot be")]
    Range(usize),
    /// The bytes end inside a range.
    #[error("range {0} of zeros is cut off")]
    Truncated(usize),
    /// A number does not fit into 64 bits, or is longer than necessary.
    #[error("range {0} of zeros has a bad number")]
    BadNumber(usize),
    /// More ranges than [`MAX_ZERO_RANGES`].
    #[error("there are more than {MAX_ZERO_RANGES} ranges of zeros")]
    TooMany,
}

impl Zeros {
    /// Accepts the ranges unchanged.
    ///
    /// # Errors
    /// [`ZerosError::Range`] or [`ZerosError::TooMany`].
    pub fn new(ranges: Vec<Range<u64>>) -> Result<Zeros, ZerosError> {
        if ranges.len() > MAX_ZERO_RANGES {
            return Err(ZerosError::TooMany);
        }
        let mut previous_end = None;
        for (index, range) in ranges.iter().enumerate() {
            let is_whole = range.start.is_multiple_of(ZERO_BLOCK_LEN) && range.end.is_multiple_of(ZERO_BLOCK_LEN);
            let is_behind = previous_end.is_none_or(|end| end < range.start);
            if !is_whole || !is_behind || range.is_empty() || i64::try_from(range.end).is_err() {
                return Err(ZerosError::Range(index));
            }
            previous_end = Some(range.end);
        }
        Ok(Zeros { ranges })
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Whether there are no ranges.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes in all of them.
    pub fn len(&self) -> u64 {
        // Disjoint ranges below i64::MAX cannot sum up to more than that.
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    fn decode(bytes: &[u8]) -> Result<Zeros, ZerosError> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut rest = bytes;
        let mut at: u64 = 0;
        while !rest.is_empty() {
            let index = ranges.len();
            if index == MAX_ZERO_RANGES {
                return Err(ZerosError::TooMany);
            }
            let mut next = || -> Result<u64, ZerosError> {
                let blocks = number(&mut rest, index)?;
                let len = blocks.checked_mul(ZERO_BLOCK_LEN).ok_or(ZerosError::Range(index))?;
                at = at.checked_add(len).ok_or(ZerosError::Range(index))?;
                Ok(at)
            };
            ranges.push(next()?..next()?);
        }
        Zeros::new(ranges)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.ranges.len() * 3);
        let mut at = 0;
        for range in &self.ranges {
            for to in [range.start, range.end] {
                let mut blocks = (to - at) / ZERO_BLOCK_LEN;
                while blocks >= 0x80 {
                    bytes.push(low_byte(blocks) | 0x80);
                    blocks >>= 7;
                }
                bytes.push(low_byte(blocks));
                at = to;
            }
        }
        bytes
    }
}

impl fmt::Debug for Zeros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.ranges).finish()
    }
}

impl Serialize for Zeros {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Bytes::new(&self.encode()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Zeros {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Zeros, D::Error> {
        Zeros::decode(&ByteBuf::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Takes one number off the front.
fn number(bytes: &mut &[u8], index: usize) -> Result<u64, ZerosError> {
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(ZerosError::Truncated(index))?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if (bits << shift) >> shift != bits {
            return Err(ZerosError::BadNumber(index));
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            // Only the shortest form of a number is accepted; otherwise the same ranges could have several infohashes.
            return if byte == 0 && shift > 0 { Err(ZerosError::BadNumber(index)) } else { Ok(value) };
        }
    }
    Err(ZerosError::BadNumber(index))
}

fn low_byte(value: u64) -> u8 {
    u8::try_from(value & 0x7f).expect("seven bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u64 = ZERO_BLOCK_LEN;

    #[test]
    fn ranges_are_a_few_bytes_each() {
        let zeros = Zeros::new(vec![16 * BLOCK..17 * BLOCK, 18 * BLOCK..400 * BLOCK]).expect("sane");
        assert_eq!(zeros.encode(), [16, 1, 1, 0xfe, 2]);
        assert_eq!(Zeros::decode(&zeros.encode()), Ok(zeros.clone()));
        assert_eq!((zeros.len(), zeros.is_empty()), (383 * BLOCK, false));
        assert_eq!(Zeros::default().encode(), []);
        assert_eq!(Zeros::decode(&[]), Ok(Zeros::default()));
        assert_eq!(Zeros::decode(&[0, 1]).expect("sane").ranges()[0], 0..BLOCK);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (bytes, wanted) in [
            (&[1][..], ZerosError::Truncated(0)),
            (&[1, 0x80], ZerosError::Truncated(0)),
            (&[1, 1, 5], ZerosError::Truncated(1)),
            (&[1, 0], ZerosError::Range(0)),
            (&[1, 1, 0, 1], ZerosError::Range(1)),
            (&[0x81, 0, 1], ZerosError::BadNumber(0)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 1], ZerosError::BadNumber(0)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1], ZerosError::Range(0)),
            (&[0x80; 20], ZerosError::BadNumber(0)),
            // Block 2^47 starts just past the largest file offset, and the block before it ends there.
            (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20, 1], ZerosError::Range(0)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 1], ZerosError::Range(0)),
        ] {
            assert_eq!(Zeros::decode(bytes), Err(wanted), "{bytes:?}");
        }
        let many = [1, 1].repeat(MAX_ZERO_RANGES + 1);
        assert_eq!(Zeros::decode(&many), Err(ZerosError::TooMany));
        assert!(Zeros::decode(&many[2..]).is_ok());
        for bad in
            [[0..BLOCK, BLOCK..2 * BLOCK], [BLOCK..2 * BLOCK, 0..BLOCK], [0..1, BLOCK..2 * BLOCK], [1..BLOCK, 0..0]]
        {
            assert!(Zeros::new(bad.to_vec()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn there_is_one_way_to_write_ranges(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(zeros) = Zeros::decode(&bytes) {
                prop_assert_eq!(zeros.encode(), bytes);
            }
        }
    }
}

//! The result of a reader, and its errors.

use std::io;
use std::ops::Range;

use thiserror::Error;

/// The used bytes of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Byte ranges: ascending, disjoint, merged, inside the volume, never empty. A few may lie after `spans`: copies of
    /// superblocks.
    pub ranges: Vec<Range<u64>>,
    /// Bytes from the start of the volume that the maps cover; the caller has to examine the bytes after them. At most
    /// the volume's length.
    pub spans: u64,
    /// Unit in which the volume allocates space, in bytes.
    pub block_size: u32,
    /// Whether it was unmounted cleanly; `None` if this kind of volume does not record it. If it was not, its maps may
    /// be older than its files, and `ranges` is the whole volume.
    pub is_clean: Option<bool>,
    /// Notes for people: groups copied whole, and why.
    pub notes: Vec<String>,
}

impl Used {
    /// How many bytes are used.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// The result for a volume that was not unmounted cleanly: all of it is used.
    pub(crate) fn whole_of_unclean(len: u64, block_size: u32) -> Used {
        let ranges = std::iter::once(0..len).collect();
        let notes = vec!["it was not unmounted cleanly, so all of it counts as used".to_owned()];
        Used { ranges, spans: len, block_size, is_clean: Some(false), notes }
    }

    /// Whether no byte is used; no reader returns that.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// Why the used bytes are not known. In every case, copy the whole volume.
#[derive(Debug, Error)]
pub enum UsedError {
    /// The source could not be read.
    #[error("reading {len} bytes at byte {offset}")]
    Read {
        /// Where in the volume.
        offset: u64,
        /// How many bytes.
        len: usize,
        /// The source's error.
        source: io::Error,
    },
    /// The volume contradicts itself or its length.
    #[error("the {kind} volume makes no sense: {what}")]
    Damaged {
        /// Its name in `blkid`.
        kind: &'static str,
        /// The contradiction.
        what: String,
    },
    /// A variant that this reader does not know.
    #[error("this {kind} volume is not understood: {what}")]
    Unsupported {
        /// Its name in `blkid`.
        kind: &'static str,
        /// The unknown part.
        what: String,
    },
}

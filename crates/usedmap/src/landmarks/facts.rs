//! The facts that readers of landmarks find.

use std::io::{Read, Seek};
use std::ops::Range;

use crate::ranges::{RANGES_MAX, Ranges};
use crate::volume::Volume;

/// What a file system records about itself, which a map of its used blocks has to agree with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Landmarks {
    /// Length in bytes that the file system states, from the start of the volume. It may be more than the volume has;
    /// in that case the end of the file system is missing.
    pub len: Option<u64>,
    /// Places that are in use and that a map may lack: room for boot code, superblocks and their copies, backup
    /// descriptors, headers. For btrfs, they are all used space, or the whole volume if the used space is unknown
    /// because of several devices or a log to be replayed. Byte ranges: ascending, disjoint, merged, clipped to the
    /// volume. A few may lie after `len`.
    pub places: Vec<Range<u64>>,
    /// The minimum number of bytes in use (not counting mirrors) according to its count, if that is reliable: a
    /// completed map has at least as many.
    pub used_min: Option<u64>,
    /// Stretches that are kept in several copies: a part used in one is used in all. They do not overlap.
    pub mirrors: Vec<Mirror>,
    /// How many devices it spans, if its kind allows several (btrfs, F2FS).
    pub devices: Option<u64>,
    /// Whether it was unmounted cleanly, for FAT16 and FAT32 only: the bit for it in the second entry of the table.
    pub is_clean: Option<bool>,
}

/// A stretch that is kept in several copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where each copy starts, in bytes from the start of the volume.
    pub copies: Vec<u64>,
    /// Length of each copy, in bytes.
    pub len: u64,
}

impl Landmarks {
    /// Adds places and mirrors to a map, in bytes, and returns the completed map: ascending, disjoint, merged. If it
    /// has more than 2^19 ranges and more than before, the smallest holes are joined.
    pub fn complete(&self, ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
        let ranges_max = RANGES_MAX.max(ranges.len());
        let mut all = Ranges::with_limit(u64::MAX, ranges_max);
        ranges.into_iter().chain(self.places.iter().cloned()).for_each(|range| all.insert(range));
        let all = all.finish();
        let mut mirrored = Ranges::with_limit(u64::MAX, ranges_max);
        for mirror in &self.mirrors {
            for &copy in &mirror.copies {
                let end = copy.saturating_add(mirror.len);
                let first = all.partition_point(|range| range.end <= copy);
                for range in all[first..].iter().take_while(|range| range.start < end) {
                    let (start, end) = (range.start.max(copy) - copy, range.end.min(end) - copy);
                    for other in &mirror.copies {
                        mirrored.insert(other.saturating_add(start)..other.saturating_add(end));
                    }
                }
            }
        }
        all.into_iter().for_each(|range| mirrored.insert(range));
        mirrored.finish()
    }
}

/// Places, sorted and clipped to the volume: everything before byte `end`, and the other ranges.
pub(super) fn places<S: Read + Seek>(
    volume: &Volume<'_, S>,
    end: u64,
    more: impl IntoIterator<Item = Range<u64>>,
) -> Vec<Range<u64>> {
    let mut all = Ranges::new(volume.len());
    all.insert(0..end);
    more.into_iter().for_each(|place| all.insert(place));
    all.finish()
}

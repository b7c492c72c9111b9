//! Extents, and the set of them that a capture collects.

use std::fmt;
use std::ops::Range;

/// A byte on the device, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskOffset(pub u64);

impl fmt::Display for DiskOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A half-open run of bytes on the device. It is a distinct type, and `Copy`, so that it is not taken for a range of
/// the content or of a volume, which `Range<u64>` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskRange {
    /// Its first byte.
    pub start: DiskOffset,
    /// The byte after its last one.
    pub end: DiskOffset,
}

impl DiskRange {
    /// The range of these disk offsets, in bytes; empty if it ends before it starts.
    pub fn new(bytes: Range<u64>) -> DiskRange {
        DiskRange { start: DiskOffset(bytes.start), end: DiskOffset(bytes.end) }
    }

    /// Its disk offsets as plain numbers of bytes, for arithmetic.
    pub fn bytes(self) -> Range<u64> {
        self.start.0..self.end.0
    }

    /// Its length in bytes.
    pub fn len(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether it has no bytes.
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Whether it contains the byte.
    pub fn contains(self, byte: DiskOffset) -> bool {
        self.start <= byte && byte < self.end
    }

    /// The bytes that are in both; an empty range if there are none.
    pub fn intersect(self, other: DiskRange) -> DiskRange {
        DiskRange { start: self.start.max(other.start), end: self.end.min(other.end) }
    }
}

impl From<Extent> for DiskRange {
    fn from(extent: Extent) -> DiskRange {
        DiskRange { start: extent.disk, end: extent.end() }
    }
}

/// A contiguous run of disk bytes that an image contains; never empty, never past 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Where it starts on the device.
    pub disk: DiskOffset,
    /// Its length in bytes.
    pub len: u64,
}

impl Extent {
    /// The offset just past its last byte.
    pub fn end(&self) -> DiskOffset {
        DiskOffset(self.disk.0 + self.len)
    }
}

/// Collects ranges of a disk in any order and returns them as extents: ascending, disjoint and merged as far as
/// possible. So the same disk gives the same image, whichever reader found its blocks.
#[derive(Clone, Debug, Default)]
pub struct ExtentSet {
    ranges: Vec<DiskRange>,
}

impl ExtentSet {
    /// Adds the range; an empty one adds nothing.
    pub fn insert(&mut self, range: DiskRange) {
        if !range.is_empty() {
            self.ranges.push(range);
        }
    }

    /// The union of all ranges, every bound moved outwards to a multiple of `align` bytes (but not past `limit`).
    pub fn into_extents(mut self, align: u64, limit: u64) -> Vec<Extent> {
        let align = align.max(1);
        self.ranges.sort_unstable_by_key(|range| range.start);
        let mut extents: Vec<Extent> = Vec::new();
        for range in self.ranges {
            let start = range.start.0 / align * align;
            let end = range.end.0.div_ceil(align).saturating_mul(align).min(limit);
            if start >= end {
                continue;
            }
            match extents.last_mut() {
                Some(last) if start <= last.end().0 => last.len = last.len.max(end - last.disk.0),
                _ => extents.push(Extent { disk: DiskOffset(start), len: end - start }),
            }
        }
        extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn union(ranges: &[Range<u64>], align: u64, limit: u64) -> Vec<(u64, u64)> {
        let mut set = ExtentSet::default();
        ranges.iter().for_each(|range| set.insert(DiskRange::new(range.clone())));
        set.into_extents(align, limit).iter().map(|extent| (extent.disk.0, extent.len)).collect()
    }

    #[test]
    fn touching_ranges_become_one_extent() {
        let two = [0..10, 10..20];
        assert_eq!(union(&two, 1, 100), [(0, 20)]);
        assert_eq!(union(&[0..10, 11..20], 1, 100), [(0, 10), (11, 9)]);
        assert_eq!(union(&[5..30, 0..10, 8..9], 1, 100), [(0, 30)]);
        assert_eq!(union(&[0..5, 6..7], 4, 100), [(0, 8)]);
        let past_the_end = [90..99, 100..120];
        assert_eq!(union(&past_the_end, 4, 98), [(88, 10)]);
        assert_eq!(union(&[], 512, 100), []);
    }

    proptest! {
        #[test]
        fn extents_cover_exactly_the_ranges(ranges in proptest::collection::vec((0u64..200, 0u64..20), 0..30)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, len)| start..start + len).collect();
            let extents = union(&ranges, 1, 1000);
            for byte in 0..240 {
                let wanted = ranges.iter().any(|range| range.contains(&byte));
                let covered = extents.iter().any(|&(start, len)| (start..start + len).contains(&byte));
                prop_assert_eq!(wanted, covered, "byte {}", byte);
            }
            for pair in extents.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 < pair[1].0, "coalesced: {:?}", extents);
            }
        }
    }
}

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
    pub fn end(&self) -> u64 {
        self.disk.0 + self.len
    }
}

/// Collects ranges of a disk in any order and gives them back as extents: ascending, disjoint, coalesced maximally, so
/// that the same disk gives the same image whatever found its blocks.
#[derive(Clone, Debug, Default)]
pub struct ExtentSet {
    ranges: Vec<Range<u64>>,
}

impl ExtentSet {
    /// Adds the half-open range of disk bytes; an empty one adds nothing.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.start < range.end {
            self.ranges.push(range);
        }
    }

    /// The union of all ranges, with every bound moved outwards to a multiple of `align` bytes (but not past `limit`).
    pub fn into_extents(mut self, align: u64, limit: u64) -> Vec<Extent> {
        let align = align.max(1);
        self.ranges.sort_unstable_by_key(|range| range.start);
        let mut extents: Vec<Extent> = Vec::new();
        for range in self.ranges {
            let start = range.start / align * align;
            let end = range.end.div_ceil(align).saturating_mul(align).min(limit);
            if start >= end {
                continue;
            }
            match extents.last_mut() {
                Some(last) if start <= last.end() => last.len = last.len.max(end - last.disk.0),
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
        ranges.iter().for_each(|range| set.insert(range.clone()));
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

//! Collects used ranges in any order and gives them back as [`crate::Used`] wants them.

use std::ops::Range;

/// Most ranges that come out. A volume with every second block free would have billions; beyond this, the smallest gaps
/// are copied along. Doubled, a torrent that names every range gets larger than anything that loads it would like.
const RANGES_MAX: usize = 1 << 19;
/// What lies behind a file system is kept whole up to twice this length, in bytes (copies of superblocks are there); of
/// a longer tail, this much of its start and of its end.
const TAIL_LEN: u64 = 1 << 20;

/// Used ranges of a volume.
pub(crate) struct Ranges {
    ranges: Vec<Range<u64>>,
    len: u64,
    ranges_max: usize,
    /// Gaps shorter than this are copied along; grows as needed.
    gap_min: u64,
}

impl Ranges {
    /// Nothing yet, of a volume this long.
    pub fn new(len: u64) -> Ranges {
        Ranges { ranges: Vec::new(), len, ranges_max: RANGES_MAX, gap_min: 1 }
    }

    /// Adds the part of the half-open range of bytes that is inside the volume.
    pub fn insert(&mut self, range: Range<u64>) {
        let range = range.start..range.end.min(self.len);
        if range.start >= range.end {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if last.start <= range.start && range.start <= last.end => last.end = last.end.max(range.end),
            _ => self.ranges.push(range),
        }
        if self.ranges.len() > 2 * self.ranges_max {
            self.compact();
        }
    }

    /// Adds blocks of this size; numbers that no volume has are cut off at its end.
    pub fn insert_blocks(&mut self, blocks: Range<u64>, block_size: u64) {
        self.insert(blocks.start.saturating_mul(block_size)..blocks.end.saturating_mul(block_size));
    }

    /// Adds each block whose bit `is_used`; the first bit is block `first`.
    pub fn insert_bits(&mut self, first: u64, count: u64, block_size: u64, is_used: impl Fn(u64) -> bool) {
        let mut index = 0;
        while index < count {
            let start = index;
            let bit = is_used(index);
            while index < count && is_used(index) == bit {
                index += 1;
            }
            if bit {
                self.insert_blocks(first.saturating_add(start)..first.saturating_add(index), block_size);
            }
        }
    }

    /// Adds what lies behind the last byte that the file system speaks for.
    pub fn insert_tail(&mut self, end: u64) {
        if self.len.saturating_sub(end) <= 2 * TAIL_LEN {
            self.insert(end..self.len);
        } else {
            self.insert(end..end + TAIL_LEN);
            self.insert(self.len - TAIL_LEN..self.len);
        }
    }

    /// The union of all: ascending, disjoint, coalesced.
    pub fn finish(mut self) -> Vec<Range<u64>> {
        self.unite();
        while self.ranges.len() > self.ranges_max {
            self.gap_min *= 2;
            self.unite();
        }
        self.ranges
    }

    /// Makes room: fewer ranges than allowed are left.
    fn compact(&mut self) {
        self.unite();
        while self.ranges.len() > self.ranges_max {
            self.gap_min *= 2;
            self.unite();
        }
    }

    fn unite(&mut self) {
        self.ranges.sort_unstable_by_key(|range| range.start);
        let mut united: Vec<Range<u64>> = Vec::new();
        for range in self.ranges.drain(..) {
            match united.last_mut() {
                Some(last) if range.start < last.end.saturating_add(self.gap_min) => last.end = last.end.max(range.end),
                _ => united.push(range),
            }
        }
        // Of two ranges that touch, the second starts at the end of the first, which is less than a gap of one away.
        self.ranges = united;
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn union(ranges: &[Range<u64>], len: u64, ranges_max: usize) -> Vec<Range<u64>> {
        let mut all = Ranges { ranges_max, ..Ranges::new(len) };
        ranges.iter().for_each(|range| all.insert(range.clone()));
        all.finish()
    }

    #[test]
    fn touching_ranges_become_one() {
        let two = |first, second| union(&[first, second], 100, 10);
        assert_eq!(two(0..10, 10..20), [0..20]);
        assert_eq!(two(10..20, 0..10), [0..20]);
        assert_eq!(two(0..10, 11..20), [0..10, 11..20]);
        assert_eq!(two(90..u64::MAX, 100..101), [90..100]);
        assert_eq!(two(5..5, 200..300), []);
    }

    #[test]
    fn bits_become_runs() {
        let mut ranges = Ranges::new(1000);
        ranges.insert_bits(5, 8, 10, |bit| [0, 1, 4, 7].contains(&bit));
        assert_eq!(ranges.finish(), [50..70, 90..100, 120..130]);
    }

    #[test]
    fn long_tails_are_cut() {
        let tail = |end, len| {
            let mut ranges = Ranges::new(len);
            ranges.insert_tail(end);
            ranges.finish()
        };
        assert_eq!(tail(10, 20), [10..20]);
        assert_eq!(tail(20, 20), []);
        assert_eq!(tail(30, 20), []);
        assert_eq!(tail(0, 8 << 20), [0..1 << 20, 7 << 20..8 << 20]);
    }

    proptest! {
        #[test]
        fn nothing_gets_lost(
            ranges in proptest::collection::vec((0u64..500, 0u64..9), 0..80),
            ranges_max in 1usize..40,
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, len)| start..start + len).collect();
            let united = union(&ranges, 450, ranges_max);
            prop_assert!(united.len() <= ranges_max);
            prop_assert!(united.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert!(united.iter().all(|range| range.start < range.end && range.end <= 450));
            for byte in 0..450 {
                if ranges.iter().any(|range| range.contains(&byte)) {
                    prop_assert!(united.iter().any(|range| range.contains(&byte)), "byte {} is lost", byte);
                } else if united.len() < ranges_max && ranges.len() <= ranges_max {
                    prop_assert!(!united.iter().any(|range| range.contains(&byte)), "byte {} is too much", byte);
                }
            }
        }
    }
}

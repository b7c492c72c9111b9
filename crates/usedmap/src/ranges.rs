//! Collects used ranges in any order and returns them ascending, disjoint and merged.

use std::ops::Range;

/// Most ranges that are returned. A volume with every second block free would have billions; beyond this limit, the
/// smallest holes are captured too. With twice as many, a torrent that names every range would be too large for the
/// programs that load it.
pub(crate) const RANGES_MAX: usize = 1 << 19;

/// Used ranges of a volume, in bytes, added in any order.
///
/// Any number of them may be added, because only a bounded number is kept. If too many remain, the smallest holes
/// between them are joined to them, and only as many as necessary. So no added range is ever lost, and few bytes are
/// copied in vain.
///
/// ```
/// let mut ranges = usedmap::Ranges::new(100);
/// ranges.insert(50..70);
/// ranges.insert(0..10);
/// ranges.insert(60..u64::MAX);
/// assert_eq!(ranges.finish(), [0..10, 50..100]);
/// ```
#[derive(Clone, Debug)]
pub struct Ranges {
    ranges: Vec<Range<u64>>,
    len: u64,
    ranges_max: usize,
    joined: u64,
}

impl Ranges {
    /// An empty set, for a volume of `len` bytes; at most 2^19 ranges are returned.
    pub fn new(len: u64) -> Ranges {
        Ranges::with_limit(len, RANGES_MAX)
    }

    /// An empty set, for a volume of `len` bytes. At most `ranges_max` ranges (at least one) are returned. Twice as
    /// many take memory, 16 bytes each, and half as much again while they are sorted.
    pub fn with_limit(len: u64, ranges_max: usize) -> Ranges {
        Ranges { ranges: Vec::new(), len, ranges_max: ranges_max.max(1), joined: 0 }
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
        if self.ranges.len() / 2 >= self.ranges_max {
            self.compact();
        }
    }

    /// Adds blocks of this size; blocks past the end of the volume are cut off.
    pub(crate) fn insert_blocks(&mut self, blocks: Range<u64>, block_size: u64) {
        self.insert(blocks.start.saturating_mul(block_size)..blocks.end.saturating_mul(block_size));
    }

    /// Adds each block whose bit `is_used`; the first bit stands for block `first`.
    pub(crate) fn insert_bits(&mut self, first: u64, count: u64, block_size: u64, is_used: impl Fn(u64) -> bool) {
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

    /// The union of all ranges: ascending, disjoint, merged.
    pub fn finish(self) -> Vec<Range<u64>> {
        self.finish_counted().0
    }

    /// The union of all ranges, and how many bytes of holes were joined to it because there were too many; these are
    /// copied too. The number is exact if the ranges came in ascending order; otherwise it may include bytes that were
    /// added later.
    pub fn finish_counted(mut self) -> (Vec<Range<u64>>, u64) {
        self.compact();
        (self.ranges, self.joined)
    }

    /// Makes room: at most the allowed number of ranges is left.
    fn compact(&mut self) {
        self.ranges.sort_unstable_by_key(|range| range.start);
        self.join(0, 0);
        let Some(surplus) = self.ranges.len().checked_sub(self.ranges_max).filter(|surplus| *surplus > 0) else {
            return;
        };
        let mut holes: Vec<u64> = self.ranges.windows(2).map(|pair| pair[1].start - pair[0].end).collect();
        let (smaller, &mut largest, _) = holes.select_nth_unstable(surplus - 1);
        let as_large = surplus - smaller.iter().filter(|hole| **hole < largest).count();
        self.join(largest, as_large);
    }

    /// Joins ranges that overlap or touch, or have a hole smaller than this between them. Holes of exactly this size
    /// are joined `as_large` times.
    fn join(&mut self, hole: u64, mut as_large: usize) {
        let mut joined = 0;
        self.ranges.dedup_by(|range, last| {
            let between = range.start.saturating_sub(last.end);
            let is_joined = between == 0 || between < hole || (between == hole && as_large > 0);
            if is_joined {
                as_large -= usize::from(between == hole && hole > 0);
                joined += between;
                last.end = last.end.max(range.end);
            }
            is_joined
        });
        self.joined += joined;
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn union(ranges: &[Range<u64>], len: u64, ranges_max: usize) -> Vec<Range<u64>> {
        let mut all = Ranges::with_limit(len, ranges_max);
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
    fn the_smallest_holes_are_joined() {
        let all = [0..10, 11..20, 25..30, 33..40, 43..50, 90..100];
        let counted = |ranges_max| {
            let mut ranges = Ranges::with_limit(100, ranges_max);
            all.iter().for_each(|range| ranges.insert(range.clone()));
            ranges.finish_counted()
        };
        assert_eq!(counted(6), (all.to_vec(), 0));
        assert_eq!(counted(5), (vec![0..20, 25..30, 33..40, 43..50, 90..100], 1));
        assert_eq!(counted(4), (vec![0..20, 25..40, 43..50, 90..100], 4), "one of two equal ones");
        assert_eq!(counted(3), (vec![0..20, 25..50, 90..100], 7));
        assert_eq!(counted(2), (vec![0..50, 90..100], 12));
        assert_eq!(counted(1), (vec![0..100], 52));
        assert_eq!(counted(0), (vec![0..100], 52), "none is no limit");
    }

    /// The output of `partclone -D` for the worst possible volume, in ascending order.
    #[test]
    fn millions_of_ranges_take_little_time_and_room() {
        const COUNT: u64 = 5_000_000;
        let started = Instant::now();
        let mut ranges = Ranges::new(COUNT * 1024);
        let mut kept_max = 0;
        for at in (0..COUNT).map(|number| number * 1024) {
            ranges.insert(at..at + 512);
            kept_max = kept_max.max(ranges.ranges.capacity());
        }
        let (ranges, joined) = ranges.finish_counted();
        let took = started.elapsed();
        println!("{took:?}, {kept_max} kept");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(kept_max <= 2 * RANGES_MAX, "{kept_max}");
        assert_eq!((ranges.len(), joined), (RANGES_MAX, (COUNT - RANGES_MAX as u64) * 512));
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
                } else if ranges.len() <= ranges_max {
                    prop_assert!(!united.iter().any(|range| range.contains(&byte)), "byte {} is too much", byte);
                }
            }
        }
    }
}

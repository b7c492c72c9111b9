//! The account of a capture: every byte of the disk in exactly one class.
//!
//! A capture collects [`Claims`]: statements of the readers of tables and file systems about stretches of the disk, in
//! any order and overlapping. [`Claims::close`] makes the [`Account`] from them. If several claims cover a byte, the
//! class that comes first in [`Class`] counts. A byte without a claim is captured, so nothing can be left out because
//! it was forgotten.

use crate::{DiskOffset, DiskRange, Extent, ExtentSet};

/// What happens to a byte of the disk. If several classes are claimed, the first of them counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// It is content of the image.
    Captured,
    /// It is not content, and is recreated from a recipe in the torrent: stretches of zeros in used data, swap headers.
    Recipe,
    /// It is left out because the source does not have it: a partition that another tool did not save.
    Missing,
    /// It is left out because the user asked for that.
    Skipped,
    /// It is left out because it is zeros outside of every file system.
    Zeros,
    /// It is left out because a reader that understands the file system around it says it is free.
    Free,
}

impl Class {
    /// Every class, in the order in which they count.
    pub const ALL: [Class; 6] =
        [Class::Captured, Class::Recipe, Class::Missing, Class::Skipped, Class::Zeros, Class::Free];

    /// Whether such a byte may be captured anyway, to make an image of fewer places.
    fn may_be_copied_along(self) -> bool {
        matches!(self, Class::Skipped | Class::Zeros | Class::Free)
    }
}

/// The claims about a disk, in any order.
#[derive(Clone, Debug)]
pub struct Claims {
    len: u64,
    captured: ExtentSet,
    others: Vec<(DiskRange, Class)>,
}

impl Claims {
    /// No claims yet, for a disk of `len` bytes.
    pub fn new(len: u64) -> Claims {
        Claims { len, captured: ExtentSet::default(), others: Vec::new() }
    }

    /// Claims that the range is in this class; the part past the end of the disk is ignored.
    pub fn claim(&mut self, range: DiskRange, class: Class) {
        let range = range.intersect(DiskRange::new(0..self.len));
        if range.is_empty() {
            return;
        }
        match class {
            Class::Captured => self.captured.insert(range),
            _ => self.others.push((range, class)),
        }
    }

    /// The stretches without a claim, ascending and disjoint.
    pub fn unspoken(&self) -> Vec<DiskRange> {
        let mut all = self.captured.clone();
        self.others.iter().for_each(|(range, _)| all.insert(*range));
        gaps(&all.into_extents(1, self.len), self.len)
    }

    /// Puts every byte into its class. Captured stretches begin and end at multiples of `align` bytes, except at the
    /// end of the disk. If there are more than `places_max` of them, those with the smallest holes between them are
    /// joined, and the holes are captured too.
    pub fn close(mut self, align: u64, places_max: usize) -> Account {
        for range in self.unspoken() {
            self.captured.insert(range);
        }
        let mut extents = self.captured.into_extents(align, self.len);
        let others = flatten(self.others);
        let copied_along = join(&mut extents, &others, places_max);
        let mut account = Account { len: self.len, segments: Vec::new(), copied_along };
        let mut at = DiskOffset(0);
        for extent in &extents {
            account.push_others(&others, DiskRange { start: at, end: extent.disk });
            account.push(DiskRange::from(*extent), Class::Captured);
            at = extent.end();
        }
        account.push_others(&others, DiskRange { start: at, end: DiskOffset(self.len) });
        account
    }
}

/// Every byte of a disk in exactly one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    len: u64,
    /// Ascending; each begins where the previous one ends, the first at 0, and the last ends at `len`.
    segments: Vec<(DiskRange, Class)>,
    copied_along: u64,
}

impl Account {
    /// The stretches of the disk and their classes: ascending, without holes, from the first byte of the disk to the last.
    pub fn segments(&self) -> &[(DiskRange, Class)] {
        &self.segments
    }

    /// The captured stretches.
    pub fn extents(&self) -> Vec<Extent> {
        let captured = self.segments.iter().filter(|(_, class)| *class == Class::Captured);
        captured.map(|(range, _)| Extent { disk: range.start, len: range.len() }).collect()
    }

    /// How many bytes are in this class. The totals of all classes add up to the length of the disk.
    pub fn total(&self, class: Class) -> u64 {
        self.segments.iter().filter(|(_, other)| *other == class).map(|(range, _)| range.len()).sum()
    }

    /// Bytes that are captured only because they lie in holes between small places.
    pub fn copied_along(&self) -> u64 {
        self.copied_along
    }

    /// Marks stretches, captured so far, as having a recipe. `ranges` ascend and are disjoint.
    pub fn make_recipe(&mut self, ranges: &[DiskRange]) {
        let before = std::mem::take(&mut self.segments);
        let mut rest = ranges;
        for (segment, class) in before {
            let mut at = segment.start;
            while let Some(range) = rest.first().filter(|range| range.start < segment.end) {
                let recipe = range.intersect(DiskRange { start: at, end: segment.end });
                if class == Class::Captured && !recipe.is_empty() {
                    self.push(DiskRange { start: at, end: recipe.start }, class);
                    self.push(recipe, Class::Recipe);
                    at = recipe.end;
                }
                if range.end > segment.end {
                    break;
                }
                rest = &rest[1..];
            }
            self.push(DiskRange { start: at, end: segment.end }, class);
        }
    }

    fn push(&mut self, range: DiskRange, class: Class) {
        if range.is_empty() {
            return;
        }
        match self.segments.last_mut() {
            Some((last, same)) if *same == class => last.end = range.end,
            _ => self.segments.push((range, class)),
        }
    }

    /// Adds the segments that `others` have in `hole`. A part of it without a segment is captured, so it is no hole.
    fn push_others(&mut self, others: &[(DiskRange, Class)], hole: DiskRange) {
        let first = others.partition_point(|(range, _)| range.end <= hole.start);
        for (range, class) in others[first..].iter().take_while(|(range, _)| range.start < hole.end) {
            self.push(range.intersect(hole), *class);
        }
    }
}

/// The gaps between extents on a disk of `len` bytes.
fn gaps(extents: &[Extent], len: u64) -> Vec<DiskRange> {
    let starts = std::iter::once(DiskOffset(0)).chain(extents.iter().map(Extent::end));
    let ends = extents.iter().map(|extent| extent.disk).chain([DiskOffset(len)]);
    starts.zip(ends).map(|(start, end)| DiskRange { start, end }).filter(|gap| !gap.is_empty()).collect()
}

/// Makes claims disjoint and ascending; where they overlap, the class that counts first stays.
fn flatten(mut claims: Vec<(DiskRange, Class)>) -> Vec<(DiskRange, Class)> {
    let mut flat: Vec<(DiskRange, Class)> = Vec::new();
    for class in Class::ALL {
        let mut set = ExtentSet::default();
        claims.iter().filter(|(_, of)| *of == class).for_each(|(range, _)| set.insert(*range));
        claims.retain(|(_, of)| *of != class);
        let taken = std::mem::take(&mut flat);
        let mut first = 0;
        for extent in set.into_extents(1, u64::MAX) {
            while taken.get(first).is_some_and(|(range, _)| range.end <= extent.disk) {
                first += 1;
            }
            let mut at = extent.disk;
            for (range, _) in taken[first..].iter().take_while(|(range, _)| range.start < extent.end()) {
                flat.push((DiskRange { start: at, end: range.start }, class));
                at = at.max(range.end);
            }
            flat.push((DiskRange { start: at, end: extent.end() }, class));
        }
        flat.extend(taken);
        flat.retain(|(range, _)| !range.is_empty());
        flat.sort_unstable_by_key(|(range, _)| range.start);
    }
    flat
}

/// Joins extents over holes that may be captured as well, the smallest first, until there are no more than `places_max` or no
/// such hole is left; returns the bytes of the holes.
fn join(extents: &mut Vec<Extent>, others: &[(DiskRange, Class)], places_max: usize) -> u64 {
    let is_allowed = |hole: &DiskRange| {
        let first = others.partition_point(|(range, _)| range.end <= hole.start);
        let inside = others[first..].iter().take_while(|(range, _)| range.start < hole.end);
        inside.into_iter().all(|(_, class)| class.may_be_copied_along())
    };
    let mut copied = 0;
    let mut hole_max = 1024;
    while extents.len() > places_max && hole_max <= 1 << 62 {
        extents.dedup_by(|next, last| {
            let hole = DiskRange { start: last.end(), end: next.disk };
            let is_joined = hole.len() <= hole_max && is_allowed(&hole);
            if is_joined {
                copied += hole.len();
                last.len = next.end().0 - last.disk.0;
            }
            is_joined
        });
        hole_max *= 2;
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::Range;

    fn segments<const N: usize>(segments: [(Range<u64>, Class); N]) -> [(DiskRange, Class); N] {
        segments.map(|(range, class)| (DiskRange::new(range), class))
    }

    fn account(len: u64, claims: &[(Range<u64>, Class)], align: u64, places_max: usize) -> Account {
        let mut all = Claims::new(len);
        claims.iter().for_each(|(range, class)| all.claim(DiskRange::new(range.clone()), *class));
        all.close(align, places_max)
    }

    #[test]
    fn what_nobody_speaks_of_is_captured() {
        let nothing = account(100, &[], 1, 10);
        assert_eq!(nothing.segments(), segments([(0..100, Class::Captured)]));
        let some = account(100, &[(10..20, Class::Free), (15..30, Class::Zeros), (90..200, Class::Missing)], 1, 10);
        let wanted = [
            (0..10, Class::Captured),
            (10..15, Class::Free),
            (15..30, Class::Zeros),
            (30..90, Class::Captured),
            (90..100, Class::Missing),
        ];
        assert_eq!(some.segments(), segments(wanted));
        assert_eq!(Claims::new(0).close(512, 1).segments(), []);
    }

    #[test]
    fn small_holes_are_copied_along_when_there_are_too_many_places() {
        let mut claims = vec![(0..100_000, Class::Free)];
        claims.extend((0..20).map(|i| (i * 4096..i * 4096 + 512, Class::Captured)));
        assert_eq!(account(100_000, &claims, 512, 20).extents().len(), 20);
        let joined = account(100_000, &claims, 512, 19);
        assert_eq!(joined.extents(), [Extent { disk: DiskOffset(0), len: 19 * 4096 + 512 }]);
        assert_eq!(joined.copied_along(), 19 * 3584);
        assert_eq!(joined.total(Class::Captured) + joined.total(Class::Free), 100_000);
        // Missing bytes cannot be copied, and a recipe has another purpose.
        claims.push((0..50_000, Class::Missing));
        claims.push((50_000..100_000, Class::Recipe));
        assert_eq!(account(100_000, &claims, 512, 5).extents().len(), 20);
    }

    #[test]
    fn recipes_take_the_place_of_content() {
        let mut account = account(100, &[(20..40, Class::Free)], 1, 10);
        account.make_recipe(&[5..10, 15..30, 35..38, 90..100].map(DiskRange::new));
        let wanted = [
            (0..5, Class::Captured),
            (5..10, Class::Recipe),
            (10..15, Class::Captured),
            (15..20, Class::Recipe),
            (20..40, Class::Free),
            (40..90, Class::Captured),
            (90..100, Class::Recipe),
        ];
        assert_eq!(account.segments(), segments(wanted));
    }

    fn any_claim() -> impl Strategy<Value = (Range<u64>, Class)> {
        (0u64..300, 0u64..60, 0..Class::ALL.len())
            .prop_map(|(start, len, class)| (start..start + len, Class::ALL[class]))
    }

    proptest! {
        #[test]
        fn every_byte_is_in_exactly_one_class(
            claims in proptest::collection::vec(any_claim(), 0..40),
            len in 1u64..320,
            align in 1u64..9,
            places_max in 1usize..20,
            zeros in proptest::collection::vec((0u64..20, 1u64..20), 0..8),
        ) {
            let mut account = account(len, &claims, align, places_max);
            for recipe in [false, true] {
                if recipe {
                    let mut at = 0;
                    let next = |(gap, len): &(u64, u64)| { at += gap + len; DiskRange::new(at - len..at) };
                    let ranges: Vec<_> = zeros.iter().map(next).collect();
                    account.make_recipe(&ranges);
                }
                let mut at = DiskOffset(0);
                for (range, _) in account.segments() {
                    prop_assert_eq!(range.start, at);
                    prop_assert!(range.end > range.start);
                    at = range.end;
                }
                prop_assert_eq!(at, DiskOffset(len));
                prop_assert!(account.segments().windows(2).all(|pair| pair[0].1 != pair[1].1));
                let sum: u64 = Class::ALL.iter().map(|class| account.total(*class)).sum();
                prop_assert_eq!(sum, len);
            }
        }

        #[test]
        fn a_byte_is_in_the_first_class_that_is_claimed_or_captured(
            claims in proptest::collection::vec(any_claim(), 0..40),
            len in 1u64..320,
        ) {
            let account = account(len, &claims, 1, usize::MAX);
            for (range, class) in account.segments() {
                for byte in range.bytes() {
                    let claimed = claims.iter().filter(|(range, _)| range.contains(&byte)).map(|(_, class)| *class).min();
                    prop_assert_eq!(*class, claimed.unwrap_or(Class::Captured), "byte {}", byte);
                }
            }
        }
    }
}

//! Reading from a disk that has unreadable places.

use std::io;

use layout::{DiskOffset, DiskRange};

/// The advice if a source cannot be read.
pub(crate) const RESCUE_HINT: &str = "--rescue continues without what cannot be read, and records it";

/// The smallest stretch that is given up, in bytes: a sector of most current disks.
const LEAST: usize = 4096;

/// Most places that are recorded.
const PLACES_MAX: usize = 50_000;

/// Fills `buf` from byte `at` with `read`, halving unreadable stretches until only the unreadable places are left. They
/// become zeros, and are returned in ascending order.
pub(crate) fn read(
    buf: &mut [u8],
    at: DiskOffset,
    read: &impl Fn(&mut [u8], DiskOffset) -> io::Result<()>,
) -> Vec<DiskRange> {
    let at = at.0;
    let mut lost: Vec<DiskRange> = Vec::new();
    // An explicit stack with the front on top: no recursion on a disk that is bad everywhere.
    let mut todo = Vec::from([(0, buf.len())]);
    while let Some((from, to)) = todo.pop() {
        let range = from..to;
        let start = at + u64::try_from(range.start).expect("fits");
        let end = at + u64::try_from(range.end).expect("fits");
        if read(&mut buf[range.clone()], DiskOffset(start)).is_ok() {
            continue;
        }
        if range.len() <= LEAST {
            buf[range].fill(0);
            match lost.last_mut() {
                Some(last) if last.end.0 == start => last.end.0 = end,
                _ => lost.push(DiskRange::new(start..end)),
            }
            continue;
        }
        // Split at a multiple of the smallest stretch on the disk, so that both halves end at sector boundaries.
        let half = (start + (end - start) / 2) / LEAST as u64 * LEAST as u64;
        let middle = usize::try_from(half.max(start + 1).min(end - 1) - at).expect("inside");
        let middle = middle.clamp(range.start + 1, range.end - 1);
        todo.push((middle, to));
        todo.push((from, middle));
    }
    lost
}

/// Joins places that touch, and then those nearest to each other until a manifest has room for all. The bytes between
/// joined places then count as unreadable.
pub(crate) fn coalesce(lost: &mut Vec<DiskRange>) {
    let mut gap = 0;
    loop {
        lost.dedup_by(|next, last| {
            let is_near = next.start.0 - last.end.0 <= gap;
            if is_near {
                last.end = next.end;
            }
            is_near
        });
        if lost.len() <= PLACES_MAX {
            break;
        }
        gap = (gap * 2).max(LEAST as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn only_what_cannot_be_read_is_lost() {
        let bad = [40_960..45_056u64, 100_000..100_001];
        let calls = Cell::new(0);
        let disk = |buf: &mut [u8], at: DiskOffset| {
            calls.set(calls.get() + 1);
            let end = at.0 + buf.len() as u64;
            if bad.iter().any(|bad| bad.start < end && at.0 < bad.end) {
                return Err(io::Error::from_raw_os_error(5));
            }
            buf.fill(7);
            Ok(())
        };
        let mut buf = vec![0; 1 << 20];
        let lost = read(&mut buf, DiskOffset(8192), &disk);
        assert_eq!(lost, [40_960..45_056, 98_304..102_400].map(DiskRange::new));
        for (index, &byte) in buf.iter().enumerate() {
            let is_lost = lost.iter().any(|range| range.contains(DiskOffset(8192 + index as u64)));
            assert_eq!(byte, if is_lost { 0 } else { 7 }, "{index}");
        }
        assert!(calls.get() < 60, "{} reads", calls.get());
        assert_eq!(read(&mut buf[..100], DiskOffset(0), &disk), []);
        assert_eq!(read(&mut buf[..100], DiskOffset(100_000), &disk).len(), 1);
    }

    #[test]
    fn places_are_joined_when_there_are_too_many() {
        let place = |i: u64| DiskRange::new(i * 10_000..i * 10_000 + 4096);
        let places = |count| (0..count).map(place).collect::<Vec<_>>();
        let mut few = places(50_000);
        coalesce(&mut few);
        assert_eq!(few, places(50_000));
        let mut many = places(50_000);
        let [near, far] = [1_000_000_000..1_000_000_512, 1_000_008_000..1_000_009_000].map(DiskRange::new);
        many.extend([near, far]);
        coalesce(&mut many);
        assert!(many.len() <= PLACES_MAX && many.first().map(|place| place.start) == Some(DiskOffset(0)));
        assert_eq!(many.last().map(|place| place.end), Some(far.end));
    }

    #[test]
    fn a_disk_that_is_bad_all_over_ends() {
        let dead = |_: &mut [u8], _| Err(io::Error::from_raw_os_error(5));
        let mut buf = vec![9; 3 * LEAST + 17];
        let lost = read(&mut buf, DiskOffset(0), &dead);
        assert_eq!(lost, [DiskRange::new(0..3 * 4096 + 17)]);
        assert!(buf.iter().all(|&byte| byte == 0));
    }
}

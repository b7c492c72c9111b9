//! The bytes that are kept in memory, and on the disk only when the rest is proven: partition tables and boot code.

use std::sync::{Mutex, MutexGuard, PoisonError};

use layout::{DiskOffset, DiskRange, OnDisk};

/// Holds back the bytes of some ranges of the disk. At most 3 MiB in all, whatever the image.
#[derive(Debug)]
pub(crate) struct Deferred {
    ranges: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    range: DiskRange,
    bytes: Mutex<Vec<u8>>,
}

/// A stretch of one piece that is either held back or goes to the disk at once.
pub(crate) enum Part {
    Held(OnDisk),
    Disk(OnDisk),
}

impl Deferred {
    pub(crate) fn new(ranges: Vec<DiskRange>) -> Deferred {
        let held = |range: DiskRange| {
            let len = usize::try_from(range.len()).expect("a MiB");
            Held { range, bytes: Mutex::new(vec![0; len]) }
        };
        Deferred { ranges: ranges.into_iter().map(held).collect() }
    }

    /// The ranges of the disk that are held back.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = DiskRange> + '_ {
        self.ranges.iter().map(|held| held.range)
    }

    /// Cuts a stretch where held ranges begin and end; in order, covering it exactly.
    pub(crate) fn split(&self, whole: OnDisk) -> Vec<Part> {
        let mut parts = Vec::with_capacity(1);
        let mut rest = whole;
        while rest.len > 0 {
            let start = rest.disk;
            let end = DiskOffset(start.0 + rest.len);
            let hit = self.ranges.iter().find(|held| held.range.contains(start));
            let cut = match hit {
                Some(held) => held.range.end,
                None => self.ranges.iter().map(|held| held.range.start).filter(|&at| at > start).min().unwrap_or(end),
            };
            let (first, second) = cut_at(rest, cut.min(end).0 - start.0);
            parts.push(if hit.is_some() { Part::Held(first) } else { Part::Disk(first) });
            rest = second;
        }
        parts
    }

    /// Keeps `data`, which belongs at `at`; the whole of it has to be in one held range, as [`Deferred::split`] sees to.
    pub(crate) fn keep(&self, at: DiskOffset, data: &[u8]) {
        self.with(at, data.len(), |held| held.copy_from_slice(data));
    }

    /// Gives back what was kept at `at`.
    pub(crate) fn recall(&self, at: DiskOffset, buf: &mut [u8]) {
        self.with(at, buf.len(), |held| buf.copy_from_slice(held));
    }

    fn with(&self, at: DiskOffset, len: usize, use_it: impl FnOnce(&mut [u8])) {
        let held = self.ranges.iter().find(|held| held.range.contains(at));
        let held = held.expect("split only hands out parts inside a held range");
        let start = usize::try_from(at.0 - held.range.start.0).expect("a MiB");
        use_it(&mut lock(&held.bytes)[start..start + len]);
    }
}

/// A stretch's first `at` bytes, and the rest.
pub(crate) fn cut_at(whole: OnDisk, at: u64) -> (OnDisk, OnDisk) {
    let first = OnDisk { len: at, ..whole };
    let second = OnDisk {
        content: layout::ContentOffset(whole.content.0 + at),
        disk: DiskOffset(whole.disk.0 + at),
        len: whole.len - at,
    };
    (first, second)
}

/// The bytes are plain data: a thread that panicked while holding the lock cannot have left them half meaningful.
fn lock(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::ContentOffset;

    fn split(ranges: Vec<DiskRange>, disk: u64, len: u64) -> Vec<(bool, u64, u64)> {
        let whole = OnDisk { content: ContentOffset(1000), disk: DiskOffset(disk), len };
        let parts = Deferred::new(ranges).split(whole);
        let mut content = 1000;
        parts
            .into_iter()
            .map(|part| {
                let (is_held, part) = match part {
                    Part::Held(part) => (true, part),
                    Part::Disk(part) => (false, part),
                };
                assert_eq!(part.content.0, content, "in order, without gaps");
                content += part.len;
                (is_held, part.disk.0, part.len)
            })
            .collect()
    }

    #[test]
    fn stretches_are_cut_at_held_ranges() {
        let ranges = || [0..10, 90..100].map(DiskRange::new).to_vec();
        assert_eq!(split(ranges(), 0, 10), [(true, 0, 10)]);
        assert_eq!(split(ranges(), 5, 10), [(true, 5, 5), (false, 10, 5)]);
        assert_eq!(split(ranges(), 0, 120), [(true, 0, 10), (false, 10, 80), (true, 90, 10), (false, 100, 20)]);
        assert_eq!(split(ranges(), 20, 5), [(false, 20, 5)]);
        assert_eq!(split(vec![], 20, 5), [(false, 20, 5)]);
        assert_eq!(split(ranges(), 20, 0), []);
    }

    #[test]
    fn what_is_kept_comes_back() {
        let deferred = Deferred::new([0..10, 90..100].map(DiskRange::new).to_vec());
        deferred.keep(DiskOffset(92), &[1, 2, 3]);
        let mut buf = [9; 5];
        deferred.recall(DiskOffset(91), &mut buf);
        assert_eq!(buf, [0, 1, 2, 3, 0]);
    }
}

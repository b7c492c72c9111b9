//! Stretches that the image has as zeros and not as content: made zero where they are not, and read back.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::{Uncached, is_zero};
use layout::{DiskOffset, DiskRange, Layout};

use crate::store::DiskStore;

/// How much is looked at in one go, in bytes: as much as one direct read takes.
const LOOK_LEN: u64 = 1 << 20;
/// If anything is not zero, what follows is zeroed unseen up to this length, in bytes: looking at junk is slower than
/// zeroing it, and what is zero already should stay untouched. It is also the most that one call zeroes, since some disks
/// take seconds for more and nothing else gets through meanwhile.
const STRETCH_LEN: u64 = 64 << 20;

/// Zeroes what has to be zero and is not, giving way to the swarm's writes. Gives back what was written, ascending; a disk
/// that is zero there already is not written to. Blocks; ends early when `is_over`.
pub(crate) fn make_zeros(layout: &Layout, store: &DiskStore, is_over: &AtomicBool) -> io::Result<Vec<DiskRange>> {
    let mut written: Vec<DiskRange> = Vec::new();
    if layout.zeros().is_empty() {
        return Ok(written);
    }
    let ledger = store.ledger();
    let mut uncached = store.device().uncached()?;
    for stretch in layout.zeros().iter().flat_map(|range| cut(*range, STRETCH_LEN)) {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let found = first_not_zero(&mut uncached, stretch, || ledger.yield_to_writers());
        let start = match found {
            Ok(None) => continue,
            Ok(Some(start)) => start,
            // A sector that cannot be read may well be written: then the disk puts a spare one in its place.
            Err(cause) => {
                log::warn!("checking what the disk already holds: {cause}");
                stretch.start
            }
        };
        let writing = ledger.writing();
        store.make_unbootable()?;
        store.device().zero_out(start, stretch.end.0 - start.0)?;
        drop(writing);
        match written.last_mut() {
            Some(last) if last.end == start => last.end = stretch.end,
            _ => written.push(DiskRange { start, end: stretch.end }),
        }
    }
    Ok(written)
}

/// Flushes, and reads back from the medium what [`make_zeros`] has written; where it is not zero. Blocks; ends early when
/// `is_over`.
pub(crate) fn first_unkept(
    store: &DiskStore,
    written: &[DiskRange],
    is_over: &AtomicBool,
) -> io::Result<Option<DiskOffset>> {
    if written.is_empty() {
        return Ok(None);
    }
    store.device().flush()?;
    let mut uncached = store.device().uncached()?;
    for stretch in written.iter().flat_map(|range| cut(*range, STRETCH_LEN)) {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        if let Some(disk_offset) = first_not_zero(&mut uncached, stretch, || ())? {
            return Ok(Some(disk_offset));
        }
    }
    Ok(None)
}

/// Where the first part of at most [`LOOK_LEN`] starts that is not all zeros. `pause` is called before every read.
fn first_not_zero(
    uncached: &mut Uncached,
    range: DiskRange,
    mut pause: impl FnMut(),
) -> io::Result<Option<DiskOffset>> {
    for part in cut(range, LOOK_LEN) {
        pause();
        let mut is_all_zero = true;
        uncached.read(part.start, part.len(), |bytes| is_all_zero &= is_zero(bytes))?;
        if !is_all_zero {
            return Ok(Some(part.start));
        }
    }
    Ok(None)
}

/// Cuts a range into parts of at most `most` bytes.
fn cut(range: DiskRange, most: u64) -> impl Iterator<Item = DiskRange> {
    let DiskRange { mut start, end } = range;
    std::iter::from_fn(move || {
        let part = DiskRange { start, end: end.min(DiskOffset(start.0.saturating_add(most))) };
        start = part.end;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    #[test]
    fn cuts_cover_the_range() {
        let parts = |range| cut(DiskRange::new(range), 10).map(DiskRange::bytes).collect::<Vec<_>>();
        assert_eq!(parts(5..5), []);
        assert_eq!(parts(5..15), [Range { start: 5, end: 15 }]);
        assert_eq!(parts(5..16), [5..15, 15..16]);
    }
}

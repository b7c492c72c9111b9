//! The last steps: swap areas, then the sectors that make the disk bootable, fitted to this disk and all read back.

use std::io;

use layout::parttable::adapt::{Adapted, Grow, Grown, Original, Wish, adapt, revert};
use layout::parttable::stamp::Stamp;
use layout::{DiskOffset, DiskRange, Layout};
use metainfo::Metainfo;

use crate::stamp::{DueStamp, due, remove_stamps};
use crate::store::DiskStore;
use crate::swap::swap_page;
use crate::write::{Write, first_wrong};

/// How the last steps went.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    /// Where on the disk something reads back wrong.
    pub(crate) wrong_at: Option<DiskOffset>,
    /// The partition that uses the space of a larger disk.
    pub(crate) grown: Option<Grown>,
    /// What could not be done as wished, in words.
    pub(crate) warnings: Vec<String>,
    /// The stamp that has not been written, because the partition's file system has still to be grown.
    pub(crate) due_stamp: Option<DueStamp>,
}

/// Writes the image's deferred bytes and swap areas, flushes, and reads them back. If the disk holds them already, and
/// nothing else has been written, it is left alone. The stamp comes last.
pub(crate) fn finish(
    meta: &Metainfo,
    layout: &Layout,
    store: &DiskStore,
    wish: &Wish,
    stamp: Option<&Stamp>,
) -> io::Result<Finished> {
    let swap = meta.facts.iter().flat_map(|facts| &facts.swap).map(swap_page).collect::<Result<Vec<_>, _>>();
    let swap = swap.map_err(io::Error::other)?;
    let mut finished = Finished::default();
    let table = table_writes(layout, store, wish, &mut finished);

    let device = store.device();
    if store.is_unbootable() || first_wrong(device, swap.iter().chain(&table))?.is_some() {
        store.make_unbootable()?;
        for writes in [&swap, &table] {
            writes.iter().try_for_each(|(at, bytes)| device.write_all_at(bytes, *at))?;
            device.flush()?;
        }
        finished.wrong_at = first_wrong(device, swap.iter().chain(&table))?;
    }
    if let Some(stamp) = stamp.filter(|_| finished.wrong_at.is_none()) {
        match due(store, meta, stamp, &table) {
            Err(why) => finished.warnings.push(format!("no stamp is on the disk: {why}")),
            Ok(due) if finished.grown.is_some() => finished.due_stamp = Some(due),
            Ok(due) => leave_stamp(store, &due, &mut finished)?,
        }
    }
    Ok(finished)
}

/// Puts the stamp on the disk, if it is not there. A disk without one is no worse a clone.
fn leave_stamp(store: &DiskStore, due: &DueStamp, finished: &mut Finished) -> io::Result<()> {
    let device = store.device();
    if due.is_on(device).unwrap_or(false) {
        return Ok(());
    }
    let write = || {
        let written = remove_stamps(store).and_then(|()| due.write(device));
        if let Err(cause) = written {
            finished.warnings.push(format!("no stamp is on the disk: {cause}"));
        }
        Ok(())
    };
    // Nothing else may have been written before.
    store.with_permission(write)
}

/// What belongs into the deferred ranges of this disk: the image's bytes, the partition table fitted to it.
fn table_writes(layout: &Layout, store: &DiskStore, wish: &Wish, finished: &mut Finished) -> Vec<Write> {
    let mut writes: Vec<Write> = store.held().into_iter().map(|range| (range.start, recall(store, range))).collect();
    let Some(adapted) = adapted(layout, store, wish, finished) else { return writes };
    for (at, bytes) in &mut writes {
        // Both begin and end at the same ranges: a write is inside the head or outside of it.
        let at = usize::try_from(at.0).unwrap_or(usize::MAX);
        if let Some(head) = adapted.head.get(at..at.saturating_add(bytes.len())) {
            bytes.copy_from_slice(head);
        }
    }
    // The image's own backup table means nothing here; where it was stays zero.
    if let Some(stale) = adapted.stale {
        writes = writes.into_iter().flat_map(|write| without(write, stale)).collect();
    }
    // A tail may touch what the image has at its end, so it comes last.
    if let Some((at, bytes)) = adapted.tail {
        writes.iter_mut().for_each(|write| overlay(write, at, &bytes));
        writes.push((at, bytes));
    }
    finished.grown = adapted.grown;
    writes
}

fn adapted(layout: &Layout, store: &DiskStore, wish: &Wish, finished: &mut Finished) -> Option<Adapted> {
    let sector_size = layout.sector_size()?;
    let head = recall(store, store.deferred().ranges().next()?);
    let (image_len, device_len) = (layout.disk_size(), store.device().len());
    let fit = |wish: &Wish| adapt(&head, layout.table(), sector_size, image_len, device_len, wish);
    let result = fit(wish).or_else(|cause| {
        // A wish that cannot be had is no reason to leave the table unfitted.
        if wish.grow == Grow::No {
            return Err(cause);
        }
        finished.warnings.push(format!("no partition was grown: {cause}"));
        fit(&Wish { grow: Grow::No, ..wish.clone() })
    });
    result
        .map_err(|cause| finished.warnings.push(format!("the partition table stays as the image has it: {cause}")))
        .ok()
}

/// Loads what the disk has in the deferred ranges, the table as the image would have it, so that an image can be recognised
/// on a disk that it was fitted to. What cannot be read stays zero.
pub(crate) fn load_deferred(layout: &Layout, store: &DiskStore) {
    let ranges: Vec<_> = store.deferred().ranges().collect();
    for range in &ranges {
        let mut bytes = vec![0; usize::try_from(range.len()).expect("a few MiB")];
        match store.device().read_exact_at(&mut bytes, range.start) {
            Ok(()) => store.deferred().keep(range.start, &bytes),
            Err(cause) => log::warn!("checking what the disk already holds: {cause}"),
        }
    }
    let (Some(sector_size), Some(head)) = (layout.sector_size(), ranges.first()) else { return };
    let head = recall(store, *head);
    let (image_len, device_len) = (layout.disk_size(), store.device().len());
    // Whatever else is on the disk has no way back, and will not be recognised.
    let Ok(image) = revert(&head, layout.table(), sector_size, device_len, image_len, &Original::default()) else {
        return;
    };
    let tail = image.tail.into_iter().filter(|(at, bytes)| {
        let end = at.0 + u64::try_from(bytes.len()).expect("fits");
        ranges.iter().any(|range| range.start <= *at && end <= range.end.0)
    });
    for (at, bytes) in [(DiskOffset(0), image.head)].into_iter().chain(tail) {
        store.deferred().keep(at, &bytes);
    }
}

fn recall(store: &DiskStore, range: DiskRange) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(range.len()).expect("a few MiB")];
    store.deferred().recall(range.start, &mut bytes);
    bytes
}

/// What is left of a write outside of a range.
fn without((at, bytes): Write, range: DiskRange) -> Vec<Write> {
    let end = DiskOffset(at.0 + u64::try_from(bytes.len()).expect("fits"));
    let cut = |from: DiskOffset, to: DiskOffset| {
        let index = |offset: DiskOffset| usize::try_from(offset.0 - at.0).expect("inside the write");
        (from < to).then(|| (from, bytes[index(from)..index(to)].to_vec()))
    };
    [cut(at, end.min(range.start.max(at))), cut(at.max(range.end.min(end)), end)].into_iter().flatten().collect()
}

/// Puts `bytes` for `at` over what a write has there.
fn overlay((start, under): &mut Write, at: DiskOffset, bytes: &[u8]) {
    for (offset, &byte) in (at.0..).zip(bytes) {
        let index = offset.checked_sub(start.0).and_then(|index| usize::try_from(index).ok());
        if let Some(under) = index.and_then(|index| under.get_mut(index)) {
            *under = byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_out_of_a_write() {
        let write = || (DiskOffset(10), (10..20).collect::<Vec<u8>>());
        let without = |range| without(write(), DiskRange::new(range));
        let left = |range| without(range).into_iter().map(|(at, bytes)| (at.0, bytes.len())).collect::<Vec<_>>();
        assert_eq!(left(0..10), [(10, 10)]);
        assert_eq!(left(20..30), [(10, 10)]);
        assert_eq!(left(0..12), [(12, 8)]);
        assert_eq!(left(18..30), [(10, 8)]);
        assert_eq!(left(12..14), [(10, 2), (14, 6)]);
        assert_eq!(left(0..30), []);
        assert_eq!(without(12..14)[1].1[0], 14);
    }

    #[test]
    fn an_overlay_covers_what_it_touches() {
        let mut write = (DiskOffset(10), vec![0; 4]);
        overlay(&mut write, DiskOffset(12), &[1, 1, 1, 1]);
        overlay(&mut write, DiskOffset(8), &[2, 2, 2]);
        overlay(&mut write, DiskOffset(99), &[3]);
        assert_eq!(write.1, [2, 0, 1, 1]);
    }
}

//! The last steps: swap areas, then the sectors that make the disk bootable, all read back.

use std::io;

use blockdev::Device;
use layout::DiskOffset;
use metainfo::Metainfo;

use crate::store::DiskStore;
use crate::swap::swap_page;

/// Bytes for the disk and where they belong.
type Write = (u64, Vec<u8>);

/// Writes the image's deferred bytes and swap areas, flushes, and reads them back. If the disk holds them already, and
/// nothing else has been written, it is left alone. `Some` is the disk offset of what reads back wrong.
pub(crate) fn finish(meta: &Metainfo, store: &DiskStore) -> io::Result<Option<u64>> {
    let swap = meta.facts.iter().flat_map(|facts| &facts.swap).map(swap_page).collect::<Result<Vec<_>, _>>();
    let swap = swap.map_err(io::Error::other)?;
    let held = store.held().into_iter().map(|range| {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).expect("a few MiB")];
        store.deferred().recall(DiskOffset(range.start), &mut bytes);
        (range.start, bytes)
    });
    let table: Vec<Write> = held.collect();

    let device = store.device();
    if !store.is_unbootable() && first_wrong(device, swap.iter().chain(&table))?.is_none() {
        return Ok(None);
    }
    store.make_unbootable()?;
    for writes in [&swap, &table] {
        writes.iter().try_for_each(|(at, bytes)| device.write_all_at(bytes, DiskOffset(*at)))?;
        device.flush()?;
    }
    first_wrong(device, swap.iter().chain(&table))
}

/// Reads from the medium; where the first of the writes is that is not there.
fn first_wrong<'a>(device: &Device, writes: impl Iterator<Item = &'a Write>) -> io::Result<Option<u64>> {
    let mut uncached = device.uncached()?;
    for (at, wanted) in writes {
        let mut found = Vec::with_capacity(wanted.len());
        uncached.read(DiskOffset(*at), u64::try_from(wanted.len()).expect("fits"), |bytes| {
            found.extend_from_slice(bytes);
        })?;
        if found != *wanted {
            return Ok(Some(*at));
        }
    }
    Ok(None)
}

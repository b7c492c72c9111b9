//! Stamps on disks: found, taken away before the first write, and left when everything is proven.

use std::io;

use blockdev::Device;
use layout::parttable::stamp::{STAMP_LEN, Stamp, looks_like_stamp, place, windows};
use layout::{DiskOffset, DiskRange};
use metainfo::{Metainfo, TableKind};

use crate::store::DiskStore;
use crate::write::{Write, first_wrong};

/// What is read at once, in bytes, where a larger part cannot be read: a bad sector hides its neighbours only.
const LOOK_LEN: u64 = 4096;

/// A stamp that is due, and its sector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueStamp {
    at: DiskOffset,
    sector: Vec<u8>,
}

impl DueStamp {
    /// Writes it, flushes, and reads it back from the medium.
    ///
    /// # Errors
    /// The kernel's; or that it does not read back.
    pub fn write(&self, device: &Device) -> io::Result<()> {
        device.write_all_at(&self.sector, self.at)?;
        device.flush()?;
        if self.is_on(device)? {
            return Ok(());
        }
        Err(io::Error::other(format!("what was written at offset {} does not read back", self.at)))
    }

    pub(crate) fn is_on(&self, device: &Device) -> io::Result<bool> {
        Ok(first_wrong(device, [(self.at, self.sector.clone())].iter())?.is_none())
    }
}

/// Whether a disk carries this stamp, and has not been emptied since. Reads only; blocks. What cannot be read has none.
pub fn is_stamped(device: &Device, stamp: &Stamp, table: TableKind) -> bool {
    let mut first = [0; STAMP_LEN];
    // Who zeroes the start of a disk wants to begin again.
    let mut is_emptied = || device.read_exact_at(&mut first, DiskOffset(0)).is_err() || blockdev::is_zero(&first);
    if table != TableKind::None && is_emptied() {
        return false;
    }
    let mut is_found = false;
    each_sector(device, |at, sector| {
        is_found |= Stamp::from_record(sector, at, device.len()).as_ref() == Some(stamp);
    });
    is_found
}

/// Takes every stamp off the disk that does not lie where the image has something: that will be what the image has.
pub(crate) fn remove_stamps(store: &DiskStore) -> io::Result<()> {
    let device = store.device();
    let mut found = Vec::new();
    each_sector(device, |at, sector| {
        let len = u64::try_from(STAMP_LEN).expect("512");
        let range = DiskRange::new(at.0..at.0 + len);
        if looks_like_stamp(sector) && !store.layout().touches(range) {
            found.push(at);
        }
    });
    found.iter().try_for_each(|at| device.write_all_at(&[0; STAMP_LEN], *at))?;
    if found.is_empty() { Ok(()) } else { device.flush() }
}

/// The stamp for this disk; an error is why there is none, in words. `table` are the bytes that the deferred ranges of the
/// disk are going to have, and where.
pub(crate) fn due(store: &DiskStore, meta: &Metainfo, stamp: &Stamp, table: &[Write]) -> Result<DueStamp, String> {
    let (device, layout) = (store.device(), store.layout());
    let swap = meta.facts.iter().flat_map(|facts| &facts.swap);
    let swap: Vec<_> = swap.map(|swap| DiskRange::new(swap.offset..swap.offset.saturating_add(swap.length))).collect();
    let mut parts: Vec<(u64, &[u8])> = table.iter().map(|(at, bytes)| (at.0, bytes.as_slice())).collect();
    parts.sort_by_key(|(at, _)| *at);
    let sector_size = device.sector_size().or(layout.sector_size()).unwrap_or(512);
    let found = place(layout, &swap, parts, sector_size, device.len());
    let found = found.ok_or("the disk has no free sector outside of image and partitions")?;
    let record = stamp.to_record(found.start, device.len());
    let record = record.ok_or("the deployment's id has more bytes than a stamp has room for")?;
    let mut sector = record.to_vec();
    sector.resize(usize::try_from(found.len()).expect("a sector"), 0);
    Ok(DueStamp { at: found.start, sector })
}

/// Reads the places where stamps may be, 512 bytes at a time.
fn each_sector(device: &Device, mut each: impl FnMut(DiskOffset, &[u8])) {
    for window in windows(device.len()) {
        let mut bytes = vec![0; usize::try_from(window.len()).expect("a MiB")];
        if device.read_exact_at(&mut bytes, window.start).is_err() {
            let mut at = window.start.0;
            for part in bytes.chunks_mut(usize::try_from(LOOK_LEN).expect("4096")) {
                if device.read_exact_at(part, DiskOffset(at)).is_err() {
                    part.fill(0);
                }
                at += LOOK_LEN;
            }
        }
        let steps = (window.start.0..).step_by(STAMP_LEN);
        steps.zip(bytes.chunks_exact(STAMP_LEN)).for_each(|(at, sector)| each(DiskOffset(at), sector));
    }
}

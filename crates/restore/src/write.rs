//! Bytes that are written by themselves, beside the pieces.

use std::io;

use blockdev::Device;
use layout::DiskOffset;

/// Bytes for the disk and where they belong.
pub(crate) type Write = (DiskOffset, Vec<u8>);

/// Reads from the medium; where the first of the writes is that is not there.
pub(crate) fn first_wrong<'a>(
    device: &Device,
    writes: impl Iterator<Item = &'a Write>,
) -> io::Result<Option<DiskOffset>> {
    let mut uncached = device.uncached()?;
    for (at, wanted) in writes {
        let mut found = Vec::with_capacity(wanted.len());
        uncached.read(*at, u64::try_from(wanted.len()).expect("fits"), |bytes| {
            found.extend_from_slice(bytes);
        })?;
        if found != *wanted {
            return Ok(Some(*at));
        }
    }
    Ok(None)
}

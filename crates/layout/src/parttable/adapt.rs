//! Fits an image's partition table to a disk of another size.
//!
//! [`adapt`] takes the first bytes of an image and returns what belongs there, and at the end of the disk, on a device
//! that is larger or a little smaller than the captured disk. [`revert`] is the way back, so that an image can be
//! recognised on a disk it was adapted to. Only fields that have to change do: boot code, names, attributes and
//! everything else in between stay byte for byte.
//!
//! The input is hostile until [`Table::read`] has checked it. The output is read by it once more, so that nothing is
//! written that a capture would refuse.

mod gpt;
mod job;
mod mbr;

pub use job::{ALIGN, AdaptError, Adapted, Grow, GrowError, Grown, Original, Wish};
use job::{Job, Resize, len_of};
pub(super) use job::{Sparse, is_sector_size};

use metainfo::TableKind;

use super::table::TableError;

/// Fits an image's table to a device.
///
/// `head` is the start of the image: one MiB, or all of a smaller disk. `kind`, `sector_size` and `image_disk_len` come
/// from the image's facts. Lengths are in bytes; only whole sectors of `device_len` count. On a device as large as the
/// captured disk and without a wish, nothing changes and nothing is read.
///
/// A GPT's backup moves to the end of the device, and its last usable sector keeps its distance to the end. The
/// protective entry of the MBR covers the new disk, unless it never covered the old one (a hybrid). An MBR does not
/// depend on the size of its disk. A partition that grows ends at a full MiB: before the next partition, or before the
/// end of the usable space. If less than one MiB is free after the last partition, it stays as it is, which is no
/// error.
///
/// Partitions may overlap, and one may be cut off at the end of the captured disk. On a larger device it is whole
/// again; the part that the image lacks holds whatever the device has there.
///
/// # Errors
/// [`AdaptError`] if the table is damaged, does not fit, or the wish cannot be fulfilled.
pub fn adapt(
    head: &[u8],
    kind: TableKind,
    sector_size: u32,
    image_disk_len: u64,
    device_len: u64,
    wish: &Wish,
) -> Result<Adapted, AdaptError> {
    let resize = match wish.grow {
        Grow::No => Resize::No,
        Grow::Last => Resize::Last,
        Grow::Number(number) => Resize::Number(number),
    };
    let job = Job {
        head,
        sector_size,
        from_len: image_disk_len,
        to_len: device_len,
        resize,
        disk_id: wish.new_disk_id,
        is_back: false,
    };
    run(&job, kind)
}

/// The way back: what the image has where the device now has `head`, and at the end of its disk.
///
/// `original` is the [`Adapted::original`] that [`adapt`] returned. The result is exact for tables whose backup is at
/// the end of the captured disk, where every tool puts it; a GPT with a partition that is cut off is not such a table.
/// Only a hash can tell whether the result is right, because the device may hold anything. One thing is a guess:
/// Windows writes 2^32 - 1 sectors into the protective MBR of any disk, and on a larger device that cannot be
/// distinguished from the true number.
///
/// # Errors
/// [`AdaptError`] if the data on the device cannot be this image.
pub fn revert(
    head: &[u8],
    kind: TableKind,
    sector_size: u32,
    device_len: u64,
    image_disk_len: u64,
    original: &Original,
) -> Result<Adapted, AdaptError> {
    let resize = original.grown.map_or(Resize::No, |(number, len)| Resize::To(number, len));
    let job = Job {
        head,
        sector_size,
        from_len: device_len,
        to_len: image_disk_len,
        resize,
        disk_id: original.disk_id,
        is_back: true,
    };
    run(&job, kind)
}

fn run(job: &Job<'_>, kind: TableKind) -> Result<Adapted, AdaptError> {
    let has_wish = job.resize != Resize::No || job.disk_id.is_some();
    if !has_wish && (job.from_len == job.to_len || kind == TableKind::None) {
        return Ok(job.unchanged());
    }
    if !is_sector_size(job.sector_size) {
        return Err(TableError::SectorSize(job.sector_size).into());
    }
    let head_len = len_of(job.head);
    if head_len > job.from_len {
        return Err(AdaptError::Head { head_len, disk_len: job.from_len });
    }
    if head_len > job.to_len {
        return Err(AdaptError::TooSmall { needed: head_len, device: job.to_len });
    }
    match kind {
        TableKind::Gpt => gpt::adapt(job),
        TableKind::Mbr => mbr::adapt(job),
        TableKind::None => Err(AdaptError::NoTable),
    }
}

#[cfg(test)]
mod tests;

//! Disks: opened exclusively, written at given offsets with every result checked, flushed, and read past the page
//! cache.
//!
//! A regular file can stand for a disk. All calls block, so run them on a thread that may block.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

mod aligned;
mod device;
mod ffi;
pub mod inventory;

use std::fs::File;
use std::io;

pub use aligned::{ALIGN, AlignedBuf};
pub use device::{Device, DeviceError, Uncached, is_zero};

/// Grows the mounted ext4 with this root directory to the given number of its blocks (`EXT4_IOC_RESIZE_FS`).
///
/// # Errors
/// The kernel's: the partition is smaller, or the file system cannot grow so far.
pub fn grow_ext4(root: &File, blocks: u64) -> io::Result<()> {
    ffi::ext4_resize(root, blocks)
}

//! Disks: opened exclusively, written at positions with every result checked, flushed, and read past the page cache.
//!
//! A regular file can stand for a disk. All calls block; run them on a thread that may.

mod aligned;
mod device;
mod ffi;
pub mod inventory;

pub use device::{Device, DeviceError, Uncached};

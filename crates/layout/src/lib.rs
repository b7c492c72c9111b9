//! Where an image's content lies on the disk.
//!
//! An image is one flat string of bytes: the disk's extents, ascending, concatenated. A torrent's files name them by
//! disk offset. [`Layout`] checks that once, when the torrent is loaded; after that, a content offset becomes a disk
//! offset by binary search, never from text. Pure: it touches no device.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

pub mod account;
pub mod contents;
mod extent;
mod mapping;
pub mod parttable;

pub use extent::{DiskOffset, DiskRange, Extent, ExtentSet};
pub use mapping::{ContentOffset, Layout, LayoutError, OnDisk, deferred};

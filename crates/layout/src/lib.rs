//! Where an image's content lives on the disk.
//!
//! An image is one flat string of bytes: the disk's extents, ascending, concatenated. A torrent's files name them by
//! disk offset; [`Layout`] checks that once, when the torrent is loaded, and from then on a content offset becomes a
//! disk offset by binary search, never from text. Pure: no device is touched here.

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

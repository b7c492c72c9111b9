//! Captures and imports with the real tools: mkfs, partclone, blkid, sfdisk.
//!
//! No root is needed; what root alone can test is skipped with the reason on standard error.

mod clonezilla;
mod containers;
mod disk_images;
mod disks;
mod import;
mod live;
mod refusals;
mod tools;
mod zeros;

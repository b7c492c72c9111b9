//! Captures and imports with the real tools: mkfs, partclone, blkid, sfdisk.
//!
//! No root is needed; what root alone can test is skipped with the reason on standard error.

mod clonezilla;
mod compression;
mod containers;
mod disk_images;
mod disks;
mod import;
mod live;
mod odd_disks;
mod odd_tables;
mod refusals;
mod scale;
mod steady;
mod tools;
mod zeros;

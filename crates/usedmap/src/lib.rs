//! Finds which bytes of a volume are in use, for file systems that Debian's partclone does not know. For those that it
//! knows, finds facts that a map of their used blocks has to agree with ([`landmarks`]).
//!
//! Each reader takes the volume as `Read + Seek` with a length, and reads only the maps of free space. All readers
//! follow one rule: **when unsure, more is copied, never less.** A group whose map fails its checks is copied whole,
//! and a note says so. A volume whose superblock makes no sense, or whose maps contradict its own sums, is an error,
//! and the caller copies every byte. Each number in a volume is checked against the volume's length before it is used,
//! so no volume can make a reader panic, loop or allocate without bound.
//!
//! Nothing here decides whether a volume may be captured; the caller judges [`Used::is_clean`]. Written from the
//! formats' public headers and documentation. Pure: all I/O goes through the given reader.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

mod jfs;
mod landmarks;
mod lvm2;
mod nilfs2;
mod ranges;
mod reiserfs;
mod swap;
mod ufs;
mod used;
mod volume;

use std::io::{self, Read, Seek};

pub use landmarks::{Landmarks, Mirror, landmarks};
pub use ranges::Ranges;
pub use used::{Used, UsedError};
use volume::Volume;

/// A kind of volume that this crate can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// IBM's JFS as on Linux, with 4 KiB blocks.
    Jfs,
    /// NILFS2.
    Nilfs2,
    /// ReiserFS 3.5 and 3.6.
    Reiserfs,
    /// UFS1 and UFS2, of either byte order.
    Ufs,
    /// An LVM2 physical volume: its extents, whatever they contain.
    Lvm2,
    /// Swap space of Linux, of any page size and byte order.
    Swap,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 6] = [Kind::Jfs, Kind::Nilfs2, Kind::Reiserfs, Kind::Ufs, Kind::Lvm2, Kind::Swap];

    /// Its name in `blkid`. A caller should trust a signature only if both agree: a disk that was formatted again may
    /// still carry the signature of its earlier contents.
    pub fn blkid_name(self) -> &'static str {
        match self {
            Kind::Jfs => "jfs",
            Kind::Nilfs2 => "nilfs2",
            Kind::Reiserfs => "reiserfs",
            Kind::Ufs => "ufs",
            Kind::Lvm2 => "LVM2_member",
            Kind::Swap => "swap",
        }
    }

    /// The kind with this name in `blkid`.
    pub fn from_blkid_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.blkid_name() == name)
    }
}

/// The kind of this volume, by its signature alone; `None` if it is none of these, or if it has the signatures of
/// several.
///
/// # Errors
/// If the source cannot be read.
pub fn detect(source: &mut (impl Read + Seek), len: u64) -> io::Result<Option<Kind>> {
    let mut volume = Volume::new(source, len, "unknown");
    let mut found = None;
    for kind in Kind::ALL {
        let is_it = match kind {
            Kind::Jfs => jfs::detect(&mut volume),
            Kind::Nilfs2 => nilfs2::detect(&mut volume),
            Kind::Reiserfs => reiserfs::detect(&mut volume),
            Kind::Ufs => ufs::detect(&mut volume),
            Kind::Lvm2 => lvm2::detect(&mut volume),
            Kind::Swap => swap::detect(&mut volume),
        };
        match is_it {
            Ok(false) | Err(UsedError::Damaged { .. } | UsedError::Unsupported { .. }) => {}
            Ok(true) if found.is_none() => found = Some(kind),
            Ok(true) => return Ok(None),
            Err(UsedError::Read { source, .. }) => return Err(source),
        }
    }
    Ok(found)
}

/// The used bytes of a volume of this kind that is `len` bytes long.
///
/// # Errors
/// If the volume cannot be read, makes no sense, or has a feature that the reader does not know. The caller then copies
/// all of it.
pub fn used(kind: Kind, source: &mut (impl Read + Seek), len: u64) -> Result<Used, UsedError> {
    let mut volume = Volume::new(source, len, kind.blkid_name());
    match kind {
        Kind::Jfs => jfs::used(&mut volume),
        Kind::Nilfs2 => nilfs2::used(&mut volume),
        Kind::Reiserfs => reiserfs::used(&mut volume),
        Kind::Ufs => ufs::used(&mut volume),
        Kind::Lvm2 => lvm2::used(&mut volume),
        Kind::Swap => swap::used(&mut volume),
    }
}

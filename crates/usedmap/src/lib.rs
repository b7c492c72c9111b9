//! Which bytes of a volume are in use, for file systems that Debian's partclone does not know; and for those that it
//! does know, what a map of their used blocks has to agree with ([`landmarks`]).
//!
//! Each reader takes the volume as `Read + Seek` with a length and looks at nothing but the maps of free space. All of
//! them follow one rule: **when unsure, more is copied, never less.** A group whose map fails its checks is copied whole
//! and a note says so; a volume whose superblock makes no sense, or whose maps contradict its own sums, is an error, and
//! the caller copies every byte. What a volume says about itself is compared with its length before it is believed, so
//! no volume can make a reader panic, loop or allocate without bound.
//!
//! Nothing here decides whether a volume may be captured: [`Used::is_clean`] is for the caller to judge. Written from
//! the formats' public headers and documentation; pure, so there is no I/O but through the reader given.

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
    /// IBM's JFS as Linux has it: 4 KiB blocks.
    Jfs,
    /// NILFS2.
    Nilfs2,
    /// ReiserFS 3.5 and 3.6.
    Reiserfs,
    /// UFS1 and UFS2, of either byte order.
    Ufs,
    /// An LVM2 physical volume: extents, whatever is in them.
    Lvm2,
    /// Swap space of Linux, of any page size and byte order.
    Swap,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 6] = [Kind::Jfs, Kind::Nilfs2, Kind::Reiserfs, Kind::Ufs, Kind::Lvm2, Kind::Swap];

    /// What `blkid` calls it. A caller should believe a signature only if both agree: a disk that was formatted anew
    /// may still carry the signature of what was there before.
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

    /// The kind that `blkid` calls by this name.
    pub fn from_blkid_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.blkid_name() == name)
    }
}

/// Which kind of volume this is, by its signature alone; `None` if it is none of these, or if it has the signatures of
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

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

mod jfs;
mod landmarks;
mod lvm2;
mod nilfs2;
mod ranges;
mod reiserfs;
mod swap;
mod ufs;
mod volume;

use std::io::{self, Read, Seek};
use std::ops::Range;

use thiserror::Error;

pub use landmarks::{Landmarks, Mirror, landmarks};
pub use ranges::Ranges;
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

/// The used bytes of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Byte ranges: ascending, disjoint, coalesced, inside the volume, never empty. A few may be behind `spans`: copies
    /// of superblocks.
    pub ranges: Vec<Range<u64>>,
    /// Bytes from the start of the volume that the maps speak for; what lies behind is for the caller to look at. At
    /// most the volume's length.
    pub spans: u64,
    /// Unit in which the volume gives out space, in bytes.
    pub block_size: u32,
    /// Whether it was unmounted cleanly; `None` if this kind of volume does not know. If it was not, its maps may be
    /// behind its files, and `ranges` is the whole volume.
    pub is_clean: Option<bool>,
    /// What a person should hear: groups copied whole, and why.
    pub notes: Vec<String>,
}

impl Used {
    /// How many bytes are used.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// All of a volume that was not unmounted cleanly.
    fn whole_of_unclean(len: u64, block_size: u32) -> Used {
        let ranges = std::iter::once(0..len).collect();
        let notes = vec!["it was not unmounted cleanly, so all of it counts as used".to_owned()];
        Used { ranges, spans: len, block_size, is_clean: Some(false), notes }
    }

    /// Whether no byte is used, which no reader ever says.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// Why the used bytes are not known. Whatever it is: copy the whole volume.
#[derive(Debug, Error)]
pub enum UsedError {
    /// The source could not be read.
    #[error("reading {len} bytes at byte {offset}")]
    Read {
        /// Where in the volume.
        offset: u64,
        /// How many bytes.
        len: usize,
        /// What the source said.
        source: io::Error,
    },
    /// The volume contradicts itself or its length.
    #[error("the {kind} volume makes no sense: {what}")]
    Damaged {
        /// As `blkid` calls it.
        kind: &'static str,
        /// What contradicts what.
        what: String,
    },
    /// A variant that this reader does not know.
    #[error("this {kind} volume is not understood: {what}")]
    Unsupported {
        /// As `blkid` calls it.
        kind: &'static str,
        /// What is not known.
        what: String,
    },
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

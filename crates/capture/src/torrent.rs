//! The torrent of an image.

use anyhow::{Context, ensure};
use layout::Layout;
use metainfo::{FileEntry, ImageFacts, NewTorrent, PieceHash, TORRENT_LEN_MAX};

/// `info.name` of every image. It is part of the infohash, and the same disk must have the same infohash whatever the
/// image is called.
const TORRENT_NAME: &str = "root";
/// Most bytes that an extent takes in a torrent, with its length and its offset in 32 digits.
const EXTENT_LEN: u64 = 80;

/// The torrent of an image: one file per extent, private, no announce URL (clients use the server they booted from).
///
/// # Errors
/// If the result cannot be read back.
pub(crate) fn torrent(
    layout: &Layout,
    piece_len: u32,
    hashes: Vec<PieceHash>,
    facts: ImageFacts,
) -> anyhow::Result<Vec<u8>> {
    let file =
        |extent: &layout::Extent| FileEntry { length: extent.len, path: vec![format!("{:032x}", extent.disk.0)] };
    let torrent = NewTorrent {
        name: TORRENT_NAME.to_owned(),
        announce: None,
        piece_len,
        files: layout.extents().iter().map(file).collect(),
        hashes,
        facts: Some(facts),
        private: true,
    };
    torrent.to_bytes().context("making the torrent")
}

/// Checks that machines accept a torrent of this many extents and pieces. If it fails, it would fail for more extents
/// too.
///
/// # Errors
/// The error says what to do.
pub(crate) fn check_torrent_len(extents: usize, pieces: u32) -> anyhow::Result<()> {
    let len = (extents as u64).saturating_mul(EXTENT_LEN).saturating_add(u64::from(pieces) * 20);
    ensure!(
        len <= TORRENT_LEN_MAX,
        "the blocks in use lie in {extents} places or more, too many for a torrent of {}, the longest that machines take: \
         defragment it, or copy it whole (`ezio capture --whole` for a disk, --at-own-risk for an import)",
        units::size(TORRENT_LEN_MAX)
    );
    Ok(())
}

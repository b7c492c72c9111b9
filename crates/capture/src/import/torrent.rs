//! An EZIO `.torrent` and the files it describes become an image with the same infohash.

use std::path::Path;

use anyhow::{Context, ensure};
use layout::Layout;
use metainfo::{Metainfo, PieceIndex};
use swarm::Storage;

use super::copying::{Copying, HowToCopy};
use super::new_image::NewImage;
use crate::made_up::{DraftContent, made_up};
use library::Image;
use library::content::{BtFiles, FlatContent};
use library::regular::read_any;
use library::space::check_room;
use library::torrent_file;

/// Imports the image that `torrent` describes from `files`: a directory of BT files, or one file that is the content.
///
/// # Errors
/// If it is not the torrent of an image, or the files lack bytes or hold other bytes than the torrent's hashes say.
pub(super) fn import(new: NewImage<'_>, torrent: &Path, files: &Path, how: HowToCopy<'_>) -> anyhow::Result<Image> {
    let reading = || format!("reading {}", torrent.display());
    let bytes = read_any(torrent, metainfo::TORRENT_LEN_MAX)?;
    let meta = Metainfo::parse(&bytes).with_context(reading)?;
    let layout = Layout::new(&meta).with_context(reading)?;
    let (geometry, content_len) = (meta.geometry, layout.content_len());
    let is_dir = files.metadata().with_context(|| format!("opening {}", files.display()))?.is_dir();
    let source: Box<dyn Storage> = if is_dir {
        Box::new(BtFiles::open(files, geometry, layout.clone())?)
    } else {
        Box::new(FlatContent::open(files, geometry)?)
    };
    ensure!(content_len > 0, "{} describes no content", torrent.display());

    let draft = new.draft()?;
    check_room(new.library.dir(), content_len)?;
    let hash_of = |piece: PieceIndex| *meta.piece_hash(piece);
    let copying = Copying { geometry, hash_of: &hash_of, from: files, how };
    let compressed = copying.run(&draft, |at, buf| {
        let piece = geometry.piece_at(at).context("reading past the last piece")?;
        source.read(piece, 0, buf).with_context(|| format!("reading piece {piece} from {}", files.display()))
    })?;

    let content = DraftContent { draft: &draft, compressed };
    let manifest = made_up("import of a torrent", &meta, &layout, content, &files.display().to_string());
    // The original tracker's URL means nothing here.
    draft.publish(&torrent_file::with_announce(&bytes, None)?, &manifest)
}

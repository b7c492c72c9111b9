//! Stores the content of an image in another way: compressed, as it is, or at another level.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail, ensure};
use library::content::{ContentFile, open_image};
use library::space::check_room;
use library::{Image, Library};
use metainfo::PieceHash;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use terminal::Progress;

use crate::pipeline::{Job, default_threads};
use crate::stored::{Compression, NewContent};

/// Stores an image's content in another way. The new content is written beside the old, read back from the disk and compared with
/// the torrent; then both change places in one step, so at any moment one whole image is listed. What machines get, and the
/// infohash, stay the same: so this is allowed while they fetch the image.
///
/// # Errors
/// If there is no such image, it is live or damaged, or the new content cannot be written. The image stays as it was then.
pub fn repack(library: &Library, name: &str, compression: Compression, stop: &AtomicBool) -> anyhow::Result<Image> {
    // First, so that nobody replaces what is read.
    let draft = library.draft(name, true, |_, _| Ok(None)).with_context(|| format!("image {name:?} stays as it is"))?;
    let image = library.image(name)?;
    ensure!(
        image.manifest.live.is_none(),
        "image {name:?} is live: its content is on the disk that it was captured from, so there is nothing to compress"
    );
    if compression == Compression::None {
        check_room(library.dir(), image.layout.content_len())?;
    }
    let geometry = image.meta.geometry;
    let threads = default_threads();
    let old = open_image(&image)?;
    let new = NewContent::create(&draft, geometry, compression)?;
    let mut progress = Progress::new(
        if compression == Compression::None { "unpacking" } else { "compressing" },
        geometry.content_len(),
    );
    let job = Job { geometry, threads, out: Some(&new), stop, progress: &mut progress };
    let hashes = job.hash(|range, buf| {
        let piece = geometry.piece_at(range.start).context("reading past the last piece")?;
        old.read(piece, 0, buf).with_context(|| format!("reading the content at byte {}", range.start))
    })?;
    progress.finish();
    if let Some(piece) = first_bad(&image, &hashes) {
        bail!(
            "image {name:?} is damaged: piece {piece} is bad; it stays as it is, and `ezio image verify {name}` says more"
        );
    }
    let compressed = new.finish()?;

    let (path, open): (_, fn(&Path, u64) -> anyhow::Result<ContentFile>) = match compressed {
        Some(_) => (draft.compressed_path(), ContentFile::open_compressed),
        None => (draft.content_path(), ContentFile::open_plain),
    };
    flush_and_forget(&path)?;
    let written = open(&path, geometry.content_len())?;
    let mut progress = Progress::new("verifying", geometry.content_len());
    let job = Job { geometry, threads, out: None, stop, progress: &mut progress };
    let hashes = job.hash(|range, buf| {
        written.read_exact_at(buf, range.start).with_context(|| format!("reading {} back", path.display()))
    })?;
    progress.finish();
    if let Some(piece) = first_bad(&image, &hashes) {
        bail!(
            "piece {piece} of {} was right when it was written and is wrong on the disk: look after that disk; image {name:?} \
             stays as it is",
            path.display()
        );
    }
    draft.publish(&image.torrent_bytes, &image.manifest.stored(compressed))
}

fn first_bad(image: &Image, hashes: &[PieceHash]) -> Option<metainfo::PieceIndex> {
    image.meta.geometry.pieces().find(|&piece| hashes.get(piece.as_usize()) != Some(image.meta.piece_hash(piece)))
}

/// So that what is read next comes from the disk.
fn flush_and_forget(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).and_then(|file| file.sync_all().map(|()| file));
    let file = file.with_context(|| format!("flushing {}", path.display()))?;
    // Advice only: not every file system can.
    let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    Ok(())
}

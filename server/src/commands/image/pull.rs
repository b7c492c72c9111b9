//! `ezio image pull`: copies an image from another site's server into this library.
//!
//! Torrent and manifest by HTTP, the content by librqbit, one big download in order: torrent → content, every piece
//! checked → read back and checked again → listed by one rename, as a capture is. What an interrupted pull has fetched
//! stays and is checked again when the same command runs again.

mod download;
mod fetch;
mod storage;

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use self::download::Download;
use self::fetch::Offer;
use self::storage::Content;
use super::list::unfinished_line;
use crate::commands::compression::CompressionArgs;
use crate::room::needed::needed;
use capture::pipeline::{Job, default_threads};
use capture::{Compression, DraftContent, made_up, repack};
use library::describe::summary;
use library::space::check_room;
use library::torrent_file;
use library::unfinished::len_on_disk;
use library::{Draft, Image, Library, check_name};
use terminal::Progress;
use terminal::stop_on_signals;

/// Least rate, in bytes per second: the limiter hands out whole blocks of 16 KiB.
const DOWN_MIN: u32 = 16 << 10;

/// Where from and how.
#[derive(Debug, Args)]
pub struct Pull {
    /// http://SERVER/images/NAME.torrent of a server that publishes its images, or a .torrent file.
    #[arg(value_name = "URL|TORRENT", required_unless_present = "discard")]
    source: Option<String>,
    /// What to call the image here; as it is called there if not given.
    #[arg(long)]
    name: Option<String>,
    /// Connect to this peer; may be given several times.
    #[arg(long = "peer", value_name = "ADDR")]
    peers: Vec<SocketAddr>,
    /// Announce here instead of where the torrent says.
    #[arg(long, value_name = "URL")]
    tracker: Option<String>,
    /// Take at most this many bytes a second.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(i64::from(DOWN_MIN)..))]
    down: Option<u32>,
    /// Give up after this many seconds in which nothing came; what is there is kept.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    patience: u64,
    /// Replace the image of that name, if there is one, once the new one is complete.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    compression: CompressionArgs,
    /// Delete what unfinished pulls have left: of this URL or TORRENT, or of all if none is given.
    #[arg(long)]
    discard: bool,
}

impl Pull {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, in words for the person at the terminal.
    pub fn run(self, library: &Path) -> anyhow::Result<()> {
        let source = self.source.as_deref().map(fetch::full_name).transpose()?;
        if self.discard {
            return discard(&Library::open(library)?, source.as_deref());
        }
        let source = source.context("give the URL of an image's torrent, or a .torrent file")?;
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        let stop = stop_on_signals()?;
        let offer = fetch::offer(&source, self.name.as_deref(), stop)?;
        let tracker = self.tracker.clone().or_else(|| offer.meta.announce.clone());
        ensure!(
            tracker.is_some() || !self.peers.is_empty(),
            "{source} names no tracker: give --tracker URL or --peer ADDRESS:PORT"
        );
        let library = Library::create(library)?;
        let draft = library.resumable_draft(offer.meta.infohash, &offer.name, self.replace, &source, needed)?;
        let content = open_content(&library, &draft, offer.layout.content_len())?;
        say!(
            "pulling {} as {}: {}, infohash {}",
            source,
            offer.name,
            units::size(offer.layout.content_len()),
            offer.meta.infohash
        );

        let started = Instant::now();
        let download = Download {
            meta: &offer.meta,
            torrent: torrent_file::with_announce(&offer.torrent, tracker.as_deref())?,
            content: Arc::new(Content::new(content.try_clone().context("opening the content twice")?, &offer.meta)),
            peers: self.peers,
            tracker,
            down: self.down.and_then(NonZeroU32::new),
            patience: Duration::from_secs(self.patience),
            stop,
        };
        let fetched = download.run().with_context(|| kept(&draft))?;
        let image = finish(draft, &offer, &content, stop)?;
        let image = compress(&library, image, self.compression.compression(), stop);
        say!(
            "pulled {}; {} fetched in {:.1} s",
            summary(&image),
            units::size(fetched),
            started.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

fn discard(library: &Library, source: Option<&str>) -> anyhow::Result<()> {
    let gone = library.discard(source)?;
    if gone.is_empty() {
        say!("there are no unfinished pulls in {}", library.dir().display());
    }
    for unfinished in gone {
        say!("deleted {}", unfinished_line(&unfinished));
    }
    Ok(())
}

/// Pieces come in any order, so the content is compressed when all of it is there; it is listed already, and stays as it is if
/// that fails.
fn compress(library: &Library, image: Image, how: Compression, stop: &AtomicBool) -> Image {
    if how == Compression::None {
        return image;
    }
    repack(library, &image.name, how, stop).unwrap_or_else(|error| {
        log::warn!("{} is stored uncompressed ({error:#}): `ezio image compress` tries that again", image.name);
        image
    })
}

fn kept(draft: &Draft) -> String {
    let what = if draft.content_path().metadata().is_ok_and(|content| content.len() > 0) {
        "what came is kept: run the same command again to continue, or add --discard to delete it"
    } else {
        "nothing came"
    };
    format!("pulling stopped ({what})")
}

/// The content as an earlier attempt left it, or new. It is not made longer before something comes: that way nothing
/// behind that has to be read and hashed to see that it is missing.
fn open_content(library: &Library, draft: &Draft, content_len: u64) -> anyhow::Result<File> {
    let path = draft.content_path();
    let opening = || format!("opening {}", path.display());
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(opening)?;
    let found = file.metadata().with_context(opening)?;
    file.set_len(found.len().min(content_len)).with_context(opening)?;
    check_room(library.dir(), content_len - len_on_disk(&found).min(content_len))?;
    Ok(file)
}

/// Reads the content once more from the disk, compares it with torrent and manifest, and lists the image.
fn finish(draft: Draft, offer: &Offer, content: &File, stop: &AtomicBool) -> anyhow::Result<Image> {
    let geometry = offer.meta.geometry;
    let path = draft.content_path();
    content.set_len(geometry.content_len()).with_context(|| format!("writing {}", path.display()))?;
    content.sync_all().with_context(|| format!("flushing {}", path.display()))?;
    // What is in memory is right; what counts is what comes back from the disk. (Advice only: not every file system can.)
    let _ = posix_fadvise(content, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    let mut progress = Progress::new("verifying", geometry.content_len());
    let job = Job { geometry, threads: default_threads(), out: None, stop, progress: &mut progress };
    let hashes = job.hash(|range, buf| {
        content
            .read_exact_at(buf, range.start)
            .with_context(|| format!("reading {} at byte {}", path.display(), range.start))
    })?;
    progress.finish();
    if let Some(bad) = geometry.pieces().find(|&piece| hashes[piece.as_usize()] != *offer.meta.piece_hash(piece)) {
        bail!(
            "piece {bad} was right when it came and is wrong on the disk: look after the disk of {}, then run the same \
             command again",
            path.display()
        );
    }
    let mut manifest = match &offer.manifest {
        Some(manifest) => manifest.clone(),
        None => {
            let content = DraftContent { draft: &draft, compressed: None };
            made_up("pull without a manifest", &offer.meta, &offer.layout, content, &offer.source)
        }
    };
    // Here the content is a file, whatever it is there; and nobody elsewhere says which disk of ours is given away.
    manifest.live = None;
    manifest = manifest.stored(None);
    ensure!(!stop.load(Ordering::Relaxed), "interrupted; run the same command again to continue");
    draft.completed()?;
    // Where it was announced there says nothing here.
    draft.publish(&torrent_file::with_announce(&offer.torrent, None)?, &manifest)
}

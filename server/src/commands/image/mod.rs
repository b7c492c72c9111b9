//! `ezio image`: what the library holds.

mod export;
mod import;
mod list;
#[cfg(feature = "pull")]
mod pull;

use crate::room::needed::needed;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use metainfo::PieceIndex;

use self::export::Export;
use self::import::Import;
use self::list::list;
#[cfg(feature = "pull")]
use self::pull::Pull;
use crate::commands::compression::CompressionArgs;
use capture::pipeline::{Job, default_threads};
use capture::repack;
use library::content::open_image;
use library::describe::{partition_line, stored, summary};
use library::{DEFAULT_DIR, Image, Library};
use terminal::Progress;
use terminal::stop_on_signals;

/// How many bad pieces `verify` describes before it only counts them.
const BAD_PIECES_SHOWN: usize = 20;
/// How many places on the disk it names for each.
const PLACES_SHOWN: usize = 3;

/// Lists, shows, checks, compresses, imports, exports, pulls and removes images.
#[derive(Debug, Args)]
pub struct ImageCommand {
    /// The directory that holds the images.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR, global = true)]
    library: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Every image with its sizes; damaged ones say why.
    List {
        /// Print one JSON object; sizes in bytes.
        #[arg(long)]
        json: bool,
    },
    /// An image's partitions, and what became of each.
    Show {
        /// Its name.
        name: String,
    },
    /// Hashes an image's content again and names every piece that is not what it was.
    Verify {
        /// Its name.
        name: String,
    },
    /// Takes over a live image of an earlier version, or of a library that has moved here with its disk: compares every piece
    /// with that disk, and from then on hands it out.
    Adopt {
        /// Its name.
        name: String,
    },
    /// Stores the content of an image compressed, or as it is, whatever it was. What machines get stays the same, also while they
    /// fetch it.
    Compress {
        /// Its name.
        name: String,
        #[command(flatten)]
        compression: CompressionArgs,
    },
    /// Takes an image out of the library.
    Remove {
        /// Its name.
        name: String,
    },
    Import(Import),
    Export(Export),
    /// Copies an image from another site's server, which has to publish it.
    #[cfg(feature = "pull")]
    Pull(Pull),
}

impl ImageCommand {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, in words for the person at the terminal.
    pub fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::List { json } => list(&Library::open(self.library)?, json),
            Action::Show { name } => {
                show(&Library::open(self.library)?.image(&name)?);
                Ok(())
            }
            Action::Verify { name } => verify(&Library::open(self.library)?.image(&name)?),
            Action::Adopt { name } => adopt(&Library::open(self.library)?, &name),
            Action::Compress { name, compression } => compress(&Library::open(self.library)?, &name, compression),
            Action::Remove { name } => {
                Library::open(self.library)?.remove(&name, needed)?;
                say!("removed {name}");
                Ok(())
            }
            #[cfg(feature = "pull")]
            Action::Pull(pull) => pull.run(&self.library),
            Action::Import(import) => import.run(&self.library),
            Action::Export(export) => export.run(&self.library),
        }
    }
}

fn show(image: &Image) {
    let manifest = &image.manifest;
    let origin = &manifest.origin;
    say!("{}", summary(image));
    let id = if manifest.disk_id.is_empty() { String::new() } else { format!(" {}", manifest.disk_id) };
    say!("table {}{id}, {}-byte sectors, {} bytes", manifest.table, manifest.sector_size, manifest.disk_size);
    say!("made {} on {} by {} of {}", origin.at_text(), origin.host, origin.how, origin.source);
    let tools: Vec<String> = origin.tools.iter().map(|(tool, version)| format!("{tool} {version}")).collect();
    say!("tools: {}", tools.join(", "));
    if let Some(account) = &manifest.account {
        say!("{account}");
    }
    say!("in {}", image.dir.display());
    say!("content: {}", stored(image));
    if let Some(live) = &manifest.live {
        say!("live: the library has no content of this image; it is read from {live}");
    }
    say!("partitions:");
    for partition in &manifest.partitions {
        say!("{}", partition_line(partition));
    }
}

fn compress(library: &Library, name: &str, how: CompressionArgs) -> anyhow::Result<()> {
    let image = library.image(name)?;
    let is_compressed = image.manifest.compressed.is_some();
    if image.manifest.live.is_none() && how.level.is_none() && is_compressed != how.uncompressed {
        let more = if is_compressed { "compressed already; --level N compresses it again" } else { "not compressed" };
        say!("{name} is {more}");
        return Ok(());
    }
    let before = image.stored_len();
    // Whose directories may be from an earlier version.
    let library = Library::create(library.dir())?;
    let image = repack(&library, name, how.compression(), stop_on_signals()?)?;
    say!("{name}: {}, before {}", stored(&image), units::size(before));
    Ok(())
}

fn adopt(library: &Library, name: &str) -> anyhow::Result<()> {
    let mut image = library.image(name)?;
    let Some(live) = &image.manifest.live else {
        bail!("image {name:?} is not live: the library has its content, and there is nothing to adopt");
    };
    say!("{name} is read from {live}");
    image.manifest.live = Some(library::live::adopt(live)?);
    verify(&image)?;
    library.write_manifest(&image)?;
    say!("adopted {name}: this machine hands it out from now on");
    Ok(())
}

fn verify(image: &Image) -> anyhow::Result<()> {
    let storage = open_image(image)?;
    let geometry = image.meta.geometry;
    let mut progress = Progress::new("verifying", geometry.content_len());
    let stop = stop_on_signals()?;
    let job = Job { geometry, threads: default_threads(), out: None, stop, progress: &mut progress };
    let mut damaged: BTreeMap<u32, io::Error> = BTreeMap::new();
    let hashes = job.hash(|range, buf| {
        let piece = geometry.piece_at(range.start).context("reading past the last piece")?;
        match storage.read(piece, 0, buf) {
            // What cannot be unpacked is a bad piece like one that was changed; what cannot be read ends it.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => drop(damaged.insert(piece.get(), error)),
            read => read.with_context(|| format!("reading the content at byte {}", range.start))?,
        }
        Ok(())
    })?;
    let rate = progress.finish();
    let is_bad = |piece: &PieceIndex| {
        damaged.contains_key(&piece.get()) || hashes[piece.as_usize()] != *image.meta.piece_hash(*piece)
    };
    let bad: Vec<PieceIndex> = geometry.pieces().filter(is_bad).collect();
    for &piece in bad.iter().take(BAD_PIECES_SHOWN) {
        let range = geometry.piece_range(piece);
        let places: Vec<_> = image.layout.on_disk(range.clone())?.collect();
        let shown: Vec<String> = places
            .iter()
            .take(PLACES_SHOWN)
            .map(|place| format!("{} bytes at {:#x}", place.len, place.disk.0))
            .collect();
        let more = if places.len() > PLACES_SHOWN { ", …" } else { "" };
        let why = damaged.get(&piece.get()).map(|error| format!("; {error}")).unwrap_or_default();
        say!(
            "piece {piece} is bad: content bytes {}..{}, on the disk {}{more}{why}",
            range.start,
            range.end,
            shown.join(", ")
        );
    }
    if !bad.is_empty() {
        let what = if image.manifest.live.is_some() { "has a source that has changed" } else { "is damaged" };
        bail!(
            "image {:?} {what}, {} of {} pieces are bad: capture it again",
            image.name,
            bad.len(),
            geometry.piece_count()
        );
    }
    say!("{} is good: {}, {}", image.name, units::count(geometry.piece_count(), "piece"), units::rate(rate as u64));
    Ok(())
}

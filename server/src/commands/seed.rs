//! `ezio seed`: seeds a torrent's content from any Linux machine.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use blockdev::Device;
use clap::{Args, ValueEnum};
use layout::Layout;
use metainfo::Metainfo;
use restore::DiskStore;
use swarm::owners::Owners;
use swarm::{Have, Options, Storage, Swarm};
use tokio::signal::unix::{SignalKind, signal};

use library::content::{BtFiles, FlatContent, is_compressed, open_image};
use library::{DEFAULT_DIR, image_meant_by};

/// How often a line says how much was given.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Seeds a torrent until it is stopped with Ctrl-C.
#[derive(Args)]
pub struct SeedCommand {
    /// The .torrent file, or the name of an image in the library.
    torrent: PathBuf,
    /// Where its bytes are; an image of the library needs none.
    source: Option<PathBuf>,
    /// The directory that holds the images.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    library: PathBuf,
    /// What SOURCE is; guessed if not given: a directory is btfiles, a device is a disk, a file of the content's length
    /// or a content.zst is flat, any other file a disk image.
    #[arg(long = "as", value_enum)]
    kind: Option<SourceKind>,
    /// Announce here instead of where the torrent says; may be given several times.
    #[arg(long = "tracker", value_name = "URL")]
    trackers: Vec<String>,
    /// Where peers reach this machine.
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 6881)))]
    listen: SocketAddr,
    /// Send at most this many bytes a second.
    #[arg(long, value_name = "BYTES")]
    up: Option<u64>,
}

/// The shapes content comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SourceKind {
    /// The content in one file, plain or compressed, as in a library.
    Flat,
    /// A disk or disk image, every byte at its offset.
    Disk,
    /// A directory of partclone's BT files.
    Btfiles,
}

impl SeedCommand {
    /// Runs until Ctrl-C or SIGTERM.
    pub fn run(self) -> Result<()> {
        let image = image_meant_by(&self.torrent, &self.library)?;
        let meta = match &image {
            Some(image) => Arc::clone(&image.meta),
            None => Arc::new(read_torrent(&self.torrent)?),
        };
        let storage = match (&self.source, &image) {
            (Some(source), _) => {
                let layout = Layout::new(&meta).with_context(|| format!("reading {}", self.torrent.display()))?;
                open_source(source, self.kind, &meta, layout)?
            }
            (None, Some(image)) => open_image(image)?,
            (None, None) => bail!(
                "{} is not the image.torrent of an image in a library: say where its bytes are",
                self.torrent.display()
            ),
        };
        let trackers = if self.trackers.is_empty() { meta.announce.iter().cloned().collect() } else { self.trackers };
        let options = Options {
            listen: self.listen,
            trackers,
            have: Have::All,
            up_bytes_per_s: self.up,
            owners: Owners::by_card(),
            ..Options::default()
        };
        let runtime = tokio::runtime::Runtime::new().context("starting")?;
        runtime.block_on(async {
            let swarm = Swarm::start(Arc::clone(&meta), storage, options).await.context("starting to seed")?;
            say!(
                "seeding {} ({}, infohash {}) on {}",
                meta.name,
                units::size(meta.geometry.content_len()),
                meta.infohash,
                swarm.local_addr()
            );
            let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
            loop {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => break,
                    _ = terminate.recv() => break,
                    () = tokio::time::sleep(LINE_EVERY) => {
                        let stats = swarm.stats();
                        let trouble = stats.tracker_error.map(|error| format!(", tracker: {error}")).unwrap_or_default();
                        say!("{} sent, {}{trouble}", units::size(stats.uploaded), units::count(stats.peers, "peer"));
                    }
                }
            }
            say!("stopped, {} sent", units::size(swarm.stats().uploaded));
            swarm.shutdown().await;
            Ok(())
        })
    }
}

/// Reads and checks a `.torrent` file.
///
/// # Errors
/// If it is not there or not a torrent.
pub fn read_torrent(path: &Path) -> Result<Metainfo> {
    let bytes = std::fs::read(path).with_context(|| format!("opening the torrent {}", path.display()))?;
    Metainfo::parse(&bytes).with_context(|| format!("reading the torrent {}", path.display()))
}

fn open_source(path: &Path, kind: Option<SourceKind>, meta: &Metainfo, layout: Layout) -> Result<Arc<dyn Storage>> {
    let about = path.metadata().with_context(|| format!("opening the source {}", path.display()))?;
    let is_flat = || {
        let is_compressed = || File::open(path).is_ok_and(|file| is_compressed(&file));
        about.is_file() && (about.len() == meta.geometry.content_len() || is_compressed())
    };
    let kind = kind.unwrap_or(match () {
        () if about.is_dir() => SourceKind::Btfiles,
        () if is_flat() => SourceKind::Flat,
        () => SourceKind::Disk,
    });
    Ok(match kind {
        SourceKind::Flat => Arc::new(FlatContent::open(path, meta.geometry)?),
        SourceKind::Btfiles => Arc::new(BtFiles::open(path, meta.geometry, layout)?),
        SourceKind::Disk => {
            let device = Device::open_read(path)?;
            layout
                .check_device(device.len(), device.sector_size())
                .with_context(|| format!("reading {}", path.display()))?;
            Arc::new(DiskStore::complete(meta.geometry, Arc::new(layout), Arc::new(device)))
        }
    })
}

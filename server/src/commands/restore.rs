//! `ezio restore`: an image from a swarm to a disk or file, on any Linux machine.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use blockdev::Device;
use blockdev::inventory;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use layout::Layout;
use layout::parttable::{Table, TableKind, guess_sector_size};
use metainfo::Metainfo;
use report::Progress;
use restore::{Grow, RestoreOptions, Restored, Update, Wish, restore};
use swarm::owners::Owners;
use swarm::{Have, Options, Storage, Swarm};
use tokio::sync::mpsc;

use crate::commands::seed::read_torrent;
use capture::{in_use, refuse_to_destroy};
use library::content::open_image;
use library::{DEFAULT_DIR, image_meant_by};

/// Without a terminal, a line this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Restores a torrent to a disk, partition or file, and proves what it wrote.
#[derive(Args)]
pub struct RestoreCommand {
    /// The .torrent file, or the name of an image in the library, which is then its own peer.
    torrent: PathBuf,
    /// A block device or file, which is overwritten; a file that is not there is created (sparse) as a disk image.
    target: PathBuf,
    /// The directory that holds the images.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    library: PathBuf,
    /// Announce here instead of where the torrent says; may be given several times.
    #[arg(long = "tracker", value_name = "URL")]
    trackers: Vec<String>,
    /// Connect to this peer; may be given several times.
    #[arg(long = "peer", value_name = "ADDR")]
    peers: Vec<SocketAddr>,
    /// Keep seeding for this long afterwards.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    linger: u64,
    /// Do not ask before overwriting a device, or a file that has something in it.
    #[arg(long)]
    yes: bool,
    /// Print progress as JSON Lines; the last line has `verified`.
    #[arg(long)]
    json: bool,
    /// Do not read the content back; the table sectors still are.
    #[arg(long)]
    no_verify: bool,
    /// Fetch and write everything, even what the target holds already.
    #[arg(long)]
    no_keep: bool,
    /// Do not report unused space to a flash disk (no discard).
    #[arg(long)]
    no_discard: bool,
    /// On a larger disk: the partition that should use the space, `last` or a number. The file system in it is not grown.
    #[arg(long, value_name = "WHICH", default_value_t = Grow::No)]
    grow: Grow,
    /// Send at most this many bytes a second.
    #[arg(long, value_name = "BYTES")]
    up: Option<u64>,
    /// Take at most this many bytes a second.
    #[arg(long, value_name = "BYTES")]
    down: Option<u64>,
}

impl RestoreCommand {
    /// Runs the restore; an error leaves the target unable to boot.
    pub fn run(self) -> Result<()> {
        let image = image_meant_by(&self.torrent, &self.library)?;
        let meta = match &image {
            Some(image) => Arc::clone(&image.meta),
            None => Arc::new(read_torrent(&self.torrent)?),
        };
        let layout = Layout::new(&meta).with_context(|| format!("reading {}", self.torrent.display()))?;
        let trackers: Vec<String> =
            if self.trackers.is_empty() { meta.announce.iter().cloned().collect() } else { self.trackers.clone() };
        // A torrent in another library than the one that is named says where that is.
        let other = image.as_ref().and_then(|image| image.dir.ancestors().nth(2).map(Path::to_owned));
        let is_alone = trackers.is_empty() && self.peers.is_empty();
        let own = image.filter(|_| is_alone).map(|image| open_image(&image)).transpose()?;
        if is_alone && own.is_none() {
            bail!("the torrent names no tracker: give --tracker URL or --peer ADDRESS:PORT");
        }
        let is_new = !self.target.exists();
        let libraries: Vec<&Path> = [Some(self.library.as_path()), other.as_deref()].into_iter().flatten().collect();
        let device = self.open_target(&layout, &libraries)?;
        let verify = !self.no_verify;
        let table = Wish { grow: self.grow, new_disk_id: None };
        let wishes = RestoreOptions {
            verify,
            keep: !self.no_keep && !is_new,
            discard: !self.no_discard,
            table,
            stamp: None,
            permission: None,
        };
        let mut options = Options {
            trackers,
            peers: self.peers,
            up_bytes_per_s: self.up,
            down_bytes_per_s: self.down,
            owners: Owners::by_card(),
            ..Options::default()
        };
        let mut screen = Screen::new(self.json);
        let started = Instant::now();
        let runtime = tokio::runtime::Runtime::new().context("starting")?;
        runtime.block_on(async {
            let layout = Arc::new(layout);
            let content_len = meta.geometry.content_len();
            let is_own = own.is_some();
            let seeder = match own {
                Some(storage) => Some(seed_here(&meta, storage).await?),
                None => None,
            };
            options.peers.extend(seeder.as_ref().map(Swarm::local_addr));
            // One is enough: the first ends it.
            let (trouble, mut troubles) = mpsc::channel(1);
            let show = |update: Update| {
                // There is no other peer to wait for, whose pieces might be right.
                let is_vain = is_own && (update.progress.peers == 0 || update.bad_pieces > 0);
                if let Some(words) = update.trouble.as_ref().filter(|_| is_vain) {
                    let _ = trouble.try_send(words.clone());
                }
                if let Some(why) = seeder.as_ref().and_then(|seeder| seeder.stats().withheld_why) {
                    let _ =
                        trouble.try_send(format!("{why}; `ezio image verify` says more, and then capture it again"));
                }
                screen.show(&update);
            };
            let restored = tokio::select! {
                restored = restore(meta, layout, Arc::clone(&device), options, wishes, show) => restored?,
                Some(words) = troubles.recv() => bail!(
                    "{} is not complete: {words}",
                    self.target.display()
                ),
            };
            drop(seeder);
            restored.warnings.iter().for_each(|warning| log::warn!("{}: {warning}", device.path().display()));
            screen.verified(device.path(), content_len, &restored, started.elapsed(), verify);
            if self.linger > 0 {
                linger(&restored.swarm, Duration::from_secs(self.linger)).await;
            }
            restored.swarm.shutdown().await;
            Ok(())
        })
    }

    fn open_target(&self, layout: &Layout, libraries: &[&Path]) -> Result<Arc<Device>> {
        let is_device = match self.target.metadata() {
            Ok(about) => !about.is_file(),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound && !self.target.starts_with("/dev") => false,
            Err(cause) => return Err(cause).with_context(|| format!("opening {}", self.target.display())),
        };
        if self.target.exists() {
            in_use::refuse_if_used(&self.target)
                .with_context(|| format!("{} was not touched", self.target.display()))?;
        }
        refuse_to_destroy(&self.target, libraries)
            .with_context(|| format!("{} was not touched", self.target.display()))?;
        if !is_device {
            let len = self.target.metadata().map_or(0, |found| found.len());
            if len > 0 {
                self.confirm(len, layout)?;
            }
            return Ok(Arc::new(Device::create_file(&self.target, layout.disk_size())?));
        }
        let device = Device::open_exclusive(&self.target)?;
        layout
            .check_device(device.len(), device.sector_size())
            .with_context(|| format!("{} was not touched", self.target.display()))?;
        self.confirm(device.len(), layout)?;
        Ok(Arc::new(device))
    }

    fn confirm(&self, len: u64, layout: &Layout) -> Result<()> {
        let lost = table_lost(&self.target, len, layout);
        if self.yes {
            lost.iter().for_each(|lost| log::warn!("{lost}"));
            return Ok(());
        }
        confirm(&self.target, len, &lost.map(|lost| format!("; {lost}")).unwrap_or_default())
    }
}

/// What is wrong with writing an image of one partition over a disk that has partitions, if that is what would be done.
fn table_lost(target: &Path, len: u64, layout: &Layout) -> Option<String> {
    if layout.is_whole_disk() {
        return None;
    }
    let mut disk = File::open(target).ok()?;
    let sector_size = guess_sector_size(&mut disk, len).ok()?;
    let kind = match Table::read(&mut disk, len, sector_size) {
        Ok(table) if table.kind == TableKind::None => return None,
        Ok(table) => table.kind.as_str().to_uppercase(),
        Err(_) => "damaged".to_owned(),
    };
    Some(format!(
        "{} has a partition table ({kind}), and the image is one partition (or a file system without a partition table), which \
         would take the place of the whole disk: name a partition such as /dev/sda2 unless that is meant",
        target.display()
    ))
}

fn confirm(target: &Path, len: u64, lost: &str) -> Result<()> {
    let disks = inventory::disks(Path::new("/sys"));
    let known = disks.iter().find(|disk| disk.path == target).map(inventory::Disk::describe);
    let what = known.unwrap_or_else(|| format!("{} ({})", target.display(), units::size(len)));
    if !std::io::stdin().is_terminal() {
        bail!("this would overwrite {what}{lost}: give --yes if that is meant");
    }
    let mut stdout = std::io::stdout();
    write!(stdout, "Everything on {what} will be overwritten{lost}. Type yes to continue: ")
        .and_then(|()| stdout.flush())
        .context("asking")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("reading the answer")?;
    if answer.trim() != "yes" {
        bail!("not confirmed; {} was not touched", target.display());
    }
    Ok(())
}

/// An image of this machine's library, for this machine alone.
async fn seed_here(meta: &Arc<Metainfo>, storage: Arc<dyn Storage>) -> Result<Swarm> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let options = Options { listen, have: Have::All, ..Options::default() };
    Swarm::start(Arc::clone(meta), storage, options).await.context("opening the image")
}

async fn linger(swarm: &Swarm, linger: Duration) {
    let until = tokio::time::sleep(linger);
    tokio::select! {
        () = until => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    log::info!("{} sent to other machines", units::size(swarm.stats().uploaded));
}

/// How progress is shown: a bar on a terminal, lines elsewhere, JSON for machines.
enum Screen {
    Bar(ProgressBar),
    Lines { last: Option<(report::Stage, Instant)> },
    Json,
}

impl Screen {
    fn new(json: bool) -> Screen {
        if json {
            return Screen::Json;
        }
        if !std::io::stdout().is_terminal() {
            return Screen::Lines { last: None };
        }
        let style = ProgressStyle::with_template("{msg:8} {wide_bar} {percent:>3}% {prefix}")
            .expect("the template is a constant that indicatif takes");
        Screen::Bar(ProgressBar::new(0).with_style(style))
    }

    fn show(&mut self, update: &Update) {
        let Update { stage, progress, trouble, .. } = update;
        match self {
            Screen::Bar(bar) => {
                bar.set_length(progress.bytes_total);
                bar.set_position(progress.bytes_done);
                bar.set_message(stage.to_string());
                bar.set_prefix(words(update));
            }
            Screen::Lines { last } => {
                let is_due = last.is_none_or(|(before, at)| before != *stage || at.elapsed() >= LINE_EVERY);
                if is_due {
                    *last = Some((*stage, Instant::now()));
                    let (done, total) = (units::size(progress.bytes_done), units::size(progress.bytes_total));
                    say!("{stage} {done} of {total}, {}", words(update));
                }
            }
            Screen::Json => say!("{}", json(*stage, progress, serde_json::json!({ "trouble": trouble }))),
        }
    }

    fn verified(&self, target: &Path, len: u64, restored: &Restored, took: Duration, verify: bool) {
        if let Screen::Bar(bar) = self {
            bar.finish_and_clear();
        }
        let seconds = took.as_secs_f64();
        let stats = restored.swarm.stats();
        if let Screen::Json = self {
            let progress = Progress {
                bytes_done: len,
                bytes_total: len,
                rate_bytes_per_s: 0,
                downloaded: stats.downloaded,
                uploaded: stats.uploaded,
                written: restored.written,
                peers: u32::try_from(stats.peers).unwrap_or(u32::MAX),
            };
            let more = serde_json::json!({
                "kept": restored.kept,
                "verified": if verify { "all" } else { "table" },
                "seconds": seconds,
                "target": target.to_string_lossy(),
            });
            say!("{}", json(report::Stage::Done, &progress, more));
            return;
        }
        let how = if verify { "read back from the medium" } else { "partition table only: --no-verify" };
        let (kept, written) = (units::size(restored.kept), units::size(restored.written));
        let fetched = units::size(stats.downloaded);
        say!(
            "verified {} on {} in {seconds:.1} s: {kept} kept, {fetched} fetched, {written} written ({how})",
            units::size(len),
            target.display()
        );
    }
}

/// One line of `--json`: the stage, all of the progress, and the fields of `more`.
fn json(stage: report::Stage, progress: &Progress, mut more: serde_json::Value) -> serde_json::Value {
    let mut line = serde_json::json!(progress);
    if let (Some(line), Some(more)) = (line.as_object_mut(), more.as_object_mut()) {
        line.insert("stage".to_owned(), serde_json::json!(stage));
        line.append(more);
    }
    line
}

fn words(update: &Update) -> String {
    let progress = &update.progress;
    let rate = units::rate(progress.rate_bytes_per_s);
    let left = progress.eta_seconds();
    let eta = left.map(|seconds| format!(", {}:{:02} left", seconds / 60, seconds % 60)).unwrap_or_default();
    let trouble = update.trouble.as_ref().map(|trouble| format!("; {trouble}")).unwrap_or_default();
    format!("{rate}{eta}, {}{trouble}", units::count(progress.peers, "peer"))
}

//! The stages from the first link to the last reboot, in their order. Each is a function that takes what the ones before
//! it have found.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use blockdev::Device;
use layout::Layout;
use metainfo::Metainfo;
use netboot::MacAddr;
use order::{After, Grow, Order};
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use report::Stage;
use restore::{DueStamp, RestoreError, RestoreOptions, Restored, Stamp, Update, Wish};
use seal::sealed::KEY_LEN;
use seal::{KeyPair, Token};
use swarm::owners::Owners;
use swarm::{Options, Swarm};

use crate::boot_args::BootArgs;
use crate::confirm::{self, Waiting};
use crate::console::Console;
use crate::disk::{self, Chosen};
use crate::dry_run;
use crate::fetch::TFTP_PORT;
use crate::grow;
use crate::lease::{Network, wait_for_lease};
use crate::memory;
use crate::modules::{Coldplug, Index};
use crate::orders::{Asking, Given, REPEAT_TROUBLE};
use crate::reporter::Reporter;

/// A linger shorter than the swarm's own rhythm would leave before the slowest peer has asked.
const SEEDING_LOOK: Duration = Duration::from_millis(500);
/// A finished machine restarts after this long even if others still take from it, unless its order has a longer linger.
const LINGER_MOST: Duration = Duration::from_secs(600);

/// How it ended.
#[derive(Debug)]
pub enum Outcome {
    /// Well; what to do now.
    Done(After),
    /// The server took its order back before anything was written; its words.
    Stopped(String),
}

/// Runs all stages; gives what to do afterwards.
///
/// # Errors
/// Whatever cannot be mended by trying again, in words for the screen.
pub async fn run(console: &Console, reporter: &Reporter) -> Result<Outcome> {
    let machine = Machine { console, reporter };
    let args = boot_args()?;
    memory::check_unpacked()?;
    let key = new_key()?;
    let link = machine.network(&args).await?;
    let job = machine.fetch(&args, &link, &key).await?;
    let disk = machine.disk(&job, &link).await?;
    let done = Outcome::Done(job.order.options.after);
    if job.order.options.dry_run {
        machine.dry_run(&job, disk, &link).await?;
        return Ok(done);
    }
    if machine.has_it(&job, &disk).await? {
        return Ok(done);
    }
    let path = disk.device.path().to_owned();
    let restored = match machine.restore(&job, disk).await? {
        Ok(restored) => restored,
        Err(said) => return Ok(Outcome::Stopped(said)),
    };
    machine.seed(&job, &restored).await;
    machine.grow(path, restored).await?;
    Ok(done)
}

/// How a machine reached the network.
struct Link {
    network: Network,
    mac: MacAddr,
    coldplug: Coldplug,
}

/// What a machine is to do.
struct Job {
    order: Order,
    /// The order's token, if it came sealed.
    token: Option<Token>,
    server: Ipv4Addr,
    mac: MacAddr,
    meta: Arc<Metainfo>,
    layout: Arc<Layout>,
}

impl Job {
    /// What a disk says that is done with this.
    fn stamp(&self) -> Option<Stamp> {
        let deployment = self.order.deployment.clone();
        (!deployment.is_empty()).then(|| Stamp { deployment, infohash: self.meta.infohash.0 })
    }
}

/// Where a machine says what it does.
#[derive(Clone, Copy)]
struct Machine<'a> {
    console: &'a Console,
    reporter: &'a Reporter,
}

impl Machine<'_> {
    fn enter(self, stage: Stage) {
        self.reporter.enter(stage);
        self.console.stage(stage);
    }

    /// Drivers, a link, an address.
    async fn network(self, args: &BootArgs) -> Result<Link> {
        self.enter(Stage::Network);
        let kernel = nix::sys::utsname::uname().context("asking for the kernel's version")?;
        let modules = Path::new("/lib/modules").join(kernel.release());
        let coldplug = tokio::task::spawn_blocking(move || Coldplug::start(Index::read(&modules)));
        let coldplug = coldplug.await.context("loading drivers")?;
        for failure in coldplug.failures() {
            self.console.line(&format!("driver {failure}"));
        }
        let network = wait_for_lease(args.boot_mac, self.console).await;
        let mac = args.boot_mac.unwrap_or(network.dev.mac);
        self.console.line(&format!("address {} on {}", network.lease.address, network.dev.name));
        self.reporter.update(|report| {
            report.mac = mac.to_string();
            report.ip = network.lease.address.to_string();
        });
        Ok(Link { network, mac, coldplug })
    }

    /// The order and the torrent that it names.
    async fn fetch(self, args: &BootArgs, link: &Link, key: &KeyPair) -> Result<Job> {
        self.enter(Stage::Fetch);
        let server = server_of(args, &link.network)?;
        let asking = Asking { server, mac: link.mac, args, key };
        let Given { order, token, meta } = asking.until_answered(self.console, self.reporter).await?;
        let layout = Arc::new(Layout::new(&meta).context("the torrent does not describe a disk")?);
        self.console.line(&format!(
            "image {}: {} in {}",
            order.image.as_deref().unwrap_or(&meta.name),
            units::size(meta.geometry.content_len()),
            units::count(meta.geometry.piece_count(), "piece")
        ));
        Ok(Job { order, token, server, mac: link.mac, meta: Arc::new(meta), layout })
    }

    /// The one disk that the order means, opened for this machine alone; and room in memory for what comes.
    async fn disk(self, job: &Job, link: &Link) -> Result<Chosen> {
        self.enter(Stage::Disk);
        let options = &job.order.options;
        let chosen = disk::choose(options, &job.layout, &link.coldplug, self.console, self.reporter).await?;
        if options.grow != Grow::No {
            // Before the drivers go.
            let coldplug = link.coldplug.clone();
            tokio::task::spawn_blocking(move || coldplug.load("ext4")).await.context("loading drivers")?;
        }
        memory::give_back_drivers();
        memory::check_pieces(&job.meta)?;
        Ok(chosen)
    }

    /// Says what would be done.
    async fn dry_run(self, job: &Job, disk: Chosen, link: &Link) -> Result<()> {
        let Chosen { device, words, .. } = disk;
        let url = job.order.boot.as_deref().map(dry_run::initramfs);
        let interface = link.network.dev.name.clone();
        let (meta, layout) = (Arc::clone(&job.meta), Arc::clone(&job.layout));
        let look = move || {
            let sample = restore::survey(&meta, &layout, &device).with_context(|| words.clone())?;
            anyhow::Ok(dry_run::words(&meta, &layout, &words, sample, &interface, url.as_deref()))
        };
        let note = tokio::task::spawn_blocking(look).await.context("measuring")??;
        self.console.dry_run(&note);
        self.reporter.update(|report| report.note = note);
        Ok(())
    }

    /// Whether the disk carries the stamp of this very deployment and image: then nothing is written, whatever the server has
    /// forgotten.
    async fn has_it(self, job: &Job, disk: &Chosen) -> Result<bool> {
        let Some(stamp) = job.stamp().filter(|_| disk.is_whole) else { return Ok(false) };
        let (device, table) = (Arc::clone(&disk.device), job.layout.table());
        let look = tokio::task::spawn_blocking(move || restore::is_stamped(&device, &stamp, table));
        if !look.await.context("looking for a stamp")? {
            return Ok(false);
        }
        let note = format!(
            "the disk has it already, by the stamp of deployment {}; nothing was written, and `ezio arm --again` orders it again",
            job.order.deployment
        );
        self.console.line(&note);
        self.reporter.update(|report| {
            report.progress.bytes_total = job.meta.geometry.content_len();
            report.note = note;
        });
        Ok(true)
    }

    /// [`Stage::Restore`], [`Stage::Verify`] and [`Stage::Finish`]: the disk, proven; or the server's words, if it does not
    /// let this machine write.
    async fn restore(self, job: &Job, disk: Chosen) -> Result<Result<Restored, String>> {
        let Job { order, meta, layout, .. } = job;
        let trackers = trackers(order, meta);
        let memory_bytes = memory::for_swarm();
        let swarm = Options { trackers, memory_bytes, owners: Owners::by_card(), ..Options::default() };
        let waiting = Waiting::default();
        let permission = if order.options.confirm {
            let server = (job.server, TFTP_PORT).into();
            Some(confirm::by_tftp(server, confirm::name(job.mac, order, job.token.as_ref())?, waiting.clone()))
        } else {
            None
        };
        let options = RestoreOptions {
            verify: order.options.verify,
            keep: order.options.keep,
            discard: order.options.discard,
            table: Wish { grow: order.options.grow, new_disk_id: order.options.new_ids.then(new_guid) },
            stamp: job.stamp().filter(|_| disk.is_whole),
            permission,
        };
        let mut shown = None;
        let show = |mut update: Update| {
            // While the answer is awaited, nothing else can be what keeps this machine.
            update.trouble = waiting.trouble().or(update.trouble);
            show(update, &mut shown, self.console, self.reporter);
        };
        let restored = restore::restore(Arc::clone(meta), Arc::clone(layout), disk.device, swarm, options, show);
        let mut restored = match restored.await {
            Err(RestoreError::Refused { said, .. }) => {
                return Ok(Err(format!("{} does not let this machine write to its disk: {said}", job.server)));
            }
            other => other.context(disk.words)?,
        };
        if job.stamp().is_some() && !disk.is_whole {
            restored.warnings.push("no stamp is on the disk: the image went to a partition".to_owned());
        }
        restored.warnings.iter().for_each(|warning| self.console.line(warning));
        Ok(Ok(restored))
    }

    /// Gives to others what they lack.
    async fn seed(self, job: &Job, restored: &Restored) {
        let options = &job.order.options;
        self.reporter.enter(Stage::Seeding);
        let mut cost = format!(
            "{} kept, {} fetched, {} written",
            units::size(restored.kept),
            units::size(restored.swarm.stats().downloaded),
            units::size(restored.written)
        );
        restored.warnings.iter().for_each(|warning| cost += &format!("; {warning}"));
        self.reporter.update(|report| {
            report.kept = restored.kept;
            report.note.clone_from(&cost);
        });
        let done = self.reporter.report();
        self.console.verified(&format!(
            "{} on {}: {cost}{}",
            units::size(done.progress.bytes_total),
            done.disk,
            if options.verify { "" } else { "; not read back, only the partition table: VERIFY=no" }
        ));
        self.console.stage(Stage::Seeding);
        linger(&restored.swarm, Duration::from_secs(u64::from(options.linger)), self.reporter).await;
    }

    /// Leaves the swarm, and grows the file system of a partition that has grown.
    async fn grow(self, path: PathBuf, restored: Restored) -> Result<()> {
        restored.swarm.shutdown().await;
        let Some(grown) = restored.grown else { return Ok(()) };
        let stamped = path.clone();
        let grow = move || grow::file_system(&path, &grown);
        let mut said = match tokio::task::spawn_blocking(grow).await.context("growing the file system")? {
            Ok(words) => words,
            Err(error) => format!("a partition was grown, the file system in it was not: {error:#}"),
        };
        if let Some(due) = restored.due_stamp {
            let write = move || write_stamp(&stamped, &due);
            if let Err(error) = tokio::task::spawn_blocking(write).await.context("writing the stamp")? {
                said += &format!("; no stamp is on the disk: {error:#}");
            }
        }
        self.console.line(&said);
        self.reporter.update(|report| report.note += &format!("; {said}"));
        Ok(())
    }
}

/// The disk was given back, so that a file system on it could be mounted.
fn write_stamp(disk: &Path, due: &DueStamp) -> Result<()> {
    let device = Device::open_exclusive(disk)?;
    due.write(&device)?;
    Ok(())
}

fn boot_args() -> Result<BootArgs> {
    let cmdline = std::fs::read_to_string("/proc/cmdline").context("reading the kernel command line")?;
    BootArgs::parse(&cmdline).context("reading the kernel command line")
}

/// A key pair for this start of the machine alone.
fn new_key() -> Result<KeyPair> {
    let mut random = [0; KEY_LEN];
    OsRng.try_fill_bytes(&mut random).context("asking the kernel for random bytes, for a key")?;
    Ok(KeyPair::new(random))
}

fn server_of(args: &BootArgs, network: &Network) -> Result<Ipv4Addr> {
    args.server.or(network.lease.siaddr).context(
        "no server address: DHCP gave no next-server (siaddr), and the kernel command line has no ezio.server=",
    )
}

fn trackers(order: &Order, meta: &Metainfo) -> Vec<String> {
    if order.trackers.is_empty() { meta.announce.iter().cloned().collect() } else { order.trackers.clone() }
}

/// A random GUID (RFC 9562, version 4) in the byte order of a GPT, which turns its first three groups around.
fn new_guid() -> [u8; 16] {
    let mut guid: [u8; 16] = rand::random();
    guid[7] = guid[7] & 0x0f | 0x40;
    guid[8] = guid[8] & 0x3f | 0x80;
    guid
}

/// Shows an update, here and to the server; trouble now and then, at `shown` for the last time.
fn show(update: Update, shown: &mut Option<Instant>, console: &Console, reporter: &Reporter) {
    let before = reporter.report().stage;
    reporter.enter(update.stage);
    reporter.update(|report| {
        report.progress = update.progress;
        report.note = update.trouble.clone().unwrap_or_default();
    });
    if let Some(trouble) = update.trouble {
        if shown.is_none_or(|at| at.elapsed() >= REPEAT_TROUBLE) {
            *shown = Some(Instant::now());
            console.trouble(&trouble);
        }
        return;
    }
    if shown.take().is_some() || before != update.stage {
        console.stage(update.stage);
    }
    console.progress(&reporter.report());
}

/// Seeds until nobody has taken anything for `linger`, but not for ever: one slow machine must not keep a room from
/// restarting.
async fn linger(swarm: &Swarm, linger: Duration, reporter: &Reporter) {
    let finished = Instant::now();
    let most = LINGER_MOST.max(linger);
    loop {
        let stats = swarm.stats();
        let last = stats.last_upload.map_or(finished, |at| at.max(finished));
        reporter.update(|report| {
            report.progress.uploaded = stats.uploaded;
            report.progress.peers = u32::try_from(stats.peers).unwrap_or(u32::MAX);
        });
        if last.elapsed() >= linger || finished.elapsed() >= most {
            return;
        }
        tokio::time::sleep(SEEDING_LOOK).await;
    }
}

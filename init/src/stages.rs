//! The stages between the first link and the proven disk.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use blockdev::inventory::Disk;
use blockdev::{Device, inventory};
use layout::Layout;
use metainfo::Metainfo;
use netboot::MacAddr;
use report::Stage;
use restore::{Progress, RestoreOptions, Wish};
use swarm::{Options, Swarm};

use crate::boot_args::BootArgs;
use crate::console::Console;
use crate::dry_run;
use crate::fetch;
use crate::grow;
use crate::lease::{Network, wait_for_lease};
use crate::modules::{Coldplug, Index};
use crate::reporter::Reporter;
use crate::target;
use order::{After, Grow, Order, value_of};

/// Pause between two tries to get a configuration.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The same trouble is told again after this long.
const REPEAT_TROUBLE: Duration = Duration::from_secs(60);
/// Disks are counted once no device has appeared for this long …
const DISKS_QUIET: Duration = Duration::from_secs(2);
/// … but not later than this: large enclosures spin their disks up one after the other.
const DISKS_LIMIT: Duration = Duration::from_secs(90);
/// While there is no disk at all, drivers are looked for again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The swarm gets at least this much memory.
const SWARM_LEAST: usize = 16 << 20;
/// A linger shorter than the swarm's own rhythm would leave before the slowest peer has asked.
const SEEDING_LOOK: Duration = Duration::from_millis(500);
/// A finished machine restarts after this long, whoever still takes from it (unless it was told to linger longer).
const LINGER_MOST: Duration = Duration::from_secs(600);
/// A disk may take this long to say what is on it, which is only told, never acted on.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Runs all stages; gives what to do afterwards.
///
/// # Errors
/// Whatever cannot be mended by trying again, in words for the screen.
pub async fn run(console: &Console, reporter: &Reporter) -> Result<After> {
    let cmdline = std::fs::read_to_string("/proc/cmdline").context("reading the kernel command line")?;
    let args = BootArgs::parse(&cmdline).context("reading the kernel command line")?;
    let kernel = nix::sys::utsname::uname().context("asking for the kernel's version")?;
    let modules = Path::new("/lib/modules").join(kernel.release());

    check_unpacked()?;
    console.stage(Stage::Network);
    let coldplug = tokio::task::spawn_blocking(move || Coldplug::start(Index::read(&modules)));
    let coldplug = coldplug.await.context("loading drivers")?;
    for failure in coldplug.failures() {
        console.line(&format!("driver {failure}"));
    }
    let network = wait_for_lease(args.boot_mac, console).await;
    let mac = args.boot_mac.unwrap_or(network.dev.mac);
    console.line(&format!("address {} on {}", network.lease.address, network.dev.name));
    reporter.update(|report| {
        report.mac = mac.to_string();
        report.ip = network.lease.address.to_string();
    });

    reporter.enter(Stage::Fetch);
    console.stage(Stage::Fetch);
    let server = server_of(&args, &network)?;
    let (order, meta) = fetch_orders(server, mac, &args, console, reporter).await?;
    let layout = Arc::new(Layout::new(&meta).context("the torrent does not describe a disk")?);
    let meta = Arc::new(meta);
    console.line(&format!(
        "image {}: {} in {} pieces",
        order.image.as_deref().unwrap_or(&meta.name),
        inventory::size_text(meta.geometry.content_len()),
        meta.geometry.piece_count()
    ));

    reporter.enter(Stage::Disk);
    console.stage(Stage::Disk);
    let (device, words) = choose_disk(&order.options, &layout, &coldplug, console, reporter).await?;
    if order.options.grow != Grow::No {
        // Before the drivers go.
        let coldplug = coldplug.clone();
        tokio::task::spawn_blocking(move || coldplug.load("ext4")).await.context("loading drivers")?;
    }
    give_back_driver_memory();
    check_memory(&meta)?;
    if order.options.dry_run {
        let url = order.boot.as_deref().map(dry_run::initramfs);
        let interface = network.dev.name.clone();
        let look = move || {
            let sample = restore::survey(&meta, &layout, &device).with_context(|| words.clone())?;
            anyhow::Ok(dry_run::words(&meta, &layout, &words, sample, &interface, url.as_deref()))
        };
        let note = tokio::task::spawn_blocking(look).await.context("measuring")??;
        console.dry_run(&note);
        reporter.update(|report| report.note = note);
        return Ok(order.options.after);
    }

    let options = Options { trackers: trackers(&order, &meta), memory_bytes: swarm_memory(), ..Options::default() };
    let table = Wish { grow: order.options.grow, new_disk_id: order.options.new_ids.then(new_guid) };
    let wishes = RestoreOptions {
        verify: order.options.verify,
        keep: order.options.keep,
        discard: order.options.discard,
        table,
    };
    let path = device.path().to_owned();
    let mut told = None;
    let tell = |progress| tell(progress, &mut told, console, reporter);
    let restored = restore::restore(meta, layout, device, options, wishes, tell);
    let restored = restored.await.with_context(|| words)?;
    restored.warnings.iter().for_each(|warning| console.line(warning));
    reporter.enter(Stage::Seeding);
    let mut cost = format!(
        "{} kept, {} fetched, {} written",
        inventory::size_text(restored.kept),
        inventory::size_text(restored.swarm.stats().downloaded),
        inventory::size_text(restored.written)
    );
    restored.warnings.iter().for_each(|warning| cost += &format!("; {warning}"));
    reporter.update(|report| {
        report.kept = restored.kept;
        report.note.clone_from(&cost);
    });
    let done = reporter.report();
    console.verified(&format!(
        "{} on {}: {cost}{}",
        inventory::size_text(done.bytes_total),
        done.disk,
        if order.options.verify { "" } else { "; not read back, only the partition table: VERIFY=no" }
    ));
    console.stage(Stage::Seeding);
    linger(&restored.swarm, Duration::from_secs(u64::from(order.options.linger)), reporter).await;
    restored.swarm.shutdown().await;
    if let Some(grown) = restored.grown {
        let grow = move || grow::file_system(&path, &grown);
        let said = match tokio::task::spawn_blocking(grow).await.context("growing the file system")? {
            Ok(words) => words,
            Err(error) => format!("a partition was grown, the file system in it was not: {error:#}"),
        };
        console.line(&said);
        reporter.update(|report| report.note += &format!("; {said}"));
    }
    Ok(order.options.after)
}

fn server_of(args: &BootArgs, network: &Network) -> Result<Ipv4Addr> {
    args.server.or(network.lease.siaddr).context(
        "no server address: DHCP gave no next-server (siaddr), and the kernel command line has no ezio.server=",
    )
}

/// Asks until there is a configuration and its torrent. Missing files and silence may pass; bad content does not.
async fn fetch_orders(
    server: Ipv4Addr,
    mac: MacAddr,
    args: &BootArgs,
    console: &Console,
    reporter: &Reporter,
) -> Result<(Order, Metainfo)> {
    let mut told: Option<(String, Instant)> = None;
    loop {
        let trouble = match fetch::conf(server, mac).await {
            Ok((text, name)) => {
                // Before anything can be wrong with it, or only the screen would know.
                let said = |key: &str| value_of(&text, &args.overrides, key);
                if let Some(url) = said("REPORT") {
                    reporter.update(|report| {
                        report.deployment = said("DEPLOYMENT").unwrap_or_default();
                        report.image = said("IMAGE").unwrap_or_default();
                    });
                    reporter.set_url(url);
                }
                let order =
                    Order::parse(&text, &args.overrides).with_context(|| format!("reading {name} from {server}"))?;
                for key in order.unknown_in_words() {
                    log::warn!("{name}: {key} is not known and means nothing");
                }
                reporter.update(|report| report.dry_run = order.options.dry_run);
                match fetch::torrent(server, &order.torrent).await {
                    Ok(bytes) => {
                        check_room_for(&bytes)?;
                        let meta = Metainfo::parse(&bytes)
                            .with_context(|| format!("refusing {} from {server}", order.torrent))?;
                        return Ok((order, meta));
                    }
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let text = format!("{trouble:#}");
        if told.as_ref().is_none_or(|(last, at)| *last != text || at.elapsed() > REPEAT_TROUBLE) {
            console.trouble(&text);
            told = Some((text, Instant::now()));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
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

/// What `/proc/meminfo` has under this name, in bytes.
fn meminfo(name: &str) -> usize {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0) * 1024
}

/// A quarter of what is free, within what is useful: the rest is for page cache and the proof.
fn swarm_memory() -> usize {
    const MOST: usize = 96 << 20;
    (meminfo("MemAvailable") / 4).clamp(SWARM_LEAST, MOST)
}

/// The kernel unpacks the RAM system into memory, and goes on with what there was room for.
fn check_unpacked() -> Result<()> {
    if Path::new("/unpacked").exists() {
        return Ok(());
    }
    bail!(
        "this machine has {} MB of memory, not enough to unpack the RAM system: add memory, or use a smaller boot image \
         (FLAVOUR=cloud for virtual machines)",
        meminfo("MemTotal") >> 20
    )
}

/// Before the torrent is read: all of it in memory, several times over.
fn check_room_for(torrent: &[u8]) -> Result<()> {
    // Measured: 31 MB of torrent, 500,000 extents, were 143 MiB at the peak.
    let needed = torrent.len().saturating_mul(5);
    let free = meminfo("MemAvailable");
    if free >= needed {
        return Ok(());
    }
    bail!(
        "this machine has {} MB of memory, {} MB of them free: a torrent of {} kB (a very fragmented image) needs {} MB; nothing \
         was written; add memory, or defragment the file systems and capture the image again",
        meminfo("MemTotal") >> 20,
        free >> 20,
        torrent.len() >> 10,
        needed >> 20
    )
}

/// Before the first write: pieces on their way, and what comes and goes beside them, fit into memory.
fn check_memory(meta: &Metainfo) -> Result<()> {
    const BESIDE: usize = 12 << 20;
    let piece_len = usize::try_from(meta.geometry.piece_len()).unwrap_or(usize::MAX);
    // Two thirds of the swarm's share are for pieces; each of two that are hashed or written has left it.
    let needed = SWARM_LEAST.max(piece_len.saturating_mul(4)).saturating_add(BESIDE);
    let free = meminfo("MemAvailable");
    if free >= needed {
        return Ok(());
    }
    bail!(
        "this machine has {} MB of memory, {} MB of them free: pieces of {} kB need {} MB; nothing was written; add memory, \
         or capture the image again with smaller pieces (--piece-len)",
        meminfo("MemTotal") >> 20,
        free >> 20,
        piece_len >> 10,
        needed >> 20
    )
}

/// The RAM system lives in memory, and drivers that were not needed are most of it (119 MB of the generic image).
fn give_back_driver_memory() {
    for dir in ["/lib/modules", "/lib/firmware"] {
        if let Err(cause) = std::fs::remove_dir_all(dir)
            && cause.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("{dir} stays in memory: {cause}");
        }
    }
}

async fn choose_disk(
    options: &order::Options,
    layout: &Layout,
    coldplug: &Coldplug,
    console: &Console,
    reporter: &Reporter,
) -> Result<(Arc<Device>, String)> {
    let started = Instant::now();
    let mut looked = started;
    let sysfs = Path::new("/sys");
    loop {
        let is_late = started.elapsed() > DISKS_LIMIT;
        let mut disks = inventory::disks(sysfs);
        let proc = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
        inventory::mark_mounted(&mut disks, sysfs, &proc("/proc/self/mountinfo"), &proc("/proc/swaps"));
        if disks.is_empty() && looked.elapsed() > LOOK_AGAIN {
            looked = Instant::now();
            let coldplug = coldplug.clone();
            tokio::task::spawn_blocking(move || coldplug.look_again()).await.context("loading drivers")?;
        }
        if (coldplug.quiet_for() < DISKS_QUIET || disks.is_empty()) && !is_late {
            tokio::time::sleep(Duration::from_millis(250)).await;
            continue;
        }
        let (path, words) = match target::partition(&options.target, &disks, sysfs) {
            Some(partition) => {
                let words = partition.display().to_string();
                console.line(&format!("disk {words}"));
                (partition, words)
            }
            None => match target::choose(&options.target, &disks, layout) {
                Ok(disk) => {
                    let disk = look_at(vec![disk.clone()]).await?.remove(0);
                    console.line(&format!("disk {}", disk.describe_fully()));
                    (disk.path.clone(), if options.dry_run { disk.describe_fully() } else { disk.describe() })
                }
                Err(mut refusal) => {
                    refusal.disks = look_at(refusal.disks).await?;
                    return Err(refusal.into());
                }
            },
        };
        reporter.update(|report| report.disk.clone_from(&words));
        let device = Device::open_exclusive(&path)?;
        if let Err(cause) = layout.check_device(device.len(), device.sector_size()) {
            bail!("{words}: {cause}; nothing was touched");
        }
        return Ok((Arc::new(device), words));
    }
}

/// The disks with what is on them.
async fn look_at(mut disks: Vec<Disk>) -> Result<Vec<Disk>> {
    let looking = tokio::task::spawn_blocking(move || {
        inventory::look_at(&mut disks, LOOK_LIMIT);
        disks
    });
    looking.await.context("looking at the disks")
}

/// Shows progress, here and to the server; trouble now and then, at `told` for the last time.
fn tell(progress: Progress, told: &mut Option<Instant>, console: &Console, reporter: &Reporter) {
    let before = reporter.report().stage;
    reporter.enter(progress.stage);
    reporter.update(|report| {
        report.bytes_done = progress.bytes_done;
        report.bytes_total = progress.bytes_total;
        report.rate_bytes_per_s = progress.rate_bytes_per_s;
        report.downloaded = progress.downloaded;
        report.uploaded = progress.uploaded;
        report.written = progress.written;
        report.peers = progress.peers;
        report.note = progress.trouble.clone().unwrap_or_default();
    });
    if let Some(trouble) = progress.trouble {
        if told.is_none_or(|at| at.elapsed() >= REPEAT_TROUBLE) {
            *told = Some(Instant::now());
            console.trouble(&trouble);
        }
        return;
    }
    if told.take().is_some() || before != progress.stage {
        console.stage(progress.stage);
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
            report.uploaded = stats.uploaded;
            report.peers = u32::try_from(stats.peers).unwrap_or(u32::MAX);
        });
        if last.elapsed() >= linger || finished.elapsed() >= most {
            return;
        }
        tokio::time::sleep(SEEDING_LOOK).await;
    }
}

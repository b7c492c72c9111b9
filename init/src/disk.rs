//! Which disk this machine writes to: the kernel's disks once all of them are there, and the one that the order means.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use blockdev::inventory::Disk;
use blockdev::{Device, inventory};
use layout::Layout;

use crate::console::Console;
use crate::modules::Coldplug;
use crate::reporter::Reporter;
use crate::target;

/// Disks are counted once no device has appeared for this long …
const QUIET: Duration = Duration::from_secs(2);
/// … but not later than this: large enclosures spin their disks up one after the other.
const LIMIT: Duration = Duration::from_secs(90);
/// How often the kernel's devices are looked at until then.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// While there is no disk at all, drivers are looked for again this often.
const DRIVERS_EVERY: Duration = Duration::from_secs(10);
/// A disk may take this long to show what is on it, which people are told and which decides nothing.
const CONTENT_LIMIT: Duration = Duration::from_secs(10);

/// The disk to write to.
pub struct Chosen {
    /// Opened for this machine alone.
    pub device: Arc<Device>,
    /// Its name, model, serial and size.
    pub words: String,
    /// Whether it is a disk, not a partition of one.
    pub is_whole: bool,
}

/// Waits for the disks and chooses the one that the order means.
///
/// # Errors
/// If not exactly one disk fits the order, or it cannot be opened, or the image does not fit it. Nothing was touched.
pub async fn choose(
    options: &order::Options,
    layout: &Layout,
    coldplug: &Coldplug,
    console: &Console,
    reporter: &Reporter,
) -> Result<Chosen> {
    let disks = wait_for_disks(coldplug).await?;
    let (path, words, is_whole) = match target::partition(&options.target, &disks, Path::new("/sys")) {
        Some(partition) => {
            let words = partition.display().to_string();
            console.line(&format!("disk {words}"));
            (partition, words, false)
        }
        None => {
            let (path, words) = whole_disk(options, &disks, layout, console).await?;
            (path, words, true)
        }
    };
    // Before it is opened, so that the server names the disk of a machine that fails here.
    reporter.update(|report| report.disk.clone_from(&words));
    let device = Device::open_exclusive(&path)?;
    if let Err(cause) = layout.check_device(device.len(), device.sector_size()) {
        bail!("{words}: {cause}; nothing was touched");
    }
    Ok(Chosen { device: Arc::new(device), words, is_whole })
}

async fn wait_for_disks(coldplug: &Coldplug) -> Result<Vec<Disk>> {
    let started = Instant::now();
    let mut looked = started;
    let sysfs = Path::new("/sys");
    loop {
        let mut disks = inventory::disks(sysfs);
        let proc = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
        inventory::mark_mounted(&mut disks, sysfs, &proc("/proc/self/mountinfo"), &proc("/proc/swaps"));
        if started.elapsed() > LIMIT || coldplug.quiet_for() >= QUIET && !disks.is_empty() {
            return Ok(disks);
        }
        if disks.is_empty() && looked.elapsed() > DRIVERS_EVERY {
            looked = Instant::now();
            let coldplug = coldplug.clone();
            tokio::task::spawn_blocking(move || coldplug.look_again()).await.context("loading drivers")?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn whole_disk(
    options: &order::Options,
    disks: &[Disk],
    layout: &Layout,
    console: &Console,
) -> Result<(PathBuf, String)> {
    match target::choose(&options.target, disks, layout) {
        Ok(disk) => {
            let disk = look_at(vec![disk.clone()]).await?.remove(0);
            console.line(&format!("disk {}", disk.describe_fully()));
            let words = if options.dry_run { disk.describe_fully() } else { disk.describe() };
            Ok((disk.path, words))
        }
        Err(mut refusal) => {
            refusal.disks = look_at(refusal.disks).await?;
            Err(refusal.into())
        }
    }
}

/// The disks with what is on them.
async fn look_at(mut disks: Vec<Disk>) -> Result<Vec<Disk>> {
    let looking = tokio::task::spawn_blocking(move || {
        inventory::look_at(&mut disks, CONTENT_LIMIT);
        disks
    });
    looking.await.context("looking at the disks")
}

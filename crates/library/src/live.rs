//! Live images: the content stays on the disk that was captured, and is seeded from there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use blockdev::{Device, inventory};

use crate::manifest::{Live, Manifest};

/// Where udev keeps names that stay the same, the better ones first: the disk's own, then the partition's UUID.
const STABLE_NAMES: [&str; 2] = ["/dev/disk/by-id", "/dev/disk/by-partuuid"];

/// What there is to know of a source that is to be found again later.
///
/// # Errors
/// If it has no path that can be written down.
pub fn describe(source: &Path) -> anyhow::Result<Live> {
    let path = std::path::absolute(source).with_context(|| format!("finding {}", source.display()))?;
    let text =
        |path: &Path| path.to_str().map(str::to_owned).context("the path of a live image's source has to be UTF-8");
    let node = fs::canonicalize(&path).with_context(|| format!("finding {}", path.display()))?;
    let is_device = node.starts_with("/dev");
    let disk = inventory::disks(Path::new("/sys")).into_iter().find(|disk| is_device && disk.path == node);
    Ok(Live {
        source: text(&path)?,
        stable: stable_name(&node).filter(|_| is_device).map(|path| text(&path)).transpose()?.unwrap_or_default(),
        serial: disk.map(|disk| disk.serial).unwrap_or_default(),
    })
}

/// Opens the source of a live image for reading, if it can be the one.
///
/// # Errors
/// That it is not there, or of another size, and what to do.
pub fn open(live: &Live, manifest: &Manifest) -> anyhow::Result<Device> {
    let path = live.path();
    let shown = path.display();
    let device = Device::open_read(path).with_context(|| {
        format!(
            "cannot open {shown}, the source of this live image: attach the disk{} again, or capture the image again",
            if live.serial.is_empty() { String::new() } else { format!(" with serial number {}", live.serial) }
        )
    })?;
    ensure!(
        device.len() >= manifest.disk_size,
        "the source {shown} of this live image has {} bytes, it had {} when it was captured: it is another disk or was cut \
         short; attach the right one, or capture the image again",
        device.len(),
        manifest.disk_size
    );
    Ok(device)
}

/// udev's link to this node, if there is one.
fn stable_name(node: &Path) -> Option<PathBuf> {
    STABLE_NAMES.iter().find_map(|dir| {
        let mut links: Vec<PathBuf> = fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        links.sort_unstable();
        links.into_iter().find(|link| fs::canonicalize(link).is_ok_and(|to| to == node))
    })
}

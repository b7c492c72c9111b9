//! Live images: the content stays on the disk that was captured, and is seeded from there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use blockdev::{Device, inventory};
use sha2::{Digest, Sha256};

use crate::manifest::{Live, Manifest};

/// Where udev keeps names that stay the same, the better ones first: the disk's own, then the partition's UUID.
const STABLE_NAMES: [&str; 2] = ["/dev/disk/by-id", "/dev/disk/by-partuuid"];

/// Where a machine keeps its identity, which no other has and which it tells nobody (machine-id(5)).
const MACHINE_ID: &str = "/etc/machine-id";

/// What there is to know of a source that is to be found again later, bound to this machine.
///
/// # Errors
/// If it has no path that can be written down, or this machine has no identity.
pub fn describe(source: &Path) -> anyhow::Result<Live> {
    let path = std::path::absolute(source).with_context(|| format!("finding {}", source.display()))?;
    let text =
        |path: &Path| path.to_str().map(str::to_owned).context("the path of a live image's source has to be UTF-8");
    let node = fs::canonicalize(&path).with_context(|| format!("finding {}", path.display()))?;
    let is_device = node.starts_with("/dev");
    let disk = inventory::disks(Path::new("/sys")).into_iter().find(|disk| is_device && disk.path == node);
    let live = Live {
        source: text(&path)?,
        stable: stable_name(&node).filter(|_| is_device).map(|path| text(&path)).transpose()?.unwrap_or_default(),
        serial: disk.map(|disk| disk.serial).unwrap_or_default(),
        host: String::new(),
    };
    Ok(Live { host: tag(&live, &machine_id()?), ..live })
}

/// The same source, bound to this machine: for a live image of an earlier version, or of a library that has moved here with its
/// disk. A person says so, who has compared the content.
///
/// # Errors
/// If this machine has no identity.
pub fn adopt(live: &Live) -> anyhow::Result<Live> {
    Ok(Live { host: tag(live, &machine_id()?), ..live.clone() })
}

fn machine_id() -> anyhow::Result<String> {
    let id = fs::read_to_string(MACHINE_ID).unwrap_or_default();
    let is_good = id.trim().len() == 32 && id.trim().bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(
        is_good,
        "this machine has no identity in {MACHINE_ID}, by which a live image is known to be its own: run \
         `systemd-machine-id-setup`, or capture without --live"
    );
    Ok(id.trim().to_owned())
}

/// What only this machine can have written about that source.
fn tag(live: &Live, machine_id: &str) -> String {
    let mut hash = Sha256::new();
    for part in ["ezio live image", machine_id, &live.source, &live.stable, &live.serial] {
        // With its length, so that no two lists of parts are the same bytes.
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens the source of a live image for reading, if it can be the one. A manifest is believed only where `ezio capture --live`
/// has written it on this very machine: a library from elsewhere does not decide which disk of this one is handed out.
///
/// # Errors
/// That it was written elsewhere, that the source is not there, or of another size, and what to do.
pub fn open(live: &Live, manifest: &Manifest) -> anyhow::Result<Device> {
    let path = live.path();
    let shown = path.display();
    ensure!(
        live.host == tag(live, &machine_id()?),
        "this live image was not captured on this machine (or by an earlier version), so {shown} is not handed out: if it is \
         the disk that was captured, `ezio image adopt` compares it and takes it over"
    );
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

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn a_source_is_of_one_machine_and_one_disk() {
        let live = Live { source: "/dev/sdb".into(), serial: "X7".into(), ..Live::default() };
        let here = tag(&live, HERE);
        assert_eq!((here.len(), &here), (64, &tag(&live, HERE)));
        let others = [
            Live { source: "/dev/sda".into(), ..live.clone() },
            Live { stable: "/dev/disk/by-id/ata-Y".into(), ..live.clone() },
            Live { serial: "X8".into(), ..live.clone() },
            Live { source: "/dev/sdbX7".into(), serial: String::new(), ..live.clone() },
        ];
        assert!(others.iter().all(|other| tag(other, HERE) != here));
        assert_ne!(tag(&live, "ffeeddccbbaa99887766554433221100"), here);
    }

    #[test]
    fn what_another_machine_wrote_opens_nothing_here() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = dir.path().join("disk");
        fs::write(&disk, [7; 4096]).expect("written");
        let manifest = Manifest { disk_size: 4096, ..Manifest::default() };
        let live = describe(&disk).expect("this machine has an identity");
        open(&live, &manifest).expect("our own");
        let forged = [
            Live { host: String::new(), ..live.clone() },
            Live { host: tag(&live, HERE), ..live.clone() },
            Live { source: "/dev/null".into(), ..live.clone() },
            Live { stable: disk.to_string_lossy().into_owned(), source: "/dev/sdb".into(), ..live },
        ];
        for live in &forged {
            let said = open(live, &manifest).expect_err("not ours").to_string();
            assert!(said.contains("not captured on this machine") && said.contains("ezio image adopt"), "{said}");
        }
        open(&adopt(&forged[0]).expect("this machine has an identity"), &manifest).expect("a person has said so");
    }
}

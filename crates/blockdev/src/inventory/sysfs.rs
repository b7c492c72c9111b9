//! Reads sysfs as text that cannot garble a terminal.

use order::Bus;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a disk is in sysfs.
pub(super) struct Place {
    /// `/sys/block/NAME`.
    pub(super) dir: PathBuf,
    /// The real directory, whose path has every bridge and port on the way.
    pub(super) real: PathBuf,
    /// How many components of `real` belong to sysfs itself.
    pub(super) depth: usize,
}

impl Place {
    pub(super) fn of(sysfs: &Path, name: &str) -> Place {
        let dir = sysfs.join("block").join(name);
        let real = fs::canonicalize(&dir).unwrap_or_else(|_| dir.clone());
        let root = fs::canonicalize(sysfs).unwrap_or_else(|_| sysfs.to_owned());
        let depth = if real.starts_with(&root) { root.iter().count() } else { 0 };
        Place { dir, real, depth }
    }

    /// The directories on the way to the disk, outermost first, with their names.
    pub(super) fn way(&self) -> Vec<(&Path, &str)> {
        let mut way: Vec<_> = self.real.ancestors().filter_map(|dir| Some((dir, dir.file_name()?.to_str()?))).collect();
        way.reverse();
        // The root has no name, so it is not among them.
        way.split_off(self.depth.saturating_sub(1).min(way.len()))
    }

    /// The bus the disk is attached to; `None` if a rule has no name for it.
    pub(super) fn bus(&self) -> Option<Bus> {
        // The path through sysfs names every bridge on the way; the nearest to the disk decides.
        let way = self.way();
        let has = |prefix: &str| way.iter().any(|(_, name)| name.starts_with(prefix));
        let prefixes = [
            ("usb", Bus::Usb),
            ("nvme", Bus::Nvme),
            ("mmc", Bus::Mmc),
            ("ata", Bus::Ata),
            ("host", Bus::Scsi),
            ("target", Bus::Scsi),
            ("virtio", Bus::Virtio),
        ];
        prefixes.into_iter().find(|(prefix, _)| has(prefix)).map(|(_, bus)| bus)
    }
}

pub(super) fn bare_wwn(text: &str) -> String {
    let mut rest = text.trim().to_ascii_lowercase();
    for prefix in ["wwn-", "nvme-", "naa.", "eui.", "uuid.", "0x"] {
        if let Some(short) = rest.strip_prefix(prefix) {
            rest = short.to_owned();
        }
    }
    let is_number = rest.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '-'));
    if is_number { rest.replace([':', '-'], "") } else { rest }
}

pub(super) fn first_of(dir: &Path, names: &[&str]) -> String {
    names.iter().map(|name| read(dir, name)).find(|text| !text.is_empty()).unwrap_or_default()
}

/// A file's text, trimmed, without characters that would garble a terminal: devices choose their names freely.
pub(super) fn read(dir: &Path, name: &str) -> String {
    clean(&String::from_utf8_lossy(&fs::read(dir.join(name)).unwrap_or_default()))
}

pub(super) fn clean(text: &str) -> String {
    let is_blank = |c: char| c.is_whitespace() || c == '\0';
    text.trim_matches(is_blank).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

pub(super) fn list(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

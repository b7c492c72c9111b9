//! The disks of this machine, as sysfs shows them, and what is on them.

mod names;
mod sysfs;
mod usage;
mod ways;

use order::Bus;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use sysfs::{Place, bare_wwn, first_of, read};
pub use usage::mark_mounted;

/// One whole disk. A text field is empty if the kernel does not know the value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Kernel name (`sda`, `nvme0n1`); changes between boots, so it is never stored.
    pub name: String,
    /// `/dev/` and the name.
    pub path: PathBuf,
    /// Size in bytes.
    pub len: u64,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// The bus it is attached to; `None` if a rule has no name for it.
    pub bus: Option<Bus>,
    /// Model name.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// World-wide name.
    pub wwn: String,
    /// The kernel marks it removable.
    pub is_removable: bool,
    /// The kernel will not write to it.
    pub is_read_only: bool,
    /// It has platters, not flash.
    pub is_rotational: bool,
    /// What uses it or one of its partitions (device mapper, RAID, a mount), as text: `dm-0 holds sda1`.
    pub uses: Vec<String>,
    /// Names below `/dev/disk/by-id`, as udev would make them.
    pub by_id: Vec<String>,
    /// Names below `/dev/disk/by-path`, as udev would make them, the usual one first.
    pub by_path: Vec<String>,
    /// Its contents, described as text; empty until [`look_at`] has read them.
    pub contents: String,
}

impl Disk {
    /// Name, size, bus, model and serial in one line, for a person who has to find it in the machine.
    pub fn describe(&self) -> String {
        format!("{} ({})", self.path.display(), self.facts())
    }

    /// The same, with sector size and contents.
    pub fn describe_fully(&self) -> String {
        let contents = if self.contents.is_empty() { String::new() } else { format!("; {}", self.contents) };
        format!("{} ({}, {}-byte sectors{contents})", self.path.display(), self.facts(), self.sector_size)
    }

    fn facts(&self) -> String {
        let mut line = units::size(self.len);
        let bus = self.bus.map_or("", Bus::as_str);
        for (label, value) in [("", bus), ("", &self.model), ("serial ", &self.serial)] {
            if !value.is_empty() {
                line.push_str(&format!(", {label}{value}"));
            }
        }
        line
    }

    /// Whether this appears to be the same disk as `other`, reached another way: the WWNs are equal or, if a disk has
    /// none, serial number, model and size are.
    pub fn is_twin_of(&self, other: &Disk) -> bool {
        if self.name == other.name {
            return false;
        }
        if !self.wwn.is_empty() && !other.wwn.is_empty() {
            return is_same_wwn(&self.wwn, &other.wwn);
        }
        !self.serial.is_empty() && (&self.serial, &self.model, self.len) == (&other.serial, &other.model, other.len)
    }
}

/// Whether two world-wide names are the same, regardless of their notation: `0x5000…`, `naa.5000…`, `EUI.0025…`.
pub fn is_same_wwn(a: &str, b: &str) -> bool {
    bare_wwn(a) == bare_wwn(b)
}

/// The whole disks below `sysfs` (normally `/sys`), by name. Memory disks, loops, optical drives and mapped devices are
/// left out, because they are not disks of the machine. Anything of zero size (an empty card reader) is left out too.
/// Only sysfs is read.
pub fn disks(sysfs: &Path) -> Vec<Disk> {
    let Ok(entries) = fs::read_dir(sysfs.join("block")) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut disks: Vec<_> = names.filter_map(|name| disk(sysfs, &name)).collect();
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks
}

/// Reads what is on these disks, all of them at once. A disk that has not answered within `limit` is skipped: a read
/// from a dying disk can take minutes.
pub fn look_at(disks: &mut [Disk], limit: Duration) {
    let until = Instant::now() + limit;
    let look = |disk: &Disk| {
        let (path, len, sector_size) = (disk.path.clone(), disk.len, disk.sector_size);
        let (tell, told) = sync_channel(1);
        let look = move || {
            let words = match File::open(path) {
                Ok(mut file) => layout::contents::describe(&mut file, len, sector_size),
                Err(cause) => format!("unreadable: {cause}"),
            };
            // The caller may have stopped waiting.
            let _ = tell.send(words);
        };
        // If no thread starts, no answer arrives; that case is handled below.
        let _ = std::thread::Builder::new().name(format!("look at {}", disk.name)).spawn(look);
        told
    };
    let answers: Vec<_> = disks.iter().map(look).collect();
    for (disk, answer) in disks.iter_mut().zip(answers) {
        let words = answer.recv_timeout(until.saturating_duration_since(Instant::now()));
        disk.contents = words.unwrap_or_else(|_| "unreadable: it does not answer".to_owned());
    }
}

fn disk(sysfs: &Path, name: &str) -> Option<Disk> {
    const NOT_DISKS: [&str; 9] = ["loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "mtdblock"];
    // A multipath member of an NVMe subsystem (nvme0c0n1) is the same disk as nvme0n1.
    let is_hidden = read(&sysfs.join("block").join(name), "hidden") == "1";
    // The boot areas of an eMMC (mmcblk0boot0) are part of the disk beside them.
    let is_boot_area = name.starts_with("mmcblk") && name.contains("boot");
    if NOT_DISKS.iter().any(|prefix| name.starts_with(prefix)) || is_hidden || is_boot_area {
        return None;
    }
    let place = Place::of(sysfs, name);
    let dir = &place.dir;
    let sectors: u64 = read(dir, "size").parse().ok()?;
    // The kernel counts the size in 512-byte units, whatever the sector size is.
    let len = sectors.checked_mul(512).filter(|&len| len > 0)?;
    let bus = place.bus();
    let identity = names::Identity::read(&place);
    let by_id = names::by_id(&place, bus, &identity);
    let wwn = first_of(dir, &["wwid", "device/wwid"]);
    // Makers write all zeros if there is no name.
    let is_wwn = bare_wwn(&wwn).chars().any(|c| c != '0');
    Some(Disk {
        name: name.to_owned(),
        // The kernel writes a slash in a name as an exclamation mark.
        path: Path::new("/dev").join(name.replace('!', "/")),
        len,
        sector_size: read(dir, "queue/logical_block_size").parse().unwrap_or(512),
        bus,
        model: identity.model,
        serial: identity.serial,
        wwn: if is_wwn { wwn } else { String::new() },
        is_removable: read(dir, "removable") == "1",
        is_read_only: read(dir, "ro") == "1",
        is_rotational: read(dir, "queue/rotational") == "1",
        uses: usage::holders(dir, name),
        by_id,
        by_path: ways::by_path(&place, bus),
        contents: String::new(),
    })
}

#[cfg(test)]
mod tests;

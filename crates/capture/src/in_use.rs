//! Finds out whether a disk, partition or disk image is in use, directly or through a loop device over it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::iter;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::sys::stat::{major, makedev, minor};

/// Most levels of loop devices over loop devices that are followed down; more levels have no sensible purpose.
pub const LOOPS_DEEP: usize = 16;

/// Fails if the block device or file is in use: itself, one of its partitions, what lies under it if it is a loop
/// device, or any chain of loop devices over these. A path that is neither device nor file is never in use.
///
/// # Errors
/// If one of these is mounted, swapped on, held by device mapper or RAID, or open exclusively; the error says which,
/// and by what. Also if that cannot be found out.
pub fn refuse_if_used(path: &Path) -> anyhow::Result<()> {
    let looking = || format!("looking at {}", path.display());
    let found = fs::metadata(path).with_context(looking)?;
    let mut devices = if found.file_type().is_block_device() {
        devices_of(&sysfs_of(&found).with_context(looking)?)?
    } else if found.is_file() {
        Vec::new()
    } else {
        return Ok(());
    };
    // The code that uses the disk afterwards opens it exclusively, so that is not tried here.
    let own = devices.len();
    for lower in iter::successors(Some(found), under).take(LOOPS_DEEP) {
        let over = loops_over(|backing| (backing.dev(), backing.ino()) == (lower.dev(), lower.ino()));
        add(&mut devices, over);
        if lower.file_type().is_block_device() {
            add(&mut devices, devices_of(&sysfs_of(&lower).with_context(looking)?)?);
        }
    }
    let mut seen = 0;
    while let Some(device) = devices.get(seen) {
        let number = device.number;
        let over = loops_over(|backing| backing.file_type().is_block_device() && backing.rdev() == number);
        add(&mut devices, over);
        seen += 1;
    }
    refuse_used_devices(path, &devices)?;
    devices[own..].iter().try_for_each(|device| refuse_if_exclusive(path, device))
}

/// The directory of a block device in sysfs.
///
/// # Errors
/// If there is none.
pub fn sysfs_of(device: &Metadata) -> io::Result<PathBuf> {
    let number = device.rdev();
    fs::canonicalize(format!("/sys/dev/block/{}:{}", major(number), minor(number)))
}

/// A device that shares bytes with the source.
pub struct Device {
    /// Its kernel name.
    pub name: String,
    /// Its device number, major and minor in one.
    pub number: u64,
    /// Its directory in sysfs.
    pub sysfs: PathBuf,
}

impl Device {
    /// Its name for people who named `path`.
    fn shown(&self, path: &Path) -> String {
        if path.ends_with(&self.name) {
            path.display().to_string()
        } else {
            format!("{} (/dev/{})", path.display(), self.name)
        }
    }
}

/// Adds the devices that are not yet in the list.
pub fn add(devices: &mut Vec<Device>, more: Vec<Device>) {
    for device in more {
        if devices.iter().all(|known| known.number != device.number) {
            devices.push(device);
        }
    }
}

/// The file or device under this one, if it is a loop device or a partition of one.
pub fn under(device: &Metadata) -> Option<Metadata> {
    fs::metadata(path_under(device)?).ok()
}

/// The path of that, as the kernel knows it.
pub fn path_under(device: &Metadata) -> Option<PathBuf> {
    if !device.file_type().is_block_device() {
        return None;
    }
    let sysfs = sysfs_of(device).ok()?;
    [sysfs.as_path(), sysfs.parent()?].into_iter().find_map(backing_path)
}

/// The file or device under the loop device with this directory in sysfs.
fn backing_of(sysfs: &Path) -> Option<Metadata> {
    fs::metadata(backing_path(sysfs)?).ok()
}

fn backing_path(sysfs: &Path) -> Option<PathBuf> {
    let path = fs::read_to_string(sysfs.join("loop/backing_file")).ok()?;
    Some(PathBuf::from(path.strip_suffix('\n').unwrap_or(&path)))
}

/// The device with this directory in sysfs, and its partitions.
///
/// # Errors
/// If the directory cannot be read.
pub fn devices_of(sysfs: &Path) -> anyhow::Result<Vec<Device>> {
    let device = |sysfs: &Path| -> Option<Device> {
        let text = fs::read_to_string(sysfs.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        let number = makedev(major.parse().ok()?, minor.parse().ok()?);
        let name = sysfs.file_name()?.to_string_lossy().into_owned();
        Some(Device { name, number, sysfs: sysfs.to_owned() })
    };
    let reading = || format!("reading {}", sysfs.display());
    let mut devices: Vec<Device> = device(sysfs).into_iter().collect();
    for child in fs::read_dir(sysfs).with_context(reading)? {
        let child = child.with_context(reading)?.path();
        if child.join("partition").exists() {
            devices.extend(device(&child));
        }
    }
    Ok(devices)
}

/// The loop devices over the files that `is_meant` accepts, with their partitions.
pub fn loops_over(is_meant: impl Fn(&Metadata) -> bool) -> Vec<Device> {
    let Ok(blocks) = fs::read_dir("/sys/block") else { return Vec::new() };
    let is_over = |dir: &Path| backing_of(dir).is_some_and(|backing| is_meant(&backing));
    let dirs = blocks.filter_map(|entry| fs::canonicalize(entry.ok()?.path()).ok());
    dirs.filter(|dir| is_over(dir)).filter_map(|dir| devices_of(&dir).ok()).flatten().collect()
}

fn refuse_used_devices(path: &Path, devices: &[Device]) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for device in devices {
        let is_it = |name: &str| {
            let node = fs::metadata(unescape(name)).ok();
            node.is_some_and(|node| node.file_type().is_block_device() && node.rdev() == device.number)
        };
        let shown = device.shown(path);
        for line in mounts.lines() {
            if let Some(mount) = Mount::parse(line).filter(|mount| mount.number == device.number || is_it(mount.source))
            {
                bail!(
                    "{shown} is mounted on {}: unmount it, or start this machine from another medium, and try again",
                    unescape(mount.point)
                );
            }
        }
        if swaps.lines().skip(1).any(|line| line.split_whitespace().next().is_some_and(is_it)) {
            bail!("{shown} is in use as swap: run `swapoff /dev/{}` and try again", device.name);
        }
        let holders = fs::read_dir(device.sysfs.join("holders")).into_iter().flatten();
        let holders: Vec<String> =
            holders.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
        if !holders.is_empty() {
            bail!("{shown} is held by {} (LVM, RAID, encryption?): stop that and try again", holders.join(", "));
        }
    }
    Ok(())
}

/// A mount in another namespace is in no list, but the kernel then refuses to open the device exclusively.
fn refuse_if_exclusive(path: &Path, device: &Device) -> anyhow::Result<()> {
    let opened: io::Result<File> =
        OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(Path::new("/dev").join(&device.name));
    if opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
        bail!(
            "{} is in use by the kernel (mounted in another namespace?): let go of it, or start this machine from another \
             medium",
            device.shown(path)
        );
    }
    Ok(())
}

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
struct Mount<'a> {
    number: u64,
    point: &'a str,
    /// The device it was mounted from; btrfs and others show a device number that is not this device's.
    source: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Mount<'a>> {
        let (head, tail) = line.split_once(" - ")?;
        let mut fields = head.split(' ');
        let (major, minor) = fields.nth(2)?.split_once(':')?;
        let number = makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(Mount { number, point: fields.nth(1)?, source: tail.split(' ').nth(1)? })
    }
}

/// Undoes the octal escapes of `/proc` (`\040` is a space).
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            _ => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_parse() {
        let line = "36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = Mount::parse(line).expect("good line");
        assert_eq!((major(mount.number), minor(mount.number)), (98, 0));
        assert_eq!((unescape(mount.point).as_str(), mount.source), ("/mnt/a b", "/dev/root"));
        for bad in ["", "36 35 98:0", "a b c d e - f", "36 35 98 / /mnt rw - ext4 /dev/sda1 rw"] {
            assert!(Mount::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape("a\\b\\04\\134c"), "a\\b\\04\\c");
    }
}

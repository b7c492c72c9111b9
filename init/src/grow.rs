//! A partition that took the space of a larger disk: the file system in it takes it too, where the kernel can do that
//! alone. After the swarm, since from here on the disk is no longer what the image has.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount, umount};
use restore::Grown;

/// Where the superblock of ext2, 3 and 4 has its magic, and what it is (`fs/ext4/ext4.h`).
const EXT_MAGIC: (u64, [u8; 2]) = (1080, [0x53, 0xef]);
const MOUNT_POINT: &str = "/run/grown";
/// A partition shows up soon after the table is read.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Grows the file system in a partition of `disk` to the partition's end. What was done, in words.
///
/// # Errors
/// Why the file system is as large as it was; the partition is sound all the same. Blocks.
pub fn file_system(disk: &Path, grown: &Grown) -> Result<String> {
    let number = grown.number;
    let partition = appears(disk, number).with_context(|| format!("partition {number} does not show up"))?;
    let place = partition.display();
    let mut magic = [0; 2];
    let file = File::open(&partition).with_context(|| format!("opening {place}"))?;
    file.read_exact_at(&mut magic, EXT_MAGIC.0).with_context(|| format!("reading {place}"))?;
    drop(file);
    if magic != EXT_MAGIC.1 {
        bail!("only ext4 is grown here, and {place} holds something else: grow it in the new system");
    }
    fs::create_dir_all(MOUNT_POINT).with_context(|| format!("creating {MOUNT_POINT}"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    mount(Some(&partition), MOUNT_POINT, Some("ext4"), flags, None::<&str>)
        .with_context(|| format!("mounting {place}"))?;
    let result = grow_ext4(grown.new_len);
    umount(MOUNT_POINT).with_context(|| format!("unmounting {place}"))?;
    result.with_context(|| format!("growing the ext4 in {place}"))?;
    Ok(format!("partition {number} and its ext4 now have {}", units::size(grown.new_len)))
}

fn grow_ext4(len: u64) -> Result<()> {
    let dir = File::open(MOUNT_POINT).context("opening its root")?;
    let about = nix::sys::statvfs::fstatvfs(&dir).context("asking for its block size")?;
    let block_size = about.fragment_size();
    ensure!(block_size > 0, "its blocks have no size");
    blockdev::grow_ext4(&dir, len / block_size).context("the kernel refuses")
}

/// The device of a partition, once the kernel has it.
fn appears(disk: &Path, number: u32) -> Result<PathBuf> {
    let name = disk.file_name().context("the disk has no name")?;
    let started = Instant::now();
    loop {
        let entries = fs::read_dir(Path::new("/sys/block").join(name)).context("looking for partitions")?;
        let numbered = |dir: &PathBuf| {
            let text = fs::read_to_string(dir.join("partition")).unwrap_or_default();
            text.trim().parse() == Ok(number)
        };
        let dir = entries.flatten().map(|entry| entry.path()).find(numbered);
        let device = dir.and_then(|dir| Some(Path::new("/dev").join(dir.file_name()?)));
        match device.filter(|device| device.exists()) {
            Some(device) => return Ok(device),
            None if started.elapsed() > APPEARS_WITHIN => bail!("the kernel has not read the new table"),
            None => std::thread::sleep(LOOK_EVERY),
        }
    }
}

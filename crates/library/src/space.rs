//! Whether there is room on a disk for what is to be written.

use std::path::Path;

use anyhow::{Context, ensure};

/// Room that stays free beside the content, in bytes: torrent, manifest, and a little peace.
const SPARE_ROOM: u64 = 64 << 20;

/// Whether the disk that a directory is on has room for that much more, in bytes.
///
/// # Errors
/// How much is needed and how much there is.
pub fn check_room(dir: &Path, len: u64) -> anyhow::Result<()> {
    let disk = nix::sys::statvfs::statvfs(dir).with_context(|| format!("measuring {}", dir.display()))?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    let needed = len.saturating_add(SPARE_ROOM);
    ensure!(
        free >= needed,
        "{} are needed, {} has {} free: make room, or choose another place",
        units::size(needed),
        dir.display(),
        units::size(free)
    );
    Ok(())
}

//! What fits into this machine's memory: the RAM system lives in it, and so does everything on its way to the disk.

use std::path::Path;

use anyhow::{Result, bail};
use metainfo::Metainfo;

/// The swarm gets at least this many bytes of memory.
const SWARM_LEAST: usize = 16 << 20;
/// More than this many would not make it faster.
const SWARM_MOST: usize = 96 << 20;
/// Bytes that come and go beside the swarm.
const BESIDE: usize = 12 << 20;
/// Peak memory of a torrent in multiples of its length. Measured: 31 MB, 500,000 extents, were 143 MiB at the peak.
const TORRENT_COPIES: usize = 5;

/// What `/proc/meminfo` has under this name, in bytes.
fn meminfo(name: &str) -> usize {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0) * 1024
}

fn text(bytes: usize) -> String {
    units::size(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// The swarm's share in bytes: a quarter of what is free, within what is useful. The rest is for page cache and the proof.
pub fn for_swarm() -> usize {
    (meminfo("MemAvailable") / 4).clamp(SWARM_LEAST, SWARM_MOST)
}

/// The kernel unpacks the RAM system into memory, and starts what there was room for.
///
/// # Errors
/// If there was no room for all of it.
pub fn check_unpacked() -> Result<()> {
    if Path::new("/unpacked").exists() {
        return Ok(());
    }
    bail!(
        "this machine has {} of memory, not enough to unpack the RAM system: add memory, or use a smaller boot image \
         (FLAVOUR=cloud for virtual machines)",
        text(meminfo("MemTotal"))
    )
}

/// Before the torrent is read: all of it has to fit, several times over.
///
/// # Errors
/// If it does not.
pub fn check_torrent(torrent: &[u8]) -> Result<()> {
    let needed = torrent.len().saturating_mul(TORRENT_COPIES);
    let free = meminfo("MemAvailable");
    if free >= needed {
        return Ok(());
    }
    bail!(
        "this machine has {} of memory, of which {} are free: a torrent of {} (a very fragmented image) needs {}; nothing was \
         written; add memory, or defragment the file systems and capture the image again",
        text(meminfo("MemTotal")),
        text(free),
        text(torrent.len()),
        text(needed)
    )
}

/// Before the first write: pieces on their way, and what comes and goes beside them, have to fit.
///
/// # Errors
/// If they do not.
pub fn check_pieces(meta: &Metainfo) -> Result<()> {
    let piece_len = usize::try_from(meta.geometry.piece_len()).unwrap_or(usize::MAX);
    // Two thirds of the swarm's share are for pieces; each of two that are hashed or written has left it.
    let needed = SWARM_LEAST.max(piece_len.saturating_mul(4)).saturating_add(BESIDE);
    let free = meminfo("MemAvailable");
    if free >= needed {
        return Ok(());
    }
    bail!(
        "this machine has {} of memory, of which {} are free: pieces of {} need {}; nothing was written; add memory, or capture \
         the image again with smaller pieces (--piece-len)",
        text(meminfo("MemTotal")),
        text(free),
        text(piece_len),
        text(needed)
    )
}

/// Drivers that were not needed are most of the RAM system (119 MB of the generic image): their files go.
pub fn give_back_drivers() {
    for dir in ["/lib/modules", "/lib/firmware"] {
        if let Err(cause) = std::fs::remove_dir_all(dir)
            && cause.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("{dir} stays in memory: {cause}");
        }
    }
}

//! Finds file systems that cannot be copied by their map of used blocks: hibernated, not shut down, or spread over
//! several devices. No map has what a journal has yet to write, and partclone checks for that only in some cases.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::partclone::find_program;

/// Exit codes of ntfs-3g.probe(8) for a Windows that hibernated (its fast start counts), and for one that crashed.
const HIBERNATED: i32 = 14;
const UNCLEAN: i32 = 15;

/// The result of the check.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// Nothing is wrong with its map.
    Fit,
    /// Its map may lack blocks in use. The text is for people; it adds that `--at-own-risk` copies it whole.
    Unfit(String),
    /// Its map is not about this partition alone, so it has to be copied whole; the text says why.
    Shared(&'static str),
}

/// Checks the file system of this name (as `blkid` reports it) on `volume`; `open` returns a path where programs find
/// it.
///
/// # Errors
/// If it cannot be read, or a program cannot be run.
pub(crate) fn look<W: AsRef<Path>>(
    file_system: &str,
    volume: &mut (impl Read + Seek),
    open: impl FnOnce() -> anyhow::Result<W>,
) -> anyhow::Result<Health> {
    let health = match file_system {
        "ext2" | "ext3" | "ext4" => superblock(volume, 1024)?.map(|block| ext(&block)),
        "btrfs" => superblock(volume, 65_536)?.map(|block| btrfs(&block)),
        "f2fs" => superblock(volume, 1024)?.map(|block| f2fs(&block, volume)).transpose()?,
        "exfat" => superblock(volume, 0)?.map(|block| exfat(&block)),
        "hfsplus" => superblock(volume, 1024)?.map(|block| hfsplus(&block)),
        "vfat" => Some(vfat(volume)?),
        "ntfs" => Some(ntfs(open()?.as_ref())?),
        "xfs" => Some(xfs(open()?.as_ref())?),
        _ => None,
    };
    Ok(health.unwrap_or(Health::Fit))
}

/// A block of the volume that is long enough for every superblock here; `None` if the volume is too short to have one.
fn superblock(volume: &mut (impl Read + Seek), at: u64) -> io::Result<Option<[u8; 512]>> {
    let mut block = [0; 512];
    volume.seek(SeekFrom::Start(at))?;
    match volume.read_exact(&mut block) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(|()| Some(block)),
    }
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(block[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"))
}

fn not_shut_down(what: &str) -> Health {
    Health::Unfit(format!(
        "the {what} on it was not unmounted cleanly, and its clones would lose files: start that system once and shut it down, \
         and capture again; or copy it whole with --at-own-risk"
    ))
}

/// `struct ext4_super_block`: `s_state`, and `s_feature_incompat`, which says whether the journal has yet to be
/// replayed.
fn ext(block: &[u8]) -> Health {
    const VALID: u16 = 1;
    const ERRORS: u16 = 2;
    const NEEDS_RECOVERY: u32 = 4;
    let state = u16_at(block, 0x3a);
    if state & ERRORS != 0 {
        return Health::Unfit(
            "the ext file system on it has recorded errors: let `e2fsck -f` repair it, and capture again; or copy it whole with \
             --at-own-risk"
                .to_owned(),
        );
    }
    if state & VALID == 0 || u32_at(block, 0x60) & NEEDS_RECOVERY != 0 {
        not_shut_down("ext file system")
    } else {
        Health::Fit
    }
}

/// `struct btrfs_super_block`: `log_root` is data that was synced but is in no tree yet; `num_devices` is how many
/// devices it spans.
fn btrfs(block: &[u8]) -> Health {
    if u64_at(block, 0x60) != 0 {
        not_shut_down("btrfs")
    } else if u64_at(block, 0x88) > 1 {
        Health::Shared("a btrfs over several devices")
    } else {
        Health::Fit
    }
}

/// `struct f2fs_super_block` says where the two checkpoints are, and `struct f2fs_checkpoint` whether unmounting made
/// the last one. Data synced since then is found only by reading the logs.
fn f2fs(block: &[u8], volume: &mut (impl Read + Seek)) -> io::Result<Health> {
    const UNMOUNTED: u32 = 1;
    let (block_bits, segment_bits, first) = (u32_at(block, 16), u32_at(block, 20), u64::from(u32_at(block, 76)));
    if block_bits > 16 || segment_bits > 16 {
        return Ok(Health::Fit);
    }
    let len = volume.seek(SeekFrom::End(0))?;
    let devices = usedmap::landmarks("f2fs", volume, len).ok().and_then(|landmarks| landmarks.devices);
    if devices.is_some_and(|devices| devices > 1) {
        return Ok(Health::Shared("an F2FS over several devices"));
    }
    let mut last = (0, UNMOUNTED);
    for pack in [first, first + (1 << segment_bits)] {
        if let Some(checkpoint) = superblock(volume, pack << block_bits)? {
            last = last.max((u64_at(&checkpoint, 0), u32_at(&checkpoint, 132)));
        }
    }
    Ok(if last.1 & UNMOUNTED == 0 { not_shut_down("F2FS") } else { Health::Fit })
}

/// The second entry of the table of FAT16 and FAT32 has a bit that marks a clean unmount.
fn vfat(volume: &mut (impl Read + Seek)) -> io::Result<Health> {
    let len = volume.seek(SeekFrom::End(0))?;
    // Nonsense values are reported when the map is made.
    let is_clean = usedmap::landmarks("vfat", volume, len).ok().and_then(|landmarks| landmarks.is_clean);
    Ok(if is_clean == Some(false) { not_shut_down("FAT file system") } else { Health::Fit })
}

/// exFAT specification, 3.1.13: `VolumeFlags`, whose bit 1 is `VolumeDirty`.
fn exfat(block: &[u8]) -> Health {
    if u16_at(block, 106) & 2 != 0 { not_shut_down("exFAT") } else { Health::Fit }
}

/// TN1150: `attributes` of the volume header, big-endian; bit 8 is `kHFSVolumeUnmountedBit`.
fn hfsplus(block: &[u8]) -> Health {
    let attributes = u32::from_be_bytes(block[4..8].try_into().expect("four bytes"));
    if attributes & 1 << 8 == 0 { not_shut_down("HFS+") } else { Health::Fit }
}

fn missing(program: &str, package: &str, what: &str) -> Health {
    Health::Unfit(format!(
        "{program}, which shows whether {what} was shut down, is missing: run `apt install {package}` (as root); or continue \
         without it with --at-own-risk, which copies it whole"
    ))
}

fn ntfs(device: &Path) -> anyhow::Result<Health> {
    let Some(program) = find_program("ntfs-3g.probe") else {
        return Ok(missing("ntfs-3g.probe", "ntfs-3g", "Windows"));
    };
    let output = Command::new(program).arg("--readwrite").arg(device).stdin(Stdio::null()).output();
    let output = output.context("running ntfs-3g.probe")?;
    Ok(match output.status.code() {
        Some(HIBERNATED) => Health::Unfit(
            "the Windows on it is hibernated, or was switched off with fast start: its clones would lose files. Start it, run \
             `shutdown /s /t 0` in it (or hold Shift while choosing Shut down), and capture again; or copy it whole with \
             --at-own-risk"
                .to_owned(),
        ),
        Some(UNCLEAN) => Health::Unfit(
            "the Windows on it was not shut down: start it, let it check its disk, shut it down, and capture again; or copy it \
             whole with --at-own-risk"
                .to_owned(),
        ),
        // Partclone judges all others.
        _ => Health::Fit,
    })
}

/// `xfs_logprint -t` finds head and tail of the log: "log tail: 2 head: 18 state: <DIRTY>".
fn xfs(device: &Path) -> anyhow::Result<Health> {
    let Some(program) = find_program("xfs_logprint") else {
        return Ok(missing("xfs_logprint", "xfsprogs", "this XFS"));
    };
    let output = Command::new(program).arg("-t").arg(device).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.context("running xfs_logprint")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(if text.contains("state: <CLEAN>") {
        Health::Fit
    } else if text.contains("state: <DIRTY>") {
        not_shut_down("XFS")
    } else {
        Health::Unfit(format!(
            "the log of the XFS on it cannot be read (is it on another device?), so what is in use is not known: check it with \
             `xfs_repair -n`, or copy it whole with --at-own-risk; xfs_logprint said: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    })
}

/// The message about a hibernated Linux: its memory is on the disk, and its file systems are in use.
pub(crate) const LINUX_HIBERNATED: &str = "the Linux on this disk is hibernated, so its file systems are in use: start it, shut it \
                                    down, and capture again; or take it as it is with --at-own-risk";

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn health(file_system: &str, bytes: &[u8]) -> Health {
        look(file_system, &mut Cursor::new(bytes), || -> anyhow::Result<&Path> { unreachable!("no program is asked") })
            .expect("readable")
    }

    /// A volume with these bytes.
    fn volume(places: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 80_000];
        for (at, part) in places {
            bytes[*at..*at + part.len()].copy_from_slice(part);
        }
        bytes
    }

    #[test]
    fn journals_that_are_to_be_replayed_are_found() {
        let unfit =
            |file_system, places: &[(usize, &[u8])]| matches!(health(file_system, &volume(places)), Health::Unfit(_));
        for (state, recover, is_unfit) in [(1, 0, false), (1, 4, true), (0, 0, true), (3, 0, true), (1, 0x42, false)] {
            assert_eq!(
                unfit("ext4", &[(1024 + 0x3a, &[state]), (1024 + 0x60, &[recover])]),
                is_unfit,
                "{state} {recover}"
            );
        }
        assert!(!unfit("btrfs", &[(65_536 + 0x88, &[1])]) && unfit("btrfs", &[(65_536 + 0x66, &[1])]));
        assert!(!unfit("exfat", &[(106, &[4])]) && unfit("exfat", &[(106, &[6])]));
        assert!(!unfit("hfsplus", &[(1024 + 6, &[1])]) && unfit("hfsplus", &[(1024 + 6, &[8])]));
        // Blocks of 4 KiB, segments of 8 blocks, checkpoints at blocks 2 and 10; the newer checkpoint counts.
        let sizes: (usize, &[u8]) = (1024 + 16, &[12, 0, 0, 0, 3]);
        for (newer, is_unfit) in [(10, true), (2, false)] {
            let places = [sizes, (1024 + 76, &[2]), (2 * 4096 + 132, &[1]), (newer * 4096, &[9])];
            assert_eq!(unfit("f2fs", &places), is_unfit, "{newer}");
        }
    }

    #[test]
    fn several_devices_are_noticed_and_short_volumes_are_none() {
        assert!(matches!(health("btrfs", &volume(&[(65_536 + 0x88, &[2])])), Health::Shared(_)));
        for file_system in ["ext4", "btrfs", "f2fs", "exfat", "hfsplus", "reiser4"] {
            assert_eq!(health(file_system, &[0xff; 300]), Health::Fit, "{file_system}");
        }
        // Whatever the superblock says, nothing is read past the end of the volume.
        for shift in [1, 9, 16, 17, 255] {
            let wild = [(1024 + 16, &[shift, 0, 0, 0, shift][..]), (1024 + 76, &[0xff; 4])];
            assert_eq!(health("f2fs", &volume(&wild)), Health::Fit, "{shift}");
        }
    }
}

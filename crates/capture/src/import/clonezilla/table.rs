//! A sparse file with the partition table and boot gap of the disk that Clonezilla saved, and nothing else.
//!
//! GPT: `sda-gpt-1st` is the first 34 sectors of 512 bytes, `sda-gpt-2nd` the last 32 or 33. MBR: `sda-mbr` is the
//! first sector, `sda-hidden-data-after-mbr` the data between it and the first partition; logical partitions are in
//! `sda-pt.sf`, a dump for `sfdisk`. The size of the disk is in `sda-pt.parted`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail, ensure};

use super::saved::Saved;
use crate::child::{Running, said};
use crate::partclone::{find_program, last_words};

/// Longest file about a table, in bytes: a GPT with more than a thousand entries, or text about as many partitions.
const TABLE_LEN_MAX: u64 = 1 << 20;
/// Most bytes taken from the space before the first partition; a capture keeps no more either.
const HIDDEN_LEN_MAX: u64 = 64 << 20;
/// Disks end at a multiple of this, in bytes, if their size was not recorded.
const ROUND_UP_TO: u64 = 1 << 20;
/// Offsets in a GPT header about its entries: LBA, count, length of one (UEFI 2.10, table 5.5).
const ENTRIES_LBA_AT: usize = 72;
const ENTRY_COUNT_AT: usize = 80;
const ENTRY_LEN_AT: usize = 84;
const BACKUP_LBA_AT: usize = 32;

/// Makes the disk at `path`; returns its sector size in bytes.
///
/// # Errors
/// If files are missing or contradict each other, or `sfdisk` is needed and fails.
pub(super) fn rebuild(saved: &Saved, path: &Path, stop: &AtomicBool) -> anyhow::Result<u32> {
    let making = || format!("making {}", path.display());
    let text = |ending: &str| -> anyhow::Result<String> {
        let bytes = saved.about_disk(ending, TABLE_LEN_MAX)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let size = parse_parted(&text("-pt.parted")?);
    let disk = File::create_new(path).with_context(making)?;
    let first = saved.about_disk("-gpt-1st", TABLE_LEN_MAX)?;
    let mbr = saved.about_disk("-mbr", TABLE_LEN_MAX)?;
    let hidden = |len: u64| saved.hidden(HIDDEN_LEN_MAX.min(len.saturating_sub(512)));

    if let Some(first) = first {
        let second = saved.about_disk("-gpt-2nd", TABLE_LEN_MAX)?.unwrap_or_default();
        let gpt = Gpt::parse(&first).with_context(|| format!("{}-gpt-1st is damaged, copy it again", saved.disk))?;
        let len = size.map_or(gpt.disk_len, |(len, _)| len.max(gpt.disk_len));
        disk.set_len(len).with_context(making)?;
        disk.write_all_at(&hidden(len)?, 512).with_context(making)?;
        disk.write_all_at(&first, 0).with_context(making)?;
        for (at, bytes) in gpt.backup(&first, &second, len) {
            disk.write_all_at(bytes, at).with_context(making)?;
        }
        return Ok(gpt.sector_size);
    }

    let script = text("-pt.sf")?;
    let ((len, sector_size), is_known) = match (size, script_size(&script)) {
        (Some(size), _) => (size, true),
        (None, Some(size)) => (size, false),
        (None, None) => bail!("neither {}-pt.parted nor {}-pt.sf says how large it is", saved.disk, saved.disk),
    };
    if !is_known {
        log::warn!(
            "the size of {} is unknown: the disk is assumed to end with its last partition, at {len} bytes",
            saved.disk
        );
    }
    disk.set_len(len).with_context(making)?;
    disk.write_all_at(&hidden(len)?, 512).with_context(making)?;
    let mbr = mbr.filter(|mbr| mbr.len() >= 512);
    if mbr.as_ref().is_none_or(|mbr| has_extended(mbr)) {
        ensure!(sector_size == 512, "logical partitions on a disk with {sector_size}-byte sectors are not supported");
        run_sfdisk(path, &script, stop)
            .with_context(|| format!("making the partitions that {}-pt.sf lists", saved.disk))?;
    }
    if let Some(mbr) = mbr {
        disk.write_all_at(&mbr[..512], 0).with_context(making)?;
    }
    Ok(sector_size)
}

/// The important fields of a GPT's header.
#[derive(Debug, PartialEq, Eq)]
struct Gpt {
    sector_size: u32,
    disk_len: u64,
    /// Where its entries are in the saved bytes.
    entries: std::ops::Range<usize>,
}

impl Gpt {
    fn parse(first: &[u8]) -> anyhow::Result<Gpt> {
        let sector_size = [512_u32, 4096].into_iter().find(|&size| header(first, size).is_some());
        let sector_size = sector_size.context("it has no GPT header")?;
        let header = header(first, sector_size).context("it has no GPT header")?;
        let (lba, backup) = (u64_at(header, ENTRIES_LBA_AT), u64_at(header, BACKUP_LBA_AT));
        let len = u64::from(u32_at(header, ENTRY_COUNT_AT)) * u64::from(u32_at(header, ENTRY_LEN_AT));
        let size = u64::from(sector_size);
        let start = lba.checked_mul(size).and_then(|start| usize::try_from(start).ok());
        let start = start.filter(|&start| start <= first.len()).context("its entries are elsewhere")?;
        let end =
            usize::try_from(len).ok().and_then(|len| start.checked_add(len)).context("its entries have no end")?;
        let disk_len = backup.checked_add(1).and_then(|sectors| sectors.checked_mul(size));
        let disk_len = disk_len.filter(|&len| i64::try_from(len).is_ok()).context("its disk would be endless")?;
        ensure!(disk_len >= u64::try_from(first.len())?, "its disk would be smaller than itself");
        Ok(Gpt { sector_size, disk_len, entries: start..end.min(first.len()) })
    }

    /// What to write for the backup on a disk of `len` bytes. On current disks, Clonezilla's copy starts one sector
    /// late: the first of its entries come from the first table.
    fn backup<'a>(&self, first: &'a [u8], second: &'a [u8], len: u64) -> Vec<(u64, &'a [u8])> {
        let size = u64::from(self.sector_size);
        let header_at = second.len().checked_sub(self.sector_size as usize);
        let header = header_at.map(|at| &second[at..]).filter(|header| header.starts_with(b"EFI PART"));
        let place = len.checked_sub(second.len() as u64);
        let (Some(header), Some(place)) = (header, place) else { return Vec::new() };
        let entries = &first[self.entries.clone()];
        let at = u64_at(header, ENTRIES_LBA_AT).checked_mul(size);
        let is_there = |at: &u64| at.checked_add(entries.len() as u64).is_some_and(|end| end <= len - size);
        let before = at.filter(is_there).filter(|&at| at >= len / 2).map(|at| (at, entries));
        before.into_iter().chain([(place, second)]).collect()
    }
}

fn header(first: &[u8], sector_size: u32) -> Option<&[u8]> {
    let at = usize::try_from(sector_size).ok()?;
    first.get(at..at + 512).filter(|header| header.starts_with(b"EFI PART"))
}

fn u64_at(header: &[u8], at: usize) -> u64 {
    header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn u32_at(header: &[u8], at: usize) -> u32 {
    header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Whether a first sector lists an extended partition.
fn has_extended(mbr: &[u8]) -> bool {
    (0..4).any(|entry| matches!(mbr.get(446 + 16 * entry + 4), Some(0x05 | 0x0f | 0x85)))
}

fn run_sfdisk(disk: &Path, script: &str, stop: &AtomicBool) -> anyhow::Result<()> {
    let program = find_program("sfdisk").context("looking for sfdisk: run `apt install fdisk` (as root)")?;
    let output = tempfile::tempfile().context("making room for what sfdisk says")?;
    let clone = || output.try_clone().context("making room for what sfdisk says");
    let child = Command::new(program)
        .args(["--force", "--no-reread", "--wipe", "never"])
        .arg(disk)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(clone()?)
        .stderr(clone()?)
        .spawn()
        .context("running sfdisk")?;
    let mut running = Running(child);
    let mut stdin = running.0.stdin.take().context("writing to sfdisk")?;
    // The program may end before it has read everything; only its exit code counts.
    let _ = stdin.write_all(script.as_bytes());
    drop(stdin);
    let status = running.wait(stop, || ())?;
    let words = || said(&output).map(|said| last_words(&said)).unwrap_or_default();
    ensure!(status.success(), "sfdisk refused it ({status}); it said:\n{}", words());
    Ok(())
}

/// Disk and sector size in bytes from the output of `parted unit s print`: `Disk /dev/sda: 131072s` and `Sector size
/// (logical/physical): 512B/512B`.
fn parse_parted(text: &str) -> Option<(u64, u32)> {
    let value = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start))?;
        line.rsplit_once(": ").map(|(_, value)| value.trim())
    };
    let sectors: u64 = value("Disk /")?.strip_suffix('s')?.parse().ok()?;
    let sector_size = value("Sector size (logical").map_or(Some(512), |sizes| {
        let logical: u32 = sizes.split('/').next()?.strip_suffix('B')?.parse().ok()?;
        (logical.is_power_of_two() && (512..=4096).contains(&logical)).then_some(logical)
    })?;
    sized(sectors, sector_size)
}

/// Minimum disk size, and sector size, from the partitions of a dump by `sfdisk -d`.
fn script_size(script: &str) -> Option<(u64, u32)> {
    let mut end = 0;
    let mut sector_size = 512;
    for line in script.lines() {
        if let Some(size) = line.strip_prefix("sector-size:") {
            sector_size = size.trim().parse().ok()?;
        }
        let Some((_, fields)) = line.split_once(" : ") else { continue };
        let number = |key: &str| -> Option<u64> {
            fields.split(',').find_map(|field| field.trim().strip_prefix(key)?.trim().parse().ok())
        };
        end = end.max(number("start=")?.checked_add(number("size=")?)?);
    }
    let len = sized(end, sector_size)?.0.checked_next_multiple_of(ROUND_UP_TO)?;
    Some((len, sector_size)).filter(|_| end > 0 && matches!(sector_size, 512 | 1024 | 2048 | 4096))
}

/// A disk of this many sectors, if such a disk can exist.
fn sized(sectors: u64, sector_size: u32) -> Option<(u64, u32)> {
    let len = sectors.checked_mul(u64::from(sector_size))?;
    (len > 0 && i64::try_from(len).is_ok()).then_some((len, sector_size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARTED: &str = "Model: ATA QEMU HARDDISK (scsi)\nDisk /dev/sda: 131072s\n\
        Sector size (logical/physical): 512B/4096B\nPartition Table: msdos\nDisk Flags: \n\nNumber  Start  End\n";
    const SCRIPT: &str = "label: dos\nlabel-id: 0xc0ffee00\ndevice: /dev/sda\nunit: sectors\nsector-size: 512\n\n\
        /dev/sda1 : start=        2048, size=       20480, type=83, bootable\n\
        /dev/sda2 : start=       24576, size=       40960, type=5\n";
    const OLD_SCRIPT: &str = "# partition table of /dev/sda\nunit: sectors\n\n\
        /dev/sda1 : start=     2048, size= 20480, Id=83, bootable\n/dev/sda3 : start=        0, size=        0, Id= 0\n";

    #[test]
    fn sizes_of_disks_are_read() {
        assert_eq!(parse_parted(PARTED), Some((64 << 20, 512)));
        assert_eq!(parse_parted("Disk /dev/sda: 100s\n"), Some((51_200, 512)));
        for (from, to) in [
            ("131072s", "64GB"),
            ("131072s", "s"),
            ("131072s", "99999999999999999s"),
            ("512B/", "500B/"),
            ("512B/", "0B/"),
            ("Disk /", "Disc /"),
            ("131072s", "0s"),
        ] {
            assert_eq!(parse_parted(&PARTED.replace(from, to)), None, "{to}");
        }
        assert_eq!(script_size(SCRIPT), Some((32 << 20, 512)));
        assert_eq!(script_size(OLD_SCRIPT), Some((11 << 20, 512)));
        for (from, to) in
            [("start=        2048", "start=x"), ("size=       40960", "size=18446744073709551615"), ("512", "7")]
        {
            assert_eq!(script_size(&SCRIPT.replace(from, to)), None, "{to}");
        }
        assert_eq!(script_size(""), None);
    }

    #[test]
    fn extended_partitions_are_seen() {
        let mut mbr = [0; 512];
        assert!(!has_extended(&mbr));
        mbr[446 + 48 + 4] = 0x0f;
        assert!(has_extended(&mbr));
        assert!(!has_extended(&mbr[..490]));
    }

    /// A table of 34 sectors and its copy, as Clonezilla keeps them, for a disk of this many sectors.
    fn gpt(sectors: u64) -> (Vec<u8>, Vec<u8>) {
        let mut first = vec![0; 34 * 512];
        for (index, byte) in first[1024..].iter_mut().enumerate() {
            *byte = u8::try_from(index % 251).expect("small");
        }
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[32..40].copy_from_slice(&(sectors - 1).to_le_bytes());
        header[72..80].copy_from_slice(&2u64.to_le_bytes());
        first[512..1024].copy_from_slice(&header);
        let mut second = first[1024 + 512..].to_vec();
        header[72..80].copy_from_slice(&(sectors - 33).to_le_bytes());
        second.extend(header);
        (first, second)
    }

    #[test]
    fn the_backup_is_whole_though_clonezilla_cuts_it() {
        let (first, second) = gpt(10_000);
        let parsed = Gpt::parse(&first).expect("good");
        assert_eq!((parsed.sector_size, parsed.disk_len), (512, 5_120_000));
        let mut disk = vec![0; 5_120_000];
        for (at, bytes) in parsed.backup(&first, &second, 5_120_000) {
            let at = usize::try_from(at).expect("small");
            disk[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let entries = &disk[(10_000 - 33) * 512..(10_000 - 1) * 512];
        assert!(entries == &first[1024..], "every entry is there");
        assert!(disk[9_999 * 512..].starts_with(b"EFI PART"));
        assert!(parsed.backup(&first, &[], 5_120_000).is_empty());
        assert!(parsed.backup(&first, &second, 1000).is_empty());
    }

    proptest! {
        #[test]
        fn changed_tables_never_panic_and_stay_on_the_disk(
            changes in proptest::collection::vec((0usize..100, any::<u8>()), 0..12),
            cut in 0usize..18_000,
            second_cut in 0usize..17_000,
        ) {
            let (mut first, mut second) = gpt(10_000);
            let tail = second.len() - 512;
            for (at, byte) in changes {
                first[512 + at] = byte;
                second[tail + at] = byte;
            }
            let first = &first[..cut.min(first.len())];
            let second = &second[second_cut.min(second.len())..];
            if let Ok(gpt) = Gpt::parse(first) {
                for (at, bytes) in gpt.backup(first, second, gpt.disk_len) {
                    prop_assert!(at + bytes.len() as u64 <= gpt.disk_len);
                }
            }
        }

        #[test]
        fn changed_texts_never_panic(at in 0usize..300, text in "([0-9]{1,21}|[a-z:=,/ -]|é|\\n){0,8}") {
            for good in [PARTED, SCRIPT, OLD_SCRIPT] {
                let at = at.min(good.len());
                let changed = format!("{}{text}{}", &good[..at], &good[at..]);
                for size in [parse_parted(&changed), script_size(&changed)].into_iter().flatten() {
                    prop_assert!(size.0 > 0 && i64::try_from(size.0).is_ok());
                }
            }
            let _ = has_extended(text.as_bytes());
        }
    }
}

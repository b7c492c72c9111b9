//! Which file system is where: by its signature, through `blkid`, never by the partition's type.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use metainfo::SwapFacts;

use super::source::Source;
use crate::partclone::find_program;

/// Exit code of `blkid`: nothing it knows is there.
const NOTHING: i32 = 2;
/// Exit code of `blkid`: several signatures contradict each other.
const AMBIVALENT: i32 = 8;
/// Page sizes of the machines that run Linux, in bytes: the signature of a swap area ends its first page.
const PAGE_SIZES: [u32; 4] = [4096, 8192, 16_384, 65_536];

/// What was found at a place on the disk; all empty if nothing was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// As `blkid` calls it: `ext4`, `vfat`, `ntfs`, `crypto_LUKS`, `swap`, …
    pub file_system: String,
    /// Label.
    pub label: String,
    /// UUID as it is written for this file system.
    pub uuid: String,
    /// Which kind of it, where there are several: `FAT12`.
    pub version: String,
    /// Signatures of several were found, so none counts.
    pub is_ambivalent: bool,
}

/// Looks at bytes `place` of the source.
///
/// # Errors
/// If `blkid` is missing or cannot read the source.
pub fn probe(source: &Path, place: &Range<u64>) -> anyhow::Result<Probe> {
    let blkid = find_program("blkid")
        .context("looking for blkid, which tells file systems apart: run `apt install util-linux` (as root)")?;
    let output = Command::new(blkid)
        .args(["-p", "-o", "export"])
        .arg(format!("--offset={}", place.start))
        .arg(format!("--size={}", place.end - place.start))
        .arg(source)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("running blkid")?;
    match output.status.code() {
        Some(0) => Ok(parse(&String::from_utf8_lossy(&output.stdout))),
        Some(NOTHING) => Ok(Probe::default()),
        Some(AMBIVALENT) => Ok(Probe { is_ambivalent: true, ..Probe::default() }),
        _ => bail!(
            "blkid could not look at byte {} of {}, {}: {}",
            place.start,
            source.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

/// The recipe for the swap area at `place`, or `None` if its header is none that can be made again.
///
/// # Errors
/// If the source cannot be read.
pub fn swap_facts(source: &Source, place: &Range<u64>, probe: &Probe) -> anyhow::Result<Option<SwapFacts>> {
    for page_size in PAGE_SIZES {
        let at = place.start + u64::from(page_size) - 10;
        if at + 10 > place.end {
            break;
        }
        let mut signature = [0; 10];
        source.read_at(&mut signature, at)?;
        if &signature == b"SWAPSPACE2" {
            return Ok(Some(SwapFacts {
                offset: place.start,
                length: place.end - place.start,
                page_size,
                label: probe.label.clone(),
                uuid: probe.uuid.clone(),
            }));
        }
    }
    Ok(None)
}

/// Reads `KEY=value` lines in which special characters of the value have a backslash in front.
fn parse(text: &str) -> Probe {
    let unescape = |value: &str| {
        let mut plain = String::with_capacity(value.len());
        let mut chars = value.chars();
        while let Some(char) = chars.next() {
            plain.extend(if char == '\\' { chars.next() } else { Some(char) });
        }
        plain
    };
    let mut pairs: BTreeMap<&str, String> =
        text.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key, unescape(value))).collect();
    let mut take = |key| pairs.remove(key).unwrap_or_default();
    Probe {
        file_system: take("TYPE"),
        label: take("LABEL"),
        uuid: take("UUID"),
        version: take("VERSION"),
        is_ambivalent: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_lines_parse() {
        let probe =
            parse("DEVNAME=x\nLABEL=My\\ Disk\\\\\nUUID=ab-12\nTYPE=vfat\nVERSION=FAT12\nUSAGE=filesystem\nrubbish\n");
        let wanted = Probe {
            file_system: "vfat".into(),
            label: "My Disk\\".into(),
            uuid: "ab-12".into(),
            version: "FAT12".into(),
            is_ambivalent: false,
        };
        assert_eq!(probe, wanted);
        assert_eq!(parse("PTTYPE=dos\n"), Probe::default());
    }
}

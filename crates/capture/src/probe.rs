//! Finds out which file system is where, by all signatures that `blkid` finds, never by the partition's type.

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::partclone::find_program;

/// Exit code of `blkid`: it found nothing that it knows.
const NOTHING: i32 = 2;
/// Exit code of `blkid`: several signatures contradict each other.
const AMBIVALENT: i32 = 8;

/// The contents found at a place on the disk; all fields are empty if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Its name in `blkid`: `ext4`, `vfat`, `ntfs`, `crypto_LUKS`, `swap`, …
    pub file_system: String,
    /// Label; bytes that are not UTF-8 are replaced.
    pub label: String,
    /// UUID in this file system's usual form.
    pub uuid: String,
    /// Its variant, if there are several: `FAT12`.
    pub version: String,
    /// Its usage in `blkid`: `filesystem`, `raid`, `crypto`, `other`.
    pub usage: String,
    /// The kind of a partition table: `dos`, `gpt`, `bsd`, `mac`, …
    pub table: String,
    /// All file systems, if signatures of several were found. None of them counts in that case, and `file_system` is
    /// empty.
    pub several: Vec<String>,
}

impl Probe {
    /// Whether nothing at all was found.
    pub(crate) fn is_nothing(&self) -> bool {
        self.file_system.is_empty() && self.several.is_empty() && self.table.is_empty()
    }
}

/// Searches bytes `place` of a file or device for every signature.
///
/// # Errors
/// If `blkid` is missing or cannot read the source.
pub(crate) fn probe(source: &Path, place: &Range<u64>) -> anyhow::Result<Probe> {
    let first = ask(source, place, None)?;
    if first.file_system.is_empty() {
        return Ok(first);
    }
    // Blkid stops at the first signature of those that it considers compatible: a CD image before a file system, RAID
    // metadata after one.
    let second = ask(source, place, Some(&first.file_system))?;
    let mut others = second.several;
    others.push(second.file_system);
    others.retain(|other| !other.is_empty() && *other != first.file_system);
    if others.is_empty() {
        return Ok(first);
    }
    others.insert(0, first.file_system);
    Ok(Probe { table: first.table, several: others, ..Probe::default() })
}

/// The output of `blkid` for the place, without one kind of file system.
fn ask(source: &Path, place: &Range<u64>, without: Option<&str>) -> anyhow::Result<Probe> {
    let blkid = find_program("blkid")
        .context("looking for blkid, which tells file systems apart: run `apt install util-linux` (as root)")?;
    let mut command = Command::new(blkid);
    // In this output form, no label can pretend to be another line, and no byte of it is lost.
    command.args(["-p", "-o", "udev"]);
    if let Some(without) = without {
        command.arg("-n").arg(format!("no{without}"));
    }
    let output = command
        .arg(format!("--offset={}", place.start))
        .arg(format!("--size={}", place.end - place.start))
        .arg(source)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("running blkid")?;
    match output.status.code() {
        Some(0 | AMBIVALENT) => Ok(parse(&output.stdout)),
        Some(NOTHING) => Ok(Probe::default()),
        _ => bail!(
            "blkid could not look at byte {} of {}, {}: {}",
            place.start,
            source.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

/// Reads `ID_KEY=value` lines. Values whose key ends in `_ENC` have odd bytes written as `\xNN`.
fn parse(text: &[u8]) -> Probe {
    let text = String::from_utf8_lossy(text);
    let mut probe = Probe::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let value = || String::from_utf8_lossy(&decode(value)).into_owned();
        match key {
            "ID_FS_TYPE" => probe.file_system = value(),
            "ID_FS_LABEL_ENC" => probe.label = value(),
            "ID_FS_UUID_ENC" => probe.uuid = value(),
            "ID_FS_VERSION" => probe.version = value(),
            "ID_FS_USAGE" => probe.usage = value(),
            "ID_PART_TABLE_TYPE" => probe.table = value(),
            // Such as `filesystem:vfat:FAT32 other:swap:1`.
            "ID_FS_AMBIVALENT" => {
                let names = value();
                let names = names.split_whitespace().filter_map(|name| name.split(':').nth(1));
                probe.several = names.map(str::to_owned).collect();
            }
            _ => {}
        }
    }
    probe
}

/// The bytes for `\xNN`.
fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..3).filter(|_| *first == b'\\').and_then(|code| code.strip_prefix(b"x"));
        let hex = hex.filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_for_udev_parse() {
        let probe = parse(
            b"ID_FS_LABEL=My_Disk_\nID_FS_LABEL_ENC=My\\x20Disk\\x5c\\x5cx20\nID_FS_UUID_ENC=ab-12\nID_FS_TYPE=vfat\n\
              ID_FS_VERSION=FAT12\nID_FS_USAGE=filesystem\nrubbish\n",
        );
        let wanted = Probe {
            file_system: "vfat".into(),
            label: "My Disk\\\\x20".into(),
            uuid: "ab-12".into(),
            version: "FAT12".into(),
            usage: "filesystem".into(),
            ..Probe::default()
        };
        assert_eq!(probe, wanted);
        let table = parse(b"ID_PART_TABLE_UUID=71efc2a0\nID_PART_TABLE_TYPE=dos\n");
        assert!(table.table == "dos" && table.file_system.is_empty() && !table.is_nothing());
        let several = parse(b"ID_FS_AMBIVALENT=filesystem:vfat:FAT32 filesystem:ext4:1.0 other:swap\n");
        assert_eq!(several.several, ["vfat", "ext4", "swap"]);
    }

    #[test]
    fn labels_are_what_they_are() {
        for (encoded, label) in [
            ("Größe", "Größe"),
            ("подкач", "подкач"),
            ("\\x0aID_FS_TYPE=swap", "\nID_FS_TYPE=swap"),
            ("\\x", "\\x"),
            ("\\xg1", "\\xg1"),
            ("\\x+1", "\\x+1"),
            ("", ""),
        ] {
            assert_eq!(parse(format!("ID_FS_LABEL_ENC={encoded}\n").as_bytes()).label, label, "{encoded}");
        }
        // Latin-1 is not UTF-8, and is shown as far as possible.
        assert_eq!(parse(b"ID_FS_LABEL_ENC=Gr\\xf6\\xdfe\n").label, "Gr\u{fffd}\u{fffd}e");
    }
}

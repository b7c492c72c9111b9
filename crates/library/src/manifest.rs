//! `manifest.json`: what an image is, for people and for later versions of this program.
//!
//! Everything that a client needs travels in the torrent, under the infohash; the manifest holds the rest. It carries a
//! schema version, and a manifest newer than this program is refused, not half understood.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail};
use layout::DiskRange;
use layout::account::{Account, Class};
use metainfo::TableKind;
use serde::{Deserialize, Serialize};

/// The schema of an image whose content is stored as it is, which earlier versions read as well.
pub const SCHEMA: u32 = 1;
/// The schema of an image whose content is compressed, and the newest one read.
pub const SCHEMA_COMPRESSED: u32 = 2;

/// Everything known about an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this structure: [`SCHEMA`] or [`SCHEMA_COMPRESSED`].
    pub schema: u32,
    /// Size of the captured device in bytes.
    pub disk_size: u64,
    /// Its logical sector size in bytes.
    pub sector_size: u32,
    /// Its partition table, as in the torrent's facts.
    pub table: TableKind,
    /// Without a partition table: `disk` or `partition`, what was captured; empty if that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// The disk's GUID (GPT) or its 32-bit signature (MBR); empty if there is none.
    #[serde(default)]
    pub disk_id: String,
    /// By number. A device without a table has one, numbered 0, that is the whole of it.
    pub partitions: Vec<PartitionInfo>,
    /// Length of the plain content in bytes.
    pub content_len: u64,
    /// Present if the content is stored compressed: how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed: Option<Compressed>,
    /// The torrent's infohash, 40 hex digits.
    pub infohash: String,
    /// How many extents the content consists of.
    pub extent_count: u64,
    /// Bytes of zeros in used data that are not in `content`, because the torrent's facts say where they are.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub zeros_len: u64,
    /// What became of every byte of the disk; none in images of older versions, and of what was imported as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountInfo>,
    /// Places that could not be read and are zeros in the content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
    /// Present if there is no `content`: the image is seeded from the disk that it was captured from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Live>,
    /// Where it came from.
    pub origin: Origin,
}

/// How compressed content is stored, in the file `content.zst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compressed {
    /// The format of that file.
    pub format: Format,
    /// Its length in bytes.
    pub stored_len: u64,
    /// Bytes of plain content in each of its frames, except perhaps the last.
    pub frame_len: u32,
}

/// A format of compressed content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Independent zstd frames and their table: see crate `frames`.
    ZstdSeekable,
}

/// Where the bytes of a live image are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Absolute path of the device or disk image file, as it was named.
    pub source: String,
    /// Another name of the device that stays the same when disks are attached in another order; empty if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stable: String,
    /// The disk's serial number, for people; empty if it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub serial: String,
    /// Made of all that and of this machine's identity, by which a server tells its own word from another machine's: see
    /// [`crate::live::open`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
}

impl Live {
    /// What to open.
    pub fn path(&self) -> &Path {
        Path::new(if self.stable.is_empty() { &self.source } else { &self.stable })
    }
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        let more = [("", &self.stable), ("serial number ", &self.serial)];
        let more: Vec<String> =
            more.iter().filter(|(_, text)| !text.is_empty()).map(|(what, text)| format!("{what}{text}")).collect();
        if more.is_empty() { Ok(()) } else { write!(f, " ({})", more.join(", ")) }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_nothing(len: &u64) -> bool {
    *len == 0
}

/// A stretch of the disk that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

impl From<DiskRange> for Unreadable {
    fn from(range: DiskRange) -> Unreadable {
        Unreadable { start: range.start.0, length: range.len() }
    }
}

/// What became of the bytes of the disk: how many are in which class. All together they are the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountInfo {
    /// Content of the image.
    pub captured: u64,
    /// Free by the word of a reader that understands the file system.
    pub free: u64,
    /// Made again from a recipe: zeros in used data.
    pub recipe: u64,
    /// Zeros outside of file systems, left out.
    pub zeros: u64,
    /// Left out because that was asked for.
    pub skipped: u64,
    /// Left out because the source does not have them.
    pub missing: u64,
}

impl From<&Account> for AccountInfo {
    fn from(account: &Account) -> AccountInfo {
        AccountInfo {
            captured: account.total(Class::Captured),
            free: account.total(Class::Free),
            recipe: account.total(Class::Recipe),
            zeros: account.total(Class::Zeros),
            skipped: account.total(Class::Skipped),
            missing: account.total(Class::Missing),
        }
    }
}

impl fmt::Display for AccountInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes = [
            (self.captured, "captured"),
            (self.free, "free in file systems"),
            (self.recipe, "of zeros in used data, made again"),
            (self.zeros, "of zeros outside of file systems, left out"),
            (self.skipped, "outside of partitions, left out as asked"),
            (self.missing, "not in the source, left out"),
        ];
        let len = classes.iter().map(|(bytes, _)| bytes).fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        write!(f, "of {len} bytes: ")?;
        let mut shown = classes.iter().filter(|(bytes, _)| *bytes > 0);
        if let Some((bytes, what)) = shown.next() {
            write!(f, "{bytes} {what}")?;
        }
        shown.try_for_each(|(bytes, what)| write!(f, ", {bytes} {what}"))
    }
}

/// One partition and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// As the kernel numbers it; 0 for a device without a table.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Type GUID (GPT) or type byte as two hex digits (MBR).
    #[serde(default)]
    pub type_id: String,
    /// The type in words, if known.
    #[serde(default)]
    pub type_name: String,
    /// Name (GPT).
    #[serde(default)]
    pub name: String,
    /// Unique GUID (GPT).
    #[serde(default)]
    pub guid: String,
    /// GPT attribute bits, or 0x80 for an active MBR partition.
    #[serde(default)]
    pub attributes: u64,
    /// File system as `blkid` calls it, or empty.
    #[serde(default)]
    pub file_system: String,
    /// Its label.
    #[serde(default)]
    pub label: String,
    /// Its UUID.
    #[serde(default)]
    pub uuid: String,
    /// How its bytes were chosen.
    pub captured: Captured,
    /// Bytes of it that are in the content.
    pub captured_len: u64,
    /// Why, where it is not plain: an unknown file system, an imported image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// How a partition's bytes were chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Captured {
    /// Only the blocks in use.
    UsedBlocks,
    /// Every byte.
    #[default]
    Whole,
    /// Nothing: it is made anew from the facts in the torrent (swap).
    Recipe,
    /// Nothing: an extended partition, whose table sectors count as the disk's own.
    Container,
    /// Nothing: the source does not have it.
    Missing,
}

/// Who made the image, when, from what, with what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Seconds since 1970.
    pub at: u64,
    /// `capture`, or the format it was imported from.
    pub how: String,
    /// Device or file.
    pub source: String,
    /// Host name of the machine it was made on.
    #[serde(default)]
    pub host: String,
    /// Tool → version.
    #[serde(default)]
    pub tools: BTreeMap<String, String>,
}

impl Origin {
    /// Here and now.
    pub fn now(how: &str, source: &Path) -> Origin {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let tools = [("ezio".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into();
        Origin { at, how: how.to_owned(), source: source.display().to_string(), host, tools }
    }

    /// The time as `2026-01-31 12:34 UTC`.
    pub fn at_text(&self) -> String {
        time_text(self.at)
    }
}

/// Seconds since 1970 as `2026-01-31 12:34 UTC`.
pub fn time_text(at: u64) -> String {
    let (days, minutes) = (at / 86_400, at % 86_400 / 60);
    let (year, month, day) = civil(days);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

impl Manifest {
    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// If it is not one, or of a newer schema than this program knows.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Manifest> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let version: Version = serde_json::from_slice(bytes).context("reading its schema version")?;
        if version.schema > SCHEMA_COMPRESSED {
            bail!(
                "its schema is {}, this ezio knows {SCHEMA_COMPRESSED} and older: a newer ezio made it, so update this one",
                version.schema
            );
        }
        let manifest: Manifest = serde_json::from_slice(bytes).context("decoding it")?;
        if manifest.compressed.is_some() && (manifest.schema < SCHEMA_COMPRESSED || manifest.live.is_some()) {
            bail!("it contradicts itself about how the content is stored");
        }
        Ok(manifest)
    }

    /// The same image with its content stored that way, or as it is.
    pub fn stored(self, compressed: Option<Compressed>) -> Manifest {
        // A version that does not know compressed content refuses what it cannot read, and reads all else.
        let schema = if compressed.is_some() { SCHEMA_COMPRESSED } else { SCHEMA };
        Manifest { schema, compressed, ..self }
    }

    /// What others may know of it: how the content is stored here is nobody else's business, and versions that could not read
    /// it can still pull the image.
    pub fn for_others(&self) -> Manifest {
        self.clone().stored(None)
    }

    /// The text of `manifest.json`.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain data has a JSON form");
        text.push(b'\n');
        text
    }
}

/// Year, month and day of a day counted from 1970-01-01 (proleptic Gregorian).
fn civil(days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    // 400 years have 146,097 days; taking them off first keeps the loop short for any input.
    let mut year = 1970 + days / 146_097 * 400;
    let mut left = days % 146_097;
    loop {
        let len = if is_leap(year) { 366 } else { 365 };
        if left < len {
            break;
        }
        left -= len;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < len {
            break;
        }
        left -= len;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;

    fn sample() -> Manifest {
        Manifest {
            schema: SCHEMA,
            disk_size: 1 << 30,
            sector_size: 512,
            table: TableKind::Gpt,
            device: String::new(),
            disk_id: String::new(),
            partitions: vec![PartitionInfo { number: 1, length: 4096, ..PartitionInfo::default() }],
            content_len: 4096,
            compressed: None,
            infohash: "00".repeat(20),
            extent_count: 1,
            zeros_len: 65_536,
            account: Some(AccountInfo { captured: 4096, free: 1 << 20, zeros: 512, ..AccountInfo::default() }),
            unreadable: vec![Unreadable { start: 4096, length: 512 }],
            live: None,
            origin: Origin::now("capture", Path::new("/dev/sda")),
        }
    }

    proptest! {
        #[test]
        fn a_damaged_manifest_is_an_error_or_can_be_shown(at: Index, byte: u8, cut: Index) {
            let mut json = sample().to_json();
            let at = at.index(json.len());
            json[at] = byte;
            for bytes in [&json[..], &json[..cut.index(json.len())]] {
                if let Ok(manifest) = Manifest::parse(bytes) {
                    prop_assert!(!manifest.origin.at_text().is_empty());
                    prop_assert!(manifest.partitions.iter().all(|part| !crate::describe::partition_line(part).is_empty()));
                }
            }
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        assert_eq!(Manifest::parse(&sample().to_json()).expect("own manifest"), sample());
    }

    #[test]
    fn compressed_content_is_a_schema_that_earlier_versions_refuse() {
        let compressed = Compressed { format: Format::ZstdSeekable, stored_len: 1234, frame_len: 131_072 };
        let manifest = sample().stored(Some(compressed));
        let json = String::from_utf8(manifest.to_json()).expect("text");
        assert!(json.contains("\"schema\": 2") && json.contains("\"format\": \"zstd-seekable\""), "{json}");
        assert_eq!(Manifest::parse(json.as_bytes()).expect("own manifest"), manifest);
        assert_eq!(manifest.for_others(), sample());
        assert!(!String::from_utf8_lossy(&sample().to_json()).contains("compressed"), "as before");
        for (from, to) in [("\"schema\": 2", "\"schema\": 1"), ("zstd-seekable", "zpaq")] {
            assert!(Manifest::parse(json.replace(from, to).as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn an_account_names_what_there_is() {
        let account = sample().account.expect("set");
        assert_eq!(
            account.to_string(),
            "of 1053184 bytes: 4096 captured, 1048576 free in file systems, 512 of zeros outside of file systems, left out"
        );
        assert_eq!(AccountInfo::default().to_string(), "of 0 bytes: ");
        let all = AccountInfo { captured: u64::MAX, free: u64::MAX, ..account };
        assert!(!all.to_string().is_empty(), "a damaged manifest may say anything");
    }

    #[test]
    fn a_live_source_is_opened_by_the_name_that_stays() {
        let mut live = Live { source: "/dev/sdb".into(), ..Live::default() };
        assert_eq!((live.path(), live.to_string().as_str()), (Path::new("/dev/sdb"), "/dev/sdb"));
        (live.stable, live.serial) = ("/dev/disk/by-id/ata-X".into(), "X7".into());
        assert_eq!(live.path(), Path::new("/dev/disk/by-id/ata-X"));
        assert_eq!(live.to_string(), "/dev/sdb (/dev/disk/by-id/ata-X, serial number X7)");
        let manifest = Manifest { live: Some(live), ..sample() };
        assert_eq!(Manifest::parse(&manifest.to_json()).expect("own manifest"), manifest);
    }

    #[test]
    fn a_newer_schema_is_refused_in_words() {
        let text = r#"{"schema": 7, "surprise": true}"#;
        let error = Manifest::parse(text.as_bytes()).expect_err("newer").to_string();
        assert!(error.contains("schema is 7") && error.contains("update"), "{error}");
        assert!(Manifest::parse(b"{}").is_err());
        assert!(Manifest::parse(b"<html>").is_err());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let json = sample().to_json();
        for end in 0..json.len() - 2 {
            assert!(Manifest::parse(&json[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (789, (1972, 2, 29)),
            (11_016, (2000, 2, 29)),
            (20_454, (2026, 1, 1)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
        civil(u64::MAX / 86_400);
    }
}

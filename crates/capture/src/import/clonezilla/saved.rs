//! The contents of a Clonezilla directory, from the names of its files and the text of the small ones.
//!
//! `disk` and `parts` list names of devices (by savedisk; saveparts writes only `parts`). `sda-…` is about a disk;
//! `sda1.ext4-ptcl-img.gz.aa`, `.ab`, … are the stream of a partition; `swappt-sda2.info` is a swap area's recipe.
//! Everything is hostile until checked, because names become file names here.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::stream::is_compression;
use library::regular;

/// Longest list of names, or recipe, in bytes.
const TEXT_LEN_MAX: u64 = 64 << 10;
/// Longest name of a device.
const NAME_LEN_MAX: usize = 64;
/// Endings of the names of files about a disk's table.
const TABLE_ENDINGS: [&str; 3] = ["-gpt-1st", "-mbr", "-pt.sf"];

/// One disk of a directory.
#[derive(Debug)]
pub(super) struct Saved {
    /// The directory.
    pub dir: PathBuf,
    /// The disk's name: `sda`, `nvme0n1`.
    pub disk: String,
    /// Its partitions that were saved.
    pub parts: Vec<String>,
    has_table: bool,
    /// Every file's name.
    names: Vec<String>,
}

/// What was saved of a partition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Its bytes.
    Stream(Files),
    /// It is a swap area.
    Swap {
        /// UUID, or empty.
        uuid: String,
        /// Label, or empty.
        label: String,
    },
    /// It was not saved.
    Nothing,
}

/// The files of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Files {
    /// In order, never empty.
    pub paths: Vec<PathBuf>,
    /// Their compression, according to their names.
    pub compression: Option<String>,
    /// Their total length in bytes.
    pub len: u64,
}

impl Files {
    /// Examines the files.
    ///
    /// # Errors
    /// If one of them is not a regular file.
    pub(super) fn new(paths: Vec<PathBuf>, compression: Option<String>) -> anyhow::Result<Files> {
        let len_of = |path: &PathBuf| {
            let len = fs::symlink_metadata(path).and_then(|found| regular::len(&found));
            len.with_context(|| format!("opening {}", path.display()))
        };
        let len = paths.iter().map(len_of).sum::<anyhow::Result<u64>>()?;
        Ok(Files { paths, compression, len })
    }

    /// The files as text for people.
    pub(super) fn shown(&self) -> String {
        self.paths.first().map(|path| path.display().to_string()).unwrap_or_default()
    }
}

/// Whether a directory looks like one of Clonezilla's.
pub(super) fn is_clonezilla(dir: &Path) -> bool {
    // A link counts as present, so that it is refused later with the right reason.
    let has = |name: &&str| fs::symlink_metadata(dir.join(name)).is_ok_and(|found| !found.is_dir());
    ["parts", "disk", "ecryptfs.info", "clonezilla-img"].iter().any(has)
}

impl Saved {
    /// Finds out what was saved of the disk `wanted`, or of the only one.
    ///
    /// # Errors
    /// If the directory is encrypted, has several disks and none was named, or has parts that cannot be assembled.
    pub(super) fn read(dir: &Path, wanted: Option<&str>) -> anyhow::Result<Saved> {
        let reading = || format!("reading {}", dir.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).with_context(reading)? {
            names.extend(entry.with_context(reading)?.file_name().into_string().ok());
        }
        names.sort_unstable();
        let has = |name: &str| names.iter().any(|found| found == name);
        ensure!(
            !has("ecryptfs.info") && !has("gocryptfs.conf"),
            "{} is encrypted: decrypt it in Clonezilla (ocs-cvtimg-enc -d) and import that",
            dir.display()
        );
        let list = |name: &str| -> anyhow::Result<Vec<String>> {
            let path = dir.join(name);
            let text = regular::read(&path, TEXT_LEN_MAX)?;
            parse_names(&text).with_context(|| format!("{} does not list names of devices", path.display()))
        };
        let saved_parts = list("parts")?;
        let mut disks = if has("disk") { list("disk")? } else { disks_with_table(&names) };
        if disks.is_empty() && saved_parts.len() == 1 {
            // There is one partition, and its table was not saved.
            disks.clone_from(&saved_parts);
        }
        let is_of = |disk: &str, part: &str| part == disk || number_of(disk, part).is_some();
        if let Some(stray) = saved_parts.iter().find(|part| !disks.iter().any(|disk| is_of(disk, part))) {
            bail!(
                "{} has {stray}, which is no partition of {}: logical volumes and RAID cannot be put together; \
                 restore it to a disk with Clonezilla, and capture that",
                dir.display(),
                disks.join(" ")
            );
        }
        disks.retain(|disk| saved_parts.iter().any(|part| is_of(disk, part)));
        let disk = match (wanted, disks.as_slice()) {
            (Some(wanted), _) if disks.iter().any(|disk| disk == wanted) => wanted.to_owned(),
            (None, [disk]) => disk.clone(),
            (_, []) => bail!("{} has no partition of a disk", dir.display()),
            _ => bail!("{} has the disks {}: say which one with --disk", dir.display(), disks.join(", ")),
        };
        let parts: Vec<String> = saved_parts.into_iter().filter(|part| is_of(&disk, part)).collect();
        let has_table = TABLE_ENDINGS.iter().any(|ending| has(&format!("{disk}{ending}")));
        Ok(Saved { dir: dir.to_owned(), disk, parts, has_table, names })
    }

    /// The stream of the whole device, if it has no partition table or the table was not saved.
    ///
    /// # Errors
    /// As for [`Saved::kept`].
    pub(super) fn whole_disk(&self) -> anyhow::Result<Option<Files>> {
        if self.parts != [self.disk.clone()] {
            ensure!(
                self.has_table,
                "{} has no partition table of {}: the directory is incomplete, copy it again",
                self.dir.display(),
                self.disk
            );
            return Ok(None);
        }
        match self.kept(&self.disk)? {
            Kept::Stream(files) => Ok(Some(files)),
            _ => bail!("{} is a swap area: there is nothing to import", self.disk),
        }
    }

    /// The name of the partition with this number.
    pub(super) fn name_of(&self, number: u32) -> String {
        format!("{}{}{number}", self.disk, infix(&self.disk))
    }

    /// A file about the disk, such as `sda-mbr`, if it is there and not longer than `limit` bytes.
    ///
    /// # Errors
    /// If it cannot be read or is longer.
    pub(super) fn about_disk(&self, ending: &str, limit: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let name = format!("{}{ending}", self.disk);
        if !self.names.contains(&name) {
            return Ok(None);
        }
        regular::read(&self.dir.join(name), limit).map(Some)
    }

    /// The data between the table and the first partition, from the second sector of 512 bytes on; at most `limit`
    /// bytes.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn hidden(&self, limit: u64) -> anyhow::Result<Vec<u8>> {
        let path = self.dir.join(format!("{}-hidden-data-after-mbr", self.disk));
        let mut hidden = Vec::new();
        match regular::open(&path).and_then(|file| file.take(limit).read_to_end(&mut hidden)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map(|_| hidden).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// What was saved of a partition.
    ///
    /// # Errors
    /// If it should be there but is missing, incomplete, or made by an unknown tool.
    pub(super) fn kept(&self, part: &str) -> anyhow::Result<Kept> {
        let mut sets: BTreeMap<&str, Vec<(&str, ImageFile<'_>)>> = BTreeMap::new();
        for name in &self.names {
            if let Some(file) = ImageFile::parse(name, part) {
                sets.entry(file.set).or_default().push((name, file));
            }
        }
        let dir = self.dir.display();
        if sets.len() > 1 {
            let sets: Vec<&str> = sets.into_keys().collect();
            bail!("{dir} has {part} more than once ({}): remove what is left over", sets.join(", "));
        }
        if let Some((set, files)) = sets.into_iter().next() {
            let suffixes: Vec<&str> = files.iter().map(|(_, file)| file.suffix).collect();
            check_sequence(&suffixes).with_context(|| format!("{dir} has not all files of {part}.{set}"))?;
            let tool = files[0].1.tool;
            ensure!(
                tool == "ptcl" || tool == "dd",
                "{dir} has {part} as {tool} made it, which is not known here: restore it to a disk with Clonezilla, and \
                 capture that"
            );
            let paths = files.iter().map(|(name, _)| self.dir.join(name)).collect();
            let compression = files[0].1.compression.map(str::to_owned);
            return Ok(Kept::Stream(Files::new(paths, compression)?));
        }
        let swap = format!("swappt-{part}.info");
        if self.names.contains(&swap) {
            let text = regular::read(&self.dir.join(&swap), TEXT_LEN_MAX)?;
            let (uuid, label) = parse_swap(&String::from_utf8_lossy(&text));
            return Ok(Kept::Swap { uuid, label });
        }
        ensure!(
            !self.parts.iter().any(|saved| saved == part),
            "{dir} lists {part} and does not have it: copy it again"
        );
        Ok(Kept::Nothing)
    }
}

/// One file of a stream: `sda1.ext4-ptcl-img.gz.aa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ImageFile<'a> {
    /// The same for all files of the stream: `ext4-ptcl-img.gz`.
    set: &'a str,
    /// `ptcl`, `dd`, `ntfs`, `partimage`.
    tool: &'a str,
    compression: Option<&'a str>,
    /// `aa`, `ab`, …; empty if it was not split.
    suffix: &'a str,
}

impl<'a> ImageFile<'a> {
    fn parse(name: &'a str, part: &str) -> Option<ImageFile<'a>> {
        let rest = name.strip_prefix(part)?.strip_prefix('.')?;
        let is_suffix = |text: &str| text.len() >= 2 && text.bytes().all(|byte| byte.is_ascii_lowercase());
        if rest.bytes().all(|byte| byte.is_ascii_digit()) && rest.len() == 3 {
            return Some(ImageFile { set: "", tool: "partimage", compression: None, suffix: rest });
        }
        let at = rest.find("-img")?;
        let kind = &rest[..at];
        ensure_plain(kind)?;
        let tool = kind.rsplit('-').next()?;
        let mut set_len = at + "-img".len();
        let tail = &rest[set_len..];
        let mut words = tail.split('.');
        if !words.next()?.is_empty() {
            return None;
        }
        let (mut compression, mut suffix) = (None, "");
        for word in words {
            if suffix.is_empty() && compression.is_none() && is_compression(word) {
                compression = Some(word);
                set_len += 1 + word.len();
            } else if suffix.is_empty() && is_suffix(word) {
                suffix = word;
            } else {
                // Checksums and the like.
                return None;
            }
        }
        Some(ImageFile { set: &rest[..set_len], tool, compression, suffix })
    }
}

fn ensure_plain(kind: &str) -> Option<()> {
    kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_+".contains(&byte)).then_some(())
}

/// Whether the suffixes of a split stream, ascending, start at the first and miss none.
fn check_sequence(suffixes: &[&str]) -> anyhow::Result<()> {
    if suffixes == [""] {
        return Ok(());
    }
    for (index, suffix) in suffixes.iter().enumerate() {
        // After yz, split(1) continues with longer suffixes, which are not supported here.
        let (first, second) = (index / 26, index % 26);
        if first >= 25 {
            break;
        }
        let letter = |number: usize| char::from(b'a' + u8::try_from(number).unwrap_or(25));
        let wanted: String = [letter(first), letter(second)].into_iter().collect();
        ensure!(*suffix == wanted, "the one that ends in .{wanted} is missing");
    }
    Ok(())
}

/// The text between the name of a disk and the number of a partition.
fn infix(disk: &str) -> &'static str {
    if disk.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" }
}

/// The number of a partition of this disk.
fn number_of(disk: &str, part: &str) -> Option<u32> {
    let digits = part.strip_prefix(disk)?.strip_prefix(infix(disk))?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    is_number.then(|| digits.parse().ok())?
}

/// The disks with files about their table.
fn disks_with_table(names: &[String]) -> Vec<String> {
    let disk = |name: &String| TABLE_ENDINGS.iter().find_map(|ending| Some(name.strip_suffix(ending)?.to_owned()));
    let mut disks: Vec<String> = names.iter().filter_map(disk).filter(|name| is_device_name(name)).collect();
    disks.sort_unstable();
    disks.dedup();
    disks
}

fn parse_names(text: &[u8]) -> Option<Vec<String>> {
    let names: Vec<&str> = std::str::from_utf8(text).ok()?.split_whitespace().collect();
    let is_good = !names.is_empty() && names.iter().all(|name| is_device_name(name));
    is_good.then(|| names.into_iter().map(str::to_owned).collect())
}

fn is_device_name(name: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// UUID and label of a swap area: `UUID="…"` and `LABEL="…"`, each on its own line.
fn parse_swap(text: &str) -> (String, String) {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim().trim_matches('"').to_owned()
    };
    let uuid = value("UUID");
    let is_uuid = uuid.chars().filter(|&c| c != '-').count() == 32
        && uuid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    (if is_uuid { uuid } else { String::new() }, value("LABEL"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(name: &str) -> Option<(&str, &str, Option<&str>, &str)> {
        ImageFile::parse(name, "sda1").map(|file| (file.set, file.tool, file.compression, file.suffix))
    }

    #[test]
    fn names_of_images_are_taken_apart() {
        for (name, wanted) in [
            ("sda1.ext4-ptcl-img.gz.aa", ("ext4-ptcl-img.gz", "ptcl", Some("gz"), "aa")),
            ("sda1.vfat-ptcl-img.zst", ("vfat-ptcl-img.zst", "ptcl", Some("zst"), "")),
            ("sda1.hfs+-ptcl-img.uncomp.ab", ("hfs+-ptcl-img.uncomp", "ptcl", Some("uncomp"), "ab")),
            ("sda1.ext4-ptcl-img.aa", ("ext4-ptcl-img", "ptcl", None, "aa")),
            ("sda1.ext4-ptcl-img", ("ext4-ptcl-img", "ptcl", None, "")),
            ("sda1.dd-img.aa", ("dd-img", "dd", None, "aa")),
            ("sda1.dd-ptcl-img.gz.zaaa", ("dd-ptcl-img.gz", "ptcl", Some("gz"), "zaaa")),
            ("sda1.ntfs-img.gz.aa", ("ntfs-img.gz", "ntfs", Some("gz"), "aa")),
            ("sda1.000", ("", "partimage", None, "000")),
        ] {
            assert_eq!(file(name), Some(wanted), "{name}");
        }
        for name in [
            "sda10.ext4-ptcl-img.gz.aa",
            "sda1",
            "sda1.",
            "sda1.ext4-ptcl-img.gz.aa.md5",
            "sda1.info",
            "sda1.ext4-ptcl-imgx",
            "sda1.../x-ptcl-img.gz",
            "sda1.ext4-ptcl-img.gz.aa.bb",
            "",
        ] {
            assert_eq!(file(name), None, "{name}");
        }
    }

    #[test]
    fn gaps_between_split_files_are_found() {
        let check = |suffixes: &[&str]| check_sequence(suffixes).map_err(|error| error.to_string());
        assert_eq!(check(&[""]), Ok(()));
        assert_eq!(check(&["aa"]), Ok(()));
        assert_eq!(check(&["aa", "ab", "ac"]), Ok(()));
        assert!(check(&["ab"]).is_err_and(|why| why.contains(".aa")));
        assert!(check(&["aa", "ac"]).is_err_and(|why| why.contains(".ab")));
        assert!(check(&["", "aa"]).is_err());
        let all: Vec<String> =
            (b'a'..=b'y').flat_map(|a| (b'a'..=b'z').map(move |b| [a, b].map(char::from).iter().collect())).collect();
        let mut all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(check(&all), Ok(()));
        all.extend(["zaaa", "zaab"]);
        assert_eq!(check(&all), Ok(()));
    }

    #[test]
    fn partitions_belong_to_disks() {
        for (disk, part, number) in [
            ("sda", "sda1", Some(1)),
            ("sda", "sda12", Some(12)),
            ("nvme0n1", "nvme0n1p3", Some(3)),
            ("nvme0n1", "nvme0n12", None),
            ("mmcblk0", "mmcblk0boot0", None),
            ("sda", "sdaa1", None),
            ("sda", "sda", None),
            ("sda", "sda+1", None),
            ("sda", "sda01", None),
            ("sda", "sda99999999999", None),
            ("sda", "debian-root", None),
        ] {
            assert_eq!(number_of(disk, part), number, "{part} of {disk}");
        }
    }

    #[test]
    fn lists_of_names_are_checked() {
        let names = |text: &str| parse_names(text.as_bytes());
        assert_eq!(names("sda1 sda2\nsda3 \n"), Some(vec!["sda1".into(), "sda2".into(), "sda3".into()]));
        for bad in ["", " \n", "../x", "a/b", ".x", "sda1\0", "é", &"x".repeat(65)] {
            assert_eq!(names(bad), None, "{bad:?}");
        }
        assert_eq!(parse_names(b"\xff"), None);
    }

    #[test]
    fn swap_recipes_are_read() {
        let swap = |text: &str| parse_swap(text);
        let uuid = "1bcb2760-6aff-4b63-a33f-3f34c9685642";
        assert_eq!(swap(&format!("UUID=\"{uuid}\"\nLABEL=\"my swap\"\n")), (uuid.into(), "my swap".into()));
        assert_eq!(swap("LABEL=\"\"\nUUID=\"rubbish\""), (String::new(), String::new()));
        assert_eq!(swap(""), (String::new(), String::new()));
    }

    proptest! {
        #[test]
        fn no_name_and_no_text_panics(
            name in "(sda1)?[.]?[a-z0-9]{0,4}(-ptcl)?(-img)?([.](gz|aa|zst|[a-zé]{1,3})){0,4}",
            part in "(sda1|sda|[a-z0-9é]{0,3})",
            text in "(UUID|LABEL|=|\"|[ -~\\n]|é){0,60}",
        ) {
            if let Some(file) = ImageFile::parse(&name, &part) {
                prop_assert!(!file.set.contains('/') && name.contains(file.set));
            }
            let _ = number_of(&part, &name);
            let (uuid, label) = parse_swap(&text);
            prop_assert!(uuid.len() <= text.len() && label.len() <= text.len());
            if let Some(names) = parse_names(text.as_bytes()) {
                prop_assert!(names.iter().all(|name| !name.contains('/') && name != ".." ));
            }
            let _ = disks_with_table(&[name]);
        }
    }
}

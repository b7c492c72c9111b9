//! Decides about one partition: which of its bytes are in use and according to which reader, or why all of them are
//! copied.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{bail, ensure};
use layout::parttable::{Partition, Table, TableKind};
use layout::{DiskOffset, DiskRange};
use usedmap::Landmarks;

use crate::choices::Choices;
use crate::container;
use crate::health::{self, Health};
use crate::partclone::{self, Refusal, Support, UsedMap};
use crate::probe::{Probe, probe};
use crate::source::Source;
use crate::window::Window;

/// Partition types whose first bytes are one volume of several, or a part of one: MBR 42, the GUIDs of its equivalent
/// on GPT, and that of Storage Spaces. Source: Microsoft, `winioctl.h`, `PARTITION_LDM` and neighbours.
const DYNAMIC: [(&str, &str); 3] = [
    ("42", "a Windows dynamic disk"),
    ("af9b60a0-1431-4f62-bc68-3311714a69ad", "a Windows dynamic disk"),
    ("e75caf8f-f680-4cee-afa3-b001e56efc2d", "Windows Storage Spaces"),
];

/// The contents found in a partition, and the decision about it.
#[derive(Debug)]
pub(crate) struct Decision {
    /// Its signatures.
    pub found: Probe,
    /// What happens to its bytes.
    pub what: What,
    /// The reason, where it is not obvious.
    pub note: String,
}

/// What happens to a partition's bytes.
#[derive(Debug)]
pub(crate) enum What {
    /// It only holds logical partitions, and each of these gets a decision.
    Container,
    /// The source does not have it.
    Missing,
    /// Every byte is captured.
    Whole,
    /// A reader that understands the file system knows which bytes are in use.
    Used {
        /// Those bytes, from the start of the partition: ascending and disjoint.
        ranges: Vec<Range<u64>>,
        /// Bytes from the start of the partition that the reader covers.
        spans: u64,
    },
}

impl Decision {
    fn whole(found: Probe, note: impl Into<String>) -> Decision {
        Decision { found, what: What::Whole, note: note.into() }
    }
}

/// Makes the decisions.
pub(crate) struct Decider<'a> {
    pub source: &'a Source,
    /// A directory for temporary files of the tools.
    pub scratch: &'a Path,
    pub choices: Choices,
    /// The kind of the partitions' table.
    pub table: TableKind,
    /// The kind of array that the whole disk is a member of, if it is one.
    pub array: Option<&'a str>,
    pub stop: &'a AtomicBool,
    /// Tool → version.
    pub tools: &'a mut BTreeMap<String, String>,
}

impl Decider<'_> {
    /// Decides about one partition.
    ///
    /// # Errors
    /// If it cannot be read, is not fit to be captured, a tool is missing, or the stop flag is set.
    pub(crate) fn decide(&mut self, partition: &Partition) -> anyhow::Result<Decision> {
        let place = partition.range();
        if partition.is_extended {
            return Ok(Decision { found: Probe::default(), what: What::Container, note: String::new() });
        }
        if self.source.is_missing(place) {
            let path = self.source.path.display();
            ensure!(!self.choices.whole, "it is missing in {path}: copying every byte is not possible");
            return Ok(Decision { found: Probe::default(), what: What::Missing, note: "not in the source".to_owned() });
        }
        let found = match self.source.partition_file(place) {
            Some(path) => probe(path, &(0..partition.len)),
            None => probe(&self.source.path, &place.bytes()),
        };
        let found = match found {
            Err(error) if self.choices.whole => return Ok(Decision::whole(Probe::default(), format!("{error:#}"))),
            found => found?,
        };
        if found.file_system == "swsuspend" && !self.choices.at_own_risk {
            bail!(health::LINUX_HIBERNATED);
        }
        let mut window = None;
        let mut volume = Part { source: self.source, place, at: 0 };
        let health = health::look(&found.file_system, &mut volume, || {
            Ok(window.insert(Window::open(self.source, place, self.scratch)?).path().to_owned())
        })?;
        if let Health::Unfit(why) = &health
            && !self.choices.at_own_risk
        {
            bail!(why.clone());
        }
        if self.choices.whole {
            return Ok(Decision::whole(found, ""));
        }
        if let Some(why) = self.is_not_alone(partition, &found) {
            return Ok(Decision::whole(found, why));
        }
        match health {
            Health::Unfit(_) => Ok(Decision::whole(found, "not known to be shut down, so its map may lack something")),
            Health::Shared(why) => Ok(Decision::whole(found, why)),
            Health::Fit => self.by_map(found, place, window),
        }
    }

    /// If a partition is a tree of hashes over another one (dm-verity), free blocks of that other one matter too. So
    /// every partition that may be the other one is captured whole.
    ///
    /// # Errors
    /// If the tree's superblock cannot be read.
    pub(crate) fn keep_verified(&self, partitions: &[Partition], decisions: &mut [Decision]) -> anyhow::Result<()> {
        let is_tree = |decision: &Decision| decision.found.file_system == "DM_verity_hash";
        let mut lens = Vec::new();
        for (partition, _) in partitions.iter().zip(&*decisions).filter(|(_, decision)| is_tree(decision)) {
            // `struct verity_sb` of cryptsetup: the length of a data block, and their number.
            let mut superblock = [0; 80];
            self.source.read_at(&mut superblock, partition.range().start)?;
            let block_len = u32::from_le_bytes(superblock[64..68].try_into().expect("four bytes"));
            let blocks = u64::from_le_bytes(superblock[72..80].try_into().expect("eight bytes"));
            lens.push(blocks.saturating_mul(u64::from(block_len)));
        }
        for (partition, decision) in partitions.iter().zip(decisions) {
            let What::Used { spans, .. } = decision.what else { continue };
            if lens.iter().any(|len| (spans..=partition.len).contains(len)) {
                decision.note = "it may be what a tree of hashes (dm-verity) is over".to_owned();
                decision.what = What::Whole;
            }
        }
        Ok(())
    }

    /// Why the start of this partition says nothing about the rest of it.
    fn is_not_alone(&self, partition: &Partition, found: &Probe) -> Option<String> {
        let dynamic = DYNAMIC.iter().find(|(id, _)| partition.type_id.eq_ignore_ascii_case(id));
        if let Some(array) = self.array {
            Some(format!("the disk is a member of an array ({array})"))
        } else if let Some((_, what)) = dynamic {
            Some(format!("{what}: its volumes may be in several pieces"))
        } else if !found.several.is_empty() {
            let is_alone = self.table == TableKind::None;
            (!is_alone).then(|| format!("signatures of several kinds: {}", found.several.join(", ")))
        } else if self.has_table(partition, found) {
            let whose = if self.table == TableKind::None { "not read here" } else { "of its own" };
            Some(format!("it has a partition table {whose}, of kind {}", found.table))
        } else {
            None
        }
    }

    /// Whether there is a partition table in the partition. To `blkid`, boot sectors of file systems look like a table
    /// of kind dos, so such a table counts only if it has entries.
    fn has_table(&self, partition: &Partition, found: &Probe) -> bool {
        if !matches!(found.table.as_str(), "dos" | "gpt") {
            return !found.table.is_empty();
        }
        let mut volume = Part { source: self.source, place: partition.range(), at: 0 };
        let sector_size = self.choices.sector_size.or(self.source.sector_size).unwrap_or(512);
        match Table::read(&mut volume, partition.len, sector_size) {
            Ok(table) => table.kind != TableKind::None,
            Err(_) => true,
        }
    }

    /// Asks the reader that knows the file system for its map.
    fn by_map(&mut self, found: Probe, place: DiskRange, window: Option<Window>) -> anyhow::Result<Decision> {
        let file_system = found.file_system.as_str();
        match partclone::support(file_system) {
            Support::Program(_) | Support::Missing(_)
                if let Some(note) = partclone::blind_spot(file_system, &found.version) =>
            {
                Ok(Decision::whole(found, note))
            }
            _ if file_system == "btrfs" => self.by_its_own_trees(found, place),
            Support::Program(program) => self.by_partclone(&program, found, place, window),
            Support::Missing(program) => bail!(
                "{program} is missing, which knows the used blocks of {file_system}: \
                 run `apt install partclone` (as root), or copy everything with --whole"
            ),
            Support::Unknown if file_system.is_empty() && self.table == TableKind::None => self.refuse_unknown(&found),
            Support::Unknown if file_system.is_empty() => Ok(Decision::whole(found, "no known file system")),
            Support::Unknown => self.by_own_reader(found, place),
        }
    }

    /// Refuses a source without recognisable contents, so that no room is armed with an image of it by accident.
    fn refuse_unknown(&self, found: &Probe) -> anyhow::Result<Decision> {
        let path = &self.source.path;
        if let Some(container) = container::recognise(path, &self.source.file, self.source.len)? {
            bail!(container.refusal(path));
        }
        bail!(
            "it has {}: if it is what you want, copy all {} bytes of it with --whole",
            match found.several.is_empty() {
                true => "neither a partition table nor a file system known here".to_owned(),
                false => format!(
                    "signatures of several file systems, {} (`wipefs` shows where)",
                    found.several.join(" and ")
                ),
            },
            self.source.len
        )
    }

    /// Partclone's map, completed with what the file system records about itself.
    fn by_partclone(
        &mut self,
        program: &Path,
        found: Probe,
        place: DiskRange,
        window: Option<Window>,
    ) -> anyhow::Result<Decision> {
        let (landmarks, found) = match self.landmarks(found, place)? {
            Ok(known) => known,
            Err(decision) => return Ok(decision),
        };
        let len = place.len();
        let window = match window {
            Some(window) => window,
            None => Window::open(self.source, place, self.scratch)?,
        };
        let map = partclone::used_map(program, window.path(), len, self.scratch, self.choices.at_own_risk, self.stop)?;
        match map {
            Ok(map) => {
                if let Some(version) = partclone::version(program) {
                    self.tools.insert("partclone".to_owned(), version);
                }
                Ok(checked(found, map, &landmarks))
            }
            // The file system was found to be cleanly shut down, so that is not the reason.
            Err(Refusal(said)) => Ok(Decision::whole(found, format!("partclone does not know it: {said}"))),
        }
    }

    /// What a file system records about itself; or the decision about its partition, if that cannot be relied on.
    fn landmarks(&self, found: Probe, place: DiskRange) -> anyhow::Result<Result<(Landmarks, Probe), Decision>> {
        let len = place.len();
        let mut volume = Part { source: self.source, place, at: 0 };
        let landmarks = match usedmap::landmarks(&found.file_system, &mut volume, len) {
            Ok(landmarks) => landmarks,
            Err(error @ usedmap::UsedError::Read { .. }) => return Err(error.into()),
            Err(error) => return Ok(Err(Decision::whole(found, error.to_string()))),
        };
        let Some(own) = landmarks.len.filter(|own| *own > len) else { return Ok(Ok((landmarks, found))) };
        let cut = format!(
            "the {} has {}, and is longer than its partition, which has {}: one of them was cut short",
            found.file_system,
            units::size(own),
            units::size(len)
        );
        ensure!(self.choices.at_own_risk, "{cut}; copy what there is with --whole or --at-own-risk");
        Ok(Err(Decision::whole(found, cut)))
    }

    /// The map of a file system whose own trees contain everything there is to know. Partclone is not asked about a
    /// Btrfs: it finds one of two copies, and not every node of snapshots.
    fn by_its_own_trees(&self, found: Probe, place: DiskRange) -> anyhow::Result<Decision> {
        let (landmarks, found) = match self.landmarks(found, place)? {
            Ok(known) => known,
            Err(decision) => return Ok(decision),
        };
        let spans = landmarks.len.unwrap_or(place.len());
        Ok(checked(found, UsedMap { ranges: Vec::new(), spans }, &landmarks))
    }

    /// The map by one of our readers, for a file system that partclone does not know.
    fn by_own_reader(&self, found: Probe, place: DiskRange) -> anyhow::Result<Decision> {
        let name = &found.file_system;
        let unknown = |why: &str| format!("nothing here knows the used blocks of {name}{why}");
        let Some(kind) = usedmap::Kind::from_blkid_name(name) else {
            let note = unknown("");
            return Ok(Decision::whole(found, note));
        };
        let mut volume = Part { source: self.source, place, at: 0 };
        match usedmap::used(kind, &mut volume, place.len()) {
            Ok(used) if used.is_clean == Some(false) => {
                ensure!(
                    self.choices.at_own_risk,
                    "the {name} on it was not unmounted cleanly: start that system once and shut it down, or check the file \
                     system; or copy it whole with --at-own-risk"
                );
                Ok(Decision::whole(found, "not unmounted cleanly, so its map may lack something"))
            }
            Ok(used) => {
                let note = used.notes.join("; ");
                Ok(Decision { found, what: What::Used { ranges: used.ranges, spans: used.spans }, note })
            }
            Err(error @ usedmap::UsedError::Read { .. }) => Err(error.into()),
            Err(error) => {
                let note = unknown(&format!(" as it is here: {error}"));
                Ok(Decision::whole(found, note))
            }
        }
    }
}

/// A map, completed, if it agrees with what the file system records about itself.
fn checked(found: Probe, map: UsedMap, landmarks: &Landmarks) -> Decision {
    let UsedMap { ranges, spans } = map;
    let ranges = landmarks.complete(ranges);
    let mapped: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    if let Some(least) = landmarks.used_min.filter(|least| *least > mapped) {
        let note =
            format!("its map has {} in use, the file system itself counts {}", units::size(mapped), units::size(least));
        return Decision::whole(found, note);
    }
    // A file system says nothing about the bytes past its end, even if the map does.
    let spans = landmarks.len.map_or(spans, |own| own.min(spans));
    Decision { found, what: What::Used { ranges, spans }, note: String::new() }
}

/// A partition, for readers that see nothing else of the disk.
struct Part<'a> {
    source: &'a Source,
    place: DiskRange,
    at: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.place.len().saturating_sub(self.at);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        self.source.read_at(&mut buf[..len], DiskOffset(self.place.start.0 + self.at)).map_err(io::Error::other)?;
        self.at += u64::try_from(len).expect("fits");
        Ok(len)
    }
}

impl Seek for Part<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.place.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

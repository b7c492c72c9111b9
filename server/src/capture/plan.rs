//! Which bytes of a disk an image of it contains, and why.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use layout::parttable::{Partition, Table, TableKind, guess_sector_size};
use layout::{Extent, ExtentSet, Layout};
use metainfo::{SwapFacts, Zeros};

use super::check_torrent_len;
use super::health::{self, Health};
use super::probe::{Probe, probe, swap_facts};
use super::source::Source;
use super::window::Window;
use super::zeros::leave_out;
use crate::manifest::{Captured, PartitionInfo};
use crate::partclone::{self, Support};

/// What will be copied.
#[derive(Debug)]
pub struct Plan {
    /// Which partition table there is.
    pub table: TableKind,
    /// Sector size in bytes.
    pub sector_size: u32,
    /// Disk GUID or signature.
    pub disk_id: String,
    /// Every partition and how its bytes were chosen.
    pub partitions: Vec<PartitionInfo>,
    /// Swap areas to be made anew.
    pub swap: Vec<SwapFacts>,
    /// The extents.
    pub layout: Layout,
    /// What people should hear before it starts.
    pub warnings: Vec<String>,
    /// Tool → version.
    pub tools: BTreeMap<String, String>,
    /// How many used ranges the partitions had so far.
    range_count: usize,
}

/// What the person who captures has decided.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choices {
    /// Take every byte.
    pub whole: bool,
    /// Take file systems that are hibernated or not shut down.
    pub at_own_risk: bool,
}

impl Plan {
    /// Looks at the whole source. `scratch` is a directory for what the tools need meanwhile.
    ///
    /// # Errors
    /// If the partition table cannot be trusted, a tool is missing, or partclone refuses a file system.
    pub fn make(source: &Source, scratch: &Path, choices: Choices) -> anyhow::Result<Plan> {
        let reading = || format!("reading the partition table of {}", source.path.display());
        let mut disk = &source.file;
        let sector_size = match source.sector_size {
            Some(size) => size,
            None => guess_sector_size(&mut disk, source.len).with_context(reading)?,
        };
        let table = Table::read(&mut disk, source.len, sector_size).with_context(reading)?;
        let partitions = match table.kind {
            TableKind::None => vec![Partition { len: source.len, ..Partition::default() }],
            TableKind::Gpt | TableKind::Mbr => table.partitions,
        };

        let mut extents = ExtentSet::default();
        table.own.into_iter().for_each(|range| extents.insert(range));
        let mut plan = Plan {
            table: table.kind,
            sector_size,
            disk_id: table.disk_id,
            partitions: Vec::new(),
            swap: Vec::new(),
            layout: Layout::of_extents(Vec::new()).context("starting with nothing")?,
            warnings: table.warnings,
            tools: BTreeMap::new(),
            range_count: 0,
        };
        if choices.whole {
            extents.insert(0..source.len);
        }
        for partition in &partitions {
            let info =
                plan.add(source, partition, scratch, choices, &mut extents).with_context(|| match table.kind {
                    TableKind::None => format!("looking at {}", source.path.display()),
                    _ => format!("looking at partition {} of {}", partition.number, source.path.display()),
                })?;
            plan.partitions.push(info);
        }
        let extents = extents.into_extents(u64::from(sector_size), source.len);
        plan.set_extents(extents)?;
        Ok(plan)
    }

    /// The ends of the source that a restore writes last.
    pub fn deferred(&self, source_len: u64) -> Vec<Range<u64>> {
        layout::deferred(self.table, source_len, source_len)
    }

    /// Leaves these ranges out of the content.
    ///
    /// # Errors
    /// If nothing sane is left.
    pub fn leave_out(&mut self, zeros: &Zeros) -> anyhow::Result<()> {
        let extents = leave_out(self.layout.extents(), zeros.ranges());
        self.set_extents(extents)
    }

    fn set_extents(&mut self, extents: Vec<Extent>) -> anyhow::Result<()> {
        for partition in self.partitions.iter_mut().filter(|info| info.captured != Captured::Container) {
            partition.captured_len = len_inside(&extents, partition.start..partition.start + partition.length);
        }
        self.layout = Layout::of_extents(extents).context("laying out the image")?;
        Ok(())
    }

    /// Decides about one partition.
    fn add(
        &mut self,
        source: &Source,
        partition: &Partition,
        scratch: &Path,
        choices: Choices,
        extents: &mut ExtentSet,
    ) -> anyhow::Result<PartitionInfo> {
        let place = partition.range();
        if partition.is_extended {
            return Ok(info(partition, Probe::default(), Captured::Container, String::new()));
        }
        if source.is_missing(&place) {
            ensure!(!choices.whole, "it is missing in {}: copying every byte is not possible", source.path.display());
            return Ok(info(
                partition,
                Probe::default(),
                Captured::UsedBlocks,
                "left out: not in the source".to_owned(),
            ));
        }
        let found = match source.partition_file(&place) {
            Some(path) => probe(path, &(0..partition.len))?,
            None => probe(&source.path, &place)?,
        };
        if found.file_system == "swsuspend" && !choices.at_own_risk {
            bail!(health::LINUX_HIBERNATED);
        }
        let mut window = None;
        let mut volume = Part { source, place: place.clone(), at: 0 };
        let health = health::look(&found.file_system, &mut volume, || {
            Ok(window.insert(Window::open(source, &place, scratch)?).path().to_owned())
        })?;
        if let Health::Unfit(why) = &health
            && !choices.at_own_risk
        {
            bail!(why.clone());
        }
        if choices.whole {
            return Ok(info(partition, found, Captured::Whole, String::new()));
        }
        if matches!(found.file_system.as_str(), "swap" | "swsuspend")
            && let Some(facts) = swap_facts(source, &place, &found)?
        {
            self.swap.push(facts);
            return Ok(info(partition, found, Captured::Recipe, String::new()));
        }
        let map = match partclone::support(&found.file_system) {
            _ if matches!(health, Health::Unfit(_)) => {
                Map::unknown("not known to be shut down, so its map may lack something")
            }
            _ if let Health::Shared(why) = health => Map::unknown(why),
            Support::Program(_) | Support::Missing(_)
                if let Some(note) = partclone::blind_spot(&found.file_system, &found.version) =>
            {
                Map::unknown(note)
            }
            Support::Program(program) => {
                let window = match window {
                    Some(window) => window,
                    None => Window::open(source, &place, scratch)?,
                };
                self.partclone_map(&program, &window, &place, scratch, choices)?
            }
            Support::Missing(program) => bail!(
                "{program} is missing, which knows the used blocks of {}: \
                 run `apt install partclone` (as root), or copy everything with --whole",
                found.file_system
            ),
            Support::Unknown if found.file_system.is_empty() && self.table == TableKind::None => bail!(
                "it has {}: if it is what you want, copy all {} bytes of it with --whole",
                match found.is_ambivalent {
                    true => "signatures of several file systems (`wipefs` shows them)",
                    false => "neither a partition table nor a file system known here",
                },
                source.len
            ),
            Support::Unknown if found.is_ambivalent => Map::unknown("signatures of several file systems"),
            Support::Unknown if found.file_system.is_empty() => Map::unknown("no known file system"),
            Support::Unknown => own_map(source, &place, &found.file_system, choices)?,
        };
        let (captured, note) = match map {
            Map::Used(ranges, note) => {
                self.range_count += ranges.len();
                check_torrent_len(self.range_count, 0)?;
                ranges.into_iter().for_each(|range| extents.insert(range));
                (Captured::UsedBlocks, note)
            }
            Map::Unknown(note) => {
                extents.insert(place);
                (Captured::Whole, note)
            }
        };
        Ok(info(partition, found, captured, note))
    }

    /// What partclone says of the partition at `place`, to be found in `window`.
    fn partclone_map(
        &mut self,
        program: &Path,
        window: &Window,
        place: &Range<u64>,
        scratch: &Path,
        choices: Choices,
    ) -> anyhow::Result<Map> {
        match partclone::used_ranges(program, window.path(), place, scratch, choices.at_own_risk) {
            Ok(used) => {
                if let Some(version) = partclone::version(program) {
                    self.tools.insert("partclone".to_owned(), version);
                }
                Ok(Map::Used(used, String::new()))
            }
            Err(error) if choices.at_own_risk => {
                log::warn!("copying it whole: {error:#}");
                Ok(Map::unknown("partclone does not understand it"))
            }
            Err(error) => Err(error),
        }
    }
}

/// What is known of a partition's blocks.
enum Map {
    /// The used ranges of the disk, and what a person should hear.
    Used(Vec<Range<u64>>, String),
    /// All of it has to be copied, and why.
    Unknown(String),
}

impl Map {
    fn unknown(why: &str) -> Map {
        Map::Unknown(why.to_owned())
    }
}

/// What our own readers say of a file system that partclone does not know.
fn own_map(source: &Source, place: &Range<u64>, file_system: &str, choices: Choices) -> anyhow::Result<Map> {
    let unknown = |why: &str| Map::Unknown(format!("nothing here knows the used blocks of {file_system}{why}"));
    let Some(kind) = usedmap::Kind::from_blkid_name(file_system) else { return Ok(unknown("")) };
    let len = place.end - place.start;
    let mut volume = Part { source, place: place.clone(), at: 0 };
    match usedmap::used(kind, &mut volume, len) {
        Ok(used) if used.is_clean == Some(false) && !choices.at_own_risk => bail!(
            "the {file_system} on it was not unmounted cleanly: start that system once and shut it down, or check the file \
             system; or copy it whole with --at-own-risk"
        ),
        Ok(used) if used.is_clean == Some(false) => {
            Ok(Map::unknown("not unmounted cleanly, so its map may lack something"))
        }
        Ok(used) => {
            let on_disk = |range: &Range<u64>| place.start + range.start..place.start + range.end;
            Ok(Map::Used(used.ranges.iter().map(on_disk).collect(), used.notes.join("; ")))
        }
        Err(error @ usedmap::UsedError::Read { .. }) => Err(error.into()),
        Err(error) => Ok(unknown(&format!(" as it is here: {error}"))),
    }
}

/// A partition as a reader of its own.
struct Part<'a> {
    source: &'a Source,
    place: Range<u64>,
    at: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = (self.place.end - self.place.start).saturating_sub(self.at);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        self.source.read_at(&mut buf[..len], self.place.start + self.at).map_err(io::Error::other)?;
        self.at += u64::try_from(len).expect("fits");
        Ok(len)
    }
}

impl Seek for Part<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => (self.place.end - self.place.start).checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

fn info(partition: &Partition, found: Probe, captured: Captured, note: String) -> PartitionInfo {
    PartitionInfo {
        number: partition.number,
        start: partition.start,
        length: partition.len,
        type_id: partition.type_id.clone(),
        type_name: partition.type_name.to_owned(),
        name: partition.name.clone(),
        guid: partition.guid.clone(),
        attributes: partition.attributes,
        file_system: found.file_system,
        label: found.label,
        uuid: found.uuid,
        captured,
        captured_len: 0,
        note,
    }
}

/// How many bytes of `range` the extents hold.
fn len_inside(extents: &[Extent], range: Range<u64>) -> u64 {
    let first = extents.partition_point(|extent| extent.end() <= range.start);
    let inside = extents[first..].iter().take_while(|extent| extent.disk.0 < range.end);
    inside.map(|extent| extent.end().min(range.end) - extent.disk.0.max(range.start)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::DiskOffset;

    #[test]
    fn lengths_count_only_what_is_inside() {
        let extents: Vec<Extent> =
            [(0, 10), (20, 10), (40, 10)].map(|(disk, len)| Extent { disk: DiskOffset(disk), len }).into();
        for (range, len) in [(0..50, 30), (5..25, 10), (10..20, 0), (29..41, 2), (45..100, 5), (100..200, 0)] {
            assert_eq!(len_inside(&extents, range.clone()), len, "{range:?}");
        }
    }
}

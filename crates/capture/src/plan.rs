//! Which bytes of a disk an image of it contains, and why.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use layout::account::{Account, Claims, Class};
use layout::parttable::stamp::{STAMP_LEN, Stamp, windows};
use layout::parttable::{Partition, Table, TableKind};
use layout::{DiskOffset, DiskRange, Extent, Layout};
use metainfo::Zeros;

use crate::choices::Choices;
use crate::decide::{Decider, Decision, What};
use crate::probe::{Probe, probe};
use crate::source::Source;
use crate::{look, table};
use library::manifest::{Captured, PartitionInfo};

/// Places of an image at most. With more, torrent and memory of every machine grow; the smallest holes are copied along then.
const PLACES_MAX: usize = 100_000;
/// What lies behind a file system in its partition is kept whole up to twice this length, in bytes, and of more this much of
/// both its ends: there are copies of superblocks, and what is zeros here is not to be something else on a clone.
const EDGE_LEN: u64 = 1 << 20;
/// A tree of hashes is at least this part of what it is over: 256 hashes, of 16 bytes each, in a block of 4096.
const TREE_SHARE: u64 = 256;
/// Data outside of partitions from so many bytes on is worth a hint how to leave it out.
const OUTSIDE_HINT: u64 = 64 << 20;

/// What will be copied.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Which partition table there is.
    pub table: TableKind,
    /// Sector size in bytes.
    pub sector_size: u32,
    /// Disk GUID or signature.
    pub disk_id: String,
    /// Every partition and how its bytes were chosen.
    pub partitions: Vec<PartitionInfo>,
    /// The extents.
    pub layout: Layout,
    /// What becomes of every byte.
    pub account: Account,
    /// What people should hear before it starts.
    pub warnings: Vec<String>,
    /// What people may want to know.
    pub notes: Vec<String>,
    /// Tool → version.
    pub tools: BTreeMap<String, String>,
    /// Tables and superblocks: looked at again when everything is copied.
    pub landmarks: Vec<DiskRange>,
}

impl Plan {
    /// Looks at the whole source. `scratch` is a directory for what the tools need meanwhile.
    ///
    /// # Errors
    /// If the partition table cannot be trusted, a tool is missing, a file system is not fit to be captured, or that we were
    /// told to stop.
    pub(crate) fn make(source: &Source, scratch: &Path, choices: Choices, stop: &AtomicBool) -> anyhow::Result<Plan> {
        let mut table = table::read(source, choices)?;
        let mut partitions = std::mem::take(&mut table.partitions);
        if table.kind == TableKind::None {
            partitions = vec![Partition { len: source.len, ..Partition::default() }];
        }
        let mut plan = Plan {
            table: table.kind,
            sector_size: table.sector_size,
            disk_id: std::mem::take(&mut table.disk_id),
            partitions: Vec::new(),
            layout: Layout::of_extents(Vec::new()).context("starting with nothing")?,
            account: Claims::new(0).close(1, 1),
            warnings: std::mem::take(&mut table.warnings),
            notes: Vec::new(),
            tools: BTreeMap::new(),
            landmarks: Vec::new(),
        };
        let mut claims = Claims::new(source.len);
        if choices.whole {
            claims.claim(DiskRange::new(0..source.len), Class::Captured);
        }
        let array = plan.array_member(source, choices, &mut claims)?;
        let mut decider = Decider {
            source,
            scratch,
            choices,
            table: table.kind,
            array: array.as_deref(),
            stop,
            tools: &mut plan.tools,
        };
        let mut decisions = Vec::new();
        for partition in &partitions {
            decisions.push(decider.decide(partition).with_context(|| match table.kind {
                TableKind::None => format!("looking at {}", source.path.display()),
                _ => format!("looking at partition {} of {}", partition.number, source.path.display()),
            })?);
        }
        decider.keep_verified(&partitions, &mut decisions)?;
        for (partition, mut decision) in partitions.iter().zip(decisions) {
            behind(source, partition, &mut decision, choices, stop, &mut claims)?;
            claim(&mut claims, partition, &decision.what);
            plan.landmarks.push(superblock(partition));
            plan.partitions.push(info(partition, decision));
        }
        plan.landmarks.extend(ends(source.len));
        plan.outside(source, &table, &partitions, choices, stop, &mut claims)?;
        plan.account = claims.close(u64::from(plan.sector_size), PLACES_MAX);
        if plan.account.copied_along() > 0 {
            plan.notes.push(format!(
                "the blocks in use lie in more than {PLACES_MAX} places: {} of small holes between them are copied along",
                units::size(plan.account.copied_along())
            ));
        }
        plan.set_extents()?;
        Ok(plan)
    }

    /// The ends of the source that a restore writes last.
    pub(crate) fn deferred(&self, source_len: u64) -> Vec<DiskRange> {
        layout::deferred(self.table, source_len, source_len)
    }

    /// Leaves these ranges out of the content: there is a recipe for them.
    ///
    /// # Errors
    /// If nothing sane is left.
    pub(crate) fn leave_out(&mut self, zeros: &Zeros) -> anyhow::Result<()> {
        let ranges: Vec<_> = zeros.ranges().iter().cloned().map(DiskRange::new).collect();
        self.account.make_recipe(&ranges);
        self.set_extents()
    }

    fn set_extents(&mut self) -> anyhow::Result<()> {
        let extents = self.account.extents();
        for partition in self.partitions.iter_mut().filter(|info| info.captured != Captured::Container) {
            partition.captured_len =
                len_inside(&extents, DiskRange::new(partition.start..partition.start + partition.length));
        }
        self.layout = Layout::of_extents(extents).context("laying out the image")?;
        Ok(())
    }

    /// What array the whole disk belongs to, if it does: its partitions may go over several disks then, so that no map of
    /// theirs can be believed, and every byte is taken.
    fn array_member(
        &mut self,
        source: &Source,
        choices: Choices,
        claims: &mut Claims,
    ) -> anyhow::Result<Option<String>> {
        if self.table == TableKind::None || choices.whole {
            return Ok(None);
        }
        let found = probe(&source.path, &(0..source.len))?;
        if found.usage != "raid" {
            return Ok(None);
        }
        claims.claim(DiskRange::new(0..source.len), Class::Captured);
        self.warnings.push(format!(
            "the whole disk is marked as {0}, a member of an array of disks: every byte is copied, because its partitions may \
             go over several disks; if the array is no more, `wipefs -t {0}` takes the mark away",
            found.file_system
        ));
        Ok(Some(found.file_system))
    }

    /// Looks at what nobody has spoken for: outside of partitions, and behind the file systems in them.
    fn outside(
        &mut self,
        source: &Source,
        table: &Table,
        partitions: &[Partition],
        choices: Choices,
        stop: &AtomicBool,
        claims: &mut Claims,
    ) -> anyhow::Result<()> {
        // A clone that is captured is to be the image of its golden disk again, and no other disk is to carry its stamp.
        let stamps = stamps(source, table.sector_size);
        let own = table.own.iter().flat_map(|range| without(*range, &stamps));
        own.for_each(|range| claims.claim(range, Class::Captured));
        stamps.iter().for_each(|range| claims.claim(*range, Class::Free));
        let mut inside = Claims::new(source.len);
        let real = partitions.iter().filter(|partition| !partition.is_extended);
        real.for_each(|partition| inside.claim(partition.range(), Class::Captured));
        let outside = inside.unspoken();
        if choices.partitions_only {
            outside.iter().for_each(|range| claims.claim(*range, Class::Skipped));
        }
        for range in look::zeros(source, &claims.unspoken(), choices.rescue, stop)? {
            claims.claim(range, Class::Zeros);
        }
        let data = claims.unspoken();
        let Some(first) = data.first() else { return Ok(()) };
        let len: u64 = data.iter().map(|range| range.len()).sum();
        let is_outside =
            |range: &&DiskRange| outside.iter().any(|gap| gap.start <= range.start && range.end <= gap.end);
        let outside_len: u64 = data.iter().filter(is_outside).map(|range| range.len()).sum();
        let mut note = format!(
            "{} of data outside of file systems are captured as well, the first at byte {}",
            units::size(len),
            first.start
        );
        if outside_len >= OUTSIDE_HINT {
            note += &format!(
                "; {} of them lie outside of partitions: if they are left over from deleted ones, --partitions-only leaves them out",
                units::size(outside_len)
            );
        }
        self.notes.push(note);
        Ok(())
    }
}

/// The sectors that hold a stamp of this very disk, ascending: `/init` puts them where nothing else is.
fn stamps(source: &Source, sector_size: u32) -> Vec<DiskRange> {
    let sector_len = u64::from(sector_size);
    let mut found = Vec::new();
    for window in windows(source.len) {
        let mut bytes = vec![0; usize::try_from(window.len()).unwrap_or(0)];
        // What cannot be read is no stamp; it is found and said elsewhere.
        if source.read_at(&mut bytes, window.start).is_err() {
            continue;
        }
        let starts = (window.start.0..).step_by(STAMP_LEN).zip(bytes.chunks_exact(STAMP_LEN));
        let stamps = starts.filter(|(at, sector)| {
            at.is_multiple_of(sector_len) && Stamp::from_record(sector, DiskOffset(*at), source.len).is_some()
        });
        found.extend(stamps.map(|(at, _)| DiskRange::new(at..at + sector_len)));
    }
    found
}

/// What is left of a range without the holes in it, which ascend and are disjoint.
fn without(range: DiskRange, holes: &[DiskRange]) -> Vec<DiskRange> {
    let mut left = Vec::new();
    let mut start = range.start;
    for hole in holes.iter().filter(|hole| !hole.intersect(range).is_empty()) {
        left.push(DiskRange { start, end: hole.start });
        start = hole.end.max(start);
    }
    left.push(DiskRange { start, end: range.end });
    left.retain(|range| !range.is_empty());
    left
}

/// Looks at what lies behind a file system in its partition. If there is so much data that it may be a tree of hashes over all
/// of the file system (dm-verity, with or without a superblock), free blocks matter as well, and everything is captured.
fn behind(
    source: &Source,
    partition: &Partition,
    decision: &mut Decision,
    choices: Choices,
    stop: &AtomicBool,
    claims: &mut Claims,
) -> anyhow::Result<()> {
    let What::Used { spans, .. } = decision.what else { return Ok(()) };
    let place = partition.range();
    let tail = DiskRange { start: inside(place, spans), end: place.end };
    // Nobody protects what is swapped out.
    if tail.is_empty() || decision.found.file_system == "swap" {
        return Ok(());
    }
    let zeros = look::zeros(source, std::slice::from_ref(&tail), choices.rescue, stop)?;
    let data = tail.len() - zeros.iter().map(|range| range.len()).sum::<u64>();
    if data > 0 && data >= spans / TREE_SHARE {
        decision.note = format!("{} of data lie behind the {}", units::size(data), decision.found.file_system);
        decision.what = What::Whole;
    } else {
        zeros.into_iter().for_each(|range| claims.claim(range, Class::Zeros));
    }
    Ok(())
}

/// Says what was decided about a partition.
fn claim(claims: &mut Claims, partition: &Partition, what: &What) {
    let place = partition.range();
    match what {
        What::Container => {}
        What::Missing => claims.claim(place, Class::Missing),
        What::Whole => claims.claim(place, Class::Captured),
        What::Used { ranges, spans } => {
            let rest = DiskRange { start: inside(place, *spans), end: place.end };
            claims.claim(DiskRange { start: place.start, end: rest.start }, Class::Free);
            for range in ranges {
                let start = DiskOffset(place.start.0 + range.start);
                claims.claim(DiskRange { start, end: inside(place, range.end) }, Class::Captured);
            }
            if rest.len() <= 2 * EDGE_LEN {
                claims.claim(rest, Class::Captured);
            } else {
                claims.claim(DiskRange { end: DiskOffset(rest.start.0 + EDGE_LEN), ..rest }, Class::Captured);
                claims.claim(DiskRange { start: DiskOffset(rest.end.0 - EDGE_LEN), ..rest }, Class::Captured);
            }
        }
    }
}

/// Where byte `at` of the volume at `place` is on the disk, or the end of the place if it is past that.
fn inside(place: DiskRange, at: u64) -> DiskOffset {
    DiskOffset(place.start.0.saturating_add(at)).min(place.end)
}

/// Where a partition says what it is: the farthest superblock, btrfs's, is 64 KiB from its start.
fn superblock(partition: &Partition) -> DiskRange {
    DiskRange::new(partition.start..partition.start + partition.len.min(128 << 10))
}

/// Where tables are.
fn ends(len: u64) -> [DiskRange; 2] {
    [0..len.min(EDGE_LEN), len.saturating_sub(EDGE_LEN)..len].map(DiskRange::new)
}

fn info(partition: &Partition, decision: Decision) -> PartitionInfo {
    let Decision { found: Probe { file_system, label, uuid, .. }, what, note } = decision;
    let captured = match what {
        What::Container => Captured::Container,
        What::Missing => Captured::Missing,
        What::Whole => Captured::Whole,
        What::Used { .. } => Captured::UsedBlocks,
    };
    PartitionInfo {
        number: partition.number,
        start: partition.start,
        length: partition.len,
        type_id: partition.type_id.clone(),
        type_name: partition.type_name.to_owned(),
        name: partition.name.clone(),
        guid: partition.guid.clone(),
        attributes: partition.attributes,
        file_system,
        label,
        uuid,
        captured,
        captured_len: 0,
        note,
    }
}

/// How many bytes of `range` the extents hold.
fn len_inside(extents: &[Extent], range: DiskRange) -> u64 {
    let first = extents.partition_point(|extent| extent.end() <= range.start);
    let inside = extents[first..].iter().take_while(|extent| extent.disk < range.end);
    inside.map(|extent| range.intersect(DiskRange::from(*extent)).len()).sum()
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn lengths_count_only_what_is_inside() {
        let extents: Vec<Extent> =
            [(0, 10), (20, 10), (40, 10)].map(|(disk, len)| Extent { disk: DiskOffset(disk), len }).into();
        for (range, len) in [(0..50, 30), (5..25, 10), (10..20, 0), (29..41, 2), (45..100, 5), (100..200, 0)] {
            assert_eq!(len_inside(&extents, DiskRange::new(range.clone())), len, "{range:?}");
        }
    }

    #[test]
    fn holes_are_cut_out_of_a_range() {
        let without = |range, holes: &[Range<u64>]| {
            let holes: Vec<_> = holes.iter().cloned().map(DiskRange::new).collect();
            without(DiskRange::new(range), &holes).into_iter().map(DiskRange::bytes).collect::<Vec<_>>()
        };
        assert_eq!(without(5..9, &[]), [5..9]);
        assert_eq!(without(5..9, &[0..5, 6..7, 9..12]), [5..6, 7..9]);
        assert_eq!(without(5..9, &[0..6, 8..12]), [6..8]);
        assert_eq!(without(5..9, &[0..20]), []);
    }

    #[test]
    fn what_lies_behind_a_file_system_is_nobodys() {
        const MIB: u64 = 1 << 20;
        let partition = Partition { start: 10 * MIB, len: 20 * MIB, ..Partition::default() };
        let unspoken = |spans| {
            let mut claims = Claims::new(40 * MIB);
            claim(&mut claims, &partition, &What::Used { ranges: vec![0..4096], spans });
            claims.unspoken().into_iter().map(DiskRange::bytes).collect::<Vec<_>>()
        };
        assert_eq!(unspoken(20 * MIB), [0..10 * MIB, 30 * MIB..40 * MIB]);
        assert_eq!(unspoken(18 * MIB), [0..10 * MIB, 30 * MIB..40 * MIB]);
        assert_eq!(unspoken(5 * MIB), [0..10 * MIB, 16 * MIB..29 * MIB, 30 * MIB..40 * MIB]);
    }
}

//! The map from content offset to disk offset, checked once.

use std::fmt;
use std::ops::Range;

use metainfo::{FileEntry, ImageFacts, Metainfo, SwapFacts};

use crate::extent::{DiskOffset, DiskRange, Extent};
use crate::parttable::TableKind;

/// Bytes at the start of the device, and with a partition table also at its end, that are written last: until then
/// nothing boots. One MiB holds every partition table, and the boot code in the gap before the first partition.
const DEFERRED_LEN: u64 = 1 << 20;

/// A byte in the image's content: the concatenation of its extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentOffset(pub u64);

impl fmt::Display for ContentOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One contiguous stretch of content on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDisk {
    /// Where it starts in the content.
    pub content: ContentOffset,
    /// Where it starts on the device.
    pub disk: DiskOffset,
    /// Length in bytes.
    pub len: u64,
}

/// Why a torrent's files are not the extents of a disk, or do not fit this one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A path that is not 1 to 32 hex digits.
    #[error("file {index} is named {name:?}; an image's files are named by their offset on the disk in hex")]
    Name {
        /// Which file, from 0.
        index: usize,
        /// Its path as received, cut short if long.
        name: String,
    },
    /// Offset and length together exceed 64 bits.
    #[error("file {index} ends past the largest disk there can be")]
    Overflow {
        /// Which file, from 0.
        index: usize,
    },
    /// Extents are out of order or overlap: two pieces would write the same sector.
    #[error("file {index} at disk offset {disk:#x} starts before the file in front of it ends, at {previous_end:#x}")]
    Overlap {
        /// Which file, from 0.
        index: usize,
        /// Where it starts.
        disk: u64,
        /// Where the previous one ends.
        previous_end: u64,
    },
    /// The image's zeros are where something else lies.
    #[error("the image wants zeros at disk offset {disk:#x}, {why}")]
    Zeros {
        /// Where they start.
        disk: u64,
        /// What is wrong with them.
        why: &'static str,
    },
    /// The image reaches past the end of the device.
    #[error("the image needs a disk of at least {needed} bytes, this one has {device}: choose a larger disk")]
    TooSmall {
        /// Bytes needed.
        needed: u64,
        /// Bytes the device has.
        device: u64,
    },
    /// The image's partition table counts in sectors of another size than the device's.
    #[error(
        "the image was made on a disk with {image}-byte sectors, this disk has {device}-byte sectors: \
             its partition table would be read wrongly, so use a disk with {image}-byte sectors"
    )]
    SectorSize {
        /// Bytes per sector on the disk that was captured.
        image: u32,
        /// Bytes per sector on this device.
        device: u32,
    },
    /// A range is not inside the content.
    #[error("content {start}..{end} is past the end of the image, which has {content_len} bytes")]
    PastEnd {
        /// Start of the range asked for.
        start: u64,
        /// End of the range asked for.
        end: u64,
        /// Length of the content.
        content_len: u64,
    },
}

/// The map from content to disk.
///
/// Extents are ascending and disjoint on the disk, so they ascend in content order too; their lengths add up to the
/// content's.
#[derive(Clone, Debug)]
pub struct Layout {
    extents: Vec<Extent>,
    /// Where each extent starts in the content; same length as `extents`.
    starts: Vec<u64>,
    content_len: u64,
    /// Ascending and disjoint, inside the disk, and apart from extents, swap areas and deferred ranges.
    zeros: Vec<DiskRange>,
    table: TableKind,
    is_whole_disk: bool,
    sector_size: Option<u32>,
    disk_size: Option<u64>,
}

impl Layout {
    /// Reads the extents from a torrent's file names, and the other parts of the disk that its facts mention.
    ///
    /// # Errors
    /// [`LayoutError::Name`], [`LayoutError::Overflow`] or [`LayoutError::Overlap`] for the first wrong file,
    /// [`LayoutError::Zeros`] for the first wrong zeros.
    pub fn new(meta: &Metainfo) -> Result<Layout, LayoutError> {
        let extents =
            meta.files.iter().enumerate().map(|(index, file)| extent_of(index, file)).collect::<Result<Vec<_>, _>>()?;
        let mut layout = Layout::of_extents(extents)?;
        if let Some(facts) = &meta.facts {
            layout.sector_size = (facts.table != TableKind::None).then_some(facts.sector_size);
            layout.disk_size = Some(facts.disk_size);
            layout.table = facts.table;
            layout.is_whole_disk = layout.table != TableKind::None || facts.device == "disk";
            layout.zeros = layout.checked_zeros(facts)?;
        }
        Ok(layout)
    }

    /// The layout of bare extents, as a capture has them. They have to be ascending, disjoint and not empty.
    ///
    /// # Errors
    /// [`LayoutError::Overlap`] or [`LayoutError::Overflow`] if they are not.
    pub fn of_extents(extents: Vec<Extent>) -> Result<Layout, LayoutError> {
        let mut starts = Vec::with_capacity(extents.len());
        let mut content_len: u64 = 0;
        let mut previous_end = 0;
        for (index, extent) in extents.iter().enumerate() {
            let end = extent.disk.0.checked_add(extent.len).filter(|&end| i64::try_from(end).is_ok());
            let end = end.ok_or(LayoutError::Overflow { index })?;
            if extent.disk.0 < previous_end {
                return Err(LayoutError::Overlap { index, disk: extent.disk.0, previous_end });
            }
            starts.push(content_len);
            // Disjoint extents that end below i64::MAX cannot sum up to more than that.
            content_len += extent.len;
            previous_end = end;
        }
        Ok(Layout {
            extents,
            starts,
            content_len,
            zeros: Vec::new(),
            table: TableKind::None,
            is_whole_disk: false,
            sector_size: None,
            disk_size: None,
        })
    }

    /// The extents in disk order, which is content order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The ranges that are zeros on the disk and not content, ascending and disjoint.
    pub fn zeros(&self) -> &[DiskRange] {
        &self.zeros
    }

    /// Whether the image has any byte of this range of the disk, as content or as zeros.
    pub fn touches(&self, range: DiskRange) -> bool {
        let extent = self.extents.partition_point(|extent| extent.end() <= range.start);
        let zeros = self.zeros.partition_point(|zeros| zeros.end <= range.start);
        !range.is_empty()
            && (self.extents.get(extent).is_some_and(|extent| extent.disk < range.end)
                || self.zeros.get(zeros).is_some_and(|zeros| zeros.start < range.end))
    }

    /// Length of the content in bytes.
    pub fn content_len(&self) -> u64 {
        self.content_len
    }

    /// The size that a device must have, in bytes: the end of the last extent or zeros.
    pub fn needed_len(&self) -> u64 {
        let extents = self.extents.last().map(Extent::end);
        extents.max(self.zeros.last().map(|range| range.end)).unwrap_or_default().0
    }

    /// Size of the captured disk in bytes if the torrent has it, otherwise [`Layout::needed_len`].
    pub fn disk_size(&self) -> u64 {
        self.disk_size.unwrap_or(0).max(self.needed_len())
    }

    /// Which partition table the image has, if the torrent says so.
    pub fn table(&self) -> TableKind {
        self.table
    }

    /// The sector size that the image's partition table counts in, in bytes, if there is one.
    pub fn sector_size(&self) -> Option<u32> {
        self.sector_size
    }

    /// Whether the image is known to be of a whole disk, not of one partition: it has a partition table, or its facts
    /// say so.
    pub fn is_whole_disk(&self) -> bool {
        self.is_whole_disk
    }

    /// Checks everything that can be checked before the first write.
    ///
    /// A device has to be as large as the captured disk, even if the content ends earlier: partitions and file systems
    /// extend to their end, used or not.
    ///
    /// `device_len` and `sector_size` are in bytes. A device without sectors (a regular file) passes `None`.
    ///
    /// # Errors
    /// [`LayoutError::TooSmall`] or [`LayoutError::SectorSize`].
    pub fn check_device(&self, device_len: u64, sector_size: Option<u32>) -> Result<(), LayoutError> {
        let needed = self.disk_size();
        if needed > device_len {
            return Err(LayoutError::TooSmall { needed, device: device_len });
        }
        match (self.sector_size, sector_size) {
            (Some(image), Some(device)) if image != device => Err(LayoutError::SectorSize { image, device }),
            _ => Ok(()),
        }
    }

    /// Splits a half-open range of content into the disk extents that hold it.
    ///
    /// They are in content order, not empty, and inside the image's extents; their lengths add up to the range's.
    ///
    /// # Errors
    /// [`LayoutError::PastEnd`] if the range is not inside the content.
    pub fn on_disk(&self, content: Range<u64>) -> Result<impl Iterator<Item = OnDisk> + '_, LayoutError> {
        if content.start > content.end || content.end > self.content_len {
            return Err(LayoutError::PastEnd { start: content.start, end: content.end, content_len: self.content_len });
        }
        let first = self.starts.partition_point(|&start| start <= content.start).saturating_sub(1);
        let here = self.extents[first..].iter().zip(&self.starts[first..]);
        Ok(here.take_while(move |&(_, &start)| start < content.end).filter_map(move |(extent, &start)| {
            let from = content.start.max(start);
            let to = content.end.min(start + extent.len);
            (from < to).then(|| OnDisk {
                content: ContentOffset(from),
                disk: DiskOffset(extent.disk.0 + (from - start)),
                len: to - from,
            })
        }))
    }

    /// The ranges of a device of this length that are written last: see [`deferred`].
    pub fn deferred(&self, device_len: u64) -> Vec<DiskRange> {
        deferred(self.table, self.disk_size(), device_len)
    }

    /// The image's zeros, if they overlap nothing else. The deferred ranges come from the partition table, so each disk
    /// has different ones.
    fn checked_zeros(&self, facts: &ImageFacts) -> Result<Vec<DiskRange>, LayoutError> {
        let zeros: Vec<_> = facts.zeros.ranges().iter().cloned().map(DiskRange::new).collect();
        if zeros.is_empty() {
            return Ok(zeros);
        }
        let mut deferred = self.deferred(self.disk_size());
        deferred.push(DiskRange::new(facts.disk_size..u64::MAX));
        let others = [
            ("which its files hold as well", self.extents.iter().copied().map(DiskRange::from).collect()),
            ("where its partition table or the end of its disk is", deferred),
            ("where it has a swap area", facts.swap.iter().map(swap_range).collect()),
        ];
        for (why, others) in others {
            if let Some(zeros) = first_overlap(&zeros, others) {
                return Err(LayoutError::Zeros { disk: zeros.start.0, why });
            }
        }
        Ok(zeros)
    }
}

/// The ranges of a device of `device_len` bytes that are written last, ascending and disjoint. They are the first MiB
/// and, for an image with a partition table, the last MiB of the device and of the captured disk of `disk_size` bytes.
/// Without them, firmware finds nothing to boot.
pub fn deferred(table: TableKind, disk_size: u64, device_len: u64) -> Vec<DiskRange> {
    let mut ends = vec![DEFERRED_LEN.min(device_len)];
    if table != TableKind::None {
        ends.extend([disk_size.min(device_len), device_len]);
    }
    let mut ranges: Vec<DiskRange> = Vec::new();
    for end in ends {
        let start = end.saturating_sub(DEFERRED_LEN);
        match ranges.last_mut() {
            Some(last) if start <= last.end.0 => last.end = last.end.max(DiskOffset(end)),
            _ => ranges.push(DiskRange::new(start..end)),
        }
    }
    ranges.retain(|range| !range.is_empty());
    ranges
}

fn swap_range(swap: &SwapFacts) -> DiskRange {
    DiskRange::new(swap.offset..swap.offset.saturating_add(swap.length))
}

/// The first of `ranges`, which are ascending and disjoint, that touches one of the others.
fn first_overlap(ranges: &[DiskRange], others: Vec<DiskRange>) -> Option<&DiskRange> {
    let hit = |other: DiskRange| {
        let index = ranges.partition_point(|range| range.end <= other.start);
        ranges.get(index).filter(|range| range.start < other.end && !other.is_empty())
    };
    others.into_iter().filter_map(hit).min_by_key(|range| range.start)
}

fn extent_of(index: usize, file: &FileEntry) -> Result<Extent, LayoutError> {
    let [name] = file.path.as_slice() else {
        return Err(name_error(index, &file.path.join("/")));
    };
    let is_hex = (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex {
        return Err(name_error(index, name));
    }
    let offset = u128::from_str_radix(name, 16).expect("at most 32 hex digits");
    let disk = u64::try_from(offset).map_err(|_| LayoutError::Overflow { index })?;
    Ok(Extent { disk: DiskOffset(disk), len: file.length })
}

fn name_error(index: usize, name: &str) -> LayoutError {
    LayoutError::Name { index, name: name.chars().take(60).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metainfo::Zeros;
    use proptest::prelude::*;

    fn layout(extents: &[(u64, u64)]) -> Result<Layout, LayoutError> {
        Layout::of_extents(extents.iter().map(|&(disk, len)| Extent { disk: DiskOffset(disk), len }).collect())
    }

    fn name(text: &str) -> Result<u64, LayoutError> {
        extent_of(0, &FileEntry { length: 1, path: vec![text.into()] }).map(|extent| extent.disk.0)
    }

    #[test]
    fn names_are_1_to_32_hex_digits() {
        assert_eq!(name("0"), Ok(0));
        assert_eq!(name("fF"), Ok(255));
        assert_eq!(name("000000000000000000000000000000ff"), Ok(255));
        for bad in ["", "g", "0x10", "+1", "-1", "../../etc/passwd", &"0".repeat(33)] {
            assert!(matches!(name(bad), Err(LayoutError::Name { .. })), "{bad}");
        }
        assert_eq!(name("ffffffffffffffff0"), Err(LayoutError::Overflow { index: 0 }));
    }

    #[test]
    fn overlaps_and_disorder_are_refused() {
        assert!(layout(&[(0, 10), (10, 10)]).is_ok());
        assert!(matches!(layout(&[(0, 11), (10, 10)]), Err(LayoutError::Overlap { index: 1, .. })));
        assert!(matches!(layout(&[(10, 5), (0, 5)]), Err(LayoutError::Overlap { index: 1, .. })));
        assert!(matches!(layout(&[(u64::MAX - 1, 5)]), Err(LayoutError::Overflow { index: 0 })));
    }

    #[test]
    fn ranges_split_at_extent_bounds() {
        let layout = layout(&[(100, 10), (200, 5), (205, 5)]).expect("sane");
        let split = |range: Range<u64>| -> Vec<(u64, u64, u64)> {
            layout.on_disk(range).expect("inside").map(|x| (x.content.0, x.disk.0, x.len)).collect()
        };
        assert_eq!(split(0..20), [(0, 100, 10), (10, 200, 5), (15, 205, 5)]);
        assert_eq!(split(9..11), [(9, 109, 1), (10, 200, 1)]);
        assert_eq!(split(10..10), []);
        assert_eq!(split(20..20), []);
        assert_eq!(split(19..20), [(19, 209, 1)]);
        assert!(matches!(layout.on_disk(0..21).err(), Some(LayoutError::PastEnd { .. })));
    }

    #[test]
    fn zeros_on_top_of_anything_are_refused() {
        const MIB: u64 = 1 << 20;
        let check = |zeros: Range<u64>| {
            let mut layout = layout(&[(0, 512), (4 * MIB, MIB)]).expect("sane");
            (layout.table, layout.disk_size) = (TableKind::Gpt, Some(16 * MIB));
            let swap = SwapFacts { offset: 8 * MIB, length: MIB, ..SwapFacts::default() };
            let zeros = Zeros::new(vec![zeros]).expect("whole blocks");
            let facts = ImageFacts { disk_size: 16 * MIB, swap: vec![swap], zeros, ..ImageFacts::default() };
            layout.checked_zeros(&facts).map(drop).map_err(|error| match error {
                LayoutError::Zeros { disk, why } => (disk, why.split(' ').nth(2).unwrap_or_default()),
                other => panic!("{other}"),
            })
        };
        for good in [MIB..4 * MIB, 5 * MIB..8 * MIB, 9 * MIB..15 * MIB] {
            assert_eq!(check(good.clone()), Ok(()), "{good:?}");
        }
        let block = 64 << 10;
        assert_eq!(check(MIB..4 * MIB + block), Err((MIB, "files")));
        assert_eq!(check(5 * MIB - block..5 * MIB), Err((5 * MIB - block, "files")));
        assert_eq!(check(MIB - block..MIB), Err((MIB - block, "partition")));
        assert_eq!(check(15 * MIB..15 * MIB + block), Err((15 * MIB, "partition")));
        assert_eq!(check(16 * MIB..17 * MIB), Err((16 * MIB, "partition")));
        assert_eq!(check(7 * MIB..10 * MIB), Err((7 * MIB, "has")));
        assert_eq!(check(1 << 62..(1 << 62) + block), Err((1 << 62, "partition")));
    }

    #[test]
    fn a_disk_has_to_hold_the_zeros_as_well() {
        let mut layout = layout(&[(0, 512)]).expect("sane");
        layout.zeros.push(DiskRange::new(1 << 20..2 << 20));
        assert_eq!(layout.needed_len(), 2 << 20);
    }

    #[test]
    fn both_ends_of_a_disk_are_written_last() {
        const MIB: u64 = 1 << 20;
        let mut layout = layout(&[(0, 512)]).expect("sane");
        let deferred = |layout: &Layout, len: u64| -> Vec<(u64, u64)> {
            layout.deferred(len).into_iter().map(|range| (range.start.0, range.end.0)).collect()
        };
        assert_eq!(deferred(&layout, 50 * MIB), [(0, MIB)], "a partition's image");
        assert_eq!(deferred(&layout, 512), [(0, 512)]);
        (layout.table, layout.disk_size) = (TableKind::Mbr, Some(10 * MIB));
        let tail = |end: u64| (end - MIB, end);
        assert_eq!(deferred(&layout, 10 * MIB), [(0, MIB), tail(10 * MIB)]);
        assert_eq!(deferred(&layout, 50 * MIB), [(0, MIB), tail(10 * MIB), tail(50 * MIB)]);
        assert_eq!(deferred(&layout, 10 * MIB + 512), [(0, MIB), (9 * MIB, 10 * MIB + 512)]);
        assert_eq!(deferred(&layout, 5 * MIB), [(0, MIB), tail(5 * MIB)]);
        assert_eq!(deferred(&layout, MIB + 512), [(0, MIB + 512)]);
        assert_eq!(deferred(&layout, 0), []);
    }

    #[test]
    fn a_disk_one_sector_short_is_refused() {
        let layout = layout(&[(0, 512), (1024, 512)]).expect("sane");
        assert_eq!(layout.check_device(1536, Some(512)), Ok(()));
        assert_eq!(layout.check_device(1535, Some(512)), Err(LayoutError::TooSmall { needed: 1536, device: 1535 }));
    }

    #[test]
    fn a_disk_is_too_small_for_what_is_free_as_well() {
        let mut layout = layout(&[(0, 512), (1024, 512)]).expect("sane");
        for table in [TableKind::None, TableKind::Mbr, TableKind::Gpt] {
            (layout.table, layout.disk_size) = (table, Some(4096));
            assert_eq!(layout.check_device(4096, None), Ok(()));
            assert_eq!(layout.check_device(4095, None), Err(LayoutError::TooSmall { needed: 4096, device: 4095 }));
        }
    }

    proptest! {
        #[test]
        fn every_content_byte_has_its_place(
            gaps in proptest::collection::vec((0u64..50, 1u64..50), 1..20),
            start in 0u64..500,
            len in 0u64..500,
        ) {
            let mut at = 0;
            let mut places = Vec::new();
            let mut extents = Vec::new();
            for (gap, len) in gaps {
                extents.push((at + gap, len));
                places.extend(at + gap..at + gap + len);
                at += gap + len;
            }
            let layout = layout(&extents).expect("ascending");
            let total = layout.content_len();
            prop_assert_eq!(total, places.len() as u64);
            let range = start.min(total)..(start + len).min(total);
            let mut expected = range.start;
            for part in layout.on_disk(range.clone()).expect("inside") {
                prop_assert_eq!(part.content.0, expected);
                for i in 0..part.len {
                    let content = usize::try_from(part.content.0 + i).expect("small");
                    prop_assert_eq!(places[content], part.disk.0 + i);
                }
                expected += part.len;
            }
            prop_assert_eq!(expected, range.end);
        }
    }
}

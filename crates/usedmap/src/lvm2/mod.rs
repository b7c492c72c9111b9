//! LVM2 physical volumes: finds the extents that belong to logical volumes.
//!
//! ```text
//! label: in one of the first four sectors of 512 bytes: "LABELONE" · sector · CRC · offset of the header · "LVM2 001"
//! header: UUID, size, data areas, metadata areas (offset and length each, ended by zeros)
//! metadata area: CRC, magic, version, start, size, then up to four places of a text in the ring after it
//! text: volume group { physical_volumes { … } logical_volumes { name { segment1 { stripes = ["pv0", 0] } } } }
//! ```
//!
//! Only groups on one physical volume with linear and striped segments are read. Anything else that may give meaning to
//! an extent (snapshots, thin pools, RAID, caches, moves in progress, an unknown flag) is [`UsedError::Unsupported`]
//! with its name, and the caller copies all of the volume. The space before the first extent and the metadata areas are
//! always copied. It is not known here whether the file systems inside were unmounted cleanly. Source: LVM2,
//! `lib/format_text/layout.h` and `lib/label/label.h`; lvm.conf(5) for the text.

mod text;

use std::io::{Read, Seek};
use std::ops::Range;

use crate::ranges::Ranges;
use crate::used::{Used, UsedError};
use crate::volume::{Fields, Volume, crc32};
use text::{Section, Value};

const SECTOR: u64 = 512;
/// Sectors in which a label may be.
const LABEL_SECTORS: u64 = 4;
/// LVM's checksums start with this.
const CRC_SEED: u32 = 0xf597_a6cf;
const AREA_MAGIC: &[u8; 16] = b"\x20LVM2\x20x[5A%r0N*>";
const AREA_VERSION: u32 = 1;
/// Longest text that is read, in bytes: it describes thousands of logical volumes.
const TEXT_LEN_MAX: u64 = 16 << 20;
/// Flag of a text's place: do not use it.
const IGNORED: u32 = 1;
/// Most extents that a physical volume may have here: their bits take 32 MiB.
const EXTENTS_MAX: u64 = 1 << 28;

/// The contents of the label.
struct Label {
    uuid: String,
    size: u64,
    areas: Vec<Range<u64>>,
}

impl Label {
    fn find(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Option<Label>, UsedError> {
        for sector in 0..LABEL_SECTORS {
            let Some(bytes) = volume.read_if_inside(sector * SECTOR, SECTOR)? else { break };
            let fields = Fields::little(&bytes);
            let is_it = bytes.starts_with(b"LABELONE")
                && &bytes[24..32] == b"LVM2 001"
                && fields.u64(8) == sector
                && crc32(CRC_SEED, &bytes[20..]) == fields.u32(16);
            if is_it {
                return Ok(Label::parse(&bytes));
            }
        }
        Ok(None)
    }

    fn parse(bytes: &[u8]) -> Option<Label> {
        let fields = Fields::little(bytes);
        let mut at = usize::try_from(fields.u32(20)).ok().filter(|at| (32..=400).contains(at))?;
        let uuid = String::from_utf8(bytes[at..at + 32].to_vec()).ok()?;
        let size = fields.u64(at + 32);
        at += 40;
        // There are two lists: data areas, metadata areas.
        let mut lists = [Vec::new(), Vec::new()];
        for list in &mut lists {
            loop {
                if at + 16 > bytes.len() {
                    return None;
                }
                let (offset, len) = (fields.u64(at), fields.u64(at + 8));
                at += 16;
                if offset == 0 {
                    break;
                }
                list.push(offset..offset.checked_add(len)?);
            }
        }
        let [_, areas] = lists;
        Some(Label { uuid, size, areas })
    }
}

pub(crate) fn detect(volume: &mut Volume<'_, impl Read + Seek>) -> Result<bool, UsedError> {
    Ok(Label::find(volume)?.is_some())
}

pub(crate) fn used(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Used, UsedError> {
    let Some(label) = Label::find(volume)? else {
        return Err(volume.damaged("it has no valid label"));
    };
    if label.size > volume.len() {
        return Err(volume.damaged(format!("it claims {} bytes and has {}", label.size, volume.len())));
    }
    if label.areas.is_empty() {
        return Err(volume.unsupported("it has no metadata area, so what is in use is written elsewhere"));
    }
    // There are one or two areas. Their text is the same, except after a crash between writing one and the other.
    let mut found: Option<(u64, Section)> = None;
    for area in &label.areas {
        let metadata = area_text(volume, area)?;
        let whole = text::parse(&metadata).ok_or_else(|| volume.damaged("its metadata is no text that can be read"))?;
        let serial = group(&whole).and_then(|(_, group)| group.number("seqno"));
        let serial = serial.ok_or_else(|| volume.damaged("its metadata describes no group"))?;
        match &found {
            Some((other, _)) if *other != serial => {
                return Err(volume.damaged(format!("its metadata areas differ: {other} and {serial}")));
            }
            _ => found = Some((serial, whole)),
        }
    }
    let (_, whole) = found.expect("there is an area");
    let (name, group) = group(&whole).expect("checked when it was read");
    let map = ExtentMap::read(&label, name, group).map_err(|what| volume.unsupported(what))?;
    let extents_end = map.first.saturating_add(map.extent_len.saturating_mul(map.is_used.len() as u64));
    if extents_end > volume.len() {
        return Err(volume.damaged(format!("its extents end at byte {extents_end} of {}", volume.len())));
    }

    let mut ranges = Ranges::new(volume.len());
    ranges.insert(0..map.first);
    label.areas.iter().for_each(|area| ranges.insert(area.clone()));
    let is_used = |extent: u64| map.is_used[usize::try_from(extent).expect("an index of the map")];
    let mut at = 0;
    let count = map.is_used.len() as u64;
    while at < count {
        let start = at;
        while at < count && is_used(at) == is_used(start) {
            at += 1;
        }
        if is_used(start) {
            ranges.insert(map.first + start * map.extent_len..map.first + at * map.extent_len);
        }
    }
    let block_size = u32::try_from(map.extent_len).unwrap_or(u32::MAX);
    // The remainder after the extents is shorter than one, except for a second metadata area, which is in `areas`.
    let notes = volume.take_notes();
    Ok(Used { ranges: ranges.finish(), spans: extents_end, block_size, is_clean: None, notes })
}

/// The text that a metadata area holds.
fn area_text(volume: &mut Volume<'_, impl Read + Seek>, area: &Range<u64>) -> Result<String, UsedError> {
    let header = volume.read(area.start, SECTOR)?;
    let fields = Fields::little(&header);
    let is_it = &header[4..20] == AREA_MAGIC
        && fields.u32(20) == AREA_VERSION
        && fields.u64(24) == area.start
        && crc32(CRC_SEED, &header[4..]) == fields.u32(0);
    if !is_it {
        return Err(volume.damaged(format!("its metadata area at byte {} fails its checks", area.start)));
    }
    let ring_len = fields.u64(32);
    let (offset, len, sum, flags) = (fields.u64(40), fields.u64(48), fields.u32(56), fields.u32(60));
    if offset == 0 || len == 0 {
        return Err(volume.unsupported("it belongs to no volume group"));
    }
    if flags & IGNORED != 0 {
        return Err(volume.unsupported("a metadata area that is to be ignored"));
    }
    let is_inside = (SECTOR..ring_len).contains(&offset) && len <= ring_len - SECTOR && len <= TEXT_LEN_MAX;
    if !is_inside || ring_len > volume.len() {
        return Err(volume.damaged(format!("a text of {len} bytes at {offset} in an area of {ring_len}")));
    }
    // The ring continues after the header.
    let first_len = len.min(ring_len - offset);
    let mut bytes = volume.read(area.start.saturating_add(offset), first_len)?;
    bytes.extend(volume.read(area.start.saturating_add(SECTOR), len - first_len)?);
    if crc32(CRC_SEED, &bytes) != sum {
        return Err(volume.damaged("its metadata fails its checksum"));
    }
    String::from_utf8(bytes).map_err(|_| volume.damaged("its metadata is no text"))
}

/// The only section of a text, which is the volume group, and its name.
fn group(whole: &Section) -> Option<(&str, &Section)> {
    let sections = whole.sections();
    sections.first_key_value().filter(|_| sections.len() == 1).map(|(name, group)| (name.as_str(), group))
}

/// Which extents are used.
struct ExtentMap {
    first: u64,
    extent_len: u64,
    is_used: Vec<bool>,
}

impl ExtentMap {
    /// # Errors
    /// The part of the group that is not understood.
    fn read(label: &Label, name: &str, group: &Section) -> Result<ExtentMap, String> {
        let known = ["physical_volumes", "logical_volumes", "historical_logical_volumes"];
        if let Some(other) = group.sections().keys().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("the section {other} of group {name}"));
        }
        check_words(group, "status", &["RESIZEABLE", "READ", "WRITE"], name)?;
        check_words(group, "flags", &[], name)?;
        if !matches!(group.text("lock_type"), None | Some("none")) {
            return Err(format!("group {name} is shared between machines"));
        }
        let volumes = group.section("physical_volumes").map(Section::sections);
        let count = volumes.map_or(0, |volumes| volumes.len());
        let Some((volume_name, volume)) = volumes.filter(|_| count == 1).and_then(|volumes| volumes.first_key_value())
        else {
            return Err(format!("group {name} is on {count} physical volumes"));
        };
        if volume.text("id").map(|id| id.replace('-', "")) != Some(label.uuid.clone()) {
            return Err(format!("group {name} is on another physical volume"));
        }
        check_words(volume, "status", &["ALLOCATABLE"], volume_name)?;
        check_words(volume, "flags", &[], volume_name)?;
        let numbers =
            (|| Some((group.number("extent_size")?, volume.number("pe_start")?, volume.number("pe_count")?)))();
        let (extent_sectors, first_sector, count) = numbers.ok_or_else(|| format!("group {name} has no extents"))?;
        let (extent_len, first) = (extent_sectors.checked_mul(SECTOR), first_sector.checked_mul(SECTOR));
        let (Some(extent_len @ 1..), Some(first), true) = (extent_len, first, count <= EXTENTS_MAX) else {
            return Err(format!("{count} extents of {extent_sectors} sectors from {first_sector} on"));
        };
        // This check comes before any allocation that depends on this number.
        if count.checked_mul(extent_len).and_then(|len| len.checked_add(first)).is_none_or(|end| end > label.size) {
            return Err(format!("{count} extents of {extent_len} bytes in {}", label.size));
        }
        let mut map =
            ExtentMap { first, extent_len, is_used: vec![false; usize::try_from(count).expect("below EXTENTS_MAX")] };
        for (volume, section) in group.section("logical_volumes").into_iter().flat_map(Section::sections) {
            map.add_volume(volume, section, volume_name)?;
        }
        Ok(map)
    }

    fn add_volume(&mut self, name: &str, volume: &Section, physical: &str) -> Result<(), String> {
        check_words(volume, "status", &["READ", "WRITE", "VISIBLE"], name)?;
        check_words(volume, "flags", &["ACTIVATION_SKIP", "NOSCAN", "NOAUTOACTIVATE"], name)?;
        let segments = volume.sections();
        if volume.number("segment_count") != Some(segments.len() as u64) {
            return Err(format!("the segments of {name}"));
        }
        for (segment_name, segment) in segments {
            let what = || format!("{segment_name} of {name}");
            if segment.text("type") != Some("striped") {
                return Err(format!("{name} has a segment of type {}", segment.text("type").unwrap_or("(none)")));
            }
            if !segment.sections().is_empty() {
                return Err(what());
            }
            let count = segment.number("extent_count").ok_or_else(what)?;
            let stripes = segment.list("stripes").ok_or_else(what)?;
            let stripe_count = stripes.len() as u64 / 2;
            if stripe_count == 0 || segment.number("stripe_count") != Some(stripe_count) || count % stripe_count != 0 {
                return Err(what());
            }
            for stripe in stripes.chunks(2) {
                match stripe {
                    [Value::Text(on), Value::Number(start)] if on == physical => {
                        let start = usize::try_from(*start).map_err(|_| what())?;
                        let count = usize::try_from(count / stripe_count).map_err(|_| what())?;
                        let end = start.checked_add(count).ok_or_else(what)?;
                        let extents = self.is_used.get_mut(start..end).ok_or_else(what)?;
                        // No extent may belong to two segments.
                        if extents.contains(&true) {
                            return Err(format!("{name} shares extents with another volume"));
                        }
                        extents.fill(true);
                    }
                    _ => return Err(what()),
                }
            }
        }
        Ok(())
    }
}

/// Refuses an unknown word, because it may mean anything.
fn check_words(section: &Section, list: &str, known: &[&str], name: &str) -> Result<(), String> {
    let Some(value) = section.value(list) else { return Ok(()) };
    // A single word may be written without brackets.
    let words = match value {
        Value::Text(word) => Some(vec![word.as_str()]),
        Value::Number(_) | Value::List(_) => section.texts(list),
    };
    let words = words.ok_or_else(|| format!("the {list} of {name}"))?;
    match words.iter().find(|word| !known.contains(word)) {
        Some(word) => Err(format!("{name} is {word}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    const AREA: usize = 4096;
    const AREA_LEN: usize = 60 * 1024;

    /// A physical volume of 1 MiB whose metadata is this text, which starts `offset` bytes into its area.
    fn volume(text: &str, offset: usize) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        let uuid = b"abcdefghijklmnopqrstuvwxyz012345";
        put(512, b"LABELONE");
        put(520, &1u64.to_le_bytes());
        put(532, &32u32.to_le_bytes());
        put(536, b"LVM2 001");
        put(544, uuid);
        put(576, &(1u64 << 20).to_le_bytes());
        put(584, &65_536u64.to_le_bytes());
        put(616, &(AREA as u64).to_le_bytes());
        put(624, &(AREA_LEN as u64).to_le_bytes());
        put(AREA + 4, AREA_MAGIC);
        put(AREA + 20, &1u32.to_le_bytes());
        put(AREA + 24, &(AREA as u64).to_le_bytes());
        put(AREA + 32, &(AREA_LEN as u64).to_le_bytes());
        put(AREA + 40, &(offset as u64).to_le_bytes());
        put(AREA + 48, &(text.len() as u64).to_le_bytes());
        put(AREA + 56, &crc32(CRC_SEED, text.as_bytes()).to_le_bytes());
        let (first, second) = text.as_bytes().split_at(text.len().min(AREA_LEN - offset));
        put(AREA + offset, first);
        put(AREA + 512, second);
        let sum = crc32(CRC_SEED, &bytes[AREA + 4..AREA + 512]);
        bytes[AREA..AREA + 4].copy_from_slice(&sum.to_le_bytes());
        let sum = crc32(CRC_SEED, &bytes[532..1024]);
        bytes[528..532].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// 14 extents of 64 KiB, starting at 64 KiB; one volume with extents 2 to 4 and 9, one with 6 and 12 in two
    /// stripes.
    const TEXT: &str = r#"vg {
        id = "x" seqno = 7 format = "lvm2" status = ["RESIZEABLE", "READ", "WRITE"] flags = [] extent_size = 128
        physical_volumes { pv0 { id = "abcdef-ghij-klmn-opqr-stuv-wxyz-012345" device = "/dev/sda"
            status = ["ALLOCATABLE"] flags = [] dev_size = 2048 pe_start = 128 pe_count = 14 } }
        logical_volumes {
            one { status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 2
                segment1 { start_extent = 0 extent_count = 3 type = "striped" stripe_count = 1 stripes = ["pv0", 2] }
                segment2 { start_extent = 3 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 9] } }
            two { status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
                segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 2 stripe_size = 128
                    stripes = ["pv0", 6, "pv0", 12] } } } }
        contents = "Text Format Volume Group""#;

    fn read(bytes: Vec<u8>) -> Result<Used, UsedError> {
        let len = bytes.len() as u64;
        used(&mut Volume::new(&mut Cursor::new(bytes), len, "LVM2_member"))
    }

    fn extents(text: &str, offset: usize) -> Result<Vec<u64>, String> {
        let used = read(volume(text, offset)).map_err(|error| error.to_string())?;
        let is_used = |byte: &u64| used.ranges.iter().any(|range| range.contains(byte));
        assert_eq!(used.spans, 15 << 16);
        let used: Vec<u64> = (0..16u64).map(|part| part << 16).filter(is_used).map(|byte| byte >> 16).collect();
        Ok(used)
    }

    #[test]
    fn extents_of_volumes_are_used() {
        // Part n is extent n - 1, except the first, which is before the extents, and the last, of which nothing is
        // known.
        let wanted = vec![0, 3, 4, 5, 7, 10, 13];
        assert_eq!(extents(TEXT, 512).as_ref(), Ok(&wanted));
        let wrapping = AREA_LEN - 100;
        assert_eq!(extents(TEXT, wrapping).as_ref(), Ok(&wanted), "the text goes on at the start of the ring");
    }

    #[test]
    fn what_is_not_understood_is_copied_whole() {
        for (from, to, why) in [
            (
                "\"striped\" stripe_count = 1 stripes = [\"pv0\", 9]",
                "\"snapshot\"",
                "one has a segment of type snapshot",
            ),
            ("\"striped\" stripe_count = 2", "\"raid1\" device_count = 2", "two has a segment of type raid1"),
            ("\"VISIBLE\"", "\"PVMOVE\"", "one is PVMOVE"),
            ("\"RESIZEABLE\"", "\"EXPORTED\"", "vg is EXPORTED"),
            ("flags = [] dev_size", "flags = [\"MISSING\"] dev_size", "pv0 is MISSING"),
            ("seqno = 7", "seqno = 7 lock_type = \"sanlock\"", "shared between machines"),
            ("} }\n        logical", "} pv1 { } }\n        logical", "on 2 physical volumes"),
            ("012345\"", "012346\"", "on another physical volume"),
            ("[\"pv0\", 9]", "[\"pv1\", 9]", "segment2 of one"),
            ("[\"pv0\", 9]", "[\"pv0\", 14]", "segment2 of one"),
            ("[\"pv0\", 9]", "[\"pv0\", -9]", "segment2 of one"),
            ("[\"pv0\", 9]", "[\"pv0\", 3]", "one shares extents"),
            ("segment_count = 2", "segment_count = 3", "the segments of one"),
            ("pe_count = 14", "pe_count = 16", "16 extents"),
            ("pe_count = 14", "pe_count = 9223372036854775807", "9223372036854775807 extents"),
            ("extent_size = 128", "extent_size = 0", "14 extents of 0"),
            ("logical_volumes {", "new_things { } logical_volumes {", "the section new_things"),
            ("seqno = 7", "", "describes no group"),
            ("contents", "another { } contents", "describes no group"),
            ("vg {", "vg { {", "no text that can be read"),
        ] {
            let text = TEXT.replacen(from, to, 1);
            assert_ne!(text, TEXT, "{from}");
            let error = extents(&text, 512).expect_err(why);
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn a_damaged_area_is_an_error() {
        let good = volume(TEXT, 512);
        for at in [520, 544, AREA + 5, AREA + 40, AREA + 600] {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            assert!(matches!(read(bytes), Err(UsedError::Damaged { .. })), "byte {at}");
        }
        assert!(matches!(read(good[..4096].to_vec()), Err(UsedError::Damaged { .. })));
        assert!(matches!(read(Vec::new()), Err(UsedError::Damaged { .. })));
    }

    proptest! {
        #[test]
        fn any_metadata_is_read_or_refused(
            cut in 0..TEXT.len(), more in "[0-9a-z \\[\\]{}=\",]{0,8}", skip in 0usize..20, offset in 512..AREA_LEN,
        ) {
            let text = format!("{}{more}{}", &TEXT[..cut], TEXT.get(cut + skip..).unwrap_or_default());
            if let Ok(used) = read(volume(&text, offset)) {
                prop_assert!(used.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert!(used.ranges.iter().all(|range| range.end <= 1 << 20));
            }
        }
    }
}

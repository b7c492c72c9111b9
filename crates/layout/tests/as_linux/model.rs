//! Partition tables as we read them and as libblkid reads them, with a switch for each decision between the two.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::Row;
use super::disk::Disk;

/// A point in which we decide differently from libblkid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    DamagedPrimary,
    NoGpt,
    NoProtectiveMbr,
    OtherPlace,
    Usable,
    HeaderInside,
    OutsideUsable,
    Backwards,
    Cut,
    Behind,
    PastEnd,
    Untyped,
    TooMany,
    Wrap,
    ZeroLink,
    Twice,
    NestedPastEnd,
}

use Decision::*;

impl Decision {
    pub const ALL: [Decision; 17] = [
        DamagedPrimary,
        NoGpt,
        NoProtectiveMbr,
        OtherPlace,
        Usable,
        HeaderInside,
        OutsideUsable,
        Backwards,
        Cut,
        Behind,
        PastEnd,
        Untyped,
        TooMany,
        Wrap,
        ZeroLink,
        Twice,
        NestedPastEnd,
    ];

    pub fn reason(self) -> &'static str {
        match self {
            DamagedPrimary => {
                "primary GPT damaged, backup good: refused, `sgdisk -e` is named; libblkid takes the backup"
            }
            NoGpt => "protective MBR without a good GPT: refused; libblkid shows no partition",
            NoProtectiveMbr => "GPT without a protective MBR: refused; libblkid shows no partition",
            OtherPlace => {
                "primary GPT that says it is elsewhere: refused; the kernel ignores it, libblkid looks for the backup"
            }
            Usable => "GPT with usable space that the disk has not: taken with a warning, Linux ignores the table",
            HeaderInside => "GPT with usable space from sector 0 on: taken with a warning, libblkid ignores the table",
            OutsideUsable => "GPT entry outside of the usable space: libblkid ignores it, the kernel and we take it",
            Backwards => {
                "GPT entry that ends before it starts: left out with a warning, libblkid shows a length below zero"
            }
            Cut => "partition that ends a little past the end of the disk: cut there, as the kernel does",
            Behind => "partition that starts a little past the end of the disk: left out, as the kernel does",
            PastEnd => "partition that lacks more than a sixteenth of the disk: refused",
            Untyped => "entry of type 00 that leaves the disk: left out, libblkid shows it",
            TooMany => "more than 256 partitions: the kernel and we stop, libblkid does not",
            Wrap => "sector numbers past 2^32: libblkid starts at 0 again, the kernel and we do not",
            ZeroLink => {
                "chain of logical partitions linked to its own start: the end for us, libblkid tries the next link"
            }
            Twice => {
                "chain that comes back to a record: the end for us, libblkid may find more in it by another length"
            }
            NestedPastEnd => "type that may hold a table of its own, past the end of the disk: libblkid gives up",
        }
    }
}

/// The decisions that are made as libblkid makes them.
#[derive(Clone, Copy)]
pub struct Decisions(u32);

impl Decisions {
    pub const NONE: Decisions = Decisions(0);
    pub const ALL: Decisions = Decisions(u32::MAX);

    pub fn with(self, one: Decision) -> Decisions {
        Decisions(self.0 | 1 << one as u32)
    }

    pub fn without(self, one: Decision) -> Decisions {
        Decisions(self.0 & !(1 << one as u32))
    }

    fn has(self, one: Decision) -> bool {
        self.0 & 1 << one as u32 != 0
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"))
}

/// CRC-32 of UEFI and Ethernet.
pub fn crc(bytes: &[u8]) -> u32 {
    static TABLE: LazyLock<Vec<u32>> = LazyLock::new(|| {
        let shift = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        (0..256).map(|byte| (0..8).fold(byte, |crc, _| shift(crc))).collect()
    });
    let table = TABLE.as_slice();
    !bytes.iter().fold(!0u32, |crc, &byte| crc >> 8 ^ table[usize::from(crc.to_le_bytes()[0] ^ byte)])
}

/// A table that is refused.
struct Refused;

/// The partitions that are read, or `None` if the table is refused.
pub fn read(disk: &Disk, decisions: Decisions) -> Option<Vec<Row>> {
    let mut model = Model { disk, decisions, rows: Vec::new() };
    match model.read() {
        Ok(()) => {
            model.rows.sort_by_key(|row| row.0);
            Some(model.rows)
        }
        Err(Refused) => None,
    }
}

struct Model<'a> {
    disk: &'a Disk,
    decisions: Decisions,
    rows: Vec<Row>,
}

/// One of the four entries of a boot record, in sectors of 512 bytes.
struct Entry {
    sys: u8,
    start: u64,
    count: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.sys, 5 | 15 | 0x85)
    }
}

impl Model<'_> {
    fn has(&self, decision: Decision) -> bool {
        self.decisions.has(decision)
    }

    fn read(&mut self) -> Result<(), Refused> {
        let Some(first) = self.disk.bytes(0, 512) else { return Ok(()) };
        let is_signed = first[510..] == [0x55, 0xaa];
        let entries = self.entries(&first);
        if is_signed && entries.iter().any(|entry| entry.sys == 0xee) {
            return self.gpt();
        }
        let is_table = is_signed && (0..4).all(|index| first[446 + 16 * index] & 0x7f == 0);
        let end = self.end();
        let is_there = |entry: &Entry| {
            let missing = (entry.start + entry.count).saturating_sub(end) * 512;
            entry.start < end && missing <= self.disk.len / 16
        };
        let counts = |entry: &Entry| entry.count > 0 && (entry.sys != 0 || is_there(entry));
        let says_gpt = self.disk.bytes(self.disk.sector_size, 8).is_some_and(|bytes| bytes == b"EFI PART");
        if says_gpt && !self.has(NoProtectiveMbr) && !(is_table && entries.iter().any(counts)) {
            return Err(Refused);
        }
        if is_table { self.mbr(&entries) } else { Ok(()) }
    }

    /// Its end, in sectors of 512 bytes.
    fn end(&self) -> u64 {
        self.disk.sectors() * (self.disk.sector_size / 512)
    }

    /// A number of sectors as it is stored.
    fn kept(&self, sectors: u64) -> u64 {
        if self.has(Wrap) { sectors & 0xffff_ffff } else { sectors }
    }

    fn entries(&self, record: &[u8]) -> Vec<Entry> {
        let factor = self.disk.sector_size / 512;
        let sectors = |at| self.kept(u64::from(u32_at(record, at)) * factor);
        let entry = |at: usize| Entry { sys: record[at + 4], start: sectors(at + 8), count: sectors(at + 12) };
        (0..4).map(|index| entry(446 + 16 * index)).collect()
    }

    /// Adds a partition.
    fn put(&mut self, number: u32, start: u64, count: u64, is_untyped: bool) -> Result<(), Refused> {
        let end = self.end();
        let missing = start.saturating_add(count).saturating_sub(end).saturating_mul(512);
        let mut row = (number, start, count);
        if missing > self.disk.len / 16 {
            if is_untyped && !self.has(Untyped) {
                return Ok(());
            }
            if !self.has(PastEnd) {
                return Err(Refused);
            }
        } else if start >= end {
            if !self.has(Behind) {
                return Ok(());
            }
        } else if missing > 0 && !self.has(Cut) {
            row.2 = end - start;
        }
        self.rows.push(row);
        Ok(())
    }

    fn mbr(&mut self, entries: &[Entry]) -> Result<(), Refused> {
        let used = || (1..).zip(entries).filter(|(_, entry)| entry.count > 0);
        for (number, entry) in used() {
            self.put(number, entry.start, entry.count, entry.sys == 0)?;
        }
        let mut starts: BTreeSet<u64> = used().map(|(_, entry)| entry.start).collect();
        let mut next = 5;
        for (_, entry) in used().filter(|(_, entry)| entry.is_extended()) {
            self.chain(entry, &mut starts, &mut next)?;
        }
        let may_hold_one = |sys| matches!(sys, 0xa5 | 0xa9 | 0xa6 | 0x63 | 0x82 | 0x81);
        let is_cut = |entry: &Entry| (entry.start + entry.count) * 512 > self.disk.len;
        let is_large = self.disk.len > 1440 << 10;
        if is_large && self.has(NestedPastEnd) && used().any(|(_, one)| may_hold_one(one.sys) && is_cut(one)) {
            self.rows.clear();
        }
        Ok(())
    }

    fn chain(&mut self, all: &Entry, starts: &mut BTreeSet<u64>, next: &mut u32) -> Result<(), Refused> {
        let (mut at, mut len) = (all.start, all.count);
        let mut visited = BTreeSet::new();
        let mut empty = 0;
        if all.start == 0 {
            return Ok(());
        }
        loop {
            let is_new = visited.insert(at);
            empty += 1;
            if empty > 100 || !is_new && !self.has(Twice) {
                return Ok(());
            }
            let Some(record) = self.disk.bytes(at * 512, 512) else { return Ok(()) };
            if record[510..] != [0x55, 0xaa] {
                return Ok(());
            }
            let entries = self.entries(&record);
            for (index, entry) in entries.iter().enumerate().filter(|(_, one)| one.count > 0 && !one.is_extended()) {
                let start = self.kept(at + entry.start);
                let is_outside = self.kept(entry.start + entry.count) > len
                    || start < all.start
                    || self.kept(start + entry.count) > self.kept(all.start + all.count);
                if index >= 2 && is_outside || !starts.insert(start) {
                    continue;
                }
                if *next > 256 && !self.has(TooMany) {
                    return Ok(());
                }
                self.put(*next, start, entry.count, entry.sys == 0)?;
                *next += 1;
                empty = 0;
            }
            let is_link = |one: &&Entry| one.count > 0 && one.is_extended() && (one.start > 0 || !self.has(ZeroLink));
            let Some(link) = entries.iter().find(is_link) else { return Ok(()) };
            (at, len) = (self.kept(all.start + link.start), link.count);
        }
    }

    /// Header and entries, if both match their checksums.
    fn gpt_at(&self, lba: u64) -> Option<(Vec<u8>, Vec<u8>)> {
        let size = self.disk.sector_size;
        let header = self.disk.bytes(lba.checked_mul(size)?, size)?;
        let len = usize::try_from(u32_at(&header, 12)).expect("small");
        if !header.starts_with(b"EFI PART") || len < 92 || len > header.len() {
            return None;
        }
        let mut summed = header[..len].to_vec();
        summed[16..20].fill(0);
        let (count, entry_len) = (u32_at(&header, 80), u32_at(&header, 84));
        if crc(&summed) != u32_at(&header, 16) || entry_len != 128 || !(1..=32768).contains(&count) {
            return None;
        }
        let entries = self.disk.bytes(u64_at(&header, 72).checked_mul(size)?, u64::from(count) * 128)?;
        (crc(&entries) == u32_at(&header, 88)).then_some((header, entries))
    }

    fn gpt(&mut self) -> Result<(), Refused> {
        let last = self.disk.sectors() - 1;
        let is_at = |header: &[u8], lba| u64_at(header, 24) == lba;
        let is_taken = |header: &[u8], lba| {
            let (first, end) = (u64_at(header, 40), u64_at(header, 48));
            let is_usable = first <= end && first <= last && end <= last;
            let is_inside = first < lba && lba < end;
            (is_usable || !self.has(Usable)) && (!is_inside || !self.has(HeaderInside))
        };
        let primary = self.gpt_at(1);
        if primary.as_ref().is_some_and(|(header, _)| !is_at(header, 1)) && !self.has(OtherPlace) {
            return Err(Refused);
        }
        let backup = self.gpt_at(last).filter(|(header, _)| last > 1 && is_at(header, last));
        let chosen = match (primary, backup) {
            (Some(good), _) if is_at(&good.0, 1) && is_taken(&good.0, 1) => Some(good),
            (None, Some(_)) if !self.has(DamagedPrimary) => return Err(Refused),
            (None, None) if !self.has(NoGpt) => return Err(Refused),
            (_, backup) => backup.filter(|(header, _)| is_taken(header, last)),
        };
        match chosen {
            Some((header, entries)) => self.gpt_entries(&header, &entries),
            None => Ok(()),
        }
    }

    fn gpt_entries(&mut self, header: &[u8], entries: &[u8]) -> Result<(), Refused> {
        let factor = self.disk.sector_size / 512;
        for (number, entry) in (1..).zip(entries.chunks(128)).filter(|(_, entry)| entry[..16] != [0; 16]) {
            if self.rows.len() == 256 && !self.has(TooMany) {
                return Ok(());
            }
            let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
            let is_outside = first < u64_at(header, 40) || last > u64_at(header, 48);
            if is_outside && self.has(OutsideUsable) {
                continue;
            }
            if last >= first {
                let count = (last - first).saturating_add(1);
                self.put(number, first.saturating_mul(factor), count.saturating_mul(factor), false)?;
            } else if self.has(Backwards) {
                let count = last.wrapping_sub(first).wrapping_add(1).wrapping_mul(factor);
                self.rows.push((number, first * factor, count));
            }
        }
        Ok(())
    }
}

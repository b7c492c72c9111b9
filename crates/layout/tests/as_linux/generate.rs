//! Random tables, each from a seed.

use super::disk::Disk;
use super::model::crc;

const MIB: u64 = 1 << 20;

/// A table that is to be read.
pub struct Case {
    pub kind: &'static str,
    pub disk: Disk,
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from).max(1))
    }

    /// True once in `of` times.
    fn once_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).expect("small")]
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).expect("a byte")
    }

    fn u32(&mut self) -> u32 {
        u32::try_from(self.below(1 << 32)).expect("32 bits")
    }
}

pub fn case(seed: u64) -> Case {
    let mut rng = Rng(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ 0x1357_9bdf);
    let sector_size = rng.of(&[512, 512, 512, 512, 4096, 4096, 1024, 2048]);
    let len = if rng.once_in(12) { MIB } else { rng.between(1, 300) * MIB };
    let len = len + if rng.once_in(8) { rng.below(64) * 4096 } else { 0 };
    let mut disk = Disk::new(len, sector_size);
    let kind = match rng.below(100) {
        0..30 => primaries(&mut rng, &mut disk),
        30..60 => extended(&mut rng, &mut disk),
        60 => long_chain(&mut rng, &mut disk),
        61 => comes_back(&mut rng, &mut disk),
        _ => gpt(&mut rng, &mut disk),
    };
    if rng.once_in(3) {
        flip(&mut rng, &mut disk);
    }
    Case { kind, disk }
}

/// Changes bits of the table.
fn flip(rng: &mut Rng, disk: &mut Disk) {
    let written = disk.written();
    for _ in 0..rng.between(1, 5) {
        let block = rng.of(&written);
        let is_first = block == 0;
        let within = if is_first || rng.once_in(2) { rng.between(446, 512) } else { rng.below(128) };
        let at = block + within;
        let Some(old) = disk.bytes(at, 1) else { continue };
        disk.put(at, &[old[0] ^ 1 << rng.below(8)]);
    }
    if rng.once_in(2) {
        let size = disk.sector_size;
        seal(disk, 1);
        let last = disk.sectors() - 1;
        if rng.once_in(2) && disk.bytes(last * size, 8).is_some_and(|bytes| bytes == b"EFI PART") {
            seal(disk, last);
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Entry {
    flag: u8,
    sys: u8,
    start: u32,
    count: u32,
}

fn record(disk: &mut Disk, lba: u64, entries: &[Entry]) {
    let at = lba * disk.sector_size;
    for (entry, at) in entries.iter().zip((at + 446..).step_by(16)) {
        disk.put(at, &[entry.flag, 1, 2, 3, entry.sys, 4, 5, 6]);
        disk.put(at + 8, &entry.start.to_le_bytes());
        disk.put(at + 12, &entry.count.to_le_bytes());
    }
    disk.put(at + 510, &[0x55, 0xaa]);
}

/// A sector count or number that is usually small.
fn cut(sectors: u64) -> u32 {
    u32::try_from(sectors).unwrap_or(u32::MAX)
}

/// Any type of a data partition. Minix is left out: such a partition may contain its own table, and in one from sector
/// 0 on, that table is the disk's.
fn data_type(rng: &mut Rng) -> u8 {
    loop {
        let sys =
            if rng.once_in(3) { rng.byte() } else { rng.of(&[0, 1, 6, 7, 0x0b, 0x0c, 0x17, 0x82, 0x83, 0x83, 0x8e]) };
        if !matches!(sys, 5 | 0x0f | 0x81 | 0x85 | 0xee) {
            return sys;
        }
    }
}

/// Start and count of a partition on a disk of `sectors`, sometimes slightly past its end.
fn place(rng: &mut Rng, sectors: u64) -> (u32, u32) {
    let start = match rng.below(40) {
        0 => 0,
        1 => rng.between(1, 64),
        2 => sectors + rng.below(sectors / 20),
        3 if rng.once_in(4) => rng.below(1 << 32),
        _ => rng.below(sectors),
    };
    let left = sectors.saturating_sub(start);
    let count = match rng.below(40) {
        0 => left + rng.below(sectors / 20),
        1 if rng.once_in(4) => rng.below(1 << 32),
        2 => sectors,
        3..12 => left,
        _ => rng.between(1, left),
    };
    (cut(start), cut(count))
}

fn primaries(rng: &mut Rng, disk: &mut Disk) -> &'static str {
    let sectors = disk.sectors();
    let mut entries = [Entry::default(); 4];
    for entry in &mut entries {
        let (start, count) = place(rng, sectors);
        let flag = if rng.once_in(200) { rng.byte() } else { rng.of(&[0, 0, 0, 0x80]) };
        *entry = Entry { flag, sys: data_type(rng), start, count };
        if rng.once_in(3) {
            *entry = Entry::default();
        }
    }
    record(disk, 0, &entries);
    "MBR, primary partitions"
}

/// A number of sectors in a chain that ends at `end`, now and then any number.
fn logical(rng: &mut Rng, from: u64, end: u64) -> Entry {
    let start = if rng.once_in(20) { rng.below(3) } else { rng.between(1, 400) };
    let count = if rng.once_in(12) { end.saturating_sub(from + start) } else { rng.between(1, 3000) };
    let count = if rng.once_in(300) { rng.below(1 << 32) } else { count };
    let start = if rng.once_in(300) { rng.below(1 << 32) } else { start };
    Entry { flag: 0, sys: data_type(rng), start: cut(start), count: cut(count) }
}

/// Records anywhere in the container, in any order, with links to any of them.
fn chain(rng: &mut Rng, disk: &mut Disk, base: u64, count: u64) {
    let end = base + count;
    let mut places = vec![base];
    for _ in 0..rng.below(8) {
        let lba = rng.between(base, end);
        if !places.contains(&lba) {
            places.push(lba);
        }
    }
    for (index, &lba) in places.iter().enumerate() {
        let next = match places.get(index + 1) {
            Some(&next) => Some(next),
            None if rng.once_in(4) => Some(rng.of(&places)),
            None if rng.once_in(12) => Some(rng.between(base, end)),
            None => None,
        };
        let mut entries = [Entry::default(); 4];
        if !rng.once_in(6) {
            entries[0] = logical(rng, lba, end);
        }
        if let Some(next) = next {
            let start = if rng.once_in(100) { rng.u32() } else { cut(next - base) };
            let count = if rng.once_in(8) { rng.u32() } else { cut(end - next) };
            let link = Entry { flag: 0, sys: rng.of(&[5, 5, 5, 0x0f, 0x85]), start, count };
            let at = if rng.once_in(6) { usize::try_from(rng.below(4)).expect("small") } else { 1 };
            entries[at] = link;
            if rng.once_in(40) {
                entries[0] = Entry { start: 0, ..link };
            }
        }
        for entry in &mut entries {
            if entry.count == 0 && rng.once_in(8) {
                *entry = logical(rng, lba, end);
            } else if entry.count == 0 && rng.once_in(60) {
                *entry = Entry { flag: rng.byte(), sys: rng.byte(), start: rng.u32(), count: rng.u32() };
            }
        }
        if rng.once_in(60) {
            // Garbage, or no record.
            disk.put(lba * disk.sector_size + 446, &[rng.byte(); 64]);
        } else {
            record(disk, lba, &entries);
        }
    }
}

fn extended(rng: &mut Rng, disk: &mut Disk) -> &'static str {
    let sectors = disk.sectors();
    let half = sectors / 2;
    let mut entries = [Entry::default(); 4];
    let mut containers = Vec::new();
    for (at, half_at) in [(rng.of(&[0usize, 1, 1, 2, 3]), 0), (rng.of(&[0usize, 3]), half)] {
        if half_at > 0 && !rng.once_in(4) {
            continue;
        }
        let from = if rng.once_in(60) { 0 } else { half_at + rng.between(1, half / 2) };
        let count = rng.between(half / 4, half - 1);
        let count = if half_at > 0 && rng.once_in(8) { sectors - from + rng.below(sectors / 20) } else { count };
        entries[at] = Entry { flag: 0, sys: rng.of(&[5, 0x0f, 0x85]), start: cut(from), count: cut(count) };
        containers.push((from, count));
    }
    for entry in &mut entries {
        if entry.count == 0 && rng.once_in(2) {
            let (start, count) = place(rng, sectors);
            *entry = Entry { flag: 0, sys: data_type(rng), start, count };
        }
    }
    record(disk, 0, &entries);
    for (from, count) in containers {
        if from > 0 {
            chain(rng, disk, from, count.min(sectors - from));
        }
    }
    "MBR, logical partitions"
}

/// More logical partitions than any system has names for, or records without partitions.
fn long_chain(rng: &mut Rng, disk: &mut Disk) -> &'static str {
    let sectors = disk.sectors();
    let base = rng.between(1, 100);
    let count = sectors - base;
    record(disk, 0, &[Entry { flag: 0, sys: 5, start: cut(base), count: cut(count) }]);
    let many = rng.of(&[90, 99, 100, 101, 120, 251, 252, 253, 300]);
    let step = (count / many).min(8);
    let is_empty = many < 200;
    for index in 0..many {
        let own = Entry { flag: 0, sys: 0x83, start: 1, count: if is_empty && index + 1 < many { 0 } else { 1 } };
        let link = Entry { flag: 0, sys: 5, start: cut((index + 1) * step), count: cut(step) };
        let link = if index + 1 < many { link } else { Entry::default() };
        record(disk, base + index * step, &[own, link]);
    }
    "MBR, long chains"
}

/// A record that links to itself with a larger length: an entry that was out of bounds then lies inside.
fn comes_back(rng: &mut Rng, disk: &mut Disk) -> &'static str {
    let extended = |start: u64, count: u64| Entry { flag: 0, sys: 5, start: cut(start), count: cut(count) };
    let data = |start: u64, count: u64| Entry { flag: 0, sys: 0x83, start: cut(start), count: cut(count) };
    let (base, count) = (rng.between(1, 20), disk.sectors() - 20);
    let at = rng.between(2, 30);
    record(disk, 0, &[extended(base, count)]);
    record(disk, base, &[data(1, 1), extended(at, 20)]);
    record(disk, base + at, &[data(1, rng.between(1, 9)), extended(at, 100), data(10, rng.between(1, 50))]);
    "MBR, records linked twice"
}

/// Makes the header at `lba` match its checksums again, as far as its numbers make sense.
fn seal(disk: &mut Disk, lba: u64) {
    let size = disk.sector_size;
    let Some(mut header) = disk.bytes(lba * size, size) else { return };
    let u32_at = |header: &[u8], at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four"));
    let (count, len) = (u64::from(u32_at(&header, 80)), u32_at(&header, 12));
    let entries_lba = u64::from_le_bytes(header[72..80].try_into().expect("eight"));
    let entries = entries_lba.checked_mul(size).and_then(|at| disk.bytes(at, count.min(4096) * 128));
    if let Some(entries) = entries {
        header[88..92].copy_from_slice(&crc(&entries).to_le_bytes());
    }
    header[16..20].fill(0);
    let len = usize::try_from(len).expect("small").clamp(92, header.len());
    let sum = crc(&header[..len]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk.put(lba * size, &header[..92]);
}

fn gpt(rng: &mut Rng, disk: &mut Disk) -> &'static str {
    let (size, sectors) = (disk.sector_size, disk.sectors());
    let count: u64 = if rng.once_in(3) { rng.of(&[1, 4, 16, 64, 129, 256, 512, 2048]) } else { 128 };
    let entry_sectors = (count * 128).div_ceil(size);
    let (first_usable, last_usable) = (2 + entry_sectors, sectors - 2 - entry_sectors);
    let entries_lba = if rng.once_in(8) { rng.between(2, first_usable) } else { 2 };
    let first_usable = first_usable.max(entries_lba + entry_sectors);

    let mut array = vec![0; usize::try_from(count * 128).expect("small")];
    let many = if rng.once_in(30) { count } else { rng.below(9).min(count) };
    for _ in 0..many {
        // Any of the entries, or one of the first twelve.
        let reach = if rng.once_in(8) { count } else { count.min(12) };
        let free = array.chunks(128).position(|entry| entry[..16] == [0; 16]);
        let some = usize::try_from(rng.below(reach)).expect("small");
        let index = free.filter(|_| many > 8).unwrap_or(some);
        fill(rng, &mut array[index * 128..][..128], first_usable, last_usable, sectors);
    }
    let mut header = vec![0; usize::try_from(size).expect("small")];
    header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
    let header_len = if rng.once_in(3) { cut(rng.between(92, size + 1)) } else { 92 };
    header[12..16].copy_from_slice(&header_len.to_le_bytes());
    if header_len > 92 || rng.once_in(4) {
        header[92..].iter_mut().for_each(|byte| *byte = rng.byte());
    }
    let mut put = |at: usize, value: u64| header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(24, 1);
    put(32, sectors - 1);
    put(40, if rng.once_in(100) { rng.below(3) } else { first_usable });
    put(48, if rng.once_in(60) { sectors + rng.below(3) - 1 } else { last_usable });
    put(56, rng.next());
    put(64, rng.next());
    put(72, entries_lba);
    put(80, count | 128 << 32);
    disk.put(size, &header);
    disk.put(entries_lba * size, &array);
    seal(disk, 1);
    backup(rng, disk, &header, &array);
    protect(rng, disk);
    match rng.below(30) {
        0 => disk.put(size + rng.below(92), &[rng.byte()]),
        1 => disk.put(entries_lba * size + rng.below(count * 128), &[rng.byte()]),
        2 if rng.once_in(2) => {
            disk.put(size + 24, &[rng.byte()]);
            seal(disk, 1);
        }
        _ => {}
    }
    "GPT"
}

fn fill(rng: &mut Rng, entry: &mut [u8], first_usable: u64, last_usable: u64, sectors: u64) {
    let first = rng.between(first_usable, last_usable);
    let last = rng.between(first, last_usable + 1);
    let (first, last) = match rng.below(200) {
        0 => (rng.below(first_usable), last),
        1 => (first, rng.between(last_usable, sectors + sectors / 20)),
        2 => (sectors + rng.below(sectors / 30), sectors + sectors / 25),
        3 => (first, first - rng.between(1, 10).min(first)),
        4 if rng.once_in(3) => (first, rng.next()),
        _ => (first, last),
    };
    entry[..16].fill(rng.of(&[0x11, 0x22, 0xaf]));
    entry[16..32].iter_mut().for_each(|byte| *byte = rng.byte());
    entry[32..40].copy_from_slice(&first.to_le_bytes());
    entry[40..48].copy_from_slice(&last.to_le_bytes());
    let attributes = if rng.once_in(3) { rng.next() } else { 0 };
    entry[48..56].copy_from_slice(&attributes.to_le_bytes());
    entry[56..128].iter_mut().for_each(|byte| *byte = rng.byte());
}

/// The copy at the end: good, of another table, or missing.
fn backup(rng: &mut Rng, disk: &mut Disk, header: &[u8], array: &[u8]) {
    let (size, last) = (disk.sector_size, disk.sectors() - 1);
    let entries_lba = last - (array.len() as u64).div_ceil(size);
    let mut header = header.to_vec();
    header[24..32].copy_from_slice(&last.to_le_bytes());
    header[32..40].copy_from_slice(&1u64.to_le_bytes());
    header[72..80].copy_from_slice(&entries_lba.to_le_bytes());
    let mut array = array.to_vec();
    match rng.below(10) {
        0 => return,
        1 => array[32] ^= 1,
        _ => {}
    }
    disk.put(last * size, &header);
    disk.put(entries_lba * size, &array);
    seal(disk, last);
    if rng.once_in(10) {
        disk.put(last * size + rng.below(92), &[rng.byte()]);
    }
}

/// The protective MBR: as it should be, as a hybrid, odd, or missing.
fn protect(rng: &mut Rng, disk: &mut Disk) {
    let sectors = disk.sectors();
    let mut entries = [Entry::default(); 4];
    entries[0] = Entry { flag: 0, sys: 0xee, start: 1, count: cut(sectors - 1) };
    match rng.below(16) {
        0 => entries[0].flag = rng.byte(),
        1 => entries[0].count = rng.of(&[0, 1, u32::MAX]),
        2 => entries.swap(0, 2),
        3..6 => {
            for entry in &mut entries[1..] {
                let (start, count) = place(rng, sectors);
                *entry = Entry { flag: rng.of(&[0, 0x80]), sys: data_type(rng), start, count };
            }
        }
        6 if rng.once_in(3) => entries[0].sys = data_type(rng),
        7 if rng.once_in(3) => return,
        _ => {}
    }
    record(disk, 0, &entries);
}

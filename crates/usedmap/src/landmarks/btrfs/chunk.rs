//! Chunks: they map logical addresses to places on a device.
//!
//! ```text
//! length u64 0 · type u64 24 · stripes u16 44 · stripes at 48, 32 bytes each: device u64 0, start on it u64 8
//! ```
//!
//! A chunk's logical start is the offset in its key. With the profiles DUP, RAID1, RAID1C3 and RAID1C4, each stripe is
//! a copy of the whole chunk. On a single device, no other profiles have more than one stripe.

use std::ops::Range;

use super::superblock::Superblock;
use crate::volume::Fields;

/// Length of the part before its stripes, and of each stripe.
const LEN: usize = 48;
const STRIPE_LEN: usize = 32;

/// Profiles whose stripes are copies, with the number of copies.
const MIRRORED: [(u64, usize); 4] = [(0x10, 2), (0x20, 2), (0x200, 3), (0x400, 4)];
/// Profiles whose stripes are parts: RAID0, 10, 5, 6.
const STRIPED: [u64; 4] = [8, 0x40, 0x80, 0x100];
/// The contents of a chunk: data, system, metadata.
const CONTENT: u64 = 7;

/// A chunk on the one device of its file system.
pub(super) struct Chunk {
    logical: Range<u64>,
    /// Where each copy of it starts on the device. There is at least one copy, and all of them end on the device.
    pub stripes: Vec<u64>,
}

impl Chunk {
    /// The chunk at the start of these bytes, and how many of them it takes.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub(super) fn parse(start: u64, bytes: &[u8], superblock: &Superblock) -> Result<(Chunk, usize), String> {
        let error = |what: &str| format!("the chunk at logical byte {start} {what}");
        if bytes.len() < LEN {
            return Err(error("is cut off"));
        }
        let fields = Fields::little(bytes);
        let (len, kind, stripe_count) = (fields.u64(0), fields.u64(24), usize::from(fields.u16(44)));
        let end = start.checked_add(len).filter(|_| len > 0).ok_or_else(|| error("has no length"))?;
        let own_len = LEN + stripe_count * STRIPE_LEN;
        let stripes = bytes.get(LEN..own_len).ok_or_else(|| error("has too many stripes"))?;
        let profile = kind & !CONTENT;
        let is_known = match MIRRORED.iter().find(|(mirrored, _)| *mirrored == profile) {
            Some((_, copies)) => stripe_count == *copies,
            None => stripe_count == 1 && (profile == 0 || STRIPED.contains(&profile)),
        };
        if !is_known || kind & CONTENT == 0 {
            return Err(error(&format!("is of type {kind:#x} with {stripe_count} stripes")));
        }
        let is_here = |stripe: &Fields<'_>| {
            let end = stripe.u64(8).checked_add(len);
            stripe.u64(0) == superblock.device && end.is_some_and(|end| end <= superblock.device_len)
        };
        let stripes = stripes.chunks_exact(STRIPE_LEN).map(Fields::little);
        let stripes: Option<Vec<u64>> = stripes.map(|stripe| is_here(&stripe).then(|| stripe.u64(8))).collect();
        let stripes = stripes.ok_or_else(|| error("is not on its device"))?;
        Ok((Chunk { logical: start..end, stripes }, own_len))
    }

    pub(super) fn len(&self) -> u64 {
        self.logical.end - self.logical.start
    }
}

/// Chunks in the order of their logical addresses; they do not overlap.
pub(super) struct Chunks(Vec<Chunk>);

impl Chunks {
    /// # Errors
    /// If two of them have the same address.
    pub(super) fn new(mut chunks: Vec<Chunk>) -> Result<Chunks, String> {
        chunks.sort_unstable_by_key(|chunk| chunk.logical.start);
        match chunks.windows(2).find(|pair| pair[1].logical.start < pair[0].logical.end) {
            Some(pair) => Err(format!("two chunks have logical byte {}", pair[1].logical.start)),
            None => Ok(Chunks(chunks)),
        }
    }

    pub(super) fn all(&self) -> &[Chunk] {
        &self.0
    }

    /// The stripes that have these logical bytes, which lie in one chunk, and the distance from their starts.
    pub(super) fn find(&self, start: u64, len: u64) -> Option<(&[u64], u64)> {
        let index = self.0.partition_point(|chunk| chunk.logical.start <= start).checked_sub(1)?;
        let chunk = &self.0[index];
        let end = start.checked_add(len)?;
        (end <= chunk.logical.end).then(|| (&chunk.stripes[..], start - chunk.logical.start))
    }

    /// # Errors
    /// If two stripes are at the same place, or one ends past a volume of this length.
    pub(super) fn check_places(&self, volume_len: u64) -> Result<(), String> {
        let stripes = |chunk: &Chunk| {
            let len = chunk.len();
            chunk.stripes.iter().map(move |stripe| *stripe..stripe + len).collect::<Vec<_>>()
        };
        let mut all: Vec<Range<u64>> = self.0.iter().flat_map(stripes).collect();
        all.sort_unstable_by_key(|stripe| stripe.start);
        if let Some(pair) = all.windows(2).find(|pair| pair[1].start < pair[0].end) {
            return Err(format!("two chunks have byte {}", pair[1].start));
        }
        match all.last() {
            Some(last) if last.end > volume_len => Err(format!("a chunk ends at byte {} of {volume_len}", last.end)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock { bytes: vec![0; 4096], node_size: 4096, device: 1, device_len: 1000, used: 0 }
    }

    fn bytes(len: u64, kind: u64, stripes: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; LEN + stripes.len() * STRIPE_LEN];
        let mut put = |at: usize, number: u64| bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        put(0, len);
        put(24, kind);
        for (index, (device, start)) in stripes.iter().enumerate() {
            put(LEN + index * STRIPE_LEN, *device);
            put(LEN + index * STRIPE_LEN + 8, *start);
        }
        bytes[44] = u8::try_from(stripes.len()).expect("few");
        bytes
    }

    fn parse(start: u64, bytes: &[u8]) -> Result<Chunk, String> {
        Chunk::parse(start, bytes, &superblock()).map(|(chunk, _)| chunk)
    }

    #[test]
    fn chunks_are_found() {
        let single = parse(5000, &bytes(100, 1, &[(1, 700)])).expect("good");
        let twice = parse(2000, &bytes(300, 0x24, &[(1, 0), (1, 400)])).expect("good");
        let chunks = Chunks::new(vec![single, twice]).expect("no overlap");
        assert_eq!(chunks.find(2050, 250), Some((&[0, 400][..], 50)));
        assert_eq!(chunks.find(5000, 100), Some((&[700][..], 0)));
        for (start, len) in [(1999, 1), (2050, 251), (2300, 1), (4999, 2), (5100, 1), (u64::MAX, 9), (5000, u64::MAX)] {
            assert_eq!(chunks.find(start, len), None, "{start} {len}");
        }
        assert!(chunks.check_places(800).is_ok());
        assert!(chunks.check_places(799).is_err());
    }

    #[test]
    fn chunks_that_make_no_sense_are_errors() {
        for (what, bytes) in [
            ("two of one copy", bytes(100, 1, &[(1, 0), (1, 200)])),
            ("one of two copies", bytes(100, 0x21, &[(1, 0)])),
            ("parts", bytes(100, 9, &[(1, 0), (1, 200)])),
            ("two profiles", bytes(100, 0x31, &[(1, 0), (1, 200)])),
            ("an unknown profile", bytes(100, 0x801, &[(1, 0)])),
            ("no content", bytes(100, 0x20, &[(1, 0), (1, 200)])),
            ("no length", bytes(0, 1, &[(1, 0)])),
            ("no stripe", bytes(100, 1, &[])),
            ("another device", bytes(100, 0x21, &[(1, 0), (2, 200)])),
            ("behind the device", bytes(100, 1, &[(1, 901)])),
            ("an overflow", bytes(100, 1, &[(1, u64::MAX)])),
            ("cut off", bytes(100, 1, &[(1, 0)])[..79].to_vec()),
            ("no head", vec![0; 47]),
        ] {
            assert!(parse(2000, &bytes).is_err(), "{what}");
        }
        assert!(parse(u64::MAX - 99, &bytes(100, 1, &[(1, 0)])).is_err());
        let chunk = |start, stripe| parse(start, &bytes(100, 1, &[(1, stripe)])).expect("good");
        assert!(Chunks::new(vec![chunk(2000, 0), chunk(2099, 200)]).is_err(), "logical bytes of two");
        let chunks = Chunks::new(vec![chunk(2000, 100), chunk(2100, 199)]).expect("no overlap");
        assert!(chunks.check_places(1000).is_err(), "bytes of two");
    }
}

//! The volume as the readers see it: positioned reads inside its length, numbers in either byte order, checksums.

use std::io::{Read, Seek, SeekFrom};

use crate::used::UsedError;

/// Longest read, in bytes: far more than any block or map of any kind here.
const READ_LEN_MAX: u64 = 32 << 20;
/// Most notes. More would not help.
const NOTES_MAX: usize = 20;

/// A volume that is being read.
pub(crate) struct Volume<'a, S> {
    source: &'a mut S,
    len: u64,
    kind: &'static str,
    notes: Vec<String>,
    notes_left_out: usize,
}

impl<'a, S: Read + Seek> Volume<'a, S> {
    pub(crate) fn new(source: &'a mut S, len: u64, kind: &'static str) -> Volume<'a, S> {
        Volume { source, len, kind, notes: Vec::new(), notes_left_out: 0 }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads exactly this many bytes.
    ///
    /// # Errors
    /// If they are not all inside the volume, are too many at once, or cannot be read.
    pub(crate) fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, UsedError> {
        let is_inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if !is_inside || len > READ_LEN_MAX {
            return Err(self.damaged(format!("{len} bytes at byte {offset} are not in a volume of {}", self.len)));
        }
        let len = usize::try_from(len).expect("READ_LEN_MAX fits");
        let mut bytes = vec![0; len];
        self.source
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.source.read_exact(&mut bytes))
            .map_err(|source| UsedError::Read { offset, len, source })?;
        Ok(bytes)
    }

    /// The `len` bytes at `offset`, or `None` if the volume ends before them.
    pub(crate) fn read_if_inside(&mut self, offset: u64, len: u64) -> Result<Option<Vec<u8>>, UsedError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => self.read(offset, len).map(Some),
            _ => Ok(None),
        }
    }

    pub(crate) fn damaged(&self, what: impl Into<String>) -> UsedError {
        UsedError::Damaged { kind: self.kind, what: what.into() }
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>) -> UsedError {
        UsedError::Unsupported { kind: self.kind, what: what.into() }
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(note.into());
        } else {
            self.notes_left_out += 1;
        }
    }

    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        let mut notes = std::mem::take(&mut self.notes);
        if self.notes_left_out > 0 {
            notes.push(format!("and {} more of this kind", self.notes_left_out));
        }
        notes
    }
}

/// Numbers in a block that was read. The caller checks positions that come from the volume against the block's length;
/// all other positions are constants of the format.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    is_big_endian: bool,
}

impl<'a> Fields<'a> {
    pub(crate) fn little(bytes: &'a [u8]) -> Fields<'a> {
        Fields::new(bytes, false)
    }

    pub(crate) fn new(bytes: &'a [u8], is_big_endian: bool) -> Fields<'a> {
        Fields { bytes, is_big_endian }
    }

    fn number<const N: usize>(&self, at: usize) -> u64 {
        let field = &self.bytes[at..at + N];
        let push = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        if self.is_big_endian { field.iter().fold(0, push) } else { field.iter().rev().fold(0, push) }
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::try_from(self.number::<2>(at)).expect("two bytes")
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::try_from(self.number::<4>(at)).expect("four bytes")
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        self.number::<8>(at)
    }
}

/// CRC-32 with the usual polynomial, least significant bit first, as Linux's `crc32_le`: neither start nor result is
/// inverted here.
pub(crate) fn crc32(seed: u32, bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 })
    })
}

/// CRC-32C (Castagnoli), least significant bit first, as Linux's `crc32c`: neither start nor result is inverted here.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    /// The checksum of each byte, because nodes of trees are long.
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        let mut byte: u32 = 0;
        while index < table.len() {
            let mut crc = byte;
            let mut bit = 0;
            while bit < 8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
            byte += 1;
        }
        table
    };
    bytes.iter().fold(seed, |crc, byte| (crc >> 8) ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)])
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn numbers_have_either_order() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let (little, big) = (Fields::little(&bytes), Fields::new(&bytes, true));
        assert_eq!((little.u16(1), big.u16(1)), (0x0302, 0x0203));
        assert_eq!((little.u32(1), big.u32(1)), (0x0504_0302, 0x0203_0405));
        assert_eq!((little.u64(1), big.u64(1)), (0x0908_0706_0504_0302, 0x0203_0405_0607_0809));
    }

    #[test]
    fn the_checksums_are_the_usual_ones() {
        assert_eq!(!crc32(!0, b"123456789"), 0xcbf4_3926);
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn reads_stay_inside() {
        let mut source = Cursor::new(vec![7; 100]);
        let mut volume = Volume::new(&mut source, 100, "test");
        assert_eq!(volume.read(90, 10).expect("inside"), [7; 10]);
        for (offset, len) in [(91, 10), (u64::MAX, 2), (0, u64::MAX), (100, 1)] {
            assert!(matches!(volume.read(offset, len), Err(UsedError::Damaged { .. })), "{offset} {len}");
            assert!(volume.read_if_inside(offset, len).expect("no read").is_none());
        }
        let mut volume = Volume::new(&mut source, 200, "test");
        assert!(matches!(volume.read(90, 20), Err(UsedError::Read { .. })));
    }

    #[test]
    fn notes_are_few() {
        let mut source = Cursor::new(Vec::new());
        let mut volume = Volume::new(&mut source, 0, "test");
        (0..NOTES_MAX + 5).for_each(|number| volume.note(format!("group {number}")));
        let notes = volume.take_notes();
        assert_eq!((notes.len(), notes[NOTES_MAX].as_str()), (NOTES_MAX + 1, "and 5 more of this kind"));
    }
}

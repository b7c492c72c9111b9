//! The volume as the readers see it: positioned reads inside its length, numbers.

use std::io::{Read, Seek, SeekFrom};

use crate::UsedError;

/// Most that one read may ask for, in bytes: far more than any block or map of any kind here.
const READ_LEN_MAX: u64 = 32 << 20;
/// More notes than this help nobody.
const NOTES_MAX: usize = 20;

/// A volume that is being looked through.
pub(crate) struct Volume<'a, S> {
    source: &'a mut S,
    len: u64,
    kind: &'static str,
    notes: Vec<String>,
    notes_left_out: usize,
}

impl<'a, S: Read + Seek> Volume<'a, S> {
    pub fn new(source: &'a mut S, len: u64, kind: &'static str) -> Volume<'a, S> {
        Volume { source, len, kind, notes: Vec::new(), notes_left_out: 0 }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads exactly this many bytes.
    ///
    /// # Errors
    /// If they are not all inside the volume, are too many at once, or cannot be read.
    pub fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, UsedError> {
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

    /// The bytes `len` at `offset`, or `None` if the volume ends before.
    pub fn read_if_inside(&mut self, offset: u64, len: u64) -> Result<Option<Vec<u8>>, UsedError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => self.read(offset, len).map(Some),
            _ => Ok(None),
        }
    }

    pub fn damaged(&self, what: impl Into<String>) -> UsedError {
        UsedError::Damaged { kind: self.kind, what: what.into() }
    }

    pub fn unsupported(&self, what: impl Into<String>) -> UsedError {
        UsedError::Unsupported { kind: self.kind, what: what.into() }
    }

    pub fn note(&mut self, note: impl Into<String>) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(note.into());
        } else {
            self.notes_left_out += 1;
        }
    }

    pub fn take_notes(&mut self) -> Vec<String> {
        let mut notes = std::mem::take(&mut self.notes);
        if self.notes_left_out > 0 {
            notes.push(format!("and {} more of this kind", self.notes_left_out));
        }
        notes
    }
}

/// Numbers in a block that was read. Positions that come from the volume itself are compared with the block's length by
/// the caller; those here are constants of the format.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn little(bytes: &'a [u8]) -> Fields<'a> {
        Fields { bytes }
    }

    fn number<const N: usize>(&self, at: usize) -> u64 {
        self.bytes[at..at + N].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    pub fn u16(&self, at: usize) -> u16 {
        u16::try_from(self.number::<2>(at)).expect("two bytes")
    }

    pub fn u32(&self, at: usize) -> u32 {
        u32::try_from(self.number::<4>(at)).expect("four bytes")
    }

    pub fn u64(&self, at: usize) -> u64 {
        self.number::<8>(at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn numbers_are_little_endian() {
        let fields = Fields::little(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!((fields.u16(1), fields.u32(1), fields.u64(1)), (0x0302, 0x0504_0302, 0x0908_0706_0504_0302));
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

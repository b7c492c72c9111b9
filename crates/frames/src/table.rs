//! The table of the frames, which the file ends with.
//!
//! A skippable frame: magic number and length, an entry for each frame (packed length, raw length, and in files of other tools a
//! checksum), and a foot: number of frames, a byte of flags, another magic number. All numbers are little-endian and have four
//! bytes.

use std::io;

use thiserror::Error;
use zstd::zstd_safe::compress_bound;

use crate::{FRAME_LEN_MAX, FRAME_LEN_MIN, ReadAt};

/// A skippable frame with a table.
const TABLE_MAGIC: u32 = 0x184d_2a5e;
/// The last four bytes of the file.
const FOOT_MAGIC: u32 = 0x8f92_eab1;
const HEAD_LEN: u32 = 8;
const FOOT_LEN: u32 = 9;
/// Packed length and raw length.
const ENTRY_LEN: u32 = 8;
/// With a checksum.
const LONG_ENTRY_LEN: u32 = 12;
const HAS_CHECKSUMS: u8 = 0x80;
/// Flags that are not used yet: a file that has them is of a later format.
const RESERVED: u8 = 0x7c;
/// Most frames of a file, by the format.
const FRAMES_MAX: u32 = 1 << 27;
/// So many entries are read at a time.
const ENTRIES_AT_A_TIME: u32 = 4096;
/// The place of every so-manieth frame is kept; those between are added up.
const STEP: usize = 64;

/// Why a file has no table that can be used.
#[derive(Debug, Error)]
pub enum TableError {
    /// It cannot be read.
    #[error("its table of frames cannot be read at byte {at}")]
    Read {
        /// Byte of the file.
        at: u64,
        /// The cause.
        source: io::Error,
    },
    /// It does not end with a table.
    #[error("it does not end with a table of frames: it was cut short, or is no compressed content")]
    None,
    /// A later format.
    #[error(
        "its table of frames has flags {flags:#04x}, which this version does not know: a newer one made it, so use that"
    )]
    Newer {
        /// The byte of flags.
        flags: u8,
    },
    /// The table contradicts itself or the file.
    #[error("its table of frames is damaged: {why}")]
    Damaged {
        /// Where and what.
        why: String,
    },
    /// It is the table of other content.
    #[error("its frames hold {found} bytes instead of {wanted}: it is other content")]
    OtherLength {
        /// Bytes in the frames.
        found: u64,
        /// Bytes that were expected.
        wanted: u64,
    },
}

/// Where each frame is. About four bytes of memory a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    raw_len: u64,
    frame_len: u32,
    /// Packed length of each frame, in bytes.
    lens: Vec<u32>,
    /// Where frame 0, [`STEP`], … start in the file.
    starts: Vec<u64>,
}

/// One frame's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// First byte in the file.
    pub(crate) at: u64,
    /// Length in the file, in bytes.
    pub(crate) len: u32,
    /// Length of its content, in bytes.
    pub(crate) raw_len: u32,
}

/// Whether a file of `len` bytes ends as one with a table does.
pub fn has_table(source: &(impl ReadAt + ?Sized), len: u64) -> bool {
    let mut magic = [0; 4];
    len.checked_sub(4).is_some_and(|at| source.read_exact_at(&mut magic, at).is_ok())
        && u32::from_le_bytes(magic) == FOOT_MAGIC
}

impl Table {
    /// Reads the table of a file of `len` bytes whose content should have `raw_len` bytes.
    ///
    /// # Errors
    /// If there is none, or anything in it contradicts the file, that length or itself.
    pub fn read(source: &(impl ReadAt + ?Sized), len: u64, raw_len: u64) -> Result<Table, TableError> {
        if !has_table(source, len) {
            return Err(TableError::None);
        }
        let read =
            |buf: &mut [u8], at: u64| source.read_exact_at(buf, at).map_err(|source| TableError::Read { at, source });
        let foot_at = len.checked_sub(u64::from(FOOT_LEN)).ok_or(TableError::None)?;
        let mut foot = [0; FOOT_LEN as usize];
        read(&mut foot, foot_at)?;
        let [a, b, c, d, flags, ..] = foot;
        let count = u32::from_le_bytes([a, b, c, d]);
        if flags & RESERVED != 0 {
            return Err(TableError::Newer { flags });
        }
        let entry_len = if flags & HAS_CHECKSUMS == 0 { ENTRY_LEN } else { LONG_ENTRY_LEN };
        let body_len = u64::from(count) * u64::from(entry_len) + u64::from(FOOT_LEN);
        let head_at = len.checked_sub(body_len + u64::from(HEAD_LEN));
        let Some(head_at) = head_at.filter(|_| count <= FRAMES_MAX) else {
            return Err(damaged(format!("it says that there are {count} frames, too many for a file of {len} bytes")));
        };
        let mut head = [0; HEAD_LEN as usize];
        read(&mut head, head_at)?;
        let [magic, says] = words(head);
        if magic != TABLE_MAGIC || u64::from(says) != body_len {
            return Err(damaged(format!("it does not start at byte {head_at}, where {count} frames would put it")));
        }
        // No allocation is larger than what the caller expects allows.
        if u64::from(count) > raw_len.div_ceil(u64::from(FRAME_LEN_MIN)) {
            return Err(damaged(format!("it has {count} frames for {raw_len} bytes")));
        }

        let mut table = Builder::new();
        let mut buf = vec![0; (ENTRIES_AT_A_TIME * entry_len) as usize];
        let mut at = head_at + u64::from(HEAD_LEN);
        let mut left = count;
        while left > 0 {
            let now = left.min(ENTRIES_AT_A_TIME);
            let part = &mut buf[..(now * entry_len) as usize];
            read(part, at)?;
            for entry in part.chunks_exact(entry_len as usize) {
                let [packed, raw] = words(*entry.first_chunk().unwrap_or(&[0; 8]));
                table.push(packed, raw).map_err(damaged)?;
            }
            at += u64::from(now * entry_len);
            left -= now;
        }
        let table = table.end().map_err(damaged)?;
        if table.raw_len != raw_len {
            return Err(TableError::OtherLength { found: table.raw_len, wanted: raw_len });
        }
        let end = table.end();
        if end != head_at {
            return Err(damaged(format!("its frames end at byte {end}, and it starts at byte {head_at}")));
        }
        Ok(table)
    }

    /// Length of the plain content, in bytes.
    pub fn raw_len(&self) -> u64 {
        self.raw_len
    }

    /// Raw length of every frame but the last, in bytes: a power of two.
    pub fn frame_len(&self) -> u32 {
        self.frame_len
    }

    /// How many frames there are.
    pub fn frame_count(&self) -> usize {
        self.lens.len()
    }

    /// Where the last frame ends in the file.
    fn end(&self) -> u64 {
        self.lens.len().checked_sub(1).and_then(|last| self.place(last)).map_or(0, |last| last.at + u64::from(last.len))
    }

    /// The place of a frame.
    pub(crate) fn place(&self, frame: usize) -> Option<Place> {
        let len = *self.lens.get(frame)?;
        let first = frame / STEP * STEP;
        let before: u64 = self.lens[first..frame].iter().copied().map(u64::from).sum();
        let start = frame as u64 * u64::from(self.frame_len);
        let raw_len = self.raw_len.saturating_sub(start).min(u64::from(self.frame_len));
        Some(Place { at: self.starts[frame / STEP] + before, len, raw_len: u32::try_from(raw_len).ok()? })
    }
}

fn damaged(why: String) -> TableError {
    TableError::Damaged { why }
}

/// Two numbers of four bytes.
fn words([a, b, c, d, e, f, g, h]: [u8; 8]) -> [u32; 2] {
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// A table to which frame after frame is added, checked.
struct Builder {
    table: Table,
    /// Bytes of the file so far.
    at: u64,
    /// Raw length of the frame before, which may be shorter than the first one only if no other follows.
    last_raw: u32,
}

impl Builder {
    fn new() -> Builder {
        Builder { table: Table { raw_len: 0, frame_len: 0, lens: Vec::new(), starts: Vec::new() }, at: 0, last_raw: 0 }
    }

    fn push(&mut self, packed: u32, raw: u32) -> Result<(), String> {
        let table = &mut self.table;
        let frame = table.lens.len();
        if raw == 0 || raw > FRAME_LEN_MAX {
            return Err(format!("frame {frame} would hold {raw} bytes, a frame holds 1 to {FRAME_LEN_MAX}"));
        }
        // `usize` has 32 bits at least.
        let bound = compress_bound(raw as usize);
        if packed == 0 || packed as usize > bound {
            return Err(format!("frame {frame} would take {packed} bytes for {raw}, which no frame does"));
        }
        if frame == 0 {
            table.frame_len = raw;
        } else if self.last_raw != table.frame_len || raw > table.frame_len {
            return Err(format!("frame {frame} does not start at a multiple of {} bytes of content", table.frame_len));
        }
        if frame.is_multiple_of(STEP) {
            table.starts.push(self.at);
        }
        table.lens.push(packed);
        table.raw_len += u64::from(raw);
        self.at += u64::from(packed);
        self.last_raw = raw;
        Ok(())
    }

    fn end(mut self) -> Result<Table, String> {
        let table = &mut self.table;
        match table.lens.len() {
            0 => return Err("it has no frames".to_owned()),
            // Alone, the last frame does not say how long others would be.
            1 => table.frame_len = table.frame_len.next_power_of_two().max(FRAME_LEN_MIN),
            _ => {}
        }
        let len = table.frame_len;
        if !len.is_power_of_two() || !(FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&len) {
            return Err(format!(
                "its frames hold {len} bytes each, not a power of two from {FRAME_LEN_MIN} to {FRAME_LEN_MAX}"
            ));
        }
        Ok(self.table)
    }
}

/// Lists frames while they are written, and gives the table to write after them.
#[derive(Clone, Debug, Default)]
pub struct TableWriter {
    entries: Vec<u8>,
    count: u32,
}

impl TableWriter {
    /// Adds the next frame: its length in the file and the length of its content, in bytes.
    ///
    /// # Errors
    /// If there are too many for the format.
    pub fn push(&mut self, packed_len: u32, raw_len: u32) -> io::Result<()> {
        if self.count == FRAMES_MAX {
            return Err(io::Error::other(format!("the content has more than the {FRAMES_MAX} frames of the format")));
        }
        self.entries.extend_from_slice(&packed_len.to_le_bytes());
        self.entries.extend_from_slice(&raw_len.to_le_bytes());
        self.count += 1;
        Ok(())
    }

    /// The bytes that the file ends with.
    pub fn finish(self) -> Vec<u8> {
        let body_len = self.count * ENTRY_LEN + FOOT_LEN;
        let flags = 0u8;
        [
            &TABLE_MAGIC.to_le_bytes()[..],
            &body_len.to_le_bytes(),
            &self.entries,
            &self.count.to_le_bytes(),
            &[flags],
            &FOOT_MAGIC.to_le_bytes(),
        ]
        .concat()
    }
}

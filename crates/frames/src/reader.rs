//! Reads plain content at any offset.

use std::fmt;
use std::io::{self, Error, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use zstd::bulk::Decompressor;

use crate::cache::Cache;
use crate::table::Place;
use crate::{ReadAt, Table, TableError, plain};

/// So many unpackers are kept for the next reads.
const IDLE_MAX: usize = 8;

/// A file of frames, read at offsets of its plain content by several threads at a time. Its memory is the table, a few MiB of
/// unpacked frames, and one packed frame for each thread.
pub struct Reader<R> {
    source: R,
    table: Table,
    cache: Cache,
    idle: Mutex<Vec<Unpacker>>,
    unpacked: AtomicU64,
}

struct Unpacker {
    context: Decompressor<'static>,
    packed: Vec<u8>,
}

impl<R: ReadAt> Reader<R> {
    /// Reads the table of a file of `len` bytes whose content should have `raw_len` bytes.
    ///
    /// # Errors
    /// As for [`Table::read`].
    pub fn open(source: R, len: u64, raw_len: u64) -> Result<Reader<R>, TableError> {
        let table = Table::read(&source, len, raw_len)?;
        // `usize` has 32 bits at least.
        let cache = Cache::new(table.frame_len() as usize);
        Ok(Reader { source, table, cache, idle: Mutex::default(), unpacked: AtomicU64::new(0) })
    }

    /// Where the frames are.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Frames that were unpacked so far; those that are kept plain do not count.
    pub fn unpacked(&self) -> u64 {
        self.unpacked.load(Ordering::Relaxed)
    }

    /// Fills `buf` with the content from byte `at` on.
    ///
    /// # Errors
    /// If the content ends before, or a frame cannot be read or is damaged: which, and where it is in the file.
    pub fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let frame_len = u64::from(self.table.frame_len());
        let (mut rest, mut at) = (buf, at);
        while !rest.is_empty() {
            let frame = usize::try_from(at / frame_len).map_err(Error::other)?;
            let place = self.table.place(frame);
            let skip = u32::try_from(at % frame_len).map_err(Error::other)?;
            let Some(place) = place.filter(|place| skip < place.raw_len) else {
                let raw_len = self.table.raw_len();
                return Err(Error::new(ErrorKind::UnexpectedEof, format!("the content ends at byte {raw_len}")));
            };
            let here = rest.len().min((place.raw_len - skip) as usize);
            let (now, later) = rest.split_at_mut(here);
            self.read_part(frame, place, skip, now)?;
            at += here as u64;
            rest = later;
        }
        Ok(())
    }

    /// Fills `buf` with bytes of one frame.
    fn read_part(&self, frame: usize, place: Place, skip: u32, buf: &mut [u8]) -> io::Result<()> {
        if self.read_plain(frame, place, skip, buf)? {
            return Ok(());
        }
        if buf.len() == place.raw_len as usize {
            // A whole frame goes where it is wanted, and takes nobody's place in the cache.
            return self.unpack(frame, place, buf);
        }
        let load = |bytes: &mut Vec<u8>| {
            bytes.resize(place.raw_len as usize, 0);
            self.unpack(frame, place, bytes)
        };
        let skip = skip as usize;
        self.cache.with(frame, load, |bytes| buf.copy_from_slice(&bytes[skip..skip + buf.len()]))
    }

    /// Reads from a frame that is kept plain; false if it is not.
    fn read_plain(&self, frame: usize, place: Place, skip: u32, buf: &mut [u8]) -> io::Result<bool> {
        let Some(wanted) = plain::prefix(place.raw_len) else { return Ok(false) };
        if place.len != plain::stored_len(place.raw_len) {
            return Ok(false);
        }
        let mut prefix = wanted;
        self.source.read_exact_at(&mut prefix, place.at).map_err(|error| reading(frame, place, &error))?;
        if prefix != wanted {
            return Ok(false);
        }
        let start = place.at + u64::from(plain::PREFIX_LEN) + u64::from(skip);
        self.source.read_exact_at(buf, start).map_err(|error| reading(frame, place, &error))?;
        Ok(true)
    }

    /// Unpacks a frame into a buffer of exactly its raw length.
    fn unpack(&self, frame: usize, place: Place, out: &mut [u8]) -> io::Result<()> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut unpacker = match idle {
            Some(unpacker) => unpacker,
            None => Unpacker { context: Decompressor::new()?, packed: Vec::new() },
        };
        unpacker.packed.resize(place.len as usize, 0);
        self.source.read_exact_at(&mut unpacker.packed, place.at).map_err(|error| reading(frame, place, &error))?;
        self.unpacked.fetch_add(1, Ordering::Relaxed);
        let unpacked = unpacker.context.decompress_to_buffer(&unpacker.packed, out);
        let why = match unpacked {
            Ok(len) if len == out.len() => None,
            Ok(len) => Some(format!("it holds {len} bytes instead of {}", out.len())),
            Err(error) => Some(error.to_string()),
        };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(unpacker);
        }
        match why {
            None => Ok(()),
            Some(why) => Err(Error::new(ErrorKind::InvalidData, format!("{} is damaged: {why}", name(frame, place)))),
        }
    }
}

impl<R: fmt::Debug> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = self.table.frame_count();
        f.debug_struct("Reader").field("source", &self.source).field("frames", &frames).finish_non_exhaustive()
    }
}

fn reading(frame: usize, place: Place, error: &Error) -> Error {
    Error::new(error.kind(), format!("{} cannot be read: {error}", name(frame, place)))
}

fn name(frame: usize, place: Place) -> String {
    format!("frame {frame} (bytes {}..{} of the file)", place.at, place.at + u64::from(place.len))
}

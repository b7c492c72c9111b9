//! How the content of a new image is stored: as it is, or compressed on all cores while it is read.
//!
//! Each thread of the pipeline packs its own pieces. The results go to the file in the order of the pieces, so a thread whose
//! piece is packed waits until those before it are; the piece before is always in the hands of another thread.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use blockdev::AlignedBuf;
use frames::{LEVELS, Packer, TableWriter, frame_len_for};
use library::Draft;
use library::manifest::{Compressed, Format};
use metainfo::{Geometry, PieceIndex};

use crate::content::Content;
use crate::pace::Pace;

/// Bytes that are written at a time, so that they can go past the page cache.
const STAGE_LEN: usize = 4 << 20;

/// How content is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// Compressed as well as the cores can while they keep up with the source.
    Adaptive,
    /// Compressed at this level of zstd, one of [`LEVELS`].
    Level(i32),
}

/// A level of compression as people write it.
///
/// # Errors
/// If there is no such level.
pub fn parse_level(text: &str) -> anyhow::Result<i32> {
    match text.parse::<i32>() {
        Ok(level) if LEVELS.contains(&level) => Ok(level),
        _ => bail!("a level is a number from {} (fast) to {} (small)", LEVELS.start(), LEVELS.end()),
    }
}

/// The content of a draft while it is written.
#[derive(Debug)]
pub struct NewContent {
    form: Form,
}

#[derive(Debug)]
enum Form {
    Plain(Content),
    Packed(Box<PackedContent>),
}

/// Compressed content while it is written.
#[derive(Debug)]
pub(crate) struct PackedContent {
    file: Content,
    frame_len: u32,
    pace: Pace,
    queue: Mutex<Queue>,
    /// A piece was queued, or none will be any more.
    turn: Condvar,
}

/// What only one thread at a time holds.
#[derive(Debug)]
struct Queue {
    /// The piece whose turn it is.
    next: u32,
    has_failed: bool,
    table: TableWriter,
    /// What is not yet in the file, which has `written` bytes.
    stage: AlignedBuf,
    staged: usize,
    written: u64,
}

impl NewContent {
    /// Makes the file for a draft's content.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(draft: &Draft, geometry: Geometry, compression: Compression) -> anyhow::Result<NewContent> {
        Ok(match compression {
            Compression::None => NewContent::plain(Content::create(&draft.content_path(), geometry.content_len())?),
            Compression::Adaptive => {
                NewContent::packed(Content::create(&draft.compressed_path(), 0)?, geometry, Pace::adaptive())
            }
            Compression::Level(level) => {
                NewContent::packed(Content::create(&draft.compressed_path(), 0)?, geometry, Pace::fixed(level))
            }
        })
    }

    pub(crate) fn plain(file: Content) -> NewContent {
        NewContent { form: Form::Plain(file) }
    }

    pub(crate) fn packed(file: Content, geometry: Geometry, pace: Pace) -> NewContent {
        let queue = Queue {
            next: 0,
            has_failed: false,
            table: TableWriter::default(),
            stage: AlignedBuf::new(STAGE_LEN),
            staged: 0,
            written: 0,
        };
        let packed = PackedContent {
            file,
            frame_len: frame_len_for(geometry.piece_len()),
            pace,
            queue: Mutex::new(queue),
            turn: Condvar::new(),
        };
        NewContent { form: Form::Packed(Box::new(packed)) }
    }

    /// Buffers as long as a piece that each thread needs.
    pub(crate) fn buffers_per_thread(&self) -> usize {
        match self.form {
            Form::Plain(_) => 1,
            Form::Packed(_) => 2,
        }
    }

    /// What one thread writes with.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn writer(&self) -> anyhow::Result<Writer<'_>> {
        Ok(match &self.form {
            Form::Plain(file) => Writer::Plain(file),
            Form::Packed(content) => {
                let packer = Packer::new(content.pace.level()).context("preparing to compress")?;
                Writer::Packed { content, packer, packed: Vec::new(), lens: Vec::new() }
            }
        })
    }

    /// Notes how long reading a piece took.
    pub(crate) fn note_read(&self, took: Duration) {
        if let Form::Packed(content) = &self.form {
            content.pace.note_read(took, Instant::now());
        }
    }

    /// One thread has failed, and with it all that wait for its piece.
    pub(crate) fn fail(&self) {
        if let Form::Packed(content) = &self.form {
            content.lock().has_failed = true;
            content.turn.notify_all();
        }
    }

    /// Writes what is left, once every piece is written. Gives how the content is stored, for the manifest.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(self) -> anyhow::Result<Option<Compressed>> {
        let Form::Packed(content) = self.form else { return Ok(None) };
        let PackedContent { file, frame_len, queue, .. } = *content;
        let mut queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        let table = std::mem::take(&mut queue.table).finish();
        let writing = "writing the content: is the disk full?";
        queue.put(&file, &table).context(writing)?;
        let left = &queue.stage.as_slice()[..queue.staged];
        file.write(left, queue.written).context(writing)?;
        let stored_len = queue.written + left.len() as u64;
        file.set_len(stored_len).context(writing)?;
        Ok(Some(Compressed { format: Format::ZstdSeekable, stored_len, frame_len }))
    }
}

/// What one thread of the pipeline writes with.
pub(crate) enum Writer<'a> {
    /// Content as it is.
    Plain(&'a Content),
    /// Content that is packed first.
    Packed {
        /// Where it goes.
        content: &'a PackedContent,
        /// Its own.
        packer: Packer,
        /// The frames of a piece.
        packed: Vec<u8>,
        /// Length of each, and of its content.
        lens: Vec<(u32, u32)>,
    },
}

impl Writer<'_> {
    /// Writes a piece, which starts at that byte of the content.
    ///
    /// # Errors
    /// If it cannot be written, or another thread could not write its own.
    pub(crate) fn write(&mut self, piece: PieceIndex, bytes: &[u8], at: u64) -> io::Result<()> {
        match self {
            Writer::Plain(file) => file.write(bytes, at),
            Writer::Packed { content, packer, packed, lens } => {
                packer.set_level(content.pace.level())?;
                packed.clear();
                lens.clear();
                for frame in bytes.chunks(content.frame_len as usize) {
                    let raw_len = u32::try_from(frame.len()).map_err(io::Error::other)?;
                    lens.push((packer.pack(frame, packed)?, raw_len));
                }
                content.put(piece, packed, lens)
            }
        }
    }
}

impl PackedContent {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues the frames of a piece once it is its turn.
    fn put(&self, piece: PieceIndex, packed: &[u8], lens: &[(u32, u32)]) -> io::Result<()> {
        let is_early = |queue: &mut Queue| queue.next != piece.get() && !queue.has_failed;
        let mut queue = self.turn.wait_while(self.lock(), is_early).unwrap_or_else(PoisonError::into_inner);
        if queue.has_failed {
            return Err(io::Error::other("another piece could not be written"));
        }
        for &(packed_len, raw_len) in lens {
            queue.table.push(packed_len, raw_len)?;
        }
        queue.put(&self.file, packed)?;
        queue.next += 1;
        self.turn.notify_all();
        Ok(())
    }
}

impl Queue {
    /// Adds bytes to the stage, which goes to the file whenever it is full.
    fn put(&mut self, file: &Content, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(STAGE_LEN - self.staged));
            self.stage.as_mut_slice()[self.staged..self.staged + now.len()].copy_from_slice(now);
            self.staged += now.len();
            bytes = later;
            if self.staged == STAGE_LEN {
                file.write(self.stage.as_slice(), self.written)?;
                self.written += STAGE_LEN as u64;
                self.staged = 0;
            }
        }
        Ok(())
    }
}

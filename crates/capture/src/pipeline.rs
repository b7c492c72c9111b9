//! Passes content through memory once: reads it in order, hashes and writes it on all cores.
//!
//! Every thread takes the next piece and reads it while it holds the source, so that pieces are read one after the
//! other. It hashes and writes the piece while other threads do the same with theirs. There are two more threads than
//! cores, because some wait for a disk. Where several pieces are hashed faster together, a thread takes as many at a time.
//! Nothing is buffered beyond what the threads have taken, and neither number changes any result.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, bail};
use blockdev::AlignedBuf;
use metainfo::{Geometry, PieceHash, PieceIndex};

use crate::content::Content;
use terminal::Progress;

/// Memory for buffers in bytes, however long a piece is; there are always at least [`THREADS_MIN`] buffers.
const MEMORY: usize = 256 << 20;
/// Memory for pieces that are hashed together, of all threads: if it does not suffice, each takes one after the other.
const MEMORY_TOGETHER: usize = 64 << 20;
/// With fewer threads than this, reading would wait for writing.
const THREADS_MIN: usize = 2;

/// The content that goes through the pipeline, and its destination.
pub struct Job<'a> {
    /// The lengths of the content and its pieces.
    pub geometry: Geometry,
    /// Pieces in work at a time.
    pub threads: usize,
    /// Where the content is written; `None` only hashes.
    pub out: Option<&'a Content>,
    /// Set by another thread to cancel the job.
    pub stop: &'a AtomicBool,
    /// Counts every piece that was read.
    pub progress: &'a mut Progress,
}

/// State that only one thread at a time holds.
struct Reader<'a, I, F> {
    pieces: I,
    fill: F,
    progress: &'a mut Progress,
}

impl Job<'_> {
    /// Reads all content in order, with `fill`, which gets a half-open range of it and a buffer of that length. Returns
    /// the SHA-1 of every piece, in order.
    ///
    /// # Errors
    /// The first error of reading or writing, or that `stop` is set.
    pub fn hash(
        self,
        fill: impl FnMut(Range<u64>, &mut [u8]) -> anyhow::Result<()> + Send,
    ) -> anyhow::Result<Vec<PieceHash>> {
        let piece_count = usize::try_from(self.geometry.piece_count()).context("counting pieces")?;
        let hashes = Mutex::new(vec![[0; 20]; piece_count]);
        // Where one alone is fast, memory for several costs what hashing them together gains.
        let together = if ::hashes::is_one_fast() { 1 } else { ::hashes::share(piece_count, self.threads) };
        self.each(together, fill, |pieces| {
            let digests = ::hashes::digests(&pieces.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>());
            let mut hashes = hashes.lock().unwrap_or_else(PoisonError::into_inner);
            for ((piece, _), digest) in pieces.iter().zip(digests) {
                hashes[piece.as_usize()] = digest;
            }
        })?;
        Ok(hashes.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Like [`Job::hash`], but without hashing.
    ///
    /// # Errors
    /// As for [`Job::hash`].
    pub fn copy(self, fill: impl FnMut(Range<u64>, &mut [u8]) -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
        self.each(1, fill, |_| {})
    }

    /// A thread takes `together` pieces at a time, or one if there is no memory for as many.
    fn each(
        self,
        together: usize,
        fill: impl FnMut(Range<u64>, &mut [u8]) -> anyhow::Result<()> + Send,
        each: impl Fn(&[(PieceIndex, &[u8])]) + Sync,
    ) -> anyhow::Result<()> {
        let Job { geometry, threads, out, stop, progress } = self;
        let piece_len = usize::try_from(geometry.piece_len()).context("sizing buffers")?;
        let threads = threads.min(MEMORY / piece_len).max(THREADS_MIN);
        let together = if together * threads * piece_len <= MEMORY_TOGETHER { together } else { 1 };
        let reader = Mutex::new(Reader { pieces: geometry.pieces(), fill, progress });
        let failed = AtomicBool::new(false);

        let work = || -> anyhow::Result<()> {
            let mut buf = AlignedBuf::new(piece_len * together);
            loop {
                let mut lens = Vec::with_capacity(together);
                {
                    let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
                    for place in buf.as_mut_slice().chunks_exact_mut(piece_len) {
                        if failed.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        let Some(piece) = reader.pieces.next() else { break };
                        if stop.load(Ordering::Relaxed) {
                            bail!("interrupted");
                        }
                        let range = geometry.piece_range(piece);
                        let len = usize::try_from(range.end - range.start).context("sizing a piece")?;
                        (reader.fill)(range.clone(), &mut place[..len])?;
                        reader.progress.advance(range.end - range.start);
                        lens.push((piece, len));
                    }
                }
                if lens.is_empty() {
                    return Ok(());
                }
                let places = lens.iter().zip(buf.as_slice().chunks_exact(piece_len));
                let pieces: Vec<_> = places.map(|(&(piece, len), place)| (piece, &place[..len])).collect();
                each(&pieces);
                let Some(out) = out else { continue };
                for (piece, bytes) in pieces {
                    let written = out.write(bytes, geometry.piece_range(piece).start);
                    written.context("writing the content: is the disk full?")?;
                }
            }
        };
        let first_error = Mutex::new(Ok(()));
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let result = work();
                    if result.is_err() && !failed.swap(true, Ordering::Relaxed) {
                        *first_error.lock().unwrap_or_else(PoisonError::into_inner) = result;
                    }
                });
            }
        });
        first_error.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many pieces at a time suit this machine.
pub fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from) + 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha1::{Digest, Sha1};
    use std::fs;

    fn content(len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i * 7 % 251).expect("below 251")).collect();
        if len > 400_000 {
            bytes[70_000..300_000].fill(0);
        }
        bytes
    }

    fn run(bytes: &[u8], threads: usize, out: Option<&Content>) -> anyhow::Result<Vec<PieceHash>> {
        let geometry = Geometry::new(bytes.len() as u64, 32_768).expect("sane");
        let stop = AtomicBool::new(false);
        let mut progress = Progress::new("testing", bytes.len() as u64);
        Job { geometry, threads, out, stop: &stop, progress: &mut progress }.hash(|range, buf| {
            let range = usize::try_from(range.start)?..usize::try_from(range.end)?;
            buf.copy_from_slice(&bytes[range]);
            Ok(())
        })
    }

    #[test]
    fn results_do_not_depend_on_threads() {
        let dir = tempfile::tempdir().expect("a directory");
        for len in [1, 32_767, 32_768, 32_769, 1_000_000] {
            let bytes = content(len);
            let pieces: Vec<PieceHash> = bytes.chunks(32_768).map(|piece| Sha1::digest(piece).into()).collect();
            for threads in [1, 2, 7] {
                let path = dir.path().join(format!("{len}-{threads}"));
                let out = Content::create(&path, len as u64).expect("a new file");
                assert_eq!(run(&bytes, threads, Some(&out)).expect("works"), pieces, "{len} bytes, {threads} threads");
                assert!(fs::read(&path).expect("readable") == bytes, "{len} bytes, {threads} threads");
            }
        }
    }

    #[test]
    fn pieces_are_read_in_order() {
        let geometry = Geometry::new(20_000 * 16_384, 16_384).expect("sane");
        let stop = AtomicBool::new(false);
        for threads in [1, 3] {
            let mut progress = Progress::new("testing", 1);
            let mut next = 0;
            let job = Job { geometry, threads, out: None, stop: &stop, progress: &mut progress };
            let result = job.copy(|range, buf| {
                assert_eq!((range.start, range.end), (next, next + buf.len() as u64));
                next = range.end;
                Ok(())
            });
            assert!(result.is_ok() && next == geometry.content_len());
        }
    }

    #[test]
    fn errors_end_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let full = Content::read_only(&dir.path().join("full"));
        let error = run(&content(3_000_000), 2, Some(&full)).expect_err("cannot write");
        assert!(format!("{error:#}").contains("writing the content"), "{error:#}");

        let geometry = Geometry::new(3_000_000, 32_768).expect("sane");
        let job = |stop, fail_at: u64| {
            let stop = AtomicBool::new(stop);
            let mut progress = Progress::new("testing", 1);
            let job = Job { geometry, threads: 2, out: None, stop: &stop, progress: &mut progress };
            job.hash(|range, _| if range.start >= fail_at { bail!("bad sector") } else { Ok(()) })
        };
        assert_eq!(job(false, 1_000_000).expect_err("fails").to_string(), "bad sector");
        assert_eq!(job(true, u64::MAX).expect_err("stops").to_string(), "interrupted");
        assert!(job(false, u64::MAX).is_ok());
    }
}

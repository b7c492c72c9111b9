//! Passes content through memory once: reads it in order, hashes and writes it on all cores.
//!
//! Every thread takes the next piece and reads it while it holds the source, so that pieces are read one after the
//! other. It hashes and writes the piece while other threads do the same with theirs. There are two more threads than
//! cores, because some wait for a disk. Where several pieces are hashed faster together, a thread takes as many at a time.
//! Nothing is buffered beyond what the threads have taken, and what it becomes if it is compressed; neither number changes
//! any result.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, bail};
use blockdev::AlignedBuf;
use metainfo::{Geometry, PieceHash, PieceIndex};

use crate::stored::NewContent;
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
    pub out: Option<&'a NewContent>,
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
        let buffers = out.map_or(1, NewContent::buffers_per_thread);
        let threads = threads.min(MEMORY / buffers / piece_len).max(THREADS_MIN);
        let together = if together * threads * piece_len <= MEMORY_TOGETHER { together } else { 1 };
        let reader = Mutex::new(Reader { pieces: geometry.pieces(), fill, progress });
        let failed = AtomicBool::new(false);

        let work = || -> anyhow::Result<()> {
            let mut buf = AlignedBuf::new(piece_len * together);
            let mut writer = out.map(NewContent::writer).transpose()?;
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
                        let started = Instant::now();
                        (reader.fill)(range.clone(), &mut place[..len])?;
                        if let Some(out) = out {
                            out.note_read(started.elapsed());
                        }
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
                let Some(writer) = &mut writer else { continue };
                for (piece, bytes) in pieces {
                    let written = writer.write(piece, bytes, geometry.piece_range(piece).start);
                    written.context("writing the content: is the disk full?")?;
                }
            }
        };
        let first_error = Mutex::new(Ok(()));
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut end = End { out, is_good: false };
                    let result = work();
                    end.is_good = result.is_ok();
                    if result.is_err() && !failed.swap(true, Ordering::Relaxed) {
                        *first_error.lock().unwrap_or_else(PoisonError::into_inner) = result;
                    }
                });
            }
        });
        first_error.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a thread. If it is a bad one, whatever the reason, no other may wait for the thread's piece.
struct End<'a> {
    out: Option<&'a NewContent>,
    is_good: bool,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if let Some(out) = self.out.filter(|_| !self.is_good) {
            out.fail();
        }
    }
}

/// How many pieces at a time suit this machine.
pub fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from) + 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;
    use crate::pace::Pace;
    use library::content::ContentFile;
    use sha1::{Digest, Sha1};
    use std::fs;

    fn content(len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i * 7 % 251).expect("below 251")).collect();
        if len > 400_000 {
            bytes[70_000..300_000].fill(0);
        }
        bytes
    }

    fn run(bytes: &[u8], threads: usize, out: Option<&NewContent>) -> anyhow::Result<Vec<PieceHash>> {
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
                let out = NewContent::plain(Content::create(&path, len as u64).expect("a new file"));
                assert_eq!(run(&bytes, threads, Some(&out)).expect("works"), pieces, "{len} bytes, {threads} threads");
                assert_eq!(out.finish().expect("written"), None);
                assert!(fs::read(&path).expect("readable") == bytes, "{len} bytes, {threads} threads");
            }
        }
    }

    #[test]
    fn what_is_compressed_reads_back_whatever_the_threads_and_the_level() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut files = Vec::new();
        for len in [1, 32_768, 32_769, 12_000_000] {
            // More than is written at a time, of which a part does not shrink.
            let mut bytes = content(len);
            let mut state = 7u64;
            for byte in bytes.iter_mut().skip(1_000_000).take(9_000_000) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = state.to_le_bytes()[5];
            }
            let pieces: Vec<PieceHash> = bytes.chunks(32_768).map(|piece| Sha1::digest(piece).into()).collect();
            for (threads, pace) in [(2, Pace::fixed(1)), (7, Pace::fixed(1)), (3, Pace::adaptive())] {
                let path = dir.path().join(format!("{len}-{threads}"));
                let geometry = Geometry::new(len as u64, 32_768).expect("sane");
                let out = NewContent::packed(Content::create(&path, 0).expect("a new file"), geometry, pace);
                assert_eq!(run(&bytes, threads, Some(&out)).expect("works"), pieces, "{len} bytes, {threads} threads");
                let compressed = out.finish().expect("written").expect("compressed");
                assert_eq!(
                    (compressed.frame_len, compressed.stored_len),
                    (32_768, path.metadata().expect("there").len())
                );
                let file = ContentFile::open_compressed(&path, len as u64).expect("good");
                let mut back = vec![0; len];
                file.read_exact_at(&mut back, 0).expect("whole");
                assert!(back == bytes, "{len} bytes, {threads} threads");
                files.push(fs::read(&path).expect("readable"));
            }
            let [.., two, seven, _] = &files[..] else { panic!("three") };
            assert!(two == seven, "the same level gives the same file");
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
        let geometry = Geometry::new(3_000_000, 32_768).expect("sane");
        let mut noise = content(30_000_000);
        let mut state = 7u64;
        for byte in &mut noise {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = state.to_le_bytes()[5];
        }
        let full = || Content::read_only(&dir.path().join("full"));
        for full in [NewContent::plain(full()), NewContent::packed(full(), geometry, Pace::fixed(1))] {
            let error = run(&noise, 6, Some(&full)).expect_err("cannot write");
            assert!(format!("{error:#}").contains("writing the content"), "{error:#}");
        }
        // Threads that wait for the piece of one that has failed, or is no more, end as well.
        let out =
            NewContent::packed(Content::create(&dir.path().join("new"), 0).expect("new"), geometry, Pace::fixed(1));
        let stop = AtomicBool::new(false);
        let mut progress = Progress::new("testing", 1);
        let job = Job { geometry, threads: 6, out: Some(&out), stop: &stop, progress: &mut progress };
        let error = job.hash(|range, _| if range.start >= 1_000_000 { bail!("bad sector") } else { Ok(()) });
        assert_eq!(error.expect_err("fails").to_string(), "bad sector");

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

//! Content through memory once: read in order, hashed on all cores, written in order.
//!
//! One thread reads a piece after the other into buffers from a fixed pool. Each full buffer goes to whichever hashing
//! thread is free (SHA-1 of the piece), to the one that takes the SHA-256 of everything, and to the one that writes;
//! whoever is last to let go of it gives it back. Nothing is buffered beyond the pool, and no result depends on how
//! many threads there are.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, bail};
use metainfo::{Geometry, PieceHash, PieceIndex};
use sha1::{Digest, Sha1};
use sha2::Sha256;

use super::progress::Progress;

/// Memory for buffers in bytes, however long a piece is; at least [`BUFFERS_MIN`] of them.
const MEMORY: usize = 256 << 20;
/// Fewer buffers than this would have reader, hasher and writer wait for each other.
const BUFFERS_MIN: usize = 4;
/// All-zero stretches of this many bytes are left as holes in what is written.
const HOLE_LEN: usize = 64 << 10;
static ZEROS: [u8; HOLE_LEN] = [0; HOLE_LEN];

/// What came out.
#[derive(Debug)]
pub struct Hashed {
    /// SHA-1 of every piece, in order.
    pub pieces: Vec<PieceHash>,
    /// SHA-256 of the whole content.
    pub sha256: [u8; 32],
}

/// What goes through the pipeline, and where to.
pub struct Job<'a> {
    /// How long the content and its pieces are.
    pub geometry: Geometry,
    /// Hashing threads.
    pub threads: usize,
    /// Where the content is written; `None` only hashes.
    pub out: Option<&'a File>,
    /// Set from outside to give up.
    pub stop: &'a AtomicBool,
    /// Told about every piece read.
    pub progress: &'a mut Progress,
}

struct Piece {
    index: PieceIndex,
    start: u64,
    len: usize,
    buf: Vec<u8>,
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        &self.buf[..self.len]
    }
}

impl Job<'_> {
    /// Reads all content with `fill`, which gets a half-open range of it and a buffer of that length.
    ///
    /// # Errors
    /// The first error of reading or writing, or that it was told to stop.
    pub fn run(
        self,
        mut fill: impl FnMut(Range<u64>, &mut [u8]) -> anyhow::Result<()> + Send,
    ) -> anyhow::Result<Hashed> {
        let Job { geometry, threads, out, stop, progress } = self;
        let piece_len = usize::try_from(geometry.piece_len()).context("sizing buffers")?;
        let piece_count = usize::try_from(geometry.piece_count()).context("counting pieces")?;
        let buffers = (MEMORY / piece_len).clamp(BUFFERS_MIN, 2 * threads + BUFFERS_MIN);
        let (give_back, pool) = channel::<Vec<u8>>();
        for _ in 0..buffers.min(piece_count) {
            give_back.send(vec![0; piece_len]).expect("the receiver is right here");
        }
        let hashes = Mutex::new(vec![[0; 20]; piece_count]);
        let failed = AtomicBool::new(false);

        thread::scope(|scope| {
            let (to_hash, hash_queue) = channel::<Arc<Piece>>();
            let hash_queue = Mutex::new(hash_queue);
            let (to_digest, digest_queue) = channel::<Arc<Piece>>();
            let (to_write, write_queue) = channel::<Arc<Piece>>();
            let hash_queue = Arc::new(hash_queue);
            for _ in 0..threads.max(1) {
                let (queue, give_back, hashes) = (Arc::clone(&hash_queue), give_back.clone(), &hashes);
                scope.spawn(move || hash_pieces(&queue, hashes, &give_back));
            }
            // The receiver has to go when the last hasher does, or the reader would fill a queue nobody empties.
            drop(hash_queue);
            let digest_back = give_back.clone();
            let digester = scope.spawn(move || {
                let mut sha256 = Sha256::new();
                for piece in digest_queue {
                    sha256.update(piece.bytes());
                    recycle(piece, &digest_back);
                }
                sha256.finalize().into()
            });
            let failed = &failed;
            let writer = scope.spawn(move || {
                let result = write_pieces(write_queue, out, &give_back);
                failed.store(result.is_err(), Ordering::Relaxed);
                result
            });

            let mut read = || -> anyhow::Result<()> {
                for index in geometry.pieces() {
                    if stop.load(Ordering::Relaxed) {
                        bail!("interrupted");
                    }
                    if failed.load(Ordering::Relaxed) {
                        break;
                    }
                    // Nobody gives back any more only if every other thread has ended, which an error explains.
                    let Ok(mut buf) = pool.recv() else { break };
                    let range = geometry.piece_range(index);
                    let len = usize::try_from(geometry.len_of(index)).context("sizing a piece")?;
                    fill(range.clone(), &mut buf[..len])?;
                    let piece = Arc::new(Piece { index, start: range.start, len, buf });
                    // The last one gets this thread's own reference: if it were dropped here after the others let go,
                    // the buffer would be gone from the pool. A queue is closed only when its thread has died.
                    let is_open = to_hash.send(Arc::clone(&piece)).is_ok()
                        && to_digest.send(Arc::clone(&piece)).is_ok()
                        && to_write.send(piece).is_ok();
                    if !is_open {
                        break;
                    }
                    progress.advance(range.end - range.start);
                }
                Ok(())
            };
            let read = read();
            drop((to_hash, to_digest, to_write));
            let sha256 = digester.join();
            let written = writer.join();
            read?;
            written.unwrap_or_else(|_| bail!("the writing thread ended unexpectedly"))?;
            sha256.map_err(|_| anyhow::anyhow!("the hashing thread ended unexpectedly"))
        })
        .map(|sha256| Hashed { pieces: hashes.into_inner().unwrap_or_else(PoisonError::into_inner), sha256 })
    }
}

/// How many hashing threads this machine has work for.
pub fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn recycle(piece: Arc<Piece>, give_back: &Sender<Vec<u8>>) {
    // Exactly one of those that let go gets the buffer. At the end nobody waits for it.
    if let Some(piece) = Arc::into_inner(piece) {
        let _ = give_back.send(piece.buf);
    }
}

fn hash_pieces(queue: &Mutex<Receiver<Arc<Piece>>>, hashes: &Mutex<Vec<PieceHash>>, give_back: &Sender<Vec<u8>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(piece) = next else { return };
        let hash: PieceHash = Sha1::digest(piece.bytes()).into();
        hashes.lock().unwrap_or_else(PoisonError::into_inner)[piece.index.as_usize()] = hash;
        recycle(piece, give_back);
    }
}

fn write_pieces(queue: Receiver<Arc<Piece>>, out: Option<&File>, give_back: &Sender<Vec<u8>>) -> anyhow::Result<()> {
    let mut result = Ok(());
    // After an error the queue is still emptied, so that the reader gets its buffers and sees the error.
    for piece in queue {
        if let (Some(out), Ok(())) = (out, &result) {
            result = write_sparse(out, piece.bytes(), piece.start);
        }
        recycle(piece, give_back);
    }
    result.context("writing the content: is the disk full?")
}

/// Writes what is not zero; the file already has its full length, and is zero there.
///
/// # Errors
/// If it cannot be written.
pub fn write_sparse(out: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    let mut pending = 0..0;
    for start in (0..bytes.len()).step_by(HOLE_LEN) {
        let end = bytes.len().min(start + HOLE_LEN);
        if bytes[start..end] == ZEROS[..end - start] {
            out.write_all_at(&bytes[pending.clone()], at + pending.start as u64)?;
            pending = end..end;
        } else {
            pending.end = end;
        }
    }
    out.write_all_at(&bytes[pending.clone()], at + pending.start as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i * 7 % 251).expect("below 251")).collect();
        if len > 400_000 {
            bytes[70_000..300_000].fill(0);
        }
        bytes
    }

    fn run(bytes: &[u8], threads: usize, out: Option<&File>) -> anyhow::Result<Hashed> {
        let geometry = Geometry::new(bytes.len() as u64, 32_768).expect("sane");
        let stop = AtomicBool::new(false);
        let mut progress = Progress::new("testing", bytes.len() as u64);
        Job { geometry, threads, out, stop: &stop, progress: &mut progress }.run(|range, buf| {
            let range = usize::try_from(range.start)?..usize::try_from(range.end)?;
            buf.copy_from_slice(&bytes[range]);
            Ok(())
        })
    }

    #[test]
    fn hashes_do_not_depend_on_threads() {
        for len in [1, 32_767, 32_768, 32_769, 1_000_000] {
            let bytes = content(len);
            let pieces: Vec<PieceHash> = bytes.chunks(32_768).map(|piece| Sha1::digest(piece).into()).collect();
            let sha256: [u8; 32] = Sha256::digest(&bytes).into();
            for threads in [1, 2, 7] {
                let file = tempfile::tempfile().expect("a temporary file");
                file.set_len(len as u64).expect("set length");
                let hashed = run(&bytes, threads, Some(&file)).expect("works");
                assert_eq!((&hashed.pieces, hashed.sha256), (&pieces, sha256), "{len} bytes, {threads} threads");
                let mut written = vec![0; len];
                file.read_exact_at(&mut written, 0).expect("all of it");
                assert!(written == bytes, "{len} bytes, {threads} threads");
            }
        }
    }

    #[test]
    fn every_buffer_comes_back_to_the_pool() {
        // Far more pieces than buffers, and nothing to do for anybody: a lost buffer would stop this for good.
        let geometry = Geometry::new(200_000 * 16_384, 16_384).expect("sane");
        let stop = AtomicBool::new(false);
        for threads in [1, 3] {
            let mut progress = Progress::new("testing", 1);
            let mut left = 20_000;
            let job = Job { geometry, threads, out: None, stop: &stop, progress: &mut progress };
            let error = job.run(|_, _| {
                left -= 1;
                if left == 0 { bail!("enough") } else { Ok(()) }
            });
            assert_eq!(error.expect_err("ended").to_string(), "enough");
        }
    }

    #[test]
    fn errors_end_it() {
        let read_only = File::open("/dev/null").expect("/dev/null");
        let error = run(&content(3_000_000), 2, Some(&read_only)).expect_err("cannot write");
        assert!(format!("{error:#}").contains("writing the content"), "{error:#}");

        let geometry = Geometry::new(3_000_000, 32_768).expect("sane");
        let job = |stop, fail_at: u64| {
            let stop = AtomicBool::new(stop);
            let mut progress = Progress::new("testing", 1);
            let job = Job { geometry, threads: 2, out: None, stop: &stop, progress: &mut progress };
            job.run(|range, _| if range.start >= fail_at { bail!("bad sector") } else { Ok(()) })
        };
        assert_eq!(job(false, 1_000_000).expect_err("fails").to_string(), "bad sector");
        assert_eq!(job(true, u64::MAX).expect_err("stops").to_string(), "interrupted");
        assert!(job(false, u64::MAX).is_ok());
    }
}

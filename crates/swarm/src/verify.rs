//! Hashes and writes pieces that have all their blocks, and reports the result, on a few blocking threads.

use std::sync::Arc;
use std::thread::available_parallelism;

use metainfo::{PieceHash, PieceIndex};

use crate::buffers::lock;
use crate::engine::{Shared, count};
use crate::error::SwarmError;
use crate::hash_queue::Job;

/// Threads that hash and write. One thread hashes more than a gigabyte per second if several pieces wait; more threads only
/// make a disk seek.
const MAX_WORKERS: usize = 4;

impl Shared {
    /// Passes a full piece to a hashing thread.
    pub(crate) fn hash_soon(self: &Arc<Self>, piece: PieceIndex, data: Vec<u8>, givers: Vec<u64>) {
        let mut hashing = lock(&self.hashing);
        hashing.jobs.push_back(Job { piece, data, givers });
        let most = available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        if hashing.workers < most {
            hashing.workers += 1;
            let shared = Arc::clone(self);
            tokio::task::spawn_blocking(move || shared.hash_all());
        }
    }

    fn hash_all(&self) {
        loop {
            let jobs = {
                let mut hashing = lock(&self.hashing);
                let jobs = hashing.take();
                if jobs.is_empty() {
                    hashing.workers -= 1;
                }
                jobs
            };
            if jobs.is_empty() {
                return;
            }
            if self.is_over() {
                continue;
            }
            let hashes = hashes::digests(&jobs.iter().map(|job| &job.data[..]).collect::<Vec<_>>());
            for (job, hash) in jobs.into_iter().zip(hashes) {
                self.finish_piece(job, hash);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.has_failed() || *self.ending().borrow()
    }

    fn finish_piece(&self, Job { piece, data, givers }: Job, hash: PieceHash) {
        if self.is_over() {
            return;
        }
        if hash != *self.meta.piece_hash(piece) {
            log::warn!("piece {piece}: wrong hash; number of peers that sent it: {}", givers.len());
            count(&self.counters.bad_pieces, 1);
            count(&self.counters.wasted, data.len());
            if let [giver] = givers[..] {
                self.blame(u32::try_from(giver).expect("link keys have 32 bits"));
            }
            self.pool.put(data);
            self.piece_was_wrong(piece, &givers);
            return;
        }
        if let Err(error) = self.storage.write_piece(piece, &data) {
            self.fail(SwarmError::Write { piece, source: Arc::new(error) });
            return;
        }
        // Put it into the cache before any peer learns of it: a fresh piece is rare, and is requested at once.
        let unused = lock(&self.cache).put_piece(piece, data);
        unused.into_iter().for_each(|buffer| self.pool.put(buffer));
        self.piece_verified(piece);
    }
}

//! Pieces on their way to the hashing threads.

use std::collections::VecDeque;

use metainfo::PieceIndex;

/// A piece with all its blocks, and the links that delivered them.
pub(crate) struct Job {
    pub(crate) piece: PieceIndex,
    pub(crate) data: Vec<u8>,
    pub(crate) givers: Vec<u64>,
}

/// Pieces waiting for their hash. The picker's budget bounds how many bytes can wait here, or be in work.
#[derive(Default)]
pub(crate) struct Hashing {
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) workers: usize,
}

impl Hashing {
    /// The pieces that a worker takes next: as many of those that wait as are best hashed together. None waits for others to
    /// come.
    pub(crate) fn take(&mut self) -> Vec<Job> {
        let count = hashes::share(self.jobs.len(), self.workers).min(self.jobs.len());
        self.jobs.drain(..count).collect()
    }
}

//! Pieces on their way to the hashing threads.

use std::collections::VecDeque;

use metainfo::PieceIndex;

/// A piece with all its blocks, and the links that delivered them.
pub(crate) struct Job {
    pub(crate) piece: PieceIndex,
    pub(crate) data: Vec<u8>,
    pub(crate) givers: Vec<u64>,
}

/// Pieces waiting for their hash. The picker's budget bounds how many bytes can wait here.
#[derive(Default)]
pub(crate) struct Hashing {
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) workers: usize,
}

//! Messages that come in parts.

use crate::schedule::Job;
use crate::{Backend, Block, Digest, State};

/// FIPS 180-4, section 5.3.1.
const START: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];

/// A message of which more may come.
#[derive(Clone, Debug)]
pub struct Hasher {
    state: State,
    /// Bytes so far.
    len: u64,
    /// What does not fill a block yet: the first `len % 64` bytes.
    rest: Block,
}

impl Default for Hasher {
    fn default() -> Hasher {
        Hasher { state: START, len: 0, rest: [0; 64] }
    }
}

impl Hasher {
    /// An empty message.
    pub fn new() -> Hasher {
        Hasher::default()
    }

    /// Adds the next part to each message. Parts whose lengths are equal, and multiples of 64, are fastest.
    pub fn update_all<'a>(parts: impl IntoIterator<Item = (&'a mut Hasher, &'a [u8])>) {
        Hasher::update_all_by(Backend::chosen(), parts);
    }

    /// The messages' hashes, in their order.
    pub fn finish_all(hashers: Vec<Hasher>) -> Vec<Digest> {
        Hasher::finish_all_by(Backend::chosen(), hashers)
    }

    /// [`Hasher::update_all`] by a backend that this processor has.
    pub(crate) fn update_all_by<'a>(backend: Backend, parts: impl IntoIterator<Item = (&'a mut Hasher, &'a [u8])>) {
        let jobs = parts.into_iter().map(|(hasher, part)| hasher.take(backend, part)).collect();
        backend.compress_all(jobs);
    }

    /// [`Hasher::finish_all`] by a backend that this processor has.
    pub(crate) fn finish_all_by(backend: Backend, hashers: Vec<Hasher>) -> Vec<Digest> {
        let ends: Vec<([Block; 2], usize)> = hashers.iter().map(Hasher::end).collect();
        let mut states: Vec<State> = hashers.iter().map(|hasher| hasher.state).collect();
        let jobs =
            states.iter_mut().zip(&ends).map(|(state, (blocks, count))| Job { state, blocks: &blocks[..*count] });
        backend.compress_all(jobs.collect());
        states.iter().map(bytes_of).collect()
    }

    /// The hash of this message by a backend that this processor has.
    pub(crate) fn finish_by(mut self, backend: Backend) -> Digest {
        let (blocks, count) = self.end();
        backend.compress(&mut self.state, &blocks[..count]);
        bytes_of(&self.state)
    }

    /// Keeps what does not fill a block, and returns the whole blocks of `part`.
    fn take<'a>(&'a mut self, backend: Backend, mut part: &'a [u8]) -> Job<'a> {
        let kept = self.kept();
        self.len += u64::try_from(part.len()).expect("a usize has at most 64 bits");
        if kept > 0 {
            let (now, later) = part.split_at(part.len().min(self.rest.len() - kept));
            self.rest[kept..kept + now.len()].copy_from_slice(now);
            part = later;
            if kept + now.len() < self.rest.len() {
                return Job { state: &mut self.state, blocks: &[] };
            }
            backend.compress(&mut self.state, std::slice::from_ref(&self.rest));
        }
        let (blocks, rest) = part.as_chunks();
        self.rest[..rest.len()].copy_from_slice(rest);
        Job { state: &mut self.state, blocks }
    }

    /// The last one or two blocks: what is left, a one bit, zeros, and the length in bits (section 5.1.1).
    fn end(&self) -> ([Block; 2], usize) {
        let kept = self.kept();
        let mut blocks = [[0; 64]; 2];
        blocks[0][..kept].copy_from_slice(&self.rest[..kept]);
        blocks[0][kept] = 0x80;
        let count = if kept < 56 { 1 } else { 2 };
        blocks[count - 1][56..].copy_from_slice(&(self.len * 8).to_be_bytes());
        (blocks, count)
    }

    fn kept(&self) -> usize {
        usize::try_from(self.len % 64).expect("less than 64")
    }
}

fn bytes_of(state: &State) -> Digest {
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

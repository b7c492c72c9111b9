//! Which message is in which lane.

use std::cmp::Reverse;

use crate::{Block, State};

/// Blocks to be hashed into a state.
pub(crate) struct Job<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) blocks: &'a [Block],
}

/// The states of all lanes, word by word, as vector registers hold them.
pub(crate) type States<const LANES: usize> = [[u32; LANES]; 5];

/// Does all jobs in lanes. A lane whose job is done takes the next one. When fewer than `fewest` lanes would be in use, what
/// is left is done by `single`, job after job.
///
/// `kernel` hashes the first blocks of every lane, as many as its last argument says.
pub(crate) fn in_lanes<const LANES: usize>(
    mut jobs: Vec<Job<'_>>,
    fewest: usize,
    kernel: impl Fn(&mut States<LANES>, &[&[Block]; LANES], usize),
    single: impl Fn(&mut State, &[Block]),
) {
    jobs.retain(|job| !job.blocks.is_empty());
    // The longest first: so the lanes end at about the same time.
    jobs.sort_by_key(|job| Reverse(job.blocks.len()));
    let mut waiting = jobs.into_iter();
    let mut lanes: [Option<Job<'_>>; LANES] = std::array::from_fn(|_| None);
    loop {
        for lane in lanes.iter_mut().filter(|lane| lane.is_none()) {
            *lane = waiting.next();
        }
        let used = lanes.iter().flatten().count();
        if used < fewest {
            // Then none is waiting.
            lanes.into_iter().flatten().for_each(|job| single(job.state, job.blocks));
            return;
        }
        let Some(shortest) = lanes.iter().flatten().map(|job| job.blocks).min_by_key(|blocks| blocks.len()) else {
            return;
        };
        // A lane without a job does some other lane's work a second time.
        let blocks = std::array::from_fn(|lane| lanes[lane].as_ref().map_or(shortest, |job| job.blocks));
        let mut states = [[0; LANES]; 5];
        for (lane, job) in lanes.iter().enumerate() {
            let Some(job) = job else { continue };
            states.iter_mut().zip(*job.state).for_each(|(words, word)| words[lane] = word);
        }
        let count = shortest.len();
        kernel(&mut states, &blocks, count);
        for (lane, place) in lanes.iter_mut().enumerate() {
            let Some(job) = place else { continue };
            *job.state = states.map(|words| words[lane]);
            job.blocks = &job.blocks[count..];
            if job.blocks.is_empty() {
                *place = None;
            }
        }
    }
}

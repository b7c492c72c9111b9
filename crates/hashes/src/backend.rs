//! What the processor has, and what of it is used.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::hasher::Hasher;
use crate::schedule::Job;
use crate::{Block, Digest, State, plain};

/// Set to 1, this environment variable makes a processor behave like one without instructions for SHA-1.
const NO_INSTRUCTIONS: &str = "EZIO_NO_SHA_NI";

/// What [`Backend::chosen`] measures: a message of this length in each lane …
const MEASURED_LEN: usize = 4 << 10;
/// … so many times, of which the fastest counts: whatever else the processor did, it did not do it all the time.
const MEASURED_TIMES: u32 = 8;

/// A way to compute SHA-1: how one message is hashed, and how several are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    single: Single,
    lanes: Lanes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Single {
    /// By the `sha1` crate, which uses the processor's instructions for SHA-1 where there are any.
    Crate,
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lanes {
    /// One message after the other.
    None,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let single = match self.single {
            Single::Crate if has_instructions() => "SHA-1 instructions",
            Single::Crate => "the sha1 crate",
            Single::Plain => "plain code",
        };
        match self.lanes {
            Lanes::None => write!(f, "{single}"),
            #[cfg(target_arch = "x86_64")]
            Lanes::Avx2 => write!(f, "{single}, AVX2 for {} messages at once", self.lanes()),
            #[cfg(target_arch = "x86_64")]
            Lanes::Avx512 => write!(f, "{single}, AVX-512 for {} messages at once", self.lanes()),
        }
    }
}

impl Backend {
    /// The fastest here. Decided once, which takes less than a millisecond.
    pub fn chosen() -> Backend {
        static CHOSEN: OnceLock<Backend> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let avoids_instructions = std::env::var_os(NO_INSTRUCTIONS).is_some_and(|value| value == "1");
            Backend::choose(has_instructions() && !avoids_instructions)
        })
    }

    fn choose(has_instructions: bool) -> Backend {
        let single = if has_instructions { Single::Crate } else { Single::Plain };
        let one_by_one = Backend { single, lanes: Lanes::None };
        let widest = Backend::available().into_iter().rev().find(|backend| {
            let is_right = backend.is_right();
            if !is_right {
                log::error!("SHA-1 by {backend} is wrong on this processor, and is not used");
            }
            is_right && backend.single == single
        });
        let Some(widest) = widest else { return one_by_one };
        // Nothing is as slow as plain code. Which of the others is faster depends on the processor.
        let is_faster = !has_instructions
            || widest.takes().saturating_mul(5) < one_by_one.takes_for(widest.lanes()).saturating_mul(4);
        if is_faster { widest } else { one_by_one }
    }

    /// All that this processor has, the widest last.
    pub fn available() -> Vec<Backend> {
        let mut lanes = vec![Lanes::None];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                lanes.push(Lanes::Avx2);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avx512f") {
                lanes.push(Lanes::Avx512);
            }
        }
        let both = |lanes| [Single::Plain, Single::Crate].map(|single| Backend { single, lanes });
        lanes.into_iter().flat_map(both).collect()
    }

    /// Messages that it hashes at the same time.
    pub fn lanes(self) -> usize {
        match self.lanes {
            Lanes::None => 1,
            #[cfg(target_arch = "x86_64")]
            Lanes::Avx2 => 8,
            #[cfg(target_arch = "x86_64")]
            Lanes::Avx512 => 16,
        }
    }

    /// With fewer messages than this at once, lanes are slower than one message after the other. Measured with eight lanes:
    /// they are as fast as two by plain code, or as five by instructions for SHA-1, of which processors differ more.
    fn fewest(self) -> usize {
        match self.single {
            Single::Plain => 3,
            Single::Crate => 7,
        }
    }

    /// [`crate::share`] for this backend.
    pub fn share(self, waiting: usize, threads: usize) -> usize {
        // Instructions are fast enough for all threads to be of use. Plain code should be avoided: the lanes are to be full, and
        // what the other threads do not do is left of the processor.
        let waiting = match self.single {
            Single::Crate => waiting.div_ceil(threads.max(1)),
            Single::Plain => waiting,
        };
        if waiting < self.fewest() { 1 } else { waiting.min(self.lanes()) }
    }

    /// [`crate::is_one_fast`] for this backend.
    pub fn is_one_fast(self) -> bool {
        self.single == Single::Crate && has_instructions()
    }

    /// [`crate::digest`] by this backend.
    pub fn digest(self, message: &[u8]) -> Digest {
        let mut hasher = Hasher::new();
        Hasher::update_all_by(self, [(&mut hasher, message)]);
        hasher.finish_by(self)
    }

    /// [`crate::digests`] by this backend.
    pub fn digests(self, messages: &[&[u8]]) -> Vec<Digest> {
        let mut hashers = vec![Hasher::new(); messages.len()];
        Hasher::update_all_by(self, hashers.iter_mut().zip(messages.iter().copied()));
        Hasher::finish_all_by(self, hashers)
    }

    /// Whether it hashes messages of several lengths like plain code.
    fn is_right(self) -> bool {
        let bytes: [u8; 1021] = std::array::from_fn(|at| at.to_le_bytes()[0].wrapping_mul(83));
        let messages: Vec<&[u8]> = (0..3 * self.lanes()).map(|at| &bytes[at..bytes.len() - 7 * at]).collect();
        self.digests(&messages) == Backend { single: Single::Plain, lanes: Lanes::None }.digests(&messages)
    }

    /// How long a message in each of its lanes takes.
    fn takes(self) -> Duration {
        self.takes_for(self.lanes())
    }

    /// How long so many messages take.
    fn takes_for(self, count: usize) -> Duration {
        let messages = vec![&[0x5a; MEASURED_LEN][..]; count];
        let run = |_| {
            let started = Instant::now();
            std::hint::black_box(self.digests(std::hint::black_box(&messages)));
            started.elapsed()
        };
        (0..MEASURED_TIMES).map(run).min().unwrap_or_default()
    }

    /// Hashes blocks into one state.
    pub(crate) fn compress(self, state: &mut State, blocks: &[Block]) {
        match self.single {
            Single::Crate => sha1::block_api::compress(state, blocks),
            Single::Plain => plain::compress(state, blocks),
        }
    }

    /// Does all jobs, several at once where that is faster.
    pub(crate) fn compress_all(self, jobs: Vec<Job<'_>>) {
        let single = |state: &mut State, blocks: &[Block]| self.compress(state, blocks);
        match self.lanes {
            Lanes::None => jobs.into_iter().for_each(|job| single(job.state, job.blocks)),
            #[cfg(target_arch = "x86_64")]
            Lanes::Avx2 => crate::x86::avx2(jobs, self.fewest(), single),
            #[cfg(target_arch = "x86_64")]
            Lanes::Avx512 => crate::x86::avx512(jobs, self.fewest(), single),
        }
    }
}

/// Whether the processor has the instructions for SHA-1 that the `sha1` crate uses.
fn has_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("sha2");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_chosen_is_there_and_right() {
        for has_instructions in [false, has_instructions()] {
            let chosen = Backend::choose(has_instructions);
            assert!(Backend::available().contains(&chosen) && chosen.is_right(), "{chosen}");
            assert_eq!(chosen.single == Single::Crate, has_instructions, "{chosen}");
        }
        // Plain code is slower on every processor.
        assert_eq!(Backend::choose(false).lanes, Backend::available().last().expect("two at least").lanes);
    }

    #[test]
    fn few_messages_are_not_hashed_together() {
        for backend in Backend::available() {
            let (fewest, lanes) = (backend.fewest(), backend.lanes());
            let shares = [0, 1, fewest - 1, fewest, lanes, 1000].map(|waiting| backend.share(waiting, 1));
            let expected = if lanes == 1 { [1; 6] } else { [1, 1, 1, fewest, lanes, lanes] };
            assert_eq!(shares, expected, "{backend}");
            let with_eight_threads = if lanes > 1 && backend.single == Single::Plain { lanes } else { 1 };
            assert_eq!(
                (backend.share(lanes, 8), backend.share(8 * lanes, 8)),
                (with_eight_threads, lanes),
                "{backend}"
            );
        }
    }
}

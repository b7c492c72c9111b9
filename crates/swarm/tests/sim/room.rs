//! The setup of a simulation (how many machines, how fast, which start late, which die), and its outcome.

use std::fmt;
use std::time::Duration;

use metainfo::{BLOCK_LEN, Geometry};
use swarm::pace::UPLOAD_SLOTS;

/// When a machine dies, and whether its peers notice at once.
#[derive(Clone, Copy, Debug)]
pub enum Death {
    /// The process ends: its connections are reset at once.
    Killed(Duration),
    /// The power is cut: no peer gets notice, and connections time out after [`swarm::pace::UNACKNOWLEDGED`].
    PowerCut(Duration),
}

/// One run. Machine 0 is the seeder, the others are receivers.
#[derive(Clone, Debug)]
pub struct Room {
    pub receivers: u32,
    pub piece_count: u32,
    /// Length of a piece in bytes; the policies use windows, turns and budgets for this length.
    pub piece_len: u32,
    /// Simulated blocks per piece: a simulated block stands for `piece_len / blocks` bytes, always requested together.
    pub blocks: u32,
    /// Capacity of an ordinary link in bytes per second, each way.
    pub rate: f64,
    /// Most links a machine keeps; the first two thirds are dialled, as in the engine.
    pub max_links: usize,
    /// Peers that a machine serves at the same time.
    pub slots: usize,
    /// Latency of every message, one way.
    pub latency: Duration,
    /// Receivers with a tenth of the rate.
    pub slow: Vec<u32>,
    pub late: Vec<(u32, Duration)>,
    pub deaths: Vec<(u32, Death)>,
    /// The seeder's power is cut as soon as each piece is on some receiver.
    pub seeder_leaves_early: bool,
    pub seed: u64,
}

impl Room {
    /// `receivers` machines at 1 Gbit/s and an image of `piece_count` pieces of 1 MiB.
    pub fn new(receivers: u32, piece_count: u32, seed: u64) -> Room {
        Room {
            receivers,
            piece_count,
            piece_len: 1 << 20,
            blocks: 4,
            rate: 118e6,
            max_links: 40,
            slots: UPLOAD_SLOTS,
            latency: Duration::from_micros(200),
            slow: Vec::new(),
            late: Vec::new(),
            deaths: Vec::new(),
            seeder_leaves_early: false,
            seed,
        }
    }

    /// Content ÷ rate.
    pub fn ideal(&self) -> Duration {
        let bytes = f64::from(self.piece_count) * f64::from(self.piece_len);
        Duration::from_secs_f64(bytes / self.rate)
    }

    /// The lower bound for any algorithm with pieces of this size: (1 + ⌊log₂ N⌋ ÷ M) · F/C.
    pub fn bound(&self) -> Duration {
        self.ideal().mul_f64(1.0 + f64::from(self.receivers.ilog2()) / f64::from(self.piece_count))
    }

    /// The geometry that the core sees: simulated blocks are its blocks.
    pub fn picked(&self) -> Geometry {
        let piece_len = self.blocks * BLOCK_LEN;
        Geometry::new(u64::from(self.piece_count) * u64::from(piece_len), piece_len).expect("blocks a power of two")
    }

    /// Bytes a simulated block stands for.
    pub fn block_bytes(&self) -> u32 {
        self.piece_len / self.blocks
    }
}

/// How a run ended, machine by machine.
#[derive(Debug)]
pub struct Outcome {
    pub room: Room,
    /// Time from the machine's start until everything was verified; `None` if it died or never finished.
    pub took: Vec<Option<Duration>>,
    pub finished_at: Vec<Option<Duration>>,
    pub died: Vec<bool>,
    /// Copies of the image that left the seeder.
    pub seeder_copies: f64,
    /// When the median receiver had a tenth and nine tenths ÷ ideal; this shows where time is lost.
    pub passed: (f64, f64),
    /// Bytes received twice or without a request ÷ bytes needed.
    pub waste: f64,
}

impl Outcome {
    /// Receivers that are neither slow nor late nor dead.
    fn ordinary(&self) -> impl Iterator<Item = usize> {
        let is_ordinary = |node: u32| {
            let is_late = self.room.late.iter().any(|&(late, _)| late == node);
            !is_late && !self.room.slow.contains(&node)
        };
        (1..=self.room.receivers).filter(move |&node| is_ordinary(node)).map(index).filter(|&node| !self.died[node])
    }

    /// Whether every receiver that lives has everything.
    pub fn all_complete(&self) -> bool {
        (1..self.took.len()).all(|node| self.died[node] || self.took[node].is_some())
    }

    /// Last ordinary receiver ÷ bound; infinite if one of them never finished.
    pub fn ratio(&self) -> f64 {
        let last = self.ordinary().map(|node| self.finished_at[node]).collect::<Option<Vec<_>>>();
        last.and_then(|times| times.into_iter().max())
            .map_or(f64::INFINITY, |last| last.as_secs_f64() / self.room.bound().as_secs_f64())
    }

    /// Last ordinary receiver ÷ the median one.
    pub fn last_over_median(&self) -> f64 {
        let mut times: Vec<_> = self.ordinary().filter_map(|node| self.finished_at[node]).collect();
        times.sort_unstable();
        match (times.last(), times.get(times.len() / 2)) {
            (Some(last), Some(median)) => last.as_secs_f64() / median.as_secs_f64(),
            _ => f64::INFINITY,
        }
    }

    /// The slowest late receiver's time since it started ÷ bound.
    pub fn late_ratio(&self) -> f64 {
        let took = |&(node, _): &(u32, Duration)| {
            self.took[index(node)].map_or(f64::INFINITY, |took| took.as_secs_f64() / self.room.bound().as_secs_f64())
        };
        self.room.late.iter().map(took).fold(0.0, f64::max)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let room = &self.room;
        write!(
            f,
            "{:3} receivers, {:4} pieces, seed {}: makespan ÷ bound {:.3}, last ÷ median {:.3}, seeder copies {:.3}, waste {:.4}, 10 % at {:.3}, 90 % at {:.3}",
            room.receivers,
            room.piece_count,
            room.seed,
            self.ratio(),
            self.last_over_median(),
            self.seeder_copies,
            self.waste,
            self.passed.0,
            self.passed.1
        )?;
        if !room.late.is_empty() {
            write!(f, ", late ÷ bound {:.3}", self.late_ratio())?;
        }
        if !self.all_complete() {
            write!(f, ", SOME NEVER FINISHED")?;
        }
        Ok(())
    }
}

/// A machine's number as an index.
pub fn index(node: u32) -> usize {
    usize::try_from(node).expect("fits usize")
}

//! The level of compression that keeps up with the source.
//!
//! Only one thread at a time reads. While the source is what limits, some thread always reads; whenever all of them pack instead,
//! the source waits. So the share of time that somebody reads says whether there is room for a higher level.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Levels that are chosen from: higher ones take several times as long and save a few percent.
const LOWEST: i32 = 1;
const HIGHEST: i32 = 9;
const FIRST: i32 = 3;
/// What is looked at for a decision: at least so long, and so many pieces.
const WINDOW: Duration = Duration::from_millis(250);
const WINDOW_PIECES: u32 = 8;
/// Above this share of time spent reading, there is room for a higher level; below the other, the source waits for packing.
const MUCH: f64 = 0.95;
const LITTLE: f64 = 0.8;
/// A level that was too high is not tried again for so many windows.
const AGAIN_AFTER: u32 = 40;

/// The level to pack with from now on.
#[derive(Debug)]
pub(crate) struct Pace {
    level: AtomicI32,
    window: Option<Mutex<Window>>,
}

#[derive(Debug)]
struct Window {
    started: Option<Instant>,
    reading: Duration,
    pieces: u32,
    choice: Choice,
}

/// What has been learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    level: i32,
    highest: i32,
    windows_left: u32,
}

impl Pace {
    /// Always the same level.
    pub(crate) fn fixed(level: i32) -> Pace {
        Pace { level: AtomicI32::new(level), window: None }
    }

    /// As high as the source allows.
    pub(crate) fn adaptive() -> Pace {
        let choice = Choice { level: FIRST, highest: HIGHEST, windows_left: 0 };
        let window = Window { started: None, reading: Duration::ZERO, pieces: 0, choice };
        Pace { level: AtomicI32::new(FIRST), window: Some(Mutex::new(window)) }
    }

    pub(crate) fn level(&self) -> i32 {
        self.level.load(Ordering::Relaxed)
    }

    /// A piece was read by `now`.
    pub(crate) fn note_read(&self, took: Duration, now: Instant) {
        let Some(window) = &self.window else { return };
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(started) = window.started else {
            window.started = Some(now);
            return;
        };
        window.reading += took;
        window.pieces += 1;
        let wall = now.saturating_duration_since(started);
        if wall < WINDOW || window.pieces < WINDOW_PIECES {
            return;
        }
        let choice = window.choice.next(window.reading.as_secs_f64() / wall.as_secs_f64());
        if choice.level != window.choice.level {
            log::debug!("compressing at level {} from now on", choice.level);
        }
        self.level.store(choice.level, Ordering::Relaxed);
        *window = Window { started: Some(now), reading: Duration::ZERO, pieces: 0, choice };
    }
}

impl Choice {
    /// After a window with that share of time spent reading.
    fn next(self, reading: f64) -> Choice {
        let Choice { level, mut highest, mut windows_left } = self;
        match windows_left {
            0 => highest = HIGHEST,
            _ => windows_left -= 1,
        }
        if reading < LITTLE && level > LOWEST {
            return Choice { level: level - 1, highest: level - 1, windows_left: AGAIN_AFTER };
        }
        let level = if reading > MUCH { (level + 1).min(highest) } else { level };
        Choice { level, highest, windows_left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The levels after so many windows, with a source for which every level up to `most` is fast enough.
    fn levels(most: i32, windows: usize) -> Vec<i32> {
        let pace = Pace::adaptive();
        let mut now = Instant::now();
        pace.note_read(Duration::ZERO, now);
        let mut levels = Vec::new();
        for _ in 0..windows {
            for _ in 0..10 {
                now += Duration::from_millis(30);
                let share = if pace.level() <= most { 30 } else { 15 };
                pace.note_read(Duration::from_millis(share), now);
            }
            levels.push(pace.level());
        }
        levels
    }

    #[test]
    fn a_slow_source_is_packed_well_and_a_fast_one_quickly() {
        assert_eq!(levels(100, 20).last(), Some(&HIGHEST));
        assert_eq!(levels(0, 20), [&[2][..], &[LOWEST; 19]].concat());
    }

    #[test]
    fn what_was_too_much_is_seldom_tried_again() {
        let levels = levels(5, 200);
        assert_eq!(levels[..4], [4, 5, 6, 5]);
        let too_high = levels.iter().filter(|&&level| level > 5).count();
        assert!((2..=6).contains(&too_high), "{too_high}: {levels:?}");
        assert!(levels.iter().all(|&level| level >= 4), "{levels:?}");
    }

    #[test]
    fn a_level_that_was_given_stays() {
        let pace = Pace::fixed(7);
        let now = Instant::now();
        (1..100).for_each(|n| pace.note_read(Duration::ZERO, now + Duration::from_secs(n)));
        assert_eq!(pace.level(), 7);
    }
}

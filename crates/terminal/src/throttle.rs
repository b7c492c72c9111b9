//! A limit on log lines that any client on the network can cause with one packet each.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets a burst of lines pass, and then one line per interval. The next line that passes says how many were held back.
pub struct Throttle {
    burst: u32,
    every: Duration,
    state: Mutex<State>,
}

struct State {
    /// When the lines that passed so far would have been due at one per interval.
    due: Option<Instant>,
    held_back: u64,
}

/// How many lines were held back, as the end of a line; empty if none were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack(u64);

impl Throttle {
    /// Lets `burst` lines pass at once, then one per `every`.
    pub const fn new(burst: u32, every: Duration) -> Throttle {
        Throttle { burst, every, state: Mutex::new(State { due: None, held_back: 0 }) }
    }

    /// Whether a line may be logged, and what to put at its end.
    pub fn pass(&self) -> Option<HeldBack> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<HeldBack> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.due.map_or(now, |due| due.max(now)) + self.every;
        if due > now + self.every * self.burst {
            state.held_back += 1;
            return None;
        }
        state.due = Some(due);
        Some(HeldBack(std::mem::take(&mut state.held_back)))
    }
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " … and {count} more like it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_burst_and_a_number() {
        let (throttle, start, second) =
            (Throttle::new(3, Duration::from_secs(1)), Instant::now(), Duration::from_secs(1));
        let passed: Vec<_> = (0..100).filter_map(|_| throttle.pass_at(start)).collect();
        assert_eq!(passed, [HeldBack(0); 3]);
        assert_eq!(throttle.pass_at(start + second / 2), None);
        let line = throttle.pass_at(start + second).expect("one a second");
        assert_eq!(line.to_string(), " … and 98 more like it");
        assert_eq!(throttle.pass_at(start + second), None);
        // After a pause, a whole burst may pass again.
        let passed = (0..100).filter_map(|_| throttle.pass_at(start + 60 * second));
        assert_eq!(passed.map(|line| line.to_string()).collect::<Vec<_>>(), [" … and 1 more like it", "", ""]);
    }
}

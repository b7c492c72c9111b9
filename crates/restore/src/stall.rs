//! Why nothing comes: told after a while, for somebody who sees only that a number does not move.

use std::time::{Duration, Instant};

use swarm::Stats;

/// Nothing has come for this long before anything is said.
const PATIENCE: Duration = Duration::from_secs(30);

/// Watches a swarm fetch.
#[derive(Debug)]
pub(crate) struct Stall {
    since: Instant,
    bytes_have: u64,
    /// Payload taken that was good or may be.
    taken: u64,
    bad_pieces: u64,
}

impl Stall {
    pub(crate) fn new(now: Instant) -> Stall {
        Stall { since: now, bytes_have: 0, taken: 0, bad_pieces: 0 }
    }

    /// What is wrong, if nothing that is of use has come for [`PATIENCE`].
    pub(crate) fn look(&mut self, stats: &Stats, now: Instant) -> Option<String> {
        let taken = stats.downloaded - stats.wasted.min(stats.downloaded);
        let has_moved = stats.bytes_have != self.bytes_have
            // A large piece on a slow link; but not one that comes again and again, and is wrong.
            || (taken > self.taken && stats.bad_pieces == self.bad_pieces);
        if has_moved {
            *self = Stall { since: now, bytes_have: stats.bytes_have, taken, bad_pieces: stats.bad_pieces };
        }
        let waited = now.duration_since(self.since);
        (waited >= PATIENCE).then(|| format!("nothing has come for {} s: {}", waited.as_secs(), reason(stats)))
    }
}

fn reason(stats: &Stats) -> String {
    let tracker = stats.tracker_error.as_ref().map(|error| format!(" (tracker: {error})")).unwrap_or_default();
    match (stats.bad_pieces, stats.peers, stats.pieces_nowhere) {
        (1.., ..) => format!(
            "what comes has a wrong hash ({} pieces so far); `ezio image verify` on the server tells whether the image is damaged",
            stats.bad_pieces
        ),
        (0, 0, _) => {
            format!("no peer can be reached{tracker}; is the server running, and is no firewall between?")
        }
        (0, peers, 1..) => format!(
            "{} missing pieces are with none of the {peers} connected peers{tracker}; does the server still serve this image?",
            stats.pieces_nowhere
        ),
        (0, peers, 0) => format!("{peers} peers are connected, and none of them sends{tracker}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(stall: &mut Stall, stats: &Stats, start: Instant, seconds: u64) -> Option<String> {
        stall.look(stats, start + Duration::from_secs(seconds))
    }

    #[test]
    fn what_moves_is_no_stall() {
        let start = Instant::now();
        let mut stall = Stall::new(start);
        let mut stats = Stats::default();
        for seconds in (0..200).step_by(20) {
            stats.downloaded += 16384;
            assert_eq!(after(&mut stall, &stats, start, seconds), None);
        }
        stats.bytes_have = 1 << 20;
        assert_eq!(after(&mut stall, &stats, start, 300), None);
        assert_eq!(after(&mut stall, &stats, start, 329), None);
        assert!(after(&mut stall, &stats, start, 330).is_some());
        stats.bytes_have += 1;
        assert_eq!(after(&mut stall, &stats, start, 331), None);
    }

    #[test]
    fn the_reason_is_named() {
        let start = Instant::now();
        let said = |stats: &Stats| after(&mut Stall::new(start), stats, start, 45).expect("nothing came");
        let mut stats = Stats { tracker_error: Some("connection refused".into()), ..Stats::default() };
        let words = said(&stats);
        assert!(words.starts_with("nothing has come for 45 s: no peer") && words.contains("refused"), "{words}");
        (stats.peers, stats.pieces_nowhere) = (2, 7);
        assert!(said(&stats).contains("7 missing pieces are with none of the 2"));
        stats.pieces_nowhere = 0;
        assert!(said(&stats).contains("none of them sends"));
    }

    #[test]
    fn pieces_that_are_wrong_again_and_again_are_a_stall() {
        let start = Instant::now();
        let mut stall = Stall::new(start);
        let mut stats = Stats { peers: 1, ..Stats::default() };
        let mut words = None;
        for seconds in 0..60 {
            stats.downloaded += 16384;
            stats.bad_pieces += 1;
            words = after(&mut stall, &stats, start, seconds);
        }
        assert!(words.is_some_and(|words| words.contains("wrong hash (60 pieces so far)")));
    }
}

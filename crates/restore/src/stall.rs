//! Why no data is arriving, once none has arrived for a while. The restore keeps trying.

use std::time::{Duration, Instant};

use swarm::Stats;

/// Nothing has come for this long before anything is said.
const PATIENCE: Duration = Duration::from_secs(30);
/// A look counts for no more: what is longer, the machine itself stood still.
const LOOK: Duration = Duration::from_secs(2);

const VERIFY: &str = "`ezio image verify` on the server shows whether the image is damaged";

/// Watches a swarm fetch.
#[derive(Debug)]
pub(crate) struct Stall {
    looked: Instant,
    waited: Duration,
    bytes_have: u64,
    /// Payload taken that was good or may be.
    taken: u64,
    bad_pieces: u64,
}

impl Stall {
    pub(crate) fn new(now: Instant) -> Stall {
        Stall { looked: now, waited: Duration::ZERO, bytes_have: 0, taken: 0, bad_pieces: 0 }
    }

    /// What is wrong, if nothing that is of use has come for [`PATIENCE`]. While our own disk is at work nothing has to.
    pub(crate) fn look(&mut self, stats: &Stats, is_disk_busy: bool, now: Instant) -> Option<String> {
        let taken = stats.downloaded - stats.wasted.min(stats.downloaded);
        let has_moved = stats.bytes_have != self.bytes_have
            // A large piece on a slow link; but not one that comes again and again, and is wrong.
            || (taken > self.taken && stats.bad_pieces == self.bad_pieces);
        let since_look = now.duration_since(self.looked).min(LOOK);
        self.looked = now;
        if has_moved {
            let (bytes_have, bad_pieces) = (stats.bytes_have, stats.bad_pieces);
            *self = Stall { looked: now, waited: Duration::ZERO, bytes_have, taken, bad_pieces };
        } else if !is_disk_busy {
            self.waited += since_look;
        }
        let bad = stats.bad_pieces - self.bad_pieces.min(stats.bad_pieces);
        let waited = self.waited.as_secs();
        (self.waited >= PATIENCE).then(|| format!("no data has arrived for {waited} s: {}", reason(stats, bad)))
    }
}

/// `bad` is how many pieces with a wrong hash have come since the last good one.
fn reason(stats: &Stats, bad: u64) -> String {
    let tracker = stats.tracker_error.as_ref().map(|error| format!(" (tracker: {error})")).unwrap_or_default();
    let peers = format!("none of the connected peers ({})", stats.peers);
    match (bad, stats.peers, stats.pieces_nowhere) {
        (1.., ..) => format!("the pieces that arrive have a wrong hash: {VERIFY}"),
        (0, 0, _) => {
            // Who sent it is not asked again, and may have been the only one.
            let bad = match stats.bad_pieces {
                0 => String::new(),
                _ => format!("; a piece that arrived earlier had a wrong hash: {VERIFY}"),
            };
            if let Some(away) = stats.turned_away {
                let peer = away.addr.ip();
                let or = match away.has_torrent {
                    true => String::new(),
                    false => format!("; if this stays so, check that {peer} still serves this image"),
                };
                return format!(
                    "{peer} has no place for this machine at the moment; it keeps trying{or}{tracker}{bad}"
                );
            }
            format!(
                "no peer can be reached{tracker}: check that the server runs and that no firewall blocks the way{bad}"
            )
        }
        (0, _, 1..) => format!(
            "{peers} has the missing pieces ({}){tracker}: check that the server still serves this image; {VERIFY}",
            stats.pieces_nowhere
        ),
        (0, _, 0) => format!("{peers} sends anything{tracker}"),
    }
}

#[cfg(test)]
mod tests {
    use swarm::TurnedAway;

    use super::*;

    /// Looks once a second, `seconds` times.
    fn look(stall: &mut Stall, stats: &Stats, seconds: u64) -> Option<String> {
        (0..seconds).fold(None, |_, _| stall.look(stats, false, stall.looked + Duration::from_secs(1)))
    }

    #[test]
    fn what_moves_is_no_stall() {
        let mut stall = Stall::new(Instant::now());
        let mut stats = Stats::default();
        for _ in 0..10 {
            stats.downloaded += 16384;
            assert_eq!(look(&mut stall, &stats, 20), None);
        }
        stats.bytes_have = 1 << 20;
        assert_eq!(look(&mut stall, &stats, 30), None);
        assert!(look(&mut stall, &stats, 1).is_some());
        stats.bytes_have += 1;
        assert_eq!(look(&mut stall, &stats, 1), None);
    }

    #[test]
    fn a_disk_at_work_and_a_machine_that_stood_still_are_no_stall() {
        let mut stall = Stall::new(Instant::now());
        let stats = Stats::default();
        for _ in 0..100 {
            assert_eq!(stall.look(&stats, true, stall.looked + Duration::from_secs(1)), None);
        }
        assert_eq!(stall.look(&stats, false, stall.looked + Duration::from_secs(1000)), None);
    }

    #[test]
    fn the_reason_is_named() {
        let said = |stats: &Stats| look(&mut Stall::new(Instant::now()), stats, 45).expect("nothing came");
        let mut stats = Stats { tracker_error: Some("connection refused".into()), ..Stats::default() };
        let words = said(&stats);
        assert!(words.starts_with("no data has arrived for 45 s: no peer") && words.contains("refused"), "{words}");
        (stats.peers, stats.pieces_nowhere) = (2, 7);
        assert!(said(&stats).contains("none of the connected peers (2) has the missing pieces (7)"));
        (stats.peers, stats.pieces_nowhere) = (1, 0);
        assert!(said(&stats).contains("none of the connected peers (1) sends anything"));
        let full = |has_torrent| {
            let turned_away = Some(TurnedAway { addr: "10.0.0.1:6881".parse().expect("an address"), has_torrent });
            said(&Stats { turned_away, ..Stats::default() })
        };
        let words =
            "no data has arrived for 45 s: 10.0.0.1 has no place for this machine at the moment; it keeps trying";
        assert_eq!(full(true), words);
        assert!(full(false).starts_with(words) && full(false).contains("check that 10.0.0.1 still serves this image"));
        // Only what was wrong lately counts.
        let mut stall = Stall::new(Instant::now());
        assert!(
            look(&mut stall, &Stats { bad_pieces: 1, ..stats.clone() }, 40).is_some_and(|it| it.contains("wrong hash"))
        );
        stats = Stats { bad_pieces: 1, bytes_have: 9, ..Stats::default() };
        let words = look(&mut stall, &stats, 40).expect("nothing came");
        assert!(words.contains("no peer") && words.contains("earlier had a wrong hash"), "{words}");
    }

    #[test]
    fn pieces_that_are_wrong_again_and_again_are_a_stall() {
        let mut stall = Stall::new(Instant::now());
        let mut stats = Stats { peers: 1, ..Stats::default() };
        let mut words = None;
        for _ in 0..60 {
            stats.downloaded += 16384;
            stats.bad_pieces += 1;
            words = look(&mut stall, &stats, 1);
        }
        assert!(words.is_some_and(|words| words.contains("wrong hash")));
    }
}

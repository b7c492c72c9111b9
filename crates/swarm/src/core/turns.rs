//! Decides which peer is served when: every peer may make requests, and a few are served at a time, in turns of about
//! one piece, first come, first served.

use std::collections::{BTreeMap, VecDeque};

use crate::pace::TURN_BYTES;
use crate::picker::PeerKey;

/// The places in which peers are served, and the queue for them.
#[derive(Debug)]
pub(super) struct Turns {
    places: usize,
    turn_bytes: u32,
    /// Bytes left in the turn of each peer that has a place.
    held: BTreeMap<PeerKey, u32>,
    /// Each peer appears once, so the queue is never longer than the number of links.
    waiting: VecDeque<PeerKey>,
}

impl Turns {
    /// This many places, but at least one.
    pub(super) fn new(places: usize, piece_len: u32) -> Turns {
        let (least, most) = TURN_BYTES;
        let turn_bytes = piece_len.clamp(least, most);
        Turns { places: places.max(1), turn_bytes, held: BTreeMap::new(), waiting: VecDeque::new() }
    }

    /// Queues a peer, unless it already waits or has a place.
    pub(super) fn want(&mut self, key: PeerKey) {
        if !self.is_held(key) && !self.waiting.contains(&key) {
            self.waiting.push_back(key);
        }
    }

    /// Gives a free place to the peer that has waited longest, if there are both.
    pub(super) fn hand_out(&mut self) -> Option<PeerKey> {
        let key = if self.held.len() < self.places { self.waiting.pop_front() } else { None }?;
        self.held.insert(key, self.turn_bytes);
        Some(key)
    }

    /// Counts sent bytes; returns whether they used up the peer's turn.
    pub(super) fn is_used_up(&mut self, key: PeerKey, bytes: u32) -> bool {
        let Some(left) = self.held.get_mut(&key) else { return false };
        *left = left.saturating_sub(bytes);
        *left == 0
    }

    /// The peer leaves its place, or the queue for it.
    pub(super) fn give_up(&mut self, key: PeerKey) {
        if self.held.remove(&key).is_none() {
            self.waiting.retain(|&waiting| waiting != key);
        }
    }

    pub(super) fn is_held(&self, key: PeerKey) -> bool {
        self.held.contains_key(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_go_round_in_the_order_of_asking() {
        let mut turns = Turns::new(2, 1);
        [5, 3, 5, 4].into_iter().for_each(|key| turns.want(key));
        assert_eq!([turns.hand_out(), turns.hand_out(), turns.hand_out()], [Some(5), Some(3), None]);
        assert!(!turns.is_used_up(5, TURN_BYTES.0 - 1));
        assert!(turns.is_used_up(5, 1), "a turn has its least length, however short the pieces are");
        turns.give_up(5);
        turns.want(5);
        assert_eq!([turns.hand_out(), turns.hand_out()], [Some(4), None]);
        turns.give_up(5);
        turns.give_up(3);
        assert_eq!(turns.hand_out(), None, "nobody waits");
        assert!(!turns.is_used_up(3, u32::MAX), "it has no turn");
    }
}

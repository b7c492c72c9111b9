//! Decides which peer is served when: every peer may make requests, and a few are served at a time, in turns of about
//! one piece, first come, first served.
//!
//! Every link has an owner. Owners take turns, and the links of an owner take its turns one after the other; so an owner
//! gets no more by having many links. Where each owner has one link, all of this comes to a plain queue of links.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use metainfo::{Geometry, PieceIndex};

use crate::bits::PieceSet;
use crate::pace::{COMPETES_FOR, OTHERS_TURNS, OWNER_LINKS, REPEATS_EVERY, TURN_BYTES};
use crate::picker::PeerKey;

/// The places in which peers are served, and the queue for them.
#[derive(Debug)]
pub(super) struct Turns {
    places: usize,
    turn_bytes: u32,
    /// Bytes of the image that a byte of the geometry stands for.
    scale: u32,
    geometry: Geometry,
    /// Bytes left in the turn of each peer that has a place.
    held: BTreeMap<PeerKey, u32>,
    /// Bytes that were sent to all owners.
    given: u64,
    /// The owner of each link.
    owner_of: HashMap<PeerKey, u64>,
    owners: HashMap<u64, Owner>,
    /// The owners of waiting links, each once.
    line: VecDeque<u64>,
}

/// An owner, as long as it has a link.
#[derive(Debug)]
struct Owner {
    links: usize,
    /// Each link appears once.
    waiting: VecDeque<PeerKey>,
    held: usize,
    stalled: usize,
    /// When its last turn began, and when it was last served.
    last_turn: Option<Duration>,
    last_served: Option<Duration>,
    /// Bytes that had been sent to all owners then.
    given_then: u64,
    /// Pieces of which it was sent something, and the bytes it was sent in all.
    pieces: PieceSet,
    bytes: u64,
    repeats: bool,
}

impl Owner {
    fn new(geometry: Geometry) -> Owner {
        Owner {
            links: 0,
            waiting: VecDeque::new(),
            held: 0,
            stalled: 0,
            last_turn: None,
            last_served: None,
            given_then: 0,
            pieces: PieceSet::new(geometry),
            bytes: 0,
            repeats: false,
        }
    }

    /// Whether it wants to be served, or did a moment ago.
    fn competes(&self, now: Duration) -> bool {
        let is_recent = |at: Duration| now.saturating_sub(at) < COMPETES_FOR;
        self.held > 0 || !self.waiting.is_empty() || self.last_served.is_some_and(is_recent)
    }
}

impl Turns {
    /// This many places, but at least one. Each byte of the geometry stands for `scale` bytes of the image.
    pub(super) fn new(places: usize, geometry: Geometry, scale: u32) -> Turns {
        let (least, most) = TURN_BYTES;
        Turns {
            places: places.max(1),
            turn_bytes: geometry.piece_len().saturating_mul(scale).clamp(least, most),
            scale,
            geometry,
            held: BTreeMap::new(),
            given: 0,
            owner_of: HashMap::new(),
            owners: HashMap::new(),
            line: VecDeque::new(),
        }
    }

    /// A link of this owner.
    pub(super) fn join(&mut self, key: PeerKey, owner: u64) {
        self.owner_of.insert(key, owner);
        self.owners.entry(owner).or_insert_with(|| Owner::new(self.geometry)).links += 1;
    }

    /// The link is gone. What is known of its owner is forgotten with its last link.
    pub(super) fn leave(&mut self, key: PeerKey, is_stalled: bool) {
        self.give_up(key);
        let Some(id) = self.owner_of.remove(&key) else { return };
        let Some(owner) = self.owners.get_mut(&id) else { return };
        owner.links -= 1;
        owner.stalled -= usize::from(is_stalled);
        if owner.links == 0 {
            self.owners.remove(&id);
        }
    }

    /// The owner of a link is another one than was thought. It keeps its turn, or its wish for one.
    pub(super) fn set_owner(&mut self, key: PeerKey, owner: u64, is_stalled: bool) {
        let Some(&old) = self.owner_of.get(&key).filter(|&&old| old != owner) else { return };
        let left = self.held.get(&key).copied();
        let is_waiting = self.owners.get(&old).is_some_and(|old| old.waiting.contains(&key));
        self.leave(key, is_stalled);
        self.join(key, owner);
        let Some(entry) = self.owners.get_mut(&owner) else { return };
        entry.stalled += usize::from(is_stalled);
        if let Some(left) = left {
            entry.held += 1;
            self.held.insert(key, left);
        } else if is_waiting {
            self.want(key);
        }
    }

    /// The owner of a link.
    pub(super) fn owner_of(&self, key: PeerKey) -> Option<u64> {
        self.owner_of.get(&key).copied()
    }

    /// Whether the owner of this link has others.
    pub(super) fn has_siblings(&self, key: PeerKey) -> bool {
        self.owner(key).is_some_and(|owner| owner.links > 1)
    }

    /// Queues a peer, unless it already waits or has a place.
    pub(super) fn want(&mut self, key: PeerKey) {
        if self.is_held(key) {
            return;
        }
        let Some(&id) = self.owner_of.get(&key) else { return };
        let Some(owner) = self.owners.get_mut(&id) else { return };
        if owner.waiting.is_empty() {
            self.line.push_back(id);
        }
        if !owner.waiting.contains(&key) {
            owner.waiting.push_back(key);
        }
    }

    /// Gives a free place to the owner that has waited longest, of those that may have one, if there are both.
    pub(super) fn hand_out(&mut self, now: Duration) -> Option<PeerKey> {
        if self.held.len() >= self.places {
            return None;
        }
        let at = self.line.iter().position(|&id| self.may_have_turn(id, now))?;
        let id = self.line.remove(at)?;
        let owner = self.owners.get_mut(&id)?;
        let key = owner.waiting.pop_front()?;
        if !owner.waiting.is_empty() {
            self.line.push_back(id);
        }
        owner.held += 1;
        owner.last_turn = Some(now);
        self.held.insert(key, if owner.repeats { TURN_BYTES.0 } else { self.turn_bytes });
        Some(key)
    }

    /// Whether an owner that waits may have a turn now. One with several links has bytes on the wire for each that was
    /// served, so they are served one at a time while others compete, and less often: it may hand on nothing of what it
    /// gets. An owner that wants to be sent again what it was sent before has to let others go first.
    fn may_have_turn(&self, id: u64, now: Duration) -> bool {
        let Some(owner) = self.owners.get(&id) else { return false };
        if owner.links == 1 && !owner.repeats {
            return true;
        }
        let busy = owner.held + owner.stalled;
        let others = self.owners.iter().filter(|&(&other, _)| other != id).map(|(_, other)| other);
        if owner.repeats && others.clone().any(|other| !other.repeats && other.competes(now)) {
            let is_due = owner.last_turn.is_none_or(|at| now.saturating_sub(at) >= REPEATS_EVERY);
            return busy == 0 && is_due;
        }
        let competing = others.filter(|other| other.competes(now)).count();
        if competing == 0 {
            return busy < OWNER_LINKS;
        }
        let turns = u64::try_from(competing).expect("fits").max(OTHERS_TURNS);
        let is_due = self.given - owner.given_then >= u64::from(self.turn_bytes).saturating_mul(turns);
        busy == 0 && (is_due || owner.last_served.is_none_or(|at| now.saturating_sub(at) >= COMPETES_FOR))
    }

    /// Counts bytes of a piece, sent to the peer; returns whether they used up its turn.
    pub(super) fn is_used_up(&mut self, key: PeerKey, piece: PieceIndex, bytes: u32, now: Duration) -> bool {
        let (turn_bytes, scale, piece_len) = (self.turn_bytes, self.scale, self.geometry.piece_len());
        if let Some(owner) = self.owner_of.get(&key).and_then(|id| self.owners.get_mut(id)) {
            self.given += u64::from(bytes);
            owner.given_then = self.given;
            owner.last_served = Some(now);
            owner.pieces.insert(piece);
            owner.bytes += u64::from(bytes);
            let once = u64::from(owner.pieces.count()) * u64::from(piece_len) * u64::from(scale);
            // After a wrong hash or a deadline a little of it comes twice.
            owner.repeats = owner.bytes > once + 2 * u64::from(turn_bytes);
        }
        let Some(left) = self.held.get_mut(&key) else { return false };
        *left = left.saturating_sub(bytes);
        *left == 0
    }

    /// The peer takes nothing at the moment, or does again.
    pub(super) fn set_stalled(&mut self, key: PeerKey, is_stalled: bool) {
        if let Some(owner) = self.owner_of.get(&key).and_then(|id| self.owners.get_mut(id)) {
            owner.stalled = if is_stalled { owner.stalled + 1 } else { owner.stalled.saturating_sub(1) };
        }
    }

    /// The peer leaves its place, or the queue for it.
    pub(super) fn give_up(&mut self, key: PeerKey) {
        let Some(&id) = self.owner_of.get(&key) else { return };
        let Some(owner) = self.owners.get_mut(&id) else { return };
        if self.held.remove(&key).is_some() {
            owner.held -= 1;
        } else if !owner.waiting.is_empty() {
            owner.waiting.retain(|&waiting| waiting != key);
            if owner.waiting.is_empty() {
                self.line.retain(|&waiting| waiting != id);
            }
        }
    }

    pub(super) fn is_held(&self, key: PeerKey) -> bool {
        self.held.contains_key(&key)
    }

    fn owner(&self, key: PeerKey) -> Option<&Owner> {
        self.owner_of.get(&key).and_then(|id| self.owners.get(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: u32 = TURN_BYTES.0;
    const START: Duration = Duration::ZERO;

    fn piece(index: u32) -> PieceIndex {
        geometry().piece(index).expect("one of 64")
    }

    fn geometry() -> Geometry {
        Geometry::new(64 << 18, 1 << 18).expect("sane")
    }

    /// Links, each with its owner.
    fn turns(places: usize, links: &[(PeerKey, u64)]) -> Turns {
        let mut turns = Turns::new(places, geometry(), 1);
        links.iter().for_each(|&(key, owner)| turns.join(key, owner));
        turns
    }

    /// Serves turn after turn, in the order in which they began, and every link wants another one. How many of the
    /// turns each link got.
    fn serve(turns: &mut Turns, count: usize, mut next: impl FnMut(PeerKey) -> PieceIndex) -> HashMap<PeerKey, usize> {
        let (mut got, mut running) = (HashMap::new(), VecDeque::new());
        for round in 0..count {
            let now = Duration::from_millis(round as u64);
            running.extend(std::iter::from_fn(|| turns.hand_out(now)));
            let key = running.pop_front().expect("a turn");
            *got.entry(key).or_default() += 1;
            turns.is_used_up(key, next(key), TURN, now);
            turns.give_up(key);
            turns.want(key);
        }
        got
    }

    #[test]
    fn places_go_round_in_the_order_of_asking() {
        let mut turns = turns(2, &[(3, 3), (4, 4), (5, 5)]);
        [5, 3, 5, 4].into_iter().for_each(|key| turns.want(key));
        let next = |turns: &mut Turns| turns.hand_out(START);
        assert_eq!([next(&mut turns), next(&mut turns), next(&mut turns)], [Some(5), Some(3), None]);
        assert!(!turns.is_used_up(5, piece(0), TURN - 1, START));
        assert!(turns.is_used_up(5, piece(0), 1, START), "a turn has its least length, however short the pieces are");
        turns.give_up(5);
        turns.want(5);
        assert_eq!([next(&mut turns), next(&mut turns)], [Some(4), None]);
        turns.give_up(5);
        turns.give_up(3);
        assert_eq!(next(&mut turns), None, "nobody waits");
        assert!(!turns.is_used_up(3, piece(0), u32::MAX, START), "it has no turn");
    }

    #[test]
    fn owners_take_turns_and_their_links_take_the_owners_turns() {
        let links: Vec<(PeerKey, u64)> = (1..=40).map(|key| (key, 7)).chain([(50, 8), (51, 9)]).collect();
        for places in [1, 3] {
            let mut turns = turns(places, &links);
            links.iter().for_each(|&(key, _)| turns.want(key));
            let mut sent: HashMap<PeerKey, u32> = HashMap::new();
            // None of the forty is sent what another one was.
            let got = serve(&mut turns, 90, |key| {
                let mine = if key < 50 { &mut 0 } else { sent.entry(key).or_default() };
                *mine += 1;
                piece(if key < 50 { key } else { *mine % 64 })
            });
            let of_many: usize = (1..=40).filter_map(|key| got.get(&key)).sum();
            assert!(
                (15..=31).contains(&of_many) && got[&50] >= 29 && got[&51] >= 29,
                "{places} places: {of_many} of 90, {got:?}"
            );
            assert!((1..=40).all(|key| got.get(&key).is_none_or(|&count| count == 1)), "its links take turns too");
        }
    }

    #[test]
    fn who_is_alone_has_all_the_places_whatever_number_of_links_it_has() {
        let links: Vec<(PeerKey, u64)> = (1..=20).map(|key| (key, 7)).collect();
        let mut turns = turns(3, &links);
        links.iter().for_each(|&(key, _)| turns.want(key));
        assert_eq!(std::iter::from_fn(|| turns.hand_out(START)).count(), 3);
        // Links that take nothing do not hold up the others, as long as there are few.
        let mut stalled = 0;
        while let Some(&key) = turns.held.keys().next() {
            turns.give_up(key);
            turns.set_stalled(key, true);
            stalled += 1;
            let _ = turns.hand_out(START);
        }
        assert_eq!(stalled, OWNER_LINKS);
        turns.leave(1, true);
        assert_eq!(turns.hand_out(START), Some(9), "a stalled link has gone");
    }

    #[test]
    fn a_first_copy_goes_before_a_second_one() {
        let links = [(1, 7), (2, 7), (3, 8)];
        let mut turns = turns(2, &links);
        turns.want(1);
        for round in 0..10 {
            assert_eq!(turns.hand_out(START), Some(1), "{round}: nobody else wants anything");
            turns.is_used_up(1, piece(0), TURN, START);
            turns.give_up(1);
            turns.want(1);
        }
        turns.want(3);
        assert_eq!([turns.hand_out(START), turns.hand_out(START)], [Some(3), None]);
        turns.is_used_up(3, piece(5), TURN, START);
        turns.give_up(3);
        assert_eq!(turns.hand_out(COMPETES_FOR / 2), None, "the other one is about to ask for more");
        assert_eq!(turns.hand_out(COMPETES_FOR), Some(1), "it was not");
        turns.give_up(1);
        turns.want(1);
        turns.want(3);
        let later = COMPETES_FOR + REPEATS_EVERY;
        assert_eq!([turns.hand_out(later), turns.hand_out(later)], [Some(1), Some(3)], "from time to time");
        turns.give_up(1);
        turns.want(1);
        assert_eq!(turns.hand_out(later + REPEATS_EVERY / 2), None);
    }

    #[test]
    fn a_link_that_changes_its_owner_keeps_its_place() {
        let mut turns = turns(2, &[(1, 1), (2, 2), (3, 3)]);
        [1, 2, 3].into_iter().for_each(|key| turns.want(key));
        assert_eq!([turns.hand_out(START), turns.hand_out(START)], [Some(1), Some(2)]);
        (1..=3).for_each(|key| turns.set_owner(key, 9, false));
        assert!(turns.is_held(1) && turns.is_held(2) && turns.has_siblings(1));
        turns.give_up(2);
        assert_eq!(turns.hand_out(START), Some(3));
        (1..=3).for_each(|key| turns.leave(key, false));
        assert!(turns.owners.is_empty() && turns.held.is_empty() && turns.line.is_empty() && turns.owner_of.is_empty());
    }
}

//! One torrent's swarm as a value. Messages of peers, blocks, verdicts and ticks go in; messages, pieces to hash and
//! links to close come out.
//!
//! There is no lock, socket, thread or clock in here: times are durations since a start that the caller chooses, and
//! randomness comes with [`Setup`]. The engine drives this core over sockets, the simulator in the tests over simulated
//! links. The bytes of blocks never pass through it: a driver keeps them, and reports which block has arrived or was
//! sent.
//!
//! Every input may produce [`Action`]s, which the driver takes with [`Core::take_actions`] and carries out. For each
//! peer that it has to wake, it calls [`Core::compose`], sends the result, and serves the peer as long as
//! [`Core::next_upload`] returns a range. A piece goes through *asked* → [`Action::Verify`] → [`Core::verified`] or
//! [`Core::failed`].

mod exchange;
mod peer;
mod serving;
mod turns;
mod uploads;

use std::collections::BTreeMap;
use std::time::Duration;

use metainfo::{BLOCK_LEN, Geometry, PieceIndex};
use rand::rngs::StdRng;

pub use crate::core::exchange::Said;

use crate::bits::PieceSet;
use crate::core::peer::Peer;
use crate::core::turns::Turns;
use crate::pace::PLAN_AGAIN;
use crate::picker::{Ask, PeerKey, Picker};
use crate::super_seeding::SuperSeeding;

/// The initial values of a swarm.
#[derive(Debug)]
pub struct Setup {
    /// How the content is divided.
    pub geometry: Geometry,
    /// Bytes of the image that a full block stands for, a multiple of [`BLOCK_LEN`]. Only a simulation uses more than
    /// that: it moves several blocks as one to save time. Windows and turns are in bytes of the image.
    pub block_bytes: u32,
    /// The pieces that the store holds; `None` if its owner is still checking, see [`Core::found`] and [`Core::lacks`].
    pub have: Option<PieceSet>,
    /// Most bytes of incoming pieces, in the geometry's bytes. One piece is always allowed.
    pub budget: u64,
    /// Peers that are served at the same time, at least one.
    pub upload_slots: usize,
    /// The source of all random choices.
    pub rng: StdRng,
}

/// A task for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// There may be a message or a block to send to this peer.
    Wake(PeerKey),
    /// All blocks of this piece have arrived: hash and write it, then report the verdict to the core.
    Verify(PieceIndex),
    /// This piece is abandoned for now; its bytes may be dropped.
    Abandon(PieceIndex),
    /// Neither end of this link can ever send the other anything useful: close it.
    Finish(PeerKey),
    /// The swarm holds every piece.
    Complete,
}

/// The state of one torrent's swarm.
#[derive(Debug)]
pub struct Core {
    geometry: Geometry,
    block_bytes: u32,
    picker: Picker,
    /// The plan of a seeder whose pieces no other peer has at first, or has any more.
    plan: Option<SuperSeeding>,
    /// When it was last seen whether a new one is needed.
    looked_at: Option<Duration>,
    /// Pieces verified since the start, in that order; each peer's entry records how many of them that peer knows.
    have_log: Vec<PieceIndex>,
    bytes_have: u64,
    /// Pieces that are held and cannot be given: the store does not read them back, or not as they should be.
    withheld: PieceSet,
    peers: BTreeMap<PeerKey, Peer>,
    next_key: PeerKey,
    /// Number of peers that know we are interested.
    interesting: u32,
    turns: Turns,
    rng: StdRng,
    /// The driver empties it after each input, so it holds only a few entries for each peer or piece of that input.
    actions: Vec<Action>,
}

impl Core {
    /// A swarm without peers.
    pub fn new(setup: Setup) -> Core {
        let Setup { geometry, block_bytes, have, budget, upload_slots, mut rng } = setup;
        let held = have.clone().unwrap_or_else(|| PieceSet::new(geometry));
        let picker = match have {
            Some(have) => Picker::new(geometry, &have, budget, &mut rng),
            None => Picker::of_unknown(geometry, budget, &mut rng),
        };
        let plan = held.is_full().then(|| SuperSeeding::new(scaled(geometry, block_bytes / BLOCK_LEN), &mut rng));
        Core {
            geometry,
            block_bytes,
            picker,
            plan,
            looked_at: None,
            have_log: Vec::new(),
            bytes_have: held.iter().map(|piece| u64::from(geometry.len_of(piece))).sum(),
            withheld: PieceSet::new(geometry),
            peers: BTreeMap::new(),
            next_key: 1,
            interesting: 0,
            turns: Turns::new(upload_slots, geometry, block_bytes / BLOCK_LEN),
            rng,
            actions: Vec::new(),
        }
    }

    /// The actions caused by the inputs since the last call, in order.
    #[must_use]
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    // Membership.

    /// A peer has connected. Returns its key, which no other peer ever gets, and the bitfield to send, if the peer gets
    /// one.
    ///
    /// It is the only link of its owner; see [`Core::join_of`].
    pub fn join(&mut self, now: Duration) -> (PeerKey, Option<PieceSet>) {
        self.join_of(u64::from(self.next_key), now)
    }

    /// Like [`Core::join`], but the link belongs to this owner, which may have others. Owners share what this swarm
    /// gives, whatever number of links each of them has.
    pub fn join_of(&mut self, owner: u64, now: Duration) -> (PeerKey, Option<PieceSet>) {
        let key = self.next_key;
        self.next_key += 1;
        self.turns.join(key, owner);
        self.picker.add_peer(key);
        let mut shows_little = false;
        self.plan_again(now);
        if let Some(plan) = self.plan.as_mut().filter(|plan| !plan.is_over()) {
            plan.join(key, owner);
            shows_little = true;
        }
        self.peers.insert(key, Peer::new(now, self.have_log.len(), shows_little));
        let mut have = self.picker.have().clone();
        self.withheld.iter().for_each(|piece| {
            have.remove(piece);
        });
        (key, (!shows_little && have.count() > 0).then_some(have))
    }

    /// Once the plan is over, it is forgotten that pieces were sent if nobody who has them is left: the next room gets a plan, too.
    /// Who has been shown everything is in no plan any more.
    fn plan_again(&mut self, now: Duration) {
        let is_due = self.looked_at.is_none_or(|at| now.saturating_sub(at) >= PLAN_AGAIN);
        if !is_due || self.plan.as_ref().is_none_or(|plan| !plan.is_over()) {
            return;
        }
        self.looked_at = Some(now);
        let is_unheld = |&piece: &PieceIndex| self.picker.availability(piece) == 0 && !self.withheld.contains(piece);
        let unheld: Vec<PieceIndex> = self.geometry.pieces().filter(is_unheld).collect();
        if unheld.is_empty() {
            return;
        }
        let mut plan = SuperSeeding::of(unheld, scaled(self.geometry, self.block_bytes / BLOCK_LEN), &mut self.rng);
        // They have not heard yet that the last one is over.
        for (&key, _) in self.peers.iter().filter(|(_, peer)| peer.shows_little) {
            plan.join(key, self.turns.owner_of(key).unwrap_or(u64::from(key)));
        }
        self.plan = Some(plan);
    }

    /// A peer is gone; blocks requested from it are free again. False if it was gone before.
    pub fn leave(&mut self, key: PeerKey, now: Duration) -> bool {
        let Some(peer) = self.peers.remove(&key) else { return false };
        self.interesting -= u32::from(peer.is_interesting);
        self.picker.remove_peer(key);
        if let Some(plan) = self.plan.as_mut() {
            plan.leave(key);
        }
        self.turns.leave(key, peer.is_stalled);
        self.hand_out_turns(now);
        self.wake(self.plan.is_some());
        true
    }

    /// The link belongs to another owner than was thought.
    pub fn set_owner(&mut self, key: PeerKey, owner: u64, now: Duration) {
        if let Some(peer) = self.peers.get(&key) {
            self.turns.set_owner(key, owner, peer.is_stalled);
            if let Some(plan) = &mut self.plan {
                plan.set_owner(key, owner);
            }
            self.hand_out_turns(now);
        }
    }

    /// Whether the owner of this link has others.
    pub fn has_siblings(&self, key: PeerKey) -> bool {
        self.turns.has_siblings(key)
    }

    // Verdicts, reports of the owner, time.

    /// The piece's hash is right, and the piece is written.
    pub fn verified(&mut self, piece: PieceIndex) {
        self.picker.verified(piece);
        self.now_held(&[piece]);
        // A peer that waits for data from us gets the news together with that data, in one packet: it has enough to
        // request, and one packet per piece and peer is a good part of the load. Any message from it wakes its link.
        let listening = self.peers.iter().filter(|(_, peer)| peer.is_hungry || peer.uploads.is_empty());
        self.actions.extend(listening.map(|(&key, _)| Action::Wake(key)));
    }

    /// The piece's hash is wrong: all of it is requested again, from a single peer if it had several `givers`.
    pub fn failed(&mut self, piece: PieceIndex, givers: usize) {
        self.picker.failed(piece, givers > 1);
        self.wake(true);
    }

    /// The owner has checked: the store holds these pieces, and they are right. Pieces that were already known are
    /// ignored.
    pub fn found(&mut self, pieces: &[PieceIndex]) {
        let news: Vec<PieceIndex> = pieces.iter().copied().filter(|&piece| self.picker.found(piece)).collect();
        self.now_held(&news);
        self.wake(true);
    }

    /// The owner has checked: the store does not hold these pieces; they are wanted from now on.
    pub fn lacks(&mut self, pieces: &[PieceIndex]) {
        for &piece in pieces {
            self.picker.lacks(piece);
        }
        self.wake(true);
    }

    /// Checks deadlines; to be called every [`TICK`](crate::pace::TICK).
    pub fn tick(&mut self, now: Duration) {
        let overdue = self.picker.tick(now);
        for (key, ask) in overdue.cancels {
            self.cancel(key, ask);
        }
        self.actions.extend(overdue.abandoned.into_iter().map(Action::Abandon));
        let all = self.plan.as_mut().is_some_and(|plan| plan.tick(now));
        self.wake(all);
        // Who had to let others go first may have its turn when those want nothing any more.
        self.hand_out_turns(now);
    }

    // State.

    /// The pieces that are held.
    pub fn have(&self) -> &PieceSet {
        self.picker.have()
    }

    /// Bytes in the pieces that are held.
    pub fn bytes_have(&self) -> u64 {
        self.bytes_have
    }

    /// Number of connected peers.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Number of connected peers that have everything.
    pub fn seeder_count(&self) -> usize {
        self.peers.keys().filter(|&&key| self.picker.is_seeder(key)).count()
    }

    /// Missing pieces that no connected peer has.
    pub fn nowhere(&self) -> usize {
        self.picker.nowhere()
    }

    /// How long ago [`USEFUL_BYTES`](crate::pace::USEFUL_BYTES) were complete that came from the peer or went to it
    /// since the time before, or, if there was no such time, since when it is connected; `None` if it is not. A peer
    /// that takes a block now and then only keeps its place.
    pub fn idle(&self, key: PeerKey, now: Duration) -> Option<Duration> {
        self.peers.get(&key).map(|peer| now.saturating_sub(peer.last_useful))
    }

    // Shared by the inputs.

    fn now_held(&mut self, pieces: &[PieceIndex]) {
        self.bytes_have += pieces.iter().map(|&piece| u64::from(self.geometry.len_of(piece))).sum::<u64>();
        self.have_log.extend_from_slice(pieces);
        if self.picker.have().is_full() {
            self.actions.push(Action::Complete);
            let seeders = self.peers.keys().filter(|&&key| self.picker.is_seeder(key));
            self.actions.extend(seeders.map(|&key| Action::Finish(key)));
        }
    }

    fn cancel(&mut self, key: PeerKey, ask: Ask) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.cancels.push(ask);
            self.actions.push(Action::Wake(key));
        }
    }

    /// Wakes the links of all peers, or only of those that could get more requests.
    fn wake(&mut self, all: bool) {
        let woken = self.peers.iter().filter(|(_, peer)| all || peer.is_hungry);
        self.actions.extend(woken.map(|(&key, _)| Action::Wake(key)));
    }
}

/// The geometry of the image itself: each byte of the given geometry stands for `times` bytes of it.
fn scaled(geometry: Geometry, times: u32) -> Geometry {
    let piece_len = geometry.piece_len().checked_mul(times);
    let scaled = piece_len.and_then(|len| Geometry::new(geometry.content_len() * u64::from(times), len));
    scaled.expect("a block stands for no more than makes a piece too long")
}

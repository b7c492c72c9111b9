//! One torrent's swarm as a value: what peers said, blocks, verdicts and ticks go in; what to say, to serve, to hash and
//! to close comes out.
//!
//! There is no lock, socket, thread or clock in here: times are durations since a start that the caller chooses, and
//! randomness comes with [`Setup`]. The engine drives this over sockets, the simulator in the tests over simulated links.
//! Bytes of blocks never pass through: a driver keeps them, and says which block has come or gone.
//!
//! Every input may leave [`Action`]s behind, which the driver takes with [`Core::take_actions`] and carries out. For each
//! peer that is to be woken it calls [`Core::compose`] and sends that, and serves it as long as [`Core::next_upload`]
//! names something. A piece goes through *asked* → [`Action::Verify`] → [`Core::verified`] or [`Core::failed`].

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
use crate::picker::{Ask, PeerKey, Picker};
use crate::super_seeding::SuperSeeding;

/// What a swarm starts with.
#[derive(Debug)]
pub struct Setup {
    /// How the content is cut.
    pub geometry: Geometry,
    /// Bytes of the image that a full block stands for, a multiple of [`BLOCK_LEN`]. More than that only in a simulation,
    /// which moves several blocks as one to save time: windows and turns are in bytes of the image.
    pub block_bytes: u32,
    /// What the store holds; `None` if its owner is still looking, see [`Core::found`] and [`Core::lacks`].
    pub have: Option<PieceSet>,
    /// Most bytes of pieces on their way in, in the geometry's bytes. One piece is always allowed.
    pub budget: u64,
    /// Peers served at the same moment, at least one.
    pub upload_slots: usize,
    /// Where all random choices come from.
    pub rng: StdRng,
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// There may be something to say to this peer, or to serve.
    Wake(PeerKey),
    /// All blocks of this piece have come: hash and write it, then tell the core.
    Verify(PieceIndex),
    /// This piece is given up for now; its bytes may go.
    Abandon(PieceIndex),
    /// Neither end of this link can ever give the other anything: close it.
    Finish(PeerKey),
    /// Every piece is held.
    Complete,
}

/// The state of one torrent's swarm.
#[derive(Debug)]
pub struct Core {
    geometry: Geometry,
    block_bytes: u32,
    picker: Picker,
    /// For a seeder, whose pieces nobody else has at first.
    plan: Option<SuperSeeding>,
    /// Pieces verified since the start, in that order; each peer's entry knows how far that peer was told.
    have_log: Vec<PieceIndex>,
    bytes_have: u64,
    /// Pieces that are held and cannot be given: the store does not read them back, or not as they should be.
    withheld: PieceSet,
    peers: BTreeMap<PeerKey, Peer>,
    next_key: PeerKey,
    /// Peers we have told that we are interested.
    interesting: u32,
    turns: Turns,
    rng: StdRng,
    /// Bounded by the driver, which empties it after each input: a few for each peer or piece of that input.
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
        let image = scaled(geometry, block_bytes / BLOCK_LEN);
        let plan = held.is_full().then(|| SuperSeeding::new(image, &mut rng));
        Core {
            geometry,
            block_bytes,
            picker,
            plan,
            have_log: Vec::new(),
            bytes_have: held.iter().map(|piece| u64::from(geometry.len_of(piece))).sum(),
            withheld: PieceSet::new(geometry),
            peers: BTreeMap::new(),
            next_key: 1,
            interesting: 0,
            turns: Turns::new(upload_slots, image.piece_len()),
            rng,
            actions: Vec::new(),
        }
    }

    /// What the inputs since the last call have led to, in their order.
    #[must_use]
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    // Who is in.

    /// A peer is connected. Its key, which no other peer gets ever again, and the bitfield to send, if it is to see one.
    pub fn join(&mut self, now: Duration) -> (PeerKey, Option<PieceSet>) {
        let key = self.next_key;
        self.next_key += 1;
        self.picker.add_peer(key);
        let mut shows_little = false;
        if let Some(plan) = self.plan.as_mut().filter(|plan| !plan.is_over()) {
            plan.join(key);
            shows_little = true;
        }
        self.peers.insert(key, Peer::new(now, self.have_log.len(), shows_little));
        let mut have = self.picker.have().clone();
        self.withheld.iter().for_each(|piece| {
            have.remove(piece);
        });
        (key, (!shows_little && have.count() > 0).then_some(have))
    }

    /// A peer has gone; what it was asked for is free again. False if it had gone before.
    pub fn leave(&mut self, key: PeerKey, now: Duration) -> bool {
        let Some(peer) = self.peers.remove(&key) else { return false };
        self.interesting -= u32::from(peer.is_interesting);
        self.picker.remove_peer(key);
        if let Some(plan) = self.plan.as_mut() {
            plan.leave(key);
        }
        self.give_up_turn(key, now);
        self.wake(self.plan.is_some());
        true
    }

    // Verdicts, the owner's news, time.

    /// The piece's hash is right and it is written.
    pub fn verified(&mut self, piece: PieceIndex) {
        self.picker.verified(piece);
        self.now_held(&[piece]);
        // Who waits for something that it asked of us hears of the piece together with that, in one packet: it has enough
        // to ask for, and a packet for each piece to each peer is a good part of the load. Anything it says wakes its link.
        let listening = self.peers.iter().filter(|(_, peer)| peer.is_hungry || peer.uploads.is_empty());
        self.actions.extend(listening.map(|(&key, _)| Action::Wake(key)));
    }

    /// The piece's hash is wrong: all of it is asked for again, of a single peer if `givers` were several.
    pub fn failed(&mut self, piece: PieceIndex, givers: usize) {
        self.picker.failed(piece, givers > 1);
        self.wake(true);
    }

    /// The owner has looked: the store holds these pieces, right. What was known already is passed over.
    pub fn found(&mut self, pieces: &[PieceIndex]) {
        let news: Vec<PieceIndex> = pieces.iter().copied().filter(|&piece| self.picker.found(piece)).collect();
        self.now_held(&news);
        self.wake(true);
    }

    /// The owner has looked: the store does not hold these pieces, which are wanted from now on.
    pub fn lacks(&mut self, pieces: &[PieceIndex]) {
        for &piece in pieces {
            self.picker.lacks(piece);
        }
        self.wake(true);
    }

    /// Looks at deadlines; to be called every [`TICK`](crate::pace::TICK).
    pub fn tick(&mut self, now: Duration) {
        let overdue = self.picker.tick(now);
        for (key, ask) in overdue.cancels {
            self.cancel(key, ask);
        }
        self.actions.extend(overdue.abandoned.into_iter().map(Action::Abandon));
        let all = self.plan.as_mut().is_some_and(|plan| plan.tick(now));
        self.wake(all);
    }

    // How it stands.

    /// The pieces that are held.
    pub fn have(&self) -> &PieceSet {
        self.picker.have()
    }

    /// Bytes in those pieces.
    pub fn bytes_have(&self) -> u64 {
        self.bytes_have
    }

    /// Peers connected.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Those of them that have everything.
    pub fn seeder_count(&self) -> usize {
        self.peers.keys().filter(|&&key| self.picker.is_seeder(key)).count()
    }

    /// Missing pieces that no connected peer has.
    pub fn nowhere(&self) -> usize {
        self.picker.nowhere()
    }

    /// How long no block has come from the peer or gone to it; `None` if it is not connected.
    pub fn idle(&self, key: PeerKey, now: Duration) -> Option<Duration> {
        self.peers.get(&key).map(|peer| now.saturating_sub(peer.last_payload.unwrap_or(peer.since)))
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

    /// Wakes all peers' links, or those of peers that could be asked for more.
    fn wake(&mut self, all: bool) {
        let woken = self.peers.iter().filter(|(_, peer)| all || peer.is_hungry);
        self.actions.extend(woken.map(|(&key, _)| Action::Wake(key)));
    }
}

/// The image itself, of whose bytes each of the geometry's stands for `times`.
fn scaled(geometry: Geometry, times: u32) -> Geometry {
    let piece_len = geometry.piece_len().checked_mul(times);
    let scaled = piece_len.and_then(|len| Geometry::new(geometry.content_len() * u64::from(times), len));
    scaled.expect("a block stands for no more than makes a piece too long")
}

//! Decides which block to request next from which peer: rarest first, ties at random. Pure: no I/O, no clock, no
//! internal randomness.
//!
//! States of a piece: *missing* (in the bucket of its availability) → *started* (blocks free, requested or received) →
//! *hashing* → *have*, or back to *missing* if the hash was wrong. Only missing pieces are in buckets, and only started
//! ones have blocks. A piece may begin as *unknown*: its owner is still checking whether it is there.
//!
//! A peer gets requests in this order: for the piece it is giving; for a piece whose giver is gone; for a new piece, if
//! memory allows; for a share of a piece that others are giving (this is how large pieces come from many peers); and,
//! when no piece is left to start, for blocks that were requested from others and have not arrived.

mod buckets;
mod choice;
mod release;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use metainfo::{Geometry, PieceIndex};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::bits::PieceSet;

/// An answer may take this long, or four times as long as this peer's answers usually take.
const DEADLINE_MIN: Duration = Duration::from_secs(2);
/// The upper bound, however slow the peer has been: otherwise each answer could come a little later than the one
/// before, without end. On slow links, requests wait their turn for a minute or so: with 20 seconds here, fifty
/// machines on links of 3 Mbit/s took four times as long in the simulator.
const DEADLINE_MAX: Duration = Duration::from_secs(300);
/// A peer that has a piece alone may take this long before another peer gets it, twice as long at its next try, and so
/// on. An honest slow peer needs the time, and a liar has to be bypassed.
const ALONE_PATIENCE: Duration = Duration::from_secs(20);
/// A piece that holds memory while none of its blocks arrive is abandoned after this time, if the memory is needed.
const ABANDON_AFTER: Duration = Duration::from_secs(4);
/// A peer that was late is tried again after this time: the others may be worse, or gone.
const PROBE_AFTER: Duration = Duration::from_secs(2);
/// Blocks requested this long ago, or twice as long as their giver usually takes, may be requested from a second peer
/// in the end game.
const END_GAME_AGE: Duration = Duration::from_millis(100);
/// Blocks that an idle peer takes over at a time in the end game.
const END_GAME_BLOCKS: usize = 16;

/// A peer's number, chosen by the caller.
pub type PeerKey = u32;

/// One block to request or to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ask {
    /// Which piece.
    pub piece: PieceIndex,
    /// Which block of it.
    pub block: u32,
}

/// The result of an arriving block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// New.
    Fresh {
        /// Whether the piece now has all its blocks and waits for its hash.
        piece_complete: bool,
        /// A peer that has a request for the same block and need not send it.
        cancel: Option<PeerKey>,
    },
    /// The block is already here, or not needed.
    Useless,
}

/// The effects of passed deadlines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Overdue {
    /// Requests to cancel.
    pub cancels: Vec<(PeerKey, Ask)>,
    /// Pieces abandoned for now; their bytes may be dropped.
    pub abandoned: Vec<PieceIndex>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Missing,
    Started,
    Hashing,
    Have,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Free,
    Asked { peer: PeerKey, at: Duration, second: Option<PeerKey> },
    Got,
}

#[derive(Debug)]
struct Started {
    blocks: Vec<Block>,
    free: u32,
    got: u32,
    /// No block before this one is free.
    cursor: usize,
    giver: Option<PeerKey>,
    last_block_at: Duration,
}

/// A piece whose hash was wrong with several givers. Next time it comes from one giver alone, which shows who lies.
#[derive(Debug, Default)]
struct Alone {
    /// The peer that has to deliver all of it, and since when.
    giver: Option<(PeerKey, Duration)>,
    /// Givers that did not finish it, one entry per try.
    tried: Vec<PeerKey>,
}

impl Alone {
    fn give(&mut self, peer: PeerKey, now: Duration) {
        if self.giver.is_none_or(|(giver, _)| giver != peer) {
            self.take();
            self.giver = Some((peer, now));
        }
    }

    /// Its giver has not finished it.
    fn take(&mut self) {
        self.tried.extend(self.giver.take().map(|(giver, _)| giver));
    }

    fn tries(&self, peer: PeerKey) -> usize {
        self.tried.iter().filter(|&&tried| tried == peer).count()
    }

    fn patience(&self, peer: PeerKey) -> Duration {
        // Ten tries take five hours.
        ALONE_PATIENCE * (1 << self.tries(peer).min(10))
    }
}

#[derive(Debug)]
struct View {
    has: PieceSet,
    /// Pieces that it has and we lack.
    wanted: u32,
    /// Those of them that are missing and not started.
    unstarted: u32,
    giving: Option<PieceIndex>,
    asked: VecDeque<(Ask, Duration)>,
    outstanding: usize,
    usual: Duration,
    can_ask: bool,
    /// It was late: until it answers, it gets one request at a time, and before `probe_at` only for blocks that no
    /// better peer has.
    is_snubbed: bool,
    probe_at: Duration,
}

impl View {
    fn is_trusted(&self, now: Duration) -> bool {
        !self.is_snubbed || now >= self.probe_at
    }

    /// Whether the piece may be requested from it and it is not late.
    fn may_give(&self, piece: PieceIndex) -> bool {
        self.can_ask && !self.is_snubbed && self.has.contains(piece)
    }

    fn snub(&mut self, now: Duration) {
        self.is_snubbed = true;
        self.probe_at = now + PROBE_AFTER;
    }
}

/// The state of the download.
#[derive(Debug)]
pub struct Picker {
    geometry: Geometry,
    state: Vec<State>,
    have: PieceSet,
    missing: PieceSet,
    unknown: u32,
    availability: Vec<usize>,
    /// `buckets[a]` holds the missing pieces that `a` peers have; `place` is a missing piece's index in its bucket.
    buckets: Vec<Vec<PieceIndex>>,
    place: Vec<usize>,
    started: BTreeMap<PieceIndex, Started>,
    /// Started pieces with free blocks.
    open: Vec<PieceIndex>,
    alone: BTreeMap<PieceIndex, Alone>,
    peers: BTreeMap<PeerKey, View>,
    bytes_in_flight: u64,
    budget: u64,
}

impl Picker {
    /// A picker that keeps at most `budget` bytes of pieces started and hashing (but always allows one piece).
    pub fn new(geometry: Geometry, have: &PieceSet, budget: u64, rng: &mut impl Rng) -> Picker {
        let count = usize::try_from(geometry.piece_count()).expect("fits usize");
        let mut picker = Picker {
            geometry,
            state: vec![State::Have; count],
            have: have.clone(),
            missing: PieceSet::new(geometry),
            unknown: 0,
            availability: vec![0; count],
            buckets: vec![Vec::new()],
            place: vec![0; count],
            started: BTreeMap::new(),
            open: Vec::new(),
            alone: BTreeMap::new(),
            peers: BTreeMap::new(),
            bytes_in_flight: 0,
            budget: budget.max(u64::from(geometry.piece_len())),
        };
        let mut lacking: Vec<_> = geometry.pieces().filter(|&piece| !have.contains(piece)).collect();
        lacking.shuffle(rng);
        for piece in lacking {
            picker.state[piece.as_usize()] = State::Missing;
            picker.enter_bucket(piece);
        }
        picker
    }

    /// The same, but [`Picker::found`] and [`Picker::lacks`] have yet to report which pieces are there.
    pub fn of_unknown(geometry: Geometry, budget: u64, rng: &mut impl Rng) -> Picker {
        let mut picker = Picker::new(geometry, &PieceSet::full(geometry), budget, rng);
        picker.have = PieceSet::new(geometry);
        picker.state.fill(State::Unknown);
        picker.unknown = geometry.piece_count();
        picker
    }

    /// An unknown piece is there, and right. True if this is new.
    pub fn found(&mut self, piece: PieceIndex) -> bool {
        if self.state.get(piece.as_usize()) != Some(&State::Unknown) {
            return false;
        }
        self.unknown -= 1;
        self.hold(piece);
        true
    }

    /// An unknown piece is missing or wrong: it is wanted from now on. True if this is new.
    pub fn lacks(&mut self, piece: PieceIndex) -> bool {
        if self.state.get(piece.as_usize()) != Some(&State::Unknown) {
            return false;
        }
        self.unknown -= 1;
        self.state[piece.as_usize()] = State::Missing;
        self.enter_bucket(piece);
        true
    }

    /// The pieces that are verified.
    pub fn have(&self) -> &PieceSet {
        &self.have
    }

    /// How many connected peers have `piece`.
    pub fn availability(&self, piece: PieceIndex) -> usize {
        self.availability.get(piece.as_usize()).copied().unwrap_or(0)
    }

    /// How many missing pieces no connected peer has.
    pub fn nowhere(&self) -> usize {
        self.buckets.first().map_or(0, Vec::len)
    }

    /// Adds a peer without pieces that allows no requests yet.
    pub fn add_peer(&mut self, peer: PeerKey) {
        let view = View {
            has: PieceSet::new(self.geometry),
            wanted: 0,
            unstarted: 0,
            giving: None,
            asked: VecDeque::new(),
            outstanding: 0,
            usual: Duration::ZERO,
            can_ask: false,
            is_snubbed: false,
            probe_at: Duration::ZERO,
        };
        self.peers.insert(peer, view);
    }

    /// A peer is gone; blocks requested from it are free again.
    pub fn remove_peer(&mut self, peer: PeerKey) {
        self.release_all(peer);
        let Some(view) = self.peers.remove(&peer) else { return };
        for piece in view.has.iter() {
            self.change_availability(piece, false);
        }
    }

    /// The peer has `piece`. True if we lack it.
    pub fn peer_has(&mut self, peer: PeerKey, piece: PieceIndex) -> bool {
        let Some(view) = self.peers.get_mut(&peer) else { return false };
        let Some(&state) = self.state.get(piece.as_usize()) else { return false };
        if !view.has.insert(piece) {
            return false;
        }
        view.wanted += u32::from(state != State::Have);
        view.unstarted += u32::from(state == State::Missing);
        self.change_availability(piece, true);
        state != State::Have
    }

    /// The peer does not give us `piece`, whatever it said before; what it was asked for of it is free again. True if nobody is
    /// left who could give it, so that it was given up for now, and its bytes may be dropped.
    pub fn peer_lacks(&mut self, peer: PeerKey, piece: PieceIndex) -> bool {
        let Some(view) = self.peers.get_mut(&peer) else { return false };
        let Some(&state) = self.state.get(piece.as_usize()) else { return false };
        if !view.has.remove(piece) {
            return false;
        }
        view.wanted -= u32::from(state != State::Have);
        view.unstarted -= u32::from(state == State::Missing);
        view.giving = view.giving.filter(|&giving| giving != piece);
        let (its, others) = std::mem::take(&mut view.asked).into_iter().partition(|(ask, _)| ask.piece == piece);
        view.asked = others;
        let its: VecDeque<(Ask, Duration)> = its;
        its.into_iter().for_each(|(ask, _)| self.release(peer, ask));
        if let Some(started) = self.started.get_mut(&piece).filter(|started| started.giver == Some(peer)) {
            started.giver = None;
        }
        self.change_availability(piece, false);
        let is_given_up = self.availability(piece) == 0 && self.started.remove(&piece).is_some();
        if is_given_up {
            self.open.retain(|&open| open != piece);
            self.back_to_missing(piece);
        }
        is_given_up
    }

    /// Whether the peer has anything we lack.
    pub fn wants_from(&self, peer: PeerKey) -> bool {
        self.peers.get(&peer).is_some_and(|view| view.wanted > 0)
    }

    /// Number of blocks requested from the peer and not received yet.
    pub fn outstanding(&self, peer: PeerKey) -> usize {
        self.peers.get(&peer).map_or(0, |view| view.outstanding)
    }

    /// Whether the peer has every piece.
    pub fn is_seeder(&self, peer: PeerKey) -> bool {
        self.peers.get(&peer).is_some_and(|view| view.has.is_full())
    }

    /// The peer allows requests, or no longer does; in that case blocks requested from it are free again, and it counts
    /// as late.
    pub fn set_can_ask(&mut self, peer: PeerKey, can_ask: bool) {
        if let Some(view) = self.peers.get_mut(&peer) {
            view.can_ask = can_ask;
            if !can_ask
                && view.outstanding > 0
                && let Some(&(_, at)) = view.asked.front()
            {
                view.snub(at);
            }
        }
        if !can_ask {
            self.release_all(peer);
        }
    }

    /// Blocks to request from `peer` so that it has `limit` outstanding; they count as requested from now on.
    pub fn request(&mut self, peer: PeerKey, limit: usize, now: Duration, rng: &mut impl Rng) -> Vec<Ask> {
        let mut asks = Vec::new();
        let Some(view) = self.peers.get(&peer) else { return asks };
        if !view.can_ask || view.wanted == 0 {
            return asks;
        }
        let was_idle = view.outstanding == 0;
        let limit = if view.is_snubbed { 1 } else { limit };
        let room = limit.saturating_sub(view.outstanding);
        while asks.len() < room {
            let Some(piece) = self.choose(peer, now, rng) else { break };
            self.ask_free_blocks(peer, piece, room, now, &mut asks);
        }
        if asks.is_empty() && was_idle && room > 0 && self.is_all_started() {
            self.end_game(peer, room.min(END_GAME_BLOCKS), now, &mut asks);
        }
        if let Some(view) = self.peers.get_mut(&peer) {
            view.outstanding += asks.len();
            view.asked.extend(asks.iter().map(|&ask| (ask, now)));
        }
        asks
    }

    /// A block that was requested from `peer` at some time has arrived from it.
    pub fn received(&mut self, peer: PeerKey, ask: Ask, now: Duration) -> Received {
        let Some(started) = self.started.get_mut(&ask.piece) else { return Received::Useless };
        let index = usize::try_from(ask.block).expect("fits usize");
        let Some(block) = started.blocks.get_mut(index) else { return Received::Useless };
        let mut cancel = None;
        let mut was_asked = None;
        match *block {
            Block::Got => return Received::Useless,
            // The request was taken back, but the block arrived all the same.
            Block::Free => {
                started.free -= 1;
                if started.free == 0 {
                    self.open.retain(|&open| open != ask.piece);
                }
            }
            Block::Asked { peer: first, at, second } => {
                was_asked = Some(at).filter(|_| first == peer || second == Some(peer));
                for asked in [Some(first), second].into_iter().flatten() {
                    if let Some(view) = self.peers.get_mut(&asked) {
                        view.outstanding = view.outstanding.saturating_sub(1);
                    }
                    if asked != peer {
                        cancel = Some(asked);
                    }
                }
            }
        }
        *block = Block::Got;
        started.got += 1;
        started.last_block_at = now;
        let piece_complete = usize::try_from(started.got).is_ok_and(|got| got == started.blocks.len());
        if let Some(view) = self.peers.get_mut(&peer) {
            view.is_snubbed = false;
            if let Some(at) = was_asked {
                view.usual = (view.usual * 7 + now.saturating_sub(at)) / 8;
            }
            while view.asked.front().is_some_and(|&(front, _)| !is_asked(&self.started, peer, front)) {
                view.asked.pop_front();
            }
        }
        if piece_complete {
            self.started.remove(&ask.piece);
            self.state[ask.piece.as_usize()] = State::Hashing;
        }
        Received::Fresh { piece_complete, cancel }
    }

    /// The piece's hash was right, and the piece is written.
    pub fn verified(&mut self, piece: PieceIndex) {
        if self.state[piece.as_usize()] != State::Hashing {
            return;
        }
        self.bytes_in_flight -= u64::from(self.geometry.len_of(piece));
        self.alone.remove(&piece);
        self.hold(piece);
    }

    fn hold(&mut self, piece: PieceIndex) {
        self.state[piece.as_usize()] = State::Have;
        self.have.insert(piece);
        for view in self.peers.values_mut().filter(|view| view.has.contains(piece)) {
            view.wanted -= 1;
        }
    }

    /// Whether no further piece can be started.
    fn is_all_started(&self) -> bool {
        self.missing.count() == 0 && self.unknown == 0
    }

    /// The piece's hash was wrong: all of it is requested again, from a single peer if `alone`.
    pub fn failed(&mut self, piece: PieceIndex, alone: bool) {
        if self.state[piece.as_usize()] != State::Hashing {
            return;
        }
        if alone {
            self.alone.entry(piece).or_default().giver = None;
        } else {
            self.alone.remove(&piece);
        }
        self.back_to_missing(piece);
    }

    /// Takes requests back from peers that have not answered in time, and abandons pieces that only hold memory.
    pub fn tick(&mut self, now: Duration) -> Overdue {
        let mut overdue = Overdue::default();
        let late: Vec<PeerKey> = self.peers.keys().copied().collect();
        for peer in late {
            self.release_late(peer, now, &mut overdue.cancels);
        }
        self.give_up_alone(now, &mut overdue);
        if self.has_room() || self.is_all_started() {
            return overdue;
        }
        let stuck = |started: &Started| now.saturating_sub(started.last_block_at) >= ABANDON_AFTER;
        let stale: Vec<PieceIndex> =
            self.started.iter().filter(|(_, started)| stuck(started)).map(|(&piece, _)| piece).collect();
        for piece in stale {
            self.abandon(piece, now, &mut overdue);
        }
        overdue
    }
}

fn is_asked(started: &BTreeMap<PieceIndex, Started>, peer: PeerKey, ask: Ask) -> bool {
    let index = usize::try_from(ask.block).expect("fits usize");
    started.get(&ask.piece).and_then(|started| started.blocks.get(index)).is_some_and(
        |block| matches!(block, Block::Asked { peer: first, second, .. } if *first == peer || *second == Some(peer)),
    )
}

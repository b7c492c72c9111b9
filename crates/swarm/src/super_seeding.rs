//! Super-seeding (BEP 16): decides which pieces a seeder shows to which peer, so that it sends each first copy once.
//! Pure.
//!
//! While some pieces are on no peer yet, each peer is shown a small window of such pieces that no other peer is shown
//! (the idea of BEP 16). The window is refilled the moment one has been sent; no peer waits for proof that it was
//! passed on. So all receivers fetch different pieces, and get the rest from each other. After that, every peer is
//! shown everything.
//!
//! What is shown to one peer is kept from the others, so nobody is trusted with much of it at once: a window is small at
//! first, and grows with what was fetched. The links of one owner have one window between them.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

use metainfo::{Geometry, PieceIndex};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::bits::PieceSet;

/// Bytes shown to one peer beyond what was sent to it: more than it keeps requested, so that it never runs dry.
const WINDOW_BYTES: u32 = 8 << 20;
/// Fewest pieces shown, if pieces are larger than that, and most pieces shown, if they are tiny.
const WINDOW_PIECES: (u32, u32) = (2, 256);
/// Bytes shown to an owner of which nothing is known.
const FIRST_WINDOW_BYTES: u32 = 1 << 20;

/// How long fast peers wait for the last first copies before they may fetch them too.
const PATIENCE: Duration = Duration::from_millis(500);

/// The seeder's plan for the pieces that no other peer has.
#[derive(Debug)]
pub struct SuperSeeding {
    geometry: Geometry,
    /// Most pieces in a window, and those of a new one.
    window: usize,
    first_window: usize,
    /// Not shown to any peer yet, in random order.
    fresh: VecDeque<PieceIndex>,
    peers: BTreeMap<u32, Shown>,
    owners: BTreeMap<u64, Owner>,
    /// The time since which a fast peer has had nothing to fetch while the last first copies are being sent.
    waiting_since: Option<Duration>,
    is_over: bool,
}

/// Who has one or more of the links.
#[derive(Debug)]
struct Owner {
    links: usize,
    window: usize,
}

#[derive(Debug)]
struct Shown {
    owner: u64,
    pieces: PieceSet,
    /// Shown and not yet sent in full, with the bytes that remain.
    open: Vec<(PieceIndex, u32)>,
}

impl SuperSeeding {
    /// A plan for all pieces, none of them sent.
    pub fn new(geometry: Geometry, rng: &mut impl Rng) -> SuperSeeding {
        SuperSeeding::of(geometry.pieces().collect(), geometry, rng)
    }

    /// A plan for these pieces of an image, which no peer has.
    pub fn of(mut fresh: Vec<PieceIndex>, geometry: Geometry, rng: &mut impl Rng) -> SuperSeeding {
        fresh.shuffle(rng);
        let (least, most) = WINDOW_PIECES;
        let pieces =
            |bytes: u32| usize::try_from((bytes / geometry.piece_len()).clamp(least, most)).expect("at most 256");
        SuperSeeding {
            geometry,
            window: pieces(WINDOW_BYTES),
            first_window: pieces(FIRST_WINDOW_BYTES),
            fresh: fresh.into(),
            peers: BTreeMap::new(),
            owners: BTreeMap::new(),
            waiting_since: None,
            is_over: false,
        }
    }

    /// Whether every piece has been sent once: from now on, show everything to every peer.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// A link of this owner; ask [`SuperSeeding::refill`] what to show it.
    pub fn join(&mut self, peer: u32, owner: u64) {
        let pieces = PieceSet::new(self.geometry);
        if self.peers.insert(peer, Shown { owner, pieces, open: Vec::new() }).is_none() {
            self.add_link(owner);
        }
    }

    /// The link belongs to another owner than was thought.
    pub fn set_owner(&mut self, peer: u32, owner: u64) {
        let Some(shown) = self.peers.get_mut(&peer) else { return };
        let old = std::mem::replace(&mut shown.owner, owner);
        self.add_link(owner);
        self.remove_link(old);
    }

    fn add_link(&mut self, owner: u64) {
        let window = self.first_window;
        self.owners.entry(owner).or_insert(Owner { links: 0, window }).links += 1;
    }

    fn remove_link(&mut self, owner: u64) {
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.links -= 1;
            if entry.links == 0 {
                self.owners.remove(&owner);
            }
        }
    }

    /// A peer is gone; pieces that were shown to it but not sent go to another peer.
    pub fn leave(&mut self, peer: u32) {
        let Some(shown) = self.peers.remove(&peer) else { return };
        self.remove_link(shown.owner);
        for (piece, _) in shown.open {
            if !self.peers.values().any(|other| other.pieces.contains(piece)) {
                self.fresh.push_front(piece);
            }
        }
    }

    /// `bytes` of `piece` were sent to `peer`; true if that made room in its window.
    pub fn sent(&mut self, peer: u32, piece: PieceIndex, bytes: u32) -> bool {
        let Some(shown) = self.peers.get_mut(&peer) else { return false };
        let Some(at) = shown.open.iter().position(|&(open, _)| open == piece) else { return false };
        let left = &mut shown.open[at].1;
        *left = left.saturating_sub(bytes);
        if *left > 0 {
            return false;
        }
        shown.open.swap_remove(at);
        if let Some(owner) = self.owners.get_mut(&shown.owner) {
            owner.window = (owner.window + 1).min(self.window);
        }
        self.close_everywhere(piece);
        true
    }

    /// A peer announces `piece`, so we need not send a first copy of it. True if that made room in a window.
    pub fn seen(&mut self, piece: PieceIndex) -> bool {
        self.close_everywhere(piece)
    }

    fn close_everywhere(&mut self, piece: PieceIndex) -> bool {
        let mut made_room = false;
        for shown in self.peers.values_mut() {
            let before = shown.open.len();
            shown.open.retain(|&(open, _)| open != piece);
            made_room |= shown.open.len() < before;
        }
        made_room
    }

    /// The pieces to show to `peer` now. `is_held` says whether another peer already has a piece.
    pub fn refill(&mut self, peer: u32, now: Duration, is_held: impl Fn(PieceIndex) -> bool) -> Vec<PieceIndex> {
        let mut news = Vec::new();
        if self.is_over || !self.peers.contains_key(&peer) {
            return news;
        }
        let (open, window) = self.window_of(peer);
        let mut room = window.saturating_sub(open);
        while room > 0 {
            match self.fresh.pop_front() {
                Some(piece) if is_held(piece) => {}
                Some(piece) => {
                    self.show(peer, piece, &mut news);
                    room -= 1;
                }
                None => break,
            }
        }
        if self.fresh.is_empty() && open == 0 && news.is_empty() {
            // This peer was fast: it takes over a piece that was shown to another peer, which has received nothing of
            // it yet.
            match self.take_untouched(peer) {
                Some(piece) => self.show(peer, piece, &mut news),
                None if self.peers.values().all(|shown| shown.open.is_empty()) => self.is_over = true,
                None => self.waiting_since = self.waiting_since.or(Some(now)),
            }
        }
        news
    }

    /// Ends the plan if only pieces in transit are left and their receivers are slow; true if it ended now.
    pub fn tick(&mut self, now: Duration) -> bool {
        let has_waited = self.waiting_since.is_some_and(|since| now.saturating_sub(since) >= PATIENCE);
        let ends = has_waited && !self.is_over;
        self.is_over |= ends;
        ends
    }

    fn take_untouched(&mut self, peer: u32) -> Option<PieceIndex> {
        let geometry = self.geometry;
        let untouched = |shown: &Shown| shown.open.iter().rposition(|&(piece, left)| left == geometry.len_of(piece));
        let others = self.peers.iter_mut().filter(|&(&other, _)| other != peer).map(|(_, shown)| shown);
        let (longest, at) = others
            .filter_map(|shown| untouched(shown).map(|at| (shown, at)))
            .max_by_key(|(shown, _)| shown.open.len())?;
        Some(longest.open.swap_remove(at).0)
    }

    /// How many pieces are shown to the owner of a link and not yet sent, and how many may be.
    fn window_of(&self, peer: u32) -> (usize, usize) {
        let Some(shown) = self.peers.get(&peer) else { return (0, 0) };
        let Some(owner) = self.owners.get(&shown.owner) else { return (0, 0) };
        let open = if owner.links == 1 {
            shown.open.len()
        } else {
            self.peers.values().filter(|other| other.owner == shown.owner).map(|other| other.open.len()).sum()
        };
        (open, owner.window)
    }

    fn show(&mut self, peer: u32, piece: PieceIndex, news: &mut Vec<PieceIndex>) {
        if let Some(shown) = self.peers.get_mut(&peer) {
            shown.open.push((piece, self.geometry.len_of(piece)));
            if shown.pieces.insert(piece) {
                news.push(piece);
            }
        }
    }

    /// Whether `peer` was shown `piece`.
    pub fn was_shown(&self, peer: u32, piece: PieceIndex) -> bool {
        self.peers.get(&peer).is_some_and(|shown| shown.pieces.contains(piece))
    }
}

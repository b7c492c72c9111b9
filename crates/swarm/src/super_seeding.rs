//! Super-seeding (BEP 16): decides which pieces a seeder shows to which peer, so that it sends each first copy once.
//! Pure.
//!
//! While some pieces are on no peer yet, each peer is shown a small window of such pieces that no other peer is shown
//! (the idea of BEP 16). The window is refilled the moment one has been sent; no peer waits for proof that it was
//! passed on. So all receivers fetch different pieces, and get the rest from each other. After that, every peer is
//! shown everything.

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

/// How long fast peers wait for the last first copies before they may fetch them too.
const PATIENCE: Duration = Duration::from_millis(500);

/// The seeder's plan for the pieces that no other peer has.
#[derive(Debug)]
pub struct SuperSeeding {
    geometry: Geometry,
    window: usize,
    /// Not shown to any peer yet, in random order.
    fresh: VecDeque<PieceIndex>,
    peers: BTreeMap<u32, Shown>,
    /// The time since which a fast peer has had nothing to fetch while the last first copies are being sent.
    waiting_since: Option<Duration>,
    is_over: bool,
}

#[derive(Debug)]
struct Shown {
    pieces: PieceSet,
    /// Shown and not yet sent in full, with the bytes that remain.
    open: Vec<(PieceIndex, u32)>,
}

impl SuperSeeding {
    /// A plan for all pieces, none of them sent.
    pub fn new(geometry: Geometry, rng: &mut impl Rng) -> SuperSeeding {
        let mut fresh: Vec<_> = geometry.pieces().collect();
        fresh.shuffle(rng);
        let (least, most) = WINDOW_PIECES;
        let window = (WINDOW_BYTES / geometry.piece_len()).clamp(least, most);
        SuperSeeding {
            geometry,
            window: usize::try_from(window).expect("at most 256"),
            fresh: fresh.into(),
            peers: BTreeMap::new(),
            waiting_since: None,
            is_over: false,
        }
    }

    /// Whether every piece has been sent once: from now on, show everything to every peer.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// A peer has connected; ask [`SuperSeeding::refill`] what to show it.
    pub fn join(&mut self, peer: u32) {
        let pieces = PieceSet::new(self.geometry);
        self.peers.insert(peer, Shown { pieces, open: Vec::new() });
    }

    /// A peer is gone; pieces that were shown to it but not sent go to another peer.
    pub fn leave(&mut self, peer: u32) {
        let Some(shown) = self.peers.remove(&peer) else { return };
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
        while self.open(peer) < self.window {
            match self.fresh.pop_front() {
                Some(piece) if is_held(piece) => {}
                Some(piece) => self.show(peer, piece, &mut news),
                None => break,
            }
        }
        if self.fresh.is_empty() && self.open(peer) == 0 {
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
        let others = self.peers.iter_mut().filter(|&(&other, _)| other != peer).map(|(_, shown)| shown);
        let longest = others.max_by_key(|shown| shown.open.len())?;
        let at = longest.open.iter().rposition(|&(piece, left)| left == geometry.len_of(piece))?;
        Some(longest.open.swap_remove(at).0)
    }

    fn open(&self, peer: u32) -> usize {
        self.peers.get(&peer).map_or(0, |shown| shown.open.len())
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

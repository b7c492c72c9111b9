//! Chooses the piece that is requested next from a peer.

use std::collections::BTreeMap;
use std::time::Duration;

use metainfo::PieceIndex;
use rand::Rng;

use super::{Ask, Block, END_GAME_AGE, PeerKey, Picker, Started, State, View};

/// Whether the piece may be requested from another peer that has answered so far. Without this check, the peer that
/// sends most messages is handled first, and would get back every block that was taken from it.
fn has_better(peers: &BTreeMap<PeerKey, View>, peer: PeerKey, piece: PieceIndex) -> bool {
    peers.iter().any(|(&other, view)| other != peer && !view.usual.is_zero() && view.may_give(piece))
}

impl Picker {
    pub(super) fn has_room(&self) -> bool {
        self.bytes_in_flight + u64::from(self.geometry.piece_len()) <= self.budget
    }

    /// Whether `peer` is skipped as the only giver of the piece: it has tried before, and the piece may be requested
    /// from a peer with fewer tries.
    fn is_passed_over(&self, peer: PeerKey, piece: PieceIndex) -> bool {
        let Some(alone) = self.alone.get(&piece) else { return false };
        let tries = alone.tries(peer);
        tries > 0 && self.peers.iter().any(|(&other, view)| alone.tries(other) < tries && view.may_give(piece))
    }

    pub(super) fn choose(&mut self, peer: PeerKey, now: Duration, rng: &mut impl Rng) -> Option<PieceIndex> {
        let view = self.peers.get(&peer)?;
        // A piece that it gave before may now belong to another peer alone.
        let is_its = |piece: &PieceIndex, started: &Started| {
            started.free > 0 && (started.giver == Some(peer) || !self.alone.contains_key(piece))
        };
        if let Some(piece) = view.giving.filter(|piece| self.started.get(piece).is_some_and(|s| is_its(piece, s))) {
            return Some(piece);
        }
        let is_trusted = view.is_trusted(now);
        let shareable = |piece: &&PieceIndex, orphans_only: bool| {
            let Some(started) = self.started.get(piece) else { return false };
            let is_its = started.giver == Some(peer);
            let (allowed, is_trusted) = if self.alone.contains_key(piece) {
                let is_free = started.giver.is_none() && started.got == 0 && !self.is_passed_over(peer, **piece);
                // A peer with a piece to itself keeps the others from it, so none gets a second try with one.
                (is_its || is_free, !view.is_snubbed)
            } else {
                (started.giver.is_none() || is_its || !orphans_only, is_trusted)
            };
            allowed && view.has.contains(**piece) && (is_trusted || !has_better(&self.peers, peer, **piece))
        };
        if let Some(&piece) = self.open.iter().find(|piece| shareable(piece, true)) {
            self.give(peer, piece, now);
            return Some(piece);
        }
        if view.unstarted > 0
            && self.has_room()
            && is_trusted
            && let Some(piece) = self.rarest_missing(peer, view, rng)
        {
            self.start(piece, now);
            self.give(peer, piece, now);
            return Some(piece);
        }
        let fullest = |piece: &&PieceIndex| self.started.get(piece).map_or(0, |started| started.got);
        self.open.iter().filter(|piece| shareable(piece, false)).max_by_key(fullest).copied()
    }

    pub(super) fn rarest_missing(&self, peer: PeerKey, view: &View, rng: &mut impl Rng) -> Option<PieceIndex> {
        // There are few candidates among many pieces, so check each of them, 64 pieces per step. Otherwise a bucket
        // soon has one.
        if view.unstarted <= 64 {
            let mut best: Option<(usize, u32, PieceIndex)> = None;
            let ranked = self
                .missing
                .common(&view.has)
                .filter(|&piece| !self.is_passed_over(peer, piece))
                .map(|piece| (self.availability[piece.as_usize()], rng.random::<u32>(), piece));
            for candidate in ranked {
                if best.is_none_or(|best| candidate < best) {
                    best = Some(candidate);
                }
            }
            return best.map(|(_, _, piece)| piece);
        }
        let may_start = |piece| view.has.contains(piece) && !self.is_passed_over(peer, piece);
        for bucket in self.buckets.iter().filter(|bucket| !bucket.is_empty()) {
            let (before, after) = bucket.split_at(rng.random_range(0..bucket.len()));
            if let Some(&piece) = after.iter().chain(before).find(|&&piece| may_start(piece)) {
                return Some(piece);
            }
        }
        None
    }

    pub(super) fn start(&mut self, piece: PieceIndex, now: Duration) {
        self.leave_bucket(piece);
        self.state[piece.as_usize()] = State::Started;
        self.bytes_in_flight += u64::from(self.geometry.len_of(piece));
        let free = self.geometry.blocks_of(piece);
        let blocks = vec![Block::Free; usize::try_from(free).expect("fits usize")];
        self.started.insert(piece, Started { blocks, free, got: 0, cursor: 0, giver: None, last_block_at: now });
        self.open.push(piece);
    }

    pub(super) fn give(&mut self, peer: PeerKey, piece: PieceIndex, now: Duration) {
        if let Some(started) = self.started.get_mut(&piece) {
            started.giver = Some(peer);
        }
        if let Some(view) = self.peers.get_mut(&peer) {
            view.giving = Some(piece);
        }
        if let Some(alone) = self.alone.get_mut(&piece) {
            alone.give(peer, now);
        }
    }

    pub(super) fn ask_free_blocks(
        &mut self,
        peer: PeerKey,
        piece: PieceIndex,
        room: usize,
        now: Duration,
        asks: &mut Vec<Ask>,
    ) {
        let Some(started) = self.started.get_mut(&piece) else { return };
        while asks.len() < room && started.free > 0 {
            let Some(block) = started.blocks.get_mut(started.cursor) else { break };
            if *block == Block::Free {
                *block = Block::Asked { peer, at: now, second: None };
                started.free -= 1;
                asks.push(Ask { piece, block: u32::try_from(started.cursor).expect("blocks fit 32 bits") });
            }
            started.cursor += 1;
        }
        if started.free == 0 {
            self.open.retain(|&open| open != piece);
        }
    }

    pub(super) fn end_game(&mut self, peer: PeerKey, room: usize, now: Duration, asks: &mut Vec<Ask>) {
        let Some(view) = self.peers.get(&peer) else { return };
        let is_trusted = view.is_trusted(now);
        let peers = &self.peers;
        // Blocks that come at their giver's usual pace are not late: a second copy would only take the link from the
        // first. But an idle peer does not wait for a giver that is slower.
        let fast = view.usual * 4;
        let patience = |giver| {
            let usual = peers.get(&giver).map_or(Duration::ZERO, |giver| giver.usual * 2);
            END_GAME_AGE.max(usual.min(fast))
        };
        for (&piece, started) in &mut self.started {
            if !view.has.contains(piece) || self.alone.contains_key(&piece) {
                continue;
            }
            if !is_trusted && has_better(peers, peer, piece) {
                continue;
            }
            for (index, block) in (0..).zip(&mut started.blocks) {
                if asks.len() >= room {
                    return;
                }
                if let Block::Asked { peer: first, at, second: second @ None } = block
                    && *first != peer
                    && now.saturating_sub(*at) >= patience(*first)
                {
                    *second = Some(peer);
                    asks.push(Ask { piece, block: index });
                }
            }
        }
    }
}

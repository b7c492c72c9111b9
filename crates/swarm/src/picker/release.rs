//! Takes requests back from peers that are late, choke us or are gone, and abandons pieces.

use std::time::Duration;

use metainfo::PieceIndex;

use super::{Ask, Block, DEADLINE_MAX, DEADLINE_MIN, Overdue, PeerKey, Picker, View, is_asked};

impl Picker {
    /// Frees the late blocks of `peer`, if another peer that allows requests has them.
    pub(super) fn release_late(&mut self, peer: PeerKey, now: Duration, cancels: &mut Vec<(PeerKey, Ask)>) {
        while let Some(view) = self.peers.get_mut(&peer) {
            let Some(&(ask, at)) = view.asked.front() else { return };
            if !is_asked(&self.started, peer, ask) {
                view.asked.pop_front();
                continue;
            }
            if now.saturating_sub(at) < (view.usual * 4).clamp(DEADLINE_MIN, DEADLINE_MAX) {
                return;
            }
            let others = self.peers.iter().filter(|&(&other, _)| other != peer);
            if !others.into_iter().any(|(_, view)| view.may_give(ask.piece)) {
                return;
            }
            if let Some(view) = self.peers.get_mut(&peer) {
                view.asked.pop_front();
                view.snub(now);
                view.giving = None;
            }
            self.release(peer, ask);
            if let Some(started) = self.started.get_mut(&ask.piece)
                && started.giver == Some(peer)
            {
                started.giver = None;
            }
            cancels.push((peer, ask));
        }
    }

    /// Abandons pieces that one peer had to deliver alone and left unfinished, or takes too long for while another peer
    /// is available. Its blocks are dropped: mixed with another peer's blocks, they would hide who lies.
    pub(super) fn give_up_alone(&mut self, now: Duration, overdue: &mut Overdue) {
        let mut over = Vec::new();
        for (&piece, alone) in &self.alone {
            let (Some(started), Some((giver, since))) = (self.started.get(&piece), alone.giver) else { continue };
            let is_late = now.saturating_sub(since) >= alone.patience(giver);
            // This includes a peer that was late before, because there may be no other left to try.
            let may_give = |view: &View| view.can_ask && view.has.contains(piece);
            let has_others = || self.peers.iter().any(|(&other, view)| other != giver && may_give(view));
            if started.giver != Some(giver) || is_late && has_others() {
                over.push((piece, giver));
            }
        }
        for (piece, giver) in over {
            self.alone.entry(piece).or_default().take();
            if let Some(view) = self.peers.get_mut(&giver) {
                view.snub(now);
            }
            self.abandon(piece, now, overdue);
        }
    }

    /// A started piece is missing again.
    pub(super) fn abandon(&mut self, piece: PieceIndex, now: Duration, overdue: &mut Overdue) {
        let Some(started) = self.started.remove(&piece) else { return };
        for (block, state) in (0..).zip(&started.blocks) {
            let Block::Asked { peer, second, .. } = *state else { continue };
            for asked in [Some(peer), second].into_iter().flatten() {
                overdue.cancels.push((asked, Ask { piece, block }));
                if let Some(view) = self.peers.get_mut(&asked) {
                    view.outstanding = view.outstanding.saturating_sub(1);
                    view.snub(now);
                }
            }
        }
        self.open.retain(|&open| open != piece);
        self.back_to_missing(piece);
        overdue.abandoned.push(piece);
    }

    pub(super) fn release_all(&mut self, peer: PeerKey) {
        let Some(view) = self.peers.get_mut(&peer) else { return };
        view.giving = None;
        for (ask, _) in std::mem::take(&mut view.asked) {
            self.release(peer, ask);
        }
        for started in self.started.values_mut().filter(|started| started.giver == Some(peer)) {
            started.giver = None;
        }
    }

    pub(super) fn release(&mut self, peer: PeerKey, ask: Ask) {
        let Some(started) = self.started.get_mut(&ask.piece) else { return };
        let index = usize::try_from(ask.block).expect("fits usize");
        let Block::Asked { peer: first, at, second } = started.blocks[index] else { return };
        if second == Some(peer) {
            started.blocks[index] = Block::Asked { peer: first, at, second: None };
        } else if first != peer {
            return;
        } else if let Some(second) = second {
            started.blocks[index] = Block::Asked { peer: second, at, second: None };
        } else {
            started.blocks[index] = Block::Free;
            if started.free == 0 {
                self.open.push(ask.piece);
            }
            started.free += 1;
            started.cursor = started.cursor.min(index);
        }
        if let Some(view) = self.peers.get_mut(&peer) {
            view.outstanding = view.outstanding.saturating_sub(1);
        }
    }
}

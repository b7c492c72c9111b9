//! Taking requests back from peers that are late, choke us or have gone.

use std::time::Duration;

use super::{Ask, Block, DEADLINE_MIN, PeerKey, Picker, is_asked};

impl Picker {
    /// Frees what `peer` is late with, as far as another peer that we may ask has it.
    pub(super) fn release_late(&mut self, peer: PeerKey, now: Duration, cancels: &mut Vec<(PeerKey, Ask)>) {
        while let Some(view) = self.peers.get_mut(&peer) {
            let Some(&(ask, at)) = view.asked.front() else { return };
            if !is_asked(&self.started, peer, ask) {
                view.asked.pop_front();
                continue;
            }
            if now.saturating_sub(at) < DEADLINE_MIN.max(view.usual * 4) {
                return;
            }
            let others = self.peers.iter().filter(|&(&other, _)| other != peer);
            if !others.into_iter().any(|(_, view)| view.can_ask && !view.is_snubbed && view.has.contains(ask.piece)) {
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

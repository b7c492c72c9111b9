//! Receiving: a peer's pieces and blocks come in; our messages and requests to it go out.

use std::time::Duration;

use metainfo::PieceIndex;

use crate::core::{Action, Core};
use crate::pace::{OUTSTANDING_BYTES, OUTSTANDING_LEAST};
use crate::picker::{Ask, PeerKey, Received};

/// Everything to tell one peer, in the order of the fields, except the blocks that it requested.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Pieces we have.
    pub haves: Vec<PieceIndex>,
    /// Whether we are interested, if that has changed.
    pub interest: Option<bool>,
    /// Blocks that it need not send any more. The driver sends cancels for those that have not arrived, and forgets
    /// them.
    pub cancels: Vec<Ask>,
    /// Pieces the peer asked for and does not get from us.
    pub rejects: Vec<PieceIndex>,
    /// Blocks we ask for.
    pub asks: Vec<Ask>,
}

impl Said {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        let has_news = !self.haves.is_empty() || self.interest.is_some() || !self.rejects.is_empty();
        !has_news && self.cancels.is_empty() && self.asks.is_empty()
    }
}

impl Core {
    /// The peer has these pieces. False if neither end can ever send the other anything useful.
    pub fn heard_haves(&mut self, key: PeerKey, pieces: impl IntoIterator<Item = PieceIndex>) -> bool {
        let mut made_room = false;
        for piece in pieces {
            let is_first = self.picker.availability(piece) == 0;
            self.picker.peer_has(key, piece);
            // A piece that some peer already had is not shown as a first copy.
            if let Some(plan) = self.plan.as_mut().filter(|plan| is_first && !plan.is_over()) {
                made_room |= plan.seen(piece);
            }
        }
        if made_room {
            self.wake(true);
        }
        !(self.picker.have().is_full() && self.picker.is_seeder(key))
    }

    /// The peer does not give us this piece, although it said that it has it; the driver forgets what it was asked for of it.
    pub fn heard_reject(&mut self, key: PeerKey, piece: PieceIndex) {
        if self.picker.peer_lacks(key, piece) {
            self.actions.push(Action::Abandon(piece));
        }
        self.wake(true);
    }

    /// The peer lets us ask (unchoke), or no longer does (choke); then it sends nothing of what it was asked for, and the
    /// driver forgets all that.
    pub fn heard_unchoke(&mut self, key: PeerKey, can_ask: bool) {
        self.picker.set_can_ask(key, can_ask);
        if !can_ask {
            self.wake(false);
        }
    }

    /// The driver has stored this block, which was requested from the peer. False if it is useless: its piece is no
    /// longer requested, or the block was already here.
    ///
    /// Only the driver knows which requests a peer has ([`Said::asks`] less [`Said::cancels`]). It copies a block
    /// before it reports it here, and meanwhile the peer may have choked us, gone, or been dropped. The block is there
    /// all the same, and no other copy of it would be accepted.
    pub fn block_arrived(&mut self, key: PeerKey, ask: Ask, now: Duration) -> bool {
        let Received::Fresh { piece_complete, cancel } = self.picker.received(key, ask, now) else { return false };
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.moved(self.block_bytes, now);
        }
        if let Some(other) = cancel {
            self.cancel(other, ask);
        }
        if piece_complete {
            self.actions.push(Action::Verify(ask.piece));
        }
        true
    }

    /// Everything to tell the peer; the returned messages count as sent.
    pub fn compose(&mut self, key: PeerKey, now: Duration) -> Said {
        let mut said = Said::default();
        let Some(peer) = self.peers.get_mut(&key) else { return said };
        let asking = self.interesting.max(1);
        let picker = &mut self.picker;
        if peer.shows_little
            && let Some(plan) = self.plan.as_mut()
        {
            said.haves = plan.refill(key, now, |piece| picker.availability(piece) > 0);
            if plan.is_over() {
                peer.shows_little = false;
                said.haves.extend(picker.have().iter().filter(|&piece| !plan.was_shown(key, piece)));
            }
        }
        said.haves.extend_from_slice(&self.have_log[peer.told_haves..]);
        peer.told_haves = self.have_log.len();
        said.haves.retain(|&piece| !self.withheld.contains(piece));
        said.rejects = std::mem::take(&mut peer.rejects);
        let wants = picker.wants_from(key);
        if wants != peer.is_interesting {
            peer.is_interesting = wants;
            self.interesting = if wants { self.interesting + 1 } else { self.interesting - 1 };
            said.interest = Some(wants);
        }
        said.cancels.append(&mut peer.cancels);
        let share = (OUTSTANDING_BYTES / asking).max(OUTSTANDING_LEAST);
        let limit = usize::try_from((share / self.block_bytes).max(1)).expect("fits usize");
        // A refill after every block would cost one packet and one system call each. With refills by quarters, the peer
        // never runs dry.
        let lacking = limit.saturating_sub(picker.outstanding(key));
        if lacking * 4 >= limit {
            said.asks = picker.request(key, limit, now, &mut self.rng);
        }
        peer.is_hungry = wants && picker.outstanding(key) < limit;
        said
    }
}

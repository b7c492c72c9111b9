//! Giving: the requests of peers, and the order in which they are served.
//!
//! A peer that has requested blocks, and takes what it is sent, waits for its turn or has it. While a block is being
//! sent to the peer, this does not change: requests that arrive meanwhile are handled when the block is sent.

use std::time::Duration;

use metainfo::{BLOCK_LEN, PieceIndex};

use crate::core::{Action, Core};
use crate::picker::PeerKey;
use crate::wire::Request;

impl Core {
    /// The peer asks for a range. False if that is of a piece we do not hold. One that is withheld is rejected.
    pub fn heard_request(&mut self, key: PeerKey, request: Request, now: Duration) -> bool {
        if !self.picker.have().contains(request.piece) {
            return false;
        }
        if self.withheld.contains(request.piece) {
            self.reject(key, request.piece);
            return true;
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.uploads.push(request);
        }
        self.settle(key, now);
        true
    }

    /// A piece that is held cannot be read, or is not right any more: it is shown and given to nobody from now on. False if
    /// that was known.
    pub fn withhold(&mut self, piece: PieceIndex, now: Duration) -> bool {
        if !self.withheld.insert(piece) {
            return false;
        }
        // As if somebody else had it: there is no first copy to wait for.
        if let Some(plan) = self.plan.as_mut().filter(|plan| !plan.is_over()) {
            plan.seen(piece);
        }
        let asking: Vec<PeerKey> =
            self.peers.iter_mut().filter_map(|(&key, peer)| peer.uploads.cancel_piece(piece).then_some(key)).collect();
        for key in asking {
            self.reject(key, piece);
            self.settle(key, now);
        }
        self.wake(true);
        true
    }

    /// How many pieces are withheld.
    pub fn withheld(&self) -> u32 {
        self.withheld.count()
    }

    fn reject(&mut self, key: PeerKey, piece: PieceIndex) {
        if let Some(peer) = self.peers.get_mut(&key).filter(|peer| !peer.rejects.contains(&piece)) {
            peer.rejects.push(piece);
            self.actions.push(Action::Wake(key));
        }
    }

    /// The peer no longer wants a range.
    pub fn heard_cancel(&mut self, key: PeerKey, request: &Request, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.uploads.cancel(request);
        }
        self.settle(key, now);
    }

    /// The next range to send to the peer: the first that it requested, if it has its turn.
    pub fn next_upload(&self, key: PeerKey) -> Option<Request> {
        let peer = self.peers.get(&key).filter(|_| self.turns.is_held(key))?;
        peer.uploads.first()
    }

    /// Takes ranges from the front of the peer's requests as long as `fits` allows; [`Core::sent`] has to follow.
    pub fn take_uploads(&mut self, key: PeerKey, mut fits: impl FnMut(&Request) -> bool) -> Vec<Request> {
        let mut taken = Vec::new();
        let Some(peer) = self.peers.get_mut(&key) else { return taken };
        while let Some(next) = peer.uploads.first().filter(&mut fits) {
            peer.uploads.cancel(&next);
            taken.push(next);
        }
        peer.is_sending |= !taken.is_empty();
        taken
    }

    /// This many bytes of a piece were sent to the peer, all that were taken for it.
    pub fn sent(&mut self, key: PeerKey, piece: PieceIndex, bytes: u32, now: Duration) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.is_sending = false;
        let bytes = bytes.saturating_mul(self.block_bytes / BLOCK_LEN);
        peer.moved(bytes, now);
        if let Some(plan) = self.plan.as_mut().filter(|plan| !plan.is_over())
            && plan.sent(key, piece, bytes)
        {
            self.actions.push(Action::Wake(key));
        }
        if self.turns.is_used_up(key, piece, bytes, now) {
            self.give_up_turn(key, now);
        }
        self.settle(key, now);
    }

    /// The peer has taken nothing for [`SLOT_STALL`](crate::pace::SLOT_STALL): others have its turn until
    /// [`Core::caught_up`].
    pub fn stalled(&mut self, key: PeerKey, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&key) {
            if !std::mem::replace(&mut peer.is_stalled, true) {
                self.turns.set_stalled(key, true);
            }
            self.give_up_turn(key, now);
        }
    }

    /// The peer has taken the data after all.
    pub fn caught_up(&mut self, key: PeerKey, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&key) {
            if std::mem::take(&mut peer.is_stalled) {
                self.turns.set_stalled(key, false);
            }
            self.settle(key, now);
        }
    }

    /// Whether the peer waits for its turn, and has not let the last one pass.
    pub fn is_in_queue(&self, key: PeerKey) -> bool {
        self.peers.get(&key).is_some_and(|peer| !peer.uploads.is_empty() && peer.last_payload >= peer.last_turn)
    }

    /// Queues the peer if it wants to be served; otherwise its place becomes free.
    fn settle(&mut self, key: PeerKey, now: Duration) {
        let Some(peer) = self.peers.get(&key).filter(|peer| !peer.is_sending && !peer.is_stalled) else { return };
        if peer.uploads.is_empty() {
            self.give_up_turn(key, now);
        } else {
            self.turns.want(key);
            self.hand_out_turns(now);
        }
    }

    pub(super) fn give_up_turn(&mut self, key: PeerKey, now: Duration) {
        self.turns.give_up(key);
        self.hand_out_turns(now);
    }

    pub(super) fn hand_out_turns(&mut self, now: Duration) {
        while let Some(key) = self.turns.hand_out(now) {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.last_turn = Some(now);
            }
            self.actions.push(Action::Wake(key));
        }
    }
}

//! Connects links with the core: a peer's messages go in, and messages and blocks for the peer come out.

use std::sync::Arc;
use std::time::Instant;

use metainfo::PieceIndex;

use crate::buffers::{PieceBuf, lock};
use crate::core::Said;
use crate::engine::{OWN_KIND, Shared, State, count};
use crate::link::Link;
use crate::picker::Ask;
use crate::wire::{self, Message, Request};

/// A peer's change to its list of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It requests this range.
    Request(Request),
    /// It no longer wants this range.
    Cancel(Request),
}

impl Shared {
    // Messages from a peer.

    /// The peer has these pieces. False if neither end can ever send the other anything useful.
    pub(crate) fn peer_has(&self, link: &Link, pieces: Vec<PieceIndex>) -> bool {
        self.with(|state| state.core.heard_haves(link.key, pieces))
    }

    pub(crate) fn peer_lets_us_ask(&self, link: &Link, can_ask: bool) {
        self.with(|state| {
            state.core.heard_unchoke(link.key, can_ask);
            if !can_ask {
                lock(&link.asked).clear();
            }
        });
    }

    /// The peer does not give us these pieces.
    pub(crate) fn peer_lacks(&self, link: &Link, pieces: &[PieceIndex]) {
        self.with(|state| {
            lock(&link.asked).retain(|ask, _| !pieces.contains(&ask.piece));
            pieces.iter().for_each(|&piece| state.core.heard_reject(link.key, piece));
        });
    }

    /// What the peer wants, in its order.
    ///
    /// # Errors
    /// The first requested piece that we do not hold.
    pub(crate) fn peer_wants(&self, link: &Link, wishes: &[Wish]) -> Result<(), PieceIndex> {
        let now = self.now();
        self.with(|state| {
            for wish in wishes {
                match wish {
                    Wish::Request(request) if state.core.heard_request(link.key, *request, now) => {}
                    Wish::Request(request) => return Err(request.piece),
                    Wish::Cancel(request) => state.core.heard_cancel(link.key, request, now),
                }
            }
            Ok(())
        })
    }

    /// These blocks are in their buffers now.
    pub(crate) fn blocks_arrived(self: &Arc<Self>, link: &Link, blocks: &[(Ask, Arc<PieceBuf>)]) {
        let now = self.now();
        let full = self.with(|state| {
            for &(ask, ref buf) in blocks {
                // The piece may have been abandoned meanwhile, and started again with another buffer.
                let is_current = state.buffers.get(&ask.piece).is_some_and(|current| Arc::ptr_eq(current, buf));
                if !is_current || !state.core.block_arrived(link.key, ask, now) {
                    let len = usize::try_from(self.geometry.block_len(ask.piece, ask.block)).unwrap_or(0);
                    count(&self.counters.wasted, len);
                }
            }
            self.perform(state)
        });
        for (piece, buf) in full {
            if let Some((data, givers)) = buf.take() {
                self.hash_soon(piece, data, givers);
            }
        }
    }

    // Messages to a peer.

    /// Appends all messages for the peer, except the blocks that it requested.
    pub(crate) fn compose(&self, link: &Link, out: &mut Vec<u8>) {
        let now = self.now();
        let said = self.with(|state| {
            let mut said = state.core.compose(link.key, now);
            if !said.cancels.is_empty() || !said.asks.is_empty() {
                let mut asked = lock(&link.asked);
                // A block that is being copied into its buffer at this moment counts as arrived.
                said.cancels.retain(|ask| asked.remove(ask).is_some());
                for &ask in &said.asks {
                    asked.insert(ask, self.buffer(state, ask.piece));
                }
            }
            said
        });
        self.encode(link, &said, out);
    }

    fn encode(&self, link: &Link, said: &Said, out: &mut Vec<u8>) {
        let request = |ask: &Ask| Request::block(&self.geometry, ask.piece, ask.block);
        said.haves.iter().for_each(|&piece| wire::encode(&Message::Have(piece), out));
        if let Some(wants) = said.interest {
            wire::encode(if wants { &Message::Interested } else { &Message::NotInterested }, out);
        }
        said.cancels.iter().for_each(|ask| wire::encode(&Message::Cancel(request(ask)), out));
        // Others may take a message that they did not agree to for a mistake; they wait until they ask somebody else.
        if link.peer_id.starts_with(OWN_KIND) {
            let reject = |&piece: &PieceIndex| Message::Reject(Request::block(&self.geometry, piece, 0));
            said.rejects.iter().for_each(|piece| wire::encode(&reject(piece), out));
        }
        said.asks.iter().for_each(|ask| wire::encode(&Message::Request(request(ask)), out));
    }

    /// The buffer for the bytes of a piece that has been started.
    fn buffer(&self, state: &mut State, piece: PieceIndex) -> Arc<PieceBuf> {
        let buf = state.buffers.entry(piece).or_insert_with(|| {
            let len = usize::try_from(self.geometry.len_of(piece)).expect("fits usize");
            Arc::new(PieceBuf::new(self.pool.get(len)))
        });
        Arc::clone(buf)
    }

    // Blocks for a peer.

    /// The next range to send to the peer, if it has its turn.
    pub(crate) fn next_upload(&self, link: &Link) -> Option<Request> {
        lock(&self.state).core.next_upload(link.key)
    }

    /// Ranges from the front of the peer's requests, as long as they fit.
    pub(crate) fn take_uploads(&self, link: &Link, fits: impl FnMut(&Request) -> bool) -> Vec<Request> {
        self.with(|state| state.core.take_uploads(link.key, fits))
    }

    /// Bytes of a piece were sent, all that were taken for the peer.
    pub(crate) fn sent(&self, link: &Link, piece: PieceIndex, bytes: u32) {
        *lock(&self.last_upload) = Some(Instant::now());
        let now = self.now();
        self.with(|state| state.core.sent(link.key, piece, bytes, now));
    }

    /// Whether the peer's owner has other links to us.
    pub(crate) fn has_siblings(&self, link: &Link) -> bool {
        lock(&self.state).core.has_siblings(link.key)
    }

    pub(crate) fn stalled(&self, link: &Link) {
        let now = self.now();
        self.with(|state| state.core.stalled(link.key, now));
    }

    pub(crate) fn caught_up(&self, link: &Link) {
        let now = self.now();
        self.with(|state| state.core.caught_up(link.key, now));
    }

    /// Whether the piece has to be hashed before it is given to anybody.
    pub(crate) fn is_unchecked(&self, piece: PieceIndex) -> bool {
        lock(&self.unchecked).contains(piece)
    }

    pub(crate) fn checked(&self, piece: PieceIndex) {
        lock(&self.unchecked).remove(piece);
    }

    /// A piece cannot be given: nobody is shown it any more, and who asks for it is told so.
    pub(crate) fn withhold(&self, piece: PieceIndex, why: &str) {
        let now = self.now();
        let count = self.with(|state| state.core.withhold(piece, now).then(|| state.core.withheld()));
        let Some(count) = count else { return };
        let text = format!("piece {piece}: {why}");
        // A file that was cut short has thousands of them.
        if count <= 4 || count.is_power_of_two() {
            log::error!("swarm {}: {text}; it is given to nobody any more (such pieces: {count})", self.meta.infohash);
        }
        lock(&self.withheld_why).get_or_insert(text);
    }

    // Hashing and the owner have news.

    pub(crate) fn holds(&self, piece: PieceIndex) -> bool {
        lock(&self.state).core.have().contains(piece)
    }

    pub(crate) fn piece_verified(&self, piece: PieceIndex) {
        self.with(|state| state.core.verified(piece));
    }

    pub(crate) fn piece_was_wrong(&self, piece: PieceIndex, givers: &[u64]) {
        self.with(|state| state.core.failed(piece, givers.len()));
    }

    pub(crate) fn found(&self, pieces: &[PieceIndex]) {
        self.with(|state| state.core.found(pieces));
    }

    pub(crate) fn lacks(&self, pieces: &[PieceIndex]) {
        self.with(|state| state.core.lacks(pieces));
    }
}

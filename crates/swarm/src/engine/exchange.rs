//! What links do with the shared state: what a peer said comes in, what there is to say to it goes out.

use std::sync::Arc;
use std::time::Instant;

use metainfo::{BLOCK_LEN, PieceIndex};

use crate::buffers::{PieceBuf, lock};
use crate::engine::{Core, Shared, count};
use crate::link::Link;
use crate::pace::{OUTSTANDING_BYTES, OUTSTANDING_LEAST};
use crate::picker::{Ask, Received};
use crate::wire::{self, Message, Request};

impl Shared {
    // Messages from a peer.

    /// The peer has these pieces. False if neither of us can give the other anything, ever.
    pub(crate) fn peer_has(&self, link: &Link, pieces: impl Iterator<Item = PieceIndex>) -> bool {
        let core = &mut *lock(&self.core);
        let mut made_room = false;
        for piece in pieces {
            let is_first = core.picker.availability(piece) == 0;
            core.picker.peer_has(link.key, piece);
            // What somebody had already is shown to nobody as a first copy.
            if let Some(plan) = core.plan.as_mut().filter(|plan| is_first && !plan.is_over()) {
                made_room |= plan.seen(piece);
            }
        }
        if made_room {
            core.wake(true);
        }
        !(core.picker.have().is_full() && core.picker.is_seeder(link.key))
    }

    pub(crate) fn peer_lets_us_ask(&self, link: &Link, can_ask: bool) {
        let core = &mut *lock(&self.core);
        core.picker.set_can_ask(link.key, can_ask);
        if !can_ask {
            lock(&link.asked).clear();
            core.wake(false);
        }
    }

    pub(crate) fn holds(&self, piece: PieceIndex) -> bool {
        lock(&self.core).picker.have().contains(piece)
    }

    /// Blocks that are in these buffers now.
    pub(crate) fn blocks_arrived(self: &Arc<Self>, link: &Link, blocks: &[(Ask, Arc<PieceBuf>)]) {
        let now = self.now();
        let mut full = Vec::new();
        let core = &mut *lock(&self.core);
        for &(ask, ref buf) in blocks {
            // The piece may have been given up meanwhile, and begun again with another buffer.
            let is_current = core.buffers.get(&ask.piece).is_some_and(|current| Arc::ptr_eq(current, buf));
            let received = if is_current { core.picker.received(link.key, ask, now) } else { Received::Useless };
            match received {
                Received::Fresh { piece_complete, cancel } => {
                    link.note_payload(now);
                    if let Some(key) = cancel {
                        core.cancel(key, ask);
                    }
                    if piece_complete && let Some(buf) = core.buffers.remove(&ask.piece) {
                        full.push((ask.piece, buf));
                    }
                }
                Received::Useless => {
                    let len = usize::try_from(self.geometry.block_len(ask.piece, ask.block)).unwrap_or(0);
                    count(&self.counters.wasted, len);
                }
            }
        }
        for (piece, buf) in full {
            if let Some((data, givers)) = buf.take() {
                self.hash_soon(piece, data, givers);
            }
        }
    }

    // Messages to a peer.

    /// Appends everything there is to say to the peer, other than the blocks it asked for.
    pub(crate) fn compose(&self, link: &Link, out: &mut Vec<u8>) {
        let now = self.now();
        let core = &mut *lock(&self.core);
        let asking = core.links.values().filter(|state| state.is_interested).count().max(1);
        let Some(state) = core.links.get_mut(&link.key) else { return };
        if state.shows_little
            && let Some(plan) = core.plan.as_mut()
        {
            let picker = &core.picker;
            for piece in plan.refill(link.key, now, |piece| picker.availability(piece) > 0) {
                wire::encode(&Message::Have(piece), out);
            }
            if plan.is_over() {
                state.shows_little = false;
                for piece in picker.have().iter().filter(|&piece| !plan.was_shown(link.key, piece)) {
                    wire::encode(&Message::Have(piece), out);
                }
            }
        }
        for &piece in &core.have_log[state.told_haves..] {
            wire::encode(&Message::Have(piece), out);
        }
        state.told_haves = core.have_log.len();
        let wants = core.picker.wants_from(link.key);
        if wants != state.is_interested {
            state.is_interested = wants;
            wire::encode(if wants { &Message::Interested } else { &Message::NotInterested }, out);
        }
        let mut asked = lock(&link.asked);
        for ask in state.cancels.drain(..) {
            if asked.remove(&ask).is_some() {
                wire::encode(&Message::Cancel(Request::block(&self.geometry, ask.piece, ask.block)), out);
            }
        }
        let share = OUTSTANDING_BYTES / u32::try_from(asking).unwrap_or(u32::MAX);
        let limit = usize::try_from(share.max(OUTSTANDING_LEAST) / BLOCK_LEN).expect("fits usize");
        // A refill for every block would cost a packet and a system call each; by quarters the peer never runs dry.
        let lacking = limit.saturating_sub(core.picker.outstanding(link.key));
        let asks =
            if lacking * 4 >= limit { core.picker.request(link.key, limit, now, &mut core.rng) } else { Vec::new() };
        for ask in asks {
            let buf = core.buffers.entry(ask.piece).or_insert_with(|| {
                let len = usize::try_from(self.geometry.len_of(ask.piece)).expect("fits usize");
                Arc::new(PieceBuf::new(self.pool.get(len)))
            });
            asked.insert(ask, Arc::clone(buf));
            wire::encode(&Message::Request(Request::block(&self.geometry, ask.piece, ask.block)), out);
        }
        state.is_hungry = wants && core.picker.outstanding(link.key) < limit;
    }

    /// Bytes of a piece have gone out.
    pub(crate) fn sent(&self, link: &Link, piece: PieceIndex, bytes: u32) {
        *lock(&self.last_upload) = Some(Instant::now());
        link.note_payload(self.now());
        let core = &mut *lock(&self.core);
        if let Some(plan) = core.plan.as_mut().filter(|plan| !plan.is_over())
            && plan.sent(link.key, piece, bytes)
        {
            link.wake.notify_one();
        }
    }

    // Hashing and the owner have news.

    pub(crate) fn piece_verified(&self, piece: PieceIndex) {
        let core = &mut *lock(&self.core);
        core.picker.verified(piece);
        self.now_held(core, &[piece]);
        // Who waits for something that it asked of us hears of the piece together with that, in one packet: it has enough
        // to ask for, and a packet for each piece to each peer is a good part of the load. Anything it says wakes its link.
        for state in core.links.values() {
            if state.is_hungry || lock(&state.link.uploads).is_empty() {
                state.link.wake.notify_one();
            }
        }
    }

    pub(crate) fn found(&self, pieces: &[PieceIndex]) {
        let core = &mut *lock(&self.core);
        let news: Vec<PieceIndex> = pieces.iter().copied().filter(|&piece| core.picker.found(piece)).collect();
        self.now_held(core, &news);
        core.wake(true);
    }

    pub(crate) fn lacks(&self, pieces: &[PieceIndex]) {
        let core = &mut *lock(&self.core);
        for &piece in pieces {
            core.picker.lacks(piece);
        }
        core.wake(true);
    }

    fn now_held(&self, core: &mut Core, pieces: &[PieceIndex]) {
        core.bytes_have += pieces.iter().map(|&piece| u64::from(self.geometry.len_of(piece))).sum::<u64>();
        core.have_log.extend_from_slice(pieces);
        if core.picker.have().is_full() {
            self.outcome.send_if_modified(|outcome| {
                let is_first = outcome.is_none();
                if is_first {
                    *outcome = Some(Ok(()));
                }
                is_first
            });
            let seeders = core.links.iter().filter(|(key, _)| core.picker.is_seeder(**key));
            seeders.for_each(|(_, state)| state.link.finish.notify_one());
        }
    }

    pub(crate) fn piece_was_wrong(&self, piece: PieceIndex, givers: &[u64]) {
        let core = &mut *lock(&self.core);
        core.picker.failed(piece, givers.len() > 1);
        core.wake(true);
    }
}

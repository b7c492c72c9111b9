//! One connected peer, from the core's view.

use std::time::Duration;

use metainfo::PieceIndex;

use crate::core::uploads::Uploads;
use crate::pace::USEFUL_BYTES;
use crate::picker::Ask;

/// Messages exchanged with the peer, and those still to be sent.
#[derive(Debug)]
pub(super) struct Peer {
    /// How much of the log of verified pieces the peer knows.
    pub(super) told_haves: usize,
    /// Whether it sees only the pieces that super-seeding shows it.
    pub(super) shows_little: bool,
    /// Whether it knows that we are interested.
    pub(super) is_interesting: bool,
    /// Whether it could get more requests if there were more to request.
    pub(super) is_hungry: bool,
    /// Blocks that it need not send any more, of which it has not been informed. They are at most the blocks requested
    /// since it was last informed.
    pub(super) cancels: Vec<Ask>,
    /// Pieces it asked for that it does not get, and does not know it yet.
    pub(super) rejects: Vec<PieceIndex>,
    /// What it asked for.
    pub(super) uploads: Uploads,
    /// A part of `uploads` is being sent, and its turn lasts until that is sent.
    pub(super) is_sending: bool,
    /// It takes no data at the moment, and blocks no other peer until it does.
    pub(super) is_stalled: bool,
    /// When the last block came from it or went to it.
    pub(super) last_payload: Option<Duration>,
    /// When the last [`USEFUL_BYTES`] were complete, and the bytes that have moved since then.
    pub(super) last_useful: Duration,
    pub(super) moved: u32,
    /// When its last turn to be served began.
    pub(super) last_turn: Option<Duration>,
}

impl Peer {
    pub(super) fn new(since: Duration, told_haves: usize, shows_little: bool) -> Peer {
        Peer {
            told_haves,
            shows_little,
            is_interesting: false,
            is_hungry: false,
            cancels: Vec::new(),
            rejects: Vec::new(),
            uploads: Uploads::default(),
            is_sending: false,
            is_stalled: false,
            last_payload: None,
            last_useful: since,
            moved: 0,
            last_turn: None,
        }
    }

    /// Bytes of blocks came from it or went to it.
    pub(super) fn moved(&mut self, bytes: u32, now: Duration) {
        self.last_payload = Some(now);
        self.moved = self.moved.saturating_add(bytes);
        if self.moved >= USEFUL_BYTES {
            (self.last_useful, self.moved) = (now, 0);
        }
    }
}

//! One connected peer, as the core sees it.

use std::time::Duration;

use metainfo::PieceIndex;

use crate::core::uploads::Uploads;
use crate::picker::Ask;

/// What has been said between the peer and us, and what is to be said.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) since: Duration,
    /// How much of the log of verified pieces it knows.
    pub(super) told_haves: usize,
    /// Whether it sees only what super-seeding shows it.
    pub(super) shows_little: bool,
    /// Whether we have told it that it has something for us.
    pub(super) is_interesting: bool,
    /// Whether it could be asked for more if there were more to ask for.
    pub(super) is_hungry: bool,
    /// What it need not send any more and does not know yet: no more than it was asked for since it was last told.
    pub(super) cancels: Vec<Ask>,
    /// Pieces it asked for that it does not get, and does not know it yet.
    pub(super) rejects: Vec<PieceIndex>,
    /// What it asked for.
    pub(super) uploads: Uploads,
    /// Something of `uploads` is being sent, and its turn lasts until that is out.
    pub(super) is_sending: bool,
    /// It takes nothing at the moment, and is in nobody's way until it does.
    pub(super) is_stalled: bool,
    /// When the last block came or went.
    pub(super) last_payload: Option<Duration>,
    /// When it last got its turn to be served.
    pub(super) last_turn: Option<Duration>,
}

impl Peer {
    pub(super) fn new(since: Duration, told_haves: usize, shows_little: bool) -> Peer {
        Peer {
            since,
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
            last_turn: None,
        }
    }
}

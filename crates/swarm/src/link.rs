//! One connected peer, as the rest of the engine sees it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use crate::buffers::PieceBuf;
use crate::buffers::lock;
use crate::picker::Ask;
use crate::wire::Request;

/// Requests remembered per peer; stock clients keep at most 500 or so. More are not answered.
const MAX_UPLOADS: usize = 2048;

/// Ranges a peer asked for, each once, in its order. Nothing here looks through all of them: every message of a peer may
/// ask for it.
#[derive(Default)]
pub(crate) struct Uploads {
    by_age: BTreeMap<u64, Request>,
    age: HashMap<Request, u64>,
    clock: u64,
}

impl Uploads {
    pub(crate) fn push(&mut self, request: Request) {
        if self.age.len() < MAX_UPLOADS && !self.age.contains_key(&request) {
            self.clock += 1;
            self.age.insert(request, self.clock);
            self.by_age.insert(self.clock, request);
        }
    }

    pub(crate) fn cancel(&mut self, request: &Request) {
        if let Some(age) = self.age.remove(request) {
            self.by_age.remove(&age);
        }
    }

    pub(crate) fn first(&self) -> Option<Request> {
        self.by_age.first_key_value().map(|(_, &request)| request)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.age.is_empty()
    }
}

/// What others may touch of a link: its name, its alarm bells, and the two lists that its halves share.
pub(crate) struct Link {
    /// Never used again for another link.
    pub(crate) key: u32,
    pub(crate) peer_id: [u8; 20],
    pub(crate) addr: SocketAddr,
    /// Whether we dialled; then `addr` is where the peer listens.
    pub(crate) is_dialled: bool,
    pub(crate) since: Duration,
    /// When the last block came or went, in milliseconds as `since`.
    last_payload: AtomicU64,
    /// When it last got its turn to be served, likewise.
    last_turn: AtomicU64,
    /// There may be something to say to this peer.
    pub(crate) wake: Notify,
    /// The link has to go.
    pub(crate) close: Notify,
    /// The link has nothing to do any more: both ends have everything.
    pub(crate) finish: Notify,
    /// Blocks asked of the peer, and where they go. What is not in here is not taken.
    pub(crate) asked: Mutex<HashMap<Ask, Arc<PieceBuf>>>,
    /// Ranges the peer asked for, in its order.
    pub(crate) uploads: Mutex<Uploads>,
}

impl Link {
    pub(crate) fn new(key: u32, peer_id: [u8; 20], addr: SocketAddr, is_dialled: bool, since: Duration) -> Link {
        Link {
            key,
            peer_id,
            addr,
            is_dialled,
            since,
            last_payload: AtomicU64::new(0),
            last_turn: AtomicU64::new(0),
            wake: Notify::new(),
            close: Notify::new(),
            finish: Notify::new(),
            asked: Mutex::new(HashMap::new()),
            uploads: Mutex::new(Uploads::default()),
        }
    }

    /// A block has come or gone.
    pub(crate) fn note_payload(&self, now: Duration) {
        self.last_payload.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Its turn to be served has come.
    pub(crate) fn note_turn(&self, now: Duration) {
        self.last_turn.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether it waits for its turn, and has not let the last one pass.
    pub(crate) fn is_in_queue(&self) -> bool {
        let is_after_turn = self.last_payload.load(Ordering::Relaxed) >= self.last_turn.load(Ordering::Relaxed);
        is_after_turn && !lock(&self.uploads).is_empty()
    }

    /// How long no block has come or gone.
    pub(crate) fn idle(&self, now: Duration) -> Duration {
        let last = Duration::from_millis(self.last_payload.load(Ordering::Relaxed));
        now.saturating_sub(last.max(self.since))
    }
}

/// What has been said to the peer and what is to be said; guarded by the engine's lock.
pub(crate) struct LinkState {
    pub(crate) link: Arc<Link>,
    /// How much of the log of verified pieces the peer knows.
    pub(crate) told_haves: usize,
    /// Whether the peer sees only what the seeder's plan shows it.
    pub(crate) shows_little: bool,
    pub(crate) is_interested: bool,
    /// Whether it could be asked for more if there were more to ask for.
    pub(crate) is_hungry: bool,
    pub(crate) cancels: Vec<Ask>,
}

impl LinkState {
    pub(crate) fn new(link: Arc<Link>, told_haves: usize, shows_little: bool) -> LinkState {
        LinkState { link, told_haves, shows_little, is_interested: false, is_hungry: false, cancels: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metainfo::PieceIndex;

    #[test]
    fn ranges_are_served_in_order_once_and_not_after_a_cancel() {
        let request = |begin| Request { piece: PieceIndex(1), begin, len: 16384 };
        let mut uploads = Uploads::default();
        [3, 1, 2, 1, 0].into_iter().for_each(|begin| uploads.push(request(begin)));
        uploads.cancel(&request(2));
        uploads.cancel(&request(9));
        let mut served = Vec::new();
        while let Some(first) = uploads.first() {
            served.push(first.begin);
            uploads.cancel(&first);
        }
        assert_eq!(served, [3, 1, 0]);
        assert!(uploads.is_empty());
        (0..9000).for_each(|begin| uploads.push(request(begin)));
        assert_eq!((uploads.age.len(), uploads.by_age.len()), (MAX_UPLOADS, MAX_UPLOADS));
    }
}

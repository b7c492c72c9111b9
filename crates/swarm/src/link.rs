//! One connected peer, as the rest of the engine sees it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use crate::buffers::PieceBuf;
use crate::picker::Ask;
use crate::wire::Request;

/// What others may touch of a link: its name, its alarm bells, and the two lists that its halves share.
pub(crate) struct Link {
    /// Never used again for another link.
    pub(crate) key: u32,
    pub(crate) peer_id: [u8; 20],
    pub(crate) addr: SocketAddr,
    /// Whether we dialled; then `addr` is where the peer listens.
    pub(crate) is_dialled: bool,
    pub(crate) since: Duration,
    /// There may be something to say to this peer.
    pub(crate) wake: Notify,
    /// The link has to go.
    pub(crate) close: Notify,
    /// The link has nothing to do any more: both ends have everything.
    pub(crate) finish: Notify,
    /// Blocks asked of the peer, and where they go. What is not in here is not taken.
    pub(crate) asked: Mutex<HashMap<Ask, Arc<PieceBuf>>>,
    /// Ranges the peer asked for, in its order.
    pub(crate) uploads: Mutex<VecDeque<Request>>,
}

impl Link {
    pub(crate) fn new(key: u32, peer_id: [u8; 20], addr: SocketAddr, is_dialled: bool, since: Duration) -> Link {
        Link {
            key,
            peer_id,
            addr,
            is_dialled,
            since,
            wake: Notify::new(),
            close: Notify::new(),
            finish: Notify::new(),
            asked: Mutex::new(HashMap::new()),
            uploads: Mutex::new(VecDeque::new()),
        }
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

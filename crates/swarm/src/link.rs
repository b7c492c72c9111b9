//! One connected peer, as the engine's tasks see it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use crate::buffers::PieceBuf;
use crate::picker::{Ask, PeerKey};

/// What others may touch of a link: its name, its alarm bells, and where the blocks asked of it go.
pub(crate) struct Link {
    /// The core's name for it.
    pub(crate) key: PeerKey,
    pub(crate) peer_id: [u8; 20],
    pub(crate) addr: SocketAddr,
    /// Whether we dialled; then `addr` is where the peer listens.
    pub(crate) is_dialled: bool,
    pub(crate) since: Duration,
    /// There may be something to say to this peer, or to serve.
    pub(crate) wake: Notify,
    /// The link has to go.
    pub(crate) close: Notify,
    /// The link has nothing to do any more: both ends have everything.
    pub(crate) finish: Notify,
    /// Where the bytes of blocks asked of the peer go; it is filled under the engine's lock. What is not in here is not
    /// taken.
    pub(crate) asked: Mutex<HashMap<Ask, Arc<PieceBuf>>>,
}

impl Link {
    pub(crate) fn new(key: PeerKey, peer_id: [u8; 20], addr: SocketAddr, is_dialled: bool, since: Duration) -> Link {
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
        }
    }
}

//! One connected peer, from the view of the engine's tasks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use crate::buffers::PieceBuf;
use crate::picker::{Ask, PeerKey};

/// The parts of a link that other tasks use: its key, its notifications, and the destination of requested blocks.
pub(crate) struct Link {
    /// The peer's key in the core.
    pub(crate) key: PeerKey,
    pub(crate) peer_id: [u8; 20],
    pub(crate) addr: SocketAddr,
    /// Whether we dialled; in that case the peer listens at `addr`.
    pub(crate) is_dialled: bool,
    pub(crate) since: Duration,
    /// Who is behind it.
    pub(crate) owner: AtomicU64,
    /// Whether anything has come from the peer since the handshakes.
    pub(crate) has_spoken: AtomicBool,
    /// Bytes that the kernel may hold for the peer and not send yet; 0 before the first block.
    pub(crate) unsent: AtomicU32,
    /// There may be a message or a block to send to this peer.
    pub(crate) wake: Notify,
    /// The link must be closed.
    pub(crate) close: Notify,
    /// The link has nothing left to do: both ends have everything.
    pub(crate) finish: Notify,
    /// The destination of blocks requested from the peer; it is filled under the engine's lock. Blocks that are not in
    /// here are not accepted.
    pub(crate) asked: Mutex<HashMap<Ask, Arc<PieceBuf>>>,
}

impl Link {
    pub(crate) fn new(
        key: PeerKey,
        peer_id: [u8; 20],
        addr: SocketAddr,
        is_dialled: bool,
        since: Duration,
        owner: u64,
    ) -> Link {
        Link {
            owner: AtomicU64::new(owner),
            has_spoken: AtomicBool::new(false),
            unsent: AtomicU32::new(0),
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

    pub(crate) fn owner(&self) -> u64 {
        self.owner.load(Ordering::Relaxed)
    }
}

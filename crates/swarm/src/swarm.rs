//! The swarm from its owner's view: start, watch, finish.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metainfo::{Metainfo, PieceIndex};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::engine::Shared;
use crate::error::SwarmError;
use crate::handshake_slots::HandshakeSlots;
use crate::{Options, Stats, Storage, announcer, peer};

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often the addresses are checked for one that is due.
const DIAL_TICK: Duration = Duration::from_millis(100);

/// One torrent being received and served. Dropping it stops everything.
pub struct Swarm {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    announcers: Vec<JoinHandle<()>>,
}

impl Swarm {
    /// Opens the listening port and starts dialling, announcing, receiving and serving.
    ///
    /// # Errors
    /// [`SwarmError::Listen`] if the port cannot be used; later errors show in [`Swarm::stats`] or
    /// [`Swarm::completed`].
    pub async fn start(meta: Arc<Metainfo>, storage: Arc<dyn Storage>, options: Options) -> Result<Swarm, SwarmError> {
        let listen_error = |source: io::Error| SwarmError::Listen { addr: options.listen, source: Arc::new(source) };
        let listener = TcpListener::bind(options.listen).await.map_err(listen_error)?;
        let local_addr = listener.local_addr().map_err(listen_error)?;
        let shared = Arc::new(Shared::new(meta, storage, &options, local_addr.port()));
        options.peers.iter().for_each(|&addr| shared.add_peer(addr));
        tokio::spawn(accept(Arc::clone(&shared), listener));
        tokio::spawn(dial(Arc::clone(&shared)));
        tokio::spawn(Arc::clone(&shared).run_ticks());
        let announcers = options.trackers.into_iter().map(|url| tokio::spawn(announcer::run(Arc::clone(&shared), url)));
        Ok(Swarm { announcers: announcers.collect(), shared, local_addr })
    }

    /// Where peers reach us.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Adds a peer; it is dialled at once, and again when the connection is lost.
    pub fn add_peer(&self, addr: SocketAddr) {
        self.shared.add_peer(addr);
    }

    /// The statistics so far.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Whether the store holds this piece, verified.
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.shared.holds(piece)
    }

    /// The owner has checked: the store holds these pieces, and they are right. They are given to others from now on.
    /// This is for a swarm that began with [`crate::Have::Unknown`]; pieces that were already known are ignored.
    pub fn found(&self, pieces: &[PieceIndex]) {
        self.shared.found(pieces);
    }

    /// The owner has checked: the store does not hold these pieces. They are requested from now on.
    pub fn lacks(&self, pieces: &[PieceIndex]) {
        self.shared.lacks(pieces);
    }

    /// Waits until every piece is verified and written.
    ///
    /// # Errors
    /// [`SwarmError::Write`] if the store refused a piece; in that case the swarm has stopped.
    pub async fn completed(&self) -> Result<(), SwarmError> {
        let mut completion = self.shared.completion();
        match completion.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            // This cannot happen: the sender lives in `shared`, which `self` holds.
            Err(_) => std::future::pending().await,
        }
    }

    /// Announces to the trackers that it stops, which takes a second at most, and closes every connection.
    pub async fn shutdown(mut self) {
        self.shared.end();
        for announcer in std::mem::take(&mut self.announcers) {
            let _ = announcer.await;
        }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// Accepts connections until the swarm ends.
async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut ending = shared.ending();
    let slots = Arc::new(HandshakeSlots::default());
    loop {
        let accepted = tokio::select! {
            _ = ending.wait_for(|ended| *ended) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, addr)) => {
                // A stranger that connects and sends nothing takes a place for a few seconds, but no memory.
                let Some(slot) = slots.enter(shared.owners.of(addr)) else { continue };
                tokio::spawn(peer::answer(Arc::clone(&shared), stream, addr, slot));
            }
            Err(error) => {
                // Most likely there are no file descriptors left: they become available when links close.
                log::warn!("accepting a peer failed: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Dials addresses that are due until the swarm ends.
async fn dial(shared: Arc<Shared>) {
    let mut ending = shared.ending();
    loop {
        for addr in shared.to_dial() {
            tokio::spawn(peer::dial(Arc::clone(&shared), addr));
        }
        tokio::select! {
            _ = ending.wait_for(|ended| *ended) => return,
            () = shared.dial.notified() => {}
            () = tokio::time::sleep(DIAL_TICK) => {}
        }
    }
}

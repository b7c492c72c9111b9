//! The swarm as its owner sees it: start, watch, finish.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use metainfo::{Metainfo, PieceIndex};
use tokio::net::TcpListener;

use crate::{Options, Stats, Storage};

/// Why a swarm cannot start or go on.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwarmError {
    /// The listening port is taken, or the address is not ours.
    #[error("listening for peers on {addr} failed")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// The store refused a verified piece: a failing disk, most of the time.
    #[error("writing piece {piece} failed; the disk or its cable may be broken")]
    Write {
        /// The piece.
        piece: PieceIndex,
        /// What the store said.
        source: Arc<io::Error>,
    },
    /// The swarm was stopped before it was complete.
    #[error("the swarm was stopped before every piece had arrived")]
    Stopped,
}

/// One torrent being received and served. Dropping it stops everything.
pub struct Swarm {
    local_addr: SocketAddr,
    stats: Stats,
}

impl Swarm {
    /// Opens the listening port and starts dialling, announcing, receiving and serving.
    ///
    /// # Errors
    /// [`SwarmError::Listen`] if the port cannot be had; everything later shows in [`Swarm::stats`] or
    /// [`Swarm::completed`].
    pub async fn start(meta: Arc<Metainfo>, _storage: Arc<dyn Storage>, options: Options) -> Result<Swarm, SwarmError> {
        let listen_error = |source: io::Error| SwarmError::Listen { addr: options.listen, source: Arc::new(source) };
        let listener = TcpListener::bind(options.listen).await.map_err(listen_error)?;
        let local_addr = listener.local_addr().map_err(listen_error)?;
        Ok(Swarm { local_addr, stats: Stats { piece_count: meta.geometry.piece_count(), ..Stats::default() } })
    }

    /// Where peers reach us.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Makes a peer known; it is dialled at once, and again when the connection is lost.
    pub fn add_peer(&self, _addr: SocketAddr) {}

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        self.stats.clone()
    }

    /// Whether the store holds this piece, verified.
    pub fn has(&self, _piece: PieceIndex) -> bool {
        false
    }

    /// Waits until every piece is verified and written.
    ///
    /// # Errors
    /// [`SwarmError::Write`] if the store refused a piece; the swarm has stopped then.
    pub async fn completed(&self) -> Result<(), SwarmError> {
        std::future::pending().await
    }

    /// Tells the trackers goodbye, a second at most, and closes every connection.
    pub async fn shutdown(self) {}
}

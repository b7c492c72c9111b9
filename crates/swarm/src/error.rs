//! Errors that end a swarm.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use metainfo::PieceIndex;

/// Why a swarm cannot start or continue.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwarmError {
    /// The listening port is taken, or the address is not ours.
    #[error("listening for peers on {addr} failed")]
    Listen {
        /// The requested address.
        addr: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// The store refused a verified piece: usually the disk is failing.
    #[error("writing piece {piece} failed; the disk or its cable may be broken")]
    Write {
        /// The piece.
        piece: PieceIndex,
        /// The store's error.
        source: Arc<io::Error>,
    },
}

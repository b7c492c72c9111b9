//! What ends a swarm.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use metainfo::PieceIndex;

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
}

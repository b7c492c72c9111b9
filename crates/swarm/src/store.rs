//! The engine's view of where pieces are stored.

use std::io;

use metainfo::PieceIndex;

/// Where pieces are stored. The calls block; the engine makes them from blocking threads, several at a time.
pub trait Storage: Send + Sync + 'static {
    /// Writes one whole piece whose hash has been checked.
    ///
    /// # Errors
    /// Any error is fatal to this swarm (and only to it): it stops, and [`crate::Swarm::completed`] says why.
    fn write_piece(&self, piece: PieceIndex, data: &[u8]) -> io::Result<()>;

    /// Reads `buf.len()` bytes from byte `offset` of a piece this store holds.
    ///
    /// # Errors
    /// After an error the piece is not given to anybody any more; the swarm goes on.
    fn read(&self, piece: PieceIndex, offset: u32, buf: &mut [u8]) -> io::Result<()>;
}

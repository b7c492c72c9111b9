//! Statistics of a swarm, as one snapshot.

use std::net::SocketAddr;
use std::time::Instant;

/// A peer that took our connection and closed it before it said anything, as a peer does that has no place left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnedAway {
    /// Where the peer listens.
    pub addr: SocketAddr,
    /// Whether it answered our handshake, so that it has this torrent. If it did not, it may have another one only.
    pub has_torrent: bool,
}

/// A snapshot of a swarm; byte counts are payload, without protocol overhead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pieces verified and written, or held from the start.
    pub pieces_have: u32,
    /// Pieces of the torrent.
    pub piece_count: u32,
    /// Bytes in those pieces.
    pub bytes_have: u64,
    /// Block bytes received, good or not.
    pub downloaded: u64,
    /// Block bytes sent.
    pub uploaded: u64,
    /// Block bytes received in vain: twice, without a request, or in a piece whose hash was wrong.
    pub wasted: u64,
    /// Peers connected.
    pub peers: usize,
    /// Connected peers that have everything.
    pub seeders: usize,
    /// Missing pieces that no connected peer has announced.
    pub pieces_nowhere: usize,
    /// Pieces whose hash was wrong.
    pub bad_pieces: u64,
    /// Pieces that are held and not given to anybody, because they cannot be read or are wrong.
    pub pieces_withheld: u32,
    /// Why the first of those is not, in words.
    pub withheld_why: Option<String>,
    /// Messages that broke the protocol; each cost its sender the connection.
    pub bad_packets: u64,
    /// When the last block was sent.
    pub last_upload: Option<Instant>,
    /// The last peer that turned us away, until one talks to us or that one can no longer be reached.
    pub turned_away: Option<TurnedAway>,
    /// The error of the last announce, until one succeeds.
    pub tracker_error: Option<String>,
}

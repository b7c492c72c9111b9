//! The caller's decisions about a swarm.

use std::net::{Ipv4Addr, SocketAddr};

use crate::owners::Owners;
use crate::pace::{MEMORY_BYTES, UPLOAD_SLOTS};

/// Which pieces the store already holds, as the caller has proven or will prove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Have {
    /// Nothing: a fresh receiver.
    #[default]
    None,
    /// Everything: a seeder.
    All,
    /// One entry per piece; missing entries count as not held.
    These(Vec<bool>),
    /// This is not known yet. The owner checks, and reports it with [`crate::Swarm::found`] and
    /// [`crate::Swarm::lacks`]; until then a piece is neither requested nor given.
    Unknown,
}

/// Options of one swarm. [`Options::default`] suits a receiver of 512 MB.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where peers reach us; port 0 means any free one.
    pub listen: SocketAddr,
    /// Announce URLs (`http://…`), all of them used at once.
    pub trackers: Vec<String>,
    /// Peers known beforehand.
    pub peers: Vec<SocketAddr>,
    /// The pieces that the store holds at the start.
    pub have: Have,
    /// Bytes for incoming pieces and for the upload cache, together. One piece is always allowed.
    pub memory_bytes: usize,
    /// How many peers are served at the same time; every peer may make requests.
    pub upload_slots: usize,
    /// Most links to other peers.
    pub max_peers: usize,
    /// Limit on payload sent, in bytes per second.
    pub up_bytes_per_s: Option<u64>,
    /// Limit on payload received, in bytes per second.
    pub down_bytes_per_s: Option<u64>,
    /// Who is behind a link. Where places or turns are short, owners share them, whatever number of links each has.
    pub owners: Owners,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            trackers: Vec::new(),
            peers: Vec::new(),
            have: Have::None,
            memory_bytes: MEMORY_BYTES,
            upload_slots: UPLOAD_SLOTS,
            max_peers: 40,
            up_bytes_per_s: None,
            down_bytes_per_s: None,
            owners: Owners::default(),
        }
    }
}

//! The numbers that decide how a swarm moves. The simulator uses the same ones, so what it shows is what is built.

use std::time::Duration;

/// Bytes asked for and not yet here, over all peers: a LAN's round trip holds about 40 KiB, and what is reserved at a
/// busy peer cannot be had from an idle one.
pub const OUTSTANDING_BYTES: u32 = 2 << 20;
/// The least of that from each peer that has something for us.
pub const OUTSTANDING_LEAST: u32 = 128 << 10;
/// How often deadlines are looked at.
pub const TICK: Duration = Duration::from_millis(100);
/// A turn at being served is one piece, but at least and at most this many bytes: shorter ones only switch, longer ones
/// keep others waiting.
pub const TURN_BYTES: (u32, u32) = (256 << 10, 4 << 20);
/// A peer that takes nothing for this long loses its place among those being served: its own link is busy with others,
/// and ours need not wait for it. What it asked for stays, and goes out as it takes it.
pub const SLOT_STALL: Duration = Duration::from_millis(100);
/// The kernel gives up a connection to a machine that acknowledges nothing after this.
pub const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// Peers served at the same moment, unless [`Options`](crate::Options) say otherwise.
pub const UPLOAD_SLOTS: usize = 3;
/// Memory for pieces on their way in and for the upload cache, in bytes, unless [`Options`](crate::Options) say otherwise.
pub const MEMORY_BYTES: usize = 96 << 20;

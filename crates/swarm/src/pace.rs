//! The numbers that decide how a swarm moves. The simulator uses the same numbers, so its results apply to the real
//! engine.

use std::time::Duration;

/// Bytes requested but not yet received, over all peers: a LAN's round trip holds about 40 KiB, and bytes reserved at a
/// busy peer cannot come from an idle one.
pub const OUTSTANDING_BYTES: u32 = 2 << 20;
/// The minimum of that for each peer that has something for us.
pub const OUTSTANDING_LEAST: u32 = 128 << 10;
/// How often deadlines are checked.
pub const TICK: Duration = Duration::from_millis(100);
/// A turn of being served is one piece, but at least and at most this many bytes: shorter turns only cause switching,
/// longer ones keep other peers waiting.
pub const TURN_BYTES: (u32, u32) = (256 << 10, 4 << 20);
/// A peer that takes no data for this long loses its place among those being served: its link is busy with others, and
/// ours need not wait for it. Its requests stay, and are sent as it takes them.
pub const SLOT_STALL: Duration = Duration::from_millis(100);
/// An owner that was served within this time still competes for turns: between two of its messages there is a moment
/// in which it wants nothing.
pub const COMPETES_FOR: Duration = Duration::from_millis(500);
/// Links of one owner that may be served or stalled at the same time, if it has several: each has bytes on the wire.
pub const OWNER_LINKS: usize = 8;
/// Turns that others get before an owner with several links, which was just served, is served again, or one for each of them if
/// they are more, unless they do not want as many within [`COMPETES_FOR`].
pub const OTHERS_TURNS: u64 = 3;
/// An owner that is sent again what it was sent before gets a turn this often while others want their first copy.
pub const REPEATS_EVERY: Duration = Duration::from_secs(2);
/// A seeder asks at most this often whether there are pieces again that nobody else has.
pub const PLAN_AGAIN: Duration = Duration::from_secs(1);
/// A link that has moved this many bytes did something useful. A turn is at least as long.
pub const USEFUL_BYTES: u32 = TURN_BYTES.0;
/// After this time, the kernel closes a connection to a machine that acknowledges nothing.
pub const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// Peers served at the same time, unless [`Options`](crate::Options) say otherwise.
pub const UPLOAD_SLOTS: usize = 3;
/// Memory for incoming pieces and for the upload cache, in bytes, unless [`Options`](crate::Options) say otherwise.
pub const MEMORY_BYTES: usize = 96 << 20;

//! A BitTorrent engine for a room of machines that start together: one torrent, one LAN, all peers cooperative.
//!
//! A caller needs only [`Swarm::start`] and a [`Storage`] for verified pieces; the server offers [`Tracker`] over HTTP.
//! All decisions are in pure modules; sockets, threads and clocks are in the modules that drive them. No byte reaches a
//! [`Storage`] before its piece's hash matched.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

pub mod announce;
pub mod bits;
pub mod core;
pub mod options;
pub mod owners;
pub mod pace;
pub mod picker;
pub mod stats;
pub mod store;
pub mod super_seeding;
pub mod swarm;
pub mod tracker;
pub mod wire;

mod announcer;
mod book;
mod buffers;
mod engine;
mod error;
mod handshake_slots;
mod hash_queue;
mod limiter;
mod link;
mod peer;
mod verify;

pub use crate::error::SwarmError;
pub use crate::options::{Have, Options};
pub use crate::stats::{Stats, TurnedAway};
pub use crate::store::Storage;
pub use crate::swarm::Swarm;
pub use crate::tracker::{AnnounceQuery, Tracker};

//! Everything a machine needs to boot from the network, without sockets, clocks or async: DHCPv4 messages, the DHCP
//! client of the RAM system, the DHCP server of a private rack, ProxyDHCP and PXE, and a TFTP client.
//!
//! Bytes and times come in as arguments, decisions go out as values. Everything that comes from the network may be garbage:
//! it is refused as a value ([`message::Malformed`], [`dhcp::Received::Ignored`]), never with a panic.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

pub mod loaders;
pub mod message;

pub mod dhcp;
pub mod frames;
pub mod pxe;
pub mod rivals;
pub mod server;
pub mod tftp;

pub use order::{MacAddr, MacError};

//! The DHCP client of the RAM system: one lease for one interface, from power-on to the last renewal (RFC 2131).
//!
//! States: *selecting* (broadcasting DISCOVER), *requesting* (an offer was taken, REQUEST is out), *bound* (with a
//! renewal by unicast after T1 and by broadcast after T2). The caller owns the socket and the clock:
//!
//! ```text
//! loop {
//!     match client.poll(now) {
//!         Step::Send(datagram) => send it (the socket has SO_BROADCAST, is bound to port 68 and to the interface),
//!         Step::Wait { until } => receive until then; client.receive(bytes, now) says Leased(lease), Lost, …
//!     }
//! }
//! ```
//! The client never gives up; how long to wait for a first lease is the caller's decision.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Flags, MessageType, OptionCode};

use crate::message::{self, Datagram, Malformed, Message, SERVER_PORT};
use order::MacAddr;

/// Pauses between DISCOVERs. Short at first, because most links are up; never long, because a port that spanning
/// tree holds back for 50 s should not cost another minute.
const DISCOVER_PAUSES_S: [u64; 4] = [1, 2, 4, 4];
/// Pauses after each REQUEST; then the offer is taken as gone and selecting starts again.
const REQUEST_PAUSES_S: [u64; 4] = [1, 2, 4, 4];
/// Pause after a NAK, so that a server which refuses everybody is not flooded.
const NAK_PAUSE: Duration = Duration::from_secs(1);
/// Least pause between renewals, whatever the lease time says.
const RENEW_PAUSE: Duration = Duration::from_secs(5);
/// Taken when a server names no lease time, and the shortest we believe.
const DEFAULT_LEASE_S: u32 = 3600;
const MIN_LEASE_S: u32 = 20;

/// What a server gave us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Length of the network prefix, 0 to 32; by the address's class if the server named no mask.
    pub prefix_len: u8,
    /// First default router.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// The server that gave the lease.
    pub server_id: Ipv4Addr,
    /// Next server, where TFTP is: the `siaddr` field, else option 66 if that is an address.
    pub siaddr: Option<Ipv4Addr>,
    /// How long the lease lasts, at least 20 s.
    pub lease_time: Duration,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this, then ask again.
    Send(Datagram),
    /// Nothing to do before `until` unless a packet arrives.
    Wait {
        /// When to ask again.
        until: Instant,
    },
}

/// What a received packet meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Not ours, not now, or not DHCP: count it if you like.
    Ignored(Reason),
    /// An offer was taken; [`Client::poll`] now gives the REQUEST.
    Offered {
        /// The offered address.
        address: Ipv4Addr,
        /// Who offers it.
        server_id: Ipv4Addr,
    },
    /// A new lease, or the old one renewed: configure the interface.
    Leased(Lease),
    /// The server refused; the address may not be used (any more), and selecting starts again.
    Refused {
        /// The server's words, or empty.
        why: String,
    },
}

/// Why a packet was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No DHCP message.
    #[error("not a DHCP message")]
    Malformed(#[from] Malformed),
    /// Another machine's, or an answer to something older.
    #[error("it answers another machine or an older question")]
    NotOurs,
    /// A kind of message that does not fit the state, as a second offer.
    #[error("it comes at the wrong time")]
    Untimely,
    /// An offer or ACK without an address or server: ProxyDHCP, or nonsense.
    #[error("it gives no address")]
    NoAddress,
}

/// The client's state machine.
#[derive(Clone, Debug)]
pub struct Client {
    mac: MacAddr,
    xid: u32,
    started: Instant,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Selecting { tries: usize, next: Instant },
    Requesting { offer: Lease, tries: usize, next: Instant },
    Bound { lease: Lease, since: Instant, next: Instant },
}

impl Client {
    /// A client for the interface with this address. `xid` has to be random: it is what tells machines apart that
    /// ask at the same moment.
    pub fn new(mac: MacAddr, xid: u32, now: Instant) -> Client {
        Client { mac, xid, started: now, state: State::Selecting { tries: 0, next: now } }
    }

    /// The lease, while there is one.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound { lease, .. } => Some(lease),
            _ => None,
        }
    }

    /// What to send or how long to wait. A lease that ran out without an answer is dropped here: [`Client::lease`]
    /// is `None` again and DISCOVER starts over.
    pub fn poll(&mut self, now: Instant) -> Step {
        if let State::Bound { lease, since, .. } = &self.state
            && now >= *since + lease.lease_time
        {
            self.restart(now);
        }
        let (due, pause) = match &mut self.state {
            State::Selecting { tries, next } => {
                let pause = DISCOVER_PAUSES_S[(*tries).min(DISCOVER_PAUSES_S.len() - 1)];
                (next, Some((tries, Duration::from_secs(pause))))
            }
            State::Requesting { tries, next, .. } => match REQUEST_PAUSES_S.get(*tries) {
                Some(&pause) => (next, Some((tries, Duration::from_secs(pause)))),
                None if now < *next => return Step::Wait { until: *next },
                None => {
                    self.restart(now);
                    return self.poll(now);
                }
            },
            State::Bound { next, .. } => (next, None),
        };
        if now < *due {
            return Step::Wait { until: *due };
        }
        if let Some((tries, pause)) = pause {
            *due = now + pause;
            *tries += 1;
        } else if let State::Bound { lease, since, next } = &mut self.state {
            // Half of what is left, as RFC 2131 section 4.4.5 asks, until nothing is left.
            let left = (*since + lease.lease_time).saturating_duration_since(now);
            *next = now + (left / 2).max(RENEW_PAUSE);
        }
        Step::Send(self.packet(now))
    }

    /// Looks at a packet that arrived on port 68.
    pub fn receive(&mut self, packet: &[u8], now: Instant) -> Received {
        match self.answer(packet) {
            Err(reason) => Received::Ignored(reason),
            Ok((MessageType::Nak, reply)) => {
                let why = match reply.opts().get(OptionCode::Message) {
                    Some(DhcpOption::Message(text)) => text.chars().filter(|c| !c.is_control()).take(80).collect(),
                    _ => String::new(),
                };
                self.restart(now + NAK_PAUSE);
                Received::Refused { why }
            }
            Ok((kind, reply)) => {
                let Some(lease) = lease_in(&reply) else { return Received::Ignored(Reason::NoAddress) };
                if kind == MessageType::Offer {
                    let (address, server_id) = (lease.address, lease.server_id);
                    self.state = State::Requesting { offer: lease, tries: 0, next: now };
                    Received::Offered { address, server_id }
                } else {
                    let next = now + lease.lease_time / 2;
                    self.state = State::Bound { lease: lease.clone(), since: now, next };
                    Received::Leased(lease)
                }
            }
        }
    }

    /// Gives the lease back; send it if the address will not be used any more.
    pub fn release(&self) -> Option<Datagram> {
        let lease = self.lease()?;
        let mut message = self.blank(MessageType::Release);
        message.set_ciaddr(lease.address);
        message.opts_mut().insert(DhcpOption::ServerIdentifier(lease.server_id));
        Some(Datagram { to: SocketAddrV4::new(lease.server_id, SERVER_PORT), bytes: message::encode(&message) })
    }

    fn restart(&mut self, next: Instant) {
        // A new transaction, so that late answers to the old one do not count.
        self.xid = self.xid.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.state = State::Selecting { tries: 0, next };
    }

    /// The message if it answers what was asked last, with its type.
    fn answer(&self, packet: &[u8]) -> Result<(MessageType, Message), Reason> {
        let reply = message::decode(packet)?;
        if reply.xid() != self.xid || message::mac_of(&reply) != self.mac {
            return Err(Reason::NotOurs);
        }
        let kind = reply.opts().msg_type().ok_or(Reason::Untimely)?;
        let server = message::address_of(&reply, OptionCode::ServerIdentifier);
        match (&self.state, kind) {
            (State::Selecting { .. }, MessageType::Offer) => Ok((kind, reply)),
            (State::Requesting { offer, .. }, MessageType::Ack | MessageType::Nak) => {
                // A NAK from a server that was not chosen must not end this (seen with two servers on one link).
                if server == Some(offer.server_id) { Ok((kind, reply)) } else { Err(Reason::NotOurs) }
            }
            (State::Bound { lease, .. }, MessageType::Ack) if reply.yiaddr() == lease.address => Ok((kind, reply)),
            (State::Bound { lease, .. }, MessageType::Nak) if server == Some(lease.server_id) => Ok((kind, reply)),
            _ => Err(Reason::Untimely),
        }
    }

    fn packet(&self, now: Instant) -> Datagram {
        let mut to = Ipv4Addr::BROADCAST;
        let mut message;
        match &self.state {
            State::Selecting { .. } => message = self.blank(MessageType::Discover),
            State::Requesting { offer, .. } => {
                message = self.blank(MessageType::Request);
                message.opts_mut().insert(DhcpOption::RequestedIpAddress(offer.address));
                message.opts_mut().insert(DhcpOption::ServerIdentifier(offer.server_id));
            }
            State::Bound { lease, since, .. } => {
                message = self.blank(MessageType::Request);
                message.set_ciaddr(lease.address).set_flags(Flags::default());
                if now < *since + lease.lease_time * 7 / 8 {
                    to = lease.server_id;
                }
            }
        }
        let elapsed = now.saturating_duration_since(self.started).as_secs();
        message.set_secs(u16::try_from(elapsed).unwrap_or(u16::MAX));
        Datagram { to: SocketAddrV4::new(to, SERVER_PORT), bytes: message::encode(&message) }
    }

    /// A request with what is the same in all of them. The broadcast flag is set because an interface without an
    /// address cannot be unicast to by every server.
    fn blank(&self, kind: MessageType) -> Message {
        let nowhere = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(self.xid, nowhere, nowhere, nowhere, nowhere, &self.mac.0);
        message.set_flags(Flags::default().set_broadcast());
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClientIdentifier([&[1], &self.mac.0[..]].concat()));
        if !matches!(kind, MessageType::Release) {
            options.insert(DhcpOption::MaxMessageSize(1472));
            options.insert(DhcpOption::ClassIdentifier(b"ezio".to_vec()));
            options.insert(DhcpOption::ParameterRequestList(vec![
                OptionCode::SubnetMask,
                OptionCode::Router,
                OptionCode::DomainNameServer,
                OptionCode::AddressLeaseTime,
                OptionCode::ServerIdentifier,
                OptionCode::Renewal,
                OptionCode::Rebinding,
                OptionCode::TFTPServerName,
            ]));
        }
        message
    }
}

/// The lease in an OFFER or ACK; `None` if it has no address or no server, as ProxyDHCP offers.
fn lease_in(reply: &Message) -> Option<Lease> {
    let address = reply.yiaddr();
    let usable = !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast();
    if !usable || address.is_loopback() {
        return None;
    }
    let server_id = message::address_of(reply, OptionCode::ServerIdentifier)?;
    let named = message::bytes_of(reply, OptionCode::TFTPServerName)
        .and_then(|name| std::str::from_utf8(name).ok()?.trim_end_matches('\0').parse::<Ipv4Addr>().ok());
    let dns = match reply.opts().get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers.clone(),
        _ => Vec::new(),
    };
    let lease_s = message::seconds_of(reply, OptionCode::AddressLeaseTime).unwrap_or(DEFAULT_LEASE_S);
    Some(Lease {
        address,
        prefix_len: prefix_len(address, message::address_of(reply, OptionCode::SubnetMask)),
        router: message::address_of(reply, OptionCode::Router),
        dns,
        server_id,
        siaddr: Some(reply.siaddr()).filter(|next| !next.is_unspecified()).or(named),
        lease_time: Duration::from_secs(u64::from(lease_s.max(MIN_LEASE_S))),
    })
}

/// The mask as a length; the address's class where there is none, or one with holes.
fn prefix_len(address: Ipv4Addr, mask: Option<Ipv4Addr>) -> u8 {
    let class = match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    };
    mask.map(u32::from)
        .filter(|mask| mask.leading_ones() + mask.trailing_zeros() == 32)
        .and_then(|mask| u8::try_from(mask.leading_ones()).ok())
        .unwrap_or(class)
}

#[cfg(test)]
mod tests;

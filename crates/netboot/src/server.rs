//! A DHCP server for a private rack: leases from one range, boot options for machines that netboot (RFC 2131).
//!
//! A machine is its Ethernet address here, not its client identifier: firmware, iPXE, `/init` and the installed
//! system send four different identifiers (or none), and should all get the same address.
//!
//! It is the only server of its network and says so: a request it cannot keep is refused, not left unanswered, and an
//! address that a machine remembers from before the leases were lost is adopted if it is free.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;

use dhcproto::v4::{DhcpOption, MessageType, OptionCode};
use serde::{Deserialize, Serialize};

use crate::message::{self, CLIENT_PORT, Datagram, Message, SERVER_PORT};
use crate::pxe::{self, BootServer};
use order::MacAddr;

/// How long an offered address waits for its REQUEST, in seconds. Firmware takes 4 s, a slow machine ten.
const OFFER_S: u64 = 60;
/// How long an address that was found in use is left alone, in seconds.
const DECLINED_S: u64 = 600;

/// What the server gives out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Our address on this network.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// First and last address to give out. Those that no machine can have are left out by themselves: ours, the router's, and
    /// the first and last one of the network.
    pub range: RangeInclusive<Ipv4Addr>,
    /// Addresses for networks behind relays; their router is the relay.
    pub relayed: Vec<RelayedRange>,
    /// Further addresses of this computer.
    pub own: Vec<Ipv4Addr>,
    /// Whether an address is looked for on the network before it is given to a machine that does not have it:
    /// [`Outcome::Probe`].
    pub probe: bool,
    /// Default router, if the network has one.
    pub router: Option<Ipv4Addr>,
    /// Name servers, if any.
    pub dns: Vec<Ipv4Addr>,
    /// How long a lease lasts, in seconds.
    pub lease_s: u32,
}

/// Addresses for one network behind a relay (RFC 2131, section 4.3.1: by `giaddr`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayedRange {
    /// First and last address to give out.
    pub range: RangeInclusive<Ipv4Addr>,
    /// Length of that network's prefix.
    pub prefix_len: u8,
}

/// The network that a message is about.
#[derive(Clone, Debug)]
struct Network {
    /// One of its addresses.
    address: Ipv4Addr,
    prefix_len: u8,
    range: RangeInclusive<Ipv4Addr>,
    router: Option<Ipv4Addr>,
    /// Whether it is our own link, where addresses can be looked for.
    is_here: bool,
}

impl Network {
    fn has(&self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.address)) & mask(self.prefix_len) == 0
    }
}

/// One address and whose it is; plain data, to be kept on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The address.
    pub address: Ipv4Addr,
    /// The machine it belongs to; `None` for an address that was found in use.
    pub mac: Option<MacAddr>,
    /// When it ends, in seconds since 1970. A record that has ended still remembers whose address it was.
    pub expires: u64,
}

/// What a packet led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not for us, or nothing to say.
    Silent,
    /// Find out whether a host uses this address already (RFC 2131, section 2.2, by RFC 5227), say so by
    /// [`DhcpServer::probed`] or [`DhcpServer::found_in_use`], and handle the message again.
    Probe(Ipv4Addr),
    /// A relay asks for a network that is not ours: it gets no answer (RFC 2131, section 4.3.1).
    Elsewhere(Ipv4Addr),
    /// An address was offered.
    Offered(Ipv4Addr, Datagram),
    /// A lease was given or renewed: keep [`DhcpServer::leases`].
    Leased(Ipv4Addr, Datagram),
    /// The client asked only for options (INFORM).
    Informed(Datagram),
    /// The client may not have what it asked for.
    Refused(Datagram),
    /// The client gave an address back, or found it in use: keep [`DhcpServer::leases`].
    Freed(Ipv4Addr),
    /// No address is left to offer.
    Exhausted,
}

/// The server's state machine.
#[derive(Clone, Debug)]
pub struct DhcpServer {
    config: ServerConfig,
    leases: BTreeMap<Ipv4Addr, LeaseRecord>,
    offers: BTreeMap<Ipv4Addr, Offer>,
}

/// An address that is kept for a machine until it asks for it.
#[derive(Clone, Copy, Debug)]
struct Offer {
    mac: MacAddr,
    /// In seconds since 1970.
    expires: u64,
    /// Whether it has been looked for on the network.
    is_probed: bool,
}

impl DhcpServer {
    /// A server that remembers what it gave out before; records outside the range are forgotten.
    pub fn new(config: ServerConfig, records: Vec<LeaseRecord>) -> DhcpServer {
        let mut server = DhcpServer { config, leases: BTreeMap::new(), offers: BTreeMap::new() };
        for record in records {
            let mut networks = server.behind(None).chain([server.here()]);
            let may_be = networks.any(|network| server.may_give(&network, record.address));
            drop(networks);
            if may_be {
                server.leases.insert(record.address, record);
            }
        }
        server
    }

    /// Everything there is to remember, by address.
    pub fn leases(&self) -> Vec<LeaseRecord> {
        self.leases.values().cloned().collect()
    }

    /// Answers one message. `now` is in seconds since 1970; `boot` is what netboot clients are told, `None` to let
    /// them boot what they like.
    pub fn handle(&mut self, request: &Message, boot: Option<&BootServer>, now: u64) -> Outcome {
        let mac = message::mac_of(request);
        self.offers.retain(|_, offer| offer.expires > now);
        match request.opts().msg_type() {
            Some(MessageType::Discover) => {
                let Some(network) = self.network_of(request) else { return Outcome::Elsewhere(request.giaddr()) };
                let Some(address) = self.choose(&network, mac, requested(request), now) else {
                    return Outcome::Exhausted;
                };
                if network.is_here && self.has_to_probe(address, mac, now) {
                    return Outcome::Probe(address);
                }
                self.keep(address, mac, now, true);
                Outcome::Offered(address, self.grant(&network, request, boot, MessageType::Offer, Some(address)))
            }
            Some(MessageType::Request) => self.request(request, mac, boot, now),
            Some(MessageType::Inform) => match self.network_of(request) {
                None => Outcome::Elsewhere(request.giaddr()),
                // What we would say of mask and router does not hold there.
                Some(network) if !network.has(request.ciaddr()) => Outcome::Silent,
                Some(network) => Outcome::Informed(self.grant(&network, request, boot, MessageType::Ack, None)),
            },
            Some(MessageType::Release) => {
                let address = request.ciaddr();
                match self.leases.get_mut(&address) {
                    Some(record) if record.mac == Some(mac) && record.expires > now => {
                        record.expires = now;
                        Outcome::Freed(address)
                    }
                    _ => Outcome::Silent,
                }
            }
            Some(MessageType::Decline) => match requested(request) {
                // Only the machine that was given an address may spoil it.
                Some(address) if self.owner(address, now) == Some(Some(mac)) => {
                    self.offers.remove(&address);
                    self.leases.insert(address, LeaseRecord { address, mac: None, expires: now + DECLINED_S });
                    Outcome::Freed(address)
                }
                _ => Outcome::Silent,
            },
            _ => Outcome::Silent,
        }
    }

    fn request(&mut self, request: &Message, mac: MacAddr, boot: Option<&BootServer>, now: u64) -> Outcome {
        let server_id = message::address_of(request, OptionCode::ServerIdentifier);
        if server_id.is_some_and(|server_id| server_id != self.config.address) {
            // Another server was chosen.
            self.offers.retain(|_, offer| offer.mac != mac);
            return Outcome::Silent;
        }
        let Some(network) = self.network_of(request) else { return Outcome::Elsewhere(request.giaddr()) };
        let renewing = Some(request.ciaddr()).filter(|address| !address.is_unspecified());
        // A machine behind a relay that renews its lease past it: which router to name, only the relay knows. The machine asks
        // through it before the lease ends (RFC 2131, section 4.4.5).
        let is_behind = |address| self.behind(None).any(|network| network.has(address));
        if network.is_here && renewing.is_some_and(is_behind) {
            return Outcome::Silent;
        }
        let Some(address) = renewing.or(requested(request)) else { return Outcome::Silent };
        let free_or_own = match self.owner(address, now) {
            None => true,
            Some(owner) => owner == Some(mac),
        };
        if !self.may_give(&network, address) || !free_or_own {
            return Outcome::Refused(self.refuse(request));
        }
        if network.is_here && self.has_to_probe(address, mac, now) {
            return Outcome::Probe(address);
        }
        self.offers.retain(|_, offer| offer.mac != mac);
        self.leases.retain(|_, record| record.mac != Some(mac));
        let expires = now + u64::from(self.config.lease_s);
        self.leases.insert(address, LeaseRecord { address, mac: Some(mac), expires });
        Outcome::Leased(address, self.grant(&network, request, boot, MessageType::Ack, Some(address)))
    }

    /// Whether an address has to be looked for on the network before this machine gets it; it is kept for the machine
    /// meanwhile. What the machine has already is its own.
    fn has_to_probe(&mut self, address: Ipv4Addr, mac: MacAddr, now: u64) -> bool {
        let is_leased = self.leases.get(&address).is_some_and(|old| old.mac == Some(mac) && old.expires > now);
        let is_probed = self.offers.get(&address).is_some_and(|offer| offer.mac == mac && offer.is_probed);
        if !self.config.probe || is_leased || is_probed {
            return false;
        }
        self.keep(address, mac, now, false);
        true
    }

    /// Keeps one address for a machine, and no other one.
    fn keep(&mut self, address: Ipv4Addr, mac: MacAddr, now: u64, is_probed: bool) {
        self.offers.retain(|_, offer| offer.mac != mac);
        self.offers.insert(address, Offer { mac, expires: now + OFFER_S, is_probed });
    }

    /// No host has answered for an address that is kept for this machine.
    pub fn probed(&mut self, address: Ipv4Addr, mac: MacAddr) {
        if let Some(offer) = self.offers.get_mut(&address).filter(|offer| offer.mac == mac) {
            offer.is_probed = true;
        }
    }

    /// A host has answered for an address that was to be given out: it is left alone for a while. `now` is in seconds since
    /// 1970.
    pub fn found_in_use(&mut self, address: Ipv4Addr, now: u64) {
        if self.may_give(&self.here(), address) {
            self.offers.remove(&address);
            self.leases.insert(address, LeaseRecord { address, mac: None, expires: now + DECLINED_S });
        }
    }

    /// Who holds an address now: `None` nobody, `Some(None)` an unknown machine, `Some(Some(mac))` that machine.
    fn owner(&self, address: Ipv4Addr, now: u64) -> Option<Option<MacAddr>> {
        if let Some(offer) = self.offers.get(&address) {
            return Some(Some(offer.mac));
        }
        self.leases.get(&address).filter(|record| record.expires > now).map(|record| record.mac)
    }

    /// Its own address if it ever had one, else what it asks for, else a fixed place by its address, else any
    /// that was never given out, else the one that has been free for longest.
    fn choose(&self, network: &Network, mac: MacAddr, wanted: Option<Ipv4Addr>, now: u64) -> Option<Ipv4Addr> {
        let offered = self.offers.iter().filter(|(_, offer)| offer.mac == mac).map(|(address, _)| *address);
        let remembered = self.leases.values().filter(|record| record.mac == Some(mac)).map(|record| record.address);
        let usable = |address: &Ipv4Addr| {
            self.may_give(network, *address) && self.owner(*address, now).is_none_or(|owner| owner == Some(mac))
        };
        if let Some(address) = offered.chain(remembered).chain(wanted).find(usable) {
            return Some(address);
        }
        let (first, last) = (u32::from(*network.range.start()), u32::from(*network.range.end()));
        let span = u64::from(last.checked_sub(first)?) + 1;
        let seed = mac.0.iter().fold(0u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        // A range of a /8 would be walked for every packet of a flood once it is full; no rack has 65536 machines.
        (0..span.min(65536))
            .map(|step| first + u32::try_from((seed + step) % span).expect("below span, which is within 32 bits"))
            .map(Ipv4Addr::from)
            .find(|address| !self.leases.contains_key(address) && usable(address))
            .or_else(|| {
                let ended = self.leases.values().filter(|record| usable(&record.address));
                ended.min_by_key(|record| record.expires).map(|record| record.address)
            })
    }

    /// The network on our own link.
    fn here(&self) -> Network {
        let ServerConfig { address, prefix_len, range, router, .. } = &self.config;
        Network { address: *address, prefix_len: *prefix_len, range: range.clone(), router: *router, is_here: true }
    }

    /// The networks behind relays that we have addresses for; `relay` is their router.
    fn behind(&self, relay: Option<Ipv4Addr>) -> impl Iterator<Item = Network> {
        self.config.relayed.iter().map(move |RelayedRange { range, prefix_len }| Network {
            address: *range.start(),
            prefix_len: *prefix_len,
            range: range.clone(),
            router: relay,
            is_here: false,
        })
    }

    /// The network that the client is on: the relay's, else ours. `None` if we have no addresses for it.
    fn network_of(&self, request: &Message) -> Option<Network> {
        let (here, relay) = (self.here(), request.giaddr());
        if relay.is_unspecified() || here.has(relay) {
            return Some(here);
        }
        self.behind(Some(relay)).find(|network| network.has(relay))
    }

    fn may_give(&self, network: &Network, address: Ipv4Addr) -> bool {
        let mask = mask(network.prefix_len);
        let host = u32::from(address) & !mask;
        // A network of two has neither its own nor a broadcast address (RFC 3021).
        let is_a_hosts = network.prefix_len > 30 || host != 0 && host != !mask;
        let is_ours = address == self.config.address || self.config.own.contains(&address);
        let is_taken = is_ours || Some(address) == network.router;
        network.range.contains(&address) && network.has(address) && is_a_hosts && !is_taken
    }

    fn grant(
        &self,
        network: &Network,
        request: &Message,
        boot: Option<&BootServer>,
        kind: MessageType,
        address: Option<Ipv4Addr>,
    ) -> Datagram {
        let config = &self.config;
        let mut reply = message::reply_to(request, config.address, kind);
        reply.set_ciaddr(request.ciaddr());
        let options = reply.opts_mut();
        let mask = mask(network.prefix_len);
        options.insert(DhcpOption::SubnetMask(mask.into()));
        options.insert(DhcpOption::BroadcastAddr((u32::from(network.address) | !mask).into()));
        if let Some(router) = network.router {
            options.insert(DhcpOption::Router(vec![router]));
        }
        if !config.dns.is_empty() {
            options.insert(DhcpOption::DomainNameServer(config.dns.clone()));
        }
        if address.is_some() {
            options.insert(DhcpOption::AddressLeaseTime(config.lease_s));
            options.insert(DhcpOption::Renewal(config.lease_s / 2));
            options.insert(DhcpOption::Rebinding(config.lease_s / 8 * 7));
        }
        reply.set_yiaddr(address.unwrap_or(Ipv4Addr::UNSPECIFIED));
        // Our own RAM system looks for TFTP here; it is no PXE client any more.
        reply.set_siaddr(config.address);
        if let (Some(boot), Some(client)) = (boot, pxe::identify(request)) {
            pxe::add_boot_options(&mut reply, request, &client, boot);
        }
        Datagram { to: destination(request), bytes: message::encode(&reply) }
    }

    fn refuse(&self, request: &Message) -> Datagram {
        let mut reply = message::reply_to(request, self.config.address, MessageType::Nak);
        reply.opts_mut().insert(DhcpOption::Message("that address is not yours here: ask again".into()));
        let relay = request.giaddr();
        let to = if relay.is_unspecified() {
            SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
        } else {
            // The machine may have no address or a wrong one: the relay has to broadcast this (RFC 2131, section 4.3.2).
            let flags = reply.flags().set_broadcast();
            reply.set_flags(flags);
            SocketAddrV4::new(relay, SERVER_PORT)
        };
        Datagram { to, bytes: message::encode(&reply) }
    }
}

fn mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0)
}

fn requested(request: &Message) -> Option<Ipv4Addr> {
    message::address_of(request, OptionCode::RequestedIpAddress)
}

/// Where a reply goes (RFC 2131, section 4.1). A client without an address gets a broadcast whatever its flag says:
/// unicasting to it would take an ARP entry made by hand, and every client accepts broadcasts.
fn destination(request: &Message) -> SocketAddrV4 {
    if !request.giaddr().is_unspecified() {
        SocketAddrV4::new(request.giaddr(), SERVER_PORT)
    } else if !request.ciaddr().is_unspecified() {
        SocketAddrV4::new(request.ciaddr(), CLIENT_PORT)
    } else {
        SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
    }
}

#[cfg(test)]
mod tests;

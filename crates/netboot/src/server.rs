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
/// How long a lease is not looked after, in seconds: a machine says nothing while its kernel starts.
const YOUNG_S: u64 = 120;

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
    /// The relay through which it was given, which is the machine's router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<Ipv4Addr>,
}

impl LeaseRecord {
    fn is_of(&self, mac: MacAddr) -> bool {
        self.mac == Some(mac)
    }

    fn is_over(&self, now: u64) -> bool {
        self.expires <= now
    }
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
    /// Leased addresses for which a host has answered, and until when they are not looked for again, in seconds since 1970.
    alive: BTreeMap<Ipv4Addr, u64>,
}

/// An address that is kept for a machine until it asks for it, or until another one needs it: a DISCOVER costs nothing, so
/// what it gets may be taken back (RFC 2131, section 3.1: the address need not be reserved).
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
        let mut server =
            DhcpServer { config, leases: BTreeMap::new(), offers: BTreeMap::new(), alive: BTreeMap::new() };
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
        self.alive.retain(|_, until| *until > now);
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
                    Some(record) if record.is_of(mac) && !record.is_over(now) => {
                        record.expires = now;
                        Outcome::Freed(address)
                    }
                    _ => Outcome::Silent,
                }
            }
            Some(MessageType::Decline) => match requested(request) {
                // Only the machine that was given an address may spoil it; one that waits for a look at another's lease was not.
                Some(address) if self.owner(address, now) == Some(Some(mac)) && !self.is_others(address, mac, now) => {
                    self.offers.remove(&address);
                    self.leave_alone(address, now);
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
        let renewing = Some(request.ciaddr()).filter(|address| !address.is_unspecified());
        let past_its_relay = renewing.filter(|_| request.giaddr().is_unspecified());
        let network = match past_its_relay.and_then(|address| self.network_past_its_relay(address, mac, now)) {
            Some(Some(network)) => network,
            // It asks through its relay before the lease ends (RFC 2131, section 4.4.5).
            Some(None) => return Outcome::Silent,
            None => match self.network_of(request) {
                Some(network) => network,
                None => return Outcome::Elsewhere(request.giaddr()),
            },
        };
        let Some(address) = renewing.or(requested(request)) else { return Outcome::Silent };
        if !self.may_give(&network, address) || !self.may_have(address, mac, server_id.is_some(), now) {
            return Outcome::Refused(self.refuse(request));
        }
        if network.is_here && self.has_to_probe(address, mac, now) {
            return Outcome::Probe(address);
        }
        self.offers.retain(|of, offer| offer.mac != mac && *of != address);
        self.leases.retain(|_, record| !record.is_of(mac));
        let expires = now + u64::from(self.config.lease_s);
        let relay = if network.is_here { None } else { network.router };
        self.leases.insert(address, LeaseRecord { address, mac: Some(mac), expires, relay });
        Outcome::Leased(address, self.grant(&network, request, boot, MessageType::Ack, Some(address)))
    }

    /// The network of a machine behind a relay that renews its lease past it (RFC 2131, section 4.3.2: such a message has no
    /// `giaddr`). `Some(None)` if it is on such a network, but which router to name is not known.
    fn network_past_its_relay(&self, address: Ipv4Addr, mac: MacAddr, now: u64) -> Option<Option<Network>> {
        let network = self.behind(None).find(|network| network.has(address))?;
        let lease = self.leases.get(&address).filter(|record| record.is_of(mac) && !record.is_over(now));
        Some(lease.and_then(|record| record.relay).map(|relay| Network { router: Some(relay), ..network }))
    }

    /// Whether a machine that asks for an address may have it. `is_answer`: it answers an offer of ours. Then the first one to
    /// ask gets it, if it was offered to others as well.
    fn may_have(&self, address: Ipv4Addr, mac: MacAddr, is_answer: bool, now: u64) -> bool {
        let is_offered = self.offers.get(&address).map(|offer| offer.mac == mac);
        match self.leases.get(&address) {
            Some(record) if record.is_of(mac) => true,
            // Nobody has answered for it when it was offered.
            Some(record) if !record.is_over(now) => is_offered == Some(true),
            _ => is_answer || is_offered != Some(false),
        }
    }

    /// Whether an address has to be looked for on the network before this machine gets it; it is kept for the machine
    /// meanwhile. What the machine has already is its own.
    fn has_to_probe(&mut self, address: Ipv4Addr, mac: MacAddr, now: u64) -> bool {
        let is_leased = self.leases.get(&address).is_some_and(|old| old.is_of(mac) && !old.is_over(now));
        let is_probed = self.offers.get(&address).is_some_and(|offer| offer.is_probed);
        if !self.config.probe || is_leased || is_probed {
            return false;
        }
        self.keep(address, mac, now, false);
        true
    }

    /// Keeps one address for a machine, and no other one.
    fn keep(&mut self, address: Ipv4Addr, mac: MacAddr, now: u64, is_probed: bool) {
        let is_probed = is_probed || self.offers.get(&address).is_some_and(|offer| offer.is_probed);
        self.offers.retain(|_, offer| offer.mac != mac);
        self.offers.insert(address, Offer { mac, expires: now + OFFER_S, is_probed });
    }

    /// No host has answered for an address that is kept for a machine.
    pub fn probed(&mut self, address: Ipv4Addr) {
        if let Some(offer) = self.offers.get_mut(&address) {
            offer.is_probed = true;
        }
    }

    /// A host has answered for an address that was to be given out: it is left alone for a while, or stays with the machine
    /// that has a lease for it. `now` is in seconds since 1970. Returns that machine.
    pub fn found_in_use(&mut self, address: Ipv4Addr, now: u64) -> Option<MacAddr> {
        if !self.may_give(&self.here(), address) {
            return None;
        }
        self.offers.remove(&address);
        let lease = self.leases.get(&address).filter(|record| !record.is_over(now));
        let holder = lease.and_then(|record| record.mac);
        match holder {
            Some(_) => {
                self.alive.insert(address, now + DECLINED_S);
            }
            None => self.leave_alone(address, now),
        }
        holder
    }

    fn leave_alone(&mut self, address: Ipv4Addr, now: u64) {
        self.leases.insert(address, LeaseRecord { address, mac: None, expires: now + DECLINED_S, relay: None });
    }

    /// Whether another machine has a lease for the address.
    fn is_others(&self, address: Ipv4Addr, mac: MacAddr, now: u64) -> bool {
        self.leases.get(&address).is_some_and(|record| !record.is_over(now) && !record.is_of(mac))
    }

    /// Who holds an address now: `None` nobody, `Some(None)` an unknown machine, `Some(Some(mac))` that machine.
    fn owner(&self, address: Ipv4Addr, now: u64) -> Option<Option<MacAddr>> {
        if let Some(offer) = self.offers.get(&address) {
            return Some(Some(offer.mac));
        }
        self.leases.get(&address).filter(|record| !record.is_over(now)).map(|record| record.mac)
    }

    /// Its own address if it ever had one, else what it asks for, else a fixed place by its address, else any
    /// that was never given out, else the one that has been free for longest. If none is free: the one that was offered
    /// longest ago, and has not been asked for; else the one that was leased longest ago and may belong to nobody any more, if
    /// it can be looked for ([`Outcome::Probe`]).
    fn choose(&self, network: &Network, mac: MacAddr, wanted: Option<Ipv4Addr>, now: u64) -> Option<Ipv4Addr> {
        let offered = self.offers.iter().filter(|(_, offer)| offer.mac == mac).map(|(address, _)| *address);
        let remembered = self.leases.values().filter(|record| record.is_of(mac)).map(|record| record.address);
        // What it has had is its own, whomever it has been offered to meanwhile.
        if let Some(address) = remembered.chain(offered).find(|address| self.may_give(network, *address)) {
            return Some(address);
        }
        let usable = |address: &Ipv4Addr| {
            self.may_give(network, *address) && self.owner(*address, now).is_none_or(|owner| owner == Some(mac))
        };
        if let Some(address) = wanted.filter(usable) {
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
            .or_else(|| {
                let is_leased = |address| self.leases.get(address).is_some_and(|record| !record.is_over(now));
                let waiting = self.offers.iter().filter(|(of, _)| self.may_give(network, **of) && !is_leased(of));
                waiting.min_by_key(|(_, offer)| offer.expires).map(|(address, _)| *address)
            })
            .or_else(|| {
                let given = |record: &LeaseRecord| record.expires.saturating_sub(u64::from(self.config.lease_s));
                let may_be_left = self.leases.values().filter(|record| {
                    let is_kept = self.alive.contains_key(&record.address) || self.offers.contains_key(&record.address);
                    record.mac.is_some() && !is_kept && given(record) + YOUNG_S <= now
                });
                let here = may_be_left.filter(|record| self.may_give(network, record.address));
                let oldest = here.min_by_key(|record| record.expires).map(|record| record.address);
                oldest.filter(|_| network.is_here && self.config.probe)
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

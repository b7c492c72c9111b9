//! From no network to a lease: all interfaces race, the one the firmware booted from wins ties.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use netboot::MacAddr;
use netboot::dhcp::{Client, Lease, Received, Step};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::console::Console;
use crate::netdev::{self, NetDev};

/// How often interfaces and their links are looked at: drivers and cables come when they come.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Head start of the interface that the firmware booted from.
const HEAD_START: Duration = Duration::from_secs(4);
/// After this long without a lease the person at the screen is told; the tries go on. Spanning tree alone may take 50 s.
const COMPLAIN_AFTER: Duration = Duration::from_secs(90);

/// A card whose address could not be set is tried again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Where a DHCP client listens (RFC 2131, section 4.1).
const CLIENT_PORT: u16 = 68;
/// More than the client lets a server send (option 57, 1,472 bytes).
const DATAGRAM_MAX: usize = 1500;

/// An interface with an address.
#[derive(Clone, Debug)]
pub struct Network {
    pub dev: NetDev,
    /// What DHCP gave it.
    pub lease: Lease,
}

/// Waits until one interface has a lease, and goes on renewing it in the background. Never gives up.
pub async fn wait_for_lease(boot_mac: Option<MacAddr>, console: &Console) -> Network {
    let (leases, mut first) = mpsc::channel(1);
    let started = Instant::now();
    let mut known: Vec<NetDev> = Vec::new();
    let mut next_complaint = started + COMPLAIN_AFTER;
    loop {
        for dev in netdev::list() {
            if !known.contains(&dev) {
                console.line(&format!("network card {} ({})", dev.name, dev.mac));
                if let Err(cause) = netdev::set_up(&dev.name) {
                    console.line(&format!("network card {} does not come up: {cause}", dev.name));
                }
                let head_start = match boot_mac {
                    Some(mac) if mac != dev.mac => HEAD_START,
                    _ => Duration::ZERO,
                };
                tokio::spawn(lease_one(dev.clone(), started + head_start, leases.clone(), console.clone()));
                known.push(dev);
            }
        }
        if let Ok(Some(network)) = tokio::time::timeout(LOOK_EVERY, first.recv()).await {
            return network;
        }
        if Instant::now() > next_complaint {
            next_complaint += COMPLAIN_AFTER;
            console.trouble(&why_no_lease(&known));
        }
    }
}

fn why_no_lease(known: &[NetDev]) -> String {
    let cards = |with_link: bool| {
        let names: Vec<_> = known
            .iter()
            .filter(|dev| dev.has_carrier() == with_link)
            .map(|dev| format!("{} ({})", dev.name, dev.mac))
            .collect();
        names.join(", ")
    };
    if known.is_empty() {
        return "no network card found: it may need a driver that only the generic boot image has".to_owned();
    }
    let linked = cards(true);
    if linked.is_empty() {
        return format!("no link on {}: check the cable and the switch port", cards(false));
    }
    format!(
        "no DHCP answer on {linked}: check that a DHCP server runs on this network, or set dhcp = \"server\" in the server's config"
    )
}

async fn lease_one(dev: NetDev, not_before: Instant, leases: mpsc::Sender<Network>, console: Console) {
    while !dev.has_carrier() || Instant::now() < not_before {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    loop {
        if let Err(cause) = keep_lease(&dev, &leases).await {
            console.line(&format!("DHCP on {}: {cause:#}", dev.name));
        }
        if leases.is_closed() {
            return;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Gets a lease, hands it over if it is the first, and renews it for as long as the machine runs.
async fn keep_lease(dev: &NetDev, leases: &mpsc::Sender<Network>) -> Result<()> {
    let socket = client_socket(&dev.name).with_context(|| format!("opening port 68 on {}", dev.name))?;
    let mut client = Client::new(dev.mac, rand::random(), Instant::now());
    let mut buf = [0; DATAGRAM_MAX];
    let mut was_chosen = false;
    loop {
        match client.poll(Instant::now()) {
            Step::Send(datagram) => {
                // A send that fails (link just lost) is a lost packet: the next one follows soon enough.
                let _ = socket.send_to(&datagram.bytes, SocketAddr::V4(datagram.to)).await;
            }
            Step::Wait { until } => {
                let received = tokio::time::timeout_at(until.into(), socket.recv_from(&mut buf)).await;
                let Ok(Ok((len, _))) = received else { continue };
                if was_chosen {
                    // Renewed, or about to be: the address stays as it is.
                    client.receive(&buf[..len], Instant::now());
                } else if let Received::Leased(lease) = client.receive(&buf[..len], Instant::now()) {
                    netdev::set_address(&dev.name, lease.address, lease.prefix_len)
                        .with_context(|| format!("setting address {}", lease.address))?;
                    if let Some(router) = lease.router {
                        netdev::add_default_route(router).with_context(|| format!("routing by {router}"))?;
                    }
                    if leases.try_send(Network { dev: dev.clone(), lease }).is_err() {
                        // Another card was faster: this one stays configured, and silent.
                        return Ok(());
                    }
                    was_chosen = true;
                }
            }
        }
    }
}

fn client_socket(interface: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

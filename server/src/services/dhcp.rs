//! DHCP on ports 67 and 4011: sockets around `netboot`'s state machines, one loop for each interface.
//!
//! In `proxy` mode the server is silent while nothing is armed: the site's machines then boot as if it were not
//! there. While anything is armed every netboot client is answered, also one that is not armed itself: it gets the
//! script that starts its own disk and says on the screen why, which beats a firmware that waits a minute for an
//! answer, and a machine armed a second later is not lost. What is written where is decided by the script and by
//! `ezio.conf`, never by DHCP.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use dhcproto::v4::MessageType;
use netboot::message::{self, Datagram, Message, PXE_PORT, SERVER_PORT};
use netboot::pxe::{self, BootServer};
use netboot::server::{DhcpServer, LeaseRecord, Outcome, ServerConfig};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::room::config::{DhcpMode, Settings};
use crate::room::state;
use crate::room::{Room, count};
use crate::services::binding::{self, Binding};
use crate::services::stop::stopped;
use terminal::Throttle;

/// How often leases that changed are written. One that is lost is adopted when its machine renews it.
const SAVE_EVERY: Duration = Duration::from_millis(300);
/// Pause after a socket error, so that a vanished interface does not eat a core.
const ERROR_PAUSE: Duration = Duration::from_millis(200);

/// What a packet may have us log: a few lines at once, then one a minute.
const fn throttle() -> Throttle {
    Throttle::new(20, Duration::from_secs(60))
}
static UNSENT: Throttle = throttle();
static REFUSED: Throttle = throttle();
static EXHAUSTED: Throttle = throttle();
static NO_LOADER: Throttle = throttle();

/// The sockets of one interface.
pub struct DhcpService {
    binding: Binding,
    port_67: UdpSocket,
    /// Only ProxyDHCP is asked here.
    port_4011: Option<UdpSocket>,
    leases: Option<Leases>,
}

struct Leases {
    server: DhcpServer,
    path: PathBuf,
    dirty: bool,
}

/// Opens the sockets that the config asks for; none if DHCP is off.
///
/// # Errors
/// A port in use, a missing right, or a range of addresses that is on none of our networks.
pub fn bind(
    settings: &Settings,
    bindings: &[Binding],
    state_dir: &std::path::Path,
) -> anyhow::Result<Vec<DhcpService>> {
    let mode = settings.dhcp();
    if mode == DhcpMode::Off {
        return Ok(Vec::new());
    }
    let mut services = Vec::new();
    for binding in bindings {
        let leases = match mode {
            DhcpMode::Server => match leases(settings, binding, state_dir)? {
                None => continue,
                leases => leases,
            },
            _ => None,
        };
        let port_4011 = match mode {
            DhcpMode::Proxy => Some(open(binding, binding.address, PXE_PORT)?),
            _ => None,
        };
        let port_67 = open(binding, Ipv4Addr::UNSPECIFIED, SERVER_PORT)?;
        services.push(DhcpService { binding: binding.clone(), port_67, port_4011, leases });
    }
    if services.is_empty() {
        bail!(
            "dhcp_range is on none of the networks we serve ({}): choose addresses from one of them",
            bindings
                .iter()
                .map(|b| format!("{}/{} on {}", b.address, b.prefix_len, b.interface))
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    Ok(services)
}

fn leases(settings: &Settings, binding: &Binding, state_dir: &std::path::Path) -> anyhow::Result<Option<Leases>> {
    let range = settings.dhcp_range.as_ref().map(|range| range.0.clone());
    let range = range.context("dhcp = \"server\" needs dhcp_range = \"FIRST-LAST\": the addresses to give out")?;
    let mask = u32::MAX.checked_shl(32 - u32::from(binding.prefix_len)).unwrap_or(0);
    let is_here = |address: &Ipv4Addr| u32::from(*address) & mask == u32::from(binding.address) & mask;
    if !is_here(range.start()) {
        return Ok(None);
    }
    ensure!(
        is_here(range.end()),
        "dhcp_range ends at {}, outside {}/{} on {}",
        range.end(),
        binding.address,
        binding.prefix_len,
        binding.interface
    );
    let path = state_dir.join("leases.json");
    let records: Vec<LeaseRecord> = state::read(&path)
        .unwrap_or_else(|error| {
            log::error!("the leases are lost, so machines get new ones: {error:#}");
            None
        })
        .unwrap_or_default();
    let config = ServerConfig {
        address: binding.address,
        prefix_len: binding.prefix_len,
        range,
        router: settings.dhcp_router,
        dns: settings.dhcp_dns.clone(),
        lease_s: settings.dhcp_lease(),
    };
    Ok(Some(Leases { server: DhcpServer::new(config, records), path, dirty: false }))
}

/// One socket on one interface. Without SO_REUSEADDR on purpose: with it, a second DHCP server on this machine would
/// bind as well and the two would take each other's packets; without, the person who starts us is told.
fn open(binding: &Binding, address: Ipv4Addr, port: u16) -> anyhow::Result<UdpSocket> {
    let open = || -> std::io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(binding.interface.as_bytes()))?;
        socket.bind(&SocketAddr::from((address, port)).into())?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|error| binding::explain(error, "DHCP", binding.address, port, true, "dhcp"))
}

/// Answers until told to stop.
pub async fn run(room: Arc<Room>, mut service: DhcpService, mut stop: watch::Receiver<bool>) {
    let (mut buf_67, mut buf_4011) = ([0; 2048], [0; 2048]);
    let mut save = tokio::time::interval(SAVE_EVERY);
    save.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            received = service.port_67.recv_from(&mut buf_67) => match received {
                Ok((len, _)) => {
                    let reply = on_67(&room, &service.binding, &mut service.leases, &buf_67[..len]);
                    send(&room, &service.port_67, reply).await;
                }
                Err(error) => pause(&service.binding, &error).await,
            },
            received = receive(service.port_4011.as_ref(), &mut buf_4011) => match received {
                Ok((len, SocketAddr::V4(from))) => {
                    let reply = on_4011(&room, &service.binding, &buf_4011[..len], from);
                    if let Some(socket) = &service.port_4011 {
                        send(&room, socket, reply).await;
                    }
                }
                Ok(_) => {}
                Err(error) => pause(&service.binding, &error).await,
            },
            _ = save.tick() => service.save(),
            () = stopped(&mut stop) => break,
        }
    }
    service.save();
}

impl DhcpService {
    fn save(&mut self) {
        if let Some(leases) = self.leases.as_mut().filter(|leases| leases.dirty) {
            match state::write(&leases.path, &leases.server.leases()) {
                Ok(()) => leases.dirty = false,
                Err(error) => log::error!("the leases cannot be saved: {error:#}"),
            }
        }
    }
}

async fn receive(socket: Option<&UdpSocket>, buf: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buf).await,
        None => std::future::pending().await,
    }
}

async fn send(room: &Room, socket: &UdpSocket, reply: Option<Datagram>) {
    let Some(reply) = reply else { return };
    count(&room.counters.dhcp_answered);
    if let Err(error) = socket.send_to(&reply.bytes, reply.to).await
        && let Some(more) = UNSENT.pass()
    {
        log::warn!("DHCP: answering {} failed: {error}{more}", reply.to);
    }
}

async fn pause(binding: &Binding, error: &std::io::Error) {
    log::warn!("DHCP on {}: receiving failed: {error}", binding.interface);
    tokio::time::sleep(ERROR_PAUSE).await;
}

/// What netboot clients are told, or nothing while nothing is armed.
fn boot_server(room: &Room, binding: &Binding) -> Option<BootServer> {
    room.armed().is_anything_armed().then(|| room.boot_server(binding.address))
}

fn decode(room: &Room, packet: &[u8]) -> Option<Message> {
    message::decode(packet)
        .inspect_err(|error| {
            count(&room.counters.dhcp_malformed);
            log::trace!("a DHCP packet of {} bytes is ignored: {error}", packet.len());
        })
        .ok()
}

fn on_67(room: &Room, binding: &Binding, leases: &mut Option<Leases>, packet: &[u8]) -> Option<Datagram> {
    let request = decode(room, packet)?;
    let mac = message::mac_of(&request);
    let boot = boot_server(room, binding);
    let Some(leases) = leases else {
        let boot = boot?;
        if request.opts().msg_type() == Some(MessageType::Discover) {
            log_boot(&request, room, binding);
        }
        return pxe::proxy_offer(&request, &boot);
    };
    match leases.server.handle(&request, boot.as_ref(), state::unix_now()) {
        Outcome::Offered(address, reply) => {
            log::debug!("{mac} is offered {address}");
            if boot.is_some() {
                log_boot(&request, room, binding);
            }
            Some(reply)
        }
        Outcome::Leased(address, reply) => {
            log::debug!("{mac} has {address}");
            leases.dirty = true;
            Some(reply)
        }
        Outcome::Informed(reply) => Some(reply),
        Outcome::Refused(reply) => {
            if let Some(more) = REFUSED.pass() {
                log::info!("{mac} asked for an address that it cannot have{more}");
            }
            Some(reply)
        }
        Outcome::Freed(address) => {
            log::debug!("{mac} gave {address} back");
            leases.dirty = true;
            None
        }
        Outcome::Exhausted => {
            if let Some(more) = EXHAUSTED.pass() {
                log::error!(
                    "{mac} gets no address: dhcp_range is used up; make it larger, or dhcp_lease shorter{more}"
                );
            }
            None
        }
        Outcome::Silent => None,
    }
}

fn on_4011(room: &Room, binding: &Binding, packet: &[u8], from: SocketAddrV4) -> Option<Datagram> {
    let request = decode(room, packet)?;
    pxe::proxy_ack(&request, from, &boot_server(room, binding)?)
}

fn log_boot(request: &Message, room: &Room, binding: &Binding) {
    let Some(client) = pxe::identify(request) else { return };
    if let Some(file) = pxe::boot_file(&client, &room.boot_server(binding.address)) {
        log::debug!("{} gets boot file {file}", client.mac);
    } else if let Some(more) = NO_LOADER.pass() {
        log::warn!(
            "{} has client architecture {}, for which there is no boot loader: 0 (BIOS), 7, 9 and 16 (x86-64 UEFI) \
             work{more}",
            client.mac,
            client.arch
        );
    }
}

//! DHCP on ports 67 and 4011: sockets around `netboot`'s state machines, one loop for each interface.
//!
//! In `proxy` mode the server is silent while nothing is armed: the site's machines then boot as if it were not
//! there. While orders are for some machines, it answers only those (`answer = "armed"`): a site has machines that boot from
//! another PXE server. One that is done with its order is answered too, with the script that starts its own disk. With
//! an order for every machine all are answered, also those that are held back: such a machine gets the script that starts its
//! own disk and says on the screen why. What is written where is decided by the script and by `ezio.conf`, never by DHCP.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use dhcproto::v4::MessageType;
use netboot::message::{self, Datagram, Message, PXE_PORT, SERVER_PORT};
use netboot::pxe::{self, BootServer};
use netboot::server::{DhcpServer, Outcome, ServerConfig};
use netboot::{MacAddr, frames, rivals};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::room::book;
use crate::room::config::{Answer, DhcpMode, Settings};
use crate::room::leases::LeaseBook;
use crate::room::state;
use crate::room::{Room, count};
use crate::services::binding::{self, Binding};
use crate::services::holders;
use crate::services::link::LinkSocket;
use crate::services::rivals::server_number;
use crate::services::stop::stopped;
use terminal::Throttle;

/// How often leases that changed are written. One that is lost is adopted when its machine renews it.
const SAVE_EVERY: Duration = Duration::from_millis(300);
/// Pause after a socket error, so that a vanished interface does not eat a core.
const ERROR_PAUSE: Duration = Duration::from_millis(200);
/// An address is asked for twice, for hosts whose first answer is lost, and taken as free after both pauses. RFC 5227 waits for
/// seconds; firmware asks again after four.
const PROBE_AGAIN: Duration = Duration::from_millis(150);
const PROBE_REST: Duration = Duration::from_millis(250);
/// Machines that wait for a probe at most.
const MAX_PROBES: usize = 4096;
/// Packets that wait for us, besides those that wait in the kernel.
const QUEUE: usize = 4096;

/// What a packet may have us log: a few lines at once, then one a minute.
const fn throttle() -> Throttle {
    Throttle::new(20, Duration::from_secs(60))
}
static UNSENT: Throttle = throttle();
static UNHEARD: Throttle = throttle();
static REFUSED: Throttle = throttle();
static EXHAUSTED: Throttle = throttle();
static ELSEWHERE: Throttle = throttle();
static IN_USE: Throttle = throttle();
static NO_LOADER: Throttle = throttle();
static UNSAVED: Throttle = throttle();

/// The sockets of one interface.
pub struct DhcpService {
    binding: Binding,
    port_67: Arc<UdpSocket>,
    /// Only ProxyDHCP is asked here.
    port_4011: Option<Arc<UdpSocket>>,
    leases: Option<Leases>,
}

struct Leases {
    server: DhcpServer,
    book: LeaseBook,
    dirty: bool,
    /// Where addresses are looked for before they are given out.
    arp: Option<LinkSocket>,
    probes: HashMap<MacAddr, Probe>,
}

/// A machine that waits until we know whether its address is in use.
struct Probe {
    address: Ipv4Addr,
    request: Message,
    is_repeated: bool,
    until: Instant,
}

/// Opens the sockets that the config asks for on one interface; none if DHCP is off, or if `dhcp_range` is on another
/// network. `own` are all addresses of this computer.
///
/// # Errors
/// A port in use, a missing right, or a range of addresses that leaves the network.
pub fn bind(
    settings: &Settings,
    binding: &Binding,
    own: &[Ipv4Addr],
    state_dir: &Path,
) -> anyhow::Result<Option<DhcpService>> {
    let mode = settings.dhcp();
    let leases = match mode {
        DhcpMode::Off => return Ok(None),
        DhcpMode::Proxy => None,
        DhcpMode::Server => match leases(settings, binding, own, state_dir)? {
            None => return Ok(None),
            leases => leases,
        },
    };
    let port_4011 = match mode {
        DhcpMode::Proxy => Some(Arc::new(open(binding, binding.address, PXE_PORT)?)),
        _ => None,
    };
    let port_67 = Arc::new(open(binding, Ipv4Addr::UNSPECIFIED, SERVER_PORT)?);
    Ok(Some(DhcpService { binding: binding.clone(), port_67, port_4011, leases }))
}

/// Refuses to give out addresses without knowing which.
///
/// # Errors
/// That.
pub fn has_range(settings: &Settings) -> anyhow::Result<()> {
    ensure!(settings.dhcp() != DhcpMode::Server || settings.dhcp_range.is_some(), NEEDS_RANGE);
    Ok(())
}

/// Refuses a range of addresses that is on none of these networks.
///
/// # Errors
/// That.
pub fn check_range(settings: &Settings, bindings: &[Binding]) -> anyhow::Result<()> {
    let Some(range) = settings.dhcp_range.as_ref().filter(|_| settings.dhcp() == DhcpMode::Server) else {
        return Ok(());
    };
    if bindings.iter().any(|binding| is_on(binding, *range.0.start())) {
        return Ok(());
    }
    let networks = bindings.iter().map(|b| format!("{}/{} on {}", b.address, b.prefix_len, b.interface));
    let networks = networks.collect::<Vec<_>>().join(", ");
    bail!("dhcp_range is on none of the networks we serve ({networks}): choose addresses from one of them");
}

const NEEDS_RANGE: &str = "dhcp = \"server\" needs dhcp_range = \"FIRST-LAST\": the addresses to give out";

fn is_on(binding: &Binding, address: Ipv4Addr) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(binding.prefix_len)).unwrap_or(0);
    (u32::from(address) ^ u32::from(binding.address)) & mask == 0
}

fn leases(
    settings: &Settings,
    binding: &Binding,
    own: &[Ipv4Addr],
    state_dir: &Path,
) -> anyhow::Result<Option<Leases>> {
    let range = settings.dhcp_range.as_ref().map(|range| range.0.clone()).context(NEEDS_RANGE)?;
    if !is_on(binding, *range.start()) {
        return Ok(None);
    }
    ensure!(
        is_on(binding, *range.end()),
        "dhcp_range ends at {}, outside {}/{} on {}",
        range.end(),
        binding.address,
        binding.prefix_len,
        binding.interface
    );
    let (book, records) = LeaseBook::open(book::open(state_dir)?).context("reading the leases")?;
    let arp = LinkSocket::open(&binding.interface, frames::ARP, &[]);
    if let Err(error) = &arp {
        log::warn!(
            "DHCP on {}: ARP cannot be spoken ({error}), so an address that another host uses may be given out",
            binding.interface
        );
    }
    let config = ServerConfig {
        address: binding.address,
        prefix_len: binding.prefix_len,
        range,
        relayed: settings.dhcp_relayed.iter().map(|relayed| relayed.0.clone()).collect(),
        own: own.to_vec(),
        probe: arp.is_ok(),
        router: settings.dhcp_router,
        dns: settings.dhcp_dns.clone(),
        lease_s: settings.dhcp_lease(),
    };
    let server = DhcpServer::new(config, records);
    Ok(Some(Leases { server, book, dirty: false, arp: arp.ok(), probes: HashMap::new() }))
}

/// One socket on one interface.
///
/// It is bound without SO_REUSEADDR, so a DHCP server that serves this interface, or all of them, is found out: the two
/// would take each other's packets. SO_REUSEADDR comes afterwards, for servers that bind to another interface later: the
/// kernel asks both sockets for it (`socket(7)`), and keeps the packets of interfaces apart.
fn open(binding: &Binding, address: Ipv4Addr, port: u16) -> anyhow::Result<UdpSocket> {
    let open = || -> std::io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(binding.interface.as_bytes()))?;
        socket.bind(&SocketAddr::from((address, port)).into())?;
        socket.set_reuse_address(true)?;
        binding::make_room(&socket);
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|error| binding::explain(error, "DHCP", binding.address, port, true, "dhcp"))
}

/// Answers until told to stop.
pub async fn run(room: Arc<Room>, mut service: DhcpService, mut stop: watch::Receiver<bool>) {
    let (queue, mut packets) = mpsc::channel(QUEUE);
    let mut receivers = JoinSet::new();
    receivers.spawn(receive_all(service.port_67.clone(), service.binding.interface.clone(), queue.clone()));
    if let Some(socket) = &service.port_4011 {
        receivers.spawn(receive_all(socket.clone(), service.binding.interface.clone(), queue));
    }
    let mut frame = [0; 256];
    let mut save = tokio::time::interval(SAVE_EVERY);
    save.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let probe_is_due = service.leases.as_ref().and_then(Leases::due);
        let arp = service.leases.as_ref().and_then(|leases| leases.arp.as_ref());
        tokio::select! {
            Some((packet, from, port)) = packets.recv() => service.on_packet(&room, &packet, from, port).await,
            received = hear(arp, &mut frame) => match received {
                Ok(len) => service.on_arp(&room, &frame[..len]).await,
                // The interface is down or gone.
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            },
            () = tokio::time::sleep_until(probe_is_due.unwrap_or_else(Instant::now)), if probe_is_due.is_some() => {
                service.on_probes_due(&room).await;
            }
            _ = save.tick() => service.save(),
            () = stopped(&mut stop) => break,
        }
    }
    service.save();
    // The ports are free when this returns.
    receivers.shutdown().await;
}

/// Takes packets out of the socket as they come: while a thousand machines are answered, the kernel's room does not fill.
async fn receive_all(socket: Arc<UdpSocket>, interface: String, queue: mpsc::Sender<(Vec<u8>, SocketAddr, u16)>) {
    let port = socket.local_addr().map_or(SERVER_PORT, |address| address.port());
    let mut buf = [0; 2048];
    loop {
        match socket.recv_from(&mut buf).await {
            Ok((len, from)) => {
                if queue.send((buf[..len].to_vec(), from, port)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if let Some(more) = UNHEARD.pass() {
                    log::warn!("DHCP on {interface}: receiving failed: {error}{more}");
                }
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

async fn hear(arp: Option<&LinkSocket>, frame: &mut [u8]) -> std::io::Result<usize> {
    match arp {
        Some(arp) => arp.receive(frame).await,
        None => std::future::pending().await,
    }
}

impl DhcpService {
    /// The kernel's number of the socket on port 67.
    pub fn inode(&self) -> Option<u64> {
        holders::inode_of(&*self.port_67).ok()
    }

    async fn on_packet(&mut self, room: &Room, packet: &[u8], from: SocketAddr, port: u16) {
        if port == PXE_PORT {
            if let (SocketAddr::V4(from), Some(socket)) = (from, &self.port_4011) {
                send(room, socket, on_4011(room, &self.binding, packet, from)).await;
            }
            return;
        }
        let Some(request) = decode(room, packet) else { return };
        let reply = self.answer(room, request);
        send(room, &self.port_67, reply).await;
    }

    fn answer(&mut self, room: &Room, request: Message) -> Option<Datagram> {
        if let Some(number) = rivals::asked_by(&request) {
            return (number != server_number()).then(|| rivals::answer(&request, self.binding.address));
        }
        match &mut self.leases {
            None => on_67(room, &self.binding, &request),
            Some(leases) => leases.answer(room, &self.binding, request),
        }
    }

    /// A host has said that it uses an address.
    async fn on_arp(&mut self, room: &Room, frame: &[u8]) {
        let Some(leases) = &mut self.leases else { return };
        let Some((address, card)) = frames::arp_sender(frame) else { return };
        // The machine itself may still have it, from the firmware before.
        let waiting = leases.probes.iter().find(|(mac, probe)| probe.address == address && **mac != card);
        let Some(mac) = waiting.map(|(mac, _)| *mac) else { return };
        let holder = leases.server.found_in_use(address, state::unix_now());
        if holder.is_none()
            && let Some(more) = IN_USE.pass()
        {
            log::warn!(
                "{address} is in dhcp_range, and {card} uses it already: it is left out for ten minutes; give that machine \
                 another address, or make dhcp_range smaller{more}"
            );
        }
        leases.dirty = true;
        if let Some(probe) = leases.probes.remove(&mac) {
            let reply = leases.answer(room, &self.binding, probe.request);
            send(room, &self.port_67, reply).await;
        }
    }

    /// Asks again for addresses, or gives them out.
    async fn on_probes_due(&mut self, room: &Room) {
        let Some(leases) = &mut self.leases else { return };
        for probe in leases.take_due() {
            leases.server.probed(probe.address);
            let reply = leases.answer(room, &self.binding, probe.request);
            send(room, &self.port_67, reply).await;
        }
    }

    fn save(&mut self) {
        if let Some(leases) = self.leases.as_mut().filter(|leases| leases.dirty) {
            match leases.book.save(&leases.server.leases()) {
                Ok(()) => leases.dirty = false,
                Err(error) => {
                    if let Some(more) = UNSAVED.pass() {
                        log::error!("the leases cannot be saved: {error:#}{more}");
                    }
                }
            }
        }
    }
}

impl Leases {
    /// When the next probe has something to do.
    fn due(&self) -> Option<Instant> {
        self.probes.values().map(|probe| probe.until).min()
    }

    /// Sends those that are due for the first time again, and takes out the others.
    fn take_due(&mut self) -> Vec<Probe> {
        let now = Instant::now();
        let due: Vec<MacAddr> =
            self.probes.iter().filter(|(_, probe)| probe.until <= now).map(|(mac, _)| *mac).collect();
        let mut over = Vec::new();
        for mac in due {
            let Some(mut probe) = self.probes.remove(&mac) else { continue };
            if probe.is_repeated {
                over.push(probe);
            } else {
                probe.is_repeated = true;
                probe.until = now + PROBE_REST;
                self.ask(probe.address);
                self.probes.insert(mac, probe);
            }
        }
        over
    }

    fn ask(&self, address: Ipv4Addr) {
        if let Some(arp) = &self.arp
            && let Err(error) = arp.send(&frames::arp_probe(arp.card(), address))
            && let Some(more) = UNSENT.pass()
        {
            log::warn!("DHCP: asking who has {address} failed: {error}{more}");
        }
    }

    fn answer(&mut self, room: &Room, binding: &Binding, request: Message) -> Option<Datagram> {
        let mac = message::mac_of(&request);
        let boot = room.armed().is_anything_armed().then(|| room.boot_server(binding.address));
        match self.server.handle(&request, boot.as_ref(), state::unix_now()) {
            Outcome::Probe(address) => {
                if let Some(probe) = self.probes.get_mut(&mac).filter(|probe| probe.address == address) {
                    // It has asked again before we know: the newer question is answered.
                    probe.request = request;
                } else if self.probes.len() < MAX_PROBES {
                    self.ask(address);
                    let until = Instant::now() + PROBE_AGAIN;
                    self.probes.insert(mac, Probe { address, request, is_repeated: false, until });
                }
                None
            }
            Outcome::Elsewhere(relay) => {
                if let Some(more) = ELSEWHERE.pass() {
                    log::warn!(
                        "{mac} asks through the relay {relay}, which is not on the network of {} ({}/{}): it gets no address. \
                         If that network has its own DHCP server, set dhcp = \"proxy\" here; if not, name addresses for it \
                         with dhcp_relayed = \"FIRST-LAST/LENGTH\"{more}",
                        binding.interface,
                        binding.address,
                        binding.prefix_len
                    );
                }
                None
            }
            Outcome::Offered(address, reply) => {
                log::debug!("{mac} is offered {address}");
                if boot.is_some() {
                    log_boot(&request, room, binding);
                }
                Some(reply)
            }
            Outcome::Leased(address, reply) => {
                log::debug!("{mac} has {address}");
                self.dirty = true;
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
                self.dirty = true;
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

/// What ProxyDHCP tells this machine: nothing while nothing is armed, or while all orders are for others.
fn boot_server(room: &Room, binding: &Binding, mac: MacAddr) -> Option<BootServer> {
    let (armed, settings) = (room.armed(), &room.settings);
    let is_meant = || armed.job_for_unknown(settings).is_some() || armed.job_for(mac, settings).is_some();
    let is_answered = armed.is_anything_armed() && (settings.answer() == Answer::All || is_meant());
    is_answered.then(|| room.boot_server(binding.address))
}

fn decode(room: &Room, packet: &[u8]) -> Option<Message> {
    message::decode(packet)
        .inspect_err(|error| {
            count(&room.counters.dhcp_malformed);
            log::trace!("a DHCP packet of {} bytes is ignored: {error}", packet.len());
        })
        .ok()
}

fn on_67(room: &Room, binding: &Binding, request: &Message) -> Option<Datagram> {
    let boot = boot_server(room, binding, message::mac_of(request))?;
    if request.opts().msg_type() == Some(MessageType::Discover) {
        log_boot(request, room, binding);
    }
    pxe::proxy_offer(request, &boot)
}

fn on_4011(room: &Room, binding: &Binding, packet: &[u8], from: SocketAddrV4) -> Option<Datagram> {
    let request = decode(room, packet)?;
    pxe::proxy_ack(&request, from, &boot_server(room, binding, message::mac_of(&request))?)
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

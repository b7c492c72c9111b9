//! TFTP: a tree of names that exists only here, and one task for each transfer.
//!
//! Nothing outside the tree can be named: a request is compared with the few names there are.
//!
//! A room that is switched on asks all at once. Each transfer has a place, and gives it back when it is done, when the
//! client ends it (UEFI does, once it knows the size), and soon when the client has never said a word. A request for which
//! there is no place is not answered: firmware asks again after a second or four, where a refusal would make it boot from
//! something else.
//!
//! Some routers name one boot file for everybody. Our own iPXE, loaded by that name, asks DHCP, gets the name of the loader
//! again, and would load itself for ever. So an iPXE that asks for the loader which its address has just fetched gets the boot
//! script instead: iPXE knows a script by its content. Firmware asks in other ways, and always gets the loader.
//!
//! The protocol itself is `netboot::tftp`. async-tftp, which was here before, cannot do that: it passes over
//! a client's ERROR, keeps the place for ten seconds, and meanwhile is deaf to the client's port.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netboot::MacAddr;
use netboot::loaders::{BOOT_FILES, LOADERS};
use netboot::tftp::{Answer, Content, ReadRequest, Refusal, RequestError, Sending, Transfer, refusal};
use nix::sys::socket::{getsockopt, sockopt};
use terminal::Throttle;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::room::identity::Identity;
use crate::room::orders::Job;
use crate::room::tokens::Asker;
use crate::room::{Boot, Room, count};
use crate::services::binding::{self, Binding};
use crate::services::boot_script;
use swarm::owners::Neighbours;

/// The headers of IP, UDP and TFTP in a packet.
const HEADERS: u16 = 20 + 8 + 4;
/// What every Ethernet carries.
const ETHERNET_MTU: u16 = 1500;
/// Transfers at the same time; each has a socket, and a boot file besides.
const MAX_TRANSFERS: usize = 2048;
/// The part of the places that anybody may take. Of the rest no card has more than [`SHARE`].
const PLENTY: usize = MAX_TRANSFERS / 2;
const SHARE: usize = MAX_TRANSFERS / 8;
/// The same request from the same port within this time is the same one, sent again.
const REPEATED: Duration = Duration::from_millis(500);
/// How long we remember which machine asks from which address.
const REMEMBER: Duration = Duration::from_secs(120);
/// Addresses remembered at most.
const MAX_REMEMBERED: usize = 4096;
/// Requests without a place are logged this often at most.
const FULL_EVERY: Duration = Duration::from_secs(60);
/// What transfers may have us log: a few lines at once, then one a minute.
static FAILED: Throttle = Throttle::new(20, Duration::from_secs(60));
/// Turns of the runtime in which a datagram that has arrived is certainly looked at: one to hear of it, one to read it, one to
/// end.
const SETTLE_TURNS: usize = 4;
/// More than any datagram.
const DATAGRAM_MAX: usize = 65536;

pub struct TftpService {
    socket: StdUdpSocket,
    address: Ipv4Addr,
    tree: Tree,
}

/// Opens the port on one address.
///
/// # Errors
/// A port in use or a missing permission.
pub fn bind(room: &Arc<Room>, binding: &Binding) -> anyhow::Result<TftpService> {
    let port = room.settings.tftp_port();
    let address = binding.address;
    let socket = StdUdpSocket::bind((address, port))
        .map_err(|error| binding::explain(error, "TFTP", address, port, true, "tftp_port"))?;
    binding::make_room(&socket);
    socket.set_nonblocking(true)?;
    let tree = Tree { room: room.clone(), address, asked: HashMap::new(), loaded: HashMap::new() };
    Ok(TftpService { socket, address, tree })
}

/// Serves on a thread of its own until `stop` is sent or dropped: reading a boot file may block for as long as the page
/// cache takes.
pub fn run(service: TftpService, stop: oneshot::Receiver<()>) -> io::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("tftp".into()).spawn(move || {
        let address = service.address;
        let serve = async {
            let Err(error) = service.serve(stop).await else { return };
            log::error!("TFTP on {address} has stopped: {error}; restart the server");
        };
        runtime.block_on(serve);
    })
}

impl TftpService {
    async fn serve(self, mut stop: oneshot::Receiver<()>) -> io::Result<()> {
        let TftpService { socket, address, mut tree } = self;
        let socket = UdpSocket::from_std(socket)?;
        let mut places = Places::default();
        let mut tasks = JoinSet::new();
        let mut buf = vec![0; DATAGRAM_MAX];
        loop {
            tokio::select! {
                _ = &mut stop => return Ok(()),
                Some(ended) = tasks.join_next() => {
                    after(ended, &mut places, &mut tree);
                }
                received = socket.recv_from(&mut buf) => {
                    // An error here is about a packet that we sent: the client is gone.
                    let Ok((len, client)) = received else { continue };
                    let request = match ReadRequest::parse(&buf[..len]) {
                        Ok(request) => request,
                        Err(RequestError::Noise) => continue,
                        Err(RequestError::Refused(why)) => {
                            count(&tree.room.counters.tftp_refused);
                            log::debug!("{client} sent a TFTP request that cannot be served: {why:?}");
                            let text = match why {
                                Refusal::AccessViolation => "nothing can be written here",
                                _ => "cannot read this request",
                            };
                            let _ = socket.try_send_to(&refusal(why, text), client);
                            continue;
                        }
                    };
                    if !places.has_room_for(client, &request) {
                        continue;
                    }
                    if LOADERS.contains(&request.name.as_str()) {
                        // Its last ACK came before this, at another socket: that transfer ends first.
                        for _ in 0..SETTLE_TURNS {
                            tokio::task::yield_now().await;
                        }
                        while let Some(ended) = tasks.try_join_next() {
                            after(ended, &mut places, &mut tree);
                        }
                    }
                    let is_loop = tree.is_loop(client.ip(), &request);
                    let found = if is_loop { Ok(tree.script()) } else { tree.open(client.ip(), &request.name) };
                    match found {
                        Ok(source) => {
                            count(&tree.room.counters.tftp_served);
                            log::debug!("{client} fetches {} by TFTP, {} bytes", request.name, source.len());
                            if is_loop {
                                log::debug!("{client} has just loaded that, and gets the boot script in its place");
                            }
                            let name = if is_loop { String::new() } else { request.name.clone() };
                            let (id, is_heard) = places.next();
                            let sending = send(request.clone(), source, address, client, Arc::clone(&is_heard));
                            let task = tasks.spawn(async move {
                                let is_sent = sending.await;
                                (client, id, name, is_sent)
                            });
                            places.occupy(client, Place { id, request, began: Instant::now(), is_heard, task });
                        }
                        Err((why, text)) => {
                            count(&tree.room.counters.tftp_refused);
                            log::debug!("{client} asks for {:?} by TFTP: {text}", request.name);
                            let _ = socket.try_send_to(&refusal(why, &text), client);
                        }
                    }
                }
            }
        }
    }
}

/// A transfer has ended: whose it was, its number, the file's name, and whether the client has all of it.
type Ended = (SocketAddr, u64, String, bool);

/// What follows a transfer. An aborted one has been replaced, and its place with it.
fn after(ended: Result<Ended, JoinError>, places: &mut Places, tree: &mut Tree) {
    if let Ok((client, id, name, is_sent)) = ended {
        places.give_back(client, id);
        if is_sent {
            tree.sent(client.ip(), name);
        }
    }
}

/// One transfer, from its own port, to its end. Whether the client has all of it.
async fn send(
    request: ReadRequest,
    source: Source,
    address: Ipv4Addr,
    client: SocketAddr,
    is_heard: Arc<AtomicBool>,
) -> bool {
    match exchange(&request, source, address, client, &is_heard).await {
        Ok(is_sent) => is_sent,
        Err(error) => {
            if let Some(more) = FAILED.pass() {
                log::warn!("sending {} to {client} by TFTP: {error}{more}", request.name);
            }
            false
        }
    }
}

async fn exchange(
    request: &ReadRequest,
    source: Source,
    address: Ipv4Addr,
    client: SocketAddr,
    is_heard: &AtomicBool,
) -> io::Result<bool> {
    let socket = UdpSocket::bind((address, 0)).await?;
    // The kernel drops what others send here.
    socket.connect(client).await?;
    let mut transfer = Transfer::new(request, source, max_blksize(&socket), Instant::now());
    let mut buf = [0; 1024];
    loop {
        match transfer.poll(Instant::now()) {
            Ok(Sending::Packet(packet)) => match socket.send(&packet).await {
                // Its port is closed: it is gone.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(false),
                // Any other packet that cannot be sent is as good as lost on the way.
                _ => {}
            },
            Ok(Sending::Wait { until }) => match tokio::time::timeout_at(until.into(), socket.recv(&mut buf)).await {
                Ok(Ok(len)) => {
                    transfer.receive(&buf[..len], Instant::now());
                    is_heard.store(!transfer.is_fresh(), Ordering::Relaxed);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(false),
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
            },
            Ok(Sending::Over(answer)) => {
                if let Answer::Silent(acknowledged) = &answer {
                    log::debug!("{client} has gone silent after {acknowledged} bytes of {}", request.name);
                }
                return Ok(answer == Answer::Sent);
            }
            Err(error) => {
                let _ = socket.send(&refusal(Refusal::Other, "the file cannot be read on the server")).await;
                return Err(error);
            }
        }
    }
}

/// The largest block that reaches the client in one packet: tunnels and old ROMs lose fragments.
fn max_blksize(socket: &UdpSocket) -> u16 {
    let mtu = getsockopt(socket, sockopt::IpMtu).ok().and_then(|mtu| u16::try_from(mtu).ok());
    // Jumbo frames may end at the next switch.
    mtu.unwrap_or(ETHERNET_MTU).min(ETHERNET_MTU).saturating_sub(HEADERS)
}

/// Who has a place.
#[derive(Default)]
struct Places {
    taken: HashMap<SocketAddr, Place>,
    last_id: u64,
    neighbours: Neighbours,
    complained_at: Option<Instant>,
}

struct Place {
    id: u64,
    request: ReadRequest,
    began: Instant,
    /// Whether the client has said anything since its request.
    is_heard: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Places {
    /// Whether to begin a transfer. Not if the same request came again before the client has said anything else, because
    /// the transfer's own clock sends the answer again; and not if there is no place.
    fn has_room_for(&mut self, client: SocketAddr, request: &ReadRequest) -> bool {
        if let Some(place) = self.taken.get(&client) {
            // The same request again may have waited in the queue since before the first answer.
            let is_late = || place.is_heard.load(Ordering::Relaxed) && place.began.elapsed() > REPEATED;
            return place.request != *request || is_late();
        }
        let has_room = self.taken.len() < PLENTY || self.taken.len() < MAX_TRANSFERS && self.has_share(client.ip());
        if !has_room && self.complained_at.is_none_or(|at| at.elapsed() > FULL_EVERY) {
            self.complained_at = Some(Instant::now());
            log::warn!(
                "{} TFTP transfers are under way: {client} has to ask for {:?} again",
                self.taken.len(),
                request.name
            );
        }
        has_room
    }

    fn has_share(&mut self, address: IpAddr) -> bool {
        let owner = self.neighbours.owner(address);
        let neighbours = &mut self.neighbours;
        self.taken.keys().filter(|other| neighbours.owner(other.ip()) == owner).count() < SHARE
    }

    /// What a new place needs.
    fn next(&mut self) -> (u64, Arc<AtomicBool>) {
        self.last_id += 1;
        (self.last_id, Arc::default())
    }

    /// A transfer begins, and ends the one before it from the same port.
    fn occupy(&mut self, client: SocketAddr, place: Place) {
        if let Some(old) = self.taken.insert(client, place) {
            old.task.abort();
        }
    }

    fn give_back(&mut self, client: SocketAddr, id: u64) {
        if self.taken.get(&client).is_some_and(|place| place.id == id) {
            self.taken.remove(&client);
        }
    }
}

/// The tree of names.
struct Tree {
    room: Arc<Room>,
    address: Ipv4Addr,
    /// Who asked for a name with a MAC address in it, and when: the names without one then mean that machine too.
    asked: HashMap<IpAddr, (MacAddr, Instant)>,
    /// Who has fetched which loader, and when.
    loaded: HashMap<IpAddr, (String, Instant)>,
}

impl Tree {
    /// Whether a loader asks for itself.
    fn is_loop(&self, client: IpAddr, request: &ReadRequest) -> bool {
        let has_just_loaded = |(name, at): &(String, Instant)| *name == request.name && at.elapsed() < REMEMBER;
        request.is_of_ipxe() && self.loaded.get(&client).is_some_and(has_just_loaded)
    }

    /// What ends that.
    fn script(&self) -> Source {
        Source::Bytes(boot_script::script_for_anybody(&self.room, self.address).into())
    }

    /// A client has all of a file; the script in place of a loader has no name. The next start of the machine begins with
    /// the loader again.
    fn sent(&mut self, client: IpAddr, name: String) {
        if !LOADERS.contains(&name.as_str()) {
            if name.is_empty() {
                self.loaded.remove(&client);
            }
            return;
        }
        if self.loaded.len() >= MAX_REMEMBERED {
            self.loaded.retain(|_, (_, at)| at.elapsed() < REMEMBER);
        }
        if self.loaded.len() < MAX_REMEMBERED {
            self.loaded.insert(client, (name, Instant::now()));
        }
    }

    /// The file of that name, or why there is none, for the client.
    fn open(&mut self, client: IpAddr, name: &str) -> Result<Source, (Refusal, String)> {
        let missing = || (Refusal::NoSuchFile, "there is no such file".to_owned());
        if BOOT_FILES.contains(&name) {
            let path = self.room.boot_dir.join(name);
            return Source::file(&path).map_err(|error| {
                log::error!("{} cannot be read: {error}; run `make image`", path.display());
                missing()
            });
        }
        if let Some(image) = name.strip_prefix("torrents/").and_then(|name| name.strip_suffix(".torrent")) {
            return match self.room.torrent(image) {
                Ok(Some(image)) => Ok(Source::Bytes(image.torrent_bytes.clone())),
                Ok(None) => Err(missing()),
                Err(error) => Err((Refusal::Other, error)),
            };
        }
        let room = &self.room;
        let text = match name.split_once('/') {
            None if name == "boot.ipxe" => Some(boot_script::script_for_anybody(room, self.address)),
            Some(("boot.ipxe", mac)) => MacAddr::from_bootif(mac).ok().map(|mac| {
                room.asked(mac, "boot script by TFTP", &Identity::default());
                boot_script::script(room, mac, self.address)
            }),
            Some(("ezio.conf", "default")) => {
                self.job_of(client).map(|job| boot_script::conf(&self.room, &job, None, self.address))
            }
            None if name == "ezio.conf" => {
                self.job_of(client).map(|job| boot_script::conf(&self.room, &job, None, self.address))
            }
            Some(("ezio.conf", machine)) => match asker(client, machine) {
                Some((mac, asker)) => {
                    self.remember(client, mac);
                    // Not "no such file", or it would go on to ask for what is meant for everybody.
                    match self.room.boot(mac) {
                        Boot::Image(job) => {
                            let token = self.room.token(mac, &job, asker).map_err(|why| (Refusal::NoSuchUser, why))?;
                            Some(boot_script::conf(&self.room, &job, Some(token), self.address))
                        }
                        Boot::Local(why) => return Err((Refusal::NoSuchUser, why.to_owned())),
                    }
                }
                None => None,
            },
            Some(("confirm", rest)) => {
                let mut parts = rest.split('/');
                let (mac, deployment, token) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
                match (mac.map(MacAddr::from_bootif), deployment, parts.next()) {
                    (Some(Ok(mac)), Some(deployment), None) => {
                        let answer = room.confirm(mac, deployment, token, client);
                        Some(answer.map(|()| "yes\n".to_owned()).map_err(|why| (Refusal::NoSuchUser, why))?)
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        text.map(|text| Source::Bytes(text.into())).ok_or_else(missing)
    }

    /// What a name without a MAC address means for this client: a machine that is held back, and therefore found
    /// nothing under its own name, must not find everybody's order instead.
    fn job_of(&self, client: IpAddr) -> Option<Job> {
        match self.asked.get(&client).filter(|(_, at)| at.elapsed() < REMEMBER) {
            Some((mac, _)) => match self.room.boot(*mac) {
                Boot::Image(job) => Some(job),
                Boot::Local(_) => None,
            },
            None => {
                let armed = self.room.armed();
                armed.job_for_unknown(&self.room.settings).filter(|_| armed.suspended().is_none())
            }
        }
    }

    fn remember(&mut self, client: IpAddr, mac: MacAddr) {
        if self.asked.len() >= MAX_REMEMBERED {
            self.asked.retain(|_, (_, at)| at.elapsed() < REMEMBER);
        }
        if self.asked.len() < MAX_REMEMBERED {
            self.asked.insert(client, (mac, Instant::now()));
        }
    }
}

/// Who asks for `ezio.conf/01-MAC`, or for `ezio.conf/01-MAC/KEY` to get its token sealed to that key.
fn asker(client: IpAddr, machine: &str) -> Option<(MacAddr, Asker)> {
    let (mac, key) = match machine.split_once('/') {
        Some((mac, key)) => (mac, Some(key.parse().ok()?)),
        None => (machine, None),
    };
    Some((MacAddr::from_bootif(mac).ok()?, Asker { client, key }))
}

/// Where bytes come from.
enum Source {
    File(File, u64),
    Bytes(Bytes),
}

impl Source {
    fn file(path: &Path) -> io::Result<Source> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Source::File(file, len))
    }
}

impl Content for Source {
    fn len(&self) -> u64 {
        match self {
            Source::File(_, len) => *len,
            Source::Bytes(bytes) => bytes.len() as u64,
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Source::File(file, _) => file.read_exact_at(buf, at),
            Source::Bytes(bytes) => {
                let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.get(..buf.len()));
                buf.copy_from_slice(rest.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

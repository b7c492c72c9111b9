//! TFTP: `async-tftp` around a tree of names that exists only here, one server for each address.
//!
//! Nothing outside the tree can be named: a request is compared with the few names there are. The crate ignores a
//! client's ERROR packets and keeps a transfer until its retries are used up, and meanwhile ignores further requests
//! from the same port. So a client that gives up (UEFI does, to learn a file's size) costs us ten seconds of
//! retransmission at most, and a separate transfer only if it asked again from the very same port within these.
//!
//! What it has no limit on is requests that wait to be looked at: its loop takes the next packet before anything else, and
//! keeps a task for each new address and port. So a flood that arrives faster than it is read stops TFTP, and costs
//! memory, for as long as it lasts. Machines that can boot by HTTP do; the switch has to see to the rest.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use async_tftp::packet;
use async_tftp::server::{Handler, TftpServer, TftpServerBuilder};
use bytes::Bytes;
use futures_lite::{AsyncRead, future};
use netboot::MacAddr;
use tokio::sync::oneshot;

use crate::room::orders::Job;
use crate::room::{Room, count};
use crate::services::binding::{self, Binding};
use crate::services::boot_script;
use netboot::loaders::BOOT_FILES;

/// An Ethernet frame without the headers of IP, UDP and TFTP.
const MAX_BLKSIZE: u16 = 1468;
/// 47 KB in flight: enough for a gigabit LAN, and no more than any socket buffer takes at once.
const MAX_WINDOWSIZE: u16 = 32;
/// Silence after which a window is sent again, and how often. Together ten seconds: see the top.
const TIMEOUT: Duration = Duration::from_millis(500);
const RETRIES: u32 = 20;
/// Transfers at the same time; each has two file descriptors. A request beyond them is refused when its turn comes: this
/// saves descriptors, and not the memory that a flood of requests takes (see the top).
const MAX_TRANSFERS: usize = 256;
/// How long we remember which machine asks from which address.
const REMEMBER: Duration = Duration::from_secs(120);
/// Addresses remembered at most.
const MAX_REMEMBERED: usize = 4096;

/// A bound server.
pub struct TftpService {
    server: TftpServer<Tree>,
    address: Ipv4Addr,
}

/// Opens the port on one address.
///
/// # Errors
/// A port in use or a missing right.
pub fn bind(room: &Arc<Room>, binding: &Binding) -> anyhow::Result<TftpService> {
    let port = room.settings.tftp_port();
    let address = binding.address;
    let socket = UdpSocket::bind((address, port))
        .map_err(|error| binding::explain(error, "TFTP", address, port, true, "tftp_port"))?;
    let tree = Tree { room: room.clone(), address, transfers: Arc::default(), asked: HashMap::new() };
    let builder = TftpServerBuilder::with_handler(tree)
        .std_socket(socket)?
        .block_size_limit(MAX_BLKSIZE)
        .window_size_limit(MAX_WINDOWSIZE)
        .timeout(TIMEOUT)
        .ignore_client_timeout()
        .max_send_retries(RETRIES);
    Ok(TftpService { server: future::block_on(builder.build())?, address })
}

/// Serves on a thread of its own until `stop` is sent or dropped.
pub fn run(service: TftpService, stop: oneshot::Receiver<()>) -> std::io::Result<std::thread::JoinHandle<()>> {
    let TftpService { server, address } = service;
    std::thread::Builder::new().name("tftp".into()).spawn(move || {
        let serve = async {
            if let Err(error) = server.serve().await {
                log::error!("TFTP on {address} has stopped: {error}; restart the server");
            }
        };
        let stop = async {
            let _ = stop.await;
        };
        future::block_on(future::or(serve, stop));
    })
}

/// What a machine hears for which nothing is armed (RFC 1350 code 7). `/init` takes it at its word and asks for no other
/// name.
const NOTHING_ARMED: packet::Error = packet::Error::NoSuchUser;
/// What anybody hears when there are too many transfers (RFC 1350 code 3, "allocation exceeded"): trouble that passes, and
/// not "no such file", which would send a machine to the next name.
const BUSY: packet::Error = packet::Error::DiskFull;

/// The tree of names.
struct Tree {
    room: Arc<Room>,
    address: Ipv4Addr,
    transfers: Arc<AtomicUsize>,
    /// Who asked for a name with a MAC address in it, and when: the names without one then mean that machine too.
    asked: HashMap<IpAddr, (MacAddr, Instant)>,
}

impl Tree {
    fn open(&mut self, client: IpAddr, name: &str) -> Result<Source, packet::Error> {
        if BOOT_FILES.contains(&name) {
            let path = self.room.boot_dir.join(name);
            return Source::file(&path).map_err(|error| {
                log::error!("{} cannot be read: {error}; run `make image`", path.display());
                packet::Error::FileNotFound
            });
        }
        if let Some(image) = name.strip_prefix("torrents/").and_then(|name| name.strip_suffix(".torrent")) {
            return match self.room.torrent(image) {
                Ok(Some(image)) => Ok(Source::bytes(image.torrent_bytes.clone())),
                Ok(None) => Err(packet::Error::FileNotFound),
                Err(error) => Err(packet::Error::Msg(text_for_client(&error))),
            };
        }
        let room = &self.room;
        let text = match name.split_once('/') {
            None if name == "boot.ipxe" => Some(boot_script::script_for_anybody(room, self.address)),
            Some(("boot.ipxe", mac)) => MacAddr::from_bootif(mac).ok().map(|mac| {
                room.asked(mac, "boot script by TFTP");
                boot_script::script(room, mac, self.address)
            }),
            Some(("ezio.conf", "default")) => {
                self.job_of(client).map(|job| boot_script::conf(&self.room, &job, self.address))
            }
            None if name == "ezio.conf" => {
                self.job_of(client).map(|job| boot_script::conf(&self.room, &job, self.address))
            }
            Some(("ezio.conf", mac)) => match MacAddr::from_bootif(mac) {
                Ok(mac) => {
                    self.remember(client, mac);
                    // Not "no such file", or it would go on to ask for what is meant for everybody.
                    let job = self.room.armed().job_for(mac, &self.room.settings).ok_or(NOTHING_ARMED)?;
                    Some(boot_script::conf(&self.room, &job, self.address))
                }
                Err(_) => None,
            },
            _ => None,
        };
        text.map(|text| Source::bytes(text.into())).ok_or(packet::Error::FileNotFound)
    }

    /// What a name without a MAC address means for this client: a machine that is held back, and therefore found
    /// nothing under its own name, must not find everybody's order instead.
    fn job_of(&self, client: IpAddr) -> Option<Job> {
        let armed = self.room.armed();
        match self.asked.get(&client).filter(|(_, at)| at.elapsed() < REMEMBER) {
            Some((mac, _)) => armed.job_for(*mac, &self.room.settings),
            None => armed.job_for_unknown(&self.room.settings),
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

impl Handler for Tree {
    type Reader = Transfer;
    type Writer = futures_lite::io::Sink;

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(Transfer, Option<u64>), packet::Error> {
        // GRUB asks with a leading slash, some firmware with backslashes.
        let name = path.to_string_lossy().replace('\\', "/");
        let name = name.trim_start_matches('/');
        let guard = Guard::new(&self.transfers).ok_or_else(|| {
            count(&self.room.counters.tftp_refused);
            BUSY
        })?;
        match self.open(client.ip(), name) {
            Ok(source) => {
                count(&self.room.counters.tftp_served);
                log::debug!("{client} fetches {name} by TFTP, {} bytes", source.len);
                let len = source.len;
                Ok((Transfer { source, _guard: guard }, Some(len)))
            }
            Err(error) => {
                count(&self.room.counters.tftp_refused);
                log::debug!("{client} asks for {name:?} by TFTP: {error:?}");
                Err(error)
            }
        }
    }

    async fn write_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
        _size: Option<u64>,
    ) -> Result<Self::Writer, packet::Error> {
        count(&self.room.counters.tftp_refused);
        log::debug!("{client} wants to write {:?} by TFTP: refused", path);
        Err(packet::Error::PermissionDenied)
    }
}

/// Where bytes come from.
struct Source {
    reader: Box<dyn Read + Send>,
    len: u64,
}

impl Source {
    fn file(path: &Path) -> std::io::Result<Source> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Source { reader: Box::new(BufReader::with_capacity(64 << 10, file)), len })
    }

    fn bytes(bytes: Bytes) -> Source {
        Source { len: bytes.len() as u64, reader: Box::new(Cursor::new(bytes)) }
    }
}

/// One transfer in progress. Reading blocks for as long as the page cache takes; the thread serves TFTP only.
struct Transfer {
    source: Source,
    _guard: Guard,
}

impl AsyncRead for Transfer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut TaskContext<'_>, buf: &mut [u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(self.source.reader.read(buf))
    }
}

/// One of [`MAX_TRANSFERS`].
struct Guard(Arc<AtomicUsize>);

impl Guard {
    fn new(transfers: &Arc<AtomicUsize>) -> Option<Guard> {
        let taken = transfers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < MAX_TRANSFERS).then_some(count + 1));
        taken.ok().map(|_| Guard(transfers.clone()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An ERROR packet's text: one line, short enough for the smallest block.
fn text_for_client(error: &str) -> String {
    error.chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect()
}

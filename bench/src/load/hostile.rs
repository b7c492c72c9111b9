//! A room that boots beside a card whose owner means harm, and has the order's own rights: tokens, and 254 addresses.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use metainfo::Infohash;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::load::client::{self, Ask, Http, Order, SERVER};
use crate::load::image::{BOOT_FILES, CONTENT_LEN};
use crate::load::lan::Station;
use crate::load::meter::Meter;
use crate::load::served::{Bench, DHCP_RANGE, Served};
use crate::load::table::{self, Table};
use crate::load::tftp;
use crate::process::{POLL, wait_until};

/// Machines of the room.
const ROOM: usize = 40;
/// What the server's card carries, in Mbit/s.
const MBIT: u32 = 1000;
/// How long the room may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// The goal for the last machine's time beside the hostile card, over its time alone.
const GOAL: f64 = 1.25;

/// Addresses of the hostile card.
const ADDRESSES: usize = 254;
/// Connections that it keeps open from each: together more than the server has places.
const IDLE_EACH: usize = 30;
/// Connections on which it asks all the time, and on which it fetches slowly.
const ASKING: usize = 32;
const SLOW: usize = 32;
/// TFTP transfers that it begins, and how often.
const TRANSFERS: usize = 260;
const TRANSFERS_EVERY: Duration = Duration::from_secs(2);
/// Ports that it announces, over and over.
const PORTS: u16 = 1024;
/// Connections on which it changes a machine's stage all the time.
const TOGGLES: usize = 64;

/// What a machine does, in this order.
const STEPS: [&str; 7] = ["DHCP", "loader", "script", "kernel", "order", "announce", "report"];
type Times = [f64; STEPS.len()];

pub fn measure(bench: &Bench) -> Table {
    let what = format!(
        "{ROOM} machines boot in the same moment, each on its own card: DHCP, loader by TFTP, boot script, kernel and initramfs \
         (32 MiB) by HTTP, order by TFTP, announce, first report. The server's card carries {MBIT} Mbit/s. Beside them, one card \
         with {ADDRESSES} addresses opens {IDLE_EACH} idle connections from each, and again when the server ends one, asks for boot scripts without a pause on \
         {ASKING} connections, fetches the initramfs slowly on {SLOW}, begins {TRANSFERS} TFTP transfers every {} s and never \
         acknowledges them, announces {PORTS} ports over and over, and changes the stages of {TOGGLES} machines, with their \
         tokens, as fast as answers come. Seconds count from the start of the room until the last machine has ended a step. The \
         goal is that the last machine takes no more than {GOAL} times as long as alone. Medians of {} runs, in turns.",
        TRANSFERS_EVERY.as_secs(),
        bench.runs
    );
    let mut head = vec!["room", "last machine s", "ratio"];
    head.extend(STEPS);
    head.extend(["CPU", "what the hostile card did"]);
    let mut table = Table::new("A hostile card beside a room", what, &head);
    if let Err(error) = rows(bench, &mut table) {
        table.row("beside the hostile card", Err(error));
    }
    table
}

fn rows(bench: &Bench, table: &mut Table) -> Result<()> {
    let room =
        (0..ROOM).map(|at| bench.lan.station(vec![[10, 9, 1, at as u8 + 1].into()])).collect::<Result<Vec<_>>>()?;
    bench.lan.shape(MBIT)?;
    let mut runs: [Vec<Run>; 2] = Default::default();
    for turn in 0..bench.runs {
        for (is_beside, runs) in [false, true].into_iter().zip(&mut runs) {
            let name = format!("hostile-{turn}-{}", if is_beside { "beside" } else { "alone" });
            let run = one(bench, &name, &room, is_beside)?;
            println!("{name}: {:?}; {}; {}", run.slowest, run.cpu, run.attack);
            runs.push(run);
        }
    }
    bench.lan.unshape()?;
    let [alone, beside] = &runs;
    let last = |runs: &[Run]| table::quantile(&times_of(runs, STEPS.len() - 1), 0.5);
    let ratio = last(beside) / last(alone);
    table.row("alone", Ok(cells(alone, "1")));
    let said = format!("{ratio:.2}, goal {}", if ratio <= GOAL { "met" } else { "missed" });
    table.row("beside the hostile card", Ok(cells(beside, &said)));
    Ok(())
}

/// How a room booted.
struct Run {
    /// When the last machine had ended each step, in seconds.
    slowest: Times,
    cpu: String,
    attack: String,
}

fn times_of(runs: &[Run], step: usize) -> Vec<f64> {
    table::sorted(runs.iter().map(|run| run.slowest[step]).collect())
}

fn cells(runs: &[Run], ratio: &str) -> Vec<String> {
    let last = times_of(runs, STEPS.len() - 1);
    let range = |values: &[f64]| format!("{:.1}–{:.1}", values[0], values[values.len() - 1]);
    let mut cells = vec![format!("{:.1} ({})", table::quantile(&last, 0.5), range(&last)), ratio.to_owned()];
    cells.extend((0..STEPS.len()).map(|step| format!("{:.2}", table::quantile(&times_of(runs, step), 0.5))));
    cells.extend(runs.last().map(|run| run.cpu.clone()));
    cells.extend(runs.last().map(|run| run.attack.clone()));
    cells
}

fn one(bench: &Bench, name: &str, room: &[Station], is_beside: bool) -> Result<Run> {
    let mut served = Served::start(bench, name, &["--dhcp", "server", "--dhcp-range", DHCP_RANGE])?;
    let infohash = served.infohash;
    let is_over = Arc::new(AtomicBool::new(false));
    let did = Arc::new(Did::default());
    let hostile = is_beside
        .then(|| {
            let addresses = (1..=ADDRESSES).map(|at| Ipv4Addr::from([10, 9, 66, at as u8]));
            let station = bench.lan.station(addresses.collect())?;
            let (addresses, is_over, did) = (station.addresses.clone(), Arc::clone(&is_over), Arc::clone(&did));
            let pending = station.begin(move || attack(addresses, infohash, is_over, did));
            anyhow::Ok((station, pending))
        })
        .transpose()?;
    if is_beside {
        // If the server does not let it, that is how it is.
        let is_there = || Ok(did.made.load(Ordering::Relaxed) >= ADDRESSES * IDLE_EACH);
        let _ = wait_until("the hostile card has its connections", Duration::from_secs(15), is_there);
    }
    let meter = Meter::start(&mut served)?;
    let (before, begun) = (did.counts(), Instant::now());
    let pending: Vec<_> = room
        .iter()
        .enumerate()
        .map(|(at, station)| {
            let from = station.addresses[0];
            station.begin(move || async move {
                let booted = tokio::time::timeout(PATIENCE, boot(from, at, infohash, begun)).await;
                booted.unwrap_or_else(|_| bail!("it has not booted after {} s", PATIENCE.as_secs()))
            })
        })
        .collect();
    let mut slowest = Times::default();
    let mut failed = Vec::new();
    for (at, pending) in pending.into_iter().enumerate() {
        match pending.wait()? {
            Ok(times) => slowest.iter_mut().zip(times).for_each(|(slowest, time)| *slowest = slowest.max(time)),
            Err(error) => failed.push(format!("machine {}: {error:#}", at + 1)),
        }
    }
    let cpu = meter.cell(&mut served)?;
    let seconds = begun.elapsed().as_secs_f64();
    let did = did.counts().iter().zip(before).map(|(now, before)| (now - before) as f64 / seconds).collect::<Vec<_>>();
    is_over.store(true, Ordering::Relaxed);
    let mut attack = String::from("–");
    if let Some((_station, pending)) = hostile {
        let held = pending.wait()?;
        attack = format!(
            "held {held} idle connections; a second: {:.0} scripts, {:.0} TFTP requests, {:.0} announces, {:.0} stages",
            did[0], did[1], did[2], did[3]
        );
    }
    ensure!(failed.is_empty(), "{} of {ROOM} machines did not boot; {}", failed.len(), failed[0]);
    Ok(Run { slowest, cpu, attack })
}

/// Boots one machine; gives the seconds since `begun` after each step.
async fn boot(from: Ipv4Addr, at: usize, infohash: Infohash, begun: Instant) -> Result<Times> {
    let mut times = Times::default();
    let (mac, until) = (client::mac(at + 1), begun + PATIENCE);
    let (is_uefi, mut order) = (at % 2 == 1, Order::default());
    for (step, time) in times.iter_mut().enumerate() {
        match step {
            0 => lease(mac, at as u32, is_uefi).await.context("asking for a lease")?,
            1 => tftp::loader(from, is_uefi, until).await.map(drop).context("fetching the loader")?,
            2 => fetch(from, &client::script_request(mac), None).await,
            3 => {
                for (name, len) in BOOT_FILES.iter().filter(|(name, _)| ["vmlinuz", "initrd.img"].contains(name)) {
                    fetch(from, &client::get(&format!("/boot/{name}")), Some(*len)).await;
                }
            }
            4 => order = Order::fetch(from, mac, until).await.context("fetching the order")?,
            5 => fetch(from, &announce(infohash, at as u16, 6881), None).await,
            _ => fetch(from, &order.report("restore", 0), None).await,
        }
        *time = begun.elapsed().as_secs_f64();
    }
    Ok(times)
}

/// Asks until there is a good answer, of this length if it is known. As iPXE and the RAM system do, it tries again after a
/// pause.
async fn fetch(from: Ipv4Addr, request: &str, len: Option<usize>) {
    loop {
        if let Ok(mut http) = Http::connect(from).await
            && let Ok(answer) = http.ask(request).await
            && (200..300).contains(&answer.status)
            && len.is_none_or(|len| len == answer.len)
        {
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

fn announce(infohash: Infohash, peer: u16, port: u16) -> String {
    let hex = infohash.to_string();
    let hash: String = hex.as_bytes().chunks(2).map(|pair| format!("%{}", String::from_utf8_lossy(pair))).collect();
    client::get(&format!(
        "/announce?info_hash={hash}&peer_id=-EZ0000-{peer:012}&port={port}&uploaded=0&downloaded=0&left={CONTENT_LEN}\
         &compact=1&event=started"
    ))
}

/// DISCOVER, OFFER, REQUEST, ACK; after 4 s without an answer once more. The address is not used.
async fn lease(mac: [u8; 6], number: u32, is_uefi: bool) -> Result<()> {
    let socket = client::dhcp_socket().context("opening the port of DHCP clients")?;
    socket.set_nonblocking(true).context("setting up a socket")?;
    let socket = UdpSocket::from_std(socket).context("setting up a socket")?;
    let xid = 0x4857_0000 + number;
    let offer = exchange(&socket, &client::dhcp_message(Ask::Discover, mac, xid, is_uefi, &[]), xid, 2).await?;
    let (address, server) = offer;
    let more = [&[50, 4][..], &address, &[54, 4], &server].concat();
    exchange(&socket, &client::dhcp_message(Ask::Request, mac, xid, is_uefi, &more), xid, 5).await.map(drop)
}

/// Sends a message until an answer of this type comes; gives the address that is offered, and the server's.
async fn exchange(socket: &UdpSocket, message: &[u8], xid: u32, wanted: u8) -> Result<([u8; 4], [u8; 4])> {
    let mut buf = [0; 2048];
    loop {
        socket.send_to(message, client::DHCP_TO).await.context("sending")?;
        let again = Instant::now() + Duration::from_secs(4);
        while let Ok(received) = timeout_at(again, socket.recv_from(&mut buf)).await {
            let (len, _) = received.context("receiving")?;
            if let Some((kind, address, server)) = client::dhcp_answer(&buf[..len], xid)
                && kind == wanted
            {
                return Ok((address, server));
            }
        }
    }
}

/// What the hostile card has achieved.
#[derive(Default)]
struct Did {
    /// Idle connections that it holds, and that it has made.
    connected: AtomicUsize,
    made: AtomicUsize,
    scripts: AtomicUsize,
    transfers: AtomicUsize,
    announces: AtomicUsize,
    stages: AtomicUsize,
}

impl Did {
    fn counts(&self) -> [usize; 4] {
        [&self.scripts, &self.transfers, &self.announces, &self.stages].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Does harm until it is over; gives how many idle connections it holds then.
async fn attack(addresses: Vec<Ipv4Addr>, infohash: Infohash, is_over: Arc<AtomicBool>, did: Arc<Did>) -> usize {
    // Dropped at the end, which ends all of it.
    let mut tasks = JoinSet::new();
    let address = |number: usize| addresses[number % addresses.len()];
    for (at, &from) in addresses.iter().enumerate() {
        tasks.spawn(hold(from, at, Arc::clone(&did)));
    }
    for number in 0..ASKING {
        tasks.spawn(ask_scripts(address(number), number, Arc::clone(&did)));
    }
    for number in 0..SLOW {
        tasks.spawn(fetch_slowly(address(number)));
    }
    tasks.spawn(begin_transfers(addresses.clone(), Arc::clone(&did)));
    tasks.spawn(announce_ports(address(7), infohash, Arc::clone(&did)));
    for number in 0..TOGGLES {
        tasks.spawn(toggle(address(number), number, Arc::clone(&did)));
    }
    while !is_over.load(Ordering::Relaxed) {
        sleep(POLL).await;
    }
    did.connected.load(Ordering::Relaxed)
}

/// Keeps idle connections open, and replaces those that the server ends.
async fn hold(from: Ipv4Addr, at: usize, did: Arc<Did>) {
    let mut held: Vec<Http> = Vec::new();
    loop {
        let before = held.len();
        held.retain(Http::is_open);
        did.connected.fetch_sub(before - held.len(), Ordering::Relaxed);
        while held.len() < IDLE_EACH {
            let Ok(mut http) = Http::connect(from).await else { break };
            if http.ask_within(&client::script_request(client::mac(200_000 + at)), PATIENCE).await.is_err() {
                break;
            }
            held.push(http);
            did.connected.fetch_add(1, Ordering::Relaxed);
            did.made.fetch_add(1, Ordering::Relaxed);
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn ask_scripts(from: Ipv4Addr, number: usize, did: Arc<Did>) {
    let request = client::script_request(client::mac(300_000 + number));
    loop {
        if let Ok(mut http) = Http::connect(from).await {
            while http.ask(&request).await.is_ok() {
                did.scripts.fetch_add(1, Ordering::Relaxed);
            }
        }
        sleep(POLL).await;
    }
}

async fn fetch_slowly(from: Ipv4Addr) {
    loop {
        if let Ok(mut http) = Http::connect(from).await {
            let mut buf = [0; 2048];
            if http.send(&client::get("/boot/initrd.img")).await.is_ok() {
                while http.read_some(&mut buf).await.is_ok_and(|len| len > 0) {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        sleep(POLL).await;
    }
}

async fn begin_transfers(addresses: Vec<Ipv4Addr>, did: Arc<Did>) {
    loop {
        let mut sockets = Vec::new();
        for number in 0..TRANSFERS {
            let Ok(socket) = UdpSocket::bind((addresses[number % addresses.len()], 0)).await else { continue };
            let request = b"\0\x01snponly.efi\0octet\0blksize\x001468\0windowsize\x0032\0";
            if socket.send_to(request, SocketAddrV4::new(SERVER, 69)).await.is_ok() {
                did.transfers.fetch_add(1, Ordering::Relaxed);
            }
            sockets.push(socket);
        }
        // A port that is open takes what comes; a closed one would end the transfer.
        sleep(TRANSFERS_EVERY).await;
    }
}

async fn announce_ports(from: Ipv4Addr, infohash: Infohash, did: Arc<Did>) {
    loop {
        if let Ok(mut http) = Http::connect(from).await {
            for port in 0..PORTS {
                if http.ask(&announce(infohash, 10_000 + port, 10_000 + port)).await.is_err() {
                    break;
                }
                did.announces.fetch_add(1, Ordering::Relaxed);
            }
        }
        sleep(POLL).await;
    }
}

async fn toggle(from: Ipv4Addr, number: usize, did: Arc<Did>) {
    let mac = client::mac(400_000 + number);
    loop {
        let until = Instant::now() + PATIENCE;
        if let Ok(order) = Order::fetch(from, mac, until).await
            && let Ok(mut http) = Http::connect(from).await
        {
            for stage in ["fetch", "disk", "restore"].into_iter().cycle() {
                if http.ask(&order.report(stage, 0)).await.is_err() {
                    break;
                }
                did.stages.fetch_add(1, Ordering::Relaxed);
            }
        }
        sleep(POLL).await;
    }
}

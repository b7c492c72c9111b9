//! Tests with stock clients at the other end, in both directions, on image-style torrents.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::{HttpTracker, Image, complete, image, image_with_names, options, receiver, seeder, until};
use socket2::{Domain, Socket, Type};
use swarm::{Have, Options};

/// Kills the program however the test ends.
struct Running {
    child: Child,
    _port: Port,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(mut command: Command, port: Port) -> Running {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Running { child: child.expect("starting a client"), _port: port }
}

fn need(program: &str, args: &[&str]) {
    let found = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let is_here = found.is_ok_and(|status| status.success());
    assert!(is_here, "`{program} {}` does not work here: `make setup` installs it", args.join(" "));
}

/// A port for a stock client that cannot report which one it took.
///
/// No other program gets it as long as this lives. The port is bound but does not listen: only a program that asks for
/// this very port and is ready to share it (`SO_REUSEADDR`), as servers are, can have it.
struct Port {
    number: u16,
    _held: Socket,
}

impl Port {
    fn free() -> Port {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("shared");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("binding");
        let addr = socket.local_addr().ok().and_then(|addr| addr.as_socket()).expect("where it is bound");
        Port { number: addr.port(), _held: socket }
    }
}

fn aria2(dir: &Path, torrent: &Path, tracker: &str, is_seeder: bool) -> Running {
    let port = Port::free();
    let mut command = Command::new("aria2c");
    command.arg(format!("--dir={}", dir.display())).arg(format!("--listen-port={}", port.number));
    command.arg(format!("--bt-tracker={tracker}")).arg("--bt-exclude-tracker=*");
    command.args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--enable-peer-exchange=false"]);
    command.args(["--bt-enable-lpd=false", "--file-allocation=none", "--seed-ratio=0.0", "--seed-time=999"]);
    if is_seeder {
        command.args(["--check-integrity=true", "--bt-seed-unverified=false"]);
    }
    command.arg(torrent);
    start(command, port)
}

const LIBTORRENT: &str = "
import libtorrent as lt, sys, time
torrent, folder, port, peer = sys.argv[1:5]
session = lt.session({'listen_interfaces': '127.0.0.1:' + port, 'enable_dht': False, 'enable_lsd': False,
                      'enable_upnp': False, 'enable_natpmp': False, 'allow_multiple_connections_per_ip': True})
params = lt.add_torrent_params()
params.ti = lt.torrent_info(torrent)
params.save_path = folder
handle = session.add_torrent(params)
if peer:
    host, number = peer.split(':')
    handle.connect_peer((host, int(number)))
while True:
    time.sleep(1)
";

fn libtorrent(dir: &Path, torrent: &Path, port: Port, peer: &str) -> Running {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", LIBTORRENT]).arg(torrent).arg(dir).args([&port.number.to_string(), peer]);
    start(command, port)
}

/// Transmission accepts no loopback peers from a tracker, but answers when we dial it.
fn transmission(dir: &Path, torrent: &Path, port: Port) -> Running {
    let mut command = Command::new("transmission-cli");
    command.arg("--config-dir").arg(dir.join("transmission")).arg("--download-dir").arg(dir);
    // On loopback there is no router to map a port.
    command.args(["--no-portmap", "--no-blocklist", "--no-uplimit", "--no-downlimit", "--encryption-tolerated"]);
    command.args(["--port", &port.number.to_string()]).arg(torrent).env("HOME", dir);
    start(command, port)
}

fn images() -> [Image; 3] {
    [
        image((8 << 20) + 12_345, 256 << 10, None),
        image_with_names((20 << 20) + 77, 4 << 20, None, 16),
        image((40 << 20) + 1, 16 << 20, None),
    ]
}

async fn tracker(image: &Image) -> HttpTracker {
    HttpTracker::start("127.0.0.1:0".parse().expect("an address"), image).await
}

#[tokio::test(flavor = "multi_thread")]
async fn aria2_seeds_to_us() {
    need("aria2c", &["--version"]);
    for image in images() {
        let dir = tempfile::tempdir().expect("a directory");
        image.lay_out(dir.path());
        let tracker = tracker(&image).await;
        let _theirs = aria2(dir.path(), &image.write_torrent(dir.path()), &tracker.url, true);
        let trackers = vec![tracker.url.clone()];
        let (swarm, store) = receiver(&image, Options { trackers, ..options(Have::None) }).await;
        complete(&swarm).await;
        assert!(store.is_right());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aria2_fetches_from_us() {
    need("aria2c", &["--version"]);
    for image in images() {
        let dir = tempfile::tempdir().expect("a directory");
        let tracker = tracker(&image).await;
        let trackers = vec![tracker.url.clone()];
        let ours = seeder(&image, Options { trackers, ..options(Have::All) }).await;
        let _theirs = aria2(dir.path(), &image.write_torrent(dir.path()), &tracker.url, false);
        until("aria2 has every byte", || image.is_laid_out(dir.path())).await;
        assert!(ours.stats().uploaded >= image.content.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libtorrent_seeds_to_us() {
    need("/usr/bin/python3", &["-c", "import libtorrent"]);
    for image in images() {
        let dir = tempfile::tempdir().expect("a directory");
        image.lay_out(dir.path());
        let port = Port::free();
        let peers = vec![([127, 0, 0, 1], port.number).into()];
        let _theirs = libtorrent(dir.path(), &image.write_torrent(dir.path()), port, "");
        let (swarm, store) = receiver(&image, Options { peers, ..options(Have::None) }).await;
        complete(&swarm).await;
        assert!(store.is_right());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libtorrent_fetches_from_us() {
    need("/usr/bin/python3", &["-c", "import libtorrent"]);
    for image in images() {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = seeder(&image, options(Have::All)).await;
        let torrent = image.write_torrent(dir.path());
        let _theirs = libtorrent(dir.path(), &torrent, Port::free(), &ours.local_addr().to_string());
        until("libtorrent has every byte", || image.is_laid_out(dir.path())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transmission_seeds_to_us() {
    need("transmission-cli", &["--version"]);
    for image in images() {
        let dir = tempfile::tempdir().expect("a directory");
        image.lay_out(dir.path());
        let port = Port::free();
        let peers = vec![([127, 0, 0, 1], port.number).into()];
        let _theirs = transmission(dir.path(), &image.write_torrent(dir.path()), port);
        let (swarm, store) = receiver(&image, Options { peers, ..options(Have::None) }).await;
        complete(&swarm).await;
        assert!(store.is_right());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transmission_fetches_from_us() {
    need("transmission-cli", &["--version"]);
    for image in images() {
        let dir = tempfile::tempdir().expect("a directory");
        let port = Port::free();
        let peers = vec![([127, 0, 0, 1], port.number).into()];
        let _theirs = transmission(dir.path(), &image.write_torrent(dir.path()), port);
        let _ours = seeder(&image, Options { peers, ..options(Have::All) }).await;
        until("Transmission has every byte", || image.is_laid_out(dir.path())).await;
    }
}

/// Fresh receivers of both kinds start together and have to see each other's first pieces.
#[tokio::test(flavor = "multi_thread")]
async fn fresh_receivers_of_both_kinds_share() {
    need("aria2c", &["--version"]);
    let image = image(24 << 20, 256 << 10, None);
    let dir = tempfile::tempdir().expect("a directory");
    let tracker = tracker(&image).await;
    let trackers = vec![tracker.url.clone()];
    let _theirs = aria2(dir.path(), &image.write_torrent(dir.path()), &tracker.url, false);
    let (one, one_store) = receiver(&image, Options { trackers: trackers.clone(), ..options(Have::None) }).await;
    let (two, two_store) = receiver(&image, Options { trackers: trackers.clone(), ..options(Have::None) }).await;
    until("all three have announced", || tracker.tracker.lock().expect("lock").counts(&image.meta.infohash).0 == 3)
        .await;
    let _seeder = seeder(&image, Options { trackers, ..options(Have::All) }).await;
    complete(&one).await;
    complete(&two).await;
    until("aria2 has every byte", || image.is_laid_out(dir.path())).await;
    assert!(one_store.is_right() && two_store.is_right());
}

//! The tracker of `ezio serve` behind a few lines of HTTP, open before any client announces.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use metainfo::Infohash;
use nix::sys::socket::{Shutdown, shutdown};
use swarm::tracker::{AnnounceQuery, Tracker, failure};

const PORT: u16 = 6969;
/// Longest request that is read, in bytes.
const MAX_REQUEST: usize = 16 << 10;

/// The announce URL of a tracker at `ip`.
pub fn url(ip: Ipv4Addr) -> String {
    format!("http://{ip}:{PORT}/announce")
}

/// A running tracker; closed when dropped.
pub struct Server {
    listener: TcpListener,
    infohash: Infohash,
    state: Arc<Mutex<Tracker>>,
}

impl Server {
    /// Opens the port at `ip` for one swarm.
    ///
    /// # Errors
    /// If the port cannot be opened.
    pub fn open(ip: Ipv4Addr, infohash: Infohash) -> Result<Server> {
        let addr = SocketAddr::from((ip, PORT));
        let listener = TcpListener::bind(addr).with_context(|| format!("opening the tracker at {addr}"))?;
        let mut tracker = Tracker::new();
        tracker.allow(infohash);
        let state = Arc::new(Mutex::new(tracker));
        let (shared, accepting) = (Arc::clone(&state), listener.try_clone().context("sharing the tracker's port")?);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let state = Arc::clone(&shared);
                // A client that gets no answer shows in the measurement.
                std::thread::spawn(move || answer(stream, &state));
            }
        });
        Ok(Server { listener, infohash, state })
    }

    /// How many peers have announced.
    pub fn peers(&self) -> usize {
        let (fetching, having) = self.state.lock().unwrap_or_else(PoisonError::into_inner).counts(&self.infohash);
        fetching + having
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wake the thread that accepts. Its address may be gone with the rack, so a connection to it may be impossible.
        // If it stayed open, the port would be taken when another rack gets the same address.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<Tracker>) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let from = stream.peer_addr().ok()?.ip();
    let mut request = Vec::new();
    let mut buf = [0; 2048];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        let len = stream.read(&mut buf).ok().filter(|&len| len > 0)?;
        request.extend_from_slice(&buf[..len]);
    }
    let text = String::from_utf8_lossy(&request);
    let target = text.split_whitespace().nth(1)?;
    let query = target.strip_prefix("/announce?").unwrap_or_default();
    let body = match AnnounceQuery::parse(query) {
        Ok(query) => state.lock().unwrap_or_else(PoisonError::into_inner).announce(&query, from, Instant::now()),
        Err(error) => failure(&error.to_string()),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).ok()
}

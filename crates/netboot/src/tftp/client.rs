//! The TFTP client of the RAM system: one file, with blksize, tsize and windowsize (RFC 1350, 2347-2349, 7440).
//!
//! States: *asking* (the request is out), *receiving* (blocks arrive in order from one port of the server), *over*.
//! A block that is not the next one is never stored; what is missing is asked for again by acknowledging the last
//! good block. Block numbers are 16 bits on the wire and roll over to 0.
//!
//! The caller owns the socket (unconnected, any local port, one a transfer) and the clock:
//!
//! ```text
//! loop {
//!     match fetch.poll(now) {
//!         Step::Send { to, packet } => socket.send_to(&packet, to),
//!         Step::Wait { until } => receive one datagram until then; fetch.receive(from, &datagram, now),
//!         Step::Done(bytes) => …,
//!         Step::Failed(error) => FetchError::Refused with code 1 means: try the next name,
//!     }
//! }
//! ```

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::tftp::{BAD_OPTIONS, DATA, ERROR, OACK, PLAIN_BLKSIZE, RRQ, UNKNOWN_TID, ack, error, options, take_u16};

/// Largest block that fits an Ethernet frame with IP, UDP and TFTP headers, and without IP options: 1500-20-8-4.
const BLKSIZE: u16 = 1468;
/// Blocks in flight. 16 of them (24 KB) fill a gigabit LAN's round trip and fit every socket buffer.
const WINDOWSIZE: u16 = 16;
/// How long the server may be silent before the last packet is sent again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Silences in a row after which the server is taken as gone.
const MAX_TRIES: u32 = 8;
/// Longest text taken over from an ERROR packet.
const MAX_TEXT: usize = 200;

/// Why there is no file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The server answered with an ERROR packet.
    #[error("the TFTP server {server} refused {name:?}: {text} (TFTP error {code})")]
    Refused {
        /// Whom we asked.
        server: SocketAddr,
        /// For what.
        name: String,
        /// RFC 1350's number.
        code: u16,
        /// The server's words.
        text: String,
    },
    /// Nobody answered, or the answers stopped.
    #[error("the TFTP server {server} does not answer for {name:?}: {got} bytes came, then nothing for {seconds} s")]
    Silent {
        /// Whom we asked.
        server: SocketAddr,
        /// For what.
        name: String,
        /// How far we got.
        got: usize,
        /// How long we waited.
        seconds: u64,
    },
    /// Larger than the caller can use.
    #[error("{name:?} on the TFTP server {server} is larger than the {max_len} bytes that can be right")]
    TooLarge {
        /// Whom we asked.
        server: SocketAddr,
        /// For what.
        name: String,
        /// The limit.
        max_len: usize,
    },
    /// The server answers options we did not ask for.
    #[error("the TFTP server {server} answered {name:?} with options that were not asked for")]
    Options {
        /// Whom we asked.
        server: SocketAddr,
        /// For what.
        name: String,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this, then ask again.
    Send {
        /// Where to.
        to: SocketAddr,
        /// The UDP payload.
        packet: Vec<u8>,
    },
    /// Nothing to do before `until` unless a packet arrives.
    Wait {
        /// When to ask again.
        until: Instant,
    },
    /// The whole file.
    Done(Vec<u8>),
    /// There will be no file.
    Failed(FetchError),
}

/// One transfer.
#[derive(Clone, Debug)]
pub struct Fetch {
    server: SocketAddr,
    name: String,
    max_len: usize,
    state: State,
    /// What to send again when nothing comes, and how often that was done.
    last: (SocketAddr, Vec<u8>),
    tries: u32,
    next: Instant,
    outgoing: VecDeque<(SocketAddr, Vec<u8>)>,
    ignored: u64,
}

#[derive(Clone, Debug)]
enum State {
    Asking { with_options: bool },
    Receiving(Receiving),
    Done(Vec<u8>),
    Failed(FetchError),
}

#[derive(Clone, Debug)]
struct Receiving {
    /// The server's port for this transfer: its transfer identifier.
    peer: SocketAddr,
    blksize: usize,
    windowsize: u16,
    data: Vec<u8>,
    /// The block that comes next, as on the wire.
    expected: u16,
    /// Blocks since the last ACK.
    unacked: u16,
    /// Whether the gap in front of `expected` has been complained about.
    gap_acked: bool,
}

impl Fetch {
    /// Asks `server` (its port 69) for `name`. More than `max_len` bytes are refused, before they are stored.
    pub fn new(server: SocketAddr, name: &str, max_len: usize, now: Instant) -> Fetch {
        // A NUL would end the name early on the wire.
        let name: String = name.chars().filter(|&c| c != '\0').collect();
        let request = rrq(&name, true);
        Fetch {
            server,
            name,
            max_len,
            state: State::Asking { with_options: true },
            last: (server, request.clone()),
            tries: 1,
            next: now + RETRY_PAUSE,
            outgoing: VecDeque::from([(server, request)]),
            ignored: 0,
        }
    }

    /// What to do now. After [`Step::Done`] or [`Step::Failed`] the transfer is over.
    pub fn poll(&mut self, now: Instant) -> Step {
        if let Some((to, packet)) = self.outgoing.pop_front() {
            return Step::Send { to, packet };
        }
        match &mut self.state {
            State::Done(data) => return Step::Done(std::mem::take(data)),
            State::Failed(error) => return Step::Failed(error.clone()),
            State::Asking { .. } | State::Receiving(_) => {}
        }
        if now < self.next {
            return Step::Wait { until: self.next };
        }
        if self.tries >= MAX_TRIES {
            let seconds = RETRY_PAUSE.as_secs() * u64::from(MAX_TRIES);
            let error = FetchError::Silent { server: self.server, name: self.name.clone(), got: self.got(), seconds };
            self.state = State::Failed(error.clone());
            return Step::Failed(error);
        }
        self.tries += 1;
        self.next = now + RETRY_PAUSE;
        let (to, packet) = self.last.clone();
        Step::Send { to, packet }
    }

    /// Bytes that have arrived so far, in order.
    pub fn got(&self) -> usize {
        match &self.state {
            State::Receiving(receiving) => receiving.data.len(),
            _ => 0,
        }
    }

    /// Packets that were none of this transfer's.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Looks at a datagram that came to this transfer's socket.
    pub fn receive(&mut self, from: SocketAddr, packet: &[u8], now: Instant) {
        let Some((opcode, body)) = take_u16(packet) else {
            self.ignored += 1;
            return;
        };
        let peer = match &self.state {
            State::Receiving(receiving) => Some(receiving.peer),
            _ => None,
        };
        // The first answer comes from a new port of the same host; later ones only from that port.
        if from.ip() != self.server.ip() || peer.is_some_and(|peer| peer != from) {
            self.ignored += 1;
            if from.ip() == self.server.ip() && opcode == DATA {
                self.outgoing.push_back((from, error(UNKNOWN_TID, "this transfer has another port")));
            }
            return;
        }
        match opcode {
            DATA => self.data(from, body, now),
            OACK => self.oack(from, body, now),
            ERROR => self.error(from, body, now),
            _ => self.ignored += 1,
        }
    }

    fn oack(&mut self, from: SocketAddr, body: &[u8], now: Instant) {
        match &self.state {
            State::Asking { with_options: true } => {}
            // Our ACK 0 was lost.
            State::Receiving(receiving) if receiving.expected == 1 && receiving.data.is_empty() => {
                self.outgoing.push_back(self.last.clone());
                return;
            }
            _ => {
                self.ignored += 1;
                return;
            }
        }
        let (mut blksize, mut windowsize) = (PLAIN_BLKSIZE, 1);
        for (key, value) in options(body) {
            let value = value.parse::<u64>().ok();
            let short = value.and_then(|value| u16::try_from(value).ok());
            let good = match (key.to_ascii_lowercase().as_str(), value) {
                ("blksize", Some(_)) => short.filter(|size| (8..=BLKSIZE).contains(size)).is_some_and(|size| {
                    blksize = usize::from(size);
                    true
                }),
                ("windowsize", Some(_)) => short.filter(|size| (1..=WINDOWSIZE).contains(size)).is_some_and(|size| {
                    windowsize = size;
                    true
                }),
                ("tsize", Some(value)) => {
                    if usize::try_from(value).is_ok_and(|value| value > self.max_len) {
                        return self.too_large(from);
                    }
                    true
                }
                _ => false,
            };
            if !good {
                self.outgoing.push_back((from, error(BAD_OPTIONS, "options that were not asked for")));
                self.state = State::Failed(FetchError::Options { server: self.server, name: self.name.clone() });
                return;
            }
        }
        self.begin(from, blksize, windowsize);
        self.send_ack(from, 0, now);
    }

    fn data(&mut self, from: SocketAddr, body: &[u8], now: Instant) {
        let Some((block, bytes)) = take_u16(body) else {
            self.ignored += 1;
            return;
        };
        if let State::Asking { .. } = self.state {
            if block != 1 {
                self.ignored += 1;
                return;
            }
            // A server without options answers with the first block at once.
            self.begin(from, PLAIN_BLKSIZE, 1);
        }
        let State::Receiving(receiving) = &mut self.state else {
            self.ignored += 1;
            return;
        };
        let last_good = receiving.expected.wrapping_sub(1);
        if block != receiving.expected || bytes.len() > receiving.blksize {
            // A gap is complained about once, not for every block behind it, or each loss would make the server
            // send the window once a block. The last good block again means that our ACK was lost.
            let is_gap = block.wrapping_sub(receiving.expected) < receiving.windowsize;
            if (is_gap && !receiving.gap_acked) || block == last_good {
                receiving.gap_acked |= is_gap;
                receiving.unacked = 0;
                self.outgoing.push_back((from, ack(last_good)));
            }
            self.ignored += 1;
            return;
        }
        if receiving.data.len() + bytes.len() > self.max_len {
            return self.too_large(from);
        }
        receiving.data.extend_from_slice(bytes);
        receiving.expected = receiving.expected.wrapping_add(1);
        receiving.unacked += 1;
        receiving.gap_acked = false;
        let is_last = bytes.len() < receiving.blksize;
        if is_last || receiving.unacked >= receiving.windowsize {
            receiving.unacked = 0;
            self.send_ack(from, block, now);
        } else {
            // Progress: if the rest of the window is lost, this block is what to acknowledge.
            self.last = (from, ack(block));
            self.tries = 1;
            self.next = now + RETRY_PAUSE;
        }
        if is_last && let State::Receiving(receiving) = &mut self.state {
            self.state = State::Done(std::mem::take(&mut receiving.data));
        }
    }

    fn error(&mut self, from: SocketAddr, body: &[u8], now: Instant) {
        let Some((code, text)) = take_u16(body) else {
            self.ignored += 1;
            return;
        };
        if code == BAD_OPTIONS && matches!(self.state, State::Asking { with_options: true }) {
            // It knows options but will not negotiate: ask as in 1992.
            let request = rrq(&self.name, false);
            self.state = State::Asking { with_options: false };
            self.last = (self.server, request.clone());
            self.outgoing.push_back((self.server, request));
            self.tries = 1;
            self.next = now + RETRY_PAUSE;
            return;
        }
        if !matches!(self.state, State::Asking { .. } | State::Receiving(_)) {
            return;
        }
        let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
        let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
        let text = if text.is_empty() { "no reason given".into() } else { text };
        let server = SocketAddr::new(from.ip(), self.server.port());
        self.state = State::Failed(FetchError::Refused { server, name: self.name.clone(), code, text });
    }

    fn begin(&mut self, peer: SocketAddr, blksize: usize, windowsize: u16) {
        self.state = State::Receiving(Receiving {
            peer,
            blksize,
            windowsize,
            data: Vec::new(),
            expected: 1,
            unacked: 0,
            gap_acked: false,
        });
    }

    fn send_ack(&mut self, to: SocketAddr, block: u16, now: Instant) {
        self.last = (to, ack(block));
        self.outgoing.push_back(self.last.clone());
        self.tries = 1;
        self.next = now + RETRY_PAUSE;
    }

    fn too_large(&mut self, from: SocketAddr) {
        self.outgoing.push_back((from, error(3, "too large")));
        let (server, name, max_len) = (self.server, self.name.clone(), self.max_len);
        self.state = State::Failed(FetchError::TooLarge { server, name, max_len });
    }
}

/// ```text
///   2 bytes   string   1 byte   string   1 byte   option, value pairs, each ended by a NUL
///  | RRQ=1 |  name   |   0   | "octet" |   0   | ...
/// ```
fn rrq(name: &str, with_options: bool) -> Vec<u8> {
    let mut packet = RRQ.to_be_bytes().to_vec();
    let (blksize, windowsize) = (BLKSIZE.to_string(), WINDOWSIZE.to_string());
    let options = ["blksize", &blksize, "tsize", "0", "windowsize", &windowsize];
    for text in [name, "octet"].iter().chain(options.iter().take(if with_options { 6 } else { 0 })) {
        packet.extend(text.bytes());
        packet.push(0);
    }
    packet
}

#[cfg(test)]
mod tests;

//! The server's half: a request, and the transfer that follows it from a port of its own.
//!
//! The caller owns sockets, files and the clock. For each transfer it opens a socket and then:
//!
//! ```text
//! loop {
//!     match transfer.poll(now)? {
//!         Sending::Packet(packet) => socket.send_to(&packet, client),
//!         Sending::Wait { until } => receive one datagram of the client until then; transfer.receive(&datagram, now),
//!         Sending::Over(answer) => break,
//!     }
//! }
//! ```
//!
//! States: *offered* (the OACK is out; only with options), *sending* (a window of blocks is out), *over*. What was lost is
//! sent again after [`TIMEOUT`], or as soon as the client acknowledges a block in front of the gap (RFC 7440, section 4).
//! A packet that comes twice never makes us send twice, or the doubling would go on to the end of the file (RFC 1123,
//! section 4.2.3.1).

use std::io;
use std::time::{Duration, Instant};

use crate::tftp::{ACK, DATA, ERROR, OACK, PLAIN_BLKSIZE, RRQ, WRQ, error, options, take_u16};

/// Most blocks in flight: 47 KB of an Ethernet's, enough for a gigabit LAN, and no more than any socket buffer takes at once.
pub const MAX_WINDOWSIZE: u16 = 32;
/// The block size that iPXE asks for; firmware asks for another one (1468 UEFI, 1456 and 1408 BIOS ROMs).
const IPXE_BLKSIZE: u64 = 1432;
/// Smallest block that a client may ask for (RFC 2348).
const MIN_BLKSIZE: u64 = 8;
/// Silence after which a window is sent again.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Silences in a row after which the client is taken as gone: ten seconds.
const MAX_TRIES: u32 = 20;
/// The same as long as the client has said nothing: its request comes again, if it still wants an answer.
const MAX_UNHEARD_TRIES: u32 = 5;
/// The same once all of the file has been sent: whoever has it may be gone, and its last ACK lost.
const MAX_LAST_TRIES: u32 = 4;
/// Longest name and longest text of an ERROR packet that are looked at or sent, in bytes.
const MAX_TEXT: usize = 400;

/// Where a file's bytes come from.
pub trait Content {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from offset `at`, which is never past the end.
    ///
    /// # Errors
    /// The file's.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// A client's wish to read a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// The file's name, with slashes, and none in front.
    pub name: String,
    blksize: Option<u64>,
    windowsize: Option<u64>,
    wants_size: bool,
}

/// Why a datagram to the server's port is no wish to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// It has to be answered with an ERROR packet, see [`refusal`].
    Refused(Refusal),
    /// It is nothing that an answer would help.
    Noise,
}

/// Reasons of an ERROR packet (RFC 1350, appendix).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Code 0: see the text.
    Other,
    /// Code 1.
    NoSuchFile,
    /// Code 2: writing.
    AccessViolation,
    /// Code 4: a request that cannot be read.
    IllegalOperation,
    /// Code 7: nothing is armed for this machine. `/init` then asks for no other name.
    NoSuchUser,
}

impl Refusal {
    fn code(self) -> u16 {
        match self {
            Refusal::Other => 0,
            Refusal::NoSuchFile => 1,
            Refusal::AccessViolation => 2,
            Refusal::IllegalOperation => 4,
            Refusal::NoSuchUser => 7,
        }
    }
}

/// An ERROR packet; of the text as much as fits the smallest block, without control characters.
pub fn refusal(why: Refusal, text: &str) -> Vec<u8> {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT / 4).collect();
    error(why.code(), &text)
}

impl ReadRequest {
    /// Whether it is written as iPXE writes it.
    pub fn is_of_ipxe(&self) -> bool {
        self.blksize == Some(IPXE_BLKSIZE) && self.windowsize.is_none()
    }

    /// Reads a datagram that came to the server's port.
    ///
    /// A name may have a slash in front (GRUB), backslashes (some firmware), or bytes 0xff behind it: clients that take it
    /// from a DHCP option and go one byte too far.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse(packet: &[u8]) -> Result<ReadRequest, RequestError> {
        let (opcode, body) = take_u16(packet).ok_or(RequestError::Noise)?;
        match opcode {
            RRQ => {}
            WRQ => return Err(RequestError::Refused(Refusal::AccessViolation)),
            _ => return Err(RequestError::Noise),
        }
        let cut = RequestError::Refused(Refusal::IllegalOperation);
        let (name, rest) = text(body).ok_or(cut)?;
        let (mode, rest) = text(rest).ok_or(cut)?;
        let is_known = |known: &[u8]| mode.eq_ignore_ascii_case(known);
        if !is_known(b"octet") && !is_known(b"netascii") || name.len() > MAX_TEXT {
            return Err(cut);
        }
        let end = name.iter().rposition(|&byte| byte != 0xff).map_or(0, |last| last + 1);
        let name = String::from_utf8_lossy(&name[..end]).replace('\\', "/").trim_start_matches('/').to_owned();
        let mut request = ReadRequest { name, blksize: None, windowsize: None, wants_size: false };
        for (key, value) in options(rest) {
            let number = value.parse::<u64>().ok();
            match key.to_ascii_lowercase().as_str() {
                "blksize" => request.blksize = number.filter(|&size| size >= MIN_BLKSIZE),
                "windowsize" => request.windowsize = number.filter(|&size| size >= 1),
                "tsize" => request.wants_size = true,
                // RFC 2347: what a server does not know it leaves out of its answer.
                _ => {}
            }
        }
        Ok(request)
    }
}

/// A text and what follows its NUL.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The client has acknowledged all of it, or all of it was sent and the client has gone silent.
    Sent,
    /// The client ended it by an ERROR with this code. Firmware does so once it knows the size (RFC 2349).
    Ended(u16),
    /// The client has gone silent in the middle; so many bytes were acknowledged.
    Silent(u64),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Send this to the client, then ask again.
    Packet(Vec<u8>),
    /// Nothing to do before then unless a packet arrives.
    Wait {
        /// When to ask again.
        until: Instant,
    },
    /// Nothing to do any more.
    Over(Answer),
}

/// One file on its way to one client.
#[derive(Debug)]
pub struct Transfer<C> {
    content: C,
    blksize: usize,
    windowsize: u64,
    /// What answers the request's options, until the client has acknowledged that.
    offer: Option<Vec<u8>>,
    offer_is_due: bool,
    /// Blocks count from 1, past the 16 bits on the wire. All up to this one are acknowledged …
    acked: u64,
    /// … and the next one to send is this.
    next: u64,
    /// The last one.
    last: u64,
    /// Silences in a row.
    tries: u32,
    deadline: Instant,
    window_began: Instant,
    /// The shortest time in which a client has acknowledged a window: nothing sooner is about that window.
    round: Option<Duration>,
    /// Whether this window was sent again because the client said that it lacks the beginning.
    is_repeated: bool,
    is_heard: bool,
    over: Option<Answer>,
}

impl<C: Content> Transfer<C> {
    /// Answers a request with this file, in blocks of at most `max_blksize` bytes.
    pub fn new(request: &ReadRequest, content: C, max_blksize: u16, now: Instant) -> Transfer<C> {
        let max_blksize = usize::from(max_blksize).max(PLAIN_BLKSIZE);
        let mut offer = OACK.to_be_bytes().to_vec();
        let mut agree = |key: &str, value: u64| offer.extend(format!("{key}\0{value}\0").into_bytes());
        let mut blksize = PLAIN_BLKSIZE;
        if let Some(wanted) = request.blksize {
            blksize = usize::try_from(wanted).unwrap_or(usize::MAX).min(max_blksize);
            agree("blksize", u64::try_from(blksize).expect("at most 65535"));
        }
        let mut windowsize = 1;
        if let Some(wanted) = request.windowsize {
            windowsize = wanted.min(MAX_WINDOWSIZE.into());
            agree("windowsize", windowsize);
        }
        if request.wants_size {
            agree("tsize", content.len());
        }
        let last = content.len() / u64::try_from(blksize).expect("at most 65535") + 1;
        let has_options = offer.len() > 2;
        Transfer {
            content,
            blksize,
            windowsize,
            offer: has_options.then_some(offer),
            offer_is_due: has_options,
            acked: 0,
            next: 1,
            last,
            tries: 0,
            deadline: now + TIMEOUT,
            window_began: now,
            round: None,
            is_repeated: false,
            is_heard: false,
            over: None,
        }
    }

    /// Whether the client has not said a word yet: its request again is the same request, not a new one.
    pub fn is_fresh(&self) -> bool {
        !self.is_heard
    }

    /// What to do now.
    ///
    /// # Errors
    /// The file's. The transfer is over then, and the client has to be told.
    pub fn poll(&mut self, now: Instant) -> io::Result<Sending> {
        if let Some(answer) = &self.over {
            return Ok(Sending::Over(answer.clone()));
        }
        if now >= self.deadline {
            self.tries += 1;
            let is_all_sent = self.acked + self.windowsize >= self.last;
            let most = match (self.is_heard, is_all_sent) {
                (false, _) => MAX_UNHEARD_TRIES,
                (true, true) => MAX_LAST_TRIES,
                (true, false) => MAX_TRIES,
            };
            if self.tries > most {
                let is_sent = is_all_sent && self.offer.is_none();
                let silent = Answer::Silent(self.acked * u64::try_from(self.blksize).expect("at most 65535"));
                let answer = if is_sent { Answer::Sent } else { silent };
                self.over = Some(answer.clone());
                return Ok(Sending::Over(answer));
            }
            self.begin_window(now);
        }
        if let Some(offer) = &self.offer {
            return Ok(if std::mem::take(&mut self.offer_is_due) {
                Sending::Packet(offer.clone())
            } else {
                Sending::Wait { until: self.deadline }
            });
        }
        if self.next > self.last.min(self.acked + self.windowsize) {
            return Ok(Sending::Wait { until: self.deadline });
        }
        let block = self.next;
        self.next += 1;
        self.block(block).map(Sending::Packet)
    }

    /// Looks at a datagram that the client sent to this transfer's port.
    pub fn receive(&mut self, packet: &[u8], now: Instant) {
        let Some((opcode, body)) = take_u16(packet).filter(|_| self.over.is_none()) else { return };
        let number = take_u16(body).map_or(0, |(number, _)| number);
        self.is_heard |= matches!(opcode, ACK | ERROR);
        match opcode {
            ACK if body.len() >= 2 => self.acknowledged(number, now),
            ERROR => self.over = Some(Answer::Ended(number)),
            _ => {}
        }
    }

    fn acknowledged(&mut self, number: u16, now: Instant) {
        if self.offer.is_some() {
            if number == 0 {
                self.offer = None;
                self.tries = 0;
                self.begin_window(now);
            }
            return;
        }
        // What the 16 bits stand for: one of those that are out.
        let ahead = u64::from(number.wrapping_sub(wire_number(self.acked)));
        if ahead > self.next - 1 - self.acked {
            return;
        }
        let since = now.saturating_duration_since(self.window_began);
        if ahead > 0 {
            self.round = Some(self.round.map_or(since, |round| round.min(since)));
            self.acked += ahead;
            self.tries = 0;
            self.is_repeated = false;
            if self.acked == self.last {
                self.over = Some(Answer::Sent);
            }
            self.begin_window(now);
        } else if self.windowsize > 1 && !self.is_repeated && self.round.is_some_and(|round| since >= round / 2) {
            // The first block of the window is lost: the client acknowledges the one before it, once more. The same ACK
            // that only came twice comes sooner than any answer to this window can.
            self.is_repeated = true;
            self.begin_window(now);
        }
    }

    /// From the first block that is not acknowledged.
    fn begin_window(&mut self, now: Instant) {
        self.next = self.acked + 1;
        self.offer_is_due = self.offer.is_some();
        self.deadline = now + TIMEOUT;
        self.window_began = now;
    }

    fn block(&self, block: u64) -> io::Result<Vec<u8>> {
        let at = (block - 1) * u64::try_from(self.blksize).expect("at most 65535");
        let left = usize::try_from(self.content.len() - at).unwrap_or(usize::MAX);
        let mut packet = vec![0; 4 + left.min(self.blksize)];
        packet[..2].copy_from_slice(&DATA.to_be_bytes());
        packet[2..4].copy_from_slice(&wire_number(block).to_be_bytes());
        self.content.read_at(at, &mut packet[4..])?;
        Ok(packet)
    }
}

/// Block numbers are 16 bits on the wire and roll over to 0.
fn wire_number(block: u64) -> u16 {
    u16::try_from(block & u64::from(u16::MAX)).expect("16 bits of it")
}

#[cfg(test)]
mod tests;

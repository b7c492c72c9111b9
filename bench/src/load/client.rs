//! What machines say: DHCP, TFTP and HTTP as firmware, loader and RAM system use them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

/// Where the server is; the network is 10.9.0.0/16.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// How long a client waits before it sends a TFTP packet again.
const TFTP_AGAIN: Duration = Duration::from_secs(1);
/// Longest head of an HTTP answer, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// So many bytes of an answer's body are kept.
const MAX_KEPT: usize = 64 << 10;

/// The card of the machine with this number.
pub fn mac(number: usize) -> [u8; 6] {
    let [.., a, b, c] = (number as u64).to_be_bytes();
    [0x52, 0x54, 1, a, b, c]
}

/// Its address as text, with this between the bytes.
pub fn mac_text(mac: [u8; 6], between: &str) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(between)
}

/// What a message is, as option 53 has it (RFC 2132 section 9.6).
#[derive(Clone, Copy)]
pub enum Ask {
    Discover = 1,
    Request = 3,
}

/// A DHCP message of a PXE ROM; `more` are further options, encoded. Answers come as broadcasts.
pub fn dhcp_message(ask: Ask, mac: [u8; 6], xid: u32, is_uefi: bool, more: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    bytes[10] = 0x80;
    bytes[28..34].copy_from_slice(&mac);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    let vendor: &[u8] = if is_uefi { b"PXEClient:Arch:00007:UNDI:003000" } else { b"PXEClient:Arch:00000:UNDI:002001" };
    let mut uuid = [0; 17];
    uuid[11..].copy_from_slice(&mac);
    let options: [(u8, &[u8]); 7] = [
        (53, &[ask as u8]),
        (57, &1472u16.to_be_bytes()),
        (93, &[0, if is_uefi { 7 } else { 0 }]),
        (94, &[1, 3, 0]),
        (60, vendor),
        (55, &[1, 3, 6, 12, 13, 15, 17, 43, 54, 60, 66, 67, 128, 129, 130, 131, 132, 133, 134, 135]),
        (97, &uuid),
    ];
    for (code, value) in options {
        bytes.extend([code, value.len() as u8]);
        bytes.extend(value);
    }
    bytes.extend(more);
    bytes.push(255);
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

/// Type and address of an answer to `xid`, and its option 54, the server.
pub fn dhcp_answer(bytes: &[u8], xid: u32) -> Option<(u8, [u8; 4], [u8; 4])> {
    if bytes.first() != Some(&2) || bytes.get(4..8)? != xid.to_be_bytes() {
        return None;
    }
    let (mut kind, mut server) = (0, [0; 4]);
    let mut options = bytes.get(240..)?;
    while let [code, len, rest @ ..] = options {
        if *code == 255 {
            break;
        }
        let value = rest.get(..usize::from(*len))?;
        match code {
            53 => kind = *value.first()?,
            54 => server = value.try_into().ok()?,
            _ => {}
        }
        options = &rest[value.len()..];
    }
    Some((kind, bytes.get(16..20)?.try_into().ok()?, server))
}

/// The socket of a machine that has no address yet; of the calling thread's namespace.
///
/// # Errors
/// If the kernel refuses.
pub fn dhcp_socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68))?;
    socket.set_broadcast(true)?;
    setsockopt(&socket, sockopt::BindToDevice, &"eth0".into())?;
    // Hundreds of machines are behind this one.
    setsockopt(&socket, sockopt::RcvBuf, &(4 << 20))?;
    Ok(socket)
}

/// Where a DHCP client without an address sends.
pub const DHCP_TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);

/// A file that came by TFTP.
pub struct Fetched {
    pub len: usize,
    /// The first bytes of it.
    pub start: Vec<u8>,
}

/// Why a file did not come by TFTP.
#[derive(Clone, Debug)]
pub enum Trouble {
    Refused(String),
    /// Not before the time was over.
    Late,
    /// The same, after the server had begun the same transfer once more from another port.
    BegunAgain,
    Failed(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Refused(text) => write!(f, "refused: {text}"),
            Trouble::Late => f.write_str("no answer in time"),
            Trouble::BegunAgain => f.write_str(
                "silence after the server took a repeated request for another one and left the first transfer",
            ),
            Trouble::Failed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Trouble {}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Failed(error.to_string())
    }
}

fn read_request(name: &str, options: &[(&str, u32)]) -> Vec<u8> {
    let mut bytes = vec![0, 1];
    bytes.extend(format!("{name}\0octet\0").bytes());
    options.iter().for_each(|(option, value)| bytes.extend(format!("{option}\0{value}\0").bytes()));
    bytes
}

fn text_of(error: &[u8]) -> String {
    String::from_utf8_lossy(error.get(4..).unwrap_or_default()).trim_end_matches('\0').to_owned()
}

/// What UEFI does first: asks how long a file is, and ends the transfer with ERROR 8 (RFC 2347).
///
/// # Errors
/// Why there is no answer.
pub async fn tftp_probe(from: Ipv4Addr, name: &str, until: Instant) -> Result<(), Trouble> {
    let socket = tokio::net::UdpSocket::bind((from, 0)).await?;
    let request = read_request(name, &[("tsize", 0), ("blksize", 1468)]);
    let mut buf = [0; 2048];
    loop {
        socket.send_to(&request, (SERVER, 69)).await?;
        let again = until.min(Instant::now() + TFTP_AGAIN);
        match timeout_at(again, socket.recv_from(&mut buf)).await {
            Ok(received) => {
                let (len, peer) = received?;
                match buf[..len] {
                    [0, 6, ..] => {
                        socket.send_to(b"\0\x05\0\x08User aborted the transfer\0", peer).await?;
                        return Ok(());
                    }
                    [0, 5, ..] => return Err(Trouble::Refused(text_of(&buf[..len]))),
                    _ => {}
                }
            }
            Err(_) if Instant::now() >= until => return Err(Trouble::Late),
            Err(_) => {}
        }
    }
}

/// Fetches a file by TFTP (RFC 1350), with blocks of this length and windows of so many (RFC 7440).
///
/// # Errors
/// Why not all of it came.
pub async fn tftp(from: Ipv4Addr, name: &str, blksize: u16, window: u16, until: Instant) -> Result<Fetched, Trouble> {
    let socket = tokio::net::UdpSocket::bind((from, 0)).await?;
    let mut options = vec![("blksize", u32::from(blksize))];
    if window > 1 {
        options.push(("windowsize", window.into()));
    }
    let mut last = read_request(name, &options);
    let mut to = SocketAddr::from((SERVER, 69));
    let mut fetched = Fetched { len: 0, start: Vec::new() };
    // As long as no OACK has come, what RFC 1350 says.
    let (mut block_len, mut in_window, mut expected, mut count) = (512, 1u16, 1u16, 0);
    let (mut is_asked_again, mut has_peer, mut is_begun_again) = (false, false, false);
    let mut buf = [0; 2048];
    socket.send_to(&last, to).await?;
    loop {
        let again = until.min(Instant::now() + TFTP_AGAIN);
        let (len, peer) = match timeout_at(again, socket.recv_from(&mut buf)).await {
            Ok(received) => received?,
            Err(_) if Instant::now() >= until && is_begun_again => return Err(Trouble::BegunAgain),
            Err(_) if Instant::now() >= until => return Err(Trouble::Late),
            Err(_) => {
                socket.send_to(&last, to).await?;
                continue;
            }
        };
        if has_peer && peer != to {
            // RFC 1350 section 4.
            is_begun_again = true;
            socket.send_to(b"\0\x05\0\x05unknown transfer\0", peer).await?;
            continue;
        }
        let ack = |block: u16| [[0, 4], block.to_be_bytes()].concat();
        match buf[..len] {
            [0, 5, ..] => return Err(Trouble::Refused(text_of(&buf[..len]))),
            [0, 6, ..] if expected == 1 => {
                (to, has_peer, block_len, in_window) = (peer, true, usize::from(blksize), window);
                last = ack(0);
                socket.send_to(&last, to).await?;
            }
            [0, 3, high, low, ..] => {
                (to, has_peer) = (peer, true);
                if u16::from_be_bytes([high, low]) != expected {
                    // Once: what follows the gap is sent again in any case.
                    if !is_asked_again && expected > 1 {
                        (is_asked_again, count) = (true, 0);
                        socket.send_to(&last_ack(expected), to).await?;
                    }
                    continue;
                }
                let data = &buf[4..len];
                fetched.len += data.len();
                fetched.start.extend(data.iter().take(MAX_KEPT.saturating_sub(fetched.start.len())));
                (is_asked_again, count) = (false, count + 1);
                let is_over = data.len() < block_len;
                if is_over || count == in_window {
                    count = 0;
                    last = ack(expected);
                    socket.send_to(&last, to).await?;
                }
                if is_over {
                    return Ok(fetched);
                }
                expected = expected.wrapping_add(1);
            }
            _ => {}
        }
    }
}

fn last_ack(expected: u16) -> Vec<u8> {
    [[0, 4], expected.wrapping_sub(1).to_be_bytes()].concat()
}

/// What a machine may report with.
#[derive(Clone, Debug, Default)]
pub struct Order {
    pub mac: String,
    pub token: String,
    pub deployment: String,
}

impl Order {
    /// Fetches the order of a machine by TFTP, as the RAM system does.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn fetch(from: Ipv4Addr, mac: [u8; 6], until: Instant) -> Result<Order, Trouble> {
        let name = format!("ezio.conf/01-{}", mac_text(mac, "-"));
        let fetched = tftp(from, &name, 1468, 1, until).await?;
        let text = String::from_utf8_lossy(&fetched.start).into_owned();
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        match (value("TOKEN"), value("DEPLOYMENT")) {
            (Some(token), Some(deployment)) => Ok(Order { mac: mac_text(mac, ":"), token, deployment }),
            _ => Err(Trouble::Failed(format!("{name} has no TOKEN or no DEPLOYMENT"))),
        }
    }

    /// The request that reports a stage.
    pub fn report(&self, stage: &str, bytes_done: usize) -> String {
        let Order { mac, token, deployment } = self;
        let body = format!(
            r#"{{"mac":"{mac}","stage":"{stage}","deployment":"{deployment}","token":"{token}","image":"golden","serial":"{mac}","disk":"sda QEMU HARDDISK 64.0 GiB","bytes_done":{bytes_done},"bytes_total":4000000000,"rate_bytes_per_s":117000000,"downloaded":{bytes_done},"uploaded":{bytes_done},"written":{bytes_done},"peers":12,"times":[{{"stage":"network","seconds":2.5}},{{"stage":"fetch","seconds":0.2}}]}}"#
        );
        format!(
            "POST /report HTTP/1.1\r\nHost: {SERVER}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// The request for a path.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {SERVER}\r\n\r\n")
}

/// The request for a machine's boot script.
pub fn script_request(mac: [u8; 6]) -> String {
    get(&format!("/boot.ipxe?mac={}", mac_text(mac, "-")))
}

/// A machine's boot script.
///
/// # Errors
/// If the server does not give one.
pub async fn script(from: Ipv4Addr, mac: [u8; 6]) -> io::Result<String> {
    let answer = Http::connect(from).await?.ask(&script_request(mac)).await?;
    Ok(String::from_utf8_lossy(&answer.start).into_owned())
}

/// All of what a path has.
///
/// # Errors
/// If the server does not give it.
pub async fn body(from: Ipv4Addr, path: &str) -> io::Result<Vec<u8>> {
    let mut http = Http::connect(from).await?;
    http.send(&format!("GET {path} HTTP/1.1\r\nHost: {SERVER}\r\nConnection: close\r\n\r\n")).await?;
    let mut text = Vec::new();
    http.stream.read_to_end(&mut text).await?;
    let head = text.windows(4).position(|part| part == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(text.split_off(head + 4))
}

/// A keep-alive connection to the server.
pub struct Http {
    stream: BufReader<TcpStream>,
}

/// An answer to a request.
pub struct Answer {
    pub status: u16,
    /// Length of the body in bytes.
    pub len: usize,
    /// The first bytes of it.
    pub start: Vec<u8>,
}

impl Http {
    /// Connects from an address.
    ///
    /// # Errors
    /// If the server refuses, or is not there.
    pub async fn connect(from: Ipv4Addr) -> io::Result<Http> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let stream = socket.connect((SERVER, 80).into()).await?;
        stream.set_nodelay(true)?;
        Ok(Http { stream: BufReader::with_capacity(2048, stream) })
    }

    /// Sends a request and nothing else.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn send(&mut self, request: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(request.as_bytes()).await
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// If the connection ends before that, or the answer is no HTTP.
    pub async fn ask(&mut self, request: &str) -> io::Result<Answer> {
        self.send(request).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > MAX_HEAD {
                return Err(io::Error::other("a very long head of an answer"));
            }
            head.push(self.stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head);
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
        let status = status.ok_or_else(|| io::Error::other("an answer without a status"))?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        let len = length.unwrap_or(0);
        let mut start = vec![0; len.min(MAX_KEPT)];
        self.stream.read_exact(&mut start).await?;
        let mut left = len - start.len();
        let mut rest = vec![0; left.min(MAX_KEPT)];
        while left > 0 {
            let part = left.min(MAX_KEPT);
            left -= self.stream.read_exact(&mut rest[..part]).await?;
        }
        Ok(Answer { status, len, start })
    }

    /// The same, within a time.
    ///
    /// # Errors
    /// Also if the answer takes longer.
    pub async fn ask_within(&mut self, request: &str, patience: Duration) -> io::Result<Answer> {
        timeout(patience, self.ask(request)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Reads some of what has come; zero if the connection has ended.
    ///
    /// # Errors
    /// If the connection was reset.
    pub async fn read_some(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buf).await
    }

    /// Whether the server keeps it open.
    pub fn is_open(&self) -> bool {
        let waits = |result: io::Result<usize>| result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        waits(self.stream.get_ref().try_read(&mut [0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dhcp_answer_is_that_of_the_question() {
        let mut offer = dhcp_message(Ask::Discover, mac(7), 0x0102_0304, true, &[54, 4, 10, 9, 0, 1]);
        assert_eq!(dhcp_answer(&offer, 0x0102_0304), None, "a question is no answer");
        offer[0] = 2;
        offer[16..20].copy_from_slice(&[10, 9, 128, 1]);
        assert_eq!(dhcp_answer(&offer, 0x0102_0304), Some((1, [10, 9, 128, 1], [10, 9, 0, 1])));
        assert_eq!(dhcp_answer(&offer, 0x0102_0305), None, "another machine's");
        for len in 0..offer.len() {
            let _ = dhcp_answer(&offer[..len], 0x0102_0304);
        }
    }

    #[test]
    fn a_report_is_a_whole_request() {
        let order = Order { mac: mac_text(mac(0x01_0203), ":"), token: "t".into(), deployment: "d".into() };
        let text = order.report("restore", 5);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}");
        let report: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!((report["mac"].as_str(), report["bytes_done"].as_u64()), (Some("52:54:01:01:02:03"), Some(5)));
    }

    #[test]
    fn a_repeated_block_is_asked_for_by_the_one_before() {
        assert_eq!(last_ack(1), [0, 4, 0, 0]);
        assert_eq!(last_ack(0), [0, 4, 255, 255], "block numbers begin again");
    }
}

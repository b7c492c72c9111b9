//! DHCP as firmware speaks it: the packets of `crates/netboot/testdata`, sent and answered on real sockets.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use netboot::MacAddr;
use netboot::dhcp::{Client, Lease, Received, Step};
use netboot::message::{self, Message};
use socket2::{Domain, Protocol, Socket, Type};

use crate::process::PATIENCE;

/// How long silence has to last to count as such.
const SILENCE: Duration = Duration::from_secs(2);

/// The packet that a file describes, from the machine with this number.
pub fn firmware(name: &str, number: u8) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/netboot/testdata");
    let text = fs::read_to_string(dir.join(name).with_extension("txt")).expect("the packet is there");
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[28..34].copy_from_slice(&[0x52, 0x54, 0, 0x77, 0, number]);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["xid", value] => bytes[4..8].copy_from_slice(&hex(value)),
            ["flags", value] => bytes[10..12].copy_from_slice(&hex(value)),
            ["option", code, value] => {
                let value = hex(value);
                bytes.extend([code.parse().expect("a number"), u8::try_from(value.len()).expect("short")]);
                bytes.extend(value);
            }
            _ => {}
        }
    }
    bytes.push(255);
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

fn hex(text: &str) -> Vec<u8> {
    let digits = |pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex digits");
    text.as_bytes().chunks(2).map(digits).collect()
}

/// A socket as a machine without an address has it.
pub fn socket(port: u16) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("a socket");
    socket.set_broadcast(true).expect("broadcasts");
    socket.bind_device(Some(b"eth0")).expect("the interface");
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).expect("the port");
    socket.into()
}

/// Sends a packet from port 68 and gives every answer: at least `count`, or all that come before silence.
pub fn ask(packet: &[u8], count: usize) -> Vec<Message> {
    ask_at(packet, 68, SocketAddrV4::new(Ipv4Addr::BROADCAST, 67), count)
}

/// The same with other ports.
pub fn ask_at(packet: &[u8], port: u16, to: SocketAddrV4, count: usize) -> Vec<Message> {
    let socket = socket(port);
    let xid = &packet[4..8];
    let mut answers = Vec::new();
    let deadline = Instant::now() + if count == 0 { SILENCE } else { PATIENCE };
    let mut buf = [0; 2048];
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let mut is_sent_again = false;
    socket.send_to(packet, to).expect("sent");
    let mut next = Instant::now() + Duration::from_secs(4);
    while Instant::now() < deadline && (count == 0 || answers.len() < count) {
        // Asked before reading: what has come while nobody looked is read before the packet is sent again.
        let is_time = Instant::now() >= next && answers.is_empty();
        match socket.recv_from(&mut buf) {
            Ok((len, _)) if buf[4..8] == *xid && buf[0] == 2 => {
                let answer = message::decode(&buf[..len]).expect("a sound answer");
                // Sent twice, the packet is answered twice.
                if !is_sent_again || !answers.contains(&answer) {
                    answers.push(answer);
                }
            }
            Err(_) if is_time => {
                is_sent_again = true;
                socket.send_to(packet, to).expect("sent");
                next = Instant::now() + Duration::from_secs(4);
            }
            _ => {}
        }
    }
    answers
}

/// The file field of an answer.
pub fn file_of(message: &Message) -> String {
    let file = message.fname().unwrap_or_default();
    String::from_utf8_lossy(file).trim_end_matches('\0').to_owned()
}

/// Gets a lease with the client of the RAM system.
pub fn lease(number: u8) -> Lease {
    let socket = socket(68);
    let start = Instant::now();
    let mut client = Client::new(MacAddr([0x52, 0x54, 0, 0x77, 0, number]), 0x5eed_0000 + u32::from(number), start);
    let mut buf = [0; 2048];
    while start.elapsed() < PATIENCE {
        match client.poll(Instant::now()) {
            Step::Send(datagram) => drop(socket.send_to(&datagram.bytes, datagram.to).expect("sent")),
            Step::Wait { until } => {
                let wait = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                socket.set_read_timeout(Some(wait)).expect("a timeout");
                if let Ok((len, _)) = socket.recv_from(&mut buf)
                    && let Received::Leased(lease) = client.receive(&buf[..len], Instant::now())
                {
                    return lease;
                }
            }
        }
    }
    panic!("no lease");
}

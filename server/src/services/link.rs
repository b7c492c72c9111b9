//! Whole Ethernet frames, for what has no socket: ARP, and DHCP as a client without an address hears it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use netboot::MacAddr;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, bind};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::net::UdpSocket;

/// A card's address is looked up again after this long.
const FRESH: Duration = Duration::from_secs(1);
/// `ARPHRD_ETHER` of `if_arp.h`.
const ETHERNET: u16 = 1;

/// Classic BPF (`bpf(4)`): IPv4, UDP, not a later fragment, to port 68. What else a seeding server receives stays outside.
pub const TO_DHCP_CLIENT: [SockFilter; 9] = [
    SockFilter::new(0x28, 0, 0, 12),
    SockFilter::new(0x15, 0, 6, 0x0800),
    SockFilter::new(0x30, 0, 0, 23),
    SockFilter::new(0x15, 0, 4, 17),
    SockFilter::new(0xb1, 0, 0, 14),
    SockFilter::new(0x48, 0, 0, 16),
    SockFilter::new(0x15, 0, 1, 68),
    SockFilter::new(0x06, 0, 0, 0x0004_0000),
    SockFilter::new(0x06, 0, 0, 0),
];

/// A socket for frames of one type on one Ethernet card (`packet(7)`).
pub struct LinkSocket {
    /// Not of UDP: tokio's name for a socket of datagrams, of which `recv` and `send` are used.
    socket: UdpSocket,
    interface: String,
    /// The card's address, and when it was looked up.
    card: Mutex<(MacAddr, Instant)>,
}

impl LinkSocket {
    /// Opens it; an empty filter lets everything of that type in.
    ///
    /// # Errors
    /// A missing right (CAP_NET_RAW), no such card, or one that is no Ethernet.
    pub fn open(interface: &str, ethertype: u16, filter: &[SockFilter]) -> io::Result<LinkSocket> {
        let link = link_of(interface)?;
        let card = Mutex::new((card_of(&link)?, Instant::now()));
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        if !filter.is_empty() {
            socket.attach_filter(filter)?;
        }
        socket.set_nonblocking(true)?;
        bind(socket.as_raw_fd(), &link)?;
        Ok(LinkSocket { socket: UdpSocket::from_std(socket.into())?, interface: interface.to_owned(), card })
    }

    /// The card's address. A bridge takes another one when a port joins it.
    pub fn card(&self) -> MacAddr {
        let mut card = self.card.lock().unwrap_or_else(PoisonError::into_inner);
        if card.1.elapsed() > FRESH {
            let now = link_of(&self.interface).and_then(|link| card_of(&link));
            *card = (now.unwrap_or(card.0), Instant::now());
        }
        card.0
    }

    /// The next frame, as much of it as fits.
    ///
    /// # Errors
    /// The card's, as one that has gone.
    pub async fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(buf).await
    }

    /// Sends a frame, or drops it where there is no room: on a link frames are lost.
    ///
    /// # Errors
    /// The card's.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        match self.socket.try_send(frame) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

fn card_of(link: &LinkAddr) -> io::Result<MacAddr> {
    let card = link.addr().filter(|_| link.hatype() == ETHERNET).map(MacAddr);
    card.ok_or_else(|| io::Error::other("it is no Ethernet card"))
}

/// The link address of a card, with its number.
fn link_of(interface: &str) -> io::Result<LinkAddr> {
    let mut cards = getifaddrs()?.filter(|entry| entry.interface_name == interface);
    let link = cards.find_map(|entry| entry.address?.as_link_addr().copied());
    link.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no {interface}")))
}

//! Whole Ethernet frames, for what has no socket: ARP, and DHCP as a client without an address hears it.

use std::io;
use std::os::fd::AsRawFd;

use netboot::MacAddr;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, bind};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::net::UdpSocket;

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
    /// The card's address.
    pub card: MacAddr,
}

impl LinkSocket {
    /// Opens it; an empty filter lets everything of that type in.
    ///
    /// # Errors
    /// A missing right (CAP_NET_RAW), no such card, or one that is no Ethernet.
    pub fn open(interface: &str, ethertype: u16, filter: &[SockFilter]) -> io::Result<LinkSocket> {
        let link = link_of(interface)?;
        let card = link.addr().filter(|_| link.hatype() == ETHERNET);
        let card = MacAddr(card.ok_or_else(|| io::Error::other(format!("{interface} is no Ethernet card")))?);
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        if !filter.is_empty() {
            socket.attach_filter(filter)?;
        }
        socket.set_nonblocking(true)?;
        bind(socket.as_raw_fd(), &link)?;
        Ok(LinkSocket { socket: UdpSocket::from_std(socket.into())?, card })
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

/// The link address of a card, with its number.
fn link_of(interface: &str) -> io::Result<LinkAddr> {
    let mut cards = getifaddrs()?.filter(|entry| entry.interface_name == interface);
    let link = cards.find_map(|entry| entry.address?.as_link_addr().copied());
    link.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no {interface}")))
}

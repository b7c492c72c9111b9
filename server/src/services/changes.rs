//! Says when something about the cards or their addresses has changed (`rtnetlink(7)`).

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::net::UdpSocket;

/// How often to look where the kernel does not say.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A wake-up; what has changed has to be looked up.
pub struct Changes {
    /// Not of UDP: tokio's name for a socket of datagrams, of which `recv` is used.
    socket: Option<UdpSocket>,
}

impl Changes {
    /// Listens from now on.
    pub fn listen() -> Changes {
        let socket = open();
        if let Err(error) = &socket {
            log::warn!("the kernel does not say when a network card changes ({error}): looking every 2 s instead");
        }
        Changes { socket: socket.ok() }
    }

    /// Returns after the next change.
    pub async fn next(&self) {
        let Some(socket) = &self.socket else { return tokio::time::sleep(LOOK_EVERY).await };
        let mut buf = [0; 8192];
        // What the kernel had no room for has changed as well (ENOBUFS).
        if let Err(error) = socket.recv(&mut buf).await
            && error.raw_os_error() != Some(libc::ENOBUFS)
        {
            return tokio::time::sleep(LOOK_EVERY).await;
        }
        // What came with it is the same news.
        while matches!(socket.try_recv(&mut buf), Ok(1..)) {}
    }
}

fn open() -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    let groups = u32::try_from(libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR).unwrap_or_default();
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    UdpSocket::from_std(socket.into())
}

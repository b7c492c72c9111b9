//! A router advertisement that advertises nothing.
//!
//! QEMU's iPXE waits about 13 s for IPv6 to settle before it uses a good IPv4 lease. An answer with no prefix, lifetime
//! zero and neither flag (RFC 4861, 4.2) ends the wait.

use std::mem::MaybeUninit;
use std::net::{Ipv6Addr, SocketAddrV6};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const SOLICITATION: u8 = 133;
/// Type, code, checksum (filled in by the kernel), hop limit, flags, router lifetime, reachable time, retrans timer.
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Answers router solicitations on `interface` until the process ends.
///
/// # Errors
/// If the socket cannot be opened.
pub fn answer_solicitations(interface: &str) -> Result<()> {
    let index = nix::net::if_::if_nametoindex(interface).with_context(|| format!("finding {interface}"))?;
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).context("opening an ICMPv6 socket")?;
    socket.join_multicast_v6(&ALL_ROUTERS, index).context("joining ff02::2")?;
    socket.set_multicast_if_v6(index).context("choosing the interface")?;
    // The receiver has to ignore any other value than 255 (RFC 4861, 6.1.2).
    socket.set_multicast_hops_v6(255).context("setting the hop limit")?;
    let everybody = SockAddr::from(SocketAddrV6::new(ALL_NODES, 0, 0, index));
    std::thread::spawn(move || {
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; 2048];
        while let Ok((len, _)) = socket.recv_from(&mut buffer) {
            // SAFETY: the kernel has just written `len` bytes, of which the first is read only if there is one.
            let kind = (len > 0).then(|| unsafe { buffer[0].assume_init() });
            if kind == Some(SOLICITATION) {
                // If an answer is lost, the machine asks again.
                let _ = socket.send_to(&ADVERTISEMENT, &everybody);
            }
        }
    });
    Ok(())
}

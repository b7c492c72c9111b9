//! Which sockets of this computer hold a UDP port, and on which interface (`sock_diag(7)`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `SOCK_DIAG_BY_FAMILY`: type of the question and of each answer.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `nlmsghdr`, and what follows it in a question and in an answer (`inet_diag_req_v2`, `inet_diag_msg`).
const HEADER: usize = 16;
const QUESTION: usize = 56;
const ANSWER: usize = 72;

/// A socket that holds a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The interface that it is bound to; 0 for all of them.
    pub index: u32,
    /// The kernel's number of the socket.
    pub inode: u64,
}

/// The kernel's number of a socket of ours.
///
/// # Errors
/// The kernel's.
pub fn inode_of(socket: impl AsFd) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(socket)?.st_ino)
}

/// Every IPv4 socket that holds this UDP port.
///
/// # Errors
/// A kernel that does not say.
pub fn holders(port: u16) -> io::Result<Vec<Holder>> {
    let diag = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    send(diag.as_raw_fd(), &question(), MsgFlags::empty())?;
    let mut found = Vec::new();
    let mut buf = vec![0; 32 << 10];
    loop {
        let len = recv(diag.as_raw_fd(), &mut buf, MsgFlags::empty())?;
        match answers(&buf[..len], port, &mut found) {
            End::More if len > 0 => {}
            End::More | End::Done => return Ok(found),
            End::Error => return Err(io::Error::other("the kernel does not list its UDP sockets")),
        }
    }
}

fn question() -> Vec<u8> {
    let mut packet = vec![0; HEADER + QUESTION];
    let len = u32::try_from(packet.len()).unwrap_or_default();
    packet[..4].copy_from_slice(&len.to_ne_bytes());
    packet[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    packet[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    // AF_INET, IPPROTO_UDP, in every state.
    packet[HEADER] = 2;
    packet[HEADER + 1] = 17;
    packet[HEADER + 4..HEADER + 8].fill(0xff);
    packet
}

enum End {
    More,
    Done,
    Error,
}

fn answers(mut rest: &[u8], port: u16, found: &mut Vec<Holder>) -> End {
    let u32_at = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
    };
    while let Some(header) = rest.get(..HEADER) {
        let len = usize::try_from(u32_at(header, 0)).unwrap_or(usize::MAX);
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(message) = rest.get(HEADER..len) else { return End::Error };
        match kind {
            2 => return End::Error,
            3 => return End::Done,
            BY_FAMILY if message.len() >= ANSWER && message[4..6] == port.to_be_bytes() => {
                let (index, inode) = (u32_at(message, 40), u64::from(u32_at(message, 68)));
                found.push(Holder { index, inode });
            }
            _ => {}
        }
        // Each begins at a multiple of four.
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    End::More
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_socket_of_ours_is_found_by_its_port() {
        let ours = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = ours.local_addr().expect("an address").port();
        let inode = inode_of(&ours).expect("a number");
        match holders(port) {
            Ok(found) => assert_eq!(found, [Holder { index: 0, inode }]),
            Err(error) => eprintln!("not asked for here: {error}"),
        }
    }

    #[test]
    fn what_is_cut_short_is_no_panic() {
        let mut found = Vec::new();
        for len in 0..HEADER + ANSWER {
            for claimed in [0, 1, 15, 16, 40, 88, u32::MAX] {
                let mut packet = vec![0; len];
                if len >= 6 {
                    packet[..4].copy_from_slice(&claimed.to_ne_bytes());
                    packet[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
                }
                let _ = answers(&packet, 67, &mut found);
            }
        }
        assert!(found.is_empty());
    }
}

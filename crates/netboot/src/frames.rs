//! Ethernet frames for what needs no address of ours: ARP probes (RFC 826, RFC 5227), and DHCP as a machine without an
//! address sends and hears it.

use std::net::Ipv4Addr;

use order::MacAddr;

use crate::message::{CLIENT_PORT, SERVER_PORT};

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;

const BROADCAST: [u8; 6] = [0xff; 6];
/// Destination, source and type.
const ETHERNET_LEN: usize = 14;
const IP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const UDP: u8 = 17;
/// Ethernet and IPv4, with addresses of 6 and 4 bytes.
const ARP_ON_ETHERNET: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Smallest frame without its checksum.
const MIN_LEN: usize = 60;

/// Asks the link whether a host has this address, without saying that we would like to have it (RFC 5227, section 2.1.1):
/// the sender has no address.
pub fn arp_probe(from: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(from, ARP);
    frame.extend(ARP_ON_ETHERNET);
    frame.extend([0, 1]);
    frame.extend(from.0);
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame.resize(MIN_LEN, 0);
    frame
}

/// Who uses which address, by an ARP frame: request, answer or announcement. A probe of another host says nothing.
pub fn arp_sender(frame: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let arp = payload(frame, ARP)?.strip_prefix(&ARP_ON_ETHERNET)?;
    let (_operation, rest) = arp.split_first_chunk::<2>()?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let (address, _) = rest.split_first_chunk::<4>()?;
    let address = Ipv4Addr::from(*address);
    (!address.is_unspecified()).then_some((address, MacAddr(*mac)))
}

/// A DHCP message on its way from a client without an address to every server of the link.
///
/// `None` if it is too long for one packet.
pub fn from_client(from: MacAddr, message: &[u8]) -> Option<Vec<u8>> {
    let udp_len = u16::try_from(UDP_LEN + message.len()).ok()?;
    let ip_len = u16::try_from(IP_LEN + usize::from(udp_len)).ok()?;
    let mut ip = vec![0x45, 0];
    ip.extend(ip_len.to_be_bytes());
    // No identification, no fragments, 64 hops.
    ip.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    ip.extend(Ipv4Addr::UNSPECIFIED.octets());
    ip.extend(Ipv4Addr::BROADCAST.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(from, IPV4);
    frame.extend(ip);
    frame.extend(CLIENT_PORT.to_be_bytes());
    frame.extend(SERVER_PORT.to_be_bytes());
    frame.extend(udp_len.to_be_bytes());
    // IPv4 allows UDP without a checksum (RFC 768).
    frame.extend([0, 0]);
    frame.extend(message);
    frame.resize(frame.len().max(MIN_LEN), 0);
    Some(frame)
}

/// The DHCP message in a frame to a client's port.
pub fn to_client(frame: &[u8]) -> Option<&[u8]> {
    let packet = payload(frame, IPV4)?;
    let header = packet.first().filter(|first| *first >> 4 == 4).map(|first| usize::from(first & 15) * 4)?;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let is_fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff != 0;
    if header < IP_LEN || is_fragment || packet.get(9) != Some(&UDP) {
        return None;
    }
    let udp = packet.get(header..total)?;
    let (head, message) = udp.split_first_chunk::<UDP_LEN>()?;
    (u16::from_be_bytes([head[2], head[3]]) == CLIENT_PORT).then_some(message)
}

fn ethernet(from: MacAddr, kind: u16) -> Vec<u8> {
    let mut frame = BROADCAST.to_vec();
    frame.extend(from.0);
    frame.extend(kind.to_be_bytes());
    frame
}

fn payload(frame: &[u8], kind: u16) -> Option<&[u8]> {
    let (head, payload) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    (head[12..] == kind.to_be_bytes()).then_some(payload)
}

/// Ones' complement of the ones' complement sum of 16-bit words (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);

    #[test]
    fn a_probe_claims_nothing_and_an_answer_says_who_it_is() {
        let address = Ipv4Addr::new(10, 0, 0, 7);
        let mut frame = arp_probe(MAC, address);
        assert_eq!((frame.len(), arp_sender(&frame)), (60, None));
        frame[21] = 2;
        frame[28..32].copy_from_slice(&address.octets());
        assert_eq!(arp_sender(&frame), Some((address, MAC)));
        frame[13] = 0;
        assert_eq!(arp_sender(&frame), None);
    }

    #[test]
    fn a_message_is_wrapped_and_unwrapped() {
        let mut frame = from_client(MAC, b"hello").expect("short");
        assert_eq!(checksum(&frame[14..34]), 0, "of the IP header, its checksum included");
        assert_eq!(to_client(&frame), None, "it goes to a server");
        frame[36..38].copy_from_slice(&CLIENT_PORT.to_be_bytes());
        assert_eq!(to_client(&frame), Some(&b"hello"[..]), "without the padding");
        frame[20] = 0x20;
        assert_eq!(to_client(&frame), None, "a fragment");
        assert_eq!(from_client(MAC, &[0; 65536]), None);
    }

    proptest! {
        #[test]
        fn no_frame_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 0u8..8, at in 0usize..60) {
            let mut frame = from_client(MAC, b"hello").expect("short");
            frame[at] = bytes.first().copied().unwrap_or(kind);
            let _ = (to_client(&bytes), arp_sender(&bytes), to_client(&frame), arp_sender(&frame));
        }
    }
}

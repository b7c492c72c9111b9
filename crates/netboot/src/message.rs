//! DHCP messages as bytes: the one place where packets from the network are taken apart.
//!
//! `dhcproto` types the message, but some of its option decoders assert or misread when a length is not the usual
//! one, and `/init` may not panic. So [`decode`] walks the options itself first, keeps those this crate understands
//! and whose length fits, and hands only these on.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{self, DhcpOption, MessageType, OptionCode, UnknownOption};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

pub use dhcproto::v4::Message;

use order::MacAddr;

/// Where a server listens.
pub const SERVER_PORT: u16 = 67;
/// Where a client listens.
pub const CLIENT_PORT: u16 = 68;
/// Where a PXE client asks a ProxyDHCP server again (PXE 2.1, section 2.2.3).
pub const PXE_PORT: u16 = 4011;

/// Fixed header of RFC 951 and RFC 2131 with the magic cookie.
const HEADER_LEN: usize = 240;
/// Smallest BOOTP message; some relays and firmwares drop shorter ones.
const MIN_LEN: usize = 300;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

/// Why a packet is not a DHCP message for us. Data, not an accident: count it and go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Shorter than the fixed header.
    #[error("it is cut short")]
    Short,
    /// No magic cookie: BOOTP without options, or no DHCP at all.
    #[error("it has no DHCP magic cookie")]
    Cookie,
    /// Not an Ethernet client, or an address no machine can have.
    #[error("its hardware address is not an Ethernet unicast address")]
    Hardware,
    /// An option's length leaves the packet.
    #[error("an option runs past its end")]
    Options,
    /// No message type (option 53), or one of the wrong direction.
    #[error("it has no usable message type")]
    Type,
}

/// Relay agent information (RFC 3046): kept as the bytes that the relay wrote, because they go back to it unchanged.
const RELAY_INFORMATION: u8 = 82;
/// A site's own option (RFC 3942) by which EZIO servers know each other: [`crate::rivals`].
pub(crate) const MARK: u8 = 230;

/// A packet to send, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Destination; 255.255.255.255 for the whole link.
    pub to: SocketAddrV4,
    /// The bytes of the UDP payload.
    pub bytes: Vec<u8>,
}

/// Takes a DHCP message apart.
///
/// Options this crate has no use for, or whose length is impossible, are absent from the result. Option overload
/// (RFC 2131, section 4.1) and options split over several instances (RFC 3396) are undone.
///
/// # Errors
/// [`Malformed`] says what is wrong with the packet.
pub fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
    if bytes.len() < HEADER_LEN {
        return Err(Malformed::Short);
    }
    if bytes[236..240] != v4::MAGIC {
        return Err(Malformed::Cookie);
    }
    if bytes[1] != 1 || bytes[2] != 6 || !mac_at(bytes).is_unicast() {
        return Err(Malformed::Hardware);
    }
    let mut options = BTreeMap::new();
    collect(&bytes[HEADER_LEN..], &mut options)?;
    let mut clean = bytes[..HEADER_LEN].to_vec();
    let overload = options.get(&52).and_then(|value: &Vec<u8>| value.first()).copied().unwrap_or(0);
    if overload & 1 != 0 {
        collect(&bytes[FILE], &mut options)?;
        clean[FILE].fill(0);
    }
    if overload & 2 != 0 {
        collect(&bytes[SNAME], &mut options)?;
        clean[SNAME].fill(0);
    }
    // What `dhcproto` takes for a list of sub-options may be anything.
    let relay_information = options.remove(&RELAY_INFORMATION);
    for (code, mut value) in options {
        if code == 93 {
            // RFC 4578 allows several architectures; the first is the one that runs.
            value.truncate(2);
        }
        if let (true, Ok(len)) = (fits(code, value.len()), u8::try_from(value.len())) {
            clean.extend([code, len]);
            clean.extend(value);
        }
    }
    clean.push(255);
    let mut message = Message::decode(&mut Decoder::new(&clean)).map_err(|_| Malformed::Options)?;
    if let Some(value) = relay_information {
        message.opts_mut().insert(raw(RELAY_INFORMATION, &value));
    }
    let wanted_opcode = match message.opts().msg_type() {
        Some(MessageType::Offer | MessageType::Ack | MessageType::Nak) => v4::Opcode::BootReply,
        Some(
            MessageType::Discover
            | MessageType::Request
            | MessageType::Decline
            | MessageType::Release
            | MessageType::Inform,
        ) => v4::Opcode::BootRequest,
        _ => return Err(Malformed::Type),
    };
    if message.opcode() == wanted_opcode { Ok(message) } else { Err(Malformed::Type) }
}

/// Puts a message together, padded to the 300 bytes that old firmware expects.
///
/// The type of the message comes first and the server second, because clients exist that look nowhere else; what a relay
/// added comes last (RFC 3046, section 2.1).
pub fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MIN_LEN);
    let mut header = message.clone();
    let options = std::mem::take(header.opts_mut());
    let rank = |code: u8| match code {
        53 => 0,
        54 => 1,
        RELAY_INFORMATION => 3,
        _ => 2,
    };
    let mut options: Vec<(u8, &DhcpOption)> = options.iter().map(|(code, option)| (u8::from(*code), option)).collect();
    options.sort_by_key(|(code, _)| (rank(*code), *code));
    let written = "writing to a vector, with fields checked when they were set";
    header.encode(&mut Encoder::new(&mut bytes)).expect(written);
    for (code, option) in options {
        match option {
            DhcpOption::Unknown(unknown) if unknown.data().is_empty() => bytes.extend([code, 0]),
            DhcpOption::Unknown(unknown) => {
                // A longer one is split (RFC 3396).
                for part in unknown.data().chunks(usize::from(u8::MAX)) {
                    bytes.push(code);
                    bytes.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
                    bytes.extend(part);
                }
            }
            _ => {
                let mut one = Vec::new();
                option.encode(&mut Encoder::new(&mut one)).expect(written);
                bytes.extend(one);
            }
        }
    }
    bytes.push(255);
    bytes.resize(bytes.len().max(MIN_LEN), 0);
    bytes
}

/// The client's Ethernet address; [`decode`] has checked that there is one.
pub fn mac_of(message: &Message) -> MacAddr {
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(message.chaddr()) {
        *to = *from;
    }
    MacAddr(mac)
}

/// The raw value of an option that holds text or bytes.
pub fn bytes_of(message: &Message, code: OptionCode) -> Option<&[u8]> {
    match message.opts().get(code)? {
        DhcpOption::ClassIdentifier(value)
        | DhcpOption::ClientIdentifier(value)
        | DhcpOption::UserClass(value)
        | DhcpOption::VendorExtensions(value)
        | DhcpOption::TFTPServerName(value)
        | DhcpOption::BootfileName(value)
        | DhcpOption::ClientMachineIdentifier(value) => Some(value),
        DhcpOption::Unknown(unknown) => Some(unknown.data()),
        _ => None,
    }
}

/// An option that is one address, if it is a usable one.
pub(crate) fn address_of(message: &Message, code: OptionCode) -> Option<Ipv4Addr> {
    let address = match message.opts().get(code)? {
        DhcpOption::ServerIdentifier(address) | DhcpOption::RequestedIpAddress(address) => *address,
        DhcpOption::SubnetMask(address) => *address,
        DhcpOption::Router(addresses) => *addresses.first()?,
        _ => return None,
    };
    (!address.is_unspecified()).then_some(address)
}

/// An option that is a number of seconds.
pub(crate) fn seconds_of(message: &Message, code: OptionCode) -> Option<u32> {
    match message.opts().get(code)? {
        DhcpOption::AddressLeaseTime(seconds) | DhcpOption::Renewal(seconds) | DhcpOption::Rebinding(seconds) => {
            Some(*seconds)
        }
        _ => None,
    }
}

/// A reply to `request` from `server`: transaction, client and relay as they came, and with them the client's identifier
/// (RFC 6842) and what the relay added (RFC 3046, section 2.2).
pub(crate) fn reply_to(request: &Message, server: Ipv4Addr, kind: MessageType) -> Message {
    let nowhere = Ipv4Addr::UNSPECIFIED;
    let mut reply = Message::new_with_id(request.xid(), nowhere, nowhere, nowhere, request.giaddr(), request.chaddr());
    reply.set_opcode(v4::Opcode::BootReply).set_flags(request.flags());
    reply.opts_mut().insert(DhcpOption::MessageType(kind));
    reply.opts_mut().insert(DhcpOption::ServerIdentifier(server));
    for code in [OptionCode::ClientIdentifier, OptionCode::Unknown(RELAY_INFORMATION)] {
        if let Some(option) = request.opts().get(code) {
            reply.opts_mut().insert(option.clone());
        }
    }
    reply
}

/// An option this crate writes as raw bytes.
pub(crate) fn raw(code: u8, value: &[u8]) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::Unknown(code), value.to_vec()))
}

fn mac_at(bytes: &[u8]) -> MacAddr {
    let mut mac = [0; 6];
    mac.copy_from_slice(&bytes[28..34]);
    MacAddr(mac)
}

/// Walks code, length, value; instances of the same code are joined (RFC 3396).
fn collect(mut rest: &[u8], options: &mut BTreeMap<u8, Vec<u8>>) -> Result<(), Malformed> {
    loop {
        match rest {
            // A packet that ends without the end option is accepted: senders exist that forget it.
            [] | [255, ..] => return Ok(()),
            [0, tail @ ..] => rest = tail,
            [code, len, tail @ ..] => {
                let (value, tail) = tail.split_at_checked(usize::from(*len)).ok_or(Malformed::Options)?;
                options.entry(*code).or_default().extend_from_slice(value);
                rest = tail;
            }
            [_] => return Err(Malformed::Options),
        }
    }
}

/// Whether an option is of use to us, and its length one its type can have.
fn fits(code: u8, len: usize) -> bool {
    match code {
        1 | 28 | 50 | 51 | 54 | 58 | 59 => len == 4,
        3 | 6 => len > 0 && len.is_multiple_of(4),
        53 => len == 1,
        57 | 93 => len == 2,
        94 => len == 3,
        12 | 15 | 43 | 55 | 56 | 60 | 61 | 66 | 67 | 77 | 97 | 175 | MARK => len > 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn discover() -> Message {
        let mut message = Message::default();
        message.set_xid(7).set_chaddr(&[0x52, 0x54, 0, 0x77, 0, 1]);
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
        message.opts_mut().insert(DhcpOption::ClassIdentifier(b"PXEClient:Arch:00000:UNDI:002001".to_vec()));
        message
    }

    #[test]
    fn what_is_written_reads_back() {
        let bytes = encode(&discover());
        assert_eq!(bytes.len(), 300);
        assert_eq!(decode(&bytes), Ok(discover()));
    }

    #[test]
    fn options_that_would_be_misread_are_left_out() {
        // Lengths that trip the typed decoder: client network interface, FQDN, rapid commit, subnet mask.
        let mut bytes = encode(&discover())[..240].to_vec();
        bytes.extend([53, 1, 1, 94, 2, 1, 2, 81, 1, 0, 80, 3, 1, 2, 3, 1, 3, 255, 255, 255, 151, 0, 255]);
        let message = decode(&bytes).expect("the rest of it is sound");
        assert_eq!(message.opts().len(), 1);
    }

    #[test]
    fn split_and_overloaded_options_are_joined() {
        let mut bytes = encode(&discover())[..240].to_vec();
        bytes.extend([53, 1, 1, 52, 1, 1, 60, 3, b'P', b'X', b'E', 60, 6, b'C', b'l', b'i', b'e', b'n', b't', 255]);
        bytes[108..115].copy_from_slice(&[77, 4, b'i', b'P', b'X', b'E', 255]);
        let message = decode(&bytes).expect("sound");
        assert_eq!(bytes_of(&message, OptionCode::ClassIdentifier), Some(&b"PXEClient"[..]));
        assert_eq!(bytes_of(&message, OptionCode::UserClass), Some(&b"iPXE"[..]));
        assert_eq!(message.fname(), None);
    }

    #[test]
    fn type_and_server_come_first_and_the_relays_option_last() {
        for relayed in [&b""[..], b"\x01\x04\x00\x01\x00\x05", b"no list of options at all", &[9; 255], &[7; 300]] {
            let mut bytes = encode(&discover())[..240].to_vec();
            let parts: Vec<&[u8]> = if relayed.is_empty() { vec![relayed] } else { relayed.chunks(255).collect() };
            for part in parts {
                bytes.extend([82, u8::try_from(part.len()).expect("short")]);
                bytes.extend(part);
            }
            bytes.extend([61, 3, 0, b'a', b'b', 53, 1, 1, 255]);
            let request = decode(&bytes).expect("sound");
            let mut reply = reply_to(&request, Ipv4Addr::new(10, 0, 0, 1), MessageType::Offer);
            reply.opts_mut().insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 0, 0)));
            let bytes = encode(&reply);
            assert_eq!(bytes[240..249], [53, 1, 2, 54, 4, 10, 0, 0, 1]);
            let (mut rest, mut codes, mut back) = (&bytes[240..], Vec::new(), Vec::new());
            while let [code, len, tail @ ..] = rest {
                if *code == 255 {
                    break;
                }
                codes.push(*code);
                if *code == 82 {
                    back.extend_from_slice(&tail[..usize::from(*len)]);
                }
                rest = &tail[usize::from(*len)..];
            }
            codes.dedup();
            assert_eq!(codes, [53, 54, 1, 61, 82]);
            assert_eq!(back, relayed);
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        let good = encode(&discover());
        let refused = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            decode(&bytes).expect_err("changed")
        };
        assert_eq!(refused(2, 255), Malformed::Hardware);
        assert_eq!(refused(1, 32), Malformed::Hardware);
        assert_eq!(refused(28, 0xff), Malformed::Hardware);
        assert_eq!(refused(236, 0), Malformed::Cookie);
        assert_eq!(refused(0, 2), Malformed::Type);
        assert_eq!(decode(&[]), Err(Malformed::Short));
        assert_eq!(decode(&good[..239]), Err(Malformed::Short));
    }

    proptest! {
        #[test]
        fn no_packet_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn no_options_panic(options in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = encode(&discover())[..240].to_vec();
            bytes.extend(options);
            let _ = decode(&bytes);
        }
    }
}

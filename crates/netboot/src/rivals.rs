//! Other servers of the network: a question that each of them answers, and what its answer makes of it.
//!
//! The question is the DISCOVER of a network boot by a machine that does not exist. No address is ever taken, so a DHCP
//! server keeps one for it for a moment at most. EZIO servers mark their questions and their offers, and answer each
//! other's also while nothing is armed.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, MessageType, OptionCode};

use crate::message::{self, CLIENT_PORT, Datagram, MARK, Message};
use order::MacAddr;

/// How the value of the mark begins; in a question the server's number follows.
const EZIO: &[u8] = b"EZIO";
/// The longest boot file that is shown, in characters.
const FILE_MAX: usize = 80;

/// A number by which a server knows what it has sent; random.
pub type ServerNumber = [u8; 8];

/// What an EZIO server's offers carry. Firmware passes over an option that it does not know.
pub(crate) fn mark() -> DhcpOption {
    message::raw(MARK, EZIO)
}

/// The question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The machine that does not exist: [`no_card`].
    pub mac: MacAddr,
    /// Random.
    pub xid: u32,
    /// Client architecture (RFC 4578); some servers answer only some.
    pub arch: u16,
    /// Who asks.
    pub number: ServerNumber,
}

/// An address that no card has: a card's, among those that are administered locally.
pub fn no_card(card: MacAddr) -> MacAddr {
    let mut mac = card.0;
    mac[0] = (mac[0] | 2) & !1;
    // A virtual card's address is there already.
    if mac == card.0 {
        mac[0] ^= 0x40;
    }
    MacAddr(mac)
}

impl Question {
    /// The DHCP message. Answers have to be broadcast: the address they name is not ours.
    pub fn message(&self) -> Vec<u8> {
        let nowhere = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(self.xid, nowhere, nowhere, nowhere, nowhere, &self.mac.0);
        message.set_flags(Flags::default().set_broadcast());
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(MessageType::Discover));
        options.insert(DhcpOption::MaxMessageSize(1472));
        let class = format!("PXEClient:Arch:{:05}:UNDI:003000", self.arch);
        options.insert(DhcpOption::ClassIdentifier(class.into_bytes()));
        options.insert(DhcpOption::ClientSystemArchitecture(self.arch.into()));
        options.insert(message::raw(94, &[1, 3, 0]));
        options.insert(message::raw(97, &[[0; 11].as_slice(), &self.mac.0].concat()));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::VendorExtensions,
            OptionCode::ClassIdentifier,
            OptionCode::TFTPServerName,
            OptionCode::BootfileName,
        ]));
        options.insert(message::raw(MARK, &[EZIO, &self.number].concat()));
        message::encode(&message)
    }
}

/// Who asks, if a message is such a question.
pub fn asked_by(request: &Message) -> Option<ServerNumber> {
    let mark = message::bytes_of(request, OptionCode::Unknown(MARK))?.strip_prefix(EZIO)?;
    let number = mark.try_into().ok()?;
    (request.opts().msg_type() == Some(MessageType::Discover)).then_some(number)
}

/// What an EZIO server answers to another one's question: that it is there, and neither address nor boot file.
pub fn answer(request: &Message, address: Ipv4Addr) -> Datagram {
    let mut offer = message::reply_to(request, address, MessageType::Offer);
    offer.set_siaddr(address);
    offer.opts_mut().insert(DhcpOption::ClassIdentifier(b"PXEClient".to_vec()));
    offer.opts_mut().insert(mark());
    let to = std::net::SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT);
    Datagram { to, bytes: message::encode(&offer) }
}

/// What kind of server an offer is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another EZIO.
    Ezio,
    /// One that tells machines what to boot and gives them no address.
    ProxyDhcp,
    /// One that gives addresses; with the boot file that it names besides, if it does.
    Dhcp(Option<String>),
}

/// A server, by an offer of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// What it calls itself.
    pub server: Ipv4Addr,
    /// What it is.
    pub kind: Kind,
}

/// The server behind a packet that came to a client's port; `None` if it is no offer.
pub fn sighted(packet: &[u8]) -> Option<Sighting> {
    let offer = message::decode(packet).ok()?;
    if offer.opts().msg_type() != Some(MessageType::Offer) {
        return None;
    }
    let next = Some(offer.siaddr()).filter(|next| !next.is_unspecified());
    let server = message::address_of(&offer, OptionCode::ServerIdentifier).or(next)?;
    let bytes = |code| message::bytes_of(&offer, code);
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let text: String = text.trim_end_matches('\0').chars().filter(|c| !c.is_control()).take(FILE_MAX).collect();
        Some(text).filter(|text| !text.is_empty())
    };
    let file = offer.fname().and_then(text).or_else(|| bytes(OptionCode::BootfileName).and_then(text));
    let is_pxe = bytes(OptionCode::ClassIdentifier).is_some_and(|class| class.starts_with(b"PXEClient"));
    let kind = if bytes(OptionCode::Unknown(MARK)).is_some_and(|mark| mark.starts_with(EZIO)) {
        Kind::Ezio
    } else if !offer.yiaddr().is_unspecified() {
        Kind::Dhcp(file)
    } else if is_pxe {
        Kind::ProxyDhcp
    } else {
        return None;
    };
    Some(Sighting { server, kind })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use super::*;
    use crate::pxe::{self, BootServer};

    const CARD: MacAddr = MacAddr([0x00, 0x1b, 0x21, 1, 2, 3]);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    fn question() -> Message {
        let question = Question { mac: no_card(CARD), xid: 5, arch: 7, number: *b"12345678" };
        message::decode(&question.message()).expect("sound")
    }

    fn offer(change: impl FnOnce(&mut Message)) -> Option<Sighting> {
        let mut offer = message::reply_to(&question(), SERVER, MessageType::Offer);
        change(&mut offer);
        sighted(&message::encode(&offer))
    }

    #[test]
    fn a_question_is_known_and_is_no_cards() {
        assert_eq!(no_card(CARD).to_string(), "02:1b:21:01:02:03");
        let virtual_card = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(no_card(virtual_card).to_string(), "12:54:00:01:02:03");
        let asked = question();
        assert_eq!(asked_by(&asked), Some(*b"12345678"));
        assert_eq!(pxe::identify(&asked).map(|client| client.arch), Some(7), "every PXE server understands it");
        let answer = answer(&asked, SERVER);
        assert_eq!(answer.to, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68));
        assert_eq!(sighted(&answer.bytes), Some(Sighting { server: SERVER, kind: Kind::Ezio }));
        assert_eq!(sighted(&Question { mac: CARD, xid: 1, arch: 0, number: [0; 8] }.message()), None);
    }

    #[test]
    fn every_kind_of_server_is_known_by_its_offer() {
        let ours = pxe::proxy_offer(&question(), &BootServer { address: SERVER, http_port: None }).expect("PXE");
        assert_eq!(sighted(&ours.bytes).map(|seen| seen.kind), Some(Kind::Ezio));
        let class = || DhcpOption::ClassIdentifier(b"PXEClient".to_vec());
        let proxy = offer(|offer| drop(offer.opts_mut().insert(class())));
        assert_eq!(proxy, Some(Sighting { server: SERVER, kind: Kind::ProxyDhcp }));
        assert_eq!(offer(|_| {}), None, "neither address nor PXE");
        let kind_of = |seen: Option<Sighting>| seen.expect("a server").kind;
        let plain = offer(|offer| {
            offer.set_yiaddr(Ipv4Addr::new(10, 0, 0, 50));
        });
        assert_eq!(kind_of(plain), Kind::Dhcp(None));
        // A site's server with what is left of another PXE server, in all its forms.
        let left_over = offer(|offer| {
            offer.set_yiaddr(Ipv4Addr::new(10, 0, 0, 50)).set_fname_str("old/pxelinux.0");
            offer.opts_mut().insert(class());
        });
        assert_eq!(kind_of(left_over), Kind::Dhcp(Some("old/pxelinux.0".into())));
        let option = offer(|offer| {
            offer.set_yiaddr(Ipv4Addr::new(10, 0, 0, 50));
            offer.opts_mut().insert(DhcpOption::BootfileName(b"wds\\boot.com\0".to_vec()));
        });
        assert_eq!(kind_of(option), Kind::Dhcp(Some("wds\\boot.com".into())));
    }
}

//! Which firmware asks, and what it gets to boot: RFC 4578 architectures, iPXE, ProxyDHCP offers (PXE 2.1, section
//! 2.2), the second question on port 4011, and UEFI HTTP boot.
//!
//! A new odd firmware is a row in [`boot_file`] and a packet in `testdata/`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{DhcpOption, MessageType, OptionCode};

use crate::loaders;
use crate::message::{self, CLIENT_PORT, Datagram, Message, SERVER_PORT};
use crate::rivals;
use order::MacAddr;

/// Option 175, under which iPXE keeps its own options.
const IPXE_ENCAPSULATED: u8 = 175;
/// `no-pxedhcp` = 1 inside option 175: do not wait three seconds for a ProxyDHCP server that is not there.
const NO_PXEDHCP: [u8; 3] = [176, 1, 1];
/// `priority` = 127 inside option 175: of two servers' settings iPXE takes these. Else the boot file that a site's DHCP server
/// still names, for a server that was there before, would come before that of our offer.
const PRIORITY: [u8; 3] = [1, 1, 127];
/// PXE discovery control = 8 inside option 43: boot the file of this offer, do not ask port 4011 or show a menu.
const DISCOVERY_CONTROL: [u8; 4] = [6, 1, 8, 255];
/// The `file` field of the BOOTP header.
const FILE_LEN: usize = 128;

/// What kind of network boot a client speaks of itself in option 60.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `PXEClient`: boot file by TFTP, or by whatever iPXE can.
    Pxe,
    /// `HTTPClient`: UEFI HTTP boot, boot file is a URL.
    Http,
}

/// A machine that asks for something to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootClient {
    /// Its address.
    pub mac: MacAddr,
    /// Its SMBIOS UUID (option 97), in the order in which it was sent.
    pub uuid: Option<[u8; 16]>,
    /// PXE or HTTP.
    pub class: Class,
    /// Client architecture (RFC 4578, section 2.1): 0 BIOS, 7 and 9 x86-64 UEFI, 16 the same by HTTP.
    pub arch: u16,
    /// Whether iPXE asks, which wants a script rather than a boot loader.
    pub is_ipxe: bool,
}

/// Where the boot files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootServer {
    /// Our address as the client can reach it.
    pub address: Ipv4Addr,
    /// Port of our HTTP server; `None` if it is off.
    pub http_port: Option<u16>,
}

/// What a client is told to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootFile {
    /// A name on our TFTP server.
    Tftp(String),
    /// A complete URL.
    Url(String),
}

impl fmt::Display for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BootFile::Tftp(name) => f.write_str(name),
            BootFile::Url(url) => f.write_str(url),
        }
    }
}

impl BootServer {
    /// `http://S:P/path`, without the port if it is the usual one.
    pub fn url(&self, path: &str) -> Option<String> {
        Some(match self.http_port? {
            80 => format!("http://{}/{path}", self.address),
            port => format!("http://{}:{port}/{path}", self.address),
        })
    }
}

/// Recognises a netboot client by option 60; `None` for everybody else.
pub fn identify(message: &Message) -> Option<BootClient> {
    let vendor = message::bytes_of(message, OptionCode::ClassIdentifier)?;
    let class = if vendor.starts_with(b"PXEClient") {
        Class::Pxe
    } else if vendor.starts_with(b"HTTPClient") {
        Class::Http
    } else {
        return None;
    };
    let arch = match message.opts().get(OptionCode::ClientSystemArchitecture) {
        Some(DhcpOption::ClientSystemArchitecture(arch)) => arch.0,
        // `PXEClient:Arch:xxxxx:UNDI:yyyzzz` says it as well; the oldest ROMs say nothing and are BIOS.
        _ => vendor.get(15..20).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).unwrap_or(0),
    };
    // iPXE writes its user class without the length byte of RFC 3004; others write it with one.
    let user_class = message::bytes_of(message, OptionCode::UserClass).unwrap_or_default();
    let is_ipxe =
        matches!(user_class, b"iPXE" | b"\x04iPXE") || message.opts().contains(OptionCode::Unknown(IPXE_ENCAPSULATED));
    // RFC 4578 section 2.3: type 0, and 16 bytes.
    let uuid = message::bytes_of(message, OptionCode::ClientMachineIdentifier).unwrap_or_default();
    let uuid = uuid.strip_prefix(&[0]).and_then(|uuid| uuid.try_into().ok());
    Some(BootClient { mac: message::mac_of(message), uuid, class, arch, is_ipxe })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What to boot, or `None` for an architecture we have nothing for (32-bit UEFI, ARM, HTTP boot without HTTP).
pub fn boot_file(client: &BootClient, server: &BootServer) -> Option<BootFile> {
    // The kernel that the script names is x86-64's.
    if client.is_ipxe && matches!(client.arch, 0 | 7 | 9 | 16) {
        // A dock lends its card to many machines.
        let uuid = client.uuid.map(|uuid| format!("&uuid={}", hex(&uuid))).unwrap_or_default();
        let script = server.url(&format!("boot.ipxe?mac={}{uuid}", client.mac.dashed()));
        return Some(script.map_or(BootFile::Tftp("boot.ipxe".into()), BootFile::Url));
    }
    match (client.class, client.arch) {
        _ if client.is_ipxe => None,
        (Class::Pxe, 0) => Some(BootFile::Tftp(loaders::BIOS.into())),
        // RFC 4578 called x86-64 9 and byte code 7; firmware has it the other way round, both are x86-64 (erratum 4625).
        (Class::Pxe, 7 | 9) => Some(BootFile::Tftp(loaders::UEFI_X64.into())),
        (Class::Http, 16) => server.url(&format!("boot/{}", loaders::UEFI_X64)).map(BootFile::Url),
        _ => None,
    }
}

/// ProxyDHCP on port 67: the offer that names the boot file and no address, beside the site's own DHCP server. That server may
/// name a boot file too.
///
/// Only a DISCOVER is answered; a REQUEST on port 67 is for the site's server.
pub fn proxy_offer(request: &Message, server: &BootServer) -> Option<Datagram> {
    if request.opts().msg_type() != Some(MessageType::Discover) {
        return None;
    }
    let client = identify(request)?;
    let mut offer = message::reply_to(request, server.address, MessageType::Offer);
    fill(&mut offer, request, &client, server)?;
    if client.is_ipxe {
        offer.opts_mut().insert(message::raw(IPXE_ENCAPSULATED, &PRIORITY));
    }
    let giaddr = request.giaddr();
    let to = if giaddr.is_unspecified() {
        SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
    } else {
        SocketAddrV4::new(giaddr, SERVER_PORT)
    };
    Some(Datagram { to, bytes: message::encode(&offer) })
}

/// ProxyDHCP on port 4011: UEFI firmware asks again there, by unicast, and answers go to where it asked from.
pub fn proxy_ack(request: &Message, from: SocketAddrV4, server: &BootServer) -> Option<Datagram> {
    if !matches!(request.opts().msg_type(), Some(MessageType::Request | MessageType::Inform)) {
        return None;
    }
    let client = identify(request)?;
    let mut ack = message::reply_to(request, server.address, MessageType::Ack);
    ack.set_ciaddr(request.ciaddr());
    fill(&mut ack, request, &client, server)?;
    Some(Datagram { to: from, bytes: message::encode(&ack) })
}

/// Adds what to boot to a full DHCP server's OFFER or ACK.
///
/// Option 60 stays away from PXE clients here: with it UEFI looks for a boot server on port 4011, without it
/// every firmware takes `siaddr` and `file` as they are. UEFI HTTP boot insists on it.
pub fn add_boot_options(reply: &mut Message, request: &Message, client: &BootClient, server: &BootServer) -> bool {
    let added = fill(reply, request, client, server).is_some();
    if added && client.class == Class::Pxe {
        reply.opts_mut().remove(OptionCode::ClassIdentifier);
        reply.opts_mut().remove(OptionCode::VendorExtensions);
    }
    if client.is_ipxe {
        reply.opts_mut().insert(message::raw(IPXE_ENCAPSULATED, &NO_PXEDHCP));
    }
    added
}

fn fill(reply: &mut Message, request: &Message, client: &BootClient, server: &BootServer) -> Option<()> {
    let file = boot_file(client, server)?;
    reply.set_siaddr(server.address);
    let options = reply.opts_mut();
    options.insert(rivals::mark());
    if let Some(uuid) = message::bytes_of(request, OptionCode::ClientMachineIdentifier) {
        options.insert(DhcpOption::ClientMachineIdentifier(uuid.to_vec()));
    }
    match client.class {
        Class::Pxe => {
            options.insert(DhcpOption::ClassIdentifier(b"PXEClient".to_vec()));
            options.insert(DhcpOption::VendorExtensions(DISCOVERY_CONTROL.to_vec()));
            let name = file.to_string();
            if name.len() < FILE_LEN {
                reply.set_fname_str(name);
            }
        }
        Class::Http => {
            options.insert(DhcpOption::ClassIdentifier(b"HTTPClient".to_vec()));
            options.insert(DhcpOption::BootfileName(file.to_string().into_bytes()));
        }
    }
    Some(())
}

#[cfg(test)]
mod tests;

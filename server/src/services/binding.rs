//! Where the server is reachable: interfaces, addresses, and what to say when a port cannot be opened.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use anyhow::{bail, ensure};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;

use crate::room::config::Settings;

/// One interface the server works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub interface: String,
    /// The kernel's number of it: a card that was away and is back has another one, and old sockets do not reach it.
    pub index: u32,
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
}

/// What there is at the moment.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// Every interface by name, and whether it is up.
    interfaces: BTreeMap<String, bool>,
    /// Every IPv4 address of those that are up.
    bindings: Vec<Binding>,
}

/// An interface to serve, whether it is there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub interface: String,
    /// The address to serve under.
    address: Option<Ipv4Addr>,
    /// Whether it has to be this address; of several interfaces only one has it.
    is_strict: bool,
}

impl Present {
    /// Looks what there is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look() -> io::Result<Present> {
        let mut interfaces = BTreeMap::new();
        let mut found = BTreeMap::new();
        for entry in getifaddrs()? {
            let is_up = entry.flags.contains(InterfaceFlags::IFF_UP);
            let interface = entry.interface_name;
            interfaces.insert(interface.clone(), is_up);
            let address = entry.address.as_ref().and_then(|address| address.as_sockaddr_in()).map(|a| a.ip());
            let mask = entry.netmask.as_ref().and_then(|mask| mask.as_sockaddr_in()).map(|mask| u32::from(mask.ip()));
            if let (Some(address), true) = (address, is_up) {
                let prefix_len = u8::try_from(mask.unwrap_or(u32::MAX).leading_ones()).unwrap_or(32);
                let index = if_nametoindex(interface.as_str()).unwrap_or(0);
                found.insert((interface.clone(), address), Binding { interface, index, address, prefix_len });
            }
        }
        Ok(Present { interfaces, bindings: found.into_values().collect() })
    }

    /// Every address of this computer.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.bindings.iter().map(|binding| binding.address).collect()
    }

    fn on<'a>(&'a self, interface: &'a str) -> impl Iterator<Item = &'a Binding> {
        self.bindings.iter().filter(move |binding| binding.interface == interface)
    }

    fn list(&self) -> String {
        list(self.bindings.iter())
    }
}

fn list<'a>(bindings: impl Iterator<Item = &'a Binding>) -> String {
    match bindings.map(|found| format!("{} {}", found.interface, found.address)).collect::<Vec<_>>() {
        list if list.is_empty() => "none at all".to_owned(),
        list => list.join(", "),
    }
}

/// Which interfaces to serve. One that is named and not there is waited for.
///
/// # Errors
/// If the config names none and there is a choice, or what is there is not as the config says.
pub fn wanted(settings: &Settings, present: &Present) -> anyhow::Result<Vec<Wanted>> {
    let address = settings.address;
    if settings.interface.is_empty() {
        if let Some(address) = address {
            let found = present.bindings.iter().find(|found| found.address == address);
            let Some(found) = found else {
                bail!("no interface has the address {address}; there are: {}", present.list());
            };
            return Ok(vec![Wanted { interface: found.interface.clone(), address: Some(address), is_strict: true }]);
        }
        let outward: Vec<_> = present.bindings.iter().filter(|found| !found.address.is_loopback()).collect();
        ensure!(
            outward.len() == 1,
            "cannot choose where to serve: name an interface (`interface = \"…\"` or --interface), \
             with its address if it has several; there are: {}",
            present.list()
        );
        return Ok(vec![Wanted { interface: outward[0].interface.clone(), address: None, is_strict: false }]);
    }
    let mut wanted: Vec<Wanted> = Vec::new();
    for interface in &settings.interface {
        if !wanted.iter().any(|known| known.interface == *interface) {
            wanted.push(Wanted { interface: interface.clone(), address, is_strict: false });
        }
    }
    if let [only] = &mut wanted[..] {
        only.is_strict = address.is_some();
    }
    // An interface without an address may get this one yet.
    let is_complete = wanted.iter().all(|wanted| present.on(&wanted.interface).next().is_some());
    if let Some(address) = address {
        ensure!(
            !is_complete
                || present.bindings.iter().any(|b| b.address == address && settings.interface.contains(&b.interface)),
            "the address {address} is not on {}; there are: {}",
            settings.interface.join(" or "),
            present.list()
        );
    }
    for wanted in &wanted {
        if present.on(&wanted.interface).count() > 1
            && let Err(why) = wanted.find(present, None)
        {
            bail!("{why}; there are: {}", present.list());
        }
    }
    Ok(wanted)
}

impl Wanted {
    /// Where this interface is served now, or why it is not. `before` is where it was served last.
    ///
    /// # Errors
    /// What is wrong with it, as text.
    pub fn find(&self, present: &Present, before: Option<&Binding>) -> Result<Binding, String> {
        let name = &self.interface;
        match present.interfaces.get(name) {
            None if before.is_some() => return Err(format!("{name} is gone")),
            None => {
                let names = present.interfaces.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(format!("there is no interface {name} (there are: {names})"));
            }
            Some(false) => return Err(format!("{name} is down")),
            Some(true) => {}
        }
        let here: Vec<&Binding> = present.on(name).collect();
        let of = |address: Option<Ipv4Addr>| here.iter().find(|found| Some(found.address) == address).copied();
        let chosen = of(self.address).or_else(|| of(before.map(|before| before.address)));
        match (chosen, &here[..]) {
            (None, []) => Err(format!("{name} has no IPv4 address")),
            (Some(chosen), _) if !self.is_strict || Some(chosen.address) == self.address => Ok(chosen.clone()),
            (_, several) if self.is_strict => {
                let wanted = self.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
                Err(format!("{name} does not have the address {wanted} (it has {})", addresses(several)))
            }
            (Some(chosen), _) => Ok(chosen.clone()),
            (None, [only]) => Ok((*only).clone()),
            (None, several) => {
                let several = addresses(several);
                Err(format!("interface {name:?} has several addresses ({several}): choose one with `address`"))
            }
        }
    }
}

fn addresses(bindings: &[&Binding]) -> String {
    bindings.iter().map(|found| found.address.to_string()).collect::<Vec<_>>().join(", ")
}

/// What the kernel keeps for us while we are busy, in bytes: a thousand machines that are switched on in one moment.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Makes room in the kernel for what comes while we are busy, past the limit for all programs if we may.
pub fn make_room(socket: &impl AsFd) {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = SockRef::from(socket).set_recv_buffer_size(RECEIVE_BUFFER);
    }
}

/// Says why a port cannot be had, who might hold it, and what to do.
pub fn explain(error: io::Error, service: &str, address: Ipv4Addr, port: u16, udp: bool, key: &str) -> anyhow::Error {
    let kind = if udp { "udp" } else { "tcp" };
    let (list, usual) = match (udp, port) {
        (true, 67) => ("ss -ulpn", "dnsmasq, isc-dhcp-server or kea"),
        (true, 4011) => ("ss -ulpn", "dnsmasq or another ProxyDHCP server"),
        (true, _) => ("ss -ulpn", "tftpd-hpa, atftpd or dnsmasq"),
        (false, _) => ("ss -tlpn", "apache2, nginx or another web server"),
    };
    match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{service}: port {port}/{kind} on {address} is already in use, perhaps by {usual}, or by another `ezio \
             serve`: `{list} sport = :{port}` shows who holds it; stop that, or see the key `{key}`"
        ),
        io::ErrorKind::PermissionDenied => anyhow::anyhow!(
            "{service}: port {port}/{kind} on {address} needs root, or the capabilities CAP_NET_BIND_SERVICE and \
             CAP_NET_RAW"
        ),
        _ => anyhow::Error::from(error).context(format!("{service}: opening port {port}/{kind} on {address}")),
    }
}

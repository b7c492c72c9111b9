//! Where the server is reachable: interfaces, addresses, and what to say when a port cannot be opened.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use anyhow::{bail, ensure};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::room::config::Settings;

/// One interface the server works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub interface: String,
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
}

/// Finds the interfaces and addresses to serve on.
///
/// # Errors
/// If the config names one that is not there, or names none and there is a choice.
pub fn find(settings: &Settings) -> anyhow::Result<Vec<Binding>> {
    let all = addresses()?;
    let list = || match all.iter().map(|found| format!("{} {}", found.interface, found.address)).collect::<Vec<_>>() {
        list if list.is_empty() => "none at all".to_owned(),
        list => list.join(", "),
    };
    if settings.interface.is_empty() {
        if let Some(address) = settings.address {
            let found = all.iter().find(|found| found.address == address);
            let Some(found) = found else { bail!("no interface has the address {address}; there are: {}", list()) };
            return Ok(vec![found.clone()]);
        }
        let outward: Vec<_> = all.iter().filter(|found| !found.address.is_loopback()).collect();
        ensure!(
            outward.len() == 1,
            "cannot choose where to serve: name an interface (`interface = \"…\"` or --interface), \
             with its address if it has several; there are: {}",
            list()
        );
        return Ok(vec![outward[0].clone()]);
    }
    let mut bindings = Vec::new();
    let address_is_on = |name: &str| all.iter().any(|f| f.interface == name && Some(f.address) == settings.address);
    for name in &settings.interface {
        let here: Vec<_> = all.iter().filter(|found| found.interface == *name).collect();
        let wanted = |found: &&&Binding| !address_is_on(name) || Some(found.address) == settings.address;
        let chosen: Vec<_> = here.iter().filter(wanted).collect();
        match chosen[..] {
            [only] => bindings.push((*only).clone()),
            [] => bail!("interface {name:?} is down, has no IPv4 address, or is not there; there are: {}", list()),
            _ => bail!("interface {name:?} has several addresses: choose one with `address`; there are: {}", list()),
        }
    }
    if let Some(address) = settings.address {
        ensure!(
            bindings.iter().any(|binding| binding.address == address),
            "the address {address} is not on {}; there are: {}",
            settings.interface.join(" or "),
            list()
        );
    }
    Ok(bindings)
}

/// Every IPv4 address of every interface that is up.
fn addresses() -> anyhow::Result<Vec<Binding>> {
    let mut found = BTreeMap::new();
    for entry in getifaddrs()? {
        let address = entry.address.as_ref().and_then(|address| address.as_sockaddr_in()).map(|address| address.ip());
        let mask = entry.netmask.as_ref().and_then(|mask| mask.as_sockaddr_in()).map(|mask| u32::from(mask.ip()));
        if let (Some(address), true) = (address, entry.flags.contains(InterfaceFlags::IFF_UP)) {
            let prefix_len = u8::try_from(mask.unwrap_or(u32::MAX).leading_ones()).unwrap_or(32);
            let interface = entry.interface_name;
            found.insert((interface.clone(), address), Binding { interface, address, prefix_len });
        }
    }
    Ok(found.into_values().collect())
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

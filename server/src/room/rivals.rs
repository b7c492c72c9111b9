//! The other servers of our networks, as long as they are heard.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use netboot::rivals::{Kind, Sighting};
use serde::{Deserialize, Serialize};

use crate::room::config::{DhcpMode, Settings};

/// A server is shown for this long after it was heard. It is asked every half minute, and an answer may be lost.
const SHOWN: Duration = Duration::from_secs(65);
/// Servers remembered at most; anybody can send offers.
const MAX_RIVALS: usize = 64;

/// What a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Another EZIO.
    Ezio,
    /// It tells machines what to boot, and gives no addresses.
    Proxy,
    /// It gives addresses.
    Dhcp,
}

/// Another server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rival {
    pub address: Ipv4Addr,
    pub role: Role,
    /// Our interface.
    pub interface: String,
    /// The boot file that it names beside an address, or empty.
    #[serde(default)]
    pub file: String,
}

impl Rival {
    pub fn sends_machines_elsewhere(&self) -> bool {
        matches!(self.role, Role::Ezio | Role::Proxy)
    }

    /// Whether it is wrong that it is there. The site's DHCP server is not, whatever it names besides.
    pub fn is_trouble(&self, settings: &Settings) -> bool {
        self.sends_machines_elsewhere() || settings.dhcp() == DhcpMode::Server
    }
}

impl Rival {
    /// What there is to say of it.
    pub fn words(&self, settings: &Settings) -> String {
        let Rival { address, interface, file, .. } = self;
        let meant = format!("if it is meant to be there, list it as `beside = [\"{address}\"]` in the config");
        match self.role {
            Role::Ezio => format!(
                "another EZIO server, {address}, is on {interface}: a machine may get the orders of either; stop one of them, \
                 or {meant}"
            ),
            Role::Proxy => format!(
                "another PXE server, {address}, answers machines on {interface} (ProxyDHCP): a machine may boot from either; \
                 stop it, or {meant}"
            ),
            Role::Dhcp if settings.dhcp() == DhcpMode::Server => format!(
                "another DHCP server, {address}, gives out addresses on {interface}, as this one does (dhcp = \"server\"): \
                 stop it, or use dhcp = \"proxy\" here, or {meant}"
            ),
            Role::Dhcp => format!(
                "the DHCP server {address} on {interface} names the boot file {file:?}: if machines boot that instead of \
                 coming here, take it out there"
            ),
        }
    }
}

/// Those that were heard, and when.
#[derive(Debug, Default)]
pub struct Rivals {
    heard: BTreeMap<(Ipv4Addr, Role), (Rival, Instant)>,
}

impl Rivals {
    /// Takes a note of an offer that was heard on an interface; gives the server if it is new.
    pub fn heard(&mut self, interface: &str, sighting: Sighting) -> Option<Rival> {
        let (role, file) = match sighting.kind {
            Kind::Ezio => (Role::Ezio, None),
            Kind::ProxyDhcp => (Role::Proxy, None),
            Kind::Dhcp(file) => (Role::Dhcp, file),
        };
        let (address, interface, file) = (sighting.server, interface.to_owned(), file.unwrap_or_default());
        let rival = Rival { address, role, interface, file };
        self.heard.retain(|_, (_, at)| at.elapsed() < SHOWN);
        if self.heard.len() >= MAX_RIVALS && !self.heard.contains_key(&(address, role)) {
            return None;
        }
        let old = self.heard.insert((address, role), (rival.clone(), Instant::now()));
        old.is_none_or(|(old, _)| old != rival).then_some(rival)
    }

    /// Forgets what was heard on an interface that is gone.
    pub fn forget(&mut self, interface: &str) {
        self.heard.retain(|_, (rival, _)| rival.interface != interface);
    }

    /// Those to be shown: a DHCP server only if it disturbs us, or names a boot file.
    pub fn list(&self, settings: &Settings) -> Vec<Rival> {
        let heard = self.heard.values().filter(|(_, at)| at.elapsed() < SHOWN).map(|(rival, _)| rival);
        heard.filter(|rival| is_shown(rival, settings)).cloned().collect()
    }
}

/// Whether people should know of it.
pub fn is_shown(rival: &Rival, settings: &Settings) -> bool {
    let is_known = settings.beside.contains(&rival.address);
    !is_known && (rival.role != Role::Dhcp || !rival.file.is_empty() || settings.dhcp() == DhcpMode::Server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_server_is_shown_only_where_it_disturbs() {
        let address = Ipv4Addr::new(10, 0, 0, 2);
        let settings = |dhcp| Settings { dhcp: Some(dhcp), ..Settings::default() };
        let mut rivals = Rivals::default();
        let plain = || Sighting { server: address, kind: Kind::Dhcp(None) };
        assert!(rivals.heard("eth0", plain()).is_some(), "new");
        assert!(rivals.heard("eth0", plain()).is_none(), "known");
        assert!(rivals.list(&settings(DhcpMode::Proxy)).is_empty());
        let second = rivals.list(&settings(DhcpMode::Server));
        assert!(second[0].is_trouble(&settings(DhcpMode::Server)) && !second[0].sends_machines_elsewhere());
        assert!(rivals.heard("eth0", Sighting { server: address, kind: Kind::Dhcp(Some("x".into())) }).is_some());
        let hint = rivals.list(&settings(DhcpMode::Proxy));
        assert!(
            !hint[0].is_trouble(&settings(DhcpMode::Proxy))
                && hint[0].words(&settings(DhcpMode::Proxy)).contains("\"x\"")
        );
        rivals.heard("eth0", Sighting { server: address, kind: Kind::Ezio });
        let known = Settings { beside: vec![address], ..settings(DhcpMode::Proxy) };
        assert_eq!((rivals.list(&known).len(), rivals.list(&settings(DhcpMode::Proxy)).len()), (0, 2));
        rivals.forget("eth0");
        assert!(rivals.list(&settings(DhcpMode::Server)).is_empty());
    }
}

//! Who is behind an address: addresses are cheap, network cards are not. One card may call itself by 254 addresses; what
//! is scarce is shared among cards.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use netboot::MacAddr;

/// The kernel's table is read again after this long.
const FRESH: Duration = Duration::from_secs(1);
/// The kernel's table of neighbours (`proc_net(5)`).
const TABLE: &str = "/proc/net/arp";

/// A card on this network, or an address behind a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    Card(MacAddr),
    Address(IpAddr),
}

/// The cards behind the addresses of this network.
#[derive(Debug, Default)]
pub struct Neighbours {
    cards: HashMap<Ipv4Addr, MacAddr>,
    read_at: Option<Instant>,
}

impl Neighbours {
    /// Who is behind an address. One that the kernel does not know stands for itself.
    pub fn owner(&mut self, address: IpAddr) -> Owner {
        if self.read_at.is_none_or(|at| at.elapsed() > FRESH) {
            self.cards = parse(&fs::read_to_string(TABLE).unwrap_or_default());
            self.read_at = Some(Instant::now());
        }
        let card = match address {
            IpAddr::V4(address) => self.cards.get(&address),
            IpAddr::V6(_) => None,
        };
        card.map_or(Owner::Address(address), |&card| Owner::Card(card))
    }
}

fn parse(table: &str) -> HashMap<Ipv4Addr, MacAddr> {
    let entry = |line: &str| {
        let mut columns = line.split_whitespace();
        let address = columns.next()?.parse().ok()?;
        let card: MacAddr = columns.nth(2)?.parse().ok()?;
        // An address that has been asked for and has not answered has no card yet.
        (card.to_string() != "00:00:00:00:00:00").then_some((address, card))
    };
    table.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.0.0.7         0x1         0x2         52:54:00:00:00:07     *        eth0\n\
                     10.0.0.8         0x1         0x0         00:00:00:00:00:00     *        eth0\n\
                     nonsense\n";
        let cards = parse(table);
        assert_eq!(cards.len(), 1);
        assert_eq!(cards[&Ipv4Addr::new(10, 0, 0, 7)].to_string(), "52:54:00:00:00:07");
    }
}

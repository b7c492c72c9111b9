//! Who is behind an address: addresses are cheap, network cards are not. One card may call itself by 254 addresses, and
//! open any number of links; what is scarce is shared among cards.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::buffers::lock;

/// The kernel's table is read again after this long.
const FRESH: Duration = Duration::from_secs(1);
/// And after this long, if it does not have the address: the kernel learns a card when its first packet is answered.
const FRESH_ENOUGH: Duration = Duration::from_millis(100);
/// The kernel's table of neighbours (`proc_net(5)`).
const TABLE: &str = "/proc/net/arp";
/// Most cards that are remembered after the kernel has forgotten them, which it does with a neighbour that is quiet.
const MAX_CARDS: usize = 8192;

/// A card on this network, or an address behind a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The card's MAC address.
    Card([u8; 6]),
    /// An address that the kernel knows no card for.
    Address(IpAddr),
}

/// The cards behind the addresses of this network.
#[derive(Debug, Default)]
pub struct Neighbours {
    cards: HashMap<Ipv4Addr, [u8; 6]>,
    read_at: Option<Instant>,
}

impl Neighbours {
    /// Who is behind an address. One that the kernel does not know stands for itself.
    pub fn owner(&mut self, address: IpAddr) -> Owner {
        let IpAddr::V4(v4) = address.to_canonical() else { return Owner::Address(address) };
        let is_known = v4.is_loopback() || self.cards.contains_key(&v4);
        let fresh = if is_known { FRESH } else { FRESH_ENOUGH };
        if self.read_at.is_none_or(|at| at.elapsed() > fresh) {
            self.learn(parse(&fs::read_to_string(TABLE).unwrap_or_default()));
            self.read_at = Some(Instant::now());
        }
        self.cards.get(&v4).map_or(Owner::Address(address), |&card| Owner::Card(card))
    }

    fn learn(&mut self, table: HashMap<Ipv4Addr, [u8; 6]>) {
        if self.cards.len() + table.len() > MAX_CARDS {
            self.cards.clear();
        }
        self.cards.extend(table);
    }
}

fn parse(table: &str) -> HashMap<Ipv4Addr, [u8; 6]> {
    let entry = |line: &str| {
        let mut columns = line.split_whitespace();
        let address = columns.next()?.parse().ok()?;
        let bytes: Option<Vec<u8>> = columns.nth(2)?.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let card: [u8; 6] = bytes?.try_into().ok()?;
        // An address that has been asked for and has not answered has no card yet.
        (card != [0; 6]).then_some((address, card))
    };
    table.lines().filter_map(entry).collect()
}

/// Maps the address of a link to a number that stands for its owner. Places and uploads are shared among owners.
#[derive(Clone)]
pub struct Owners(Arc<dyn Fn(SocketAddr) -> u64 + Send + Sync>);

impl Owners {
    /// As the function says. It is called for every new link, and once a second for each of them; it must not block.
    pub fn new(of: impl Fn(SocketAddr) -> u64 + Send + Sync + 'static) -> Owners {
        Owners(Arc::new(of))
    }

    /// Every address is an owner; on loopback, where many peers share an address, every port of it.
    pub fn by_address() -> Owners {
        Owners::new(|addr| number(Owner::Address(addr.ip()), addr))
    }

    /// The owner is the network card behind the address, where the kernel knows it, and otherwise the address.
    pub fn by_card() -> Owners {
        let neighbours = Mutex::new(Neighbours::default());
        Owners::new(move |addr| {
            let owner = lock(&neighbours).owner(addr.ip());
            number(owner, addr)
        })
    }

    /// The number of the owner of a link from or to this address.
    pub fn of(&self, addr: SocketAddr) -> u64 {
        (self.0)(addr)
    }
}

impl Default for Owners {
    fn default() -> Owners {
        Owners::by_address()
    }
}

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owners")
    }
}

fn number(owner: Owner, addr: SocketAddr) -> u64 {
    let mut hasher = DefaultHasher::new();
    match owner {
        Owner::Card(card) => (1, card).hash(&mut hasher),
        Owner::Address(ip) => {
            let ip = ip.to_canonical();
            let port = if ip.is_loopback() { addr.port() } else { 0 };
            (2, ip, port).hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.0.0.7         0x1         0x2         52:54:00:00:00:07     *        eth0\n\
                     10.0.0.8         0x1         0x0         00:00:00:00:00:00     *        eth0\n\
                     10.0.0.9         0x1         0x2         52:54:00:00:00        *        eth0\n\
                     nonsense\n";
        let cards = parse(table);
        assert_eq!(cards.len(), 1);
        assert_eq!(cards[&Ipv4Addr::new(10, 0, 0, 7)], [0x52, 0x54, 0, 0, 0, 7]);
    }

    #[test]
    fn a_card_that_the_kernel_has_forgotten_is_still_known() {
        let mut neighbours = Neighbours { read_at: Some(Instant::now()), ..Neighbours::default() };
        let address = Ipv4Addr::new(10, 0, 0, 7);
        neighbours.learn(HashMap::from([(address, [1; 6])]));
        neighbours.learn(HashMap::new());
        assert_eq!(neighbours.owner(address.into()), Owner::Card([1; 6]));
        neighbours.learn(HashMap::from([(address, [2; 6])]));
        let mapped = IpAddr::from(address.to_ipv6_mapped());
        assert_eq!(neighbours.owner(mapped), Owner::Card([2; 6]), "it has changed its card");
        assert_eq!(neighbours.owner([10, 0, 0, 8].into()), Owner::Address([10, 0, 0, 8].into()));
    }

    #[test]
    fn one_address_is_one_owner_except_on_loopback() {
        let of = |text: &str| Owners::by_address().of(text.parse().expect("an address"));
        assert_eq!(of("10.0.0.1:1"), of("10.0.0.1:2"));
        assert_eq!(of("10.0.0.1:1"), of("[::ffff:10.0.0.1]:1"));
        assert_ne!(of("10.0.0.1:1"), of("10.0.0.2:1"));
        assert_ne!(of("127.0.0.1:1"), of("127.0.0.1:2"));
    }
}

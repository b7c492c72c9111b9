//! Membership: addresses to dial, links that are accepted and lost, peers that are banned.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::buffers::lock;
use crate::engine::{Refused, STRIKES, Shared, State};
use crate::handshake_slots::share;
use crate::link::Link;
use crate::picker::PeerKey;
use crate::stats::TurnedAway;
use crate::wire::{self, Message};

/// An incoming link on which nothing has moved for this long makes room for a new one. At a server with all places
/// taken, a peer's turn comes sooner, unless its link is a slow one.
const IDLE: Duration = Duration::from_secs(60);
/// Two links to one peer that began within this time of each other began simultaneously: a dial takes as long as a
/// handshake over a LAN, and a machine that is slow to start needs a second.
const AT_ONCE: Duration = Duration::from_secs(2);
/// The share of links that we dial. The rest is left for incoming links; otherwise late machines would find every peer
/// full.
const DIALLED: (usize, usize) = (2, 3);
/// The limit per owner applies only once this share of the places is taken.
const SCARCE_FROM: (usize, usize) = (1, 2);

impl Shared {
    pub(crate) fn heard(&self, peers: &[SocketAddr]) {
        *lock(&self.tracker_error) = None;
        let now = self.now();
        let mut state = lock(&self.state);
        let mut is_news = false;
        for &addr in peers {
            is_news |= state.book.add(addr, now);
        }
        drop(state);
        if is_news {
            self.dial.notify_one();
        }
    }

    /// The owner adds a peer.
    pub(crate) fn add_peer(&self, addr: SocketAddr) {
        if lock(&self.state).book.add_given(addr, self.now()) {
            self.dial.notify_one();
        }
    }

    pub(crate) fn set_tracker_error(&self, text: String) {
        *lock(&self.tracker_error) = Some(text);
    }

    /// The addresses to dial now.
    pub(crate) fn to_dial(&self) -> Vec<SocketAddr> {
        if self.has_failed() {
            return Vec::new();
        }
        let state = &mut *lock(&self.state);
        let most = (self.max_peers * DIALLED.0).div_ceil(DIALLED.1);
        let room = most.saturating_sub(state.links.len() + state.book.dialling());
        let links = &state.links;
        let is_connected = |id: &[u8; 20]| links.values().any(|link| link.peer_id == *id);
        if room > 0 {
            return state.book.due(self.now(), room, is_connected, |_| true);
        }
        // An owner with several links makes room for one that has none; one at a time, or the others would have to go for
        // addresses that nobody is behind.
        let owned = count_owners(links);
        if state.book.dialling() > 0 || owned.values().all(|&count| count <= 1) {
            return Vec::new();
        }
        let is_another = |addr| !owned.contains_key(&self.owners.of(addr));
        state.book.due(self.now(), 1, is_connected, is_another)
    }

    /// Looks up who is behind each link.
    pub(crate) fn look_at_owners(&self) {
        let links: Vec<Arc<Link>> = lock(&self.state).links.values().cloned().collect();
        let changed = links.iter().map(|link| (link, self.owners.of(link.addr)));
        let changed: Vec<_> = changed.filter(|&(link, owner)| owner != link.owner()).collect();
        if changed.is_empty() {
            return;
        }
        let now = self.now();
        self.with(|state| {
            for (link, owner) in changed {
                link.owner.store(owner, Ordering::Relaxed);
                state.core.set_owner(link.key, owner, now);
            }
        });
    }

    pub(crate) fn dial_failed(&self, addr: SocketAddr) {
        lock(&self.turned_away).take_if(|away| away.addr == addr);
        lock(&self.state).book.lost(addr, self.now(), false);
    }

    /// The dialled peer closed the connection before it said anything.
    pub(crate) fn turned_away(&self, addr: SocketAddr, has_torrent: bool) {
        *lock(&self.turned_away) = Some(TurnedAway { addr, has_torrent });
    }

    /// A peer talks to us.
    pub(crate) fn is_welcome(&self) {
        *lock(&self.turned_away) = None;
    }

    /// Accepts a peer after its handshake, unless there is a reason to refuse it. Of two links to the same peer, one is
    /// closed. If there is no room, a link of the owner with the most links is closed, or an idle one.
    pub(crate) fn admit(
        &self,
        peer_id: [u8; 20],
        addr: SocketAddr,
        is_dialled: bool,
    ) -> Result<(Arc<Link>, Option<Vec<u8>>), Refused> {
        let now = self.now();
        let owner = self.owners.of(addr);
        self.with(|state| {
            let refusal = state.make_room(self, &Newcomer { peer_id, addr, owner, is_dialled }, now).err();
            if is_dialled {
                match refusal {
                    None => state.book.connected(addr, now),
                    Some(Refused::Own | Refused::Banned) => state.book.never(addr),
                    Some(Refused::Connected) => state.book.alias(addr, peer_id, now),
                    Some(Refused::Full) => state.book.lost(addr, now, false),
                }
            }
            if let Some(refusal) = refusal {
                return Err(refusal);
            }
            let (key, held) = state.core.join_of(owner, now);
            let link = Arc::new(Link::new(key, peer_id, addr, is_dialled, now, owner));
            state.links.insert(key, Arc::clone(&link));
            let bitfield = held.map(|held| {
                let mut out = Vec::new();
                wire::encode(&Message::Bitfield(held), &mut out);
                out
            });
            Ok((link, bitfield))
        })
    }

    pub(crate) fn remove(&self, link: &Link, is_useless: bool) {
        let now = self.now();
        self.with(|state| state.drop_link(link, now, is_useless));
        self.dial.notify_one();
    }

    /// The peer delivered every byte of a piece whose hash is wrong.
    pub(crate) fn blame(&self, key: u32) {
        let state = &mut *lock(&self.state);
        let Some(link) = state.links.get(&key) else { return };
        log::warn!("peer {}: sent a wrong piece, dropped", link.addr);
        *state.strikes.entry(link.peer_id).or_default() += 1;
        // On loopback many peers share an address, so only the peer's id counts there.
        if !link.addr.ip().is_loopback() {
            *state.ip_strikes.entry(link.addr.ip()).or_default() += 1;
        }
        link.close.notify_one();
    }
}

impl State {
    /// Makes room for a peer, by closing another link if necessary; the error says why there is none.
    fn make_room(&mut self, shared: &Shared, newcomer: &Newcomer, now: Duration) -> Result<(), Refused> {
        let &Newcomer { peer_id, addr, owner, is_dialled } = newcomer;
        if peer_id == shared.peer_id {
            return Err(Refused::Own);
        }
        if shared.has_failed() {
            return Err(Refused::Full);
        }
        let strikes = |strikes: Option<&u32>| strikes.copied().unwrap_or(0) >= STRIKES;
        if strikes(self.strikes.get(&peer_id)) || strikes(self.ip_strikes.get(&addr.ip())) {
            return Err(Refused::Banned);
        }
        let links = || self.links.values();
        let core = &self.core;
        let idle_for = |link: &Link| core.idle(link.key, now).unwrap_or_default();
        let is_near = |link: &&Arc<Link>| link.addr.ip() == addr.ip();
        let known = links().filter(|link| link.peer_id == peer_id).max_by_key(is_near).cloned();
        let known = known.map(|old| (which_stays(&old, idle_for(&old), shared.peer_id, addr, is_dialled, now), old));
        let owned = count_owners(&self.links);
        let count = |link: &Link| owned.get(&link.owner()).copied().unwrap_or(0);
        let known_here = known.iter().filter(|(_, old)| old.owner() == owner).count();
        let own = owned.get(&owner).copied().unwrap_or(0) - known_here;
        let idlest = |may_go: &dyn Fn(&Link) -> bool| {
            let idle = links().filter(|link| !link.is_dialled && !core.is_in_queue(link.key) && idle_for(link) >= IDLE);
            idle.filter(|link| may_go(link)).max_by_key(|link| idle_for(link)).map(Arc::clone).ok_or(Refused::Full)
        };
        // While there are plenty of places, a room behind one router may have them.
        let is_scarce = links().count() >= shared.max_peers * SCARCE_FROM.0 / SCARCE_FROM.1;
        let has_enough = is_scarce && own >= share(shared.max_peers);
        let goes = match known {
            Some((Stays::Old, _)) => return Err(Refused::Connected),
            Some((Stays::New, old)) if !has_enough || old.owner() == owner => Some(old),
            Some((Stays::New, _)) => return Err(Refused::Full),
            _ if has_enough && is_dialled => return Err(Refused::Full),
            _ if has_enough => Some(idlest(&|link| link.owner() == owner)?),
            _ if links().count() < shared.max_peers => None,
            _ => {
                // The owner with the most links gives one up, the least useful of them, unless it has then fewer than
                // the newcomer.
                let most = owned.values().copied().max().unwrap_or(0);
                let crowd = links().filter(|link| most > own + 1 && count(link) == most);
                match crowd.max_by_key(|link| (!core.is_in_queue(link.key), idle_for(link))) {
                    Some(link) => Some(Arc::clone(link)),
                    None if is_dialled => return Err(Refused::Full),
                    None => Some(idlest(&|link| count(link) > own)?),
                }
            }
        };
        if let Some(old) = goes {
            self.drop_link(&old, now, false);
            old.close.notify_one();
        }
        Ok(())
    }

    fn drop_link(&mut self, link: &Link, now: Duration, is_useless: bool) {
        if self.links.remove(&link.key).is_none() {
            return;
        }
        self.core.leave(link.key, now);
        if link.is_dialled {
            self.book.lost(link.addr, now, is_useless);
        }
    }
}

/// A peer that asks to be taken in, or that we have dialled.
struct Newcomer {
    peer_id: [u8; 20],
    addr: SocketAddr,
    owner: u64,
    is_dialled: bool,
}

/// How many links each owner has.
fn count_owners(links: &HashMap<PeerKey, Arc<Link>>) -> HashMap<u64, usize> {
    let mut owned = HashMap::new();
    links.values().for_each(|link| *owned.entry(link.owner()).or_default() += 1);
    owned
}

/// Which of two links stays.
enum Stays {
    Old,
    New,
    Both,
}

/// Decides between two links that both claim to lead to the same peer.
fn which_stays(
    old: &Link,
    idle: Duration,
    own_id: [u8; 20],
    addr: SocketAddr,
    is_dialled: bool,
    now: Duration,
) -> Stays {
    // Two peers that dialled each other simultaneously both keep the link that the smaller id dialled. Later, the old
    // link stays, unless the same side dials again: that side knows that the old one is dead.
    let smaller_dialled = is_dialled == (own_id < old.peer_id);
    let is_young = now.saturating_sub(old.since) < AT_ONCE;
    let is_same_side = old.is_dialled == is_dialled;
    if old.addr.ip() == addr.ip() {
        return if is_same_side || is_young && smaller_dialled { Stays::New } else { Stays::Old };
    }
    // Any peer can claim another's id, so an old link that is alive stays. A peer with several addresses that dialled
    // while we did sees both links as ours, from one address, and closes one.
    if !is_same_side && is_young && smaller_dialled {
        Stays::Both
    } else if !old.is_dialled && idle >= IDLE {
        Stays::New
    } else {
        Stays::Old
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::exchange::Wish;
    use crate::engine::testing;
    use crate::owners::Owners;
    use crate::pace::USEFUL_BYTES;
    use crate::{Have, Options};

    const SOMEBODY: [u8; 20] = [7; 20];

    fn addr(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    fn swarm(max_peers: usize) -> Arc<Shared> {
        testing::shared(8, 16384, &Options { max_peers, ..Options::default() })
    }

    /// Accepts an incoming link of a peer with a different id.
    fn come(shared: &Shared, addr: SocketAddr) -> Result<Arc<Link>, Refused> {
        let mut id = [0; 20];
        id[..2].copy_from_slice(&addr.port().to_be_bytes());
        id[2] = 1;
        shared.admit(id, addr, false).map(|(link, _)| link)
    }

    fn is_in(shared: &Shared, link: &Link) -> bool {
        lock(&shared.state).links.contains_key(&link.key)
    }

    #[test]
    fn one_address_gets_a_quarter_of_the_places_once_they_are_scarce() {
        let mut shared = swarm(40);
        (1..=10).for_each(|host| drop(come(&shared, addr(100 + host, 1000 + u16::from(host))).expect("room")));
        let taken = (1..=40).filter(|&port| come(&shared, addr(1, port)).is_ok()).count();
        assert_eq!(taken, 10);
        assert!(come(&shared, addr(2, 99)).is_ok());
        assert_eq!(shared.admit(SOMEBODY, addr(1, 100), true).err(), Some(Refused::Full), "also when we dial it");
        testing::age(&mut shared, IDLE);
        assert!(come(&shared, addr(1, 101)).is_ok(), "a neighbour that does nothing makes room");
        assert_eq!(lock(&shared.state).links.len(), 21);
        let shared = swarm(40);
        let taken = (1..=40).filter(|&port| come(&shared, addr(1, port)).is_ok()).count();
        assert_eq!(taken, 20, "half of them as long as nobody else wants any");
        let shared = swarm(40);
        let on_loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert!((1..=40).all(|port| come(&shared, on_loopback(port)).is_ok()));
    }

    #[test]
    fn the_link_that_has_done_nothing_for_longest_makes_room() {
        let mut shared = swarm(4);
        let links: Vec<_> = (1..=4).map(|host| come(&shared, addr(host, host.into())).expect("room")).collect();
        assert_eq!(come(&shared, addr(9, 9)).err(), Some(Refused::Full), "none is idle yet");
        testing::age(&mut shared, IDLE * 2);
        let now = shared.now();
        for (link, ago) in [(&links[0], IDLE / 2), (&links[1], IDLE), (&links[3], IDLE * 3 / 2)] {
            let piece = shared.geometry.piece(0).expect("the first");
            lock(&shared.state).core.sent(link.key, piece, USEFUL_BYTES, now - ago);
        }
        assert_eq!(shared.admit(SOMEBODY, addr(9, 9), true).err(), Some(Refused::Full), "we need not dial");
        for (newcomer, out) in [(9, 2), (10, 3), (11, 1)] {
            assert!(come(&shared, addr(newcomer, newcomer.into())).is_ok());
            assert!(!is_in(&shared, &links[out]));
        }
        assert_eq!(come(&shared, addr(12, 12)).err(), Some(Refused::Full));
        assert!(is_in(&shared, &links[0]), "it did something lately");
        assert_eq!(lock(&shared.state).links.len(), 4);
    }

    #[test]
    fn who_waits_for_its_turn_is_not_put_out() {
        let options = Options { max_peers: 2, upload_slots: 1, have: Have::All, ..Options::default() };
        let mut shared = testing::shared(8, 16384, &options);
        let (served, _) = shared.admit(SOMEBODY, addr(3, 3), true).expect("room");
        let waits = come(&shared, addr(1, 1)).expect("room");
        let first = wire::Request::block(&shared.geometry, shared.geometry.piece(0).expect("the first"), 0);
        for link in [&served, &waits] {
            shared.peer_wants(link, &[Wish::Request(first)]).expect("we hold it");
        }
        testing::age(&mut shared, IDLE * 2);
        assert_eq!(come(&shared, addr(2, 2)).err(), Some(Refused::Full), "we let it wait");
        shared.peer_wants(&served, &[Wish::Cancel(first)]).expect("a cancel");
        assert_eq!(shared.next_upload(&waits), Some(first), "it has its turn");
        assert!(come(&shared, addr(2, 2)).is_ok() && !is_in(&shared, &waits), "and took nothing");
    }

    #[test]
    fn a_link_that_we_dialled_is_not_put_out() {
        let mut shared = swarm(1);
        let (link, _) = shared.admit(SOMEBODY, addr(1, 1), true).expect("room");
        testing::age(&mut shared, IDLE * 2);
        assert_eq!(come(&shared, addr(2, 2)).err(), Some(Refused::Full));
        assert!(is_in(&shared, &link));
    }

    #[test]
    fn a_borrowed_name_closes_nobodys_link() {
        for dialled in [false, true] {
            let mut shared = swarm(40);
            let (link, _) = shared.admit(SOMEBODY, addr(1, 1), dialled).expect("room");
            testing::age(&mut shared, Duration::from_secs(3));
            for as_dialled in [false, true] {
                assert_eq!(shared.admit(SOMEBODY, addr(2, 2), as_dialled).err(), Some(Refused::Connected));
            }
            assert!(is_in(&shared, &link));
            let again = shared.admit(SOMEBODY, addr(1, 3), dialled);
            assert!(again.is_ok() && !is_in(&shared, &link), "from its own address it does");
        }
    }

    /// Both dialled simultaneously, and the other peer has two addresses and the smaller id.
    #[test]
    fn the_link_that_the_smaller_name_dialled_is_taken_beside_ours_from_another_address() {
        let shared = swarm(40);
        let (ours, _) = shared.admit(SOMEBODY, addr(1, 1), true).expect("room");
        let (theirs, _) = shared.admit(SOMEBODY, addr(2, 2), false).expect("room");
        assert!(is_in(&shared, &ours) && is_in(&shared, &theirs));
        let (again, _) = shared.admit(SOMEBODY, addr(1, 1), true).expect("the same side, the same address");
        assert!(!is_in(&shared, &ours) && is_in(&shared, &theirs) && is_in(&shared, &again));
    }

    #[test]
    fn who_borrows_a_name_and_does_nothing_keeps_its_owner_out_for_a_while_only() {
        let mut shared = swarm(40);
        let (borrowed, _) = shared.admit(SOMEBODY, addr(2, 2), false).expect("room");
        testing::age(&mut shared, IDLE);
        assert!(shared.admit(SOMEBODY, addr(1, 1), false).is_ok() && !is_in(&shared, &borrowed));
    }

    /// Every address below 10.0.0.100 belongs to card 1, and every other to a card with its last number.
    fn cards(max_peers: usize) -> Arc<Shared> {
        let card = |addr: SocketAddr| match addr.ip() {
            std::net::IpAddr::V4(ip) if ip.octets()[3] >= 100 => u64::from(ip.octets()[3]),
            _ => 1,
        };
        testing::shared(8, 16384, &Options { max_peers, owners: Owners::new(card), ..Options::default() })
    }

    #[test]
    fn a_card_with_many_addresses_makes_room_for_others_at_once() {
        let shared = cards(40);
        let taken: Vec<_> = (1..=60).filter_map(|host| come(&shared, addr(host, host.into())).ok()).collect();
        assert_eq!(taken.len(), 20, "half, whatever number of addresses it has");
        let others: Vec<_> = (100..=138).map(|host| come(&shared, addr(host, host.into())).expect("room")).collect();
        assert!(others.iter().all(|link| is_in(&shared, link)));
        assert_eq!(taken.iter().filter(|link| is_in(&shared, link)).count(), 1);
        assert!(come(&shared, addr(61, 61)).is_err(), "it has what the others have");
        assert!(come(&shared, addr(150, 150)).is_err(), "and so has each of them");
        assert!(others.iter().all(|link| is_in(&shared, link)));
    }

    #[test]
    fn of_a_card_with_many_links_the_least_useful_goes_first_also_if_we_dialled_it() {
        let mut shared = cards(6);
        let (dialled, _) = shared.admit(SOMEBODY, addr(1, 1), true).expect("room");
        let [slow, useful] = [2, 3].map(|host| come(&shared, addr(host, host.into())).expect("room"));
        let others: Vec<_> = (101..=103).map(|host| come(&shared, addr(host, host.into())).expect("room")).collect();
        testing::age(&mut shared, IDLE / 2);
        let (now, piece) = (shared.now(), shared.geometry.piece(0).expect("the first"));
        lock(&shared.state).core.sent(slow.key, piece, 16384, now);
        lock(&shared.state).core.sent(dialled.key, piece, USEFUL_BYTES, now - Duration::from_secs(1));
        lock(&shared.state).core.sent(useful.key, piece, USEFUL_BYTES, now);
        for (newcomer, goes) in [(110, &slow), (111, &dialled)] {
            assert!(come(&shared, addr(newcomer, newcomer.into())).is_ok());
            assert!(!is_in(&shared, goes));
        }
        assert!(is_in(&shared, &useful) && others.iter().all(|link| is_in(&shared, link)));
    }

    #[test]
    fn a_block_now_and_then_keeps_no_place() {
        let mut shared = swarm(2);
        let links = [1, 2].map(|host| come(&shared, addr(host, host.into())).expect("room"));
        let piece = shared.geometry.piece(0).expect("the first");
        for _ in 0..3 {
            testing::age(&mut shared, Duration::from_secs(40));
            let now = shared.now();
            lock(&shared.state).core.sent(links[0].key, piece, 16384, now);
            lock(&shared.state).core.sent(links[1].key, piece, USEFUL_BYTES, now);
        }
        assert!(come(&shared, addr(9, 9)).is_ok() && !is_in(&shared, &links[0]) && is_in(&shared, &links[1]));
    }

    #[test]
    fn who_has_all_the_places_leaves_one_for_those_that_we_dial() {
        let shared = cards(4);
        assert!((1..=2).all(|host| come(&shared, addr(host, host.into())).is_ok()));
        assert!((101..=102).all(|host| come(&shared, addr(host, host.into())).is_ok()));
        shared.heard(&[addr(7, 7), addr(120, 120), addr(121, 121)]);
        let first = shared.to_dial();
        assert!(first.len() == 1 && first[0] != addr(7, 7), "not one of the card that has two: {first:?}");
        assert_eq!(shared.to_dial(), [], "one at a time");
        assert!(shared.admit(SOMEBODY, first[0], true).is_ok());
        assert_eq!(shared.to_dial(), [], "each has one link now");
        assert_eq!(lock(&shared.state).links.len(), 4);
    }

    /// The kernel learns the card behind a newcomer's address a moment later than we do.
    #[test]
    fn links_whose_cards_become_known_later_are_counted_together() {
        let is_known = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let known = Arc::clone(&is_known);
        let by_address = Owners::by_address();
        let owners = Owners::new(move |addr| if known.load(Ordering::Relaxed) { 1 } else { by_address.of(addr) });
        let shared = testing::shared(8, 16384, &Options { max_peers: 8, owners, ..Options::default() });
        let links: Vec<_> = (1..=8).map(|host| come(&shared, addr(host, host.into())).expect("room")).collect();
        assert_eq!(come(&shared, addr(9, 9)).err(), Some(Refused::Full));
        is_known.store(true, Ordering::Relaxed);
        shared.look_at_owners();
        assert!(links.iter().all(|link| link.owner() == 1 && lock(&shared.state).core.has_siblings(link.key)));
        assert_eq!(come(&shared, addr(9, 9)).err(), Some(Refused::Full), "it has enough");
        shared.remove(&links[0], false);
        assert!(!is_in(&shared, &links[0]));
    }
}

//! Addresses of peers: which to dial, and when to try again. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Pause between attempts to reach a peer: the pause must neither delay a machine that reboots nor flood it.
const REDIAL: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(5));
/// Pause between attempts to reach a peer with which there is nothing to exchange.
const REDIAL_USELESS: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one.
const GOOD: Duration = Duration::from_secs(5);
/// Most addresses that are remembered; trackers may send any number.
const MAX_ADDRS: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Dialling,
    Connected {
        since: Duration,
    },
    /// Our own address, or that of a banned peer.
    Never,
    /// Another address of the peer with this id; not dialled while that peer is connected.
    Alias([u8; 20]),
}

#[derive(Debug)]
struct Entry {
    state: State,
    due: Duration,
    wait: Duration,
    /// The owner named it, not a tracker: it is dialled before others, and never forgotten.
    is_given: bool,
}

/// Every known address.
#[derive(Debug, Default)]
pub(crate) struct Book {
    entries: HashMap<SocketAddr, Entry>,
}

impl Book {
    /// Notes an address; true if it is new.
    pub(crate) fn add(&mut self, addr: SocketAddr, now: Duration) -> bool {
        if self.entries.contains_key(&addr) {
            return false;
        }
        if self.entries.len() >= MAX_ADDRS {
            // Machines that rebooted leave their old ports behind; such a port has not answered for a while.
            let is_dead = |entry: &Entry| entry.state == State::Idle && entry.wait == REDIAL.1 && !entry.is_given;
            let dead = self.entries.iter().find(|(_, entry)| is_dead(entry)).map(|(&addr, _)| addr);
            dead.map(|addr| self.entries.remove(&addr));
        }
        let is_new = self.entries.len() < MAX_ADDRS;
        if is_new {
            self.entries.insert(addr, Entry { state: State::Idle, due: now, wait: REDIAL.0, is_given: false });
        }
        is_new
    }

    /// Notes an address that the owner named, however full the book is; true if it is new.
    pub(crate) fn add_given(&mut self, addr: SocketAddr, now: Duration) -> bool {
        let fresh = Entry { state: State::Idle, due: now, wait: REDIAL.0, is_given: true };
        let is_new = !self.entries.contains_key(&addr);
        self.entries.entry(addr).or_insert(fresh).is_given = true;
        is_new
    }

    /// At most `limit` addresses to dial now; they count as being dialled. Addresses that the owner named come first,
    /// then those that have been due for longest; those that `may_dial` refuses are left for later. So each gets its
    /// turn, however many are dead.
    pub(crate) fn due(
        &mut self,
        now: Duration,
        limit: usize,
        is_connected: impl Fn(&[u8; 20]) -> bool,
        may_dial: impl Fn(SocketAddr) -> bool,
    ) -> Vec<SocketAddr> {
        if limit == 0 {
            return Vec::new();
        }
        let is_free = |state| match state {
            State::Idle => true,
            State::Alias(peer_id) => !is_connected(&peer_id),
            State::Dialling | State::Connected { .. } | State::Never => false,
        };
        let mut due: Vec<_> =
            self.entries.iter_mut().filter(|(_, entry)| entry.due <= now && is_free(entry.state)).collect();
        due.sort_unstable_by_key(|(_, entry)| (!entry.is_given, entry.due));
        let dial = |(&addr, entry): (&SocketAddr, &mut Entry)| {
            entry.state = State::Dialling;
            addr
        };
        due.into_iter().filter(|(addr, _)| may_dial(**addr)).take(limit).map(dial).collect()
    }

    /// How many addresses are being dialled.
    pub(crate) fn dialling(&self) -> usize {
        self.entries.values().filter(|entry| entry.state == State::Dialling).count()
    }

    /// The dialled peer has connected.
    pub(crate) fn connected(&mut self, addr: SocketAddr, now: Duration) {
        self.set(addr, State::Connected { since: now });
    }

    /// The address is ours, or its owner is banned.
    pub(crate) fn never(&mut self, addr: SocketAddr) {
        self.set(addr, State::Never);
    }

    /// The address leads to a peer that is already connected. That peer may take the attempt as a sign that the other
    /// link is dead, and close it. Then the other address has to be dialled first, or this would never end.
    pub(crate) fn alias(&mut self, addr: SocketAddr, peer_id: [u8; 20], now: Duration) {
        self.lost(addr, now, false);
        if let Some(entry) = self.entries.get_mut(&addr) {
            entry.state = State::Alias(peer_id);
            entry.due = now + REDIAL.1 * 2;
        }
    }

    /// The connection is gone, or never existed.
    pub(crate) fn lost(&mut self, addr: SocketAddr, now: Duration, is_useless: bool) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        if entry.state == State::Never {
            return;
        }
        if matches!(entry.state, State::Connected { since } if now.saturating_sub(since) >= GOOD) {
            entry.wait = REDIAL.0;
        }
        entry.state = State::Idle;
        entry.due = now + if is_useless { REDIAL_USELESS } else { entry.wait };
        entry.wait = (entry.wait * 2).min(REDIAL.1);
    }

    fn set(&mut self, addr: SocketAddr, state: State) {
        if let Some(entry) = self.entries.get_mut(&addr) {
            entry.state = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redials_come_soon_then_every_five_seconds() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut book = Book::default();
        let mut now = Duration::ZERO;
        assert!(book.add(addr, now));
        assert!(!book.add(addr, now));
        for expected_ms in [300, 600, 1200, 2400, 4800, 5000, 5000] {
            assert_eq!(book.due(now, 9, |_| false, |_| true), [addr]);
            assert!(book.due(now, 9, |_| false, |_| true).is_empty(), "being dialled");
            book.lost(addr, now, false);
            let wait = Duration::from_millis(expected_ms);
            assert!(book.due(now + wait - Duration::from_millis(1), 9, |_| false, |_| true).is_empty());
            now += wait;
        }
        assert_eq!(book.due(now, 9, |_| false, |_| true), [addr]);
        book.connected(addr, now);
        now += GOOD;
        book.lost(addr, now, false);
        assert_eq!(book.due(now + REDIAL.0, 9, |_| false, |_| true), [addr], "was a good connection");
    }

    #[test]
    fn dead_addresses_make_room_for_new_ones() {
        let addr = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let mut book = Book::default();
        (0..2048).for_each(|port| assert!(book.add(addr(port), Duration::ZERO)));
        assert!(!book.add(addr(3000), Duration::ZERO), "full");
        (0..9).for_each(|_| book.lost(addr(7), Duration::ZERO, false));
        assert!(book.add(addr(3000), Duration::ZERO));
        assert!(!book.add(addr(3001), Duration::ZERO), "full again");
    }

    #[test]
    fn dead_addresses_leave_room_for_live_ones() {
        let addr = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let (live, given) = (addr(5000), addr(5001));
        let mut book = Book::default();
        (0..500).for_each(|port| assert!(book.add(addr(port), Duration::ZERO)));
        let mut now = Duration::ZERO;
        let mut dialled = Vec::new();
        for round in 0..40 {
            let called = book.due(now, 27, |_| false, |_| true);
            assert_eq!(called.len(), 27);
            now += Duration::from_secs(3);
            called.iter().for_each(|&addr| book.lost(addr, now, false));
            dialled.push(called);
            if round == 10 {
                book.add(live, now);
                book.add_given(given, now);
            }
        }
        assert_eq!(dialled[11][0], given, "the owner's come first");
        // The 500 others come in rounds of 27, once each.
        assert!(dialled[11..=30].iter().flatten().any(|&addr| addr == live));
        (0..500).for_each(|port| assert!(dialled.iter().flatten().any(|&called| called == addr(port)), "{port}"));
    }

    #[test]
    fn an_address_from_the_owner_is_taken_into_a_full_book_and_stays() {
        let addr = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let mut book = Book::default();
        (0..2048).for_each(|port| assert!(book.add(addr(port), Duration::ZERO)));
        assert!(book.add_given(addr(3000), Duration::ZERO));
        assert!(!book.add_given(addr(7), Duration::ZERO), "known already, but the owner's from now on");
        let first = book.due(Duration::ZERO, 2, |_| false, |_| true);
        assert!(first.contains(&addr(7)) && first.contains(&addr(3000)));
        for port in [7, 3000] {
            (0..9).for_each(|_| book.lost(addr(port), Duration::ZERO, false));
        }
        assert!(!book.add(addr(3001), Duration::ZERO), "the dead are the owner's");
    }

    #[test]
    fn own_and_known_addresses_are_left_alone() {
        let (own, alias) = (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
        let mut book = Book::default();
        book.add(own, Duration::ZERO);
        book.add(alias, Duration::ZERO);
        assert_eq!(book.due(Duration::ZERO, 9, |_| false, |_| true).len(), 2);
        book.never(own);
        book.alias(alias, [1; 20], Duration::ZERO);
        let later = Duration::from_secs(99);
        assert!(book.due(later, 9, |_| true, |_| true).is_empty());
        assert!(book.due(REDIAL.1, 9, |_| false, |_| true).is_empty(), "the address that it was known by comes first");
        assert_eq!(book.due(later, 9, |_| false, |_| true), [alias]);
    }
}

//! Who is in: addresses to dial, links taken in and lost, peers that are no longer talked to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::buffers::lock;
use crate::engine::{Core, Refused, STRIKES, Shared};
use crate::link::{Link, LinkState};
use crate::wire::{self, Message};

impl Shared {
    pub(crate) fn heard(&self, peers: &[SocketAddr]) {
        *lock(&self.tracker_error) = None;
        let now = self.now();
        let mut core = lock(&self.core);
        let mut is_news = false;
        for &addr in peers {
            is_news |= core.book.add(addr, now);
        }
        drop(core);
        if is_news {
            self.dial.notify_one();
        }
    }

    /// The owner names a peer.
    pub(crate) fn add_peer(&self, addr: SocketAddr) {
        if lock(&self.core).book.add_given(addr, self.now()) {
            self.dial.notify_one();
        }
    }

    pub(crate) fn set_tracker_error(&self, text: String) {
        *lock(&self.tracker_error) = Some(text);
    }

    /// Whom to dial now. A third of the links is left to those who dial us, or late comers would find everybody full.
    pub(crate) fn to_dial(&self) -> Vec<SocketAddr> {
        if self.has_failed() {
            return Vec::new();
        }
        let core = &mut *lock(&self.core);
        let most = (self.max_peers * 2).div_ceil(3);
        let room = most.saturating_sub(core.links.len() + core.book.dialling());
        let links = &core.links;
        core.book.due(self.now(), room, |id| links.values().any(|state| state.link.peer_id == *id))
    }

    pub(crate) fn dial_failed(&self, addr: SocketAddr) {
        lock(&self.core).book.lost(addr, self.now(), false);
    }

    /// Takes a peer in after its handshake, unless there is a reason not to. Of two links to one peer, one goes.
    pub(crate) fn admit(
        &self,
        peer_id: [u8; 20],
        addr: SocketAddr,
        is_dialled: bool,
    ) -> Result<(Arc<Link>, Option<Vec<u8>>), Refused> {
        let now = self.now();
        let core = &mut *lock(&self.core);
        let refusal = core.refusal(self, peer_id, addr, is_dialled, now);
        if is_dialled {
            match refusal {
                None => core.book.connected(addr, now),
                Some(Refused::Own | Refused::Banned) => core.book.never(addr),
                Some(Refused::Connected) => core.book.alias(addr, peer_id, now),
                Some(Refused::Full) => core.book.lost(addr, now, false),
            }
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let key = core.next_key;
        core.next_key += 1;
        let link = Arc::new(Link::new(key, peer_id, addr, is_dialled, now));
        core.picker.add_peer(key);
        let shows_little = match core.reveal.as_mut().filter(|reveal| !reveal.is_over()) {
            Some(reveal) => {
                reveal.join(key);
                true
            }
            None => false,
        };
        let have = core.picker.have();
        let bitfield = (!shows_little && have.count() > 0).then(|| {
            let mut out = Vec::new();
            wire::encode(&Message::Bitfield(have.clone()), &mut out);
            out
        });
        core.links.insert(key, LinkState::new(Arc::clone(&link), core.have_log.len(), shows_little));
        Ok((link, bitfield))
    }

    pub(crate) fn remove(&self, link: &Link, is_useless: bool) {
        let now = self.now();
        let core = &mut *lock(&self.core);
        if core.links.remove(&link.key).is_none() {
            return;
        }
        core.picker.remove_peer(link.key);
        if let Some(reveal) = core.reveal.as_mut() {
            reveal.leave(link.key);
        }
        if link.is_dialled {
            core.book.lost(link.addr, now, is_useless);
        }
        let shows_little = core.reveal.is_some();
        core.wake(shows_little);
        self.dial.notify_one();
    }

    /// The peer gave every byte of a piece whose hash is wrong.
    pub(crate) fn blame(&self, key: u32) {
        let core = &mut *lock(&self.core);
        let Some(link) = core.links.get(&key).map(|state| Arc::clone(&state.link)) else { return };
        log::warn!("peer {}: sent a wrong piece, dropped", link.addr);
        *core.strikes.entry(link.peer_id).or_default() += 1;
        // On loopback many peers share an address, so there only the peer's id counts.
        if !link.addr.ip().is_loopback() {
            *core.ip_strikes.entry(link.addr.ip()).or_default() += 1;
        }
        link.close.notify_one();
    }
}

impl Core {
    fn refusal(
        &mut self,
        shared: &Shared,
        peer_id: [u8; 20],
        addr: SocketAddr,
        is_dialled: bool,
        now: Duration,
    ) -> Option<Refused> {
        if peer_id == shared.peer_id {
            return Some(Refused::Own);
        }
        if shared.has_failed() {
            return Some(Refused::Full);
        }
        let strikes = |strikes: Option<&u32>| strikes.copied().unwrap_or(0) >= STRIKES;
        if strikes(self.strikes.get(&peer_id)) || strikes(self.ip_strikes.get(&addr.ip())) {
            return Some(Refused::Banned);
        }
        let known = self.links.values().map(|state| &state.link).find(|link| link.peer_id == peer_id);
        if let Some(old) = known {
            // Two that dialled each other at once both keep the link that the smaller id dialled. Later on the old link
            // stays, unless the same side dials again: then it knows that the old one is dead.
            let smaller_dialled = is_dialled == (shared.peer_id < peer_id);
            let is_young = now.saturating_sub(old.since) < Duration::from_secs(2);
            let new_wins = if old.is_dialled == is_dialled { true } else { is_young && smaller_dialled };
            if !new_wins {
                return Some(Refused::Connected);
            }
            old.close.notify_one();
            return None;
        }
        (self.links.len() >= shared.max_peers).then_some(Refused::Full)
    }
}

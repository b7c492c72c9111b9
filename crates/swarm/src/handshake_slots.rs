//! Limits connections that have not yet identified themselves: a fixed number at a time, and a quarter of them per
//! address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::buffers::lock;

/// Most connections that have not yet identified themselves.
const MAX_HANDSHAKES: usize = 64;

/// How many of `places` one address may have: a room behind one router needs many, but a stranger must not have all.
/// `None` on loopback, where many peers share an address.
pub(crate) fn share(places: usize, ip: IpAddr) -> Option<usize> {
    (!ip.to_canonical().is_loopback()).then(|| places.div_ceil(4))
}

/// The places for connections before their handshake, each counted for its address.
#[derive(Default)]
pub(crate) struct HandshakeSlots {
    taken: Mutex<HashMap<IpAddr, usize>>,
}

impl HandshakeSlots {
    /// A place for a handshake, if one is free; dropping it frees the place.
    pub(crate) fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<HandshakeSlot> {
        let mut taken = lock(&self.taken);
        let from_there = taken.get(&ip).copied().unwrap_or(0);
        let is_full = taken.values().sum::<usize>() >= MAX_HANDSHAKES;
        if is_full || share(MAX_HANDSHAKES, ip).is_some_and(|share| from_there >= share) {
            return None;
        }
        taken.insert(ip, from_there + 1);
        Some(HandshakeSlot { slots: Arc::clone(self), ip })
    }
}

/// The place of one connection; it is freed when this is dropped.
pub(crate) struct HandshakeSlot {
    slots: Arc<HandshakeSlots>,
    ip: IpAddr,
}

impl Drop for HandshakeSlot {
    fn drop(&mut self) {
        let mut taken = lock(&self.slots.taken);
        if let Some(count) = taken.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_slots_to_others() {
        let slots = Arc::new(HandshakeSlots::default());
        let ip = |host| IpAddr::from([10, 0, 0, host]);
        let mut stay: Vec<_> = std::iter::from_fn(|| slots.enter(ip(1))).take(99).collect();
        assert_eq!(stay.len(), 16);
        let other = slots.enter(ip(2));
        assert!(other.is_some(), "another address");
        stay.pop();
        assert!(slots.enter(ip(1)).is_some(), "the place of one that has gone");
        stay.clear();
        drop(other);
        let on_loopback: Vec<_> = std::iter::from_fn(|| slots.enter([127, 0, 0, 1].into())).take(99).collect();
        assert_eq!(on_loopback.len(), 64);
        assert!(slots.enter(ip(3)).is_none(), "full");
        drop(on_loopback);
        assert!(lock(&slots.taken).is_empty());
    }
}

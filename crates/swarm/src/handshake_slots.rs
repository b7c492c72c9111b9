//! Limits connections that have not yet identified themselves: a fixed number at a time, and a quarter of them per
//! owner.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::buffers::lock;

/// Most connections that have not yet identified themselves.
const MAX_HANDSHAKES: usize = 64;

/// How many of `places` one owner may have: a room behind one router needs many, but a stranger must not have all.
pub(crate) fn share(places: usize) -> usize {
    places.div_ceil(4)
}

/// The places for connections before their handshake, each counted for its owner.
#[derive(Default)]
pub(crate) struct HandshakeSlots {
    taken: Mutex<HashMap<u64, usize>>,
}

impl HandshakeSlots {
    /// A place for a handshake, if one is free; dropping it frees the place.
    pub(crate) fn enter(self: &Arc<Self>, owner: u64) -> Option<HandshakeSlot> {
        let mut taken = lock(&self.taken);
        let from_there = taken.get(&owner).copied().unwrap_or(0);
        let is_full = taken.values().sum::<usize>() >= MAX_HANDSHAKES;
        if is_full || from_there >= share(MAX_HANDSHAKES) {
            return None;
        }
        taken.insert(owner, from_there + 1);
        Some(HandshakeSlot { slots: Arc::clone(self), owner })
    }
}

/// The place of one connection; it is freed when this is dropped.
pub(crate) struct HandshakeSlot {
    slots: Arc<HandshakeSlots>,
    owner: u64,
}

impl Drop for HandshakeSlot {
    fn drop(&mut self) {
        let mut taken = lock(&self.slots.taken);
        if let Some(count) = taken.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_leaves_slots_to_others() {
        let slots = Arc::new(HandshakeSlots::default());
        let mut stay: Vec<_> = std::iter::from_fn(|| slots.enter(1)).take(99).collect();
        assert_eq!(stay.len(), 16);
        let other = slots.enter(2);
        assert!(other.is_some(), "another owner");
        stay.pop();
        assert!(slots.enter(1).is_some(), "the place of one that has gone");
        stay.clear();
        drop(other);
        let of_many: Vec<_> = (10..99).map_while(|owner| slots.enter(owner)).collect();
        assert_eq!(of_many.len(), 64);
        assert!(slots.enter(3).is_none(), "full");
        drop(of_many);
        assert!(lock(&slots.taken).is_empty());
    }
}

//! Connections that have not said who they are: so many at a time, and a quarter of them from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::buffers::lock;

/// Connections that have not said who they are.
const MAX_HANDSHAKES: usize = 64;

/// How much of `places` one address may take: a room behind one router needs many, a stranger must not have all. `None` on
/// loopback, where many peers share an address.
pub(crate) fn share(places: usize, ip: IpAddr) -> Option<usize> {
    (!ip.to_canonical().is_loopback()).then(|| places.div_ceil(4))
}

/// Who stands in the door.
#[derive(Default)]
pub(crate) struct Doorway {
    visitors: Mutex<HashMap<IpAddr, usize>>,
}

impl Doorway {
    /// A place in the door until it is dropped, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<Visitor> {
        let mut visitors = lock(&self.visitors);
        let from_there = visitors.get(&ip).copied().unwrap_or(0);
        let is_full = visitors.values().sum::<usize>() >= MAX_HANDSHAKES;
        if is_full || share(MAX_HANDSHAKES, ip).is_some_and(|share| from_there >= share) {
            return None;
        }
        visitors.insert(ip, from_there + 1);
        Some(Visitor { door: Arc::clone(self), ip })
    }
}

/// A connection that stands in the door.
pub(crate) struct Visitor {
    door: Arc<Doorway>,
    ip: IpAddr,
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let mut visitors = lock(&self.door.visitors);
        if let Some(count) = visitors.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                visitors.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_the_door_open_to_others() {
        let door = Arc::new(Doorway::default());
        let ip = |host| IpAddr::from([10, 0, 0, host]);
        let mut stay: Vec<_> = std::iter::from_fn(|| door.enter(ip(1))).take(99).collect();
        assert_eq!(stay.len(), 16);
        let other = door.enter(ip(2));
        assert!(other.is_some(), "another address");
        stay.pop();
        assert!(door.enter(ip(1)).is_some(), "the place of one that has gone");
        stay.clear();
        drop(other);
        let on_loopback: Vec<_> = std::iter::from_fn(|| door.enter([127, 0, 0, 1].into())).take(99).collect();
        assert_eq!(on_loopback.len(), 64);
        assert!(door.enter(ip(3)).is_none(), "full");
        drop(on_loopback);
        assert!(lock(&door.visitors).is_empty());
    }
}

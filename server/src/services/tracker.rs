//! The tracker over HTTP: `swarm`'s tracker, with our own seeders named under the address the asker reached us by.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use metainfo::Infohash;
use swarm::owners::Neighbours;
use swarm::tracker::{AnnounceQuery, Tracker, failure};

/// The swarms of the armed images.
#[derive(Default)]
pub struct TrackerService {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tracker: Tracker,
    /// The port of our own seeder, for each image that we seed.
    ports: HashMap<Infohash, Option<u16>>,
    neighbours: Neighbours,
}

impl TrackerService {
    /// Lets the peers of an image meet, and ours with them if we seed it.
    pub fn allow(&self, infohash: Infohash, port: Option<u16>) {
        let mut state = self.lock();
        state.tracker.allow(infohash);
        state.ports.insert(infohash, port);
    }

    pub fn disallow(&self, infohash: &Infohash) {
        let mut state = self.lock();
        state.tracker.disallow(infohash);
        state.ports.remove(infohash);
    }

    /// How many machines fetch an image, and how many have it.
    pub fn counts(&self, infohash: &Infohash) -> (usize, usize) {
        self.lock().tracker.counts(infohash)
    }

    /// Answers an announce: the bencoded reply, or in `Err` the bencoded refusal of a query that makes no sense.
    pub fn announce(&self, query: &str, from: IpAddr, local: IpAddr) -> Result<Vec<u8>, Vec<u8>> {
        let query = AnnounceQuery::parse(query).map_err(|error| failure(&error.to_string()))?;
        let mut state = self.lock();
        let seeder = state.ports.get(&query.infohash).copied().flatten().map(|port| SocketAddr::new(local, port));
        // Under one lock, so no other client gets this address.
        if let Some(seeder) = seeder {
            state.tracker.add_seeder(query.infohash, seeder);
        }
        let mut hash = DefaultHasher::new();
        state.neighbours.owner(from.to_canonical()).hash(&mut hash);
        let reply = state.tracker.announce_of(&query, from, hash.finish(), Instant::now());
        if let Some(seeder) = seeder {
            state.tracker.remove_seeder(&query.infohash, seeder);
        }
        Ok(reply)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

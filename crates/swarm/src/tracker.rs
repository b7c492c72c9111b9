//! The tracker's state (BEP 3, BEP 23): which peers are in which swarm. Pure: addresses and times come in, replies go
//! out.
//!
//! Only infohashes that were allowed are tracked, so no client can fill our memory with invented swarms.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use metainfo::Infohash;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Seconds between announces of a peer that came less than [`YOUNG`] ago: in a starting room, machines have to find
/// each other.
const INTERVAL_YOUNG: u64 = 5;
/// Seconds between announces later on.
const INTERVAL: u64 = 60;
/// How long a peer counts as new.
const YOUNG: Duration = Duration::from_secs(60);
/// A peer that has not announced for this long was switched off without notice. It is more than two intervals.
const EXPIRY: Duration = Duration::from_secs(150);
/// Most peers remembered in one swarm: a /22 full of machines, in about 100 KB.
const MAX_PEERS: usize = 1024;
/// Peers in a reply if the query gives no number, and the most that a query can ask for.
const NUMWANT: usize = 50;
const MAX_NUMWANT: usize = 200;

/// The event in an announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The regular announce.
    None,
    /// The first announce.
    Started,
    /// The download has just finished.
    Completed,
    /// The peer leaves.
    Stopped,
}

/// One announce, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceQuery {
    /// Which swarm.
    pub infohash: Infohash,
    /// The random name that the peer chose.
    pub peer_id: [u8; 20],
    /// Where it listens.
    pub port: u16,
    /// Bytes that it still lacks, if it reported them.
    pub left: Option<u64>,
    /// The event.
    pub event: Event,
    /// How many peers it wants.
    pub numwant: Option<usize>,
    /// Whether it accepts the compact form (BEP 23); most clients insist on it.
    pub compact: bool,
}

/// Why an announce is refused; the text is returned as `failure reason`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A required key is missing.
    #[error("the announce lacks {0}")]
    Missing(&'static str),
    /// A value is invalid.
    #[error("the announce has a bad {0}")]
    Bad(&'static str),
}

impl AnnounceQuery {
    /// Parses the raw query string: the part after `?` in the request line, percent-encoded as received.
    ///
    /// # Errors
    /// The first thing that is missing or malformed.
    pub fn parse(raw: &str) -> Result<AnnounceQuery, QueryError> {
        let (mut infohash, mut peer_id, mut port) = (None, None, None);
        let (mut left, mut event, mut numwant, mut compact) = (None, Event::None, None, true);
        for pair in raw.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "info_hash" => infohash = Some(twenty_bytes(value).ok_or(QueryError::Bad("info_hash"))?),
                "peer_id" => peer_id = Some(twenty_bytes(value).ok_or(QueryError::Bad("peer_id"))?),
                "port" => {
                    let number: u16 = value.parse().map_err(|_| QueryError::Bad("port"))?;
                    port = Some(number).filter(|&port| port != 0);
                }
                "left" => left = value.parse().ok(),
                "numwant" => numwant = value.parse().ok(),
                "compact" => compact = value != "0",
                "event" => {
                    event = match value {
                        "started" => Event::Started,
                        "completed" => Event::Completed,
                        "stopped" => Event::Stopped,
                        _ => Event::None,
                    }
                }
                _ => {}
            }
        }
        Ok(AnnounceQuery {
            infohash: Infohash(infohash.ok_or(QueryError::Missing("info_hash"))?),
            peer_id: peer_id.ok_or(QueryError::Missing("peer_id"))?,
            port: port.ok_or(QueryError::Missing("port"))?,
            left,
            event,
            numwant,
            compact,
        })
    }
}

/// Exactly 20 bytes from percent-encoded text.
fn twenty_bytes(text: &str) -> Option<[u8; 20]> {
    let mut out = [0; 20];
    let mut bytes = text.bytes();
    for slot in &mut out {
        *slot = match bytes.next()? {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' => b' ',
            byte => byte,
        };
    }
    bytes.next().is_none().then_some(out)
}

/// A reply that refuses an announce: a dictionary with `failure reason`.
pub fn failure(reason: &str) -> Vec<u8> {
    format!("d14:failure reason{}:{reason}e", reason.len()).into_bytes()
}

struct Entry {
    addr: SocketAddr,
    /// Stands for the card behind the address.
    owner: u64,
    peer_id: [u8; 20],
    complete: bool,
    first_seen: Instant,
    last_seen: Instant,
}

#[derive(Default)]
struct Members {
    /// The server's own seeders: they never expire, and every reply has them.
    seeders: Vec<SocketAddr>,
    peers: Vec<Entry>,
}

impl Members {
    /// Forgets a peer: of the card that has the most, the one that has been silent for longest.
    fn make_room(&mut self) {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        for peer in &self.peers {
            *counts.entry(peer.owner).or_default() += 1;
        }
        let key = |&index: &usize| {
            let peer = &self.peers[index];
            (Reverse(counts.get(&peer.owner).copied().unwrap_or(0)), peer.last_seen)
        };
        if let Some(index) = (0..self.peers.len()).min_by_key(key) {
            self.peers.swap_remove(index);
        }
    }
}

/// Which peers are in which swarm.
pub struct Tracker {
    swarms: HashMap<Infohash, Members>,
    rng: StdRng,
}

impl Default for Tracker {
    fn default() -> Tracker {
        Tracker::new()
    }
}

impl Tracker {
    /// A tracker that allows nothing yet.
    pub fn new() -> Tracker {
        Tracker::with_rng(StdRng::from_os_rng())
    }

    /// The same, with the caller's source of randomness for the choice of peers in replies.
    pub fn with_rng(rng: StdRng) -> Tracker {
        Tracker { swarms: HashMap::new(), rng }
    }

    /// Lets peers of this infohash meet; others are refused.
    pub fn allow(&mut self, infohash: Infohash) {
        self.swarms.entry(infohash).or_default();
    }

    /// Forgets an infohash, its peers and its seeders.
    pub fn disallow(&mut self, infohash: &Infohash) {
        self.swarms.remove(infohash);
    }

    /// Allows the infohash, and lists one of our seeders in each reply until [`Tracker::remove_seeder`].
    pub fn add_seeder(&mut self, infohash: Infohash, addr: SocketAddr) {
        let seeders = &mut self.swarms.entry(infohash).or_default().seeders;
        if !seeders.contains(&addr) {
            seeders.push(addr);
        }
    }

    /// No longer lists this seeder.
    pub fn remove_seeder(&mut self, infohash: &Infohash, addr: SocketAddr) {
        if let Some(members) = self.swarms.get_mut(infohash) {
            members.seeders.retain(|&known| known != addr);
        }
    }

    /// How many peers of this swarm announced lately (`leechers`, `seeders`), not counting our own seeders.
    pub fn counts(&self, infohash: &Infohash) -> (usize, usize) {
        let Some(members) = self.swarms.get(infohash) else { return (0, 0) };
        let complete = members.peers.iter().filter(|peer| peer.complete).count();
        (members.peers.len() - complete, complete)
    }

    /// Handles one announce that came from `from` at `now`, and returns the bencoded reply.
    pub fn announce(&mut self, query: &AnnounceQuery, from: IpAddr, now: Instant) -> Vec<u8> {
        let mut hash = DefaultHasher::new();
        from.to_canonical().hash(&mut hash);
        self.announce_of(query, from, hash.finish(), now)
    }

    /// The same, where `owner` stands for the card behind the address: a card can have many addresses, and has one share of
    /// the places and of the replies.
    pub fn announce_of(&mut self, query: &AnnounceQuery, from: IpAddr, owner: u64, now: Instant) -> Vec<u8> {
        let Some(members) = self.swarms.get_mut(&query.infohash) else {
            return failure("this tracker does not serve that torrent");
        };
        // A dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d, which no machine on the LAN can dial.
        let addr = SocketAddr::new(from.to_canonical(), query.port);
        members.peers.retain(|peer| now.saturating_duration_since(peer.last_seen) < EXPIRY);
        let known = members.peers.iter().position(|peer| peer.addr == addr);
        let mut interval = INTERVAL_YOUNG;
        match (query.event, known) {
            (Event::Stopped, Some(index)) => {
                members.peers.swap_remove(index);
            }
            (Event::Stopped, None) => {}
            (_, Some(index)) => {
                let peer = &mut members.peers[index];
                if peer.peer_id != query.peer_id {
                    // It is the same machine after a restart.
                    (peer.peer_id, peer.first_seen) = (query.peer_id, now);
                }
                peer.last_seen = now;
                peer.complete = query.left == Some(0);
                if now.saturating_duration_since(peer.first_seen) >= YOUNG {
                    interval = INTERVAL;
                }
            }
            (_, None) => {
                if members.peers.len() >= MAX_PEERS {
                    members.make_room();
                }
                members.peers.push(Entry {
                    addr,
                    owner,
                    peer_id: query.peer_id,
                    complete: query.left == Some(0),
                    first_seen: now,
                    last_seen: now,
                });
            }
        }
        let numwant = if query.event == Event::Stopped { 0 } else { query.numwant.unwrap_or(NUMWANT).min(MAX_NUMWANT) };
        let told = choose(members, addr, query.left == Some(0), numwant, &mut self.rng);
        let complete = members.peers.iter().filter(|peer| peer.complete).count();
        let incomplete = members.peers.len() - complete;
        reply(&told, query.compact, complete + members.seeders.len(), incomplete, interval)
    }
}

/// A random subset of at most `numwant` peers: our seeders first, never the peer that asks, and no seeders for seeders.
fn choose(
    members: &Members,
    asker: SocketAddr,
    asker_complete: bool,
    numwant: usize,
    rng: &mut StdRng,
) -> Vec<(SocketAddr, Option<[u8; 20]>)> {
    let own = members.seeders.iter().filter(|_| !asker_complete).map(|&addr| (addr, None));
    let mut told: Vec<_> = own.filter(|&(addr, _)| addr != asker).take(numwant).collect();
    let mut rest: Vec<_> = members
        .peers
        .iter()
        .filter(|peer| peer.addr != asker && !(asker_complete && peer.complete))
        .filter(|peer| !members.seeders.contains(&peer.addr))
        .collect();
    // One of each card, then another one, until there are enough: the peers of one card do not crowd out the others.
    let mut turns: HashMap<u64, usize> = HashMap::new();
    let mut in_turn = Vec::with_capacity(rest.len());
    while !rest.is_empty() {
        let peer = rest.swap_remove(rng.random_range(0..rest.len()));
        let turn = turns.entry(peer.owner).or_default();
        in_turn.push((*turn, peer));
        *turn += 1;
    }
    in_turn.sort_by_key(|(turn, _)| *turn);
    let room = numwant.saturating_sub(told.len());
    told.extend(in_turn.into_iter().take(room).map(|(_, peer)| (peer.addr, Some(peer.peer_id))));
    told
}

fn reply(
    told: &[(SocketAddr, Option<[u8; 20]>)],
    compact: bool,
    complete: usize,
    incomplete: usize,
    interval: u64,
) -> Vec<u8> {
    let mut out = format!("d8:completei{complete}e10:incompletei{incomplete}e8:intervali{interval}e").into_bytes();
    if interval == INTERVAL_YOUNG {
        // Without this, some clients never ask more often than once a minute.
        out.extend(format!("12:min intervali{interval}e").into_bytes());
    }
    let (mut four, mut six, mut dicts) = (Vec::new(), Vec::new(), Vec::new());
    for (addr, peer_id) in told {
        if !compact {
            let ip = addr.ip().to_string();
            dicts.extend(format!("d2:ip{}:{ip}", ip.len()).into_bytes());
            if let Some(peer_id) = peer_id {
                dicts.extend_from_slice(b"7:peer id20:");
                dicts.extend_from_slice(peer_id);
            }
            dicts.extend(format!("4:porti{}ee", addr.port()).into_bytes());
            continue;
        }
        match addr.ip() {
            IpAddr::V4(ip) => {
                four.extend_from_slice(&ip.octets());
                four.extend_from_slice(&addr.port().to_be_bytes());
            }
            IpAddr::V6(ip) => {
                six.extend_from_slice(&ip.octets());
                six.extend_from_slice(&addr.port().to_be_bytes());
            }
        }
    }
    if compact {
        out.extend(format!("5:peers{}:", four.len()).into_bytes());
        out.extend_from_slice(&four);
        if !six.is_empty() {
            out.extend(format!("6:peers6{}:", six.len()).into_bytes());
            out.extend_from_slice(&six);
        }
    } else {
        out.extend_from_slice(b"5:peersl");
        out.extend_from_slice(&dicts);
        out.push(b'e');
    }
    out.push(b'e');
    out
}

//! One machine: the real core, and the data that its driver keeps for each link.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use metainfo::PieceIndex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use swarm::bits::PieceSet;
use swarm::core::{Core, Setup};
use swarm::pace::MEMORY_BYTES;
use swarm::picker::{Ask, PeerKey};

use crate::room::{Room, index};

/// One machine's end of a link.
#[derive(Debug)]
pub struct Link {
    /// The peer's key in the core.
    pub key: PeerKey,
    /// Blocks on their way to the peer: the contents of TCP's buffers.
    pub in_flight: u32,
    pub last_progress: Duration,
    /// Blocks that were requested from the peer and not sent yet. No other blocks are accepted from it.
    pub asked: HashSet<Ask>,
}

pub struct Node {
    pub core: Core,
    pub is_alive: bool,
    pub finished_at: Option<Duration>,
    pub tenth_at: Duration,
    pub nine_tenths_at: Duration,
    pub block_time: Duration,
    pub uplink_is_busy: bool,
    /// When the downlink has delivered everything that is queued for it.
    pub downlink_free_at: Duration,
    pub blocks_sent: u64,
    pub blocks_wasted: u64,
    links: Vec<Option<Link>>,
    /// Machines by their keys in the core, which count from 1.
    machines: Vec<u32>,
    /// Connected machines, in the order in which they came.
    neighbours: Vec<u32>,
    /// Those of them that are being served; the first is next on the wire.
    on_wire: VecDeque<u32>,
}

impl Node {
    pub fn new(room: &Room, node: u32) -> Node {
        let is_seeder = node == 0;
        let geometry = room.picked();
        // Two thirds of the memory, as in the engine.
        let in_flight = u64::try_from(MEMORY_BYTES / 3 * 2).expect("fits");
        let rate = if room.slow.contains(&node) { room.rate / 10.0 } else { room.rate };
        let core = Core::new(Setup {
            geometry,
            block_bytes: room.block_bytes(),
            have: Some(if is_seeder { PieceSet::full(geometry) } else { PieceSet::new(geometry) }),
            budget: in_flight / u64::from(room.piece_len) * u64::from(geometry.piece_len()),
            upload_slots: room.slots,
            rng: StdRng::seed_from_u64(room.seed << 16 | u64::from(node)),
        });
        Node {
            core,
            is_alive: true,
            finished_at: is_seeder.then_some(Duration::ZERO),
            tenth_at: Duration::ZERO,
            nine_tenths_at: Duration::ZERO,
            block_time: Duration::from_secs_f64(f64::from(room.block_bytes()) / rate),
            uplink_is_busy: false,
            downlink_free_at: Duration::ZERO,
            blocks_sent: 0,
            blocks_wasted: 0,
            links: (0..=room.receivers).map(|_| None).collect(),
            machines: Vec::new(),
            neighbours: Vec::new(),
            on_wire: VecDeque::new(),
        }
    }

    pub fn link(&mut self, peer: u32) -> Option<&mut Link> {
        self.links[index(peer)].as_mut()
    }

    /// The core's key for a connected machine.
    pub fn key(&self, peer: u32) -> Option<PeerKey> {
        self.links[index(peer)].as_ref().map(|link| link.key)
    }

    /// The machine with this key in the core, connected or not.
    pub fn machine(&self, key: PeerKey) -> u32 {
        self.machines[index(key) - 1]
    }

    /// Machines linked to this one.
    pub fn neighbours(&self) -> Vec<u32> {
        self.neighbours.clone()
    }

    /// A link is up, and the peer allows requests; returns the pieces to announce to it.
    pub fn connect(&mut self, peer: u32, now: Duration) -> Vec<PieceIndex> {
        let (key, bitfield) = self.core.join(now);
        self.core.heard_unchoke(key, true);
        self.links[index(peer)] = Some(Link { key, in_flight: 0, last_progress: now, asked: HashSet::new() });
        self.machines.push(peer);
        self.neighbours.push(peer);
        bitfield.map_or(Vec::new(), |held| held.iter().collect())
    }

    /// The link is gone.
    pub fn disconnect(&mut self, peer: u32, now: Duration) {
        if let Some(link) = self.links[index(peer)].take() {
            self.neighbours.retain(|&other| other != peer);
            self.core.leave(link.key, now);
        }
    }

    /// The machine that gets the next block, of those whose turn it is and whose window has room. They alternate, like
    /// connections that share a link.
    pub fn next_on_wire(&mut self, window: u32) -> Option<u32> {
        let is_served = |peer: u32| self.key(peer).is_some_and(|key| self.core.next_upload(key).is_some());
        let mut on_wire = self.on_wire.clone();
        on_wire.retain(|&peer| is_served(peer));
        let newcomers = self.neighbours.iter().filter(|&&peer| is_served(peer) && !self.on_wire.contains(&peer));
        on_wire.extend(newcomers);
        self.on_wire = on_wire;
        let has_room = |peer: &u32| self.links[index(*peer)].as_ref().is_some_and(|link| link.in_flight < window);
        let at = self.on_wire.iter().position(has_room)?;
        let peer = self.on_wire.remove(at)?;
        self.on_wire.push_back(peer);
        Some(peer)
    }
}

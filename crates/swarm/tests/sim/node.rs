//! One machine: the real picker and the real seeder's plan, driven as the engine drives them.
//!
//! This mirrors the engine's `compose`, `blocks_arrived` and `piece_verified`, with messages as values instead of bytes.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use metainfo::PieceIndex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use swarm::bits::PieceSet;
use swarm::pace::{MEMORY_BYTES, OUTSTANDING_BYTES, OUTSTANDING_LEAST};
use swarm::picker::{Ask, Picker, Received};
use swarm::super_seeding::SuperSeeding;

use crate::room::{Room, index};
use crate::turns::Turns;

/// What one machine has to say to another, at once.
#[derive(Debug, Default)]
pub struct Said {
    pub haves: Vec<PieceIndex>,
    pub cancels: Vec<Ask>,
    pub asks: Vec<Ask>,
}

impl Said {
    pub fn is_empty(&self) -> bool {
        self.haves.is_empty() && self.cancels.is_empty() && self.asks.is_empty()
    }
}

/// One machine's end of a link.
#[derive(Debug, Default)]
pub struct Link {
    shows_little: bool,
    is_interested: bool,
    is_hungry: bool,
    cancels: Vec<Ask>,
    asked: HashSet<Ask>,
    /// What the peer asked for, in its order.
    pub uploads: VecDeque<Ask>,
    /// Blocks on their way to the peer: what TCP's buffers hold.
    pub in_flight: u32,
    pub last_progress: Duration,
}

pub struct Node {
    pub picker: Picker,
    pub plan: Option<SuperSeeding>,
    pub turns: Turns,
    pub neighbours: Vec<u32>,
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
    links: Vec<Option<Box<Link>>>,
    rng: StdRng,
    interested: u32,
    block_bytes: u32,
}

impl Node {
    pub fn new(room: &Room, node: u32) -> Node {
        let mut rng = StdRng::seed_from_u64(room.seed << 16 | u64::from(node));
        let is_seeder = node == 0;
        let have = if is_seeder { PieceSet::full(room.piece_count) } else { PieceSet::new(room.piece_count) };
        let geometry = room.picked();
        // Two thirds of the memory, as in the engine.
        let in_flight = u64::try_from(MEMORY_BYTES / 3 * 2).expect("fits");
        let budget = in_flight / u64::from(room.piece_len) * u64::from(geometry.piece_len());
        let rate = if room.slow.contains(&node) { room.rate / 10.0 } else { room.rate };
        Node {
            picker: Picker::new(geometry, &have, budget, &mut rng),
            plan: is_seeder.then(|| SuperSeeding::new(room.real(), &mut rng)),
            turns: Turns::new(room.slots, room),
            neighbours: Vec::new(),
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
            rng,
            interested: 0,
            block_bytes: room.block_bytes(),
        }
    }

    pub fn link(&mut self, peer: u32) -> Option<&mut Link> {
        self.links[index(peer)].as_deref_mut()
    }

    /// A link is up; the bitfield to send.
    pub fn connect(&mut self, peer: u32) -> Vec<PieceIndex> {
        self.picker.add_peer(peer);
        self.picker.set_can_ask(peer, true);
        let shows_little = self.plan.as_mut().is_some_and(|plan| !plan.is_over());
        if let Some(plan) = self.plan.as_mut().filter(|_| shows_little) {
            plan.join(peer);
        }
        self.links[index(peer)] = Some(Box::new(Link { shows_little, ..Link::default() }));
        self.neighbours.push(peer);
        if shows_little { Vec::new() } else { self.picker.have().iter().collect() }
    }

    /// The link is gone.
    pub fn disconnect(&mut self, peer: u32) {
        let Some(link) = self.links[index(peer)].take() else { return };
        self.neighbours.retain(|&neighbour| neighbour != peer);
        self.interested -= u32::from(link.is_interested);
        self.turns.forget(peer);
        self.picker.remove_peer(peer);
        if let Some(plan) = self.plan.as_mut() {
            plan.leave(peer);
        }
    }

    /// The peer has these pieces; whether all links must be woken.
    pub fn heard_haves(&mut self, peer: u32, pieces: &[PieceIndex]) -> bool {
        let mut made_room = false;
        for &piece in pieces {
            self.picker.peer_has(peer, piece);
            if let Some(plan) = self.plan.as_mut().filter(|plan| !plan.is_over()) {
                made_room |= plan.seen(piece);
            }
        }
        made_room
    }

    /// Whether composing for that peer could say anything.
    pub fn might_speak(&self, peer: u32) -> bool {
        let Some(link) = self.links[index(peer)].as_deref() else { return false };
        link.shows_little
            || !link.cancels.is_empty()
            || link.is_hungry
            || link.is_interested != self.picker.wants_from(peer)
    }

    /// Everything there is to say to the peer, other than the pieces that everybody is told of.
    pub fn compose(&mut self, peer: u32, now: Duration) -> Said {
        let mut said = Said::default();
        let asking = self.interested.max(1);
        let Some(link) = self.links[index(peer)].as_deref_mut() else { return said };
        if link.shows_little
            && let Some(plan) = self.plan.as_mut()
        {
            said.haves = plan.refill(peer, now, |piece| self.picker.availability(piece) > 0);
            if plan.is_over() {
                link.shows_little = false;
                let rest = self.picker.have().iter().filter(|&piece| !plan.was_shown(peer, piece));
                said.haves.extend(rest);
            }
        }
        let wants = self.picker.wants_from(peer);
        if wants != link.is_interested {
            link.is_interested = wants;
            self.interested = if wants { self.interested + 1 } else { self.interested - 1 };
        }
        for ask in link.cancels.drain(..) {
            if link.asked.remove(&ask) {
                said.cancels.push(ask);
            }
        }
        let share = (OUTSTANDING_BYTES / asking).max(OUTSTANDING_LEAST);
        let limit = index(share.div_ceil(self.block_bytes));
        said.asks = self.picker.request(peer, limit, now, &mut self.rng);
        link.asked.extend(&said.asks);
        link.is_hungry = wants && self.picker.outstanding(peer) < limit;
        said
    }

    /// A block is here; the piece, if that was its last one.
    pub fn block_arrived(&mut self, peer: u32, ask: Ask, now: Duration) -> Arrived {
        let is_asked = self.link(peer).is_some_and(|link| link.asked.remove(&ask));
        let received = if is_asked { self.picker.received(peer, ask, now) } else { Received::Useless };
        match received {
            Received::Useless => {
                self.blocks_wasted += 1;
                Arrived::default()
            }
            Received::Fresh { piece_complete, cancel } => {
                if let Some(other) = cancel {
                    self.cancel(other, ask);
                }
                Arrived { complete: piece_complete.then_some(ask.piece), cancel }
            }
        }
    }

    /// Looks at deadlines; whether every link must be woken.
    pub fn tick(&mut self, now: Duration) -> bool {
        for (peer, ask) in self.picker.tick(now).cancels {
            self.cancel(peer, ask);
        }
        self.plan.as_mut().is_some_and(|plan| plan.tick(now))
    }

    fn cancel(&mut self, peer: u32, ask: Ask) {
        if let Some(link) = self.link(peer) {
            link.cancels.push(ask);
        }
    }
}

/// What a block led to.
#[derive(Debug, Default)]
pub struct Arrived {
    pub complete: Option<PieceIndex>,
    /// Who has to be told that the block is no longer wanted.
    pub cancel: Option<u32>,
}

//! Time and links: a queue of events, and links that carry one block after the other.
//!
//! A block occupies its sender's uplink for its length ÷ rate; connections being served share the uplink block by
//! block. It passes the receiver's downlink in the same way and at the same time (cut-through), queueing there behind
//! blocks of other senders. At most [`WINDOW_BYTES`] of a connection are between the two: that is TCP's back pressure,
//! and the sender serves another peer meanwhile. Requests and HAVEs take the latency but no capacity.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use metainfo::{BLOCK_LEN, PieceIndex};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use swarm::bits::PieceSet;
use swarm::core::{Action, Said};
use swarm::pace::{SLOT_STALL, TICK, UNACKNOWLEDGED};
use swarm::picker::Ask;
use swarm::wire::Request;

use crate::node::Node;
use crate::room::{Death, Outcome, Room, index};

/// Bytes that a connection's buffers hold between the sender's decision and the receiver.
const WINDOW_BYTES: u32 = 256 << 10;
/// Time to hash and write a piece.
const HASHING: Duration = Duration::from_millis(1);
/// Links come up at a random time within this after both ends have started.
const DIALLING: Duration = Duration::from_millis(20);
/// No machine may take longer than this many times the ideal.
const PATIENCE: u32 = 30;

enum Event {
    Connect(u32, u32),
    Say { from: u32, to: u32, said: Said },
    Sent { from: u32, to: u32, ask: Ask },
    Arrived { from: u32, to: u32, ask: Ask },
    Verified { node: u32, piece: PieceIndex },
    Tick(u32),
    Dies(u32, Death),
    Gone { node: u32, peer: u32 },
}

struct Due {
    at: Duration,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Runs the room to its end: every machine has everything, or nothing more happens.
pub fn run(room: Room) -> Outcome {
    let mut world = World::new(room);
    let deadline = world.room.ideal() * PATIENCE;
    while !world.is_finished()
        && let Some(Reverse(due)) = world.queue.pop()
        && due.at < deadline
    {
        world.now = due.at;
        world.happen(due.event);
    }
    world.outcome()
}

struct World {
    room: Room,
    now: Duration,
    number: u64,
    queue: BinaryHeap<Reverse<Due>>,
    nodes: Vec<Node>,
    unfinished: usize,
    window: u32,
    /// Pieces that a receiver has.
    spread: PieceSet,
}

impl World {
    fn new(room: Room) -> World {
        let nodes: Vec<Node> = (0..=room.receivers).map(|node| Node::new(&room, node)).collect();
        let mut world = World {
            now: Duration::ZERO,
            number: 0,
            queue: BinaryHeap::new(),
            unfinished: nodes.len() - 1,
            nodes,
            window: (WINDOW_BYTES / room.block_bytes()).max(2),
            spread: PieceSet::new(room.picked()),
            room,
        };
        let mut rng = StdRng::seed_from_u64(world.room.seed);
        for (a, b) in mesh(&world.room, &mut rng) {
            let at = world.starts_at(a).max(world.starts_at(b)) + DIALLING.mul_f64(rng.random());
            world.at(at, Event::Connect(a, b));
        }
        for node in 0..=world.room.receivers {
            let at = world.starts_at(node) + TICK.mul_f64(rng.random());
            world.at(at, Event::Tick(node));
        }
        for (node, death) in world.room.deaths.clone() {
            let (Death::Killed(at) | Death::PowerCut(at)) = death;
            world.at(at, Event::Dies(node, death));
        }
        world
    }

    fn starts_at(&self, node: u32) -> Duration {
        self.room.late.iter().find(|&&(late, _)| late == node).map_or(Duration::ZERO, |&(_, at)| at)
    }

    fn is_finished(&self) -> bool {
        self.unfinished == 0
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Due { at, number: self.number, event }));
    }

    fn soon(&mut self, after: Duration, event: Event) {
        self.at(self.now + after, event);
    }

    fn is_alive(&self, node: u32) -> bool {
        self.nodes[index(node)].is_alive
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Connect(a, b) => self.connect(a, b),
            Event::Say { from, to, said } => self.hear(from, to, said),
            Event::Sent { from, to, ask } => self.sent(from, to, ask),
            Event::Arrived { from, to, ask } => self.arrived(from, to, ask),
            Event::Verified { node, piece } => self.verified(node, piece),
            Event::Tick(node) => self.tick(node),
            Event::Dies(node, death) => self.dies(node, death),
            Event::Gone { node, peer } if self.is_alive(node) => {
                self.nodes[index(node)].disconnect(peer, self.now);
                self.act(node);
            }
            Event::Gone { .. } => {}
        }
    }

    fn connect(&mut self, a: u32, b: u32) {
        if !self.is_alive(a) || !self.is_alive(b) {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let haves = self.nodes[index(from)].connect(to, self.now);
            if !haves.is_empty() {
                let said = Said { haves, ..Said::default() };
                self.soon(self.room.latency, Event::Say { from, to, said });
            }
            self.act(from);
            self.speak(from, to);
        }
    }

    fn hear(&mut self, from: u32, to: u32, said: Said) {
        let (now, geometry) = (self.now, self.room.picked());
        let node = &mut self.nodes[index(to)];
        let Some(key) = node.key(from).filter(|_| node.is_alive) else { return };
        if !said.haves.is_empty() {
            node.core.heard_haves(key, said.haves);
        }
        let request = |ask: Ask| Request::block(&geometry, ask.piece, ask.block);
        for ask in said.cancels {
            node.core.heard_cancel(key, &request(ask), now);
        }
        for ask in said.asks {
            assert!(node.core.heard_request(key, request(ask), now), "asked for what it does not have");
        }
        self.act(to);
        // Any message of a peer wakes its link.
        self.speak(to, from);
    }

    /// Carries out the actions of a machine's core, and keeps its uplink busy.
    fn act(&mut self, node: u32) {
        for action in self.nodes[index(node)].core.take_actions() {
            match action {
                Action::Wake(key) => self.speak(node, self.nodes[index(node)].machine(key)),
                Action::Verify(piece) => self.soon(HASHING, Event::Verified { node, piece }),
                Action::Complete => {
                    self.nodes[index(node)].finished_at = Some(self.now);
                    self.unfinished -= 1;
                }
                // Here, links between two machines that have everything cost nothing, and neither does memory.
                Action::Finish(_) | Action::Abandon(_) => {}
            }
        }
        self.pump(node);
    }

    /// Sends all messages for one peer.
    fn speak(&mut self, from: u32, to: u32) {
        let node = &mut self.nodes[index(from)];
        let Some(key) = node.key(to) else { return };
        let mut said = node.core.compose(key, self.now);
        let Some(link) = node.link(to) else { return };
        said.cancels.retain(|ask| link.asked.remove(ask));
        link.asked.extend(&said.asks);
        if !said.is_empty() {
            self.soon(self.room.latency, Event::Say { from, to, said });
        }
    }

    /// Puts the next block on the uplink.
    fn pump(&mut self, from: u32) {
        let (now, window) = (self.now, self.window);
        let node = &mut self.nodes[index(from)];
        if node.uplink_is_busy || !node.is_alive {
            return;
        }
        let Some(to) = node.next_on_wire(window) else { return };
        let Some(link) = node.link(to) else { return };
        link.in_flight += 1;
        link.last_progress = now;
        let key = link.key;
        let mut taken = 0;
        let one = |_: &Request| {
            taken += 1;
            taken == 1
        };
        let Some(request) = node.core.take_uploads(key, one).pop() else { return };
        node.uplink_is_busy = true;
        node.blocks_sent += 1;
        let after = node.block_time;
        let ask = Ask { piece: request.piece, block: request.begin / BLOCK_LEN };
        self.soon(after, Event::Sent { from, to, ask });
    }

    fn sent(&mut self, from: u32, to: u32, ask: Ask) {
        if !self.is_alive(from) {
            return;
        }
        let node = &mut self.nodes[index(from)];
        node.uplink_is_busy = false;
        if let Some(key) = node.key(to) {
            node.core.sent(key, ask.piece, BLOCK_LEN, self.now);
        }
        if self.is_alive(to) {
            let receiver = &mut self.nodes[index(to)];
            let arrives = self.now.saturating_sub(receiver.block_time);
            receiver.downlink_free_at = receiver.downlink_free_at.max(arrives) + receiver.block_time;
            let at = receiver.downlink_free_at + self.room.latency;
            self.at(at, Event::Arrived { from, to, ask });
        }
        // A peer that is being served gets the news between its blocks.
        self.speak(from, to);
        self.act(from);
    }

    fn arrived(&mut self, from: u32, to: u32, ask: Ask) {
        let now = self.now;
        let sender = &mut self.nodes[index(from)];
        if let Some(link) = sender.link(to) {
            link.in_flight = link.in_flight.saturating_sub(1);
            link.last_progress = now;
            let key = link.key;
            sender.core.caught_up(key, now);
            self.act(from);
        }
        let receiver = &mut self.nodes[index(to)];
        if !receiver.is_alive {
            return;
        }
        let Some(link) = receiver.link(from) else { return };
        let (key, was_asked) = (link.key, link.asked.remove(&ask));
        if !was_asked || !receiver.core.block_arrived(key, ask, now) {
            receiver.blocks_wasted += 1;
        }
        self.act(to);
        self.speak(to, from);
    }

    fn verified(&mut self, node: u32, piece: PieceIndex) {
        let machine = &mut self.nodes[index(node)];
        if !machine.is_alive {
            return;
        }
        machine.core.verified(piece);
        let count = machine.core.have().count();
        if count == self.room.piece_count.div_ceil(10) {
            machine.tenth_at = self.now;
        }
        if count == self.room.piece_count / 10 * 9 {
            machine.nine_tenths_at = self.now;
        }
        self.act(node);
        self.spread.insert(piece);
        if self.spread.is_full() && self.room.seeder_leaves_early {
            self.dies(0, Death::PowerCut(self.now));
        }
    }

    fn tick(&mut self, node: u32) {
        let (now, window) = (self.now, self.window);
        let machine = &mut self.nodes[index(node)];
        if !machine.is_alive {
            return;
        }
        machine.core.tick(now);
        for peer in machine.neighbours() {
            let Some(link) = machine.link(peer) else { continue };
            let is_stuck = link.in_flight >= window && now.saturating_sub(link.last_progress) >= SLOT_STALL;
            let key = link.key;
            if is_stuck && machine.core.next_upload(key).is_some() {
                machine.core.stalled(key, now);
            }
        }
        self.act(node);
        self.soon(TICK, Event::Tick(node));
    }

    fn dies(&mut self, node: u32, death: Death) {
        let machine = &mut self.nodes[index(node)];
        if !machine.is_alive {
            return;
        }
        machine.is_alive = false;
        if machine.finished_at.take().is_none() && node != 0 {
            self.unfinished -= 1;
        }
        let after = match death {
            Death::Killed(_) => self.room.latency,
            Death::PowerCut(_) => UNACKNOWLEDGED,
        };
        for peer in machine.neighbours() {
            self.soon(after, Event::Gone { node: peer, peer: node });
        }
    }

    fn outcome(self) -> Outcome {
        let finished_at: Vec<_> = self.nodes.iter().map(|node| node.finished_at).collect();
        let numbers = 0..=self.room.receivers;
        let took = numbers.map(|node| finished_at[index(node)].map(|at| at.saturating_sub(self.starts_at(node))));
        let needed = f64::from(self.room.piece_count) * f64::from(self.room.blocks);
        let wasted: u64 = self.nodes.iter().map(|node| node.blocks_wasted).sum();
        let passed = |of: fn(&Node) -> Duration| {
            let mut times: Vec<_> = self.nodes[1..].iter().map(of).collect();
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64() / self.room.ideal().as_secs_f64()
        };
        let count = |blocks: u64| f64::from(u32::try_from(blocks).expect("fits"));
        Outcome {
            took: took.collect(),
            finished_at,
            died: self.nodes.iter().map(|node| !node.is_alive).collect(),
            seeder_copies: count(self.nodes[0].blocks_sent) / needed,
            passed: (passed(|node| node.tenth_at), passed(|node| node.nine_tenths_at)),
            waste: count(wasted) / needed / f64::from(self.room.receivers),
            room: self.room,
        }
    }
}

/// The links: between all machines, or at random as far as every machine's limit allows. A machine dials until it has
/// two thirds of its links, and accepts others until it is full.
fn mesh(room: &Room, rng: &mut StdRng) -> Vec<(u32, u32)> {
    let mut pairs: Vec<(u32, u32)> =
        (0..=room.receivers).flat_map(|a| (0..=room.receivers).map(move |b| (a, b))).filter(|(a, b)| a != b).collect();
    pairs.shuffle(rng);
    let mut links: Vec<Vec<u32>> = vec![Vec::new(); index(room.receivers) + 1];
    let dialled = (room.max_links * 2).div_ceil(3);
    let mut edges = Vec::new();
    for (a, b) in pairs {
        let (from, to) = (links[index(a)].len(), links[index(b)].len());
        if from < dialled && to < room.max_links && !links[index(a)].contains(&b) {
            links[index(a)].push(b);
            links[index(b)].push(a);
            edges.push((a, b));
        }
    }
    edges
}

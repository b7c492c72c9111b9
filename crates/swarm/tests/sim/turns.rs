//! Who is served when, in the order of the engine's upload slots: a few at a time, first come, first served, in turns.

use std::collections::VecDeque;

use swarm::pace::TURN_BYTES;

use crate::room::Room;

/// One machine's places and who waits for one.
#[derive(Debug)]
pub struct Turns {
    free: usize,
    turn_blocks: u32,
    /// Peers being served, with the blocks left of their turn; the first one is next on the wire.
    held: VecDeque<(u32, u32)>,
    waiting: VecDeque<u32>,
}

impl Turns {
    pub fn new(slots: usize, room: &Room) -> Turns {
        let (least, most) = TURN_BYTES;
        let turn_blocks = room.piece_len.clamp(least, most).div_ceil(room.block_bytes());
        Turns { free: slots, turn_blocks, held: VecDeque::new(), waiting: VecDeque::new() }
    }

    /// The peer asked for something: it is served at once or waits.
    pub fn want(&mut self, peer: u32) {
        if !self.waiting.contains(&peer) && !self.is_held(peer) {
            self.waiting.push_back(peer);
            self.hand_out();
        }
    }

    /// The next peer on the wire among those being served that can take something; they take turns.
    pub fn next(&mut self, can_take: impl Fn(u32) -> bool) -> Option<u32> {
        let at = self.held.iter().position(|&(peer, _)| can_take(peer))?;
        let entry = self.held.remove(at).expect("just found");
        self.held.push_back(entry);
        Some(entry.0)
    }

    /// A block is being sent to the peer, which `has_more` to get or not.
    pub fn used(&mut self, peer: u32, has_more: bool) {
        let Some(entry) = self.held.iter_mut().find(|(held, _)| *held == peer) else { return };
        entry.1 -= 1;
        if entry.1 == 0 || !has_more {
            self.forget(peer);
            if has_more {
                self.want(peer);
            }
        }
    }

    /// The peer leaves its place, or the queue for it.
    pub fn forget(&mut self, peer: u32) {
        if self.is_held(peer) {
            self.held.retain(|&(held, _)| held != peer);
            self.free += 1;
        }
        self.waiting.retain(|&waiting| waiting != peer);
        self.hand_out();
    }

    pub fn held(&self) -> Vec<u32> {
        self.held.iter().map(|&(peer, _)| peer).collect()
    }

    fn is_held(&self, peer: u32) -> bool {
        self.held.iter().any(|&(held, _)| held == peer)
    }

    fn hand_out(&mut self) {
        while self.free > 0
            && let Some(peer) = self.waiting.pop_front()
        {
            self.free -= 1;
            self.held.push_back((peer, self.turn_blocks));
        }
    }
}

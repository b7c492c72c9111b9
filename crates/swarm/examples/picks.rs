//! Measures how fast the picker decides: 20,000 pieces of 4 MiB from 40 peers, each with a random half or everything.

use std::time::{Duration, Instant};

use metainfo::{Geometry, PieceIndex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use swarm::bits::PieceSet;
use swarm::picker::{Picker, Received};

const PIECES: u32 = 20_000;
const PEERS: u32 = 40;
const BUDGET: u64 = 64 << 20;
/// Blocks requested from a peer at a time.
const AHEAD: usize = 32;

fn main() {
    let geometry = Geometry::new(u64::from(PIECES) * (4 << 20), 4 << 20).expect("lengths of a good torrent");
    let mut rng = StdRng::seed_from_u64(1);
    let started = Instant::now();
    let mut picker = Picker::new(geometry, &PieceSet::new(geometry), BUDGET, &mut rng);
    for peer in 0..PEERS {
        picker.add_peer(peer);
        picker.set_can_ask(peer, true);
        for piece in geometry.pieces() {
            if peer == 0 || rng.random_bool(0.5) {
                picker.peer_has(peer, piece);
            }
        }
    }
    println!("{PEERS} bitfields of {PIECES} pieces taken in: {:.3} s", started.elapsed().as_secs_f64());

    let started = Instant::now();
    let mut blocks: u64 = 0;
    while picker.have().count() < PIECES {
        let mut full: Vec<PieceIndex> = Vec::new();
        for peer in 0..PEERS {
            for ask in picker.request(peer, AHEAD, Duration::ZERO, &mut rng) {
                blocks += 1;
                if let Received::Fresh { piece_complete: true, .. } = picker.received(peer, ask, Duration::ZERO) {
                    full.push(ask.piece);
                }
            }
        }
        full.into_iter().for_each(|piece| picker.verified(piece));
    }
    let seconds = started.elapsed().as_secs_f64();
    let per_block = started.elapsed() / u32::try_from(blocks).unwrap_or(u32::MAX);
    println!("{blocks} blocks asked for and taken in: {seconds:.3} s, {per_block:?} a block");
}

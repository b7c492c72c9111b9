//! Tests of the seeder's plan: every first copy leaves once, and no peer waits for one that does not fetch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metainfo::{Geometry, PieceIndex};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use swarm::super_seeding::SuperSeeding;

const NOW: Duration = Duration::ZERO;

fn geometry(pieces: u32) -> Geometry {
    Geometry::new(u64::from(pieces) << 20, 1 << 20).expect("sane")
}

#[test]
fn peers_are_shown_different_pieces() {
    let mut plan = SuperSeeding::new(geometry(100), &mut StdRng::seed_from_u64(1));
    let mut shown = BTreeSet::new();
    for peer in 0..4 {
        plan.join(peer);
        let news = plan.refill(peer, NOW, |_| false);
        assert_eq!(news.len(), 8);
        assert!(news.into_iter().all(|piece| shown.insert(piece)), "shown twice");
        assert!(plan.refill(peer, NOW, |_| false).is_empty(), "the window is full");
    }
    plan.leave(0);
    plan.join(9);
    assert_eq!(plan.refill(9, NOW, |_| false).iter().filter(|piece| !shown.insert(**piece)).count(), 8, "handed on");
}

#[test]
fn a_slow_peer_does_not_keep_the_others_waiting() {
    let mut plan = SuperSeeding::new(geometry(10), &mut StdRng::seed_from_u64(1));
    plan.join(1);
    let slow = plan.refill(1, NOW, |_| false);
    assert!(!plan.sent(1, slow[0], 5), "not all of it");
    plan.join(2);
    let mut sent = 0;
    let mut now = NOW;
    while !plan.is_over() {
        for piece in plan.refill(2, now, |_| false) {
            plan.sent(2, piece, 1 << 20);
            sent += 1;
        }
        now += Duration::from_millis(100);
        plan.tick(now);
        assert!(now < Duration::from_secs(5));
    }
    assert_eq!(sent, 9, "all but the piece the slow one is receiving");
}

#[test]
fn pieces_that_others_have_need_no_first_copy() {
    let mut plan = SuperSeeding::new(geometry(10), &mut StdRng::seed_from_u64(1));
    plan.join(1);
    assert!(plan.refill(1, NOW, |_| true).is_empty());
    assert!(plan.is_over());
}

proptest! {
    #[test]
    fn every_piece_leaves_exactly_once(pieces in 1u32..200, peers in 1u32..20, seed in any::<u64>()) {
        let mut plan = SuperSeeding::new(geometry(pieces), &mut StdRng::seed_from_u64(seed));
        let mut waiting: BTreeMap<u32, Vec<PieceIndex>> = BTreeMap::new();
        let mut copies: BTreeMap<PieceIndex, u32> = BTreeMap::new();
        (0..peers).for_each(|peer| plan.join(peer));
        for round in 0.. {
            prop_assert!(round < 10_000, "never over");
            if plan.is_over() {
                break;
            }
            for peer in 0..peers {
                let fetched = |piece| copies.contains_key(&piece);
                let news = plan.refill(peer, NOW, fetched);
                let queue = waiting.entry(peer).or_default();
                queue.extend(news);
                // A piece that another peer has received meanwhile is fetched from there.
                queue.retain(|piece| !copies.contains_key(piece));
                if let Some(piece) = queue.pop() {
                    *copies.entry(piece).or_default() += 1;
                    plan.sent(peer, piece, 1 << 20);
                }
            }
        }
        prop_assert_eq!(copies.len(), usize::try_from(pieces).unwrap());
        prop_assert!(copies.values().all(|&times| times == 1));
    }
}

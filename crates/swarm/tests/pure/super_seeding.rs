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
        plan.join(peer, u64::from(peer));
        let news = plan.refill(peer, NOW, |_| false);
        assert_eq!(news.len(), 2, "of nobody is much known yet");
        assert!(news.into_iter().all(|piece| shown.insert(piece)), "shown twice");
        assert!(plan.refill(peer, NOW, |_| false).is_empty(), "the window is full");
    }
    plan.leave(0);
    plan.join(9, 9);
    assert_eq!(plan.refill(9, NOW, |_| false).iter().filter(|piece| !shown.insert(**piece)).count(), 2, "handed on");
}

#[test]
fn a_window_grows_with_what_was_fetched() {
    let mut plan = SuperSeeding::new(geometry(100), &mut StdRng::seed_from_u64(1));
    plan.join(1, 1);
    let mut open = plan.refill(1, NOW, |_| false);
    let mut most = open.len();
    for _ in 0..30 {
        plan.sent(1, open.remove(0), 1 << 20);
        open.extend(plan.refill(1, NOW, |_| false));
        most = most.max(open.len());
    }
    assert_eq!((open.len(), most), (8, 8));
}

#[test]
fn the_links_of_one_owner_have_one_window() {
    let mut plan = SuperSeeding::new(geometry(100), &mut StdRng::seed_from_u64(1));
    (0..50).for_each(|link| plan.join(link, 7));
    plan.join(50, 50);
    plan.set_owner(50, 7);
    let shown: usize = (0..51).map(|link| plan.refill(link, NOW, |_| false).len()).sum();
    assert_eq!(shown, 2);
    // Another one gets all the rest, and is not kept waiting by them: nothing was fetched of what they were shown.
    plan.join(99, 99);
    let mut sent = BTreeSet::new();
    while sent.len() < 100 {
        let news = plan.refill(99, NOW, |_| false);
        assert!(!news.is_empty(), "after {}", sent.len());
        for piece in news {
            plan.sent(99, piece, 1 << 20);
            assert!(sent.insert(piece));
        }
    }
}

#[test]
fn a_slow_peer_does_not_keep_the_others_waiting() {
    let mut plan = SuperSeeding::new(geometry(10), &mut StdRng::seed_from_u64(1));
    plan.join(1, 1);
    let slow = plan.refill(1, NOW, |_| false);
    assert!(!plan.sent(1, slow[0], 5), "not all of it");
    plan.join(2, 2);
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
    plan.join(1, 1);
    assert!(plan.refill(1, NOW, |_| true).is_empty());
    assert!(plan.is_over());
}

proptest! {
    #[test]
    fn every_piece_leaves_exactly_once(pieces in 1u32..200, peers in 1u32..20, seed in any::<u64>()) {
        let mut plan = SuperSeeding::new(geometry(pieces), &mut StdRng::seed_from_u64(seed));
        let mut waiting: BTreeMap<u32, Vec<PieceIndex>> = BTreeMap::new();
        let mut copies: BTreeMap<PieceIndex, u32> = BTreeMap::new();
        (0..peers).for_each(|peer| plan.join(peer, u64::from(peer)));
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

//! Tests of the picker: its promises, one rule at a time, and a random swarm in which everything must arrive.

use std::collections::BTreeSet;
use std::time::Duration;

use metainfo::Geometry;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use swarm::bits::PieceSet;
use swarm::picker::{Ask, Picker, Received};

use crate::piece;

const NOW: Duration = Duration::ZERO;

struct Case {
    picker: Picker,
    rng: StdRng,
}

/// A torrent with pieces of four blocks, and room for `budget` of them.
fn case(pieces: u32, budget: u64) -> Case {
    let geometry = Geometry::new(u64::from(pieces) * 65536, 65536).expect("sane");
    let mut rng = StdRng::seed_from_u64(7);
    Case { picker: Picker::new(geometry, &PieceSet::new(geometry), budget * 65536, &mut rng), rng }
}

impl Case {
    fn peer(&mut self, peer: u32, has: impl IntoIterator<Item = u32>) {
        self.picker.add_peer(peer);
        self.picker.set_can_ask(peer, true);
        for index in has {
            self.picker.peer_has(peer, piece(index));
        }
    }

    fn ask(&mut self, peer: u32, limit: usize, now: Duration) -> Vec<Ask> {
        self.picker.request(peer, limit, now, &mut self.rng)
    }

    fn get(&mut self, peer: u32, asks: &[Ask]) {
        for &ask in asks {
            if let Received::Fresh { piece_complete: true, .. } = self.picker.received(peer, ask, NOW) {
                self.picker.verified(ask.piece);
            }
        }
    }
}

fn pieces(asks: &[Ask]) -> BTreeSet<u32> {
    asks.iter().map(|ask| ask.piece.get()).collect()
}

#[test]
fn what_a_peer_does_not_give_after_all_is_asked_of_others() {
    let mut case = case(3, 3);
    case.peer(1, 0..3);
    let asks = case.ask(1, 12, NOW);
    assert_eq!(pieces(&asks).len(), 3);
    case.get(1, &asks[..1]);
    let lost = asks[1].piece;
    assert!(case.picker.peer_lacks(1, lost), "nobody else has it");
    assert!(!case.picker.peer_lacks(1, lost));
    assert!(!case.picker.is_seeder(1) && case.picker.availability(lost) == 0);
    assert_eq!(case.picker.outstanding(1), asks.iter().skip(1).filter(|ask| ask.piece != lost).count());
    assert!(case.ask(1, 12, NOW).is_empty(), "nothing else is left to ask it for");
    case.peer(2, [lost.get()]);
    let again = case.ask(2, 12, NOW);
    assert_eq!(pieces(&again), BTreeSet::from([lost.get()]));
    case.get(2, &again);
    case.get(1, &asks.iter().copied().filter(|ask| ask.piece != lost).collect::<Vec<_>>());
    assert!(case.picker.have().is_full() && !case.picker.wants_from(1), "{:?}", case.picker.have());
}

#[test]
fn the_rarest_piece_comes_first() {
    let mut case = case(200, 200);
    case.peer(1, 0..200);
    case.peer(2, (0..200).filter(|&piece| piece != 123));
    case.peer(3, (0..200).filter(|&piece| piece != 123 && piece != 45));
    assert_eq!(pieces(&case.ask(1, 4, NOW)), [123].into());
    assert_eq!(pieces(&case.ask(2, 4, NOW)), [45].into());
}

#[test]
fn ties_are_random_and_each_block_is_asked_for_once() {
    let mut case = case(500, 500);
    case.peer(1, 0..500);
    case.peer(2, 0..500);
    let first = case.ask(1, 100, NOW);
    let second = case.ask(2, 100, NOW);
    assert_eq!((first.len(), second.len()), (100, 100));
    assert!(pieces(&first).is_disjoint(&pieces(&second)));
    assert!(!first.iter().map(|ask| ask.piece.get()).is_sorted());
}

#[test]
fn memory_bounds_what_is_started_and_large_pieces_are_shared() {
    let mut case = case(10, 2);
    case.peer(1, 0..10);
    case.peer(2, 0..10);
    case.peer(3, 0..10);
    let first = case.ask(1, 2, NOW);
    let second = case.ask(2, 2, NOW);
    let third = case.ask(3, 99, NOW);
    assert_eq!(pieces(&first).len() + pieces(&second).len(), 2);
    assert_eq!(third.len(), 4, "the rest of both");
    let mut started = pieces(&first);
    started.extend(pieces(&second));
    assert_eq!(pieces(&third), started);
    assert!(case.ask(1, 99, NOW).is_empty(), "no room for a third piece");
    case.get(1, &first);
    case.get(2, &second);
    case.get(3, &third);
    assert_eq!(case.picker.have().count(), 2);
    assert_eq!(case.ask(1, 99, NOW).len(), 8);
}

#[test]
fn what_a_lost_peer_was_asked_for_comes_first() {
    let mut case = case(10, 10);
    case.peer(1, 0..10);
    case.peer(2, 0..10);
    let lost = case.ask(1, 3, NOW);
    case.picker.remove_peer(1);
    assert_eq!(case.ask(2, 3, NOW), lost);
    assert_eq!(case.picker.availability(piece(0)), 1);
}

#[test]
fn a_choke_frees_what_was_asked_for() {
    let mut case = case(1, 1);
    case.peer(1, 0..1);
    assert_eq!(case.ask(1, 9, NOW).len(), 4);
    case.picker.set_can_ask(1, false);
    assert!(case.ask(1, 9, NOW).is_empty());
    case.picker.set_can_ask(1, true);
    let asks = case.ask(1, 9, NOW);
    assert_eq!(asks.len(), 1, "a first one, to see whether it answers now");
    case.get(1, &asks);
    assert_eq!(case.ask(1, 9, NOW).len(), 3);
}

#[test]
fn late_blocks_go_to_another_peer_with_a_cancel() {
    let mut case = case(1, 1);
    case.peer(1, 0..1);
    let asked = case.ask(1, 9, NOW);
    let late = Duration::from_secs(2);
    assert!(case.picker.tick(late).cancels.is_empty(), "nobody else has it");
    case.peer(2, 0..1);
    let cancels = case.picker.tick(late).cancels;
    assert_eq!(cancels, asked.iter().map(|&ask| (1, ask)).collect::<Vec<_>>());
    assert_eq!(case.ask(2, 9, late), asked);
    assert_eq!(case.picker.received(1, asked[0], late), Received::Fresh { piece_complete: false, cancel: Some(2) });
    assert_eq!(case.picker.received(2, asked[0], late), Received::Useless);
}

#[test]
fn who_was_late_is_tried_again() {
    let mut case = case(8, 8);
    case.peer(1, 0..8);
    case.peer(2, 0..8);
    let late = case.ask(1, 4, NOW);
    let [soon, later] = [3, 5].map(Duration::from_secs);
    assert_eq!(case.picker.tick(soon).cancels.len(), late.len());
    assert_eq!(pieces(&case.ask(2, 4, soon)), pieces(&late), "somebody else takes over");
    assert_eq!(case.ask(1, 4, soon), [], "no new piece for now");
    let probe = case.ask(1, 4, later);
    assert_eq!(probe.len(), 1, "one block, to see whether it answers");
    assert_eq!(case.ask(1, 4, later), [], "one at a time");
    case.get(1, &probe);
    assert_eq!(case.ask(1, 4, later).len(), 4, "it does");
}

/// Two peers never answer and make requests as fast as a peer that talks all the time; one peer answers.
#[test]
fn who_does_not_answer_gets_nothing_back_while_somebody_does() {
    const MUTES: [u32; 2] = [1, 2];
    const GOOD: u32 = 3;
    let mut case = case(2, 2);
    case.peer(GOOD, 0..2);
    let second = Duration::from_secs(1);
    // Its first piece arrives a second after the request, so that it is known to answer.
    let first = case.ask(GOOD, 4, NOW);
    for &ask in &first {
        if let Received::Fresh { piece_complete: true, .. } = case.picker.received(GOOD, ask, second) {
            case.picker.verified(ask.piece);
        }
    }
    MUTES.into_iter().for_each(|mute| case.peer(mute, 0..2));
    // The other piece was wrong with several givers, so one peer has it alone.
    let asks = case.ask(MUTES[0], 4, second);
    for (index, &ask) in asks.iter().enumerate() {
        case.picker.received(MUTES[index % 2], ask, second);
    }
    case.picker.failed(asks[0].piece, true);
    assert_eq!(case.ask(MUTES[0], 4, second).len(), 4);
    let mut now = second;
    for _ in 0..4 {
        now += 3 * second;
        case.picker.tick(now);
        for mute in MUTES {
            let held = case.ask(mute, 4, now);
            if !held.is_empty() {
                // This happens once for each, before it is known to be late.
                now += 3 * second;
                case.picker.tick(now);
            }
        }
    }
    assert!(MUTES.iter().all(|&mute| case.ask(mute, 4, now).is_empty()), "both were late");
    let asks = case.ask(GOOD, 4, now);
    assert_eq!(asks.len(), 4, "all of it from the one that answers");
    case.get(GOOD, &asks);
    assert!(case.picker.have().is_full());
}

#[test]
fn the_end_game_asks_twice_and_cancels_once() {
    let mut case = case(1, 1);
    case.peer(1, 0..1);
    case.peer(2, 0..1);
    let asked = case.ask(1, 9, NOW);
    assert!(case.ask(2, 9, NOW).is_empty(), "too young");
    let later = Duration::from_millis(300);
    assert_eq!(case.ask(2, 9, later), asked);
    assert_eq!(case.picker.received(2, asked[3], later), Received::Fresh { piece_complete: false, cancel: Some(1) });
    assert_eq!(case.picker.outstanding(1), 3);
    case.picker.remove_peer(1);
    assert_eq!(case.picker.outstanding(2), 3);
}

#[test]
fn after_a_wrong_hash_one_giver_alone_is_asked() {
    let mut case = case(1, 1);
    case.peer(1, 0..1);
    case.peer(2, 0..1);
    let (first, second) = (case.ask(1, 2, NOW), case.ask(2, 2, NOW));
    for (peer, asks) in [(1, &first), (2, &second)] {
        for &ask in asks {
            case.picker.received(peer, ask, NOW);
        }
    }
    case.picker.failed(piece(0), true);
    assert_eq!(case.ask(1, 2, NOW).len(), 2);
    assert!(case.ask(2, 9, NOW).is_empty(), "only one is asked");
    case.picker.remove_peer(1);
    assert_eq!(case.ask(2, 9, NOW).len(), 4);
}

/// One piece of 256 blocks that was wrong with several givers; two peers have it.
fn alone() -> Case {
    let geometry = Geometry::new(4 << 20, 4 << 20).expect("sane");
    let mut rng = StdRng::seed_from_u64(7);
    let mut case = Case { picker: Picker::new(geometry, &PieceSet::new(geometry), 4 << 20, &mut rng), rng };
    case.peer(1, [0]);
    case.peer(2, [0]);
    let halves = [1, 2].map(|peer| (peer, case.ask(peer, 128, NOW)));
    for (peer, asks) in halves {
        for ask in asks {
            case.picker.received(peer, ask, NOW);
        }
    }
    case.picker.failed(piece(0), true);
    case
}

/// Each of its answers comes in time, but the piece is never complete.
#[test]
fn who_drags_a_piece_out_loses_it_to_another() {
    let mut case = alone();
    let mut now = NOW;
    let mut asks = case.ask(1, 8, now);
    let mut answers = 0;
    loop {
        now += Duration::from_millis(1900);
        assert!(now <= Duration::from_secs(25), "still with the first");
        for ask in asks.drain(..) {
            answers += u32::from(case.picker.received(1, ask, now) != Received::Useless);
        }
        let overdue = case.picker.tick(now);
        if !overdue.abandoned.is_empty() {
            break;
        }
        asks = case.ask(1, 8, now);
        assert!(!asks.is_empty() && case.ask(2, 8, now).is_empty(), "one alone is asked");
    }
    assert!(now >= Duration::from_secs(20) && answers > 50, "{now:?} {answers}");
    let later = now + Duration::from_secs(10);
    assert_eq!(case.ask(1, 8, later), [], "not the same again");
    let asks = case.ask(2, 999, later);
    assert_eq!(asks.len(), 256, "all of it from the other");
    assert_eq!(case.ask(1, 8, later), []);
    case.get(2, &asks);
    assert!(case.picker.have().is_full());
}

/// Two honest peers need a minute for the piece.
#[test]
fn who_is_only_slow_gets_the_time_at_last() {
    let mut case = alone();
    let mut pending: Vec<(u32, Ask)> = Vec::new();
    let mut now = NOW;
    while !case.picker.have().is_full() {
        now += Duration::from_millis(240);
        assert!(now < Duration::from_secs(600));
        for (peer, ask) in case.picker.tick(now).cancels {
            pending.retain(|&other| other != (peer, ask));
        }
        for peer in [1, 2] {
            pending.extend(case.ask(peer, 4, now).into_iter().map(|ask| (peer, ask)));
        }
        if !pending.is_empty() {
            let (peer, ask) = pending.remove(0);
            if let Received::Fresh { piece_complete: true, .. } = case.picker.received(peer, ask, now) {
                case.picker.verified(ask.piece);
            }
        }
    }
}

#[test]
fn what_one_giver_left_unfinished_is_not_mixed_with_anothers() {
    let mut case = alone();
    let asks = case.ask(1, 8, NOW);
    for &ask in &asks[..4] {
        case.picker.received(1, ask, NOW);
    }
    case.picker.set_can_ask(1, false);
    case.picker.set_can_ask(1, true);
    assert_eq!(case.ask(2, 999, NOW), [], "not before what is there is thrown away");
    assert_eq!(case.picker.tick(NOW).abandoned, [piece(0)]);
    assert_eq!(case.ask(1, 999, NOW + Duration::from_secs(9)), [], "it had its try");
    assert_eq!(case.ask(2, 999, NOW).len(), 256);
}

#[test]
fn no_answer_is_waited_for_without_end() {
    let mut case = case(9, 9);
    case.peer(1, 0..9);
    let mut now = NOW;
    for _ in 0..9 {
        let asks = case.ask(1, 1, now);
        now += Duration::from_secs(1000);
        assert!(asks.len() == 1 && case.picker.tick(now).cancels.is_empty(), "nobody else has it");
        case.picker.received(1, asks[0], now);
    }
    let asks = case.ask(1, 4, now);
    case.peer(2, 0..9);
    assert!(case.picker.tick(now + Duration::from_secs(299)).cancels.is_empty(), "it is slow");
    assert_eq!(case.picker.tick(now + Duration::from_secs(300)).cancels.len(), asks.len());
}

#[test]
fn liars_do_not_hold_the_memory_for_ever() {
    let mut case = case(4, 1);
    case.peer(1, 0..1);
    assert_eq!(pieces(&case.ask(1, 9, NOW)), [0].into());
    case.peer(2, 1..4);
    assert!(case.ask(2, 9, NOW).is_empty(), "the liar's piece has the memory");
    let overdue = case.picker.tick(Duration::from_secs(5));
    assert_eq!(overdue.abandoned, [piece(0)]);
    assert_eq!(overdue.cancels.len(), 4);
    assert_eq!(case.ask(2, 4, Duration::from_secs(5)).len(), 4);
}

#[test]
fn what_is_held_is_not_asked_for() {
    let geometry = Geometry::new(10 * 65536, 65536).expect("sane");
    let mut have = PieceSet::full(geometry);
    have.remove(piece(4));
    let mut rng = StdRng::seed_from_u64(1);
    let mut case = Case { picker: Picker::new(geometry, &have, 1 << 20, &mut rng), rng };
    case.peer(1, [1, 2, 3]);
    assert!(!case.picker.wants_from(1) && case.ask(1, 9, NOW).is_empty());
    case.picker.peer_has(1, piece(4));
    assert!(case.picker.wants_from(1));
    let asks = case.ask(1, 9, NOW);
    assert_eq!(pieces(&asks), [4].into());
    case.get(1, &asks);
    assert!(case.picker.have().is_full() && !case.picker.wants_from(1));
}

#[test]
fn what_is_unknown_is_neither_asked_for_nor_given() {
    let geometry = Geometry::new(4 * 65536, 65536).expect("sane");
    let mut rng = StdRng::seed_from_u64(1);
    let mut case = Case { picker: Picker::of_unknown(geometry, 1 << 20, &mut rng), rng };
    case.peer(1, 0..4);
    assert!(case.ask(1, 99, NOW).is_empty() && case.picker.have().count() == 0);
    assert!(case.picker.found(piece(2)) && !case.picker.found(piece(2)) && !case.picker.lacks(piece(2)));
    assert!(case.picker.lacks(piece(1)) && !case.picker.found(piece(1)) && !case.picker.found(piece(9)));
    let asks = case.ask(1, 99, NOW);
    assert_eq!(pieces(&asks), [1].into());
    case.get(1, &asks);
    // A peer that comes later gets requests for the rest, once that is known to be missing.
    case.peer(2, 0..4);
    assert!(case.ask(2, 99, NOW).is_empty() && case.picker.wants_from(2));
    case.picker.lacks(piece(0));
    case.picker.found(piece(3));
    let asks = case.ask(2, 99, NOW);
    assert_eq!(pieces(&asks), [0].into());
    case.get(2, &asks);
    assert!(case.picker.have().is_full() && !case.picker.wants_from(1) && !case.picker.wants_from(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Peers come, go, stall, choke, lie and answer in any order; one honest peer stays. Everything arrives.
    #[test]
    fn everything_arrives(seed in any::<u64>(), pieces in 1u32..60, budget in 1u64..6) {
        let mut world = StdRng::seed_from_u64(seed);
        let mut case = case(pieces, budget);
        case.peer(0, 0..pieces);
        let mut pending: Vec<(u32, Ask)> = Vec::new();
        let mut now = NOW;
        let mut peers = vec![0];
        let mut next = 1;
        let mut steps = 0;
        while !case.picker.have().is_full() {
            steps += 1;
            prop_assert!(steps < 200_000, "stuck with {} pieces", case.picker.have().count());
            now += Duration::from_millis(world.random_range(0..100));
            match world.random_range(0..100) {
                0..=2 if peers.len() < 6 => {
                    let has: Vec<u32> = (0..pieces).filter(|_| world.random_bool(0.5)).collect();
                    case.peer(next, has);
                    peers.push(next);
                    next += 1;
                }
                3..=4 if peers.len() > 1 => {
                    let gone = peers.swap_remove(world.random_range(1..peers.len()));
                    peers.sort_unstable();
                    case.picker.remove_peer(gone);
                    pending.retain(|&(peer, _)| peer != gone);
                }
                5 => {
                    let peer = peers[world.random_range(0..peers.len())];
                    case.picker.set_can_ask(peer, false);
                    pending.retain(|&(asked, _)| asked != peer);
                    case.picker.set_can_ask(peer, true);
                }
                6..=15 => {
                    for (peer, ask) in case.picker.tick(now).cancels {
                        pending.retain(|&other| other != (peer, ask));
                    }
                }
                16..=50 => {
                    let peer = peers[world.random_range(0..peers.len())];
                    let asks = case.picker.request(peer, world.random_range(1..20), now, &mut world);
                    for ask in asks {
                        prop_assert!(!case.picker.have().contains(ask.piece));
                        prop_assert!(!pending.contains(&(peer, ask)), "asked twice of one peer");
                        pending.push((peer, ask));
                    }
                }
                _ if !pending.is_empty() => {
                    let index = world.random_range(0..pending.len());
                    // Every third peer is a liar and never answers.
                    if pending[index].0 % 3 == 1 {
                        continue;
                    }
                    let (peer, ask) = pending.swap_remove(index);
                    match case.picker.received(peer, ask, now) {
                        Received::Fresh { piece_complete, cancel } => {
                            if let Some(cancelled) = cancel {
                                pending.retain(|&other| other != (cancelled, ask));
                            }
                            if piece_complete && world.random_bool(0.1) {
                                case.picker.failed(ask.piece, world.random_bool(0.5));
                            } else if piece_complete {
                                case.picker.verified(ask.piece);
                            }
                        }
                        Received::Useless => {}
                    }
                }
                _ => {}
            }
        }
        prop_assert!(peers.iter().all(|&peer| !case.picker.wants_from(peer)));
    }
}

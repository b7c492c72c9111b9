//! Rooms of up to two hundred machines in a deterministic simulation: the same core that the engine drives, on
//! simulated links. Times are simulated; a run depends only on its seed.
//!
//! `cargo test -p swarm --test sim -- --nocapture` prints one line per run.

mod node;
mod room;
mod world;

use std::time::Duration;

use metainfo::usual_piece_len;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use room::{Death, Outcome, Room};

const SEEDS: [u64; 3] = [1, 2, 3];
/// Half as many pieces as `usual_piece_len` makes of an image of a gigabyte or more.
const PIECES: u32 = 2000;

fn simulate(room: Room) -> Outcome {
    let outcome = world::run(room);
    println!("{outcome}");
    assert!(outcome.all_complete(), "somebody was left waiting: {outcome}");
    outcome
}

/// One run per seed, of a room changed by `with`.
fn runs(receivers: u32, seeds: &[u64], with: impl Fn(&mut Room)) -> Vec<Outcome> {
    let run = |&seed: &u64| {
        let mut room = Room::new(receivers, PIECES, seed);
        with(&mut room);
        simulate(room)
    };
    seeds.iter().map(run).collect()
}

fn worst(outcomes: &[Outcome], of: impl Fn(&Outcome) -> f64) -> f64 {
    outcomes.iter().map(of).fold(0.0, f64::max)
}

/// An image of 256 MiB, as on the bench, on links of `rate` bytes per second.
fn small_image(room: &mut Room, rate: f64) {
    let len = 256 << 20;
    room.piece_len = usual_piece_len(len);
    room.piece_count = u32::try_from(len / u64::from(room.piece_len)).expect("a thousand");
    room.rate = rate;
}

/// Every tenth receiver dies, each at a different moment.
fn deaths(room: &Room, how: impl Fn(Duration) -> Death) -> Vec<(u32, Death)> {
    let mut rng = StdRng::seed_from_u64(room.seed);
    (1..=room.receivers.div_ceil(10)).map(|node| (node, how(room.ideal().mul_f64(rng.random())))).collect()
}

#[test]
fn one_or_two_receivers() {
    assert!(worst(&runs(1, &SEEDS, |_| {}), Outcome::ratio) <= 1.01);
    assert!(worst(&runs(2, &SEEDS, |_| {}), Outcome::ratio) <= 1.02);
}

fn assert_together_in_time(outcomes: &[Outcome]) {
    assert!(worst(outcomes, Outcome::ratio) <= 1.05);
    assert!(worst(outcomes, Outcome::last_over_median) <= 1.03);
}

#[test]
fn eight_receivers() {
    assert_together_in_time(&runs(8, &SEEDS, |_| {}));
}

#[test]
fn eight_receivers_of_a_small_image() {
    assert_together_in_time(&runs(8, &SEEDS, |room| small_image(room, 11.8e6)));
}

#[test]
fn sixteen_receivers() {
    assert_together_in_time(&runs(16, &SEEDS, |_| {}));
}

#[test]
fn sixteen_receivers_of_a_small_image() {
    assert_together_in_time(&runs(16, &SEEDS, |room| small_image(room, 5.9e6)));
}

#[test]
fn fifty_receivers() {
    assert_together_in_time(&runs(50, &SEEDS[..2], |_| {}));
}

#[test]
fn two_hundred_receivers() {
    assert_together_in_time(&runs(200, &SEEDS[..1], |_| {}));
}

/// One receiver in twenty has a tenth of the link.
#[test]
fn slow_receivers_hold_up_nobody_else() {
    let with = |room: &mut Room| room.slow = (1..=room.receivers.div_ceil(20)).collect();
    assert!(worst(&runs(20, &SEEDS, with), Outcome::ratio) <= 1.08);
    assert!(worst(&runs(60, &SEEDS[..1], with), Outcome::ratio) <= 1.08);
}

#[test]
fn who_comes_at_half_time_catches_up() {
    let outcomes = runs(16, &SEEDS, |room| room.late = vec![(1, room.ideal() / 2)]);
    assert!(worst(&outcomes, Outcome::late_ratio) <= 1.1);
    assert!(worst(&outcomes, Outcome::ratio) <= 1.05);
}

#[test]
fn receivers_that_are_killed_hold_up_nobody() {
    let outcomes = runs(20, &SEEDS, |room| room.deaths = deaths(room, Death::Killed));
    assert!(worst(&outcomes, Outcome::ratio) <= 1.08);
}

#[test]
fn receivers_whose_power_is_cut_hold_up_nobody() {
    let outcomes = runs(20, &SEEDS, |room| room.deaths = deaths(room, Death::PowerCut));
    assert!(worst(&outcomes, Outcome::ratio) <= 1.08);
}

/// Of eight receivers, one starts at half time, one has a tenth of the link, and one is killed at half time.
#[test]
fn the_healthy_five_of_eight_are_not_held_up() {
    let outcomes = runs(8, &SEEDS, |room| {
        small_image(room, 11.8e6);
        room.late = vec![(1, room.ideal() / 2)];
        room.slow = vec![2];
        room.deaths = vec![(3, Death::Killed(room.ideal() / 2))];
    });
    assert!(worst(&outcomes, Outcome::ratio) <= 1.08);
    assert!(worst(&outcomes, Outcome::late_ratio) <= 1.1);
}

/// Every receiver completes although the seeder's power is cut as soon as it has sent each piece once.
#[test]
fn a_seeder_that_gave_each_piece_once_is_not_needed() {
    runs(16, &SEEDS[..2], |room| room.seeder_leaves_early = true);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let [first, again] = [0; 2].map(|_| simulate(Room::new(16, 200, 7)));
    assert_eq!(first.finished_at, again.finished_at);
}

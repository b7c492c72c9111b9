//! All peers behave: every byte arrives, and the seeder sends few copies.

use std::sync::Arc;
use std::time::Instant;

use crate::common::{HttpTracker, Memory, complete, image, options, receiver, seeder, until};
use swarm::{Have, Options, Swarm};

#[tokio::test(flavor = "multi_thread")]
async fn one_receiver_gets_every_byte() {
    for (len, piece_len) in [(1, 16 << 10), (100_000, 16 << 10), (5_000_001, 256 << 10), (40_000_000, 16 << 20)] {
        let image = image(len, piece_len, None);
        let seeder = seeder(&image, options(Have::All)).await;
        let (swarm, store) =
            receiver(&image, Options { peers: vec![seeder.local_addr()], ..options(Have::None) }).await;
        complete(&swarm).await;
        assert!(store.is_right(), "{len} {piece_len}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_receivers_that_meet_at_the_tracker_take_less_than_two_copies() {
    let image = image(64 << 20, 256 << 10, None);
    let tracker = HttpTracker::start("127.0.0.1:0".parse().unwrap(), &image).await;
    let trackers = vec![tracker.url.clone()];
    let seeder = seeder(&image, Options { trackers: trackers.clone(), ..options(Have::All) }).await;
    let start = Instant::now();
    let mut receivers = Vec::new();
    for _ in 0..8 {
        receivers.push(receiver(&image, Options { trackers: trackers.clone(), ..options(Have::None) }).await);
    }
    for (swarm, store) in &receivers {
        complete(swarm).await;
        assert!(store.is_right());
    }
    let copies = seeder.stats().uploaded as f64 / image.content.len() as f64;
    let wasted: u64 = receivers.iter().map(|(swarm, _)| swarm.stats().wasted).sum();
    eprintln!("8 receivers: {copies:.2} copies from the seeder, {:?}, {wasted} bytes wasted", start.elapsed());
    assert!(copies < 2.0, "{copies}");
}

/// A store is still being checked: until a piece is known, it is neither requested nor given. Pieces that were there
/// are not fetched, but are given to others.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_is_not_fetched_and_given_at_once() {
    let image = image(8 << 20, 64 << 10, None);
    let pieces: Vec<_> = image.meta.geometry.pieces().collect();
    let (there, lacking) = pieces.split_at(100);
    let store = Memory::full(&image);
    let looking = Swarm::start(Arc::clone(&image.meta), store, options(Have::Unknown)).await.expect("a free port");
    looking.found(&there[..50]);
    let (other, other_store) =
        receiver(&image, Options { peers: vec![looking.local_addr()], ..options(Have::None) }).await;
    until("what was found first has been given", || other.stats().pieces_have == 50).await;
    looking.found(&there[50..]);
    until("what was found later has been given", || other.stats().pieces_have == 100).await;
    assert_eq!(looking.stats().bytes_have, 100 * 65536);
    looking.lacks(lacking);
    let seeder = seeder(&image, options(Have::All)).await;
    looking.add_peer(seeder.local_addr());
    complete(&looking).await;
    complete(&other).await;
    assert!(other_store.is_right());
    assert_eq!(looking.stats().downloaded, u64::try_from(lacking.len() * 65536).unwrap());
    // A late or repeated report changes nothing.
    looking.lacks(&pieces);
    assert_eq!(looking.stats().bytes_have, 8 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn speed_of_one_link() {
    let image = image(256 << 20, 1 << 20, None);
    let seeder = seeder(&image, options(Have::All)).await;
    let start = Instant::now();
    let (swarm, store) = receiver(&image, Options { peers: vec![seeder.local_addr()], ..options(Have::None) }).await;
    complete(&swarm).await;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("1 receiver: {:.0} MiB/s", 256.0 / seconds);
    assert!(store.is_right());
    assert_eq!(seeder.stats().uploaded, 256 << 20, "each byte once");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_dial_each_other_keep_one_link() {
    let image = image(1 << 20, 64 << 10, None);
    let (one, _) = receiver(&image, options(Have::None)).await;
    let (two, _) = receiver(&image, Options { peers: vec![one.local_addr()], ..options(Have::None) }).await;
    one.add_peer(two.local_addr());
    one.add_peer(one.local_addr());
    until("they are connected", || one.stats().peers == 1 && two.stats().peers == 1).await;
    let seeder = seeder(&image, Options { peers: vec![one.local_addr()], ..options(Have::All) }).await;
    complete(&one).await;
    complete(&two).await;
    assert!(one.stats().peers <= 2 && two.stats().peers <= 2);
    assert_eq!(seeder.stats().pieces_have, seeder.stats().piece_count);
}

/// Pieces of the largest length, in less memory than two of them need.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_pieces_fit_a_small_budget() {
    let image = image((128 << 20) + 5, 64 << 20, None);
    let tracker = HttpTracker::start("127.0.0.1:0".parse().unwrap(), &image).await;
    let trackers = vec![tracker.url.clone()];
    let small = |have| Options { trackers: trackers.clone(), memory_bytes: 80 << 20, ..options(have) };
    let _seeder = seeder(&image, small(Have::All)).await;
    let (one, one_store) = receiver(&image, small(Have::None)).await;
    let (two, two_store) = receiver(&image, small(Have::None)).await;
    for (swarm, store) in [(&one, &one_store), (&two, &two_store)] {
        complete(swarm).await;
        assert!(store.is_right());
    }
}

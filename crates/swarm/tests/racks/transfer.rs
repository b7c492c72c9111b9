//! Everybody behaves: every byte arrives, and the seeder sends few copies.

use std::time::Instant;

use crate::common::{HttpTracker, complete, image, options, receiver, seeder};
use swarm::{Have, Options};

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

//! One machine with many addresses and links beside honest ones, on a link that is too narrow for both.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use metainfo::{BLOCK_LEN, Metainfo};
use swarm::owners::Owners;
use swarm::wire::{HANDSHAKE_LEN, Handshake, Message, Request, decode, encode};
use swarm::{Have, Options, Swarm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::common::{Image, Memory, complete, image, receiver, until};
use crate::lan;

/// What the links of one machine do, all of them.
#[derive(Clone, Copy, Debug)]
enum Greed {
    /// Each asks for all of the image, and begins again at its end, with 16 requests under way.
    Again,
    /// The same, but no two of them ask for the same until the image has an end.
    Together,
    /// Asks for a block, and takes it, but for the next one after a long time.
    NowAndThen,
}

/// How many addresses a machine has, and how many links from each; they come back when they are put out.
#[derive(Clone, Copy, Debug)]
struct Crowd {
    addresses: u8,
    links: u8,
    greed: Greed,
}

impl Crowd {
    /// Starts the machine, which stays until the test ends.
    fn start(self, number: u8, meta: &Arc<Metainfo>, to: SocketAddr) {
        let addresses: Vec<_> = (1..=self.addresses).map(|host| Ipv4Addr::new(10, 9, number, host)).collect();
        let (meta, from) = (Arc::clone(meta), addresses.clone());
        let next = Arc::new(AtomicU32::new(0));
        let _ = lan::station(number, &addresses, move || {
            runtime().block_on(async move {
                for (index, &ip) in from.iter().enumerate() {
                    for link in 0..self.links {
                        let (meta, next) = (Arc::clone(&meta), Arc::clone(&next));
                        let mut peer_id = *b"-XX0000-crowd       ";
                        (peer_id[17], peer_id[18], peer_id[19]) = (number, index as u8, link);
                        tokio::spawn(async move {
                            loop {
                                let _ = self.ask(&meta, ip, to, peer_id, &next).await;
                                tokio::time::sleep(Duration::from_millis(200)).await;
                            }
                        });
                    }
                }
                std::future::pending::<()>().await
            })
        });
    }

    async fn ask(
        self,
        meta: &Metainfo,
        from: Ipv4Addr,
        to: SocketAddr,
        peer_id: [u8; 20],
        shared: &AtomicU32,
    ) -> std::io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let mut stream = socket.connect(to).await?;
        let hello = Handshake { reserved: [0; 8], infohash: meta.infohash, peer_id };
        stream.write_all(&hello.encode()).await?;
        stream.read_exact(&mut [0; HANDSHAKE_LEN]).await?;
        let geometry = meta.geometry;
        let blocks = geometry.piece_len() / BLOCK_LEN;
        let own = AtomicU32::new(0);
        let mut out = Vec::new();
        encode(&Message::Interested, &mut out);
        let request = |out: &mut Vec<u8>| {
            let next = if matches!(self.greed, Greed::Together) { shared } else { &own };
            let at = next.fetch_add(1, Ordering::Relaxed);
            let piece = geometry.piece(at / blocks % geometry.piece_count()).expect("one of them");
            encode(&Message::Request(Request::block(&geometry, piece, at % blocks)), out);
        };
        let open = if matches!(self.greed, Greed::NowAndThen) { 1 } else { 16 };
        (0..open).for_each(|_| request(&mut out));
        stream.write_all(&out).await?;
        let mut bytes = Vec::new();
        loop {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
            out.clear();
            while let Ok(Some((message, used))) = decode(&bytes, &geometry) {
                if matches!(message, Message::Piece { .. }) {
                    if matches!(self.greed, Greed::NowAndThen) {
                        tokio::time::sleep(Duration::from_secs(40)).await;
                    }
                    request(&mut out);
                }
                bytes.drain(..used);
            }
            stream.write_all(&out).await?;
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The seeder of a room, as the server starts it.
async fn seeder(image: &Image) -> Swarm {
    let options = Options {
        listen: (lan::SEEDER, 0).into(),
        have: Have::All,
        max_peers: 256,
        owners: Owners::by_card(),
        ..Options::default()
    };
    Swarm::start(Arc::clone(&image.meta), Memory::full(image), options).await.expect("starting the seeder")
}

/// Where an honest machine listens.
fn machine(number: u8) -> SocketAddr {
    (Ipv4Addr::new(10, 9, number, 1), 6881).into()
}

/// An honest machine, which stays until the test ends; how long it took to get all of the image.
async fn honest(number: u8, image: &Arc<Image>, peers: Vec<SocketAddr>) -> Duration {
    let image = Arc::clone(image);
    let (done, is_done) = tokio::sync::oneshot::channel();
    let job = move || {
        runtime().block_on(async move {
            let start = Instant::now();
            let options = Options { listen: machine(number), peers, owners: Owners::by_card(), ..Options::default() };
            let (swarm, store) = receiver(&image, options).await;
            complete(&swarm).await;
            assert!(store.is_right());
            let _ = done.send(start.elapsed());
            std::future::pending::<()>().await;
        });
    };
    // A station that panics drops its end, which fails the test here.
    let _ = lan::station(number, &[Ipv4Addr::new(10, 9, number, 1)], job);
    is_done.await.expect("it has not failed")
}

/// Honest machines that are switched on at once and exchange pieces; how long the last one took.
async fn room(numbers: Range<u8>, image: &Arc<Image>, seeder: SocketAddr) -> Duration {
    let mut machines = JoinSet::new();
    for number in numbers.clone() {
        let image = Arc::clone(image);
        let peers = numbers.clone().filter(|&other| other != number).map(machine).chain([seeder]).collect();
        machines.spawn(async move { honest(number, &image, peers).await });
    }
    machines.join_all().await.into_iter().max().expect("some machines")
}

/// How many times longer the last one of some honest machines takes beside a crowd than without it.
fn ratio(crowd: Crowd, machines: u8) -> f64 {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        lan::shape(100);
        // Large enough that no machine asks for a good part of it at once.
        let image = Arc::new(image(48 << 20, 256 << 10, None));
        let alone = seeder(&image).await;
        let took_alone = room(10..10 + machines, &image, alone.local_addr()).await;
        drop(alone);
        let seeder = seeder(&image).await;
        crowd.start(3, &image.meta, seeder.local_addr());
        let links = usize::from(crowd.addresses) * usize::from(crowd.links);
        until("the crowd is there", || seeder.stats().peers >= links).await;
        let enough = if matches!(crowd.greed, Greed::NowAndThen) { 0 } else { 4 << 20 };
        until("it has been given something", || seeder.stats().uploaded > enough).await;
        let took = room(100..100 + machines, &image, seeder.local_addr()).await;
        let ratio = took.as_secs_f64() / took_alone.as_secs_f64();
        println!("{crowd:?}, {machines} machines: without {took_alone:.1?}, beside them {took:.1?}, ratio {ratio:.2}");
        ratio
    })
}

#[test]
fn a_card_with_a_hundred_links_takes_little_from_another() {
    lan::in_namespace("crowds::a_card_with_a_hundred_links_takes_little_from_another", || {
        assert!(ratio(Crowd { addresses: 1, links: 100, greed: Greed::Again }, 1) < 2.0);
    });
}

#[test]
fn a_card_with_many_addresses_takes_little_from_another() {
    lan::in_namespace("crowds::a_card_with_many_addresses_takes_little_from_another", || {
        assert!(ratio(Crowd { addresses: 5, links: 20, greed: Greed::Together }, 1) < 2.0);
    });
}

/// What one card can take from a room is the share of one more machine.
#[test]
fn a_card_with_a_hundred_links_takes_next_to_nothing_from_a_room() {
    lan::in_namespace("crowds::a_card_with_a_hundred_links_takes_next_to_nothing_from_a_room", || {
        assert!(ratio(Crowd { addresses: 1, links: 100, greed: Greed::Again }, 8) < 1.6);
    });
}

/// What is shown to a machine that fetches nothing is kept from the others.
#[test]
fn a_card_that_takes_little_keeps_little_from_a_room() {
    lan::in_namespace("crowds::a_card_that_takes_little_keeps_little_from_a_room", || {
        assert!(ratio(Crowd { addresses: 5, links: 20, greed: Greed::NowAndThen }, 8) < 1.6);
    });
}

/// The first room has left when the second one is switched on.
#[test]
fn a_second_room_is_filled_as_the_first_one_was() {
    lan::in_namespace("crowds::a_second_room_is_filled_as_the_first_one_was", || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            lan::shape(100);
            let image = Arc::new(image(48 << 20, 256 << 10, None));
            let seeder = seeder(&image).await;
            for base in [20, 30] {
                let before = seeder.stats().uploaded;
                let took = room(base..base + 8, &image, seeder.local_addr()).await;
                let copies = (seeder.stats().uploaded - before) as f64 / image.content.len() as f64;
                println!("machines from {base} on: {took:.1?}, copies sent: {copies:.2}");
                assert!(copies < 1.25, "the machines ask the seeder for the same pieces");
                (base..base + 8).for_each(lan::unplug);
                until("they are gone", || seeder.stats().peers == 0).await;
            }
        });
    });
}

/// Five machines take all of the places, each of them with several addresses.
#[test]
fn newcomers_get_in_although_others_have_all_the_places() {
    lan::in_namespace("crowds::newcomers_get_in_although_others_have_all_the_places", || {
        let runtime = runtime();
        runtime.block_on(async {
            let image = Arc::new(image(4 << 20, 256 << 10, None));
            let seeder = seeder(&image).await;
            for number in 10..15 {
                let crowd = Crowd { addresses: 5, links: 12, greed: Greed::NowAndThen };
                crowd.start(number, &image.meta, seeder.local_addr());
            }
            until("all places are taken", || seeder.stats().peers == 256).await;
            for number in 20..25 {
                let took = honest(number, &image, vec![seeder.local_addr()]).await;
                println!("newcomer {number}: {took:.1?}");
                assert!(took < Duration::from_secs(10), "{took:?}");
            }
        });
    });
}

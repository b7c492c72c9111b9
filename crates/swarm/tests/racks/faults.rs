//! A peer misbehaves, dies or has a broken disk: the others finish, and nothing unverified is written.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metainfo::Metainfo;
use swarm::bits::PieceSet;
use swarm::wire::{HANDSHAKE_LEN, Handshake, Message, Request, decode, encode};
use swarm::{Have, Options, Swarm, SwarmError, TurnedAway};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::common::{HttpTracker, Memory, complete, image, options, pieces, receiver, seeder, until};

/// How a peer is broken. All but the first few claim to have everything, and allow requests.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Sends noise after the handshake.
    Noise,
    /// Announces the length of a message as 4 GiB.
    HugeMessage,
    /// Mentions a piece that the torrent lacks.
    NoSuchPiece,
    /// Connects and sends nothing, not even a handshake.
    Mute,
    /// Accepts requests but answers none.
    Stalls,
    /// Answers with wrong bytes.
    Lies,
    /// Chokes at the first request, and then allows requests again.
    Flickers,
    /// Hangs up at the first request.
    HangsUp,
    /// Requests everything, again and again, and reads nothing.
    Floods,
    /// Sends blocks without a request.
    Pushes,
}

const FAULTS: [Fault; 10] = [
    Fault::Noise,
    Fault::HugeMessage,
    Fault::NoSuchPiece,
    Fault::Mute,
    Fault::Stalls,
    Fault::Lies,
    Fault::Flickers,
    Fault::HangsUp,
    Fault::Floods,
    Fault::Pushes,
];

/// Dials `addr` again and again, always under the same name.
fn hostile(fault: Fault, meta: &Arc<Metainfo>, addr: SocketAddr) -> JoinHandle<()> {
    let meta = Arc::clone(meta);
    tokio::spawn(async move {
        loop {
            if let Ok(stream) = TcpStream::connect(addr).await {
                let _ = misbehave(fault, &meta, stream).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

async fn misbehave(fault: Fault, meta: &Metainfo, mut stream: TcpStream) -> std::io::Result<()> {
    let mut peer_id = *b"-XX0000-bad peer   \0";
    peer_id[19] = fault as u8;
    if !matches!(fault, Fault::Mute) {
        let hello = Handshake { reserved: [0xff; 8], infohash: meta.infohash, peer_id };
        stream.write_all(&hello.encode()).await?;
    }
    stream.read_exact(&mut [0; HANDSHAKE_LEN]).await?;
    let geometry = meta.geometry;
    let mut out = Vec::new();
    match fault {
        Fault::Noise => out.extend((0..=255u8).cycle().skip(77).take(5000)),
        Fault::HugeMessage => out.extend([0xff; 5]),
        Fault::NoSuchPiece => {
            let count = geometry.piece_count();
            encode(&Message::Have(pieces(count + 1).piece(count).expect("the last")), &mut out);
        }
        _ => {
            encode(&Message::Bitfield(PieceSet::full(geometry)), &mut out);
            encode(&Message::Unchoke, &mut out);
            encode(&Message::Interested, &mut out);
        }
    }
    stream.write_all(&out).await?;
    if matches!(fault, Fault::Floods | Fault::Pushes) {
        loop {
            out.clear();
            for piece in geometry.pieces() {
                let message = match fault {
                    Fault::Floods => Message::Request(Request::block(&geometry, piece, 0)),
                    _ => Message::Piece { piece, begin: 0, data: &[66; 100] },
                };
                encode(&message, &mut out);
            }
            stream.write_all(&out).await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        while let Ok(Some((message, used))) = decode(&bytes, &geometry) {
            let request = if let Message::Request(request) = message { Some(request) } else { None };
            bytes.drain(..used);
            let Some(Request { piece, begin, len }) = request else { continue };
            let mut out = Vec::new();
            match fault {
                Fault::HangsUp => return Ok(()),
                Fault::Flickers => {
                    encode(&Message::Choke, &mut out);
                    encode(&Message::Unchoke, &mut out);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Fault::Lies => encode(&Message::Piece { piece, begin, data: &vec![66; len as usize] }, &mut out),
                _ => {}
            }
            stream.write_all(&out).await?;
        }
    }
}

/// Three receivers and a slow seeder, so that every peer gets to act.
async fn with_faults(faults: &[Fault], piece_len: u32) {
    let image = image(6 << 20, piece_len, None);
    let slow = Options { up_bytes_per_s: Some(6 << 20), ..options(Have::All) };
    let seeder = seeder(&image, slow).await;
    let mut receivers: Vec<(Swarm, Arc<Memory>)> = Vec::new();
    let mut hostiles = Vec::new();
    let mut peers = vec![seeder.local_addr()];
    for _ in 0..3 {
        let options = Options { peers: peers.clone(), ..options(Have::None) };
        let (swarm, store) = receiver(&image, options).await;
        peers.push(swarm.local_addr());
        receivers.push((swarm, store));
    }
    for &fault in faults {
        hostiles.extend(peers.iter().map(|&addr| hostile(fault, &image.meta, addr)));
    }
    for (swarm, store) in &receivers {
        complete(swarm).await;
        assert!(store.is_right(), "{faults:?}");
    }
    hostiles.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_broken_peer_is_survived() {
    for fault in FAULTS {
        with_faults(&[fault], 64 << 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_kinds_together_are_survived() {
    with_faults(&FAULTS, 64 << 10).await;
    with_faults(&FAULTS, 1 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_counted_dropped_and_banned() {
    let image = image(1 << 20, 64 << 10, None);
    let (swarm, store) = receiver(&image, options(Have::None)).await;
    let liar = hostile(Fault::Lies, &image.meta, swarm.local_addr());
    until("two pieces were wrong", || swarm.stats().bad_pieces >= 2).await;
    until("the liar is out", || swarm.stats().peers == 0).await;
    liar.abort();
    assert_eq!(store.bad_writes.load(Ordering::SeqCst), 0);
    assert_eq!(swarm.stats().pieces_have, 0);
    assert!(swarm.stats().wasted >= 2 * 65536);
    let seeder = seeder(&image, options(Have::All)).await;
    swarm.add_peer(seeder.local_addr());
    complete(&swarm).await;
    assert!(store.is_right());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_torrents_peer_is_turned_away() {
    let (image, other) = (image(1 << 20, 64 << 10, None), image(2 << 20, 64 << 10, None));
    let seeder = seeder(&image, options(Have::All)).await;
    let mut stream = TcpStream::connect(seeder.local_addr()).await.expect("connecting");
    let hello = Handshake { reserved: [0; 8], infohash: other.meta.infohash, peer_id: [1; 20] };
    stream.write_all(&hello.encode()).await.expect("writing");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    assert_eq!(seeder.stats().peers, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_dies_stops_nobody_and_a_late_one_gets_all() {
    let image = image(16 << 20, 256 << 10, None);
    let tracker = HttpTracker::start("127.0.0.1:0".parse().unwrap(), &image).await;
    let trackers = vec![tracker.url.clone()];
    let slow = Options { trackers: trackers.clone(), up_bytes_per_s: Some(8 << 20), ..options(Have::All) };
    let _seeder = seeder(&image, slow).await;
    let fresh = || Options { trackers: trackers.clone(), ..options(Have::None) };
    let (dying, _) = receiver(&image, fresh()).await;
    let (one, one_store) = receiver(&image, fresh()).await;
    let (two, two_store) = receiver(&image, fresh()).await;
    until("the first has a few pieces", || dying.stats().pieces_have >= 10).await;
    drop(dying);
    let (late, late_store) = receiver(&image, fresh()).await;
    for (swarm, store) in [(&one, &one_store), (&two, &two_store), (&late, &late_store)] {
        complete(swarm).await;
        assert!(store.is_right());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_error_ends_that_swarm_and_no_other() {
    let image = image(8 << 20, 256 << 10, None);
    let seeder = seeder(&image, options(Have::All)).await;
    let fresh = || Options { peers: vec![seeder.local_addr()], ..options(Have::None) };
    let (broken, broken_store) = receiver(&image, fresh()).await;
    broken_store.fails_after.store(5, Ordering::SeqCst);
    let (sound, sound_store) = receiver(&image, fresh()).await;
    let result = tokio::time::timeout(crate::common::PATIENCE, broken.completed()).await.expect("in time");
    let error = result.expect_err("the disk is broken");
    assert!(matches!(&error, SwarmError::Write { source, .. } if source.to_string().contains("test's disk")));
    assert!(error.to_string().contains("the disk or its cable"));
    until("its links are closed", || broken.stats().peers == 0).await;
    complete(&sound).await;
    assert!(sound_store.is_right());
    assert!(broken.stats().pieces_have < broken.stats().piece_count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_that_cannot_read_is_gone_round() {
    let image = image(4 << 20, 256 << 10, None);
    let store = Memory::full(&image);
    store.reads_fail.store(true, Ordering::SeqCst);
    let broken = Swarm::start(Arc::clone(&image.meta), store, options(Have::All)).await.expect("starting");
    let sound = seeder(&image, options(Have::All)).await;
    let peers = vec![broken.local_addr(), sound.local_addr()];
    let (swarm, store) = receiver(&image, Options { peers, ..options(Have::None) }).await;
    complete(&swarm).await;
    assert!(store.is_right());
}

/// Of 64 pieces one is wrong, and from the fortieth on the file is gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_seeder_cannot_give_keeps_nobody_from_the_rest() {
    let image = image(4 << 20, 64 << 10, None);
    let store = Memory::full(&image);
    store.damage(image.meta.geometry.piece(7).expect("one of 64"));
    store.cut_at.store(40, Ordering::SeqCst);
    let broken = Swarm::start(Arc::clone(&image.meta), store, options(Have::All)).await.expect("starting");
    let peers = vec![broken.local_addr()];
    let small = || Options { memory_bytes: 256 << 10, ..options(Have::None) };
    let (first, first_store) = receiver(&image, Options { peers: peers.clone(), ..small() }).await;
    until("it has what there is", || first.stats().pieces_have == 39).await;
    until("the seeder knows what it lacks", || broken.stats().pieces_withheld == 25).await;
    until("the receiver knows it too", || first.stats().pieces_nowhere == 25).await;
    let why = broken.stats().withheld_why.expect("there is a first one");
    assert!(why.starts_with("piece ") && (why.contains("hash is wrong") || why.contains("cannot be read")), "{why}");
    let stats = first.stats();
    assert_eq!((stats.peers, stats.bad_pieces, stats.wasted), (1, 0, 0), "the link is up, and nothing wrong came");

    // A newcomer is not shown what cannot be had, and gets the rest of whoever has it.
    let (second, second_store) = receiver(&image, Options { peers, ..small() }).await;
    until("it has what there is", || second.stats().pieces_have == 39).await;
    let sound = seeder(&image, options(Have::All)).await;
    for (swarm, store) in [(&first, &first_store), (&second, &second_store)] {
        swarm.add_peer(sound.local_addr());
        complete(swarm).await;
        assert!(store.is_right());
        assert_eq!(swarm.stats().bad_pieces, 0);
    }
}

/// A client that knows nothing of rejections waits for that piece, and gets the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_what_cannot_be_read_costs_nobody_the_link() {
    let image = image(1 << 20, 64 << 10, None);
    let geometry = image.meta.geometry;
    let store = Memory::full(&image);
    store.cut_at.store(15, Ordering::SeqCst);
    let broken = Swarm::start(Arc::clone(&image.meta), store, options(Have::All)).await.expect("starting");
    for (kind, is_told) in [(*b"-XX0000-somebody   1", false), (*b"-EZ0100-somebody   1", true)] {
        let mut stream = TcpStream::connect(broken.local_addr()).await.expect("connecting");
        let hello = Handshake { reserved: [0; 8], infohash: image.meta.infohash, peer_id: kind };
        stream.write_all(&hello.encode()).await.expect("writing");
        stream.read_exact(&mut [0; HANDSHAKE_LEN]).await.expect("its handshake");
        let mut out = Vec::new();
        encode(&Message::Interested, &mut out);
        let [bad, good] = [15, 3].map(|index| geometry.piece(index).expect("one of 16"));
        for piece in [bad, bad, good] {
            encode(&Message::Request(Request::block(&geometry, piece, 0)), &mut out);
            encode(&Message::Request(Request::block(&geometry, piece, 1)), &mut out);
        }
        stream.write_all(&out).await.expect("writing");
        let (mut bytes, mut rejected, mut blocks) = (Vec::new(), Vec::new(), 0);
        while blocks < 2 {
            assert!(stream.read_buf(&mut bytes).await.expect("the link is up") > 0, "the link is up");
            while let Some((message, used)) = decode(&bytes, &geometry).expect("sane") {
                match message {
                    Message::Reject(request) => rejected.push(request.piece),
                    Message::Piece { piece, .. } => {
                        assert_eq!(piece, good);
                        blocks += 1;
                    }
                    Message::Bitfield(set) => assert!(!set.contains(bad)),
                    _ => {}
                }
                bytes.drain(..used);
            }
        }
        assert_eq!(rejected, if is_told { vec![bad] } else { vec![] });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_comes_late_is_found_and_told_everything() {
    let image = image(2 << 20, 64 << 10, None);
    // No other program gets the port, and connections are refused until it listens.
    let reserved = TcpSocket::new_v4().expect("a socket");
    reserved.bind("127.0.0.1:0".parse().unwrap()).expect("binding");
    let addr = reserved.local_addr().expect("an address");
    let trackers = vec![format!("http://{addr}/announce")];
    let seeder = seeder(&image, Options { trackers: trackers.clone(), ..options(Have::All) }).await;
    let (swarm, store) = receiver(&image, Options { trackers, ..options(Have::None) }).await;
    until("both have noticed", || [&seeder, &swarm].iter().all(|s| s.stats().tracker_error.is_some())).await;
    let tracker = HttpTracker::on(reserved.listen(64).expect("listening"), &image);
    complete(&swarm).await;
    assert!(store.is_right());
    assert_eq!(swarm.stats().tracker_error, None);
    let port = swarm.local_addr().port();
    let told = |event| {
        let announces = tracker.announces.lock().unwrap();
        announces.iter().any(|query| query.port == port && query.event == event)
    };
    until("the tracker knows it is complete", || told(swarm::tracker::Event::Completed)).await;
    swarm.shutdown().await;
    until("the tracker knows that it has stopped", || told(swarm::tracker::Event::Stopped)).await;
    assert!(told(swarm::tracker::Event::Started));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_served_and_not_fetched_again() {
    let image = image(4 << 20, 64 << 10, None);
    let seeder = seeder(&image, options(Have::All)).await;
    let held: Vec<bool> = (0..image.meta.geometry.piece_count()).map(|piece| piece % 2 == 0).collect();
    let store = Memory::full(&image);
    let resumed = Options { have: Have::These(held), ..options(Have::None) };
    let swarm = Swarm::start(Arc::clone(&image.meta), Arc::<Memory>::clone(&store), resumed).await.expect("starting");
    let [first, second] = [0, 1].map(|index| image.meta.geometry.piece(index).expect("one of 64"));
    assert!(swarm.has(first) && !swarm.has(second));
    swarm.add_peer(seeder.local_addr());
    complete(&swarm).await;
    assert!(swarm.has(second) && store.is_right());
    assert_eq!(swarm.stats().downloaded, 2 << 20);
}

/// A full peer accepts a connection and closes it; so does one that has another torrent.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_turned_away_knows_it() {
    let image = image(1 << 20, 64 << 10, None);
    let full = seeder(&image, Options { max_peers: 1, ..options(Have::All) }).await;
    let (first, _) = receiver(&image, Options { peers: vec![full.local_addr()], ..options(Have::Unknown) }).await;
    until("the only place is taken", || first.stats().peers == 1 && full.stats().peers == 1).await;
    let (late, store) = receiver(&image, Options { peers: vec![full.local_addr()], ..options(Have::None) }).await;
    let away = |addr, has_torrent| Some(TurnedAway { addr, has_torrent });
    until("it knows why", || late.stats().turned_away == away(full.local_addr(), true)).await;
    assert_eq!(first.stats().turned_away, None);
    drop(first);
    complete(&late).await;
    assert!(store.is_right());
    assert_eq!(late.stats().turned_away, None, "it was taken in");

    let other = seeder(&self::image(2 << 20, 64 << 10, None), options(Have::All)).await;
    let (lost, _) = receiver(&image, Options { peers: vec![other.local_addr()], ..options(Have::None) }).await;
    until("it knows why", || lost.stats().turned_away == away(other.local_addr(), false)).await;
    drop(other);
    until("nothing is there any more", || lost.stats().turned_away.is_none()).await;
}

//! Tests of the tracker's state, and that our announces and our reader of replies match it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use metainfo::Infohash;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use swarm::announce::{AnnounceError, Progress, parse_reply, url};
use swarm::tracker::{Event, QueryError, failure};
use swarm::{AnnounceQuery, Tracker};

const INFOHASH: Infohash = Infohash([0xab; 20]);

fn query(port: u16, left: u64, event: Event) -> AnnounceQuery {
    let mut peer_id = [0; 20];
    peer_id[..2].copy_from_slice(&port.to_be_bytes());
    AnnounceQuery { infohash: INFOHASH, peer_id, port, left: Some(left), event, numwant: None, compact: true }
}

fn tracker() -> Tracker {
    let mut tracker = Tracker::with_rng(StdRng::seed_from_u64(1));
    tracker.allow(INFOHASH);
    tracker
}

fn ip(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
}

fn ports(reply: &[u8]) -> Vec<u16> {
    let mut ports: Vec<u16> = parse_reply(reply).expect("a good reply").peers.iter().map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports
}

#[test]
fn our_own_announce_is_understood() {
    let progress = Progress { uploaded: 1, downloaded: 2, left: 3 };
    let infohash = Infohash(std::array::from_fn(|i| [b'a', 0, b' ', 0xff, b'&'][i % 5]));
    let url = url("http://h/announce?key=1", infohash, b"-EZ0100-~.%&=+ \0\xff12x", 6881, progress, Some("started"));
    let raw = url.strip_prefix("http://h/announce?").expect("the tracker's own");
    let parsed = AnnounceQuery::parse(raw).expect("understood");
    assert_eq!(parsed.infohash, infohash);
    assert_eq!(&parsed.peer_id, b"-EZ0100-~.%&=+ \0\xff12x");
    assert_eq!((parsed.port, parsed.left, parsed.event, parsed.compact), (6881, Some(3), Event::Started, true));
}

#[test]
fn bad_queries_say_what_is_wrong() {
    let hash = "info_hash=%ab%AB5678901234567890123";
    let check = |raw: &str, expected| assert_eq!(AnnounceQuery::parse(raw), Err(expected), "{raw}");
    check("", QueryError::Missing("info_hash"));
    check("info_hash=abc", QueryError::Bad("info_hash"));
    check("info_hash=%zz345678901234567890", QueryError::Bad("info_hash"));
    check(hash, QueryError::Bad("info_hash"));
    let hash = "info_hash=%ab%AB345678901234567890";
    check(hash, QueryError::Missing("peer_id"));
    check(&format!("{hash}&peer_id=12345678901234567890"), QueryError::Missing("port"));
    check(&format!("{hash}&peer_id=12345678901234567890&port=0"), QueryError::Missing("port"));
    check(&format!("{hash}&peer_id=12345678901234567890&port=65536"), QueryError::Bad("port"));
    let reply = failure(&QueryError::Bad("port").to_string());
    assert!(matches!(parse_reply(&reply), Err(AnnounceError::Refused(reason)) if reason.contains("bad port")));
}

#[test]
fn peers_hear_of_each_other_and_not_of_themselves() {
    let mut tracker = tracker();
    let now = Instant::now();
    assert_eq!(ports(&tracker.announce(&query(1, 9, Event::Started), ip(1), now)), [0u16; 0]);
    assert_eq!(ports(&tracker.announce(&query(2, 9, Event::Started), ip(2), now)), [1]);
    assert_eq!(ports(&tracker.announce(&query(1, 9, Event::None), ip(1), now)), [2]);
    assert_eq!(tracker.counts(&INFOHASH), (2, 0));
    assert_eq!(ports(&tracker.announce(&query(1, 0, Event::Completed), ip(1), now)), [2]);
    assert_eq!(
        ports(&tracker.announce(&query(2, 0, Event::Completed), ip(2), now)),
        [0u16; 0],
        "no seeders for seeders"
    );
    assert_eq!(tracker.counts(&INFOHASH), (0, 2));
    assert_eq!(ports(&tracker.announce(&query(2, 0, Event::Stopped), ip(2), now)), [0u16; 0]);
    assert_eq!(tracker.counts(&INFOHASH), (0, 1));
}

#[test]
fn unknown_torrents_are_refused() {
    let mut tracker = tracker();
    let stranger = AnnounceQuery { infohash: Infohash([1; 20]), ..query(1, 0, Event::None) };
    let reply = tracker.announce(&stranger, ip(1), Instant::now());
    assert!(matches!(parse_reply(&reply), Err(AnnounceError::Refused(_))));
    tracker.disallow(&INFOHASH);
    assert!(parse_reply(&tracker.announce(&query(1, 0, Event::None), ip(1), Instant::now())).is_err());
}

#[test]
fn our_own_seeders_are_always_named() {
    let mut tracker = tracker();
    let own = SocketAddr::from(([10, 0, 0, 9], 7000));
    tracker.add_seeder(INFOHASH, own);
    let now = Instant::now();
    for port in 1..=500 {
        let wanted = AnnounceQuery { numwant: Some(5), ..query(port, 9, Event::Started) };
        let told = parse_reply(&tracker.announce(&wanted, ip(1), now)).expect("good").peers;
        assert!(told.contains(&own) && told.len() <= 5);
    }
    tracker.remove_seeder(&INFOHASH, own);
    assert!(!ports(&tracker.announce(&query(1, 9, Event::None), ip(1), now)).contains(&7000));
}

#[test]
fn the_interval_is_short_in_the_first_minute() {
    let mut tracker = tracker();
    let start = Instant::now();
    let mut interval = |seconds| {
        let reply = tracker.announce(&query(1, 9, Event::None), ip(1), start + Duration::from_secs(seconds));
        parse_reply(&reply).expect("good").interval.expect("told").as_secs()
    };
    assert_eq!(interval(0), 5);
    assert_eq!(interval(59), 5);
    assert_eq!(interval(60), 60);
}

#[test]
fn silent_peers_are_forgotten_and_memory_is_bounded() {
    let mut tracker = tracker();
    let start = Instant::now();
    for port in 1..=5000 {
        tracker.announce(&query(port, 9, Event::None), ip(1), start + Duration::from_millis(u64::from(port)));
    }
    assert_eq!(tracker.counts(&INFOHASH), (1024, 0));
    assert_eq!(
        ports(&tracker.announce(&query(9999, 9, Event::None), ip(2), start + Duration::from_secs(300))),
        [0u16; 0]
    );
    assert_eq!(tracker.counts(&INFOHASH), (1, 0));
}

#[test]
fn one_card_has_one_share_of_places_and_replies() {
    // By one address with many ports, and by many addresses that the caller knows to be of one card.
    for has_many_addresses in [false, true] {
        let mut tracker = tracker();
        let start = Instant::now();
        for number in 0..3000u16 {
            let now = start + Duration::from_millis(u64::from(number));
            let address = if has_many_addresses { ip(100 + (number % 100) as u8) } else { ip(100) };
            tracker.announce_of(&query(1000 + number, 9, Event::None), address, 7, now);
            if number % 75 == 0 {
                let machine = (number / 75) as u8;
                tracker.announce(&query(1, 9, Event::None), ip(1 + machine), now);
            }
        }
        let now = start + Duration::from_secs(3);
        let reply = tracker.announce(&query(1, 9, Event::None), ip(1), now);
        let machines = ports(&reply).into_iter().filter(|port| *port == 1).count();
        assert_eq!(machines, 39, "all of the others, before the card with a thousand");
    }
}

#[test]
fn dictionaries_and_ipv6_are_told_and_read() {
    let mut tracker = tracker();
    let now = Instant::now();
    tracker.announce(&query(1, 9, Event::None), "::ffff:10.0.0.1".parse().unwrap(), now);
    tracker.announce(&query(2, 9, Event::None), "fd00::2".parse().unwrap(), now);
    for compact in [true, false] {
        let asked = AnnounceQuery { compact, ..query(3, 9, Event::None) };
        let mut peers = parse_reply(&tracker.announce(&asked, ip(3), now)).expect("good").peers;
        peers.sort_unstable();
        assert_eq!(peers, ["10.0.0.1:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap()], "{compact}");
    }
}

#[test]
fn replies_that_are_none_are_errors() {
    for bad in ["", "<html>", "de", "d5:peers5:12345e", "d5:peersi5ee", "d5:peersl3:abcee"] {
        assert!(parse_reply(bad.as_bytes()).is_err(), "{bad}");
    }
    let own_port_zero = b"d5:peers6:\x0a\0\0\x01\0\0e";
    assert_eq!(parse_reply(own_port_zero).expect("good").peers, []);
}

proptest! {
    #[test]
    fn arbitrary_queries_never_panic(raw in "[a-z_&=%0-9+]{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = AnnounceQuery::parse(&raw);
        let _ = AnnounceQuery::parse(&String::from_utf8_lossy(&bytes));
        let _ = parse_reply(&bytes);
    }
}

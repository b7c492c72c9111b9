//! The client against a model of a server on a network that loses, doubles and reorders.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::tftp::ACK;

const MAX: usize = 64 << 20;

fn server() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 69))
}

fn transfer() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 50000))
}

fn block(number: u16, bytes: &[u8]) -> Vec<u8> {
    [&DATA.to_be_bytes()[..], &number.to_be_bytes(), bytes].concat()
}

fn oack(options: &[(&str, usize)]) -> Vec<u8> {
    let mut packet = OACK.to_be_bytes().to_vec();
    for (key, value) in options {
        packet.extend(format!("{key}\0{value}\0").into_bytes());
    }
    packet
}

/// Everything the client wants to send now, to whom.
fn drain(fetch: &mut Fetch, now: Instant) -> (Vec<(SocketAddr, Vec<u8>)>, Step) {
    let mut packets = Vec::new();
    loop {
        match fetch.poll(now) {
            Step::Send { to, packet } => packets.push((to, packet)),
            step => return (packets, step),
        }
    }
}

/// A server that sends windows from the last acknowledged block on, as long as it is asked to.
struct Model {
    content: Vec<u8>,
    blksize: usize,
    windowsize: usize,
    acked: usize,
}

impl Model {
    fn window(&self) -> Vec<Vec<u8>> {
        let count = self.content.len() / self.blksize + 1;
        let range = self.acked..(self.acked + self.windowsize).min(count);
        range
            .map(|index| {
                let start = index * self.blksize;
                let end = (start + self.blksize).min(self.content.len());
                block((index + 1) as u16, &self.content[start..end])
            })
            .collect()
    }

    fn on_ack(&mut self, number: u16) {
        // The absolute block nearest to where we are that has this number on the wire.
        let ahead = usize::from(number.wrapping_sub(self.acked as u16));
        if ahead <= self.windowsize {
            self.acked += ahead;
        }
    }
}

/// Runs a transfer; `fate` says for each packet whether it is lost (0), doubled (1), late (2) or fine.
fn run(content: &[u8], blksize: usize, windowsize: usize, mut fate: impl FnMut() -> u8) -> Result<Vec<u8>, FetchError> {
    let mut now = Instant::now();
    let mut fetch = Fetch::new(server(), "f", MAX, now);
    let mut model = Model { content: content.to_vec(), blksize, windowsize, acked: 0 };
    let mut started = false;
    let mut late: Vec<Vec<u8>> = Vec::new();
    for _ in 0..2_000_000 {
        let (packets, step) = drain(&mut fetch, now);
        let mut replies: Vec<Vec<u8>> = Vec::new();
        let was_silent = packets.is_empty();
        for (_, packet) in packets {
            if fate() == 0 {
                continue;
            }
            match take_u16(&packet) {
                Some((RRQ, _)) => {
                    replies.push(oack(&[("blksize", blksize), ("tsize", content.len()), ("windowsize", windowsize)]));
                }
                Some((ACK, number)) => {
                    model.on_ack(take_u16(number).expect("a number").0);
                    started = true;
                    replies.extend(model.window());
                }
                _ => {}
            }
        }
        match step {
            Step::Done(bytes) => return Ok(bytes),
            Step::Failed(error) => return Err(error),
            Step::Wait { until } if was_silent => {
                // The server's own timer: it sends its window again.
                now = until;
                if started {
                    replies.extend(model.window());
                }
            }
            _ => {}
        }
        for reply in std::mem::take(&mut late).into_iter().chain(replies) {
            match fate() {
                0 => {}
                1 => {
                    fetch.receive(transfer(), &reply, now);
                    fetch.receive(transfer(), &reply, now);
                }
                2 => late.push(reply),
                _ => fetch.receive(transfer(), &reply, now),
            }
        }
    }
    panic!("it never ends");
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + index / 997) as u8).collect()
}

#[test]
fn every_length_around_a_block_arrives() {
    for len in [0, 1, 511, 512, 513, 1023, 1024, 512 * 16 - 1, 512 * 16, 512 * 16 + 1] {
        for windowsize in [1, 2, 16] {
            assert_eq!(run(&content(len), 512, windowsize, || 9).as_deref(), Ok(&content(len)[..]), "{len}");
        }
    }
}

#[test]
fn block_numbers_roll_over() {
    let bytes = content(8 * 70_000 + 3);
    for windowsize in [1, 7, 16] {
        assert_eq!(run(&bytes, 8, windowsize, || 9).as_deref(), Ok(&bytes[..]));
    }
}

#[test]
fn the_request_asks_for_all_three_options() {
    let mut fetch = Fetch::new(server(), "ezio.conf", MAX, Instant::now());
    let (packets, _) = drain(&mut fetch, Instant::now());
    let expected = b"\0\x01ezio.conf\0octet\0blksize\x001468\0tsize\x000\0windowsize\x0016\0".to_vec();
    assert_eq!(packets, [(server(), expected)]);
}

#[test]
fn a_server_of_1992_works() {
    let now = Instant::now();
    let mut fetch = Fetch::new(server(), "f", MAX, now);
    drain(&mut fetch, now);
    fetch.receive(transfer(), &block(1, &[7; 512]), now);
    assert_eq!(drain(&mut fetch, now).0, [(transfer(), ack(1))]);
    fetch.receive(transfer(), &block(2, b"end"), now);
    let (packets, step) = drain(&mut fetch, now);
    assert_eq!(packets, [(transfer(), ack(2))]);
    assert_eq!(step, Step::Done([&[7; 512][..], b"end"].concat()));
}

#[test]
fn a_server_that_refuses_options_is_asked_without() {
    let now = Instant::now();
    let mut fetch = Fetch::new(server(), "f", MAX, now);
    drain(&mut fetch, now);
    fetch.receive(transfer(), &error(8, "no options"), now);
    assert_eq!(drain(&mut fetch, now).0, [(server(), b"\0\x01f\0octet\0".to_vec())]);
}

#[test]
fn errors_come_with_the_servers_words() {
    let now = Instant::now();
    let mut fetch = Fetch::new(server(), "ezio.conf", MAX, now);
    drain(&mut fetch, now);
    fetch.receive(transfer(), &error(1, "File not found"), now);
    let Step::Failed(refused) = drain(&mut fetch, now).1 else { panic!("refused") };
    assert!(matches!(refused, FetchError::Refused { code: 1, .. }));
    assert!(refused.to_string().contains("\"ezio.conf\": File not found (TFTP error 1)"), "{refused}");
    let mut fetch = Fetch::new(server(), "f", MAX, now);
    fetch.receive(transfer(), &[0, 5, 0, 0], now);
    let Step::Failed(refused) = drain(&mut fetch, now).1 else { panic!("refused") };
    assert!(
        matches!(refused, FetchError::Refused { code: 0, .. }) && refused.to_string().contains("no reason given"),
        "{refused}"
    );
}

#[test]
fn silence_ends_with_how_far_it_got() {
    let mut now = Instant::now();
    let start = now;
    let mut fetch = Fetch::new(server(), "f", MAX, now);
    let failed = loop {
        match fetch.poll(now) {
            Step::Wait { until } => now = until,
            Step::Failed(error) => break error,
            _ => {}
        }
    };
    assert_eq!(now - start, Duration::from_secs(8));
    assert!(failed.to_string().contains("does not answer for \"f\": 0 bytes came"), "{failed}");
}

#[test]
fn too_large_is_refused_before_and_during() {
    let now = Instant::now();
    let mut fetch = Fetch::new(server(), "f", 100, now);
    drain(&mut fetch, now);
    fetch.receive(transfer(), &oack(&[("tsize", 101)]), now);
    assert!(matches!(drain(&mut fetch, now).1, Step::Failed(FetchError::TooLarge { max_len: 100, .. })));
    let mut fetch = Fetch::new(server(), "f", 100, now);
    drain(&mut fetch, now);
    fetch.receive(transfer(), &block(1, &[0; 512]), now);
    assert!(matches!(drain(&mut fetch, now).1, Step::Failed(FetchError::TooLarge { .. })));
}

#[test]
fn options_nobody_asked_for_end_it() {
    for options in [&[("blksize", 9000)][..], &[("windowsize", 17)], &[("multicast", 1)], &[("blksize", 0)]] {
        let now = Instant::now();
        let mut fetch = Fetch::new(server(), "f", MAX, now);
        drain(&mut fetch, now);
        fetch.receive(transfer(), &oack(options), now);
        assert!(matches!(drain(&mut fetch, now).1, Step::Failed(FetchError::Options { .. })), "{options:?}");
    }
}

#[test]
fn strangers_do_not_disturb() {
    let now = Instant::now();
    let mut fetch = Fetch::new(server(), "f", MAX, now);
    drain(&mut fetch, now);
    let stranger = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 9), 50000));
    fetch.receive(stranger, &error(1, "no"), now);
    fetch.receive(transfer(), &oack(&[("blksize", 1468)]), now);
    let other_port = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 50001));
    fetch.receive(other_port, &block(1, b"wrong"), now);
    let (packets, step) = drain(&mut fetch, now);
    assert_eq!(packets[0], (transfer(), ack(0)));
    assert_eq!(packets[1].1[..4], [0, 5, 0, 5]);
    assert!(matches!(step, Step::Wait { .. }));
    assert_eq!(fetch.ignored(), 2);
    fetch.receive(transfer(), &block(1, b"right"), now);
    assert_eq!(drain(&mut fetch, now).1, Step::Done(b"right".to_vec()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_bad_network_never_changes_the_bytes(
        len in 0usize..20_000, windowsize in 1usize..=16, seed in any::<u64>(), loss in 0u64..20
    ) {
        let mut state = seed | 1;
        let fate = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match (state >> 33) % 100 {
                percent if percent < loss => 0,
                90..=94 => 1,
                95..=99 => 2,
                _ => 9,
            }
        };
        match run(&content(len), 512, windowsize, fate) {
            Ok(bytes) => prop_assert_eq!(bytes, content(len)),
            // Eight losses in a row: it may give up, but only with that reason.
            Err(error) => prop_assert!(matches!(error, FetchError::Silent { .. }), "{}", error),
        }
    }

    #[test]
    fn no_packet_panics(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..20)) {
        let now = Instant::now();
        let mut fetch = Fetch::new(server(), "f", 1000, now);
        for mut packet in packets {
            if packet.len() > 1 {
                packet[0] = 0;
                packet[1] %= 8;
            }
            fetch.receive(transfer(), &packet, now);
            drain(&mut fetch, now);
        }
    }
}

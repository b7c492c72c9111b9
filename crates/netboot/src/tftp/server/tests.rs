//! The server against our own client on a network that loses, doubles and reorders, and against what firmware does.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::tftp::{Fetch, Step, ack};

impl Content for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let at = at as usize;
        buf.copy_from_slice(&self[at..at + buf.len()]);
        Ok(())
    }
}

fn rrq(name: &[u8], options: &[&str]) -> Vec<u8> {
    let mut packet = RRQ.to_be_bytes().to_vec();
    for text in [name, b"octet"].into_iter().chain(options.iter().map(|option| option.as_bytes())) {
        packet.extend(text);
        packet.push(0);
    }
    packet
}

fn request(options: &[&str]) -> ReadRequest {
    ReadRequest::parse(&rrq(b"file", options)).expect("a request")
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 % 251) as u8).collect()
}

/// Everything that goes out now, and what then.
fn drain(transfer: &mut Transfer<Vec<u8>>, now: Instant) -> (Vec<Vec<u8>>, Sending) {
    let mut packets = Vec::new();
    loop {
        match transfer.poll(now).expect("memory") {
            Sending::Packet(packet) => packets.push(packet),
            step => return (packets, step),
        }
    }
}

fn numbers(packets: &[Vec<u8>]) -> Vec<u16> {
    packets.iter().map(|packet| u16::from_be_bytes([packet[2], packet[3]])).collect()
}

#[test]
fn requests_are_read_as_firmware_writes_them() {
    let name = |bytes: &[u8]| ReadRequest::parse(&rrq(bytes, &[])).map(|request| request.name);
    assert_eq!(name(b"snponly.efi\xff"), Ok("snponly.efi".into()));
    assert_eq!(name(b"/boot\\x\xff\xff\xff\xff\xff"), Ok("boot/x".into()));
    assert_eq!(name(b"\xff\xff"), Ok(String::new()));
    assert_eq!(name(b"a\xffb"), Ok("a\u{fffd}b".into()));
    let refused = |packet: &[u8]| ReadRequest::parse(packet).expect_err("no request");
    assert_eq!(refused(b"\0\x02x\0octet\0"), RequestError::Refused(Refusal::AccessViolation));
    for cut in [&b"\0\x01"[..], b"\0\x01name", b"\0\x01name\0", b"\0\x01name\0octet", b"\0\x01name\0mail\0"] {
        assert_eq!(refused(cut), RequestError::Refused(Refusal::IllegalOperation), "{cut:?}");
    }
    assert_eq!(name(&[b'x'; 60_000]), Err(RequestError::Refused(Refusal::IllegalOperation)));
    for noise in [&b""[..], b"\0", b"\0\x04\0\x01", b"\0\x05\0\0x\0", b"\xff\xff"] {
        assert_eq!(refused(noise), RequestError::Noise, "{noise:?}");
    }
}

#[test]
fn options_are_answered_as_they_were_asked_and_no_others() {
    let now = Instant::now();
    let offered = |options: &[&str], most: u16| {
        let mut transfer = Transfer::new(&request(options), content(3000), most, now);
        drain(&mut transfer, now).0
    };
    let first = |options: &[&str]| String::from_utf8_lossy(&offered(options, 1468)[0][2..]).into_owned();
    assert_eq!(
        first(&["tsize", "0", "blksize", "1468", "windowsize", "4"]),
        "blksize\x001468\0windowsize\x004\0tsize\x003000\0"
    );
    assert_eq!(first(&["BlkSize", "65464"]), "blksize\x001468\0");
    assert_eq!(first(&["windowsize", "999", "multicast", "", "timeout", "3"]), "windowsize\x0032\0");
    let short = offered(&["blksize", "1468"], 1368);
    assert_eq!(String::from_utf8_lossy(&short[0][2..]), "blksize\x001368\0", "a small MTU");
    // Nothing that can be agreed on: the file at once.
    for options in [&[][..], &["blksize", "7"], &["windowsize", "0"], &["blksize", "many"], &["blksize"]] {
        let packets = offered(options, 1468);
        assert_eq!((packets.len(), packets[0].len()), (1, 516), "{options:?}");
    }
}

#[test]
fn an_error_of_the_client_ends_it_at_once() {
    let now = Instant::now();
    let mut transfer = Transfer::new(&request(&["tsize", "0"]), content(3000), 1468, now);
    assert_eq!(drain(&mut transfer, now).0.len(), 1);
    assert!(transfer.is_fresh());
    transfer.receive(b"\0\x05\0\x08User aborted the transfer\0", now);
    assert_eq!(drain(&mut transfer, now), (Vec::new(), Sending::Over(Answer::Ended(8))));
    assert!(!transfer.is_fresh());
    transfer.receive(&ack(0), now);
    assert_eq!(drain(&mut transfer, now), (Vec::new(), Sending::Over(Answer::Ended(8))), "and it stays so");
}

#[test]
fn a_lost_last_ack_costs_two_seconds() {
    let mut now = Instant::now();
    let began = now;
    let mut transfer = Transfer::new(&request(&[]), content(600), 1468, now);
    drain(&mut transfer, now);
    transfer.receive(&ack(1), now);
    loop {
        match drain(&mut transfer, now).1 {
            Sending::Wait { until } => now = until,
            over => break assert_eq!(over, Sending::Over(Answer::Sent)),
        }
    }
    assert!(now - began <= Duration::from_millis(2500), "{:?}", now - began);
    // Silence in the middle is something else.
    let mut transfer = Transfer::new(&request(&[]), content(6000), 1468, now);
    let began = now;
    drain(&mut transfer, now);
    transfer.receive(&ack(1), now);
    let over = loop {
        match drain(&mut transfer, now).1 {
            Sending::Wait { until } => now = until,
            Sending::Over(answer) => break answer,
            Sending::Packet(_) => unreachable!("drained"),
        }
    };
    assert_eq!(over, Answer::Silent(512));
    assert!(now - began >= Duration::from_secs(9));
}

#[test]
fn a_window_goes_on_from_the_block_that_was_acknowledged() {
    let ms = Duration::from_millis;
    let now = Instant::now();
    let options = ["blksize", "8", "windowsize", "4"];
    let mut transfer = Transfer::new(&request(&options), content(800), 1468, now);
    drain(&mut transfer, now);
    transfer.receive(&ack(0), now);
    assert_eq!(numbers(&drain(&mut transfer, now).0), [1, 2, 3, 4]);
    // Block 3 was lost.
    transfer.receive(&ack(2), now + ms(2));
    assert_eq!(numbers(&drain(&mut transfer, now + ms(2)).0), [3, 4, 5, 6]);
    transfer.receive(&ack(6), now + ms(4));
    transfer.receive(&ack(6), now + ms(4));
    assert_eq!(numbers(&drain(&mut transfer, now + ms(4)).0), [7, 8, 9, 10]);
    transfer.receive(&ack(6), now + ms(4));
    assert_eq!(drain(&mut transfer, now + ms(4)).0.len(), 0, "an ACK that came twice");
    // Block 7 was lost: the client says so a round later, and is believed once.
    transfer.receive(&ack(6), now + ms(6));
    assert_eq!(numbers(&drain(&mut transfer, now + ms(6)).0), [7, 8, 9, 10]);
    transfer.receive(&ack(6), now + ms(8));
    assert_eq!(drain(&mut transfer, now + ms(8)).0.len(), 0);
    // What is not out cannot be acknowledged.
    for number in [5, 11, 999, 65535] {
        transfer.receive(&ack(number), now + ms(9));
        assert_eq!(drain(&mut transfer, now + ms(9)).0.len(), 0, "{number}");
    }
}

#[test]
fn a_file_that_cannot_be_read_ends_it() {
    struct Shrunk;
    impl Content for Shrunk {
        fn len(&self) -> u64 {
            5000
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
    let now = Instant::now();
    let mut transfer = Transfer::new(&request(&[]), Shrunk, 1468, now);
    assert_eq!(transfer.poll(now).expect_err("it shrank").kind(), io::ErrorKind::UnexpectedEof);
}

/// What the network does with one packet.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    IsLost,
    ComesTwice,
    IsLate,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![8 => Just(Fate::Arrives), 1 => Just(Fate::IsLost), 1 => Just(Fate::ComesTwice), 1 => Just(Fate::IsLate)]
}

const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 69);
const PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 50000);

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_over_a_bad_network(
        len in prop_oneof![0..40_000usize, Just(1468 * 16), Just(0)],
        fates in prop::collection::vec(fate(), 1..60),
    ) {
        let file = content(len);
        let mut now = Instant::now();
        let mut fates = fates.into_iter().chain(std::iter::repeat(Fate::Arrives));
        let mut fetch = Fetch::new(SERVER, "file", 1 << 20, now);
        let mut transfer: Option<Transfer<Vec<u8>>> = None;
        // Packets on their way, when they arrive, and whether they go to the server.
        let mut wire: VecDeque<(Instant, bool, Vec<u8>)> = VecDeque::new();
        let mut sent = 0;
        let got = loop {
            let mut send = |to_server, packet: Vec<u8>, wire: &mut VecDeque<_>| {
                let ms = |ms| now + Duration::from_millis(ms);
                sent += 1;
                match fates.next().expect("endless") {
                    Fate::Arrives => wire.push_back((ms(1), to_server, packet)),
                    Fate::IsLost => {}
                    Fate::ComesTwice => wire.extend([(ms(1), to_server, packet.clone()), (ms(1), to_server, packet)]),
                    Fate::IsLate => wire.push_back((ms(700), to_server, packet)),
                }
            };
            let mut until = now + Duration::from_secs(1);
            match fetch.poll(now) {
                Step::Send { to, packet } => {
                    prop_assert!(to == SERVER || to == PORT);
                    send(true, packet, &mut wire);
                    continue;
                }
                Step::Wait { until: at } => until = until.min(at),
                Step::Done(bytes) => break bytes,
                Step::Failed(error) => panic!("{error}"),
            }
            if let Some(transfer) = &mut transfer {
                let (packets, step) = drain(transfer, now);
                packets.into_iter().for_each(|packet| send(false, packet, &mut wire));
                if let Sending::Wait { until: at } = step {
                    until = until.min(at);
                }
            }
            wire.make_contiguous().sort_by_key(|&(at, ..)| at);
            match wire.front() {
                Some(&(at, ..)) if at <= until => now = now.max(at),
                _ => {
                    now = until;
                    continue;
                }
            }
            let (_, to_server, packet) = wire.pop_front().expect("looked at");
            if !to_server {
                fetch.receive(PORT, &packet, now);
            } else if let Ok(request) = ReadRequest::parse(&packet) {
                // As the driver does with a request that comes again.
                if transfer.as_ref().is_none_or(|transfer| !transfer.is_fresh()) {
                    transfer = Some(Transfer::new(&request, file.clone(), 1468, now));
                }
            } else if let Some(transfer) = &mut transfer {
                transfer.receive(&packet, now);
            }
            prop_assert!(sent < 10_000, "no end in sight");
        };
        prop_assert!(got == file);
    }

    #[test]
    fn no_packet_is_too_much(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..20), len in 0..3000usize) {
        let mut now = Instant::now();
        for packet in &packets {
            let _ = ReadRequest::parse(packet);
        }
        let mut transfer = Transfer::new(&request(&["blksize", "8", "windowsize", "9"]), content(len), 512, now);
        for packet in &packets {
            transfer.receive(packet, now);
            now += Duration::from_millis(100);
            drain(&mut transfer, now);
        }
    }
}

/// RFC 1350's way of old ROMs: every packet comes twice, and yet each block is sent once.
#[test]
fn doubled_acks_do_not_double_the_blocks() {
    let now = Instant::now();
    let mut transfer = Transfer::new(&request(&["blksize", "512"]), content(250_000), 1468, now);
    drain(&mut transfer, now);
    let mut sent = 0;
    transfer.receive(&ack(0), now);
    transfer.receive(&ack(0), now);
    while let (packets, Sending::Wait { .. }) = drain(&mut transfer, now) {
        assert_eq!(packets.len(), 1);
        sent += 1;
        let number = numbers(&packets)[0];
        transfer.receive(&ack(number), now);
        transfer.receive(&ack(number), now);
    }
    assert_eq!(sent, 489);
}

//! The client against our own server, and against servers that misbehave.

use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::*;
use crate::server::{DhcpServer, Outcome, ServerConfig};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const RANGE: RangeInclusive<Ipv4Addr> = Ipv4Addr::new(10, 77, 0, 50)..=Ipv4Addr::new(10, 77, 0, 99);

fn server(lease_s: u32) -> DhcpServer {
    let router = Some(Ipv4Addr::new(10, 77, 0, 254));
    let dns = vec![Ipv4Addr::new(10, 77, 0, 253)];
    let (own, relayed, probe) = (vec![], vec![], false);
    let config =
        ServerConfig { address: SERVER, prefix_len: 24, range: RANGE, own, relayed, probe, router, dns, lease_s };
    DhcpServer::new(config, vec![])
}

fn sent(client: &mut Client, now: Instant) -> Datagram {
    match client.poll(now) {
        Step::Send(datagram) => datagram,
        Step::Wait { .. } => panic!("the client waits"),
    }
}

fn answer(server: &mut DhcpServer, datagram: &Datagram) -> Vec<u8> {
    match server.handle(&message::decode(&datagram.bytes).expect("our own"), None, 1000) {
        Outcome::Offered(_, reply) | Outcome::Leased(_, reply) | Outcome::Refused(reply) => reply.bytes,
        other => panic!("{other:?}"),
    }
}

fn bound(server: &mut DhcpServer, now: Instant) -> (Client, Lease) {
    let mut client = Client::new(MAC, 77, now);
    let discover = sent(&mut client, now);
    assert_eq!(discover.to, SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
    assert!(matches!(client.receive(&answer(server, &discover), now), Received::Offered { .. }));
    let request = sent(&mut client, now);
    match client.receive(&answer(server, &request), now) {
        Received::Leased(lease) => (client, lease),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lease_has_everything_the_server_gave() {
    let (client, lease) = bound(&mut server(600), Instant::now());
    assert!(RANGE.contains(&lease.address));
    assert_eq!(lease.prefix_len, 24);
    assert_eq!(lease.router, Some(Ipv4Addr::new(10, 77, 0, 254)));
    assert_eq!(lease.dns, [Ipv4Addr::new(10, 77, 0, 253)]);
    assert_eq!((lease.server_id, lease.siaddr), (SERVER, Some(SERVER)));
    assert_eq!(lease.lease_time, Duration::from_secs(600));
    assert_eq!(client.lease(), Some(&lease));
    assert_eq!(client.release().expect("bound").to, SocketAddrV4::new(SERVER, 67));
}

#[test]
fn it_asks_again_until_somebody_answers() {
    let start = Instant::now();
    let mut client = Client::new(MAC, 77, start);
    let mut now = start;
    let mut count = 0;
    while now < start + Duration::from_secs(90) {
        match client.poll(now) {
            Step::Send(datagram) => {
                count += 1;
                let message = message::decode(&datagram.bytes).expect("our own");
                assert!(message.flags().broadcast());
                assert_eq!(u64::from(message.secs()), (now - start).as_secs());
            }
            Step::Wait { until } => {
                assert!(until > now && until <= now + Duration::from_secs(4));
                now = until;
            }
        }
    }
    assert!((20..40).contains(&count), "{count} DISCOVERs in 90 s");
}

#[test]
fn an_offer_that_is_not_kept_is_forgotten() {
    let mut server = server(600);
    let mut now = Instant::now();
    let mut client = Client::new(MAC, 77, now);
    let discover = sent(&mut client, now);
    client.receive(&answer(&mut server, &discover), now);
    let mut requests = 0;
    loop {
        match client.poll(now) {
            Step::Wait { until } => now = until,
            Step::Send(datagram) => match message::decode(&datagram.bytes).expect("ours").opts().msg_type() {
                Some(MessageType::Request) => requests += 1,
                kind => break assert_eq!(kind, Some(MessageType::Discover)),
            },
        }
    }
    assert_eq!(requests, 4);
}

#[test]
fn a_lease_is_renewed_by_unicast_then_by_broadcast_then_given_up() {
    let start = Instant::now();
    let (mut client, lease) = bound(&mut server(600), start);
    let Step::Wait { until } = client.poll(start) else { panic!("just bound") };
    assert_eq!(until, start + Duration::from_secs(300));
    let renewal = sent(&mut client, until);
    assert_eq!(renewal.to, SocketAddrV4::new(SERVER, 67));
    assert_eq!(message::decode(&renewal.bytes).expect("ours").ciaddr(), lease.address);
    let mut kept = client.clone();
    assert!(matches!(kept.receive(&answer(&mut server(600), &renewal), until), Received::Leased(_)));
    assert_eq!(kept.poll(until), Step::Wait { until: until + Duration::from_secs(300) });

    let mut now = until;
    let mut by_broadcast = 0;
    while client.lease().is_some() {
        match client.poll(now) {
            Step::Wait { until } => now = until,
            Step::Send(datagram) => by_broadcast += u32::from(datagram.to.ip().is_broadcast()),
        }
    }
    assert!(by_broadcast >= 2);
    assert!(now >= start + lease.lease_time);
}

#[test]
fn what_is_not_ours_is_ignored() {
    let mut server = server(600);
    let now = Instant::now();
    let mut client = Client::new(MAC, 77, now);
    let discover = sent(&mut client, now);
    let offer = answer(&mut server, &discover);
    let ignored = |client: &mut Client, packet: &[u8]| match client.receive(packet, now) {
        Received::Ignored(reason) => reason,
        other => panic!("{other:?}"),
    };
    let changed = |at: usize, byte: u8| {
        let mut bytes = offer.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(ignored(&mut client, &changed(4, 99)), Reason::NotOurs);
    assert_eq!(ignored(&mut client, &changed(33, 99)), Reason::NotOurs);
    assert!(matches!(ignored(&mut client, &offer[..100]), Reason::Malformed(_)));
    assert!(matches!(ignored(&mut client, &discover.bytes), Reason::Untimely));
    let mut proxy = offer.clone();
    proxy[16..20].fill(0);
    assert_eq!(ignored(&mut client, &proxy), Reason::NoAddress);
    assert!(matches!(client.receive(&offer, now), Received::Offered { .. }));
    assert_eq!(ignored(&mut client, &offer), Reason::Untimely);
}

#[test]
fn a_nak_starts_over_under_another_transaction() {
    let mut server = server(600);
    let now = Instant::now();
    let mut client = Client::new(MAC, 77, now);
    let discover = sent(&mut client, now);
    client.receive(&answer(&mut server, &discover), now);
    let request = message::decode(&sent(&mut client, now).bytes).expect("ours");
    let nak = |server_id: Ipv4Addr| {
        let mut nak = message::reply_to(&request, server_id, MessageType::Nak);
        nak.opts_mut().insert(DhcpOption::Message("no\x1b[2J".into()));
        message::encode(&nak)
    };
    let other = client.receive(&nak(Ipv4Addr::new(10, 77, 0, 9)), now);
    assert_eq!(other, Received::Ignored(Reason::NotOurs));
    assert_eq!(client.receive(&nak(SERVER), now), Received::Refused { why: "no[2J".into() });
    let Step::Wait { until } = client.poll(now) else { panic!("not at once") };
    let again = message::decode(&sent(&mut client, until).bytes).expect("ours");
    assert_ne!(again.xid(), 77);
}

#[test]
fn masks_with_holes_fall_back_to_the_class() {
    let address = Ipv4Addr::new(192, 168, 1, 2);
    assert_eq!(prefix_len(address, Some(Ipv4Addr::new(255, 255, 254, 0))), 23);
    assert_eq!(prefix_len(address, Some(Ipv4Addr::new(255, 0, 255, 0))), 24);
    assert_eq!(prefix_len(address, None), 24);
    assert_eq!(prefix_len(Ipv4Addr::new(10, 0, 0, 1), None), 8);
    assert_eq!(prefix_len(address, Some(Ipv4Addr::BROADCAST)), 32);
}

proptest! {
    #[test]
    fn no_packet_panics(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..8)) {
        let now = Instant::now();
        let mut client = Client::new(MAC, 77, now);
        for packet in packets {
            client.receive(&packet, now);
            client.poll(now);
        }
    }

    #[test]
    fn a_changed_offer_never_panics(at in 0usize..300, byte in any::<u8>(), cut in 0usize..300) {
        let now = Instant::now();
        let mut client = Client::new(MAC, 77, now);
        let discover = sent(&mut client, now);
        let mut offer = answer(&mut server(600), &discover);
        offer[at] = byte;
        client.receive(&offer[..cut], now);
        client.receive(&offer, now);
        client.poll(now);
    }
}

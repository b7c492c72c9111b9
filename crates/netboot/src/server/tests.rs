//! Leases: who gets which address, for how long, and what is refused.

use proptest::prelude::*;

use super::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn config(first: u8, last: u8) -> ServerConfig {
    let range = Ipv4Addr::new(10, 0, 0, first)..=Ipv4Addr::new(10, 0, 0, last);
    ServerConfig {
        address: SERVER,
        prefix_len: 24,
        range,
        own: vec![],
        relayed: vec![],
        probe: false,
        router: None,
        dns: vec![],
        lease_s: 100,
    }
}

fn message(last: u8, kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_xid(u32::from(last)).set_chaddr(&[0x52, 0x54, 0, 0, 0, last]);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message
}

fn with(mut message: Message, option: DhcpOption) -> Message {
    message.opts_mut().insert(option);
    message
}

fn lease(server: &mut DhcpServer, last: u8, now: u64) -> Option<Ipv4Addr> {
    let address = match server.handle(&message(last, MessageType::Discover), None, now) {
        Outcome::Offered(address, _) => address,
        Outcome::Exhausted => return None,
        other => panic!("{other:?}"),
    };
    let request = with(message(last, MessageType::Request), DhcpOption::RequestedIpAddress(address));
    match server.handle(&with(request, DhcpOption::ServerIdentifier(SERVER)), None, now) {
        Outcome::Leased(leased, _) => {
            assert_eq!(leased, address);
            Some(address)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_machine_gets_the_same_address() {
    let mut server = DhcpServer::new(config(10, 99), vec![]);
    let first = lease(&mut server, 1, 0).expect("free");
    let second = lease(&mut server, 2, 0).expect("free");
    assert_ne!(first, second);
    assert_eq!(lease(&mut server, 1, 50), Some(first));
    assert_eq!(lease(&mut server, 1, 100_000), Some(first), "also after it has ended");
    let kept = serde_json::to_string(&server.leases()).expect("plain data");
    let mut server = DhcpServer::new(config(10, 99), serde_json::from_str(&kept).expect("plain data"));
    assert_eq!(lease(&mut server, 2, 60), Some(second), "also after a restart");
}

#[test]
fn a_full_range_frees_what_ended_first() {
    let mut server = DhcpServer::new(config(10, 11), vec![]);
    let first = lease(&mut server, 1, 0).expect("free");
    lease(&mut server, 2, 10).expect("free");
    assert_eq!(lease(&mut server, 3, 20), None);
    assert_eq!(lease(&mut server, 3, 101), Some(first));
    let release = with(message(2, MessageType::Release), DhcpOption::ServerIdentifier(SERVER));
    let mut release = release;
    let second = server.leases().iter().find(|r| r.mac.is_some_and(|mac| mac.0[5] == 2)).expect("there").address;
    release.set_ciaddr(second);
    assert_eq!(server.handle(&release, None, 102), Outcome::Freed(second));
    assert_eq!(lease(&mut server, 4, 103), Some(second));
}

#[test]
fn our_own_address_and_the_routers_are_never_given() {
    let mut settings = config(1, 3);
    settings.router = Some(Ipv4Addr::new(10, 0, 0, 2));
    let mut server = DhcpServer::new(settings, vec![]);
    assert_eq!(lease(&mut server, 1, 0), Some(Ipv4Addr::new(10, 0, 0, 3)));
    assert_eq!(lease(&mut server, 2, 0), None);
}

#[test]
fn a_declined_address_rests() {
    let mut server = DhcpServer::new(config(10, 11), vec![]);
    let first = lease(&mut server, 1, 0).expect("free");
    let decline = |last| with(message(last, MessageType::Decline), DhcpOption::RequestedIpAddress(first));
    assert_eq!(server.handle(&decline(9), None, 1), Outcome::Silent, "not by a stranger");
    assert_eq!(server.handle(&decline(1), None, 1), Outcome::Freed(first));
    assert_ne!(lease(&mut server, 1, 2), Some(first));
    assert_eq!(lease(&mut server, 2, 3), None);
    lease(&mut server, 1, 550).expect("its second one");
    assert_eq!(lease(&mut server, 2, 602), Some(first));
}

#[test]
fn rebooting_and_renewing_machines_keep_what_is_theirs() {
    let mut server = DhcpServer::new(config(10, 99), vec![]);
    let own = lease(&mut server, 1, 0).expect("free");
    let rebooting = |last, address| with(message(last, MessageType::Request), DhcpOption::RequestedIpAddress(address));
    let renewing = |last: u8, address: Ipv4Addr| {
        let mut request = message(last, MessageType::Request);
        request.set_ciaddr(address);
        request
    };
    assert!(matches!(server.handle(&rebooting(1, own), None, 1), Outcome::Leased(address, _) if address == own));
    assert!(matches!(server.handle(&rebooting(2, own), None, 1), Outcome::Refused(_)));
    let elsewhere = Ipv4Addr::new(192, 168, 0, 5);
    assert!(matches!(server.handle(&rebooting(1, elsewhere), None, 1), Outcome::Refused(_)));
    let Outcome::Leased(_, ack) = server.handle(&renewing(1, own), None, 90) else { panic!("renewed") };
    assert_eq!(ack.to, SocketAddrV4::new(own, 68));
    assert_eq!(server.leases()[0].expires, 190);
    assert!(matches!(server.handle(&renewing(2, own), None, 91), Outcome::Refused(_)));
    // Remembered by the machine and forgotten by us: adopted.
    let free = Ipv4Addr::new(10, 0, 0, 77);
    assert!(matches!(server.handle(&rebooting(3, free), None, 91), Outcome::Leased(address, _) if address == free));
}

#[test]
fn a_request_for_another_server_is_left_alone() {
    let mut server = DhcpServer::new(config(10, 99), vec![]);
    let request = with(message(1, MessageType::Request), DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 0, 2)));
    let request = with(request, DhcpOption::RequestedIpAddress(Ipv4Addr::new(10, 0, 0, 10)));
    assert_eq!(server.handle(&request, None, 0), Outcome::Silent);
    assert!(server.leases().is_empty());
}

#[test]
fn inform_gets_options_and_no_lease() {
    let mut server = DhcpServer::new(config(10, 99), vec![]);
    let mut inform = message(1, MessageType::Inform);
    inform.set_ciaddr(Ipv4Addr::new(10, 0, 0, 200));
    let Outcome::Informed(reply) = server.handle(&inform, None, 0) else { panic!("answered") };
    let reply = message::decode(&reply.bytes).expect("ours");
    assert!(reply.yiaddr().is_unspecified());
    assert_eq!(message::seconds_of(&reply, OptionCode::AddressLeaseTime), None);
    assert!(server.leases().is_empty());
}

#[test]
fn ordinary_clients_get_a_lease_and_no_boot_file() {
    let mut server = DhcpServer::new(config(10, 99), vec![]);
    let boot = BootServer { address: SERVER, http_port: Some(80) };
    let Outcome::Offered(_, offer) = server.handle(&message(1, MessageType::Discover), Some(&boot), 0) else {
        panic!("offered");
    };
    assert_eq!(message::decode(&offer.bytes).expect("ours").fname(), None);
}

fn answer(server: &mut DhcpServer, last: u8, address: Ipv4Addr, now: u64) -> Outcome {
    let request = with(message(last, MessageType::Request), DhcpOption::RequestedIpAddress(address));
    server.handle(&with(request, DhcpOption::ServerIdentifier(SERVER)), None, now)
}

#[test]
fn requests_that_nobody_follows_up_keep_no_machine_out() {
    let mut server = DhcpServer::new(config(10, 19), vec![]);
    let known = lease(&mut server, 1, 0).expect("free");
    // One card that calls itself by many names, after the known machine's lease has ended.
    let offer =
        |server: &mut DhcpServer, last, now| match server.handle(&message(last, MessageType::Discover), None, now) {
            Outcome::Offered(address, _) => address,
            other => panic!("{other:?}"),
        };
    let forged: Vec<Ipv4Addr> = (100..130).map(|last| offer(&mut server, last, 200)).collect();
    assert!(forged.contains(&known), "nothing is set aside");
    assert_eq!(lease(&mut server, 1, 201), Some(known), "but a known machine gets what it had");
    let other = lease(&mut server, 2, 201).expect("another one as well");
    assert_ne!(other, known);
    // Who was offered what they have now is refused, and may ask again.
    assert!(matches!(answer(&mut server, 129, known, 202), Outcome::Refused(_)));
    assert!(matches!(answer(&mut server, 129, other, 202), Outcome::Refused(_)));
}

#[test]
fn an_address_that_was_offered_twice_goes_to_who_asks_first() {
    let mut server = DhcpServer::new(config(10, 10), vec![]);
    let only = Ipv4Addr::new(10, 0, 0, 10);
    for last in [1, 2] {
        let offer = server.handle(&message(last, MessageType::Discover), None, 0);
        assert!(matches!(offer, Outcome::Offered(address, _) if address == only));
    }
    assert!(matches!(answer(&mut server, 1, only, 1), Outcome::Leased(..)));
    assert!(matches!(answer(&mut server, 2, only, 1), Outcome::Refused(_)));
    assert!(matches!(answer(&mut server, 1, only, 2), Outcome::Leased(..)));
}

#[test]
fn leases_that_nobody_answers_for_keep_no_machine_out() {
    let lease_s = 3600;
    let mut server = DhcpServer::new(ServerConfig { probe: true, lease_s, ..config(10, 12) }, vec![]);
    let discover = |server: &mut DhcpServer, last, now| server.handle(&message(last, MessageType::Discover), None, now);
    let mut held = Vec::new();
    for last in 1..=3 {
        let Outcome::Probe(address) = discover(&mut server, last, u64::from(last)) else { panic!("free") };
        server.probed(address);
        assert!(matches!(answer(&mut server, last, address, u64::from(last)), Outcome::Leased(..)));
        held.push(address);
    }
    assert_eq!(discover(&mut server, 9, 100), Outcome::Exhausted, "they are young: a kernel may be starting there");
    // The first one answers, the second one does not.
    assert_eq!(discover(&mut server, 9, 200), Outcome::Probe(held[0]));
    assert_eq!(server.found_in_use(held[0], 200), Some(MacAddr([0x52, 0x54, 0, 0, 0, 1])));
    assert_eq!(discover(&mut server, 9, 200), Outcome::Probe(held[1]));
    // Who waits for that look cannot spoil it.
    let decline = with(message(9, MessageType::Decline), DhcpOption::RequestedIpAddress(held[1]));
    assert_eq!(server.clone().handle(&decline, None, 200), Outcome::Silent);
    // Its machine may renew it as long as nobody else has it.
    let mut renewal = message(2, MessageType::Request);
    renewal.set_ciaddr(held[1]);
    assert!(matches!(server.clone().handle(&renewal, None, 200), Outcome::Leased(..)));
    server.probed(held[1]);
    assert!(matches!(discover(&mut server, 9, 201), Outcome::Offered(address, _) if address == held[1]));
    assert!(matches!(answer(&mut server, 9, held[1], 201), Outcome::Leased(..)));
    assert!(matches!(server.handle(&renewal, None, 202), Outcome::Refused(_)), "it is another machine's now");
    renewal = message(1, MessageType::Request);
    renewal.set_ciaddr(held[0]);
    assert!(matches!(server.handle(&renewal, None, 202), Outcome::Leased(..)));
}

proptest! {
    #[test]
    fn no_two_machines_ever_hold_one_address(
        events in proptest::collection::vec((0u8..6, 1u8..12, 8u8..20, 0u64..40), 0..80)
    ) {
        let mut server = DhcpServer::new(config(10, 15), vec![]);
        let mut now = 0;
        let mut held: BTreeMap<Ipv4Addr, (u8, u64)> = BTreeMap::new();
        for (kind, last, address, wait) in events {
            now += wait;
            let address = Ipv4Addr::new(10, 0, 0, address);
            let mut request = match kind {
                0 | 1 => message(last, MessageType::Discover),
                2 | 3 => with(message(last, MessageType::Request), DhcpOption::RequestedIpAddress(address)),
                4 => with(message(last, MessageType::Decline), DhcpOption::RequestedIpAddress(address)),
                _ => message(last, MessageType::Release),
            };
            if kind == 5 {
                request.set_ciaddr(address);
            }
            match server.handle(&request, None, now) {
                Outcome::Leased(leased, _) => {
                    if let Some((holder, until)) = held.insert(leased, (last, now + 100)) {
                        prop_assert!(holder == last || until <= now, "{leased} was taken from {holder}");
                    }
                    held.retain(|address, (holder, _)| *holder != last || *address == leased);
                }
                Outcome::Freed(freed) => drop(held.remove(&freed)),
                _ => {}
            }
        }
    }
}

/// The flags of a reply, and its options in the order in which they are on the wire.
fn wire(datagram: &Datagram) -> (u16, Vec<(u8, Vec<u8>)>) {
    let (mut rest, mut options) = (&datagram.bytes[240..], Vec::new());
    while let [code, len, tail @ ..] = rest {
        if *code == 255 {
            break;
        }
        let (value, tail) = tail.split_at(usize::from(*len));
        options.push((*code, value.to_vec()));
        rest = tail;
    }
    (u16::from_be_bytes([datagram.bytes[10], datagram.bytes[11]]), options)
}

#[test]
fn a_relay_of_another_network_gets_no_answer() {
    let mut server = DhcpServer::new(config(10, 99), vec![]);
    let (ours, other) = (Ipv4Addr::new(10, 0, 0, 254), Ipv4Addr::new(172, 16, 3, 1));
    let reboot = with(message(1, MessageType::Request), DhcpOption::RequestedIpAddress(Ipv4Addr::new(10, 0, 0, 20)));
    for request in [message(1, MessageType::Discover), reboot, message(1, MessageType::Inform)] {
        for relay in [other, Ipv4Addr::new(10, 0, 1, 1)] {
            let mut request = request.clone();
            request.set_giaddr(relay);
            assert_eq!(server.handle(&request, None, 0), Outcome::Elsewhere(relay));
        }
    }
    assert!(server.leases().is_empty());
    let mut request = message(1, MessageType::Discover);
    request.set_giaddr(ours);
    let Outcome::Offered(_, offer) = server.handle(&request, None, 0) else { panic!("it is our network") };
    assert_eq!(offer.to, SocketAddrV4::new(ours, SERVER_PORT));
    let mut inform = message(2, MessageType::Inform);
    inform.set_ciaddr(Ipv4Addr::new(192, 168, 7, 7));
    assert_eq!(server.handle(&inform, None, 0), Outcome::Silent, "our mask is not that network's");
}

#[test]
fn the_relays_option_and_the_clients_identifier_come_back_in_every_reply() {
    let mut server = DhcpServer::new(config(10, 99), vec![]);
    let boot = BootServer { address: SERVER, http_port: Some(80) };
    let dressed = |message: Message, relay: Option<Ipv4Addr>| {
        let message = with(message, crate::message::raw(82, b"\x01\x02ab\x02\x03xyz"));
        let message = with(message, DhcpOption::ClientIdentifier(b"\x00lab-7".to_vec()));
        let mut message = with(message, DhcpOption::ClassIdentifier(b"PXEClient:Arch:00007:UNDI:003000".to_vec()));
        message.set_giaddr(relay.unwrap_or(Ipv4Addr::UNSPECIFIED));
        message
    };
    for relay in [None, Some(Ipv4Addr::new(10, 0, 0, 200))] {
        let discover = dressed(message(1, MessageType::Discover), relay);
        let wrong = DhcpOption::RequestedIpAddress(Ipv4Addr::new(10, 9, 9, 9));
        let refused = dressed(with(message(1, MessageType::Request), wrong), relay);
        let mut inform = dressed(message(1, MessageType::Inform), relay);
        inform.set_ciaddr(Ipv4Addr::new(10, 0, 0, 9));
        let Outcome::Offered(address, offer) = server.handle(&discover, Some(&boot), 0) else { panic!("offered") };
        let request = DhcpOption::RequestedIpAddress(address);
        let request = dressed(with(message(1, MessageType::Request), request), relay);
        let Outcome::Leased(_, ack) = server.handle(&request, Some(&boot), 0) else { panic!("leased") };
        let Outcome::Refused(nak) = server.handle(&refused, None, 0) else { panic!("refused") };
        let Outcome::Informed(informed) = server.handle(&inform, Some(&boot), 0) else { panic!("informed") };
        let proxy = pxe::proxy_offer(&discover, &boot).expect("a PXE client");
        for reply in [&offer, &ack, &nak, &informed, &proxy] {
            let (_, options) = wire(reply);
            assert_eq!((options[0].0, options[1].0), (53, 54), "{options:?}");
            assert_eq!(options.last(), Some(&(82, b"\x01\x02ab\x02\x03xyz".to_vec())), "{options:?}");
            assert!(options.contains(&(61, b"\x00lab-7".to_vec())), "{options:?}");
        }
        // The client's flag was not set, and the relay's broadcast is the only way to it.
        assert_eq!(wire(&nak).0, if relay.is_some() { 0x8000 } else { 0 });
        assert_eq!(wire(&offer).0, 0);
        let to = relay.map_or((Ipv4Addr::BROADCAST, CLIENT_PORT), |relay| (relay, SERVER_PORT));
        assert_eq!((*nak.to.ip(), nak.to.port()), to);
    }
}

#[test]
fn an_address_that_no_machine_can_have_is_never_given() {
    for (prefix_len, first, last, given) in [
        (24, [10, 0, 0, 0], [10, 0, 0, 3], vec![2]),
        (24, [10, 0, 0, 253], [10, 0, 1, 9], vec![253, 254]),
        (29, [10, 0, 0, 0], [10, 0, 0, 15], vec![2, 4, 5, 6]),
        (31, [10, 0, 0, 0], [10, 0, 0, 1], vec![0]),
    ] {
        let range = Ipv4Addr::from(first)..=Ipv4Addr::from(last);
        let own = vec![Ipv4Addr::new(10, 0, 0, 3)];
        let mut server = DhcpServer::new(ServerConfig { prefix_len, range, own, ..config(1, 1) }, vec![]);
        let mut got: Vec<u8> = (1..9).filter_map(|last| lease(&mut server, last, 0)).map(|a| a.octets()[3]).collect();
        got.sort_unstable();
        assert_eq!(got, given, "/{prefix_len}");
        for host in [0, 255] {
            let asked = DhcpOption::RequestedIpAddress(Ipv4Addr::new(10, 0, 0, host));
            let outcome = server.handle(&with(message(9, MessageType::Request), asked), None, 0);
            assert!(matches!(outcome, Outcome::Refused(_)) || prefix_len == 31, "{outcome:?}");
        }
    }
}

#[test]
fn an_address_is_looked_for_before_a_machine_gets_it() {
    let mut server = DhcpServer::new(ServerConfig { probe: true, ..config(10, 12) }, vec![]);
    let discover = |server: &mut DhcpServer, last, now| server.handle(&message(last, MessageType::Discover), None, now);
    let Outcome::Probe(first) = discover(&mut server, 1, 0) else { panic!("not known") };
    let Outcome::Probe(second) = discover(&mut server, 2, 0) else { panic!("not known") };
    assert_ne!(first, second, "it is kept meanwhile");
    assert_eq!(discover(&mut server, 1, 1), Outcome::Probe(first), "asked again, it waits for the same");
    server.probed(first);
    assert!(matches!(discover(&mut server, 1, 1), Outcome::Offered(address, _) if address == first));
    // The other one is in use: the machine gets what is left, after a look at that.
    server.found_in_use(second, 1);
    let Outcome::Probe(third) = discover(&mut server, 2, 1) else { panic!("one is left") };
    assert!(third != first && third != second);
    server.probed(third);
    assert!(matches!(discover(&mut server, 2, 1), Outcome::Offered(address, _) if address == third));
    // What is leased to a machine is given to it at once; a stranger's wish for what is in use is refused.
    let request = |last, address| with(message(last, MessageType::Request), DhcpOption::RequestedIpAddress(address));
    assert!(matches!(server.handle(&request(1, first), None, 2), Outcome::Leased(..)));
    assert!(matches!(discover(&mut server, 1, 3), Outcome::Offered(address, _) if address == first));
    assert!(matches!(server.handle(&request(3, second), None, 3), Outcome::Refused(_)));
    // A lease that has ended may be another host's by now, and so may one that only the machine remembers.
    assert_eq!(discover(&mut server, 1, 500), Outcome::Probe(first));
    assert_eq!(server.handle(&request(9, second), None, 700), Outcome::Probe(second));
    server.found_in_use(second, 700);
    assert!(matches!(server.handle(&request(9, second), None, 700), Outcome::Refused(_)));
}

#[test]
fn a_network_behind_a_relay_gets_addresses_of_its_own() {
    let range = Ipv4Addr::new(172, 16, 3, 0)..=Ipv4Addr::new(172, 16, 3, 3);
    let relayed = vec![RelayedRange { range, prefix_len: 24 }];
    let mut server = DhcpServer::new(ServerConfig { relayed, probe: true, ..config(10, 99) }, vec![]);
    let relay = Ipv4Addr::new(172, 16, 3, 1);
    let through = |mut message: Message, relay: Ipv4Addr| {
        message.set_giaddr(relay);
        message
    };
    // It cannot be looked for from here, so it is offered at once; the relay's own address is the router.
    let discover = |last| through(message(last, MessageType::Discover), relay);
    let Outcome::Offered(address, offer) = server.handle(&discover(1), None, 0) else { panic!("offered") };
    assert!([2, 3].map(|last| Ipv4Addr::new(172, 16, 3, last)).contains(&address), "{address}");
    let reply = message::decode(&offer.bytes).expect("ours");
    assert_eq!(message::address_of(&reply, OptionCode::SubnetMask), Some(Ipv4Addr::new(255, 255, 255, 0)));
    assert_eq!(message::address_of(&reply, OptionCode::Router), Some(relay));
    assert_eq!(offer.to, SocketAddrV4::new(relay, SERVER_PORT));
    let request = with(message(1, MessageType::Request), DhcpOption::RequestedIpAddress(address));
    assert!(
        matches!(server.handle(&through(request.clone(), relay), None, 0), Outcome::Leased(at, _) if at == address)
    );
    // The same machine on our own link, or behind a relay that we know nothing of.
    assert!(matches!(server.handle(&request, None, 1), Outcome::Refused(_)));
    let Outcome::Probe(here) = server.handle(&message(1, MessageType::Discover), None, 1) else { panic!("ours") };
    assert_eq!(here.octets()[..3], [10, 0, 0]);
    let other = Ipv4Addr::new(172, 16, 4, 1);
    assert_eq!(server.handle(&through(request, other), None, 1), Outcome::Elsewhere(other));
    // A lease is renewed past the relay, which is still the machine's router.
    let mut renewal = message(1, MessageType::Request);
    renewal.set_ciaddr(address);
    let Outcome::Leased(renewed, reply) = server.handle(&renewal, None, 50) else { panic!("it has a lease") };
    assert_eq!((renewed, reply.to), (address, SocketAddrV4::new(address, CLIENT_PORT)));
    let reply = message::decode(&reply.bytes).expect("ours");
    assert_eq!(message::address_of(&reply, OptionCode::Router), Some(relay));
    let mut strangers = message(7, MessageType::Request);
    strangers.set_ciaddr(address);
    assert_eq!(server.handle(&strangers, None, 50), Outcome::Silent, "it has no lease, and its relay is not known");
    assert!(matches!(server.handle(&through(renewal, relay), None, 80), Outcome::Leased(at, _) if at == address));
    let kept = server.leases();
    assert!(matches!(server.handle(&discover(2), None, 80), Outcome::Offered(..)));
    let Outcome::Offered(second, _) = server.handle(&discover(3), None, 80) else { panic!("the offer is taken back") };
    assert_ne!(second, address, "what is leased there cannot be looked for");
    let request = with(message(3, MessageType::Request), DhcpOption::RequestedIpAddress(second));
    assert!(matches!(server.handle(&through(request, relay), None, 80), Outcome::Leased(..)));
    assert_eq!(server.handle(&discover(4), None, 81), Outcome::Exhausted);
    let relayed = server.config.relayed.clone();
    let mut again = DhcpServer::new(ServerConfig { relayed, ..config(10, 99) }, kept);
    assert!(matches!(again.handle(&discover(1), None, 90), Outcome::Offered(at, _) if at == address), "remembered");
}

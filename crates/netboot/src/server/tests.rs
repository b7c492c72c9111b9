//! Leases: who gets which address, for how long, and what is refused.

use proptest::prelude::*;

use super::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn config(first: u8, last: u8) -> ServerConfig {
    let range = Ipv4Addr::new(10, 0, 0, first)..=Ipv4Addr::new(10, 0, 0, last);
    ServerConfig { address: SERVER, prefix_len: 24, range, router: None, dns: vec![], lease_s: 100 }
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

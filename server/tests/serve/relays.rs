//! What a full DHCP server owes to a network: relays, addresses in use, many machines at once.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, OptionCode};
use netboot::message;

use crate::lan::{SERVER, in_namespace, run};
use crate::library::add_image;
use crate::packets::{self, file_of};
use crate::process::{PATIENCE, Server, eventually, ezio_ok};

fn ours() -> Ipv4Addr {
    SERVER.parse().expect("an address")
}

/// A packet as a relay passes it on, with its option 82.
fn relayed_packet(mut packet: Vec<u8>, relay: Ipv4Addr, option: &[u8]) -> Vec<u8> {
    packet[3] = 1;
    packet[24..28].copy_from_slice(&relay.octets());
    let end = packet.iter().rposition(|&byte| byte == 255).expect("an end");
    packet.truncate(end);
    if !option.is_empty() {
        packet.extend([82, u8::try_from(option.len()).expect("short")]);
        packet.extend(option);
    }
    packet.push(255);
    packet
}

#[test]
fn relays_get_what_they_sent_and_those_of_other_networks_nothing() {
    in_namespace("relays::relays_get_what_they_sent_and_those_of_other_networks_nothing", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let mode = ["--dhcp", "server", "--dhcp-range", "10.9.0.50-10.9.0.60"];
        let relayed = ["--dhcp-relayed", "172.21.0.50-172.21.0.60/25"];
        let mut server = Server::start(&lan, &[&mode[..], &relayed].concat());
        ezio_ok(&lan, &["arm", "debian"]);
        let relay = lan.station(7, true);
        for address in ["172.20.5.1/24", "172.21.0.1/25"] {
            relay.run("ip", &["addr", "add", address, "dev", "lo"]);
        }
        run("ip", &["route", "add", "172.20.0.0/15", "via", "10.9.0.7"]);
        eventually("armed", || relay.get("/boot.ipxe?mac=52:54:00:77:00:01").contains("gets image"));
        let (here, there) = (Ipv4Addr::new(10, 9, 0, 7), Ipv4Addr::new(172, 20, 5, 1));
        let to = SocketAddrV4::new(ours(), 67);
        let option = b"\x01\x06port-9\x02\x00";
        let raw = relay.run_in(move || {
            let packet = relayed_packet(packets::firmware("rom-bios", 1), here, option);
            let socket = packets::socket(67);
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket.send_to(&packet, to).expect("sent");
            let mut buf = [0; 2048];
            let len = socket.recv(&mut buf).expect("an answer");
            buf[..len].to_vec()
        });
        let offer = message::decode(&raw).expect("sound");
        assert_eq!((offer.giaddr(), file_of(&offer).as_str()), (here, "undionly.kpxe"));
        assert_eq!(raw[240..243], [53, 1, 2], "the type comes first");
        let end = raw.iter().rposition(|&byte| byte == 255).expect("an end");
        assert_eq!(raw[end - 12..end], [&[82, 10][..], option].concat(), "and the relay's option last");

        let answers = relay.run_in(move || {
            let packet = relayed_packet(packets::firmware("rom-bios", 2), there, b"");
            packets::ask_at(&packet, 67, to, 0)
        });
        assert!(answers.is_empty(), "{answers:?}");
        server.wait_for_log("asks through the relay 172.20.5.1");
        let log = server.log();
        assert!(log.contains("dhcp = \"proxy\"") && log.contains("dhcp_relayed"), "{log}");
        let known = Ipv4Addr::new(172, 21, 0, 1);
        let offers = relay.run_in(move || {
            let packet = relayed_packet(packets::firmware("rom-bios", 3), known, option);
            packets::ask_at(&packet, 67, to, 1)
        });
        assert_eq!(offers[0].yiaddr().octets()[..3], [172, 21, 0]);
        let mask = DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 128));
        assert_eq!(offers[0].opts().get(OptionCode::SubnetMask), Some(&mask));
        assert_eq!(offers[0].opts().get(OptionCode::Router), Some(&DhcpOption::Router(vec![known])));
        assert_eq!(file_of(&offers[0]), "undionly.kpxe");
    });
}

#[test]
fn an_address_that_a_host_uses_is_given_to_no_other() {
    in_namespace("relays::an_address_that_a_host_uses_is_given_to_no_other", &[], |lan| {
        // Two of three are in use, one of them by a host with two addresses.
        let host = lan.station(51, true);
        host.run("ip", &["addr", "add", "10.9.0.53/24", "dev", "eth0"]);
        let mut server = Server::start(&lan, &["--dhcp", "server", "--dhcp-range", "10.9.0.51-10.9.0.53"]);
        let machine = lan.station(1, false);
        let (lease, took) = machine.run_in(|| {
            let start = Instant::now();
            (packets::lease(1), start.elapsed())
        });
        assert_eq!(lease.address, Ipv4Addr::new(10, 9, 0, 52));
        assert!(took > Duration::from_millis(300), "it was looked for: {took:?}");
        let again = machine.run_in(|| packets::lease(1));
        assert_eq!(again.address, lease.address);
        let second = lan.station(2, false);
        eventually("nothing is left", || {
            let answers = second.run_in(|| packets::ask(&packets::firmware("rom-bios", 2), 0));
            assert!(answers.is_empty(), "{answers:?}");
            server.log().contains("52:54:00:77:00:02 gets no address")
        });
        server.wait_for_log("52:54:00:77:00:33 uses it already");
        let log = server.log();
        assert!(log.contains("10.9.0.51 is in dhcp_range") && log.contains("10.9.0.53 is in dhcp_range"), "{log}");
    });
}

#[test]
fn one_card_with_many_names_keeps_no_machine_from_an_address() {
    in_namespace("relays::one_card_with_many_names_keeps_no_machine_from_an_address", &[], |lan| {
        let _server = Server::start(&lan, &["--dhcp", "server", "--dhcp-range", "10.9.0.51-10.9.0.60"]);
        let (card, machine) = (lan.station(1, false), lan.station(2, false));
        let known = machine.run_in(|| packets::lease(200)).address;
        let offered: HashSet<Ipv4Addr> = card.run_in(|| {
            let names = (100..130).map(|number| packets::firmware("undionly", number));
            names.flat_map(|packet| packets::ask(&packet, 1)).map(|offer| offer.yiaddr()).collect()
        });
        assert_eq!(offered.len(), 9, "all but the one that is leased: {offered:?}");
        let new = machine.run_in(|| packets::lease(201)).address;
        assert!(new != known && offered.contains(&new), "{new} of {offered:?}");
        assert_eq!(machine.run_in(|| packets::lease(200)).address, known);
    });
}

#[test]
fn a_large_room_is_answered_at_once() {
    const MACHINES: u16 = 512;
    in_namespace("relays::a_large_room_is_answered_at_once", &[], |lan| {
        run("ip", &["addr", "del", "10.9.0.1/24", "dev", "br0"]);
        run("ip", &["addr", "add", "10.9.0.1/16", "dev", "br0"]);
        for mode in [&["--dhcp", "server", "--dhcp-range", "10.9.4.0-10.9.7.255"][..], &["--dhcp", "proxy"]] {
            add_image(&lan, "debian", 300_000);
            let server = Server::start(&lan, mode);
            ezio_ok(&lan, &["arm", "debian"]);
            let room = lan.station(if mode.len() > 2 { 1 } else { 2 }, false);
            let (offers, last) = room.run_in(|| {
                let socket = packets::socket(68);
                // The room's own side must not be what loses them.
                let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20);
                let answers = socket.try_clone().expect("a socket");
                let start = Instant::now();
                let hear = std::thread::spawn(move || {
                    answers.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                    let (mut offers, mut last) = (HashSet::new(), Duration::ZERO);
                    let mut buf = [0; 2048];
                    while offers.len() < usize::from(MACHINES)
                        && let Ok((len, _)) = answers.recv_from(&mut buf)
                    {
                        let offer = message::decode(&buf[..len]).expect("sound");
                        offers.insert((offer.xid(), offer.yiaddr()));
                        last = start.elapsed();
                    }
                    (offers, last)
                });
                let room: Vec<Vec<u8>> = (0..MACHINES).map(machine).collect();
                for packet in room {
                    socket.send_to(&packet, SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)).expect("sent");
                }
                hear.join().expect("heard")
            });
            assert_eq!(offers.len(), usize::from(MACHINES), "{mode:?}, the last one came after {last:?}");
            let addresses: HashSet<Ipv4Addr> = offers.iter().map(|(_, address)| *address).collect();
            let is_server = mode.contains(&"server");
            assert_eq!(addresses.len(), if is_server { usize::from(MACHINES) } else { 1 });
            println!("{mode:?}: the last of {MACHINES} after {last:?}");
            server.terminate();
        }
    });
}

/// A DISCOVER of one machine of many.
fn machine(number: u16) -> Vec<u8> {
    let mut packet = packets::firmware("undionly", 0);
    packet[4..8].copy_from_slice(&u32::from(number).to_be_bytes());
    packet[32..34].copy_from_slice(&number.to_be_bytes());
    packet
}

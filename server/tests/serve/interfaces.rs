//! Cards that come and go, and other servers on this computer.

use std::fs::{self, File};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Child, Command, Stdio};

use crate::lan::{Lan, in_namespace, run};
use crate::library::add_image;
use crate::mistakes::serve_fails;
use crate::packets;
use crate::process::{Server, eventually, ezio_fails, ezio_ok};

/// A second network: the server's `eth1` (10.8.0.1), plugged into a bridge that the stations of `lan` are moved to.
fn plug(address: &str) {
    run("ip", &["link", "add", "eth1", "type", "veth", "peer", "name", "p1"]);
    run("ip", &["link", "set", "p1", "master", "br1", "up"]);
    if !address.is_empty() {
        run("ip", &["addr", "add", address, "dev", "eth1"]);
    }
    run("ip", &["link", "set", "eth1", "up"]);
}

fn second_bridge() {
    run("ip", &["link", "add", "br1", "type", "bridge", "forward_delay", "0"]);
    run("ip", &["link", "set", "br1", "up"]);
}

fn status(lan: &Lan) -> String {
    ezio_ok(lan, &["status"]).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_card_that_comes_back_is_served_again() {
    in_namespace("interfaces::a_card_that_comes_back_is_served_again", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        second_bridge();
        let mut server = Server::start(&lan, &["--interface", "eth1"]);
        assert!(server.log().contains("there is no interface eth1 (there are: br0"), "{}", server.log());
        assert!(status(&lan).contains("TROUBLE: there is no interface eth1"), "{}", status(&lan));
        ezio_ok(&lan, &["arm", "debian"]);

        // It is plugged in, and gets its address late.
        plug("");
        server.wait_for_log("eth1 has no IPv4 address");
        run("ip", &["addr", "add", "10.8.0.1/24", "dev", "eth1"]);
        let client = lan.station(9, false);
        run("ip", &["link", "set", "s9", "master", "br1"]);
        client.run("ip", &["addr", "add", "10.8.0.9/24", "dev", "eth0"]);
        let curl = |url: &str| client.output("curl", &["-sf", "--connect-timeout", "1", "--max-time", "5", url]);
        let is_served = |address: &str| {
            let script = curl(&format!("http://{address}/boot.ipxe?mac=52-54-00-77-00-01"));
            let offers = || client.run_in(|| packets::ask(&packets::firmware("rom-bios", 1), 1));
            String::from_utf8_lossy(&script.stdout).contains(&format!("ezio.server={address}"))
                && curl(&format!("tftp://{address}/boot.ipxe")).status.success()
                && offers().iter().any(|offer| offer.siaddr().to_string() == address)
        };
        eventually("it is served", || is_served("10.8.0.1"));
        assert!(!status(&lan).contains("TROUBLE"), "{}", status(&lan));

        for round in 0..2 {
            run("ip", &["link", "del", "eth1"]);
            let gone = "eth1 is gone: machines behind it are not served; waiting for it";
            server.wait_for_log(gone);
            eventually("the status says so", || status(&lan).contains(&format!("TROUBLE: {gone}")));
            plug("10.8.0.1/24");
            eventually("it is served again", || is_served("10.8.0.1"));
            assert!(!status(&lan).contains("TROUBLE"), "{round}: {}", status(&lan));
        }
        run("ip", &["link", "set", "eth1", "down"]);
        server.wait_for_log("eth1 is down: machines behind it are not served");
        run("ip", &["link", "set", "eth1", "up"]);
        eventually("it is served again", || is_served("10.8.0.1"));

        run("ip", &["addr", "add", "10.8.0.77/24", "dev", "eth1"]);
        assert!(is_served("10.8.0.1"), "a second address changes nothing");
        run("ip", &["addr", "del", "10.8.0.1/24", "dev", "eth1"]);
        run("ip", &["addr", "replace", "10.8.0.77/24", "dev", "eth1"]);
        eventually("the new address is served", || is_served("10.8.0.77"));
        assert_eq!(server.terminate(), Some(0));
    });
}

#[test]
fn two_cards_are_served_and_each_by_itself() {
    in_namespace("interfaces::two_cards_are_served_and_each_by_itself", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        second_bridge();
        plug("10.8.0.1/24");
        let range = ["--dhcp", "server", "--dhcp-range", "10.8.0.50-10.8.0.60"];
        let mut server = Server::start(&lan, &[&["--interface", "br0,eth1", "--http", "false"], &range[..]].concat());
        let (here, there) = (lan.station(9, true), lan.station(8, false));
        run("ip", &["link", "set", "s8", "master", "br1"]);
        let lease = there.run_in(|| packets::lease(8));
        assert_eq!(lease.server_id, Ipv4Addr::new(10, 8, 0, 1));
        run("ip", &["link", "del", "eth1"]);
        server.wait_for_log("eth1 is gone");
        // Also without HTTP for machines; and what is there is served on.
        eventually("the status says so", || status(&lan).contains("no addresses are given out: dhcp_range is on none"));
        assert!(here.tftp("boot.ipxe").is_ok());
        plug("10.8.0.1/24");
        server.wait_for_log("eth1: served now");
        assert_eq!(there.run_in(|| packets::lease(8)).address, lease.address, "the lease is remembered");
        eventually("the status is clean", || !status(&lan).contains("TROUBLE"));
    });
}

/// dnsmasq for one interface of this computer, as libvirt starts it.
struct Dnsmasq {
    child: Child,
    log: std::path::PathBuf,
}

impl Dnsmasq {
    fn start(lan: &Lan, interface: &str, bind: &str, range: &str) -> Dnsmasq {
        let log = lan.dir.path().join(format!("dnsmasq-{interface}{bind}.log"));
        let leases = format!("--dhcp-leasefile={}.leases", log.display());
        let file = File::create(&log).expect("a log");
        let child = Command::new("dnsmasq")
            .args(["-C", "/dev/null", "-d", "--port=0", "--no-ping", "--user=", "--group=", "--pid-file=", &leases])
            .args([&format!("--interface={interface}"), bind, "--except-interface=lo", range])
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log"))
            .stderr(file)
            .spawn();
        Dnsmasq { child: child.expect("dnsmasq starts"), log }
    }

    fn has_begun(&mut self) -> bool {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let ended = self.child.try_wait().expect("it can be watched");
        assert!(ended.is_none(), "dnsmasq has ended: {log}");
        log.contains("sockets bound exclusively to interface") || log.contains("DHCP, IP range")
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_dnsmasq_of_another_interface_starts_before_and_after() {
    in_namespace("interfaces::a_dnsmasq_of_another_interface_starts_before_and_after", &["dnsmasq"], |lan| {
        run("ip", &["link", "add", "virbr0", "type", "bridge"]);
        run("ip", &["addr", "add", "192.168.122.1/24", "dev", "virbr0"]);
        run("ip", &["link", "set", "virbr0", "up"]);
        let range = "--dhcp-range=192.168.122.2,192.168.122.254";
        for bind in ["--bind-interfaces", "--bind-dynamic"] {
            for mode in [&["--dhcp", "proxy"][..], &["--dhcp", "server", "--dhcp-range", "10.9.0.50-10.9.0.60"]] {
                let arguments = [&["--interface", "br0"], mode].concat();
                {
                    let server = Server::start(&lan, &arguments);
                    let mut dnsmasq = Dnsmasq::start(&lan, "virbr0", bind, range);
                    eventually("dnsmasq serves", || dnsmasq.has_begun());
                    // And ours again, beside it.
                    server.terminate();
                    let server = Server::start(&lan, &arguments);
                    assert!(dnsmasq.has_begun());
                    server.terminate();
                }
                // On the same interface it is found out, also when it comes later.
                if mode.contains(&"proxy") {
                    let server = Server::start(&lan, &arguments);
                    let _dnsmasq = Dnsmasq::start(&lan, "br0", bind, "--dhcp-range=10.9.0.100,10.9.0.110");
                    let words = "TROUBLE: another DHCP server on this computer serves br0 too";
                    eventually("it is in the status", || status(&lan).contains(words));
                    server.terminate();
                }
                let mut dnsmasq = Dnsmasq::start(&lan, "br0", bind, "--dhcp-range=10.9.0.100,10.9.0.110");
                eventually("dnsmasq serves", || dnsmasq.has_begun());
                let error = serve_fails(&lan, &arguments);
                assert!(error.contains("port 67/udp") && error.contains("already in use"), "{error}");
            }
        }
    });
}

#[test]
fn an_interface_that_is_taken_by_another_server_is_tried_again() {
    in_namespace("interfaces::an_interface_that_is_taken_by_another_server_is_tried_again", &[], |lan| {
        second_bridge();
        let mut server = Server::start(&lan, &["--interface", "br0,eth1"]);
        let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 69)).expect_err("ours is there");
        assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
        plug("");
        run("ip", &["addr", "add", "10.8.0.1/24", "dev", "br1"]);
        let taken = UdpSocket::bind(("10.8.0.1", 69)).expect("free");
        run("ip", &["addr", "del", "10.8.0.1/24", "dev", "br1"]);
        run("ip", &["addr", "add", "10.8.0.1/24", "dev", "eth1"]);
        server.wait_for_log("eth1 is there and cannot be served: TFTP: port 69/udp on 10.8.0.1 is already in use");
        eventually("the status says so", || status(&lan).contains("TROUBLE: eth1 is there and cannot be served"));
        drop(taken);
        server.wait_for_log("eth1: served now, under 10.8.0.1/24");
        eventually("the status is clean", || !status(&lan).contains("TROUBLE"));
    });
}

#[test]
fn without_a_name_there_has_to_be_one_interface() {
    in_namespace("interfaces::without_a_name_there_has_to_be_one_interface", &[], |lan| {
        second_bridge();
        plug("10.8.0.1/24");
        let error = serve_fails(&lan, &[]);
        assert!(error.contains("name an interface") && error.contains("br0 10.9.0.1, eth1 10.8.0.1"), "{error}");
        let error = serve_fails(&lan, &["--interface", "eth9", "--dhcp", "server"]);
        assert!(error.contains("needs dhcp_range"), "{error}");
        let error = serve_fails(&lan, &["--interface", "eth1", "--address", "10.8.0.5"]);
        assert!(error.contains("the address 10.8.0.5 is not on eth1"), "{error}");
        assert!(ezio_fails(&lan, &["status"]).contains("no `ezio serve` is running"));
    });
}

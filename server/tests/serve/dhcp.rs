//! DHCP in all three modes, alone and beside a foreign server.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Child, Command, Stdio};

use dhcproto::v4::{DhcpOption, OptionCode};

use crate::lan::{Lan, SERVER, Station, in_namespace};
use crate::library::add_image;
use crate::packets::{self, file_of};
use crate::process::{Server, eventually, ezio_ok};

const SERVER_MODE: [&str; 4] = ["--dhcp", "server", "--dhcp-range", "10.9.0.50-10.9.0.60"];

#[test]
fn server_mode_gives_leases_to_machines_and_boot_files_to_firmware() {
    in_namespace(
        "dhcp::server_mode_gives_leases_to_machines_and_boot_files_to_firmware",
        &["curl", "busybox"],
        |lan| {
            add_image(&lan, "debian", 300_000);
            let server = Server::start(&lan, &SERVER_MODE);
            let machine = lan.station(1, false);
            let lease = machine.run_in(|| packets::lease(1));
            assert_eq!(lease.server_id, SERVER.parse::<Ipv4Addr>().expect("an address"));
            assert_eq!((lease.prefix_len, lease.siaddr), (24, Some(lease.server_id)));
            let offer = machine.run_in(|| packets::ask(&packets::firmware("ipxe-bios", 1), 1));
            assert_eq!(offer[0].yiaddr(), lease.address, "firmware and RAM system get the same address");
            assert_eq!(file_of(&offer[0]), "", "nothing is armed, so there is nothing to boot");

            ezio_ok(&lan, &["arm", "debian"]);
            eventually("armed", || {
                let offer = machine.run_in(|| packets::ask(&packets::firmware("ipxe-bios", 1), 1));
                file_of(&offer[0]).contains("boot.ipxe?mac=")
            });
            let ask =
                |name: &'static str| machine.run_in(move || packets::ask(&packets::firmware(name, 1), 1)).remove(0);
            assert_eq!(file_of(&ask("rom-bios")), "undionly.kpxe");
            assert_eq!(file_of(&ask("ovmf-pxe")), "snponly.efi");
            let http = ask("ovmf-http");
            let url = DhcpOption::BootfileName(format!("http://{SERVER}/boot/snponly.efi").into_bytes());
            assert_eq!(http.opts().get(OptionCode::BootfileName), Some(&url));
            assert_eq!(file_of(&ask("dhclient")), "", "an installed system gets a lease alone");

            server.kill();
            let _server = Server::start(&lan, &SERVER_MODE);
            assert_eq!(machine.run_in(|| packets::lease(1)).address, lease.address, "leases survive a kill");

            let foreign = lan.station(2, false);
            let said =
                foreign.output("busybox", &["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "10", "-s", "/bin/true"]);
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(said.contains("lease of 10.9.0.") && said.contains(SERVER), "{said}");
        },
    );
}

/// dnsmasq as the site's own DHCP server.
struct Site {
    dnsmasq: Child,
    _station: Station,
}

impl Site {
    fn start(lan: &Lan) -> Site {
        let station = lan.station(200, true);
        let leases = lan.dir.path().join("dnsmasq.leases");
        let leases = format!("--dhcp-leasefile={}", leases.display());
        let dnsmasq = station.run_in(move || {
            Command::new("dnsmasq")
                .args(["-C", "/dev/null", "-d", "--port=0", "--interface=eth0", "--bind-interfaces", "--no-ping"])
                .args(["--user=", "--group=", "--pid-file=", &leases])
                .arg("--dhcp-range=10.9.0.100,10.9.0.110,255.255.255.0,1h")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("dnsmasq starts")
        });
        Site { dnsmasq, _station: station }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.dnsmasq.kill();
        let _ = self.dnsmasq.wait();
    }
}

#[test]
fn the_proxy_stands_beside_a_foreign_server() {
    in_namespace("dhcp::the_proxy_stands_beside_a_foreign_server", &["curl", "dnsmasq"], |lan| {
        add_image(&lan, "debian", 300_000);
        let site = Site::start(&lan);
        let _server = Server::start(&lan, &[]);
        let machine = lan.station(1, false);
        let ours: Ipv4Addr = SERVER.parse().expect("an address");
        assert_eq!(machine.run_in(|| packets::lease(1)).server_id, Ipv4Addr::new(10, 9, 0, 200));
        // Firmware that wants broadcasts: dnsmasq unicasts to the others, which a kernel without that address drops.
        let only = machine.run_in(|| packets::ask(&packets::firmware("undionly", 1), 1));
        assert!(!only[0].yiaddr().is_unspecified(), "nothing is armed: only the site answers");

        ezio_ok(&lan, &["arm", "debian"]);
        let client = lan.station(9, true);
        eventually("armed", || client.get("/boot.ipxe?mac=52:54:00:77:00:01").contains("gets image"));
        for (name, wanted) in [
            ("undionly", "http://10.9.0.1/boot.ipxe?mac=52-54-00-77-00-01&uuid=10b8a76bad9dd11180b400c04fd430c8"),
            ("ovmf-pxe", "snponly.efi"),
            ("rom-bios", "undionly.kpxe"),
        ] {
            let offers = machine.run_in(move || packets::ask(&packets::firmware(name, 1), 2));
            let (proxy, site): (Vec<_>, Vec<_>) = offers.iter().partition(|offer| offer.yiaddr().is_unspecified());
            assert_eq!((proxy.len(), site.len()), (1, 1), "{name}: one offer each");
            assert_eq!((file_of(proxy[0]).as_str(), proxy[0].siaddr()), (wanted, ours), "{name}");
            assert_eq!(file_of(site[0]), "", "{name}");
        }
        // The RAM system takes the site's lease and is not confused by the proxy.
        assert_eq!(machine.run_in(|| packets::lease(1)).server_id, Ipv4Addr::new(10, 9, 0, 200));
        drop(site);

        let asks_again = lan.station(3, true);
        let acks = asks_again.run_in(move || {
            let packet = packets::firmware("ovmf-pxe-4011", 3);
            packets::ask_at(&packet, 4011, SocketAddrV4::new(ours, 4011), 1)
        });
        assert_eq!(file_of(&acks[0]), "snponly.efi");
        let request = machine.run_in(|| packets::ask(&packets::firmware("ovmf-pxe-4011", 1), 0));
        assert!(request.is_empty(), "a REQUEST on port 67 is for the site's server");
    });
}

#[test]
fn off_means_off_and_says_what_to_do() {
    in_namespace("dhcp::off_means_off_and_says_what_to_do", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let server = Server::start(&lan, &["--dhcp", "off"]);
        let log = server.log();
        assert!(log.contains("next-server 10.9.0.1") && log.contains("http://10.9.0.1/boot.ipxe"), "{log}");
        ezio_ok(&lan, &["arm", "debian"]);
        let client = lan.station(9, true);
        eventually("armed", || client.get("/boot.ipxe?mac=52:54:00:77:00:01").contains("gets image"));
        let machine = lan.station(1, false);
        assert!(machine.run_in(|| packets::ask(&packets::firmware("ipxe-efi", 1), 0)).is_empty());
        let anybody = client.get("/boot.ipxe");
        assert!(anybody.contains("boot.ipxe?mac=${mac:hexhyp}"), "{anybody}");
    });
}

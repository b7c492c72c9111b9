//! Other servers of the network: noticed, named, and in the way of `ezio arm`; and machines that are theirs.

use std::process::{Child, Command, Stdio};

use crate::lan::{Lan, Station, in_namespace};
use crate::library::add_image;
use crate::packets::{self, file_of};
use crate::process::{Server, boot_dir, eventually, ezio_fails, ezio_ok, file, token};

/// A program at a station, until it is dropped.
struct Foreign {
    child: Child,
    _station: Station,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(lan: &Lan, number: u8, program: &str, arguments: Vec<String>) -> Foreign {
    let (station, program) = (lan.station(number, true), program.to_owned());
    let child = station.run_in(move || {
        let mut command = Command::new(&program);
        command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("it starts")
    });
    Foreign { child, _station: station }
}

fn dnsmasq(lan: &Lan, number: u8, more: &[&str]) -> Foreign {
    let leases = format!("--dhcp-leasefile={}/{number}.leases", lan.dir.path().display());
    let usual = ["-C", "/dev/null", "-d", "--port=0", "--interface=eth0", "--bind-interfaces", "--no-ping"];
    let arguments = [&usual[..], &["--user=", "--group=", "--pid-file=", &leases], more].concat();
    start(lan, number, "dnsmasq", arguments.into_iter().map(str::to_owned).collect())
}

fn another_ezio(lan: &Lan, number: u8) -> Foreign {
    let library = lan.dir.path().join(format!("library-{number}"));
    let (library, boot) = (library.display().to_string(), boot_dir(lan).display().to_string());
    let arguments = ["serve", "--interface", "eth0", "--library", &library, "--boot-dir", &boot];
    start(lan, number, env!("CARGO_BIN_EXE_ezio"), arguments.map(str::to_owned).into())
}

fn status(lan: &Lan) -> String {
    ezio_ok(lan, &["status"]).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn another_ezio_and_another_pxe_server_are_in_the_way() {
    in_namespace("rivals::another_ezio_and_another_pxe_server_are_in_the_way", &["curl", "dnsmasq"], |lan| {
        add_image(&lan, "debian", 300_000);
        let mut server = Server::start(&lan, &[]);
        // Nothing is armed there, so no machine would hear of it.
        let ezio = another_ezio(&lan, 30);
        server.wait_for_log("another EZIO server, 10.9.0.30, is on br0");
        assert!(status(&lan).contains("TROUBLE: another EZIO server, 10.9.0.30"), "{}", status(&lan));
        let error = ezio_fails(&lan, &["arm", "debian"]);
        assert!(error.contains("nothing was armed: another EZIO server, 10.9.0.30"), "{error}");
        assert!(error.contains("--beside 10.9.0.30") && error.contains("beside = [\"10.9.0.30\"]"), "{error}");
        ezio_fails(&lan, &["arm", "debian", "--beside", "10.9.0.31"]);
        ezio_ok(&lan, &["arm", "debian", "--beside", "10.9.0.30"]);
        ezio_ok(&lan, &["disarm"]);
        server.terminate();

        let known = file(&lan, "known.toml", "beside = \"10.9.0.30\"\n");
        let mut server = Server::start(&lan, &["--config", &known]);
        let _proxy = dnsmasq(&lan, 40, &["--dhcp-range=10.9.0.0,proxy", "--pxe-service=x86PC,Boot,pxelinux"]);
        server.wait_for_log("another PXE server, 10.9.0.40, answers machines on br0");
        let error = ezio_fails(&lan, &["arm", "debian"]);
        assert!(error.contains("another PXE server (ProxyDHCP), 10.9.0.40") && !error.contains("0.30"), "{error}");
        drop(ezio);
    });
}

#[test]
fn the_sites_own_server_is_no_rival() {
    in_namespace("rivals::the_sites_own_server_is_no_rival", &["dnsmasq"], |lan| {
        add_image(&lan, "debian", 300_000);
        let range = "--dhcp-range=10.9.0.100,10.9.0.110,255.255.255.0,1h";
        let _site = dnsmasq(&lan, 20, &[range, "--dhcp-boot=old/pxelinux.0,,10.9.0.21"]);
        let mut server = Server::start(&lan, &[]);
        server.wait_for_log("the DHCP server 10.9.0.20 on br0 names the boot file \"old/pxelinux.0\"");
        assert!(status(&lan).contains("note: the DHCP server 10.9.0.20"), "{}", status(&lan));
        assert!(!status(&lan).contains("TROUBLE"), "{}", status(&lan));
        ezio_ok(&lan, &["arm", "debian"]);
        server.terminate();
        // One of the two is too many if both give out addresses.
        let mut server = Server::start(&lan, &["--dhcp", "server", "--dhcp-range", "10.9.0.50-10.9.0.60"]);
        server.wait_for_log("another DHCP server, 10.9.0.20, gives out addresses on br0");
        eventually("the status says so", || status(&lan).contains("TROUBLE: another DHCP server, 10.9.0.20"));
    });
}

#[test]
fn machines_that_nothing_is_armed_for_are_left_alone() {
    in_namespace("rivals::machines_that_nothing_is_armed_for_are_left_alone", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let config = file(&lan, "ezio.toml", "[groups.lab]\nmachines = [\"52:54:00:77:00:03\"]\n");
        let server = Server::start(&lan, &["--config", &config]);
        let client = lan.station(9, true);
        let is_answered = |number: u8| {
            let offers = client.run_in(move || packets::ask(&packets::firmware("rom-bios", number), 0));
            offers.iter().any(|offer| file_of(offer) == "undionly.kpxe")
        };
        ezio_ok(&lan, &["arm", "debian", "--mac", "52:54:00:77:00:01", "--group", "lab"]);
        eventually("armed", || is_answered(1));
        assert!(is_answered(3));
        assert!(!is_answered(2), "nothing is armed for it");
        let deployment = client.status()["armed"][0]["deployment"].as_str().expect("an order").to_owned();
        let token = token(&client, "52:54:00:77:00:01");
        let done =
            format!(r#"{{"mac":"52:54:00:77:00:01","stage":"done","deployment":"{deployment}","token":"{token}"}}"#);
        client.ask("/report", &["-d", &done]);
        assert!(client.get("/boot.ipxe?mac=52:54:00:77:00:01").contains("it has its image"));
        assert!(is_answered(1), "its script boots its disk");
        ezio_ok(&lan, &["arm", "debian"]);
        assert!(is_answered(2), "an order for every machine");
        ezio_ok(&lan, &["disarm"]);
        assert!(!is_answered(1) && !is_answered(2));
        server.terminate();

        let _server = Server::start(&lan, &["--answer", "all"]);
        ezio_ok(&lan, &["arm", "debian", "--mac", "52:54:00:77:00:01"]);
        assert!(is_answered(2), "as it is asked for");
    });
}

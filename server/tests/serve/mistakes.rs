//! Mistakes that people make, and the messages that they get.

use std::fs;
use std::net::{TcpListener, UdpSocket};

use crate::lan::{Lan, NOT_FOUND, in_namespace};
use crate::library::{add_image, add_partition_image, damage};
use crate::process::{Server, boot_dir, eventually, ezio_fails, ezio_ok, file, library};

pub fn serve_fails(lan: &Lan, arguments: &[&str]) -> String {
    let boot = boot_dir(lan);
    let mut all = vec!["serve", "--boot-dir", boot.to_str().expect("a plain path")];
    all.extend(arguments);
    ezio_fails(lan, &all)
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    in_namespace("mistakes::a_port_in_use_is_named_with_what_to_do", &[], |lan| {
        for (port, key) in [(67, "dhcp"), (4011, "dhcp"), (69, "tftp_port")] {
            let taken = UdpSocket::bind(("0.0.0.0", port)).expect("free until now");
            let error = serve_fails(&lan, &[]);
            assert!(error.contains(&format!("port {port}/udp")) && error.contains("is already in use"), "{error}");
            assert!(error.contains("ss -ulpn") && error.contains(key), "{error}");
            drop(taken);
        }
        let _taken = TcpListener::bind("0.0.0.0:80").expect("free until now");
        let error = serve_fails(&lan, &[]);
        assert!(error.contains("port 80/tcp") && error.contains("http_port"), "{error}");
        let _server = Server::start(&lan, &["--http-port", "8080"]);
        assert!(serve_fails(&lan, &[]).contains("runs on this library already"));
    });
}

#[test]
fn mistakes_in_the_config_are_named() {
    in_namespace("mistakes::mistakes_in_the_config_are_named", &[], |lan| {
        add_image(&lan, "debian", 300_000);
        let with = |text: &str| {
            let config = file(&lan, "ezio.toml", text);
            serve_fails(&lan, &["--config", &config])
        };
        let error = with("[groups.lab]\nmachines = [\"52:54:00:00:00:01\"]\nimage = \"debain\"\n");
        assert!(error.contains("groups.lab") && error.contains("\"debain\"") && error.contains("debian"), "{error}");
        let error = with("htpp_port = 80\n");
        assert!(error.contains("ezio.toml") && error.contains("line 1") && error.contains("http_port"), "{error}");
        let error = with("address = \"10.9.0.77\"\n");
        assert!(error.contains("10.9.0.77") && error.contains("br0 10.9.0.1"), "{error}");
        let error = with("dhcp = \"server\"\n");
        assert!(error.contains("dhcp_range"), "{error}");
        let error = with("dhcp = \"server\"\ndhcp_range = \"10.8.0.5-10.8.0.9\"\n");
        assert!(error.contains("none of the networks"), "{error}");
        let error = serve_fails(&lan, &["--config", "/nowhere/ezio.toml"]);
        assert!(error.contains("reading the config /nowhere/ezio.toml"), "{error}");
        let manifest = lan.dir.path().join("boot/manifest.json");
        fs::write(&manifest, r#"{"schema":1,"flavour":"generic"}"#).expect("written");
        let error = serve_fails(&lan, &[]);
        assert!(error.contains("is of an earlier version") && error.contains("make image"), "{error}");
        fs::remove_file(&manifest).expect("removed");
        fs::remove_file(lan.dir.path().join("boot/vmlinuz")).expect("removed");
        let boot = lan.dir.path().join("boot");
        let error = ezio_fails(&lan, &["serve", "--boot-dir", boot.to_str().expect("a plain path")]);
        assert!(error.contains("lacks vmlinuz") && error.contains("make image"), "{error}");
    });
}

#[test]
fn arming_what_is_not_there_lists_what_is() {
    in_namespace("mistakes::arming_what_is_not_there_lists_what_is", &[], |lan| {
        fs::create_dir_all(library(&lan)).expect("made");
        let error = ezio_fails(&lan, &["arm", "debian"]);
        assert!(error.contains("the library is empty; `ezio capture` makes one"), "{error}");
        add_image(&lan, "debian", 300_000);
        let error = ezio_fails(&lan, &["arm", "debain"]);
        assert!(error.contains("nothing was armed: ") && error.contains("did you mean \"debian\"?"), "{error}");
        let config = file(&lan, "ezio.toml", "[groups.lab]\n");
        let error = ezio_fails(&lan, &["arm", "debian", "--group", "lob", "--config", &config]);
        assert!(error.contains("no group \"lob\"") && error.contains("lab"), "{error}");
        let error = ezio_fails(&lan, &["arm", "debian", "--mac", "52:54"]);
        assert!(error.contains("52:54:00:12:34:56"), "{error}");
        for rule in ["serail=X", "bus=nvmee", "min=500X", "size"] {
            let error = ezio_fails(&lan, &["arm", "debian", "--target", rule]);
            assert!(error.contains("'--target <RULE>'") && error.contains("does not say which disk"), "{error}");
            let error = serve_fails(&lan, &["--target", rule]);
            assert!(error.contains(rule) && error.contains("use auto, /dev/NAME"), "{error}");
        }
        add_partition_image(&lan, "root");
        let error = ezio_fails(&lan, &["arm", "root", "--target", "/dev/sda2", "--grow", "last"]);
        assert!(error.contains("nothing was armed") && error.contains("it has no partition table"), "{error}");
        let said = ezio_ok(&lan, &["arm", "debian"]);
        assert!(said.contains("no `ezio serve` is running"), "{said}");
    });
}

#[test]
fn an_image_of_one_partition_goes_only_where_it_is_told() {
    in_namespace("mistakes::an_image_of_one_partition_goes_only_where_it_is_told", &["curl"], |lan| {
        add_image(&lan, "disk", 300_000);
        add_partition_image(&lan, "root");
        for more in [&[][..], &["--target", "bus=nvme,min=1G"], &["--mac", "52:54:00:77:00:01"], &["--dry-run"]] {
            let error = ezio_fails(&lan, &[&["arm", "root"], more].concat());
            assert!(error.contains("nothing was armed") && error.contains("this is one partition"), "{error}");
            assert!(error.contains("name where it goes with --target /dev/sda2"), "{error}");
        }
        let group = "[groups.lab]\nmachines = [\"52:54:00:77:00:02\"]\nimage = \"root\"\n";
        let pinned = file(&lan, "pinned.toml", group);
        let error = serve_fails(&lan, &["--config", &pinned]);
        assert!(error.contains("[groups.lab]") && error.contains("name where it goes"), "{error}");
        let error = ezio_fails(&lan, &["arm", "disk", "--config", &pinned]);
        assert!(error.contains("nothing was armed for 52:54:00:77:00:02"), "{error}");

        let named = file(&lan, "named.toml", &format!("{group}target = \"/dev/sda2\"\n"));
        let server = Server::start(&lan, &["--config", &named]);
        let client = lan.station(9, true);
        // The running server's config is asked.
        ezio_ok(&lan, &["arm", "disk"]);
        assert!(client.get("/boot.ipxe?mac=52:54:00:77:00:02").contains("gets image root"));
        ezio_ok(&lan, &["arm", "root", "--group", "lab"]);
        ezio_fails(&lan, &["arm", "root"]);
        ezio_ok(&lan, &["arm", "root", "--target", "serial=X"]);

        // As an older ezio left it.
        assert_eq!(server.terminate(), Some(0));
        let state = library(&lan).join("state");
        fs::remove_dir_all(&state).expect("removed");
        fs::create_dir(&state).expect("made");
        let order = r#"{"orders":[{"scope":"all","image":"root","deployment":"7f","target":"auto","at":5}]}"#;
        fs::write(state.join("armed.json"), order).expect("written");
        fs::write(state.join("fleet.json"), "[]").expect("written");
        let _server = Server::start(&lan, &["--config", &named]);
        let script = || client.get("/boot.ipxe?mac=52:54:00:77:00:01");
        eventually("it is refused", || script().contains("cannot be used") && script().contains("one partition"));
    });
}

#[test]
fn a_damaged_image_is_shown_and_the_others_go_on() {
    in_namespace("mistakes::a_damaged_image_is_shown_and_the_others_go_on", &["curl"], |lan| {
        add_image(&lan, "good", 300_000);
        add_image(&lan, "bad", 300_000);
        let server = Server::start(&lan, &[]);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "good"]);
        ezio_ok(&lan, &["arm", "bad", "--mac", "52:54:00:77:00:01"]);
        let seeds = |name: &str| {
            let status = client.status();
            let images = status["images"].as_array().expect("a list").clone();
            images.into_iter().find(|image| image["image"] == name)
        };
        eventually("both are seeded", || seeds("good").is_some() && seeds("bad").is_some());
        server.kill();
        damage(&lan, "bad");
        let _server = Server::start(&lan, &[]);
        eventually("the damage shows", || seeds("bad").is_some_and(|bad| bad["error"].is_string()));
        let table = ezio_ok(&lan, &["status"]);
        let words: Vec<&str> = table.split_whitespace().collect();
        assert!(words.join(" ").contains("has 1000 bytes instead of 300000"), "{table}");
        assert_ne!(client.tftp("torrents/bad.torrent").expect_err("damaged"), NOT_FOUND, "not missing, damaged");
        let script = client.get("/boot.ipxe?mac=52:54:00:77:00:01");
        assert!(script.contains("cannot be used") && script.contains("sleep 10"), "{script}");
        assert!(client.tftp("torrents/good.torrent").is_ok());
        assert!(client.get("/boot.ipxe?mac=52:54:00:77:00:02").contains("gets image good"));
        add_image(&lan, "bad", 300_000);
        eventually("a repaired image is taken up", || seeds("bad").is_some_and(|bad| bad["error"].is_null()));
    });
}

//! What is handed out, to foreign clients, and what is not.

use std::fs;

use crate::lan::{NOT_FOUND, SERVER, in_namespace};
use crate::process::{Server, boot_dir};

#[test]
fn foreign_clients_fetch_every_byte() {
    in_namespace("files::foreign_clients_fetch_every_byte", &["curl", "tftp"], |lan| {
        let server = Server::start(&lan, &[]);
        let client = lan.station(2, true);
        let boot = boot_dir(&lan);
        let got = lan.dir.path().join("got");
        let got = got.to_str().expect("a plain path");
        for name in ["undionly.kpxe", "snponly.efi", "vmlinuz", "initrd.img"] {
            let wanted = fs::read(boot.join(name)).expect("there");
            // tftp-hpa: 512-byte blocks, so that the large one rolls over.
            client.run("tftp", &["-m", "binary", SERVER, "-c", "get", name, got]);
            assert!(fs::read(got).expect("fetched") == wanted, "{name} by tftp-hpa");
            client.run("curl", &["-sSf", "-o", got, "--tftp-blksize", "1468", &format!("tftp://{SERVER}/{name}")]);
            assert!(fs::read(got).expect("fetched") == wanted, "{name} by curl's TFTP");
            client.run("curl", &["-sSf", "-o", got, &format!("http://{SERVER}/boot/{name}")]);
            assert!(fs::read(got).expect("fetched") == wanted, "{name} by HTTP");
        }
        let head = client.run("curl", &["-sSfI", &format!("http://{SERVER}/boot/vmlinuz")]);
        assert!(head.to_lowercase().contains(&format!("content-length: {}", 2 << 20)), "{head}");
        assert_eq!(
            client.tftp("/vmlinuz").expect("with a slash").len(),
            client.tftp("vmlinuz").expect("without").len()
        );
        assert_eq!(server.terminate(), Some(0), "SIGTERM is a clean end");
    });
}

#[test]
fn nothing_outside_the_tree_is_readable() {
    in_namespace("files::nothing_outside_the_tree_is_readable", &["curl"], |lan| {
        let _server = Server::start(&lan, &[]);
        let client = lan.station(2, true);
        fs::write(lan.dir.path().join("secret"), "secret").expect("written");
        fs::write(boot_dir(&lan).join("other"), "secret").expect("written");
        for name in ["../secret", "/etc/passwd", "other", "boot/../../secret", "torrents/../other", "..%2fsecret", ""] {
            let (status, body) = client.ask(&format!("/boot/{name}"), &[]);
            assert!(matches!(status, 400 | 404), "{name}: {status}");
            assert!(!body.contains("secret"), "{name}");
            // Two slashes: curl takes the first as its own.
            assert_eq!(client.tftp(&format!("/{name}")), Err(NOT_FOUND), "{name}");
        }
        for name in
            ["/torrents/../../secret", "/torrents/..%2f..%2fsecret.torrent", "/../secret", "/library/state/fleet.json"]
        {
            assert!(matches!(client.ask(name, &[]).0, 400 | 404), "{name}");
        }
        let put = client.output("curl", &["-sS", "-T", "/etc/hostname", &format!("tftp://{SERVER}/vmlinuz")]);
        assert!(!put.status.success(), "nothing is written by TFTP");
        let before = fs::read(boot_dir(&lan).join("vmlinuz")).expect("there").len();
        assert_eq!(before, 2 << 20);
    });
}

//! Golden packets: what each firmware of `testdata/` sends, and the answer that it gets.
//!
//! `UPDATE_TESTDATA=1 cargo test -p netboot` writes the `.expected` files again; read the difference before committing.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::*;
use crate::server::{DhcpServer, Outcome, ServerConfig};

const SERVER: BootServer = BootServer { address: Ipv4Addr::new(10, 77, 0, 1), http_port: Some(80) };

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex digits"))
        .collect()
}

/// The packet that a file of `testdata/` describes, options in the order they were captured in.
pub(crate) fn packet(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(testdata().join(name).with_extension("txt")).expect("the packet is there");
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    let mut len = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["xid", value] => bytes[4..8].copy_from_slice(&hex(value)),
            ["secs", value] => bytes[8..10].copy_from_slice(&value.parse::<u16>().expect("a number").to_be_bytes()),
            ["flags", value] => bytes[10..12].copy_from_slice(&hex(value)),
            ["ciaddr", value] => {
                bytes[12..16].copy_from_slice(&value.parse::<Ipv4Addr>().expect("an address").octets());
            }
            ["chaddr", value] => bytes[28..34].copy_from_slice(&hex(value)),
            ["length", value] => len = value.parse().expect("a number"),
            ["option", code, value] => {
                let value = hex(value);
                bytes.extend([code.parse().expect("a number"), u8::try_from(value.len()).expect("short")]);
                bytes.extend(value);
            }
            _ => panic!("{name}: {line}"),
        }
    }
    bytes.push(255);
    bytes.resize(bytes.len().max(len), 0);
    bytes
}

fn describe(out: &mut String, what: &str, datagram: Option<&Datagram>) {
    let Some(datagram) = datagram else {
        writeln!(out, "{what}: nothing").expect("a string");
        return;
    };
    // The end and the padding are not looked at by decode(), so the raw options are shown.
    let reply = message::decode(&datagram.bytes).expect("our own packet");
    writeln!(out, "{what}: {} bytes to {}", datagram.bytes.len(), datagram.to).expect("a string");
    writeln!(
        out,
        "  flags {:04x} ciaddr {} yiaddr {} siaddr {}",
        u16::from(reply.flags()),
        reply.ciaddr(),
        reply.yiaddr(),
        reply.siaddr()
    )
    .expect("a string");
    let file =
        reply.fname().map(|file| String::from_utf8_lossy(file).trim_end_matches('\0').to_owned()).unwrap_or_default();
    writeln!(out, "  file {file:?}").expect("a string");
    let mut rest = &datagram.bytes[240..];
    while let [code, len, tail @ ..] = rest {
        if *code == 255 {
            break;
        }
        let (value, tail) = tail.split_at(usize::from(*len));
        let text: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        match std::str::from_utf8(value) {
            Ok(words) if words.len() > 3 && words.chars().all(|c| c.is_ascii_graphic()) => {
                writeln!(out, "  option {code} {words:?}").expect("a string");
            }
            _ => writeln!(out, "  option {code} {text}").expect("a string"),
        }
        rest = tail;
    }
}

fn decisions(bytes: &[u8]) -> String {
    let mut out = String::new();
    let request = message::decode(bytes).expect("a sound packet");
    match identify(&request) {
        None => writeln!(out, "no netboot client"),
        Some(client) => writeln!(
            out,
            "{} {:?} architecture {} ipxe {}: {}; without HTTP: {}",
            client.mac,
            client.class,
            client.arch,
            client.is_ipxe,
            boot_file(&client, &SERVER).map_or("nothing".into(), |file| file.to_string()),
            boot_file(&client, &BootServer { http_port: None, ..SERVER })
                .map_or("nothing".into(), |file| file.to_string()),
        ),
    }
    .expect("a string");
    describe(&mut out, "proxy, port 67", proxy_offer(&request, &SERVER).as_ref());
    let from = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 50), 4011);
    describe(&mut out, "proxy, port 4011", proxy_ack(&request, from, &SERVER).as_ref());
    let config = ServerConfig {
        address: SERVER.address,
        prefix_len: 24,
        range: Ipv4Addr::new(10, 77, 0, 50)..=Ipv4Addr::new(10, 77, 0, 99),
        own: vec![],
        relayed: vec![],
        probe: false,
        router: None,
        dns: vec![],
        lease_s: 3600,
    };
    match DhcpServer::new(config, vec![]).handle(&request, Some(&SERVER), 1000) {
        Outcome::Offered(_, datagram) | Outcome::Leased(_, datagram) => {
            describe(&mut out, "server", Some(&datagram));
        }
        other => writeln!(out, "server: {other:?}").expect("a string"),
    }
    out
}

#[test]
fn every_firmware_is_told_what_was_written_down() {
    let mut names: Vec<PathBuf> = fs::read_dir(testdata())
        .expect("testdata is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    names.sort();
    assert!(names.len() >= 9, "{names:?}");
    for path in names {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let found = decisions(&packet(&name));
        let expected = path.with_extension("expected");
        if std::env::var_os("UPDATE_TESTDATA").is_some() {
            fs::write(&expected, &found).expect("written");
        }
        assert_eq!(found, fs::read_to_string(&expected).unwrap_or_default(), "{name}");
    }
}

#[test]
fn every_truncation_is_ignored_or_understood() {
    for name in ["ipxe-bios", "ipxe-efi", "ovmf-pxe", "ovmf-http", "rom-bios"] {
        let bytes = packet(name);
        for end in 0..bytes.len() {
            if let Ok(request) = message::decode(&bytes[..end]) {
                let _ = proxy_offer(&request, &SERVER);
                let _ = proxy_ack(&request, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 68), &SERVER);
            }
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 127, 255] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(request) = message::decode(&changed) {
                    let _ = proxy_offer(&request, &SERVER);
                }
            }
        }
    }
}

#[test]
fn the_user_class_is_known_in_both_spellings() {
    for value in [&b"iPXE"[..], b"\x04iPXE"] {
        let mut request = message::decode(&packet("rom-bios")).expect("sound");
        request.opts_mut().insert(DhcpOption::UserClass(value.to_vec()));
        assert!(identify(&request).expect("a client").is_ipxe);
    }
}

#[test]
fn the_oldest_rom_is_bios_and_a_new_port_is_in_the_url() {
    let mut request = message::decode(&packet("rom-bios")).expect("sound");
    request.opts_mut().remove(OptionCode::ClientSystemArchitecture);
    request.opts_mut().insert(DhcpOption::ClassIdentifier(b"PXEClient".to_vec()));
    assert_eq!(identify(&request).expect("a client").arch, 0);
    let client = identify(&message::decode(&packet("ipxe-bios")).expect("sound")).expect("a client");
    let file = boot_file(&client, &BootServer { http_port: Some(8080), ..SERVER }).expect("a file");
    assert_eq!(
        file.to_string(),
        "http://10.77.0.1:8080/boot.ipxe?mac=52-54-00-77-00-01&uuid=10b8a76bad9dd11180b400c04fd430c8"
    );
}

#[test]
fn ipxe_of_another_architecture_gets_no_script_that_cannot_run() {
    for (arch, is_served) in [(0, true), (7, true), (9, true), (6, false), (10, false), (11, false), (27, false)] {
        let mac = "52:54:00:77:00:01".parse().expect("an address");
        let client = BootClient { mac, uuid: None, class: Class::Pxe, arch, is_ipxe: true };
        assert_eq!(boot_file(&client, &SERVER).is_some(), is_served, "{arch}");
    }
}

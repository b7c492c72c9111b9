//! Rooms of firmware that ask at once, as they ask: size probes, fixed ports, names with a tail, small MTUs.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use async_tftp::server::TftpServerBuilder;
use netboot::tftp::{Fetch, FetchError, Step};

use crate::lan::{SERVER, in_namespace};
use crate::process::{PATIENCE, Server, boot_dir};

/// More than half of the machines ask within the same moment, so more transfers than old servers have places.
const MACHINES: usize = 300;

fn server(port: u16) -> SocketAddr {
    SocketAddr::from((SERVER.parse::<Ipv4Addr>().expect("an address"), port))
}

fn rrq(name: &[u8], options: &[&str]) -> Vec<u8> {
    let mut packet = vec![0, 1];
    for text in [name, b"octet"].into_iter().chain(options.iter().map(|option| option.as_bytes())) {
        packet.extend(text);
        packet.push(0);
    }
    packet
}

fn socket(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buf = vec![0; 2048];
    let (len, from) = socket.recv_from(&mut buf).expect("an answer");
    buf.truncate(len);
    (buf, from)
}

/// A whole file with our client.
fn fetch(socket: &UdpSocket, from: SocketAddr, name: &str) -> Result<Vec<u8>, FetchError> {
    let mut fetch = Fetch::new(from, name, 64 << 20, Instant::now());
    let mut buf = vec![0; 2048];
    loop {
        match fetch.poll(Instant::now()) {
            Step::Send { to, packet } => drop(socket.send_to(&packet, to)),
            Step::Wait { until } => {
                let wait = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                socket.set_read_timeout(Some(wait)).expect("a timeout");
                if let Ok((len, from)) = socket.recv_from(&mut buf) {
                    fetch.receive(from, &buf[..len], Instant::now());
                }
            }
            Step::Done(bytes) => return Ok(bytes),
            Step::Failed(error) => return Err(error),
        }
    }
}

/// The way of old ROMs: one block, one ACK; and if nothing comes for a second, the request again.
fn fetch_by_rom(socket: &UdpSocket, name: &str) -> Vec<u8> {
    fetch_in_blocks(socket, name, 1456, &[])
}

fn fetch_in_blocks(socket: &UdpSocket, name: &str, blksize: usize, more: &[&str]) -> Vec<u8> {
    let size = blksize.to_string();
    let request = rrq(name.as_bytes(), &[&["blksize", &size], more].concat());
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let (mut file, mut next, mut last) = (Vec::new(), 1u16, (request, server(69)));
    let mut buf = vec![0; 2048];
    let began = Instant::now();
    socket.send_to(&last.0, last.1).expect("sent");
    while began.elapsed() < PATIENCE {
        let Ok((len, from)) = socket.recv_from(&mut buf) else {
            socket.send_to(&last.0, last.1).expect("sent");
            continue;
        };
        match (&buf[..2], u16::from_be_bytes([buf[2], buf[3]])) {
            ([0, 6], _) => last = (vec![0, 4, 0, 0], from),
            ([0, 3], block) if block == next => {
                file.extend(&buf[4..len]);
                last = ([[0, 4], block.to_be_bytes()].concat(), from);
                next = next.wrapping_add(1);
            }
            ([0, 5], code) => panic!("refused with {code}: {}", String::from_utf8_lossy(&buf[4..len])),
            _ => continue,
        }
        socket.send_to(&last.0, last.1).expect("sent");
        if buf[..2] == [0, 3] && len < blksize + 4 {
            return file;
        }
    }
    panic!("no end of {name}");
}

/// UEFI asks for the size, ends that, and asks again; BIOS fetches block by block; all of them at the same moment.
#[test]
fn a_room_that_is_switched_on_at_once_is_served() {
    in_namespace("tftp::a_room_that_is_switched_on_at_once_is_served", &[], |lan| {
        let _server = Server::start(&lan, &[]);
        let wanted = Arc::new(
            ["snponly.efi", "undionly.kpxe"].map(|name| std::fs::read(boot_dir(&lan).join(name)).expect("there")),
        );
        let client = lan.station(9, true);
        client.run_in(move || {
            let start = Arc::new(Barrier::new(2 * MACHINES));
            let machine = |number: usize| {
                let (start, wanted) = (Arc::clone(&start), Arc::clone(&wanted));
                std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
                    start.wait();
                    if number.is_multiple_of(2) {
                        let probe = socket(0);
                        probe.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
                        let ask = rrq(b"snponly.efi", &["tsize", "0", "blksize", "1468", "windowsize", "4"]);
                        let (_, from) = loop {
                            probe.send_to(&ask, server(69)).expect("sent");
                            let mut buf = [0; 600];
                            if let Ok((len, from)) = probe.recv_from(&mut buf) {
                                assert_eq!(buf[..2], [0, 6], "{}", String::from_utf8_lossy(&buf[..len]));
                                break (len, from);
                            }
                        };
                        probe.send_to(b"\0\x05\0\x08User aborted the transfer\0", from).expect("sent");
                        assert!(fetch(&socket(0), server(69), "snponly.efi").expect("served") == wanted[0]);
                    } else {
                        assert!(fetch_by_rom(&socket(0), "undionly.kpxe") == wanted[1]);
                    }
                })
            };
            let machines: Vec<_> = (0..2 * MACHINES).map(|number| machine(number).expect("a thread")).collect();
            let failed = machines.into_iter().map(|machine| machine.join()).filter(Result::is_err).count();
            assert_eq!(failed, 0, "machines went without their file");
        });
    });
}

/// Some firmware uses one port for everything: what ended there must not answer any more.
#[test]
fn one_port_after_another_request_from_it() {
    in_namespace("tftp::one_port_after_another_request_from_it", &[], |lan| {
        let _server = Server::start(&lan, &[]);
        let wanted = std::fs::read(boot_dir(&lan).join("snponly.efi")).expect("there");
        let client = lan.station(9, true);
        client.run_in(move || {
            let socket = socket(2070);
            for (request, abort) in [
                // The size probe, ended.
                (rrq(b"snponly.efi", &["tsize", "0"]), true),
                // Another file, left in the middle without a word.
                (rrq(b"undionly.kpxe", &["blksize", "512"]), false),
            ] {
                socket.send_to(&request, server(69)).expect("sent");
                let (_, from) = receive(&socket);
                if abort {
                    socket.send_to(b"\0\x05\0\x08User aborted the transfer\0", from).expect("sent");
                }
                let began = Instant::now();
                socket.send_to(&rrq(b"snponly.efi", &["blksize", "1468"]), server(69)).expect("sent");
                let (packet, new) = loop {
                    let (packet, source) = receive(&socket);
                    if source != from {
                        break (packet, source);
                    }
                };
                assert_eq!(packet, b"\0\x06blksize\x001468\0");
                assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
                socket.send_to(b"\0\x05\0\0enough\0", new).expect("sent");
            }
            assert!(fetch(&socket, server(69), "snponly.efi").expect("served") == wanted);
            socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
            let stray = socket.recv_from(&mut [0; 2048]);
            assert!(stray.is_err(), "something came after the end: {stray:?}");
        });
    });
}

/// A router that knows one file name sends our own iPXE to the loader that it is.
#[test]
fn a_loader_that_asks_for_itself_gets_the_script() {
    in_namespace("tftp::a_loader_that_asks_for_itself_gets_the_script", &["curl"], |lan| {
        let _server = Server::start(&lan, &["--dhcp", "off"]);
        let read = |name: &str| std::fs::read(boot_dir(&lan).join(name)).expect("there");
        let (bios, uefi) = (read("undionly.kpxe"), read("snponly.efi"));
        let (first, second) = (lan.station(9, true), lan.station(10, true));
        let script = first.tftp("boot.ipxe").expect("there").into_bytes();
        assert!(script.starts_with(b"#!ipxe\n"), "{script:?}");
        let ask = |station: &crate::lan::Station, name: &'static str, blksize: usize, more: &'static [&'static str]| {
            station.run_in(move || fetch_in_blocks(&socket(0), name, blksize, more))
        };
        const IPXE: (usize, &[&str]) = (1432, &["tsize", "0"]);
        let ipxe = |station, name| ask(station, name, IPXE.0, IPXE.1);
        let probe = |name: &'static str| {
            first.run_in(move || {
                let socket = socket(0);
                socket.send_to(&rrq(name.as_bytes(), &["tsize", "0", "blksize", "1432"]), server(69)).expect("sent");
                let (answer, from) = receive(&socket);
                socket.send_to(b"\0\x05\0\x08User aborted the transfer\0", from).expect("sent");
                answer
            })
        };
        // UEFI: the size, the loader, and then the loader's own question, for as long as that fails.
        ask(&first, "snponly.efi", 1468, &["tsize", "0", "windowsize", "1"]);
        assert!(ask(&first, "snponly.efi", 1468, &["windowsize", "1"]) == uefi, "firmware asks as often as it likes");
        assert!(ask(&first, "snponly.efi", 1432, &["windowsize", "1"]) == uefi, "iPXE has no windows");
        assert!(String::from_utf8_lossy(&probe("snponly.efi")).contains(&format!("tsize\0{}\0", script.len())));
        assert!(ipxe(&second, "snponly.efi") == uefi, "another machine");
        assert_eq!(ipxe(&first, "snponly.efi"), script);
        // A virtual machine's ROM is an iPXE too, and the next start begins with the loader again.
        for _ in 0..2 {
            assert!(ipxe(&first, "undionly.kpxe") == bios);
            assert!(ask(&first, "undionly.kpxe", 1456, &[]) == bios && ask(&first, "undionly.kpxe", 1408, &[]) == bios);
            assert_eq!(ipxe(&first, "undionly.kpxe"), script);
        }
        // Only what was fetched to its end counts.
        assert!(!String::from_utf8_lossy(&probe("snponly.efi")).contains(&format!("tsize\0{}\0", script.len())));
        assert!(ipxe(&first, "snponly.efi") == uefi);
    });
}

#[test]
fn odd_requests_are_answered_and_blocks_fit_the_interface() {
    in_namespace("tftp::odd_requests_are_answered_and_blocks_fit_the_interface", &["ip"], |lan| {
        let _server = Server::start(&lan, &[]);
        let client = lan.station(9, true);
        let answers = |requests: Vec<Vec<u8>>| {
            client.run_in(move || {
                let ask = |request: &Vec<u8>| {
                    let socket = socket(0);
                    socket.send_to(request, server(69)).expect("sent");
                    let (answer, from) = receive(&socket);
                    let _ = socket.send_to(b"\0\x05\0\0enough\0", from);
                    answer
                };
                requests.iter().map(ask).collect::<Vec<_>>()
            })
        };
        let tails = [&b"snponly.efi\xff"[..], b"snponly.efi\xff\xff\xff\xff\xff", b"/snponly.efi", b"\\snponly.efi"];
        for answer in answers(tails.map(|name| rrq(name, &["tsize", "0"])).to_vec()) {
            assert!(answer.starts_with(b"\0\x06tsize\0"), "{answer:?}");
        }
        let refused = [
            (rrq(b"\xff\xfe", &[]), 1),
            (rrq(b"nothing", &[]), 1),
            (b"\0\x01snponly.efi".to_vec(), 4),
            (b"\0\x01snponly.efi\0oct".to_vec(), 4),
            (rrq(&[b'x'; 1400], &[]), 4),
            (b"\0\x02snponly.efi\0octet\0".to_vec(), 2),
        ];
        let codes = refused.iter().map(|(_, code)| [0, 5, 0, *code]);
        for (answer, code) in
            answers(refused.iter().map(|(request, _)| request.clone()).collect()).into_iter().zip(codes)
        {
            assert_eq!(answer[..4], code, "{}", String::from_utf8_lossy(&answer));
        }
        let big = || vec![rrq(b"snponly.efi", &["blksize", "1468"]), rrq(b"snponly.efi", &["blksize", "65464"])];
        assert!(answers(big()).iter().all(|answer| answer == b"\0\x06blksize\x001468\0"));
        // A tunnel under the bridge; it is noticed while the server runs.
        crate::lan::run("ip", &["link", "set", "br0", "mtu", "1400"]);
        assert!(answers(big()).iter().all(|answer| answer == b"\0\x06blksize\x001368\0"));
    });
}

/// The RAM system's client against a server that is not ours.
#[test]
fn our_client_takes_every_byte_from_a_foreign_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at / 7 % 251) as u8).collect();
    std::fs::write(dir.path().join("file"), &content).expect("written");
    let (address, ready) = std::sync::mpsc::channel();
    let root = dir.path().to_owned();
    std::thread::spawn(move || {
        futures_lite::future::block_on(async {
            let builder = TftpServerBuilder::with_dir_ro(root).expect("a directory");
            let server = builder.bind("127.0.0.1:0".parse().expect("an address")).build().await.expect("a server");
            address.send(server.listen_addr().expect("an address")).expect("the test waits");
            let _ = server.serve().await;
        });
    });
    let address = ready.recv().expect("it has started");
    assert!(fetch(&socket(0), address, "file").expect("served") == content);
    let Err(FetchError::Refused { code, .. }) = fetch(&socket(0), address, "other") else {
        panic!("there is no other")
    };
    assert_eq!(code, 1);
}

//! Garbage, floods and clients that give up: counted, ignored, survived.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::lan::{SERVER, in_namespace};
use crate::library::add_image;
use crate::packets;
use crate::process::{PATIENCE, Server, eventually, ezio_ok, file, library};

fn server(port: u16) -> SocketAddr {
    SocketAddr::from((SERVER.parse::<Ipv4Addr>().expect("an address"), port))
}

/// Bytes nobody can guess the meaning of, the same at every run.
fn garbage(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 * 2 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn floods_of_garbage_leave_it_serving() {
    in_namespace("hostile::floods_of_garbage_leave_it_serving", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let _server = Server::start(&lan, &[]);
        ezio_ok(&lan, &["arm", "debian"]);
        let client = lan.station(9, true);
        eventually("armed", || client.get("/boot.ipxe?mac=52:54:00:77:00:01").contains("gets image"));
        client.run_in(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            let discover = packets::firmware("ovmf-pxe", 9);
            for round in 0..3000 {
                for port in [67, 4011] {
                    let mut packet = discover.clone();
                    let at = round * 37 % packet.len();
                    packet[at] ^= garbage(round, 1)[0];
                    packet.truncate(round * 13 % (discover.len() + 1));
                    let _ = socket.send_to(&packet, server(port));
                    let _ = socket.send_to(&garbage(round, round % 700), server(port));
                }
                let mut tftp = garbage(round, round % 600);
                if tftp.len() > 2 {
                    (tftp[0], tftp[1]) = (0, (round % 8) as u8);
                }
                let _ = socket.send_to(&tftp, server(69));
                // Long names and impossible options, each from another port's point of view the same client.
                let name =
                    format!("\0\x01{}\0octet\0blksize\0{round}\0windowsize\00\0tsize\0-1\0", "a/".repeat(round % 200));
                let _ = socket.send_to(name.as_bytes(), server(69));
            }
            for round in 0..200 {
                if let Ok(mut stream) = TcpStream::connect(server(80)) {
                    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
                    let _ = stream.write_all(&garbage(round, 3000));
                    let _ = stream.read(&mut [0; 100]);
                }
            }
        });
        assert_eq!(client.ask("/report", &["-d", "{}"]).0, 400);
        assert_eq!(client.ask("/report", &["-d", "\u{1}"]).0, 400);
        assert_eq!(client.ask("/boot.ipxe?mac=zz", &[]).0, 400);
        assert_eq!(client.ask("/nothing", &[]).0, 404);
        assert!(client.get("/announce?info_hash=short").contains("failure reason"));
        let large = format!("@{}", file(&lan, "large", &"x".repeat(10 << 20)));
        assert_eq!(client.ask("/report", &["--data-binary", &large]).0, 413);

        assert!(client.tftp("ezio.conf").expect("still served").contains("IMAGE=debian"));
        assert!(client.get("/boot.ipxe?mac=52:54:00:77:00:01").contains("gets image"));
        let machine = lan.station(1, false);
        assert_eq!(machine.run_in(|| packets::ask(&packets::firmware("ovmf-pxe", 1), 1)).len(), 1);
        let counters = client.status()["counters"].clone();
        for name in ["dhcp_malformed", "tftp_refused", "reports_bad", "announces_bad", "http_bad"] {
            assert!(counters[name].as_u64().expect("a number") > 0, "{name}: {counters}");
        }
    });
}

#[test]
fn slow_connections_do_not_keep_others_out() {
    in_namespace("hostile::slow_connections_do_not_keep_others_out", &["curl"], |lan| {
        let _server = Server::start(&lan, &[]);
        let client = lan.station(9, true);
        let slow = lan.station(8, true);
        let connect = |from: Vec<u8>, count: usize| {
            slow.run_in(move || {
                let connect = |number: usize| {
                    let stream = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
                    let from = Ipv4Addr::new(10, 9, 0, from[number % from.len()]);
                    stream.bind(&SocketAddr::from((from, 0)).into()).expect("an address of ours");
                    stream.connect(&server(80).into()).expect("connected");
                    let mut stream = TcpStream::from(stream);
                    let _ = stream.write_all(b"G");
                    stream
                };
                (0..count).map(connect).collect::<Vec<TcpStream>>()
            })
        };
        let get = || client.run("curl", &["-sSf", "--max-time", "20", &format!("http://{SERVER}/")]);
        let streams = connect(vec![8], 700);
        assert!(get().contains("ezio"), "a flood from one address");
        drop(streams);
        let addresses: Vec<u8> = (100..110).collect();
        for last in &addresses {
            slow.run("ip", &["addr", "add", &format!("10.9.0.{last}/24"), "dev", "eth0"]);
        }
        let _streams = connect(addresses, 700);
        assert!(get().contains("ezio"), "a flood from many");
    });
}

#[test]
fn floods_leave_a_short_log() {
    in_namespace("hostile::floods_leave_a_short_log", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let mut server_process = Server::start(&lan, &[]);
        ezio_ok(&lan, &["arm", "debian"]);
        let machine = lan.station(1, false);
        machine.run_in(|| {
            // An architecture that nobody has a loader for (option 93).
            let mut packet = packets::firmware("ovmf-pxe", 1);
            let at = packet.windows(3).position(|option| option == [93, 2, 0]).expect("an architecture");
            packet[at + 3] = 99;
            let socket = packets::socket(68);
            for number in 0..500u16 {
                packet[32..34].copy_from_slice(&number.to_be_bytes());
                socket.send_to(&packet, ("255.255.255.255", 67)).expect("sent");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        server_process.wait_for_log("has client architecture 99");
        let lines = || server_process.log().matches("has client architecture 99").count();
        // Whatever follows has been looked at after the flood.
        assert_eq!(machine.run_in(|| packets::ask(&packets::firmware("ovmf-pxe", 1), 1)).len(), 1);
        assert!((1..=20).contains(&lines()), "{} lines", lines());
    });
}

#[test]
fn what_others_wrote_is_only_text_in_the_log() {
    in_namespace("hostile::what_others_wrote_is_only_text_in_the_log", &["curl"], |lan| {
        let mut server = Server::start(&lan, &[]);
        let client = lan.station(9, true);
        let report = r#"{"mac":"52:54:00:77:00:01","stage":"failed","error":"2 disks:\n/dev/sda \u001b[2J"}"#;
        assert_eq!(client.ask("/report", &["-d", report]).0, 204);
        server.wait_for_log("52:54:00:77:00:01 failed: 2 disks: | /dev/sda  [2J\n");
        assert!(!server.log().contains('\u{1b}'));
    });
}

/// A room that is switched on at once fetches one torrent many times, and slow machines take long.
#[test]
fn a_torrent_is_in_memory_once() {
    in_namespace("hostile::a_torrent_is_in_memory_once", &["curl"], |lan| {
        const LEN: usize = 8 << 20;
        add_image(&lan, "debian", 300_000);
        let torrent = library(&lan).join("images/debian/image.torrent");
        let mut bytes = std::fs::read(&torrent).expect("a torrent");
        assert_eq!(bytes.pop(), Some(b'e'));
        bytes.extend(format!("4:last{LEN}:{}e", "x".repeat(LEN)).into_bytes());
        std::fs::write(&torrent, bytes).expect("written");
        let server_process = Server::start(&lan, &[]);
        ezio_ok(&lan, &["arm", "debian"]);
        let client = lan.station(9, true);
        assert!(client.get("/torrents/debian.torrent").len() > LEN);
        let before = server_process.memory();
        let _transfers = client.run_in(|| {
            let transfer = |_| {
                let mut http = TcpStream::connect(server(80)).expect("connected");
                http.write_all(b"GET /torrents/debian.torrent HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
                http.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                http.read_exact(&mut [0; 100]).expect("an answer");
                let tftp = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                tftp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                tftp.send_to(b"\0\x01torrents/debian.torrent\0octet\0", server(69)).expect("sent");
                tftp.recv_from(&mut [0; 600]).expect("an answer");
                (http, tftp)
            };
            (0..40).map(transfer).collect::<Vec<_>>()
        });
        let more = server_process.memory().saturating_sub(before);
        assert!(more < 10 * LEN as u64, "{more} bytes more for 80 transfers");
    });
}

/// but not for ever.
#[test]
fn a_client_that_aborts_is_served_again() {
    in_namespace("hostile::a_client_that_aborts_is_served_again", &[], |lan| {
        let _server = Server::start(&lan, &[]);
        let client = lan.station(9, true);
        client.run_in(|| {
            let request = b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0";
            let ask = |socket: &UdpSocket| {
                socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
                let start = Instant::now();
                let mut buf = [0; 2000];
                while start.elapsed() < PATIENCE {
                    socket.send_to(request, server(69)).expect("sent");
                    while let Ok((len, from)) = socket.recv_from(&mut buf) {
                        // An OACK from a port we have not aborted yet.
                        if buf[..2] == [0, 6] {
                            let text = String::from_utf8_lossy(&buf[2..len]).into_owned();
                            socket.send_to(b"\0\x05\0\x08aborted\0", from).expect("sent");
                            return (text, from, start.elapsed());
                        }
                    }
                }
                panic!("never served");
            };
            // Where this machine stands still, anything takes long, but not every time.
            let at_once = (0..10).find_map(|_| {
                let first = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                let (oack, from, _) = ask(&first);
                let options: Vec<&str> = oack.split('\0').collect();
                assert!(options.windows(2).any(|pair| pair == ["tsize", "300001"]), "{oack:?}");
                assert!(options.windows(2).any(|pair| pair == ["windowsize", "4"]), "{oack:?}");
                let second = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                let (_, _, waited) = ask(&second);
                (waited < Duration::from_secs(5)).then_some((first, from))
            });
            let (first, from) = at_once.expect("another port is served at once, not when the first is done with");
            // The same port again: what still arrives is the first transfer, until its retries are used up.
            let again = Instant::now();
            loop {
                let (_, now_from, _) = ask(&first);
                if now_from != from {
                    break;
                }
                assert!(again.elapsed() < PATIENCE, "the same port is never served again");
            }
        });
    });
}

#[test]
fn pages_of_others_and_names_of_others_are_refused() {
    in_namespace("hostile::pages_of_others_and_names_of_others_are_refused", &["curl"], |lan| {
        let _server = Server::start(&lan, &["--http-names", "boot.example.org"]);
        let client = lan.station(9, true);
        let status = |headers: &[&str]| {
            let flags: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
            client.ask("/status.json", &flags).0
        };
        assert_eq!(status(&[]), 200);
        assert_eq!(status(&["Host: ezio.lan"]), 200);
        assert_eq!(status(&["Host: boot.example.org"]), 200);
        assert_eq!(status(&["Host: rebound.example"]), 403);
        assert_eq!(status(&["Origin: http://elsewhere.example"]), 403);
        let report = r#"{"mac":"52:54:00:77:00:01","stage":"done"}"#;
        let page = ["-H", "Content-Type: text/plain", "-H", "Origin: http://elsewhere.example", "-d", report];
        let (code, text) = client.ask("/report", &page);
        assert!(code == 403 && text.contains("may not ask this server"), "{code} {text}");
        assert_eq!(client.status()["machines"].as_array().expect("a list").len(), 0);
        assert_eq!(client.ask("/boot.ipxe?mac=ff:ff:ff:ff:ff:ff", &[]).0, 400);
        assert_eq!(client.ask("/boot.ipxe?mac=01:00:5e:00:00:01", &[]).0, 400);
    });
}

//! The server's own seeders, seen by a peer.

use std::io;
use std::sync::{Arc, Mutex};

use metainfo::{Metainfo, PieceIndex};
use swarm::{Options, Storage, Swarm};

use crate::lan::{SERVER, Station, in_namespace};
use crate::library::add_image;
use crate::process::{PATIENCE, Server, eventually, ezio_ok};

/// Content in memory.
struct Memory {
    meta: Metainfo,
    bytes: Mutex<Vec<u8>>,
}

impl Storage for Memory {
    fn write_piece(&self, piece: PieceIndex, data: &[u8]) -> io::Result<()> {
        let range = self.meta.geometry.piece_range(piece);
        self.bytes.lock().expect("sound")[range.start as usize..range.end as usize].copy_from_slice(data);
        Ok(())
    }

    fn read(&self, piece: PieceIndex, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        let start = (self.meta.geometry.piece_range(piece).start + u64::from(offset)) as usize;
        buf.copy_from_slice(&self.bytes.lock().expect("sound")[start..start + buf.len()]);
        Ok(())
    }
}

/// A peer that finds the server by its tracker gets all of the content.
fn fetch(client: &Station, meta: Metainfo, wanted: Vec<u8>) {
    client.run_in(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let bytes = Mutex::new(vec![0; wanted.len()]);
            let memory = Arc::new(Memory { meta: meta.clone(), bytes });
            let trackers = vec![format!("http://{SERVER}/announce")];
            let options = Options { trackers, ..Options::default() };
            let swarm = Swarm::start(Arc::new(meta), memory.clone(), options).await.expect("started");
            tokio::time::timeout(PATIENCE, swarm.completed()).await.expect("in time").expect("complete");
            assert!(*memory.bytes.lock().expect("sound") == wanted, "every byte");
            swarm.shutdown().await;
        });
    });
}

#[test]
fn a_peer_finds_the_seeder_by_the_tracker_and_gets_every_byte() {
    in_namespace("seeding::a_peer_finds_the_seeder_by_the_tracker_and_gets_every_byte", &["curl"], |lan| {
        let (content, meta) = add_image(&lan, "debian", 3_000_000);
        let _server = Server::start(&lan, &["--peer-port", "7000"]);
        let client = lan.station(9, true);
        let announce: String = meta.infohash.0.iter().map(|byte| format!("%{byte:02x}")).collect();
        let announce =
            format!("/announce?info_hash={announce}&peer_id=-XX0000-000000000000&port=1234&left=5&compact=1");
        assert!(client.get(&announce).contains("failure reason"), "nothing is armed");
        ezio_ok(&lan, &["arm", "debian"]);
        let seeder = [10, 9, 0, 1, (7000u16 >> 8) as u8, 7000u16 as u8];
        eventually("the tracker names our seeder", || {
            let reply = client.output("curl", &["-sSf", &format!("http://{SERVER}{announce}")]).stdout;
            reply.windows(6).any(|peer| peer == seeder)
        });
        fetch(&client, meta, content);
        eventually("the status counts what was sent", || {
            client.status()["images"][0]["uploaded"].as_u64().is_some_and(|sent| sent >= 3_000_000)
        });
        ezio_ok(&lan, &["disarm"]);
        eventually("seeding ends", || client.status()["images"].as_array().is_some_and(Vec::is_empty));
    });
}

/// The same bytes from another file: links stay, and machines notice nothing.
#[test]
fn an_image_is_compressed_while_it_is_seeded() {
    in_namespace("seeding::an_image_is_compressed_while_it_is_seeded", &["curl"], |lan| {
        let (content, meta) = add_image(&lan, "debian", 3_000_000);
        let mut server = Server::start(&lan, &["--peer-port", "7000"]);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "debian"]);
        let image = || client.status()["images"][0].clone();
        eventually("it is seeded", || image()["port"] == 7000);
        for (how, file, sent) in [(&[][..], "content.zst", 3_000_000), (&["--uncompressed"], "content", 6_000_000)] {
            // It is armed, so machines may be fetching it.
            let said = ezio_ok(&lan, &[&["image", "compress", "debian"], how].concat());
            assert!(said.contains("debian: "), "{said}");
            server.wait_for_log(&format!("images/debian/{file} from now on"));
            fetch(&client, meta.clone(), content.clone());
            // One seeder has sent all of it: it was not started again.
            eventually("the status counts what was sent", || image()["uploaded"].as_u64() >= Some(sent));
            assert_eq!((&image()["error"], &image()["port"]), (&serde_json::Value::Null, &serde_json::json!(7000)));
        }
        assert!(!server.log().contains("no longer armed"));
    });
}

/// A wrong bit in one piece, and a file that is cut short while it is served: the rest is given all the same.
#[test]
fn what_is_damaged_in_the_library_is_said_and_the_rest_is_given() {
    in_namespace("seeding::what_is_damaged_in_the_library_is_said_and_the_rest_is_given", &["curl"], |lan| {
        let (mut content, meta) = add_image(&lan, "debian", 3_000_000);
        let path = crate::process::library(&lan).join("images/debian/content");
        let count = meta.geometry.piece_count();
        content[5 * (64 << 10) + 1000] ^= 1;
        std::fs::write(&path, &content).expect("written");
        let _server = Server::start(&lan, &["--peer-port", "7000"]);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "debian"]);
        eventually("it is seeded", || client.status()["images"][0]["port"] == 7000);
        let error = || client.status()["images"][0]["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(error(), "", "nobody has looked at it yet");
        let fetched = |wanted: u32| {
            let meta = meta.clone();
            client.run_in(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                runtime.expect("a runtime").block_on(async {
                    let bytes = Mutex::new(vec![0; 3_000_000]);
                    let memory = Arc::new(Memory { meta: meta.clone(), bytes });
                    let peers = vec![([10, 9, 0, 1], 7000).into()];
                    let swarm = Swarm::start(Arc::new(meta), memory, Options { peers, ..Options::default() }).await;
                    let swarm = swarm.expect("started");
                    let all = async {
                        while swarm.stats().pieces_have < wanted {
                            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                        }
                    };
                    tokio::time::timeout(PATIENCE, all).await.expect("in time");
                    assert_eq!(swarm.stats().bad_pieces, 0, "nothing wrong came");
                    swarm.shutdown().await;
                });
            });
        };
        fetched(count - 1);
        eventually("the status says which piece", || {
            error().contains("1 piece cannot be given to machines (piece 5: its hash is wrong")
                && error().contains("verify debian")
        });
        std::fs::File::options().write(true).open(&path).and_then(|file| file.set_len(1_500_000)).expect("cut");
        // Before anybody asks for what is gone, of another image that has not been looked at.
        add_image(&lan, "other", 300_000);
        ezio_ok(&lan, &["arm", "other", "--mac", "52:54:00:00:00:09"]);
        eventually("both are seeded", || client.status()["images"].as_array().is_some_and(|images| images.len() == 2));
        crate::library::damage(&lan, "other");
        eventually("the status says that it was cut short", || {
            let status = client.status();
            let images = status["images"].as_array().cloned().unwrap_or_default();
            let other = images.iter().find(|image| image["image"] == "other").cloned().unwrap_or_default();
            other["error"].as_str().is_some_and(|error| error.contains("has 1000 bytes instead of 300000"))
        });
    });
}

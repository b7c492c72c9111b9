//! The server's own seeders, seen by a peer.

use std::io;
use std::sync::{Arc, Mutex};

use metainfo::{Metainfo, PieceIndex};
use swarm::{Options, Storage, Swarm};

use crate::lan::{SERVER, in_namespace};
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
        let wanted = content.clone();
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
        eventually("the status counts what was sent", || {
            client.status()["images"][0]["uploaded"].as_u64().is_some_and(|sent| sent >= 3_000_000)
        });
        ezio_ok(&lan, &["disarm"]);
        eventually("seeding ends", || client.status()["images"].as_array().is_some_and(Vec::is_empty));
    });
}

//! What all links of a swarm share: the picker, the buffers, who is connected; and what happens between them.
//!
//! One lock guards every decision ([`Core`]); it is held for microseconds and never across I/O, hashing or a copy.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metainfo::{Geometry, Metainfo, PieceIndex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, watch};

mod exchange;
mod membership;

use crate::announce::{self, Progress};
use crate::bits::PieceSet;
use crate::book::Book;
use crate::buffers::{Cache, PieceBuf, Pool, lock};
use crate::error::SwarmError;
use crate::hash_queue::Hashing;
use crate::link::LinkState;
use crate::pace::TICK;
use crate::picker::{Ask, Picker};
use crate::super_seeding::SuperSeeding;
use crate::upload::{Limiter, Slots};
use crate::{Have, Options, Stats, Storage};

/// Wrong pieces after which a peer is not talked to again.
const STRIKES: u32 = 2;

pub(crate) type Outcome = Option<Result<(), SwarmError>>;

/// Why a link is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// We have dialled ourselves.
    Own,
    /// It sent wrong pieces before.
    Banned,
    /// There is a link to that peer already.
    Connected,
    /// No room.
    Full,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) downloaded: AtomicU64,
    pub(crate) uploaded: AtomicU64,
    pub(crate) wasted: AtomicU64,
    pub(crate) bad_pieces: AtomicU64,
    pub(crate) bad_packets: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(u64::try_from(more).unwrap_or(u64::MAX), Ordering::Relaxed);
}

pub(crate) struct Shared {
    pub(crate) meta: Arc<Metainfo>,
    pub(crate) geometry: Geometry,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) peer_id: [u8; 20],
    pub(crate) port: u16,
    pub(crate) max_peers: usize,
    pub(crate) pool: Pool,
    pub(crate) cache: Mutex<Cache>,
    pub(crate) slots: Slots,
    pub(crate) up: Limiter,
    pub(crate) down: Limiter,
    pub(crate) counters: Counters,
    pub(crate) hashing: Mutex<Hashing>,
    /// Somebody may have to be dialled.
    pub(crate) dial: Notify,
    core: Mutex<Core>,
    started: Instant,
    last_upload: Mutex<Option<Instant>>,
    tracker_error: Mutex<Option<String>>,
    ended: watch::Sender<bool>,
    outcome: watch::Sender<Outcome>,
}

struct Core {
    picker: Picker,
    rng: StdRng,
    /// While we are a seeder whose pieces nobody else has.
    plan: Option<SuperSeeding>,
    /// Pieces verified since the start, in that order; each link knows how far it has told its peer.
    have_log: Vec<PieceIndex>,
    links: HashMap<u32, LinkState>,
    next_key: u32,
    buffers: HashMap<PieceIndex, Arc<PieceBuf>>,
    bytes_have: u64,
    book: Book,
    strikes: HashMap<[u8; 20], u32>,
    ip_strikes: HashMap<IpAddr, u32>,
}

impl Shared {
    pub(crate) fn new(meta: Arc<Metainfo>, storage: Arc<dyn Storage>, options: &Options, port: u16) -> Shared {
        let geometry = meta.geometry;
        let have = match &options.have {
            Have::None | Have::Unknown => PieceSet::new(geometry.piece_count()),
            Have::All => PieceSet::full(geometry.piece_count()),
            Have::These(held) => {
                let mut set = PieceSet::new(geometry.piece_count());
                for (piece, _) in geometry.pieces().zip(held).filter(|&(_, &held)| held) {
                    set.insert(piece);
                }
                set
            }
        };
        // Two thirds for what is on its way; what is left of the budget after at least one piece is cache.
        let piece_bytes = usize::try_from(geometry.piece_len()).expect("fits usize");
        let in_flight = (options.memory_bytes / 3 * 2).max(piece_bytes);
        let cache = options.memory_bytes.saturating_sub(in_flight);
        let mut rng = StdRng::from_os_rng();
        let mut peer_id = *b"-EZ0100-            ";
        rng.fill(&mut peer_id[8..]);
        let is_complete = have.is_full();
        let budget = u64::try_from(in_flight).expect("fits");
        let picker = match options.have {
            Have::Unknown => Picker::of_unknown(geometry, budget, &mut rng),
            _ => Picker::new(geometry, &have, budget, &mut rng),
        };
        let core = Core {
            picker,
            plan: is_complete.then(|| SuperSeeding::new(geometry, &mut rng)),
            rng,
            have_log: Vec::new(),
            links: HashMap::new(),
            next_key: 1,
            buffers: HashMap::new(),
            bytes_have: have.iter().map(|piece| u64::from(geometry.len_of(piece))).sum(),
            book: Book::default(),
            strikes: HashMap::new(),
            ip_strikes: HashMap::new(),
        };
        Shared {
            geometry,
            storage,
            peer_id,
            port,
            max_peers: options.max_peers.max(1),
            pool: Pool::default(),
            cache: Mutex::new(Cache::new(cache)),
            slots: Slots::new(options.upload_slots, geometry.piece_len()),
            up: Limiter::new(options.up_bytes_per_s),
            down: Limiter::new(options.down_bytes_per_s),
            counters: Counters::default(),
            hashing: Mutex::new(Hashing::default()),
            dial: Notify::new(),
            core: Mutex::new(core),
            started: Instant::now(),
            last_upload: Mutex::new(None),
            tracker_error: Mutex::new(None),
            ended: watch::Sender::new(false),
            outcome: watch::Sender::new(is_complete.then_some(Ok(()))),
            meta,
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    // Beginning and end.

    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
    }

    pub(crate) fn ending(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    pub(crate) fn completion(&self) -> watch::Receiver<Outcome> {
        self.outcome.subscribe()
    }

    pub(crate) fn is_complete(&self) -> bool {
        matches!(*self.outcome.borrow(), Some(Ok(())))
    }

    pub(crate) fn has_failed(&self) -> bool {
        matches!(*self.outcome.borrow(), Some(Err(_)))
    }

    /// The store cannot be written: nothing more is received or served.
    pub(crate) fn fail(&self, error: SwarmError) {
        log::error!("swarm {}: {error}", self.meta.infohash);
        self.outcome.send_if_modified(|outcome| {
            let is_first = outcome.is_none();
            if is_first {
                *outcome = Some(Err(error));
            }
            is_first
        });
        for state in lock(&self.core).links.values() {
            state.link.close.notify_one();
        }
    }

    /// Looks at deadlines until the swarm ends.
    pub(crate) async fn run_ticks(self: Arc<Self>) {
        let mut ending = self.ending();
        loop {
            tokio::select! {
                _ = ending.wait_for(|ended| *ended) => return,
                () = tokio::time::sleep(TICK) => self.tick(),
            }
        }
    }

    fn tick(&self) {
        let now = self.now();
        let core = &mut *lock(&self.core);
        let overdue = core.picker.tick(now);
        for (key, ask) in overdue.cancels {
            core.cancel(key, ask);
        }
        for piece in overdue.abandoned {
            if let Some((data, _)) = core.buffers.remove(&piece).and_then(|buf| buf.take()) {
                self.pool.put(data);
            }
        }
        let all = core.plan.as_mut().is_some_and(|plan| plan.tick(now));
        core.wake(all);
    }

    // For the owner.

    pub(crate) fn announce_url(&self, tracker: &str, event: Option<&str>) -> String {
        let progress = Progress {
            uploaded: self.counters.uploaded.load(Ordering::Relaxed),
            downloaded: self.counters.downloaded.load(Ordering::Relaxed),
            left: self.geometry.content_len() - lock(&self.core).bytes_have,
        };
        announce::url(tracker, self.meta.infohash, &self.peer_id, self.port, progress, event)
    }

    pub(crate) fn stats(&self) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let core = lock(&self.core);
        Stats {
            pieces_have: core.picker.have().count(),
            piece_count: self.geometry.piece_count(),
            bytes_have: core.bytes_have,
            downloaded: load(&self.counters.downloaded),
            uploaded: load(&self.counters.uploaded),
            wasted: load(&self.counters.wasted),
            peers: core.links.len(),
            seeders: core.links.keys().filter(|&&key| core.picker.is_seeder(key)).count(),
            pieces_nowhere: core.picker.nowhere(),
            bad_pieces: load(&self.counters.bad_pieces),
            bad_packets: load(&self.counters.bad_packets),
            last_upload: *lock(&self.last_upload),
            tracker_error: lock(&self.tracker_error).clone(),
        }
    }
}

impl Core {
    fn cancel(&mut self, key: u32, ask: Ask) {
        if let Some(state) = self.links.get_mut(&key) {
            state.cancels.push(ask);
            state.link.wake.notify_one();
        }
    }

    /// Wakes all links, or those that could ask for more.
    fn wake(&self, all: bool) {
        for state in self.links.values().filter(|state| all || state.is_hungry) {
            state.link.wake.notify_one();
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A swarm's shared state without a swarm: no sockets, no ticks.

    use std::io;

    use metainfo::{FileEntry, NewTorrent};
    use sha1::{Digest, Sha1};

    use super::*;

    struct Zeros;

    impl Storage for Zeros {
        fn write_piece(&self, _: PieceIndex, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn read(&self, _: PieceIndex, _: u32, buf: &mut [u8]) -> io::Result<()> {
            buf.fill(0);
            Ok(())
        }
    }

    /// Of an image of so many pieces, all zeros.
    pub(crate) fn shared(pieces: u32, piece_len: u32, options: &Options) -> Arc<Shared> {
        let hash = Sha1::digest(vec![0; usize::try_from(piece_len).expect("fits usize")]).into();
        let files = vec![FileEntry { length: u64::from(pieces) * u64::from(piece_len), path: vec!["0".into()] }];
        let hashes = vec![hash; usize::try_from(pieces).expect("fits usize")];
        let new =
            NewTorrent { name: "root".into(), announce: None, piece_len, files, hashes, facts: None, private: true };
        let meta = Metainfo::parse(&new.to_bytes().expect("a good torrent")).expect("our own torrent");
        Arc::new(Shared::new(Arc::new(meta), Arc::new(Zeros), options, 1))
    }

    /// Lets time pass.
    pub(crate) fn age(shared: &mut Arc<Shared>, by: Duration) {
        Arc::get_mut(shared).expect("nobody else's").started -= by;
    }
}

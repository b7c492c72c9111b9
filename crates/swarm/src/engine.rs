//! State that all links of a swarm share: the core, the buffers, the connected peers. It also carries out the core's
//! actions.
//!
//! One lock guards every decision ([`State`]); it is held for microseconds and never across I/O, hashing or a copy.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metainfo::{BLOCK_LEN, Geometry, Metainfo, PieceIndex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, watch};

mod exchange;
mod membership;

pub(crate) use crate::engine::exchange::Wish;

use crate::announce::{self, Progress};
use crate::bits::PieceSet;
use crate::book::Book;
use crate::buffers::{Cache, PieceBuf, Pool, lock};
use crate::core::{Action, Core, Setup};
use crate::error::SwarmError;
use crate::hash_queue::Hashing;
use crate::limiter::Limiter;
use crate::link::Link;
use crate::owners::Owners;
use crate::pace::TICK;
use crate::picker::PeerKey;
use crate::{Have, Options, Stats, Storage, TurnedAway};

/// How the ids of peers begin that run this crate.
pub(crate) const OWN_KIND: &[u8] = b"-EZ";
/// Wrong pieces after which a peer is not talked to again.
const STRIKES: u32 = 2;

/// How often it is looked up who is behind each link: the kernel may not know a newcomer's card yet.
const OWNERS_EVERY: Duration = Duration::from_secs(1);

pub(crate) type Outcome = Option<Result<(), SwarmError>>;

/// Why a link is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// We have dialled our own address.
    Own,
    /// It sent wrong pieces before.
    Banned,
    /// There is already a link to that peer.
    Connected,
    /// There is no room.
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
    pub(crate) owners: Owners,
    pub(crate) pool: Pool,
    pub(crate) cache: Mutex<Cache>,
    pub(crate) up: Limiter,
    pub(crate) down: Limiter,
    pub(crate) counters: Counters,
    pub(crate) hashing: Mutex<Hashing>,
    /// Pieces of a store that was complete at the start, which nobody has hashed since.
    unchecked: Mutex<PieceSet>,
    withheld_why: Mutex<Option<String>>,
    /// Somebody may have to be dialled.
    pub(crate) dial: Notify,
    state: Mutex<State>,
    started: Instant,
    last_upload: Mutex<Option<Instant>>,
    tracker_error: Mutex<Option<String>>,
    turned_away: Mutex<Option<TurnedAway>>,
    ended: watch::Sender<bool>,
    outcome: watch::Sender<Outcome>,
}

/// The data under the lock: the core, and the links and buffers that its keys and pieces stand for.
struct State {
    core: Core,
    links: HashMap<PeerKey, Arc<Link>>,
    /// Buffers of pieces that are being requested; the picker's budget bounds them.
    buffers: HashMap<PieceIndex, Arc<PieceBuf>>,
    book: Book,
    strikes: HashMap<[u8; 20], u32>,
    ip_strikes: HashMap<IpAddr, u32>,
}

/// A piece that has all its blocks.
type Full = (PieceIndex, Arc<PieceBuf>);

impl Shared {
    pub(crate) fn new(meta: Arc<Metainfo>, storage: Arc<dyn Storage>, options: &Options, port: u16) -> Shared {
        let geometry = meta.geometry;
        let have = match &options.have {
            Have::None | Have::Unknown => PieceSet::new(geometry),
            Have::All => PieceSet::full(geometry),
            Have::These(held) => {
                let mut set = PieceSet::new(geometry);
                for (piece, _) in geometry.pieces().zip(held).filter(|&(_, &held)| held) {
                    set.insert(piece);
                }
                set
            }
        };
        // Two thirds are for incoming pieces, at least one piece; the rest of the budget is cache.
        let piece_bytes = usize::try_from(geometry.piece_len()).expect("fits usize");
        let in_flight = (options.memory_bytes / 3 * 2).max(piece_bytes);
        let cache = options.memory_bytes.saturating_sub(in_flight);
        let mut rng = StdRng::from_os_rng();
        let mut peer_id = *b"-EZ0100-            ";
        rng.fill(&mut peer_id[8..]);
        let is_complete = have.is_full();
        let unchecked = if options.have == Have::All { have.clone() } else { PieceSet::new(geometry) };
        let core = Core::new(Setup {
            geometry,
            block_bytes: BLOCK_LEN,
            have: (options.have != Have::Unknown).then_some(have),
            budget: u64::try_from(in_flight).expect("fits"),
            upload_slots: options.upload_slots,
            rng,
        });
        let state = State {
            core,
            links: HashMap::new(),
            buffers: HashMap::new(),
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
            owners: options.owners.clone(),
            pool: Pool::default(),
            cache: Mutex::new(Cache::new(cache)),
            up: Limiter::new(options.up_bytes_per_s),
            down: Limiter::new(options.down_bytes_per_s),
            counters: Counters::default(),
            hashing: Mutex::new(Hashing::default()),
            unchecked: Mutex::new(unchecked),
            withheld_why: Mutex::new(None),
            dial: Notify::new(),
            state: Mutex::new(state),
            started: Instant::now(),
            last_upload: Mutex::new(None),
            tracker_error: Mutex::new(None),
            turned_away: Mutex::new(None),
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

    /// The store cannot be written: the swarm receives and serves nothing more.
    pub(crate) fn fail(&self, error: SwarmError) {
        log::error!("swarm {}: {error}", self.meta.infohash);
        self.end_with(Err(error));
        lock(&self.state).links.values().for_each(|link| link.close.notify_one());
    }

    /// Checks deadlines until the swarm ends.
    pub(crate) async fn run_ticks(self: Arc<Self>) {
        let mut ending = self.ending();
        let mut looked = Duration::ZERO;
        loop {
            tokio::select! {
                _ = ending.wait_for(|ended| *ended) => return,
                () = tokio::time::sleep(TICK) => self.tick(),
            }
            if self.now().saturating_sub(looked) >= OWNERS_EVERY {
                self.look_at_owners();
                looked = self.now();
            }
        }
    }

    fn tick(&self) {
        let now = self.now();
        self.with(|state| state.core.tick(now));
    }

    // The core.

    /// Locks the state, runs `act`, and carries out the core's actions.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let state = &mut *lock(&self.state);
        let result = act(state);
        // Only blocks make pieces full, and the code that stored those blocks has handled the pieces.
        let _ = self.perform(state);
        result
    }

    /// Carries out the core's actions, except hashing, which must not happen under the lock: the pieces to hash are
    /// returned.
    #[must_use]
    fn perform(&self, state: &mut State) -> Vec<Full> {
        let mut full = Vec::new();
        for action in state.core.take_actions() {
            match action {
                Action::Wake(key) => state.links.get(&key).into_iter().for_each(|link| link.wake.notify_one()),
                Action::Finish(key) => state.links.get(&key).into_iter().for_each(|link| link.finish.notify_one()),
                Action::Verify(piece) => full.extend(state.buffers.remove(&piece).map(|buf| (piece, buf))),
                Action::Abandon(piece) => {
                    if let Some((data, _)) = state.buffers.remove(&piece).and_then(|buf| buf.take()) {
                        self.pool.put(data);
                    }
                }
                Action::Complete => self.end_with(Ok(())),
            }
        }
        full
    }

    /// The first outcome counts.
    fn end_with(&self, result: Result<(), SwarmError>) {
        self.outcome.send_if_modified(|outcome| {
            let is_first = outcome.is_none();
            if is_first {
                *outcome = Some(result);
            }
            is_first
        });
    }

    // For the owner.

    pub(crate) fn announce_url(&self, tracker: &str, event: Option<&str>) -> String {
        let progress = Progress {
            uploaded: self.counters.uploaded.load(Ordering::Relaxed),
            downloaded: self.counters.downloaded.load(Ordering::Relaxed),
            left: self.geometry.content_len() - lock(&self.state).core.bytes_have(),
        };
        announce::url(tracker, self.meta.infohash, &self.peer_id, self.port, progress, event)
    }

    pub(crate) fn stats(&self) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = lock(&self.state);
        let core = &state.core;
        Stats {
            pieces_have: core.have().count(),
            piece_count: self.geometry.piece_count(),
            bytes_have: core.bytes_have(),
            downloaded: load(&self.counters.downloaded),
            uploaded: load(&self.counters.uploaded),
            wasted: load(&self.counters.wasted),
            peers: core.peer_count(),
            seeders: core.seeder_count(),
            pieces_nowhere: core.nowhere(),
            bad_pieces: load(&self.counters.bad_pieces),
            pieces_withheld: core.withheld(),
            withheld_why: lock(&self.withheld_why).clone(),
            bad_packets: load(&self.counters.bad_packets),
            last_upload: *lock(&self.last_upload),
            turned_away: *lock(&self.turned_away),
            tracker_error: lock(&self.tracker_error).clone(),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A swarm's shared state alone: without sockets and ticks.

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

    /// The state for an image of this many pieces, all zeros.
    pub(crate) fn shared(pieces: u32, piece_len: u32, options: &Options) -> Arc<Shared> {
        let hash = Sha1::digest(vec![0; usize::try_from(piece_len).expect("fits usize")]).into();
        let files = vec![FileEntry { length: u64::from(pieces) * u64::from(piece_len), path: vec!["0".into()] }];
        let hashes = vec![hash; usize::try_from(pieces).expect("fits usize")];
        let new =
            NewTorrent { name: "root".into(), announce: None, piece_len, files, hashes, facts: None, private: true };
        let meta = Metainfo::parse(&new.to_bytes().expect("a good torrent")).expect("our own torrent");
        Arc::new(Shared::new(Arc::new(meta), Arc::new(Zeros), options, 1))
    }

    /// Checks deadlines.
    pub(crate) fn tick(shared: &Shared) {
        shared.tick();
    }

    /// Lets time pass.
    pub(crate) fn age(shared: &mut Arc<Shared>, by: Duration) {
        Arc::get_mut(shared).expect("nobody else's").started -= by;
    }
}

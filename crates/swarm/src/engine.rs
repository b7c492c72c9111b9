//! What all links of a swarm share: the picker, the buffers, who is connected; and what happens between them.
//!
//! One lock guards every decision ([`Core`]); it is held for microseconds and never across I/O, hashing or a copy.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metainfo::{BLOCK_LEN, Geometry, Metainfo, PieceIndex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, watch};

use crate::announce::{self, Progress};
use crate::bits::PieceSet;
use crate::book::Book;
use crate::buffers::{Cache, PieceBuf, Pool, lock};
use crate::link::{Link, LinkState};
use crate::picker::{Ask, Picker, Received};
use crate::reveal::Reveal;
use crate::swarm::SwarmError;
use crate::upload::{Limiter, Slots};
use crate::verify::Hashing;
use crate::wire::{self, Message, Request};
use crate::{Have, Options, Stats, Storage};

/// Bytes asked for and not yet here, over all peers, and at least from each: a LAN's round trip holds about 40 KiB, and
/// what is reserved at a busy peer cannot be had from an idle one.
const OUTSTANDING_BYTES: u32 = 4 << 20;
const OUTSTANDING_LEAST: u32 = 256 << 10;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
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
    reveal: Option<Reveal>,
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
            Have::None => PieceSet::new(geometry.piece_count()),
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
        let core = Core {
            picker: Picker::new(geometry, &have, u64::try_from(in_flight).expect("fits"), &mut rng),
            reveal: is_complete.then(|| Reveal::new(geometry, &mut rng)),
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
        let all = core.reveal.as_mut().is_some_and(|reveal| reveal.tick(now));
        core.wake(all);
    }

    // Peers.

    pub(crate) fn heard(&self, peers: &[SocketAddr]) {
        *lock(&self.tracker_error) = None;
        let now = self.now();
        let mut core = lock(&self.core);
        let mut is_news = false;
        for &addr in peers {
            is_news |= core.book.add(addr, now);
        }
        drop(core);
        if is_news {
            self.dial.notify_one();
        }
    }

    pub(crate) fn add_peer(&self, addr: SocketAddr) {
        if lock(&self.core).book.add(addr, self.now()) {
            self.dial.notify_one();
        }
    }

    pub(crate) fn set_tracker_error(&self, text: String) {
        *lock(&self.tracker_error) = Some(text);
    }

    /// Whom to dial now. A third of the links is left to those who dial us, or late comers would find everybody full.
    pub(crate) fn to_dial(&self) -> Vec<SocketAddr> {
        if self.has_failed() {
            return Vec::new();
        }
        let core = &mut *lock(&self.core);
        let most = (self.max_peers * 2).div_ceil(3);
        let room = most.saturating_sub(core.links.len() + core.book.dialling());
        let links = &core.links;
        core.book.due(self.now(), room, |id| links.values().any(|state| state.link.peer_id == *id))
    }

    pub(crate) fn dial_failed(&self, addr: SocketAddr) {
        lock(&self.core).book.lost(addr, self.now(), false);
    }

    /// Takes a peer in after its handshake, unless there is a reason not to. Of two links to one peer, one goes.
    pub(crate) fn admit(
        &self,
        peer_id: [u8; 20],
        addr: SocketAddr,
        is_dialled: bool,
    ) -> Result<(Arc<Link>, Option<Vec<u8>>), Refused> {
        let now = self.now();
        let core = &mut *lock(&self.core);
        let refusal = core.refusal(self, peer_id, addr, is_dialled, now);
        if is_dialled {
            match refusal {
                None => core.book.connected(addr, now),
                Some(Refused::Own | Refused::Banned) => core.book.never(addr),
                Some(Refused::Connected) => core.book.alias(addr, peer_id, now),
                Some(Refused::Full) => core.book.lost(addr, now, false),
            }
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let key = core.next_key;
        core.next_key += 1;
        let link = Arc::new(Link::new(key, peer_id, addr, is_dialled, now));
        core.picker.add_peer(key);
        let shows_little = match core.reveal.as_mut().filter(|reveal| !reveal.is_over()) {
            Some(reveal) => {
                reveal.join(key);
                true
            }
            None => false,
        };
        let have = core.picker.have();
        let bitfield = (!shows_little && have.count() > 0).then(|| {
            let mut out = Vec::new();
            wire::encode(&Message::Bitfield(have.clone()), &mut out);
            out
        });
        core.links.insert(key, LinkState::new(Arc::clone(&link), core.have_log.len(), shows_little));
        Ok((link, bitfield))
    }

    pub(crate) fn remove(&self, link: &Link, is_useless: bool) {
        let now = self.now();
        let core = &mut *lock(&self.core);
        if core.links.remove(&link.key).is_none() {
            return;
        }
        core.picker.remove_peer(link.key);
        if let Some(reveal) = core.reveal.as_mut() {
            reveal.leave(link.key);
        }
        if link.is_dialled {
            // Once complete we need nobody; who needs us dials us.
            core.book.lost(link.addr, now, is_useless || core.picker.have().is_full());
        }
        let shows_little = core.reveal.is_some();
        core.wake(shows_little);
        self.dial.notify_one();
    }

    /// The peer gave every byte of a piece whose hash is wrong.
    pub(crate) fn blame(&self, key: u32) {
        let core = &mut *lock(&self.core);
        let Some(link) = core.links.get(&key).map(|state| Arc::clone(&state.link)) else { return };
        log::warn!("peer {}: sent a wrong piece, dropped", link.addr);
        *core.strikes.entry(link.peer_id).or_default() += 1;
        // On loopback many peers share an address, so there only the peer's id counts.
        if !link.addr.ip().is_loopback() {
            *core.ip_strikes.entry(link.addr.ip()).or_default() += 1;
        }
        link.close.notify_one();
    }

    // Messages from a peer.

    /// The peer has these pieces. False if neither of us can give the other anything, ever.
    pub(crate) fn peer_has(&self, link: &Link, pieces: impl Iterator<Item = PieceIndex>) -> bool {
        let core = &mut *lock(&self.core);
        let mut made_room = false;
        for piece in pieces {
            core.picker.peer_has(link.key, piece);
            if let Some(reveal) = core.reveal.as_mut().filter(|reveal| !reveal.is_over()) {
                made_room |= reveal.seen(piece);
            }
        }
        if made_room {
            core.wake(true);
        }
        !(core.picker.have().is_full() && core.picker.is_seeder(link.key))
    }

    pub(crate) fn peer_lets_us_ask(&self, link: &Link, can_ask: bool) {
        let core = &mut *lock(&self.core);
        core.picker.set_can_ask(link.key, can_ask);
        if !can_ask {
            lock(&link.asked).clear();
            core.wake(false);
        }
    }

    pub(crate) fn holds(&self, piece: PieceIndex) -> bool {
        lock(&self.core).picker.have().contains(piece)
    }

    /// Blocks that are in their buffers now.
    pub(crate) fn blocks_arrived(self: &Arc<Self>, link: &Link, asks: &[Ask]) {
        let now = self.now();
        let mut full = Vec::new();
        let core = &mut *lock(&self.core);
        for &ask in asks {
            match core.picker.received(link.key, ask, now) {
                Received::Fresh { piece_complete, cancel } => {
                    if let Some(key) = cancel {
                        core.cancel(key, ask);
                    }
                    if piece_complete && let Some(buf) = core.buffers.remove(&ask.piece) {
                        full.push((ask.piece, buf));
                    }
                }
                Received::Useless => {
                    let len = usize::try_from(self.geometry.block_len(ask.piece, ask.block)).unwrap_or(0);
                    count(&self.counters.wasted, len);
                }
            }
        }
        for (piece, buf) in full {
            if let Some((data, givers)) = buf.take() {
                self.hash_soon(piece, data, givers);
            }
        }
    }

    // Messages to a peer.

    /// Appends everything there is to say to the peer, other than the blocks it asked for.
    pub(crate) fn compose(&self, link: &Link, out: &mut Vec<u8>) {
        let now = self.now();
        let core = &mut *lock(&self.core);
        let asking = core.links.values().filter(|state| state.is_interested).count().max(1);
        let Some(state) = core.links.get_mut(&link.key) else { return };
        if state.shows_little
            && let Some(reveal) = core.reveal.as_mut()
        {
            let picker = &core.picker;
            for piece in reveal.refill(link.key, now, |piece| picker.availability(piece) > 0) {
                wire::encode(&Message::Have(piece), out);
            }
            if reveal.is_over() {
                state.shows_little = false;
                for piece in picker.have().iter().filter(|&piece| !reveal.was_shown(link.key, piece)) {
                    wire::encode(&Message::Have(piece), out);
                }
            }
        }
        for &piece in &core.have_log[state.told_haves..] {
            wire::encode(&Message::Have(piece), out);
        }
        state.told_haves = core.have_log.len();
        let wants = core.picker.wants_from(link.key);
        if wants != state.is_interested {
            state.is_interested = wants;
            wire::encode(if wants { &Message::Interested } else { &Message::NotInterested }, out);
        }
        let mut asked = lock(&link.asked);
        for ask in state.cancels.drain(..) {
            if asked.remove(&ask).is_some() {
                wire::encode(&Message::Cancel(Request::block(&self.geometry, ask.piece, ask.block)), out);
            }
        }
        let share = OUTSTANDING_BYTES / u32::try_from(asking).unwrap_or(u32::MAX);
        let limit = usize::try_from(share.max(OUTSTANDING_LEAST) / BLOCK_LEN).expect("fits usize");
        for ask in core.picker.request(link.key, limit, now, &mut core.rng) {
            let buf = core.buffers.entry(ask.piece).or_insert_with(|| {
                let len = usize::try_from(self.geometry.len_of(ask.piece)).expect("fits usize");
                Arc::new(PieceBuf::new(self.pool.get(len)))
            });
            asked.insert(ask, Arc::clone(buf));
            wire::encode(&Message::Request(Request::block(&self.geometry, ask.piece, ask.block)), out);
        }
        state.is_hungry = wants && core.picker.outstanding(link.key) < limit;
    }

    /// Bytes of a piece have gone out.
    pub(crate) fn sent(&self, link: &Link, piece: PieceIndex, bytes: u32) {
        *lock(&self.last_upload) = Some(Instant::now());
        let core = &mut *lock(&self.core);
        if let Some(reveal) = core.reveal.as_mut().filter(|reveal| !reveal.is_over())
            && reveal.sent(link.key, piece, bytes)
        {
            link.wake.notify_one();
        }
    }

    // Hashing has news.

    pub(crate) fn piece_verified(&self, piece: PieceIndex) {
        let core = &mut *lock(&self.core);
        core.picker.verified(piece);
        core.bytes_have += u64::from(self.geometry.len_of(piece));
        core.have_log.push(piece);
        if core.picker.have().is_full() {
            self.outcome.send_if_modified(|outcome| {
                let is_first = outcome.is_none();
                if is_first {
                    *outcome = Some(Ok(()));
                }
                is_first
            });
            let seeders = core.links.iter().filter(|(key, _)| core.picker.is_seeder(**key));
            seeders.for_each(|(_, state)| state.link.finish.notify_one());
        }
        core.wake(true);
    }

    pub(crate) fn piece_was_wrong(&self, piece: PieceIndex, givers: &[u64]) {
        let core = &mut *lock(&self.core);
        core.picker.failed(piece, givers.len() > 1);
        core.wake(true);
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
            bad_pieces: load(&self.counters.bad_pieces),
            bad_packets: load(&self.counters.bad_packets),
            last_upload: *lock(&self.last_upload),
            tracker_error: lock(&self.tracker_error).clone(),
        }
    }
}

impl Core {
    fn refusal(
        &mut self,
        shared: &Shared,
        peer_id: [u8; 20],
        addr: SocketAddr,
        is_dialled: bool,
        now: Duration,
    ) -> Option<Refused> {
        if peer_id == shared.peer_id {
            return Some(Refused::Own);
        }
        if shared.has_failed() {
            return Some(Refused::Full);
        }
        let strikes = |strikes: Option<&u32>| strikes.copied().unwrap_or(0) >= STRIKES;
        if strikes(self.strikes.get(&peer_id)) || strikes(self.ip_strikes.get(&addr.ip())) {
            return Some(Refused::Banned);
        }
        let known = self.links.values().map(|state| &state.link).find(|link| link.peer_id == peer_id);
        if let Some(old) = known {
            // Two that dialled each other at once both keep the link that the smaller id dialled. Later on the old link
            // stays, unless the same side dials again: then it knows that the old one is dead.
            let smaller_dialled = is_dialled == (shared.peer_id < peer_id);
            let is_young = now.saturating_sub(old.since) < Duration::from_secs(2);
            let new_wins = if old.is_dialled == is_dialled { true } else { is_young && smaller_dialled };
            if !new_wins {
                return Some(Refused::Connected);
            }
            old.close.notify_one();
            return None;
        }
        (self.links.len() >= shared.max_peers).then_some(Refused::Full)
    }

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

//! Who is served when: everybody may ask, a few are served at a time, in turns of about a piece.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::buffers::lock;
use crate::pace::TURN_BYTES;

type Waiting = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// The places at which peers are served, handed out in the order in which they were asked for.
pub(crate) struct Slots {
    places: Arc<Semaphore>,
    turn_bytes: u64,
}

impl Slots {
    pub(crate) fn new(count: usize, piece_len: u32) -> Slots {
        let (least, most) = TURN_BYTES;
        Slots { places: Arc::new(Semaphore::new(count.max(1))), turn_bytes: u64::from(piece_len.clamp(least, most)) }
    }

    /// One link's view of the places.
    pub(crate) fn turn(&self) -> Turn {
        Turn { places: Arc::clone(&self.places), turn_bytes: self.turn_bytes, held: None, waiting: None, left: 0 }
    }
}

/// One link's turn: wanted, held, used up.
pub(crate) struct Turn {
    places: Arc<Semaphore>,
    turn_bytes: u64,
    held: Option<OwnedSemaphorePermit>,
    waiting: Option<Waiting>,
    left: u64,
}

impl Turn {
    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Waits for a place. Dropping the future keeps this link's place in the queue.
    pub(crate) async fn wait(&mut self) {
        if self.held.is_some() {
            return;
        }
        let places = &self.places;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(Arc::clone(places).acquire_owned()));
        let permit = waiting.await;
        self.waiting = None;
        self.held = permit.ok();
        self.left = self.turn_bytes;
    }

    /// Accounts for bytes sent; the place goes to the next link when the turn is used up.
    pub(crate) fn used(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        if self.left == 0 {
            self.give_up();
        }
    }

    /// Leaves the place, or the queue for it.
    pub(crate) fn give_up(&mut self) {
        self.held = None;
        self.waiting = None;
    }
}

/// A limit in bytes a second, shared by all links; without one it costs nothing.
pub(crate) struct Limiter {
    bytes_per_s: Option<u64>,
    /// When everything let through so far has been paid for.
    paid_until: Mutex<Instant>,
}

impl Limiter {
    pub(crate) fn new(bytes_per_s: Option<u64>) -> Limiter {
        Limiter { bytes_per_s: bytes_per_s.filter(|&rate| rate > 0), paid_until: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more may pass.
    pub(crate) async fn pass(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_s else { return };
        let wait = {
            let mut paid_until = lock(&self.paid_until);
            let now = Instant::now();
            let bytes = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
            let cost = Duration::from_secs_f64(bytes / u32::try_from(rate).map_or(4e9, f64::from));
            *paid_until = (*paid_until).max(now) + cost;
            paid_until.saturating_duration_since(now)
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

//! A limit on bytes per second.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::buffers::lock;

/// A limit in bytes per second, shared by all links; it costs nothing if no limit is set.
pub(crate) struct Limiter {
    bytes_per_s: Option<u64>,
    /// When the limit will have allowed all bytes passed so far.
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

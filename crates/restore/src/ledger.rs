//! What has been written and not been proven yet; where the swarm's writers and the proof meet.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metainfo::PieceIndex;

/// The proof takes pieces on when so many bytes wait for it …
const BATCH_BYTES: u64 = 32 << 20;
/// … or when the first of them has waited this long: a flush for every piece would be most of a disk's work.
const BATCH_AGE: Duration = Duration::from_secs(1);

/// [`Ledger::wait_for_writers`] waits for so long at most.
const WRITERS_LIMIT: Duration = Duration::from_secs(2);

/// Written pieces on their way to the proof.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    written: Vec<PieceIndex>,
    bytes: u64,
    bytes_ever: u64,
    since: Option<Instant>,
    writers: usize,
    ending: Option<Ending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Complete,
    Cancelled,
}

/// Pieces to prove together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// In the order in which they were written.
    pub(crate) pieces: Vec<PieceIndex>,
    /// Whether nothing comes after it.
    pub(crate) is_last: bool,
}

/// A write that is going on; over when dropped.
pub(crate) struct Writing<'a>(&'a Ledger);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.lock().writers -= 1;
        self.0.changed.notify_all();
    }
}

impl Ledger {
    /// A write begins.
    pub(crate) fn writing(&self) -> Writing<'_> {
        self.lock().writers += 1;
        Writing(self)
    }

    /// A piece of `len` bytes has been written.
    pub(crate) fn written(&self, piece: PieceIndex, len: u64) {
        let mut state = self.lock();
        state.written.push(piece);
        state.bytes += len;
        state.bytes_ever += len;
        state.since.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    /// Bytes written so far.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.lock().bytes_ever
    }

    /// Nothing more will be written.
    pub(crate) fn complete(&self) {
        self.lock().ending.get_or_insert(Ending::Complete);
        self.changed.notify_all();
    }

    /// Nobody wants to know any more.
    pub(crate) fn cancel(&self) {
        self.lock().ending = Some(Ending::Cancelled);
        self.changed.notify_all();
    }

    /// Whether [`Ledger::cancel`] was called.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.lock().ending == Some(Ending::Cancelled)
    }

    /// Waits for pieces to prove; `None` once cancelled.
    pub(crate) fn next_batch(&self) -> Option<Batch> {
        let mut state = self.lock();
        loop {
            let is_due = state.bytes >= BATCH_BYTES || state.since.is_some_and(|since| since.elapsed() >= BATCH_AGE);
            match state.ending {
                Some(Ending::Cancelled) => return None,
                Some(Ending::Complete) => return Some(state.take(true)),
                None if is_due => return Some(state.take(false)),
                None => {}
            }
            let wait = state.since.map_or(BATCH_AGE, |since| BATCH_AGE.saturating_sub(since.elapsed()));
            let waited = self.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What has been written and is in no batch yet.
    pub(crate) fn waiting(&self) -> Vec<PieceIndex> {
        self.lock().written.clone()
    }

    /// Lets writers go first: waits until none is at work. At the end nobody is waited for.
    pub(crate) fn yield_to_writers(&self) {
        let state = self.lock();
        let waited = self.changed.wait_while(state, |state| state.writers > 0 && state.ending.is_none());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until no writer is at work, or for a while: there may always be one.
    pub(crate) fn wait_for_writers(&self) {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, WRITERS_LIMIT, |state| state.writers > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether a writer is at work.
    pub(crate) fn is_writing(&self) -> bool {
        self.lock().writers > 0
    }

    /// Numbers and a list: a thread that panicked while holding the lock cannot have left them half meaningful.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, is_last: bool) -> Batch {
        self.bytes = 0;
        self.since = None;
        Batch { pieces: std::mem::take(&mut self.written), is_last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_when_they_are_large_and_at_the_end() {
        let ledger = Ledger::default();
        let geometry = metainfo::Geometry::new(8 * 16384, 16384).expect("sane");
        let [first, second, third] = [7, 3, 1].map(|index| geometry.piece(index).expect("one of 8"));
        ledger.written(first, BATCH_BYTES);
        ledger.written(second, 1);
        let pieces = vec![first, second];
        assert_eq!(ledger.next_batch(), Some(Batch { pieces, is_last: false }));
        assert_eq!(ledger.waiting(), []);
        ledger.written(third, 1);
        assert_eq!(ledger.waiting(), [third]);
        ledger.complete();
        assert_eq!(ledger.next_batch(), Some(Batch { pieces: vec![third], is_last: true }));
        assert_eq!(ledger.next_batch(), Some(Batch { pieces: vec![], is_last: true }));
        assert_eq!(ledger.bytes_written(), BATCH_BYTES + 2);
        ledger.cancel();
        assert_eq!(ledger.next_batch(), None);
    }

    #[test]
    fn the_proof_waits_for_writers_but_not_for_ever() {
        let ledger = Ledger::default();
        std::thread::scope(|scope| {
            let writing = ledger.writing();
            let reader = scope.spawn(|| ledger.yield_to_writers());
            assert!(!reader.is_finished());
            drop(writing);
            reader.join().expect("it goes on");
            let _writing = ledger.writing();
            ledger.complete();
            ledger.yield_to_writers();
        });
    }
}

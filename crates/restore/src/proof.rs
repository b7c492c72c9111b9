//! The proof: everything read back from the medium and hashed again, at a distance behind the writes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use metainfo::{Metainfo, PieceIndex};

use crate::ledger::Ledger;
use crate::read_back::{ReadBack, WrongPiece, groups};
use crate::store::DiskStore;

/// Threads that read back at most: each hashes hundreds of megabytes a second.
const MAX_THREADS: usize = 8;

/// Why a disk is not what it has to be.
#[derive(Debug)]
pub(crate) enum Unproven {
    /// The device did not take what was written to it.
    Flush(io::Error),
    /// The device cannot be read.
    Read(io::Error),
    /// It reads back as something else.
    Wrong(WrongPiece),
}

/// What follows the writes.
pub(crate) struct Proof {
    meta: Arc<Metainfo>,
    store: Arc<DiskStore>,
    /// Only flush.
    is_trusting: bool,
    bytes_proven: AtomicU64,
}

impl Proof {
    /// With `verify` false the device is flushed at the end, and nothing read back.
    pub(crate) fn new(meta: Arc<Metainfo>, store: Arc<DiskStore>, verify: bool) -> Proof {
        Proof { meta, store, is_trusting: !verify, bytes_proven: AtomicU64::new(0) }
    }

    /// Bytes of content that were found right on the medium.
    pub(crate) fn bytes_proven(&self) -> u64 {
        self.bytes_proven.load(Ordering::Relaxed)
    }

    /// A piece was found right on the medium by somebody else.
    pub(crate) fn found(&self, piece: PieceIndex) {
        self.bytes_proven.fetch_add(u64::from(self.store.geometry().len_of(piece)), Ordering::Relaxed);
    }

    /// Flushes and reads back what has been written, again and again, giving way to writes, until [`Ledger::complete`];
    /// then what is left at full speed. Blocks.
    pub(crate) fn follow(&self) -> Result<(), Unproven> {
        let ledger: &Ledger = self.store.ledger();
        while let Some(batch) = ledger.next_batch() {
            if self.is_trusting && !batch.is_last {
                continue;
            }
            let mut pieces = batch.pieces;
            pieces.sort_unstable();
            self.settle(&pieces)?;
            if batch.is_last {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Flushes, and reads pieces back if that is wanted.
    fn settle(&self, pieces: &[PieceIndex]) -> Result<(), Unproven> {
        self.flush(pieces)?;
        if self.is_trusting {
            return Ok(());
        }
        let proven = self.prove(pieces);
        if matches!(proven, Err(Unproven::Read(_))) {
            // Before it reads past its cache the kernel writes back what is in it, and tells of any write that failed,
            // wherever that was, as if the read had. A flush knows better.
            self.flush(pieces)?;
        }
        proven
    }

    fn flush(&self, pieces: &[PieceIndex]) -> Result<(), Unproven> {
        let flushed = self.store.device().flush();
        flushed.map_err(|cause| Unproven::Flush(self.say_what_is_lost(pieces, cause)))
    }

    /// Reads pieces back on as many threads as there are cores, in the order of the disk. Each takes as many at a time as are
    /// best hashed together.
    fn prove(&self, pieces: &[PieceIndex]) -> Result<(), Unproven> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let groups = groups(&self.store, pieces, threads);
        let threads = threads.min(groups.len());
        let next = AtomicUsize::new(0);
        let results: Vec<Result<(), Unproven>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.prove_some(&groups, &next))).collect();
            let died = || Err(Unproven::Read(io::Error::other("a proof thread died")));
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| died())).collect()
        });
        results.into_iter().collect()
    }

    fn prove_some(&self, groups: &[&[PieceIndex]], next: &AtomicUsize) -> Result<(), Unproven> {
        let ledger = self.store.ledger();
        let mut reader = ReadBack::new(&self.meta, &self.store).map_err(Unproven::Read)?;
        let goes_on = || {
            ledger.yield_to_writers();
            !ledger.is_cancelled()
        };
        while let Some(&group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some(found) = reader.check(group, goes_on) else { return Ok(()) };
            for (&piece, found) in group.iter().zip(found) {
                let unproven = match found {
                    Ok(None) => {
                        self.found(piece);
                        continue;
                    }
                    Ok(Some(wrong)) => Unproven::Wrong(wrong),
                    Err(cause) => Unproven::Read(cause),
                };
                // The others need not go on: one wrong piece is enough.
                next.store(groups.len(), Ordering::Relaxed);
                return Err(unproven);
            }
        }
        Ok(())
    }

    /// A failed flush does not say which write it was that failed: the first piece that is not on the medium does, of
    /// `pieces` and of those written since.
    fn say_what_is_lost(&self, pieces: &[PieceIndex], cause: io::Error) -> io::Error {
        let Ok(mut reader) = ReadBack::new(&self.meta, &self.store) else { return cause };
        let ledger = self.store.ledger();
        ledger.wait_for_writers();
        // Twice, since the first read may be told of another write that failed.
        let lost = pieces.iter().copied().chain(ledger.waiting()).find_map(|piece| {
            match reader.check_one(piece).or_else(|_| reader.check_one(piece)) {
                Ok(None) => None,
                Ok(Some(WrongPiece { disk_offset, .. })) => {
                    Some(format!("{cause}; piece {piece}, from disk offset {disk_offset}, is not on it"))
                }
                Err(unreadable) => Some(format!("{cause}; then {unreadable}")),
            }
        });
        match lost {
            Some(text) => io::Error::new(cause.kind(), text),
            None => cause,
        }
    }
}

//! The proof: everything read back from the medium and hashed again.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use metainfo::{Metainfo, PieceIndex};
use sha1::{Digest, Sha1};

use crate::deferred::Part;
use crate::store::DiskStore;

/// What the proof found.
#[derive(Debug)]
pub(crate) enum Proof {
    /// Every piece hashes right.
    Right,
    /// This piece does not; where it starts on the disk, in bytes.
    Wrong { piece: PieceIndex, disk_offset: u64 },
}

/// Reads every piece back, past the page cache, on as many threads as there are cores, and hashes it. The deferred
/// ranges come from memory as long as they are not on the disk. `bytes_done` counts up to the content's length.
///
/// Blocks. The device has to be flushed before.
pub(crate) fn prove(meta: &Metainfo, store: &DiskStore, bytes_done: &AtomicU64) -> io::Result<Proof> {
    let next = AtomicU32::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let results: Vec<io::Result<Proof>> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| prove_some(meta, store, &next, bytes_done))).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, io::Result<Proof>>| {
            worker.join().unwrap_or_else(|_| Err(io::Error::other("a proof thread died")))
        };
        workers.into_iter().map(join).collect()
    });
    results.into_iter().try_fold(Proof::Right, |so_far, result| match (so_far, result?) {
        (Proof::Right, found) => Ok(found),
        (wrong, _) => Ok(wrong),
    })
}

fn prove_some(meta: &Metainfo, store: &DiskStore, next: &AtomicU32, bytes_done: &AtomicU64) -> io::Result<Proof> {
    let mut uncached = store.device().uncached()?;
    while let Some(piece) = store.geometry().piece(next.fetch_add(1, Ordering::Relaxed)) {
        let mut hash = Sha1::new();
        let mut disk_offset = None;
        for part in store.parts(piece)? {
            match part {
                Part::Held(part) => {
                    let mut bytes = vec![0; usize::try_from(part.len).expect("a MiB")];
                    store.recall(part, &mut bytes);
                    hash.update(&bytes);
                }
                Part::Disk(part) => {
                    disk_offset.get_or_insert(part.disk.0);
                    uncached.read(part.disk, part.len, |bytes| hash.update(bytes))?;
                }
            }
        }
        if <[u8; 20]>::from(hash.finalize()) != *meta.piece_hash(piece) {
            // The others need not go on: one wrong piece is enough.
            next.store(u32::MAX / 2, Ordering::Relaxed);
            return Ok(Proof::Wrong { piece, disk_offset: disk_offset.unwrap_or(0) });
        }
        bytes_done.fetch_add(u64::from(store.geometry().len_of(piece)), Ordering::Relaxed);
    }
    Ok(Proof::Right)
}

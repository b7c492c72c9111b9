//! What the disk holds already: after a power cut, or under an older image.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use metainfo::{Geometry, Metainfo, PieceIndex};

use crate::read_back::{ReadBack, groups};
use crate::store::DiskStore;

/// So many pieces are looked at, spread over the disk, before all of them are: a disk that holds something else entirely
/// costs no more.
const SAMPLE_PIECES: usize = 64;
/// Of large pieces fewer …
const SAMPLE_BYTES: u64 = 64 << 20;
/// … but not fewer than this.
const SAMPLE_LEAST: usize = 8;
/// Threads that look at most.
const MAX_THREADS: usize = 8;
/// A thread tells what it has seen after so many pieces: a lock and some packets each time.
const TELL_EVERY: usize = 16;

/// What a sample of the pieces showed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Pieces looked at.
    pub looked_at: usize,
    /// Those that were there and right.
    pub right: usize,
    /// Bytes read.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Looks at some pieces all over the disk. Reads only. Pieces that cannot be read count as not there.
pub(crate) fn sample(meta: &Metainfo, store: &DiskStore) -> io::Result<Sample> {
    let started = std::time::Instant::now();
    let pieces = sampled(store.geometry());
    let bytes = pieces.iter().map(|&piece| u64::from(store.geometry().len_of(piece))).sum();
    let right = AtomicUsize::new(0);
    let seen = |_: &[PieceIndex], right_ones: &[PieceIndex]| {
        right.fetch_add(right_ones.len(), Ordering::Relaxed);
    };
    look_at(meta, store, &pieces, &AtomicBool::new(false), &seen)?;
    Ok(Sample { looked_at: pieces.len(), right: right.into_inner(), bytes, took: started.elapsed() })
}

fn sampled(geometry: Geometry) -> Vec<PieceIndex> {
    let count = usize::try_from(geometry.piece_count()).expect("fits usize");
    let affordable = usize::try_from(SAMPLE_BYTES / u64::from(geometry.piece_len())).unwrap_or(usize::MAX);
    let wanted = affordable.clamp(SAMPLE_LEAST, SAMPLE_PIECES).min(count).max(1);
    let all: Vec<PieceIndex> = geometry.pieces().collect();
    // From the middle of each share: the first and last pieces hold the partition table, which was the first to go.
    (0..wanted).filter_map(|share| all.get((2 * share + 1) * count / (2 * wanted)).copied()).collect()
}

/// Looks at every piece, in the order of the disk, and tells what is there and what is not, as it goes. If a sample shows
/// nothing, nothing is there. `told(right, not_right)` may be called from several threads. Blocks; ends early when `is_over`.
pub(crate) fn look(
    meta: &Metainfo,
    store: &DiskStore,
    is_over: &AtomicBool,
    told: &(impl Fn(&[PieceIndex], &[PieceIndex]) + Sync),
) -> io::Result<u64> {
    let all: Vec<PieceIndex> = store.geometry().pieces().collect();
    if sample(meta, store)?.right == 0 {
        told(&[], &all);
        return Ok(0);
    }
    let kept = AtomicU64::new(0);
    let tell = |seen: &[PieceIndex], right: &[PieceIndex]| {
        let wrong: Vec<PieceIndex> = seen.iter().copied().filter(|piece| !right.contains(piece)).collect();
        kept.fetch_add(right.iter().map(|&piece| u64::from(store.geometry().len_of(piece))).sum(), Ordering::Relaxed);
        told(right, &wrong);
    };
    look_at(meta, store, &all, is_over, &tell)?;
    Ok(kept.into_inner())
}

/// Reads pieces on as many threads as there are cores; `seen(looked_at, right)` hears of them in batches.
fn look_at(
    meta: &Metainfo,
    store: &DiskStore,
    pieces: &[PieceIndex],
    is_over: &AtomicBool,
    seen: &(impl Fn(&[PieceIndex], &[PieceIndex]) + Sync),
) -> io::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let groups = groups(store, pieces, threads);
    let next = AtomicUsize::new(0);
    let look = || -> io::Result<()> {
        let mut reader = ReadBack::new(meta, store)?;
        let (mut batch, mut right) = (Vec::with_capacity(TELL_EVERY), Vec::with_capacity(TELL_EVERY));
        while let Some(&group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some(found) = reader.check(group, || !is_over.load(Ordering::Relaxed)) else { return Ok(()) };
            for (&piece, found) in group.iter().zip(found) {
                match found {
                    Ok(None) => right.push(piece),
                    Ok(Some(_)) => {}
                    // A sector that cannot be read may well be written: then the disk puts a spare one in its place.
                    Err(cause) => log::warn!("checking what the disk already holds: {cause}"),
                }
                batch.push(piece);
            }
            if batch.len() >= TELL_EVERY {
                seen(&batch, &right);
                batch.clear();
                right.clear();
            }
        }
        seen(&batch, &right);
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(look)).collect();
        let died = || Err(io::Error::other("a thread that looked at the disk died"));
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| died()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_and_small() {
        for (len, piece_len, expected) in [
            (1, 16 << 10, 1),
            (10 << 20, 256 << 10, 40),
            (1 << 30, 256 << 10, 64),
            (8 << 30, 4 << 20, 16),
            (1 << 40, 16 << 20, 8),
        ] {
            let geometry = Geometry::new(len, piece_len).expect("sane");
            let pieces = sampled(geometry);
            assert_eq!(pieces.len(), expected, "{len} {piece_len}");
            assert!(pieces.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}

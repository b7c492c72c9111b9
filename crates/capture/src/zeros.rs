//! Finds blocks of zeros in used data: they need no content, only a recipe in the torrent.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use blockdev::is_zero;
use layout::{DiskOffset, DiskRange, Layout};
use metainfo::{MAX_ZERO_RANGES, ZERO_BLOCK_LEN, Zeros};

use crate::source::Source;
use terminal::Progress;

/// Bytes read at a time, in whole blocks.
const READ_LEN: u64 = 1 << 20;

/// Finds the blocks of zeros in the plan's extents, aligned on the disk and outside the ranges in `deferred`. The
/// result is the same for the same disk, however it is read. With `is_rescue`, unreadable places count as data.
///
/// # Errors
/// If the source cannot be read, or `stop` is set.
pub(crate) fn find(
    source: &Source,
    layout: &Layout,
    deferred: &[DiskRange],
    is_rescue: bool,
    stop: &AtomicBool,
) -> anyhow::Result<Zeros> {
    let mut progress = Progress::new("looking for zeros", layout.content_len());
    let mut buf = vec![0; usize::try_from(READ_LEN)?];
    let mut zeros = Runs::default();
    for extent in layout.extents() {
        let whole = extent.disk.0.next_multiple_of(ZERO_BLOCK_LEN)..extent.end().0 / ZERO_BLOCK_LEN * ZERO_BLOCK_LEN;
        let mut at = whole.start;
        while at < whole.end {
            ensure!(!stop.load(Ordering::Relaxed), "interrupted");
            let reading = || format!("looking for data in {}", source.path.display());
            let data = source.next_data(DiskRange::new(at..whole.end)).with_context(reading)?;
            let data = data.map_or(whole.end..whole.end, DiskRange::bytes);
            // The ends of a hole may be inside a block; that block is read.
            let hole_end = data.start / ZERO_BLOCK_LEN * ZERO_BLOCK_LEN;
            zeros.push(at..hole_end);
            at = hole_end;
            let data_end = data.end.next_multiple_of(ZERO_BLOCK_LEN);
            while at < data_end {
                ensure!(!stop.load(Ordering::Relaxed), "interrupted");
                let buf = &mut buf[..usize::try_from((data_end - at).min(READ_LEN))?];
                match source.read_at(buf, DiskOffset(at)) {
                    Ok(()) => {
                        for (start, block) in (at..).step_by(usize::try_from(ZERO_BLOCK_LEN)?).zip(blocks(buf)) {
                            if is_zero(block) {
                                zeros.push(start..start + ZERO_BLOCK_LEN);
                            }
                        }
                    }
                    Err(_) if is_rescue => {}
                    Err(error) => return Err(error.context(crate::rescue::RESCUE_HINT)),
                }
                at += u64::try_from(buf.len())?;
            }
        }
        progress.advance(extent.len);
    }
    progress.finish();
    zeros.without(deferred).bounded(MAX_ZERO_RANGES)
}

fn blocks(buf: &[u8]) -> impl Iterator<Item = &[u8]> {
    buf.chunks(usize::try_from(ZERO_BLOCK_LEN).expect("64 KiB"))
}

/// Ranges minus other ranges, both ascending and disjoint.
fn subtract(ranges: impl Iterator<Item = Range<u64>>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    for range in ranges {
        let first = others.partition_point(|other| other.end <= range.start);
        let mut at = range.start;
        for other in others[first..].iter().take_while(|other| other.start < range.end) {
            left.push(at..other.start.max(at));
            at = other.end.min(range.end);
        }
        left.push(at..range.end);
    }
    left.retain(|range| !range.is_empty());
    left
}

/// Runs of blocks of the disk, ascending and merged where they touch.
#[derive(Default)]
struct Runs {
    ranges: Vec<Range<u64>>,
}

impl Runs {
    fn push(&mut self, range: Range<u64>) {
        match self.ranges.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }

    /// The runs without any block that one of `others` touches.
    fn without(self, others: &[DiskRange]) -> Runs {
        let whole = |other: &DiskRange| {
            other.start.0 / ZERO_BLOCK_LEN * ZERO_BLOCK_LEN..other.end.0.next_multiple_of(ZERO_BLOCK_LEN)
        };
        let others: Vec<Range<u64>> = others.iter().map(whole).collect();
        Runs { ranges: subtract(self.ranges.into_iter(), &others) }
    }

    /// The runs, at most this many: if there are more, the short ones are copied like other data.
    fn bounded(mut self, most: usize) -> anyhow::Result<Zeros> {
        let mut least = ZERO_BLOCK_LEN;
        while self.ranges.len() > most {
            least *= 2;
            self.ranges.retain(|range| range.end - range.start >= least);
        }
        Zeros::new(self.ranges).context("writing down where the zeros are")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = ZERO_BLOCK_LEN;

    fn runs(blocks: &[Range<u64>]) -> Runs {
        let mut runs = Runs::default();
        blocks.iter().for_each(|range| runs.push(range.start * BLOCK..range.end * BLOCK));
        runs
    }

    #[test]
    fn runs_join_and_stay_away_from_what_is_deferred() {
        let blocks = [16..17, 17..20, 20..20, 21..22, 30..40];
        assert_eq!(runs(&blocks).ranges, [16 * BLOCK..20 * BLOCK, 21 * BLOCK..22 * BLOCK, 30 * BLOCK..40 * BLOCK]);
        let deferred = [0..16 * BLOCK + 1, 33 * BLOCK + 5..37 * BLOCK].map(DiskRange::new);
        let left = [17 * BLOCK..20 * BLOCK, 21 * BLOCK..22 * BLOCK, 30 * BLOCK..33 * BLOCK, 37 * BLOCK..40 * BLOCK];
        assert_eq!(runs(&blocks).without(&deferred).ranges, left);
    }

    #[test]
    fn too_many_runs_lose_the_short_ones() {
        let blocks = [0..1, 2..5, 6..8, 9..10, 11..12];
        assert_eq!(runs(&blocks).bounded(5).expect("sane").ranges().len(), 5);
        assert_eq!(runs(&blocks).bounded(4).expect("sane").ranges(), [2 * BLOCK..5 * BLOCK, 6 * BLOCK..8 * BLOCK]);
        assert!(runs(&blocks).bounded(0).expect("sane").is_empty());
    }
}

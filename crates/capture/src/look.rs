//! Reads the parts that no reader covers: gaps between partitions, and the space after the file systems in them. Zeros
//! may be left out; everything else may matter.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use blockdev::is_zero;
use layout::{DiskOffset, DiskRange};

use crate::source::Source;
use terminal::Progress;

/// Bytes read at a time.
const READ_LEN: u64 = 1 << 20;
/// Zeros and data are distinguished in blocks of this many bytes, aligned on the disk.
const BLOCK_LEN: u64 = 4096;
/// Shorter runs of zeros between data, in bytes, are captured too: places cost more than they save.
const RUN_MIN: u64 = 64 << 10;

/// The runs of zeros in these ranges of the source, which ascend and are disjoint. A run is at least [`RUN_MIN`] long
/// or covers a whole range. With `is_rescue`, unreadable places count as data.
///
/// # Errors
/// If the source cannot be read, or `stop` is set.
pub(crate) fn zeros(
    source: &Source,
    ranges: &[DiskRange],
    is_rescue: bool,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<DiskRange>> {
    let total = ranges.iter().map(|range| range.len()).sum();
    let mut progress = Progress::new("looking for data outside of file systems", total);
    let mut runs = Vec::new();
    let mut buf = vec![0; usize::try_from(READ_LEN)?];
    for range in ranges.iter().map(|range| range.bytes()) {
        let first = runs.len();
        let mut at = range.start;
        while at < range.end {
            ensure!(!stop.load(Ordering::Relaxed), "interrupted");
            let reading = || format!("looking for data in {}", source.path.display());
            let data = source.next_data(DiskRange::new(at..range.end)).with_context(reading)?;
            let data = data.map_or(range.end..range.end, DiskRange::bytes);
            // A hole may begin or end inside a block; that block is read.
            let hole_end = if data.start < range.end { data.start / BLOCK_LEN * BLOCK_LEN } else { range.end };
            if at < hole_end {
                progress.advance(hole_end - at);
                push(&mut runs, first, at..hole_end);
                at = hole_end;
            }
            while at < data.end {
                ensure!(!stop.load(Ordering::Relaxed), "interrupted");
                let end = (at / READ_LEN * READ_LEN + READ_LEN).min(range.end);
                let buf = &mut buf[..usize::try_from(end - at)?];
                match source.read_at(buf, DiskOffset(at)) {
                    Ok(()) => blocks(buf, at).for_each(|zeros| push(&mut runs, first, zeros)),
                    Err(_) if is_rescue => {}
                    Err(error) => return Err(error.context(crate::rescue::RESCUE_HINT)),
                }
                progress.advance(end - at);
                at = end;
            }
        }
        let kept = runs.split_off(first).into_iter().filter_map(|run: Range<u64>| {
            // Between data, only whole blocks count; at the ends of the range, parts of blocks count too.
            let start = if run.start == range.start { run.start } else { run.start.next_multiple_of(BLOCK_LEN) };
            let end = if run.end == range.end { run.end } else { run.end / BLOCK_LEN * BLOCK_LEN };
            (run == range || start.saturating_add(RUN_MIN) <= end).then_some(start..end)
        });
        runs.extend(kept.collect::<Vec<_>>());
    }
    progress.finish();
    Ok(runs.into_iter().map(DiskRange::new).collect())
}

/// The blocks of zeros in bytes that begin at `at` on the disk; the first and the last may be partial blocks.
fn blocks(bytes: &[u8], at: u64) -> impl Iterator<Item = Range<u64>> {
    let mut rest = bytes;
    let mut at = at;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let len = usize::try_from(BLOCK_LEN - at % BLOCK_LEN).unwrap_or(usize::MAX).min(rest.len());
            let (block, later) = rest.split_at(len);
            let range = at..at + block.len() as u64;
            (rest, at) = (later, range.end);
            if is_zero(block) {
                return Some(range);
            }
        }
        None
    })
}

/// Adds a run after the others; it may be joined with one of those from index `first` on.
fn push(runs: &mut Vec<Range<u64>>, first: usize, run: Range<u64>) {
    match runs[first..].last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    /// Finds the zeros of a 4 MiB disk with a byte at each of these places, once with holes and once without.
    fn find(places: &[u64], ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let dir = tempfile::tempdir().expect("a directory");
        let found = [true, false].map(|is_sparse| {
            let path = dir.path().join("disk");
            if is_sparse {
                File::create(&path).and_then(|file| file.set_len(4 << 20)).expect("a file");
            } else {
                fs::write(&path, vec![0; 4 << 20]).expect("a file");
            }
            let file = File::options().write(true).open(&path).expect("the file");
            places.iter().for_each(|&at| file.write_all_at(b"x", at).expect("written"));
            let ranges: Vec<_> = ranges.iter().cloned().map(DiskRange::new).collect();
            zeros(&Source::open(&path).expect("a source"), &ranges, false, &AtomicBool::new(false)).expect("readable")
        });
        assert_eq!(found[0], found[1], "holes are zeros");
        found[0].iter().map(|range| range.bytes()).collect()
    }

    #[test]
    fn data_is_found_wherever_it_is() {
        assert_eq!(find(&[], &[512..3 << 20]), [512..3 << 20]);
        assert_eq!(find(&[2 << 20], &[512..3 << 20]), [512..2 << 20, (2 << 20) + 4096..3 << 20]);
        assert_eq!(find(&[600], &[512..1024, 2048..4096]), [2048..4096]);
        // A gap of less than 64 KiB between two places does not count.
        assert_eq!(find(&[100_000, 160_000, 400_000], &[0..1 << 20]), [0..98_304, 163_840..397_312, 401_408..1 << 20]);
        assert_eq!(find(&[(1 << 20) - 1], &[0..1 << 20, 1 << 20..2 << 20]), [0..(1 << 20) - 4096, 1 << 20..2 << 20]);
    }

    #[test]
    fn it_ends_when_told_to() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        fs::write(&path, [1; 8192]).expect("a file");
        let source = Source::open(&path).expect("a source");
        let error = zeros(&source, &[DiskRange::new(0..8192)], false, &AtomicBool::new(true)).expect_err("stopped");
        assert_eq!(error.to_string(), "interrupted");
    }
}

//! What the image does not use is given back to a flash disk.

use std::sync::atomic::{AtomicBool, Ordering};

use layout::{DiskOffset, DiskRange, Layout};

use crate::store::DiskStore;

/// Discards begin and end on a multiple of this, which every flash disk's own unit divides, and are at least as long.
const ALIGN: u64 = 1 << 20;
/// One discard is at most so long: some disks take seconds for more, and nothing else gets through meanwhile.
const MOST: u64 = 1 << 30;

/// Discards every gap between the image's extents and zeros. Advice: a disk that cannot, or fails, is no worse for it. Blocks.
pub(crate) fn discard_unused(layout: &Layout, store: &DiskStore, is_over: &AtomicBool) -> u64 {
    let mut discarded = 0;
    let deferred: Vec<_> = store.deferred().ranges().collect();
    for gap in gaps(layout, &deferred, store.device().len()) {
        let (mut start, end) = (gap.start.0, gap.end.0);
        while start < end && !is_over.load(Ordering::Relaxed) {
            let len = (end - start).min(MOST);
            match store.device().discard(DiskOffset(start), len) {
                Ok(true) => discarded += len,
                Ok(false) => return discarded,
                Err(cause) => {
                    log::warn!("{cause}; unused space was not discarded, and everything else is in order");
                    return discarded;
                }
            }
            start += len;
        }
    }
    discarded
}

/// What lies between extents, zeros and deferred ranges, cut to whole units.
fn gaps(layout: &Layout, deferred: &[DiskRange], device_len: u64) -> Vec<DiskRange> {
    let mut used: Vec<_> = layout.extents().iter().copied().map(DiskRange::from).collect();
    // Zeros are used as well: what was discarded may read as anything.
    used.extend(layout.zeros());
    used.extend(deferred);
    used.push(DiskRange::new(device_len..u64::MAX));
    used.sort_unstable_by_key(|range| range.start);
    let mut gaps = Vec::new();
    let mut at: u64 = 0;
    for range in used {
        let gap = DiskRange::new(at.next_multiple_of(ALIGN)..range.start.0.min(device_len) / ALIGN * ALIGN);
        if !gap.is_empty() {
            gaps.push(gap);
        }
        at = range.end.0.max(at);
        if at >= device_len {
            break;
        }
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::Extent;
    use metainfo::{FileEntry, ImageFacts, Metainfo, NewTorrent, Zeros};

    #[test]
    fn gaps_are_whole_units_outside_of_everything() {
        const MIB: u64 = 1 << 20;
        let extents = [(0, 17 * 1024), (3 * MIB + 1, 10), (5 * MIB, MIB)];
        let extents = extents.map(|(disk, len)| Extent { disk: DiskOffset(disk), len });
        let layout = Layout::of_extents(extents.to_vec()).expect("sane");
        let gaps =
            |deferred: &[_], len| gaps(&layout, deferred, len).into_iter().map(DiskRange::bytes).collect::<Vec<_>>();
        let deferred = [0..MIB, 9 * MIB..10 * MIB].map(DiskRange::new);
        assert_eq!(gaps(&deferred, 10 * MIB), [MIB..3 * MIB, 4 * MIB..5 * MIB, 6 * MIB..9 * MIB]);
        assert_eq!(gaps(&[], 6 * MIB + 512), [MIB..3 * MIB, 4 * MIB..5 * MIB]);
        assert_eq!(gaps(&deferred[..1], 50 * MIB)[2], 6 * MIB..50 * MIB);
    }

    #[test]
    fn zeros_are_no_gap() {
        const MIB: u64 = 1 << 20;
        let zeros = Zeros::new(vec![MIB..2 * MIB, 7 * MIB + (64 << 10)..8 * MIB]).expect("whole blocks");
        let torrent = NewTorrent {
            name: "root".to_owned(),
            announce: None,
            piece_len: 16 << 10,
            files: vec![FileEntry { length: 512, path: vec!["0".to_owned()] }],
            hashes: vec![[0; 20]],
            facts: Some(ImageFacts {
                disk_size: 10 * MIB,
                zeros,
                table: metainfo::TableKind::None,
                ..ImageFacts::default()
            }),
            private: true,
        };
        let meta = Metainfo::parse(&torrent.to_bytes().expect("sane")).expect("sane");
        let layout = Layout::new(&meta).expect("sane");
        let head = DiskRange::new(0..MIB);
        let wanted = [2 * MIB..7 * MIB, 8 * MIB..10 * MIB].map(DiskRange::new);
        assert_eq!(gaps(&layout, &[head], 10 * MIB), wanted);
    }
}

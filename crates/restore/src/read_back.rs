//! Pieces read back from the medium and hashed, several side by side.

use std::collections::VecDeque;
use std::io;

use blockdev::{ALIGN, AlignedBuf, Uncached};
use hashes::Hasher;
use layout::DiskOffset;
use metainfo::{Metainfo, PieceIndex};

use crate::deferred::{Part, cut_at};
use crate::store::DiskStore;

/// Memory of one reader in bytes. Pieces that are hashed side by side share it, so their length does not matter.
const MEMORY: usize = 1 << 20;
/// The same for short pieces, of which it takes eight whole ones: they are read one after the other, in the order of the disk.
const MEMORY_FOR_WHOLE: usize = 2 << 20;

/// Where a piece is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrongPiece {
    pub(crate) piece: PieceIndex,
    /// Where the piece starts on the disk.
    pub(crate) disk_offset: DiskOffset,
}

/// What was found of a piece: an error if it cannot be read, `Some` if it is not right.
pub(crate) type Found = io::Result<Option<WrongPiece>>;

/// Cuts pieces into groups, each of which one of `threads` reads and hashes side by side.
///
/// On a disk that turns each piece is a group: going back and forth between several would cost more than hashing them together
/// gains, and no such disk is faster than one thread.
pub(crate) fn groups<'a>(store: &DiskStore, pieces: &'a [PieceIndex], threads: usize) -> Vec<&'a [PieceIndex]> {
    if store.device().is_rotational() {
        return pieces.chunks(1).collect();
    }
    let count = pieces.len().div_ceil(hashes::share(pieces.len(), threads));
    pieces.chunks(pieces.len().div_ceil(count.max(1)).max(1)).collect()
}

/// Reads pieces back; each thread needs its own.
pub(crate) struct ReadBack<'a> {
    meta: &'a Metainfo,
    store: &'a DiskStore,
    uncached: Uncached,
    buf: AlignedBuf,
}

/// A piece that is being read.
struct Reading<'a> {
    piece: PieceIndex,
    /// Where it starts on the disk, unless all of it is deferred.
    disk_offset: Option<DiskOffset>,
    /// What has not been read yet.
    parts: VecDeque<Part>,
    hasher: Hasher,
    buf: &'a mut [u8],
    filled: usize,
    error: Option<io::Error>,
}

impl<'a> ReadBack<'a> {
    /// # Errors
    /// If the device cannot be opened a second time.
    pub(crate) fn new(meta: &'a Metainfo, store: &'a DiskStore) -> io::Result<ReadBack<'a>> {
        let piece_len = usize::try_from(store.geometry().piece_len()).map_err(io::Error::other)?;
        let memory = if piece_len <= MEMORY_FOR_WHOLE / 8 { MEMORY_FOR_WHOLE } else { MEMORY };
        Ok(ReadBack { meta, store, uncached: store.device().uncached()?, buf: AlignedBuf::new(memory) })
    }

    /// Hashes pieces as they are on the medium (and in memory, where they are deferred). What was found of each, in their order;
    /// `None` if `goes_on`, which is called before every MiB or two, ended it.
    pub(crate) fn check(&mut self, pieces: &[PieceIndex], goes_on: impl Fn() -> bool) -> Option<Vec<Found>> {
        let share = (self.buf.as_slice().len() / pieces.len().max(1) / ALIGN * ALIGN).max(ALIGN);
        let bufs = self.buf.as_mut_slice().chunks_exact_mut(share);
        let mut all: Vec<Reading<'_>> =
            pieces.iter().zip(bufs).map(|(&piece, buf)| Reading::new(self.store, piece, buf)).collect();
        while all.iter().any(|reading| !reading.parts.is_empty()) {
            if !goes_on() {
                return None;
            }
            all.iter_mut().for_each(|reading| reading.fill(self.store, &mut self.uncached));
            Hasher::update_all(all.iter_mut().map(|reading| (&mut reading.hasher, &reading.buf[..reading.filled])));
        }
        let hashers = all.iter_mut().map(|reading| std::mem::take(&mut reading.hasher)).collect();
        let hashes = Hasher::finish_all(hashers);
        let found = all.into_iter().zip(hashes).map(|(reading, hash)| match reading.error {
            Some(error) => Err(error),
            None if hash == *self.meta.piece_hash(reading.piece) => Ok(None),
            None => Ok(Some(WrongPiece { piece: reading.piece, disk_offset: reading.disk_offset.unwrap_or_default() })),
        });
        let mut found: Vec<Found> = found.collect();
        // Nothing counts as right that was not read.
        found.resize_with(pieces.len(), || Err(io::Error::other("more pieces at a time than there is memory for")));
        Some(found)
    }

    /// [`ReadBack::check`] of one piece, whatever happens meanwhile.
    pub(crate) fn check_one(&mut self, piece: PieceIndex) -> Found {
        let found = self.check(&[piece], || true).and_then(|mut found| found.pop());
        found.unwrap_or_else(|| Err(io::Error::other("nothing was read")))
    }
}

impl<'a> Reading<'a> {
    fn new(store: &DiskStore, piece: PieceIndex, buf: &'a mut [u8]) -> Reading<'a> {
        let (parts, error) = match store.parts_of(store.geometry().piece_range(piece)) {
            Ok(parts) => (VecDeque::from(parts), None),
            Err(error) => (VecDeque::new(), Some(error)),
        };
        let on_disk = |part: &Part| match part {
            Part::Disk(part) => Some(part.disk),
            Part::Held(_) => None,
        };
        let disk_offset = parts.iter().find_map(on_disk);
        Reading { piece, disk_offset, parts, hasher: Hasher::new(), buf, filled: 0, error }
    }

    /// Fills the buffer with what comes next, or as much of it as there is.
    fn fill(&mut self, store: &DiskStore, uncached: &mut Uncached) {
        self.filled = 0;
        while self.filled < self.buf.len()
            && let Some(part) = self.parts.pop_front()
        {
            let (Part::Held(whole) | Part::Disk(whole)) = part;
            let room = u64::try_from(self.buf.len() - self.filled).expect("a MiB or two");
            let (now, later) = cut_at(whole, whole.len.min(room));
            let end = self.filled + usize::try_from(now.len).expect("no more than there is room for");
            let target = &mut self.buf[self.filled..end];
            let (read, later) = match part {
                Part::Held(_) => {
                    store.deferred().recall(now.disk, target);
                    (Ok(()), Part::Held(later))
                }
                Part::Disk(_) => (uncached.read_exact_at(target, now.disk), Part::Disk(later)),
            };
            if let Err(error) = read {
                self.error = Some(error);
                self.parts.clear();
                self.filled = 0;
                return;
            }
            self.filled = end;
            if now.len < whole.len {
                self.parts.push_front(later);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use blockdev::Device;
    use layout::Layout;
    use metainfo::{FileEntry, Geometry, NewTorrent};
    use swarm::Storage as _;

    use super::*;

    const PIECE_LEN: u32 = 256 << 10;

    /// A disk of 16 MiB with an image whose extents are of any length and alignment; the first MiB is deferred.
    fn restored(dir: &tempfile::TempDir) -> (Metainfo, DiskStore) {
        let lens = [512, 4096, 1536, 70_000, 1 << 20, 3, 900_000, 8192, 2 << 20, 300_000];
        let mut files = Vec::new();
        let mut at = 0;
        for len in lens.into_iter().cycle() {
            if at >= 12 << 20 {
                break;
            }
            files.push(FileEntry { length: len, path: vec![format!("{at:x}")] });
            at += len + if len % 4096 == 0 { 4096 } else { 999 };
        }
        let content_len: u64 = files.iter().map(|file| file.length).sum();
        let mut word = 1_u32;
        let content: Vec<u8> = (0..content_len)
            .map(|_| {
                word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                word.to_be_bytes()[0]
            })
            .collect();
        let pieces: Vec<&[u8]> = content.chunks(usize::try_from(PIECE_LEN).expect("small")).collect();
        let torrent = NewTorrent {
            name: "root".to_owned(),
            announce: None,
            piece_len: PIECE_LEN,
            files,
            hashes: hashes::digests(&pieces),
            facts: None,
            private: true,
        };
        let meta = Metainfo::parse(&torrent.to_bytes().expect("sane")).expect("sane");
        let device = Device::create_file(&dir.path().join("disk"), 16 << 20).expect("a temporary file");
        let layout = Arc::new(Layout::new(&meta).expect("sane"));
        let store = DiskStore::restoring(meta.geometry, layout, Arc::new(device), None);
        for (piece, data) in meta.geometry.pieces().zip(pieces) {
            store.write_piece(piece, data).expect("it fits");
        }
        (meta, store)
    }

    fn all(geometry: Geometry) -> Vec<PieceIndex> {
        geometry.pieces().collect()
    }

    #[test]
    fn any_number_of_pieces_is_read_back_at_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (meta, store) = restored(&dir);
        let pieces = all(meta.geometry);
        let mut reader = ReadBack::new(&meta, &store).expect("opens");
        for at_once in [1, 2, 3, 5, 8, 16] {
            for group in pieces.chunks(at_once) {
                let found = reader.check(group, || true).expect("not ended");
                assert_eq!(found.len(), group.len());
                assert!(found.iter().all(|found| matches!(found, Ok(None))), "{group:?}: {found:?}");
            }
        }
    }

    #[test]
    fn a_wrong_piece_is_found_among_right_ones() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (meta, store) = restored(&dir);
        let pieces = all(meta.geometry);
        let bad = pieces[10];
        let start = store.layout().on_disk(meta.geometry.piece_range(bad)).expect("inside").next().expect("not empty");
        store.device().write_all_at(&[0; 999], start.disk).expect("fits");
        let mut reader = ReadBack::new(&meta, &store).expect("opens");
        let found = reader.check(&pieces[6..14], || true).expect("not ended");
        for (&piece, found) in pieces[6..14].iter().zip(found) {
            let expected = (piece == bad).then_some(WrongPiece { piece, disk_offset: start.disk });
            assert_eq!(found.expect("readable"), expected, "{piece}");
        }
        assert_eq!(reader.check_one(pieces[1]).expect("readable"), None);
    }

    #[test]
    fn what_cannot_be_read_spoils_no_other_piece() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (meta, store) = restored(&dir);
        let pieces = all(meta.geometry);
        // From here on the disk has nothing.
        let cut = store.layout().on_disk(meta.geometry.piece_range(pieces[20])).expect("inside").next();
        let cut = cut.expect("not empty").disk.0;
        std::fs::File::options()
            .write(true)
            .open(store.device().path())
            .and_then(|file| file.set_len(cut))
            .expect("shortens");
        let mut reader = ReadBack::new(&meta, &store).expect("opens");
        let found = reader.check(&pieces[16..24], || true).expect("not ended");
        let is_readable: Vec<bool> = found.iter().map(Result::is_ok).collect();
        assert_eq!(is_readable, [true, true, true, true, false, false, false, false]);
        assert!(found.iter().flatten().all(Option::is_none));
    }

    #[test]
    fn reading_ends_when_it_is_told() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (meta, store) = restored(&dir);
        let mut reader = ReadBack::new(&meta, &store).expect("opens");
        let left = Cell::new(1);
        // Sixteen pieces of 256 KiB are two reads of 2 MiB.
        let found = reader.check(&all(meta.geometry)[..16], || left.replace(0) > 0);
        assert!(found.is_none());
    }

    #[test]
    fn groups_hold_every_piece_once_and_are_about_equal() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (meta, store) = restored(&dir);
        let pieces = all(meta.geometry);
        for count in 0..pieces.len() {
            for threads in [0, 1, 2, 8] {
                let groups = groups(&store, &pieces[..count], threads);
                assert_eq!(groups.concat(), pieces[..count]);
                let most = hashes::share(count, threads);
                assert!(groups.iter().all(|group| (1..=most).contains(&group.len())), "{count} {threads}");
            }
        }
    }
}

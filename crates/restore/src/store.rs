//! The swarm's storage on a disk.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use blockdev::{Device, Uncached};
use layout::{DiskOffset, DiskRange, Layout, OnDisk};
use metainfo::{Geometry, Metainfo, PieceIndex};
use sha1::{Digest, Sha1};
use swarm::Storage;

use crate::deferred::{Deferred, Part};
use crate::ledger::Ledger;

/// An image's content on a disk, each byte at its disk offset.
///
/// What falls into the layout's deferred ranges is in memory, before and after those bytes are on the disk, since the table
/// on the disk may have been fitted to it.
#[derive(Debug)]
pub struct DiskStore {
    geometry: Geometry,
    layout: Arc<Layout>,
    device: Arc<Device>,
    deferred: Deferred,
    ledger: Arc<Ledger>,
    /// Whether what could boot has been taken away, which the first write does.
    is_unbootable: Mutex<bool>,
}

/// Where a piece is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrongPiece {
    pub(crate) piece: PieceIndex,
    /// Where the piece starts on the disk.
    pub(crate) disk_offset: DiskOffset,
}

impl DiskStore {
    /// A disk that already holds the whole image, to seed from.
    pub fn complete(geometry: Geometry, layout: Arc<Layout>, device: Arc<Device>) -> DiskStore {
        DiskStore {
            geometry,
            layout,
            device,
            deferred: Deferred::new(Vec::new()),
            ledger: Arc::default(),
            is_unbootable: Mutex::new(false),
        }
    }

    /// A disk about to be restored: what falls into the layout's deferred ranges stays in memory.
    pub(crate) fn restoring(geometry: Geometry, layout: Arc<Layout>, device: Arc<Device>) -> DiskStore {
        let deferred = Deferred::new(layout.deferred(device.len()));
        DiskStore { deferred, ..DiskStore::complete(geometry, layout, device) }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    pub(crate) fn deferred(&self) -> &Deferred {
        &self.deferred
    }

    /// Whether anything has been written, or is about to be.
    pub(crate) fn is_unbootable(&self) -> bool {
        *self.is_unbootable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zeroes what firmware looks for, at both ends of the device, so that a half-written disk does not boot. Done once;
    /// again only after an error.
    pub(crate) fn make_unbootable(&self) -> io::Result<()> {
        let mut is_done = self.is_unbootable.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_done {
            return Ok(());
        }
        self.wipe()?;
        *is_done = true;
        Ok(())
    }

    /// The same, whatever was done before: for a disk that turned out to be bad.
    pub(crate) fn wipe(&self) -> io::Result<()> {
        for range in self.deferred.ranges() {
            let zeros = vec![0; usize::try_from(range.len()).expect("a few MiB")];
            self.device.write_all_at(&zeros, range.start)?;
        }
        self.device.flush()
    }

    /// Hashes a piece as it is on the medium (and in memory, where it is deferred). `Some` if it is not right.
    ///
    /// `pause` is called before every read.
    pub(crate) fn check(
        &self,
        meta: &Metainfo,
        piece: PieceIndex,
        uncached: &mut Uncached,
        mut pause: impl FnMut(),
    ) -> io::Result<Option<WrongPiece>> {
        let mut hash = Sha1::new();
        let mut disk_offset = None;
        for part in self.parts_of(self.geometry.piece_range(piece))? {
            match part {
                Part::Held(part) => {
                    let mut bytes = vec![0; usize::try_from(part.len).expect("a few MiB")];
                    self.deferred.recall(part.disk, &mut bytes);
                    hash.update(&bytes);
                }
                Part::Disk(part) => {
                    disk_offset.get_or_insert(part.disk);
                    pause();
                    uncached.read(part.disk, part.len, |bytes| hash.update(bytes))?;
                }
            }
        }
        let is_right = <[u8; 20]>::from(hash.finalize()) == *meta.piece_hash(piece);
        Ok((!is_right).then(|| WrongPiece { piece, disk_offset: disk_offset.unwrap_or_default() }))
    }

    /// The stretches of the disk, ascending, that the image has inside the deferred ranges.
    pub(crate) fn held(&self) -> Vec<DiskRange> {
        let extents = self.layout.extents();
        let mut held = Vec::new();
        for range in self.deferred.ranges() {
            let first = extents.partition_point(|extent| extent.end() <= range.start);
            let inside = extents[first..].iter().take_while(|extent| extent.disk < range.end);
            held.extend(inside.map(|extent| range.intersect(DiskRange::from(*extent))));
        }
        held
    }

    fn parts_of(&self, content: Range<u64>) -> io::Result<Vec<Part>> {
        let on_disk = self.layout.on_disk(content).map_err(io::Error::other)?;
        Ok(on_disk.flat_map(|part| self.deferred.split(part)).collect())
    }
}

impl Storage for DiskStore {
    fn write_piece(&self, piece: PieceIndex, data: &[u8]) -> io::Result<()> {
        let content = self.geometry.piece_range(piece);
        let len = content.end - content.start;
        if u64::try_from(data.len()) != Ok(len) {
            return Err(io::Error::other(format!("piece {piece} came with {} bytes", data.len())));
        }
        let writing = self.ledger.writing();
        self.make_unbootable()?;
        for part in self.parts_of(content.clone())? {
            match part {
                Part::Held(part) => self.deferred.keep(part.disk, &data[span(part, content.start)]),
                Part::Disk(part) => self.device.write_all_at(&data[span(part, content.start)], part.disk)?,
            }
        }
        self.ledger.written(piece, len);
        // Not before: whoever waits for writers then asks what has been written.
        drop(writing);
        Ok(())
    }

    fn read(&self, piece: PieceIndex, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        let start = self.geometry.piece_range(piece).start + u64::from(offset);
        let end = start.saturating_add(u64::try_from(buf.len()).map_err(io::Error::other)?);
        for part in self.parts_of(start..end)? {
            match part {
                Part::Held(part) => self.deferred.recall(part.disk, &mut buf[span(part, start)]),
                Part::Disk(part) => self.device.read_exact_at(&mut buf[span(part, start)], part.disk)?,
            }
        }
        Ok(())
    }
}

/// Where a stretch lies in a buffer whose first byte is content byte `start`.
fn span(part: OnDisk, start: u64) -> Range<usize> {
    let from = usize::try_from(part.content.0 - start).expect("inside a piece");
    from..from + usize::try_from(part.len).expect("inside a piece")
}

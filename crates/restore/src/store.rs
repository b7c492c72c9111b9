//! The swarm's storage on a disk.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::Device;
use layout::{Layout, OnDisk};
use metainfo::{Geometry, PieceIndex};
use swarm::Storage;

use crate::deferred::{Deferred, Part};

/// An image's content on a disk, each byte at its disk offset.
#[derive(Debug)]
pub struct DiskStore {
    geometry: Geometry,
    layout: Arc<Layout>,
    device: Arc<Device>,
    deferred: Deferred,
    /// From when the deferred ranges are on the disk they are read from there.
    is_finished: AtomicBool,
}

impl DiskStore {
    /// A disk that already holds the whole image, to seed from.
    pub fn complete(geometry: Geometry, layout: Arc<Layout>, device: Arc<Device>) -> DiskStore {
        DiskStore { geometry, layout, device, deferred: Deferred::new(Vec::new()), is_finished: AtomicBool::new(true) }
    }

    /// A disk about to be restored: what falls into the layout's deferred ranges stays in memory until
    /// [`DiskStore::write_deferred`].
    pub(crate) fn restoring(geometry: Geometry, layout: Arc<Layout>, device: Arc<Device>) -> DiskStore {
        let deferred = Deferred::new(layout.deferred());
        DiskStore { geometry, layout, device, deferred, is_finished: AtomicBool::new(false) }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The piece's stretches in content order, each told apart: in memory or on the disk.
    pub(crate) fn parts(&self, piece: PieceIndex) -> io::Result<Vec<Part>> {
        self.parts_of(self.geometry.piece_range(piece))
    }

    /// Reads back what is held in memory.
    pub(crate) fn recall(&self, part: OnDisk, buf: &mut [u8]) {
        self.deferred.recall(part.disk, buf);
    }

    /// Writes the deferred ranges of the image to the disk: from here on it can boot.
    pub(crate) fn write_deferred(&self) -> io::Result<()> {
        for range in self.layout.deferred() {
            for held in self.held_in(&range) {
                let mut bytes = vec![0; usize::try_from(held.len).expect("a MiB")];
                self.recall(held, &mut bytes);
                self.device.write_all_at(&bytes, held.disk)?;
            }
        }
        self.is_finished.store(true, Ordering::Release);
        Ok(())
    }

    /// What the image has inside `range` of the disk.
    pub(crate) fn held_in(&self, range: &Range<u64>) -> Vec<OnDisk> {
        let everything = self.layout.on_disk(0..self.layout.content_len()).into_iter().flatten();
        let inside = everything.skip_while(|part| part.disk.0 + part.len <= range.start);
        let inside = inside.take_while(|part| part.disk.0 < range.end);
        inside
            .flat_map(|part| self.deferred.split(part))
            .filter_map(|part| match part {
                Part::Held(part) if range.contains(&part.disk.0) => Some(part),
                Part::Held(_) | Part::Disk(_) => None,
            })
            .collect()
    }

    fn parts_of(&self, content: Range<u64>) -> io::Result<Vec<Part>> {
        let on_disk = self.layout.on_disk(content).map_err(io::Error::other)?;
        if self.is_finished.load(Ordering::Acquire) {
            return Ok(on_disk.map(Part::Disk).collect());
        }
        Ok(on_disk.flat_map(|part| self.deferred.split(part)).collect())
    }
}

impl Storage for DiskStore {
    fn write_piece(&self, piece: PieceIndex, data: &[u8]) -> io::Result<()> {
        let content = self.geometry.piece_range(piece);
        if u64::try_from(data.len()) != Ok(content.end - content.start) {
            return Err(io::Error::other(format!("piece {piece} came with {} bytes", data.len())));
        }
        for part in self.parts_of(content.clone())? {
            match part {
                Part::Held(part) => self.deferred.keep(part.disk, &data[span(part, content.start)]),
                Part::Disk(part) => self.device.write_all_at(&data[span(part, content.start)], part.disk)?,
            }
        }
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

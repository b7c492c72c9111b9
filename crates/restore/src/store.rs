//! The swarm's storage on a disk.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use blockdev::Device;
use layout::{DiskRange, Layout, OnDisk};
use metainfo::{Geometry, PieceIndex};
use swarm::Storage;

use crate::deferred::{Deferred, Part};
use crate::ledger::Ledger;
use crate::permission::Permission;
use crate::stamp::remove_stamps;

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
    permission: Option<Permission>,
    /// The words of who refused the first write.
    refusal: OnceLock<String>,
    /// Held by the first write, for as long as it takes; whether it may write.
    first: Mutex<bool>,
    /// Whether what could boot has been taken away, which the first write does.
    is_unbootable: AtomicBool,
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
            permission: None,
            refusal: OnceLock::new(),
            first: Mutex::new(false),
            is_unbootable: AtomicBool::new(false),
        }
    }

    /// A disk about to be restored: what falls into the layout's deferred ranges stays in memory. The first write asks for
    /// permission, if there is anybody to ask.
    pub(crate) fn restoring(
        geometry: Geometry,
        layout: Arc<Layout>,
        device: Arc<Device>,
        permission: Option<Permission>,
    ) -> DiskStore {
        let deferred = Deferred::new(layout.deferred(device.len()));
        DiskStore { deferred, permission, ..DiskStore::complete(geometry, layout, device) }
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

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether anything has been written: then what could boot is gone.
    pub(crate) fn is_unbootable(&self) -> bool {
        self.is_unbootable.load(Ordering::Acquire)
    }

    /// Why the first write was refused, if it was.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }

    /// Zeroes what firmware looks for, at both ends of the device, so that a half-written disk does not boot, and every stamp.
    /// Done once; again only after an error. Blocks until it is allowed.
    ///
    /// # Errors
    /// If it is refused, or the disk cannot be written.
    pub(crate) fn make_unbootable(&self) -> io::Result<()> {
        if self.is_unbootable() {
            return Ok(());
        }
        self.with_permission(|| {
            if !self.is_unbootable() {
                self.wipe()?;
                self.is_unbootable.store(true, Ordering::Release);
            }
            Ok(())
        })
    }

    /// Writes where nothing else is being written, once that is allowed. Blocks.
    ///
    /// # Errors
    /// If it is refused; or the write's.
    pub(crate) fn with_permission(&self, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut is_allowed = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_allowed {
            if let Some(said) = self.refusal() {
                return Err(refused(said));
            }
            let is_over = || self.ledger.is_cancelled();
            if let Some(permission) = &self.permission
                && let Err(said) = permission.ask(&is_over)
            {
                return Err(refused(self.refusal.get_or_init(|| said)));
            }
            // An answer that comes too late allows nothing: the restore has ended, and the disk was left as it is.
            if is_over() {
                return Err(io::Error::other("the restore ended before the first write"));
            }
            *is_allowed = true;
        }
        write()
    }

    /// The same, whatever was done before: for a disk that turned out to be bad.
    pub(crate) fn wipe(&self) -> io::Result<()> {
        // First, so that none says more than what is there.
        remove_stamps(self)?;
        for range in self.deferred.ranges() {
            let zeros = vec![0; usize::try_from(range.len()).expect("a few MiB")];
            self.device.write_all_at(&zeros, range.start)?;
        }
        self.device.flush()
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

    /// Where a stretch of the content is, in its order.
    pub(crate) fn parts_of(&self, content: Range<u64>) -> io::Result<Vec<Part>> {
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

fn refused(said: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("writing was not allowed: {said}"))
}

/// Where a stretch lies in a buffer whose first byte is content byte `start`.
fn span(part: OnDisk, start: u64) -> Range<usize> {
    let from = usize::try_from(part.content.0 - start).expect("inside a piece");
    from..from + usize::try_from(part.len).expect("inside a piece")
}

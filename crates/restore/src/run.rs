//! The steps in their order.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockdev::Device;
use layout::{DiskOffset, Layout, LayoutError};
use metainfo::{Metainfo, PieceIndex};
use report::Stage;
use swarm::{Options, Swarm, SwarmError};

use crate::proof::{Proof, prove};
use crate::store::DiskStore;
use crate::swap::{check_swap, make_swap};

/// How often the caller hears of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Where a restore is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// [`Stage::Restore`], [`Stage::Verify`] or [`Stage::Finish`].
    pub stage: Stage,
    /// Bytes of content done in this stage.
    pub bytes_done: u64,
    /// Bytes of content in all.
    pub bytes_total: u64,
    /// Rate over the last seconds, bytes per second.
    pub rate_bytes_per_s: u64,
    /// Payload bytes taken from the swarm.
    pub downloaded: u64,
    /// Payload bytes given to the swarm.
    pub uploaded: u64,
    /// Connected peers.
    pub peers: u32,
}

/// Why a restore ended without success. The disk is then left unable to boot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The image does not fit the disk; nothing was written.
    #[error("{path} does not fit, nothing was written")]
    DoesNotFit {
        /// The device.
        path: PathBuf,
        /// In which way.
        source: LayoutError,
    },
    /// Reading or writing the disk failed.
    #[error("{doing} {path}")]
    Disk {
        /// What we were at.
        doing: &'static str,
        /// The device.
        path: PathBuf,
        /// The device's error with its offset.
        source: io::Error,
    },
    /// The swarm ended: a write failed, or it could not start.
    #[error("restoring to {path}")]
    Swarm {
        /// The device.
        path: PathBuf,
        /// Why.
        source: SwarmError,
    },
    /// What was read back is not what was written.
    #[error(
        "{path} does not hold what was written to it: piece {piece}, from disk offset {disk_offset}, reads back wrong; \
         the disk is failing or lies about its writes, replace it"
    )]
    ReadBack {
        /// The device.
        path: PathBuf,
        /// The piece.
        piece: PieceIndex,
        /// Where the piece starts on the disk, in bytes.
        disk_offset: u64,
    },
    /// The proof's thread ended without a result.
    #[error("the read-back of {path} was cut short")]
    Interrupted {
        /// The device.
        path: PathBuf,
    },
}

/// A proven disk, still seeding.
pub struct Restored {
    /// The running swarm; shut it down to stop seeding.
    pub swarm: Swarm,
    /// What the kernel said when it was asked to read the new partition table, if it refused.
    pub table_warning: Option<io::Error>,
}

/// Restores the image to `device` from the swarm and proves it.
///
/// `options.have` is set here. `each` hears of progress twice a second. With `verify` false the content is not read
/// back: only the table sectors are.
///
/// # Errors
/// [`RestoreError`]; except for [`RestoreError::DoesNotFit`] the disk is then unbootable.
pub async fn restore(
    meta: Arc<Metainfo>,
    layout: Arc<Layout>,
    device: Arc<Device>,
    options: Options,
    verify: bool,
    mut each: impl FnMut(Progress),
) -> Result<Restored, RestoreError> {
    let path = device.path().to_owned();
    layout
        .check_device(device.len(), device.sector_size())
        .map_err(|source| RestoreError::DoesNotFit { path: path.clone(), source })?;
    let disk_error = |doing| {
        let path = path.clone();
        move |source| RestoreError::Disk { doing, path, source }
    };
    let store = Arc::new(DiskStore::restoring(meta.geometry, Arc::clone(&layout), Arc::clone(&device)));

    for swap in meta.facts.iter().flat_map(|facts| &facts.swap) {
        check_swap(swap, &layout, device.len()).map_err(disk_error("reading the image's recipe of a swap area for"))?;
    }
    make_unbootable(&layout, &device).map_err(disk_error("taking away the old partition table of"))?;
    let storage: Arc<dyn swarm::Storage> = Arc::clone(&store) as _;
    let swarm_error = |source| RestoreError::Swarm { path: path.clone(), source };
    let swarm = Swarm::start(Arc::clone(&meta), storage, options).await.map_err(swarm_error)?;
    let mut meter = Meter::new(meta.geometry.content_len());
    {
        let completed = swarm.completed();
        tokio::pin!(completed);
        loop {
            tokio::select! {
                result = &mut completed => break result.map_err(swarm_error)?,
                () = tokio::time::sleep(PROGRESS_EVERY) => {
                    each(meter.progress(Stage::Restore, swarm.stats().bytes_have, &swarm));
                }
            }
        }
    }
    each(meter.progress(Stage::Restore, meta.geometry.content_len(), &swarm));

    blocking(path.clone(), {
        let device = Arc::clone(&device);
        move || device.flush()
    })
    .await?
    .map_err(disk_error("flushing"))?;
    if verify {
        let bytes_done = Arc::new(AtomicU64::new(0));
        let task = blocking(path.clone(), {
            let (meta, store, bytes_done) = (Arc::clone(&meta), Arc::clone(&store), Arc::clone(&bytes_done));
            move || prove(&meta, &store, &bytes_done)
        });
        tokio::pin!(task);
        meter.restart();
        let proof = loop {
            tokio::select! {
                result = &mut task => break result?.map_err(disk_error("reading back"))?,
                () = tokio::time::sleep(PROGRESS_EVERY) => {
                    each(meter.progress(Stage::Verify, bytes_done.load(Ordering::Relaxed), &swarm));
                }
            }
        };
        if let Proof::Wrong { piece, disk_offset } = proof {
            return Err(RestoreError::ReadBack { path, piece, disk_offset });
        }
        each(meter.progress(Stage::Verify, meta.geometry.content_len(), &swarm));
    }

    each(meter.progress(Stage::Finish, 0, &swarm));
    let finished = blocking(path.clone(), {
        let (meta, layout, device) = (Arc::clone(&meta), Arc::clone(&layout), Arc::clone(&device));
        move || finish(&meta, &layout, &store, &device)
    })
    .await?;
    match finished.map_err(disk_error("writing the partition table of"))? {
        None => {}
        Some(disk_offset) => {
            let piece = PieceIndex(0);
            // A disk that cannot keep its first MiB must not look as if it could.
            let _ = make_unbootable(&layout, &device);
            return Err(RestoreError::ReadBack { path, piece, disk_offset });
        }
    }
    let table_warning = blocking(path.clone(), move || device.reread_partition_table()).await?.err();
    Ok(Restored { swarm, table_warning })
}

/// Zeroes what firmware looks for, at both ends of the device, so that a half-written disk does not boot.
fn make_unbootable(layout: &Layout, device: &Device) -> io::Result<()> {
    const END_LEN: u64 = 1 << 20;
    let mut ranges = layout.deferred();
    if layout.is_whole_disk() {
        ranges.push(device.len().saturating_sub(END_LEN)..device.len());
    }
    for range in ranges {
        let end = range.end.min(device.len());
        if range.start >= end {
            continue;
        }
        let zeros = vec![0; usize::try_from(end - range.start).expect("a MiB")];
        device.write_all_at(&zeros, DiskOffset(range.start))?;
    }
    device.flush()
}

/// Swap areas, table sectors, flush, and the table sectors read back. `Some` is the disk offset of what reads back wrong.
fn finish(meta: &Metainfo, layout: &Layout, store: &DiskStore, device: &Device) -> io::Result<Option<u64>> {
    for swap in meta.facts.iter().flat_map(|facts| &facts.swap) {
        make_swap(device, swap)?;
    }
    device.flush()?;
    store.write_deferred()?;
    device.flush()?;
    let mut uncached = device.uncached()?;
    for held in layout.deferred().iter().flat_map(|range| store.held_in(range)) {
        let mut wanted = vec![0; usize::try_from(held.len).expect("a MiB")];
        store.recall(held, &mut wanted);
        let mut found = Vec::with_capacity(wanted.len());
        uncached.read(held.disk, held.len, |bytes| found.extend_from_slice(bytes))?;
        if found != wanted {
            return Ok(Some(held.disk.0));
        }
    }
    Ok(None)
}

async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RestoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RestoreError::Interrupted { path })
}

/// Turns counters into rates: over a window of a few seconds, so that the number on the screen can be read.
struct Meter {
    total: u64,
    samples: std::collections::VecDeque<(Instant, u64)>,
}

impl Meter {
    const WINDOW: Duration = Duration::from_secs(5);

    fn new(total: u64) -> Meter {
        Meter { total, samples: [(Instant::now(), 0)].into() }
    }

    fn restart(&mut self) {
        self.samples = [(Instant::now(), 0)].into();
    }

    fn progress(&mut self, stage: Stage, bytes_done: u64, swarm: &Swarm) -> Progress {
        let now = Instant::now();
        self.samples.push_back((now, bytes_done));
        while self.samples.len() > 2 && now.duration_since(self.samples[1].0) > Meter::WINDOW {
            self.samples.pop_front();
        }
        let (since, before) = self.samples[0];
        let millis = u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX).max(1);
        let stats = swarm.stats();
        Progress {
            stage,
            bytes_done,
            bytes_total: self.total,
            rate_bytes_per_s: bytes_done.saturating_sub(before).saturating_mul(1000) / millis,
            downloaded: stats.downloaded,
            uploaded: stats.uploaded,
            peers: u32::try_from(stats.peers).unwrap_or(u32::MAX),
        }
    }
}

//! The steps in their order.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockdev::Device;
use layout::parttable::adapt::{Grown, Wish};
use layout::{Layout, LayoutError};
use metainfo::{Metainfo, PieceIndex};
use report::Stage;
use swarm::{Have, Options, Swarm, SwarmError};
use tokio::sync::mpsc;

use crate::discard::discard_unused;
use crate::finish::{Finished, finish, load_deferred};
use crate::look::{Sample, look, sample};
use crate::proof::{Proof, Unproven};
use crate::store::{DiskStore, WrongPiece};
use crate::swap::check_swap;

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
    /// Bytes of content written to the disk.
    pub written: u64,
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
    /// The image's recipe for a swap area makes no sense on this disk; nothing was written.
    #[error("the image's recipe of a swap area does not fit {path}, nothing was written: capture the image again")]
    SwapRecipe {
        /// The device.
        path: PathBuf,
        /// In which way.
        source: io::Error,
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

/// How a restore is to go.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Read everything back from the medium and hash it again.
    pub verify: bool,
    /// Look at what the disk holds already, and fetch only the rest.
    pub keep: bool,
    /// Tell a flash disk which space the image does not use.
    pub discard: bool,
    /// What is to be different in the partition table.
    pub table: Wish,
}

impl Default for Wishes {
    fn default() -> Wishes {
        Wishes { verify: true, keep: true, discard: true, table: Wish::default() }
    }
}

/// A proven disk, still seeding.
pub struct Restored {
    /// The running swarm; shut it down to stop seeding.
    pub swarm: Swarm,
    /// Bytes of content that were on the disk already.
    pub kept: u64,
    /// Bytes of content that were written.
    pub written: u64,
    /// The partition that uses the space of a larger disk; the file system in it has still to be grown.
    pub grown: Option<Grown>,
    /// What could not be done, in words; the disk is as the image has it all the same.
    pub warnings: Vec<String>,
}

/// Restores the image to `device` from the swarm and proves it.
///
/// `options.have` is set here. `each` hears of progress twice a second. Nothing is written if the disk holds the whole
/// image already.
///
/// # Errors
/// [`RestoreError`]; except for [`RestoreError::DoesNotFit`] and [`RestoreError::SwapRecipe`], the disk is unbootable if
/// anything was written to it.
pub async fn restore(
    meta: Arc<Metainfo>,
    layout: Arc<Layout>,
    device: Arc<Device>,
    options: Options,
    wishes: Wishes,
    mut each: impl FnMut(Progress),
) -> Result<Restored, RestoreError> {
    let path = device.path().to_owned();
    check(&meta, &layout, &device)?;
    let disk_error = |doing| {
        let path = path.clone();
        move |source| RestoreError::Disk { doing, path, source }
    };
    let unproven = |trouble| match trouble {
        Unproven::Flush(source) | Unproven::Read(source) => disk_error("proving what was written to")(source),
        Unproven::Wrong(WrongPiece { piece, disk_offset }) => {
            RestoreError::ReadBack { path: path.clone(), piece, disk_offset }
        }
    };

    let store = Arc::new(DiskStore::restoring(meta.geometry, Arc::clone(&layout), Arc::clone(&device)));
    let proof = Arc::new(Proof::new(Arc::clone(&meta), Arc::clone(&store), wishes.verify));
    let storage: Arc<dyn swarm::Storage> = Arc::clone(&store) as _;
    let swarm_error = |source| RestoreError::Swarm { path: path.clone(), source };
    let have = if wishes.keep { Have::Unknown } else { Have::None };
    let options = Options { have, ..options };
    let swarm = Swarm::start(Arc::clone(&meta), storage, options).await.map_err(swarm_error)?;
    let background = Background { store: Arc::clone(&store), is_over: Arc::default() };

    let (seen, mut news) = mpsc::unbounded_channel();
    let looking = async {
        if !wishes.keep {
            return Ok(0);
        }
        let (meta, layout, store) = (Arc::clone(&meta), Arc::clone(&layout), Arc::clone(&store));
        let is_over = Arc::clone(&background.is_over);
        let look = move || {
            load_deferred(&layout, &store);
            look(&meta, &store, &is_over, &|right: &[PieceIndex], wrong: &[PieceIndex]| {
                // Whoever listened has ended with an error: then nobody needs to know.
                let _ = seen.send((right.to_vec(), wrong.to_vec()));
            })
        };
        blocking(path.clone(), look).await?.map_err(disk_error("looking at what is there already on"))
    };
    let following = blocking(path.clone(), {
        let proof = Arc::clone(&proof);
        move || proof.follow()
    });
    tokio::pin!(looking, following);

    let mut meter = Meter::new(meta.geometry.content_len());
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let (mut kept, mut is_looking) = (0, true);
    let mut discarding = None;
    {
        let completed = swarm.completed();
        tokio::pin!(completed);
        loop {
            tokio::select! {
                result = &mut completed => break result.map_err(swarm_error)?,
                Some((right, wrong)) = news.recv() => {
                    right.iter().for_each(|&piece| proof.found(piece));
                    swarm.found(&right);
                    swarm.lacks(&wrong);
                }
                result = &mut looking, if is_looking => {
                    kept = result?;
                    is_looking = false;
                }
                result = &mut following => {
                    result?.map_err(unproven)?;
                    return Err(RestoreError::Interrupted { path: path.clone() });
                }
                _ = ticks.tick() => {
                    each(meter.progress(Stage::Restore, swarm.stats().bytes_have, &swarm, &store));
                    if wishes.discard && discarding.is_none() && layout.is_whole_disk() && store.is_unbootable() {
                        let (layout, store) = (Arc::clone(&layout), Arc::clone(&store));
                        let is_over = Arc::clone(&background.is_over);
                        discarding = Some(blocking(path.clone(), move || discard_unused(&layout, &store, &is_over)));
                    }
                }
            }
        }
    }
    if is_looking {
        kept = looking.await?;
    }
    each(meter.progress(Stage::Restore, meta.geometry.content_len(), &swarm, &store));

    store.ledger().complete();
    meter.restart(proof.bytes_proven());
    loop {
        tokio::select! {
            result = &mut following => break result?.map_err(unproven)?,
            _ = ticks.tick() => if wishes.verify {
                each(meter.progress(Stage::Verify, proof.bytes_proven(), &swarm, &store));
            }
        }
    }
    if wishes.verify {
        each(meter.progress(Stage::Verify, meta.geometry.content_len(), &swarm, &store));
    }
    if let Some(discarding) = discarding {
        discarding.await?;
    }

    each(meter.progress(Stage::Finish, 0, &swarm, &store));
    let finished = blocking(path.clone(), {
        let (meta, layout, store) = (Arc::clone(&meta), Arc::clone(&layout), Arc::clone(&store));
        move || {
            let result = finish(&meta, &layout, &store, &wishes.table);
            if !matches!(result, Ok(Finished { wrong_at: None, .. })) {
                // A disk that cannot keep its table must not look as if it could.
                let _ = store.wipe();
            }
            result
        }
    })
    .await?;
    let Finished { wrong_at, grown, mut warnings } = finished.map_err(disk_error("writing the partition table of"))?;
    if let Some(disk_offset) = wrong_at {
        return Err(RestoreError::ReadBack { path: path.clone(), piece: PieceIndex(0), disk_offset });
    }
    let written = store.ledger().bytes_written();
    if let Err(cause) = blocking(path.clone(), move || device.reread_partition_table()).await? {
        warnings.push(format!("the kernel does not read the new partition table yet: {cause}"));
    }
    Ok(Restored { swarm, kept, written, grown, warnings })
}

/// Checks what [`restore`] checks before the first write, and looks at a sample of what is on the disk. Writes nothing. Blocks.
///
/// # Errors
/// [`RestoreError::DoesNotFit`] and [`RestoreError::Disk`].
pub fn survey(meta: &Metainfo, layout: &Arc<Layout>, device: &Arc<Device>) -> Result<Sample, RestoreError> {
    check(meta, layout, device)?;
    let store = DiskStore::restoring(meta.geometry, Arc::clone(layout), Arc::clone(device));
    load_deferred(layout, &store);
    let doing = "looking at what is there already on";
    sample(meta, &store).map_err(|source| RestoreError::Disk { doing, path: device.path().to_owned(), source })
}

/// Everything that can be checked before the first write.
fn check(meta: &Metainfo, layout: &Layout, device: &Device) -> Result<(), RestoreError> {
    let path = device.path().to_owned();
    layout
        .check_device(device.len(), device.sector_size())
        .map_err(|source| RestoreError::DoesNotFit { path: path.clone(), source })?;
    let recipe_error = |source| RestoreError::SwapRecipe { path: path.clone(), source };
    let mut recipes = meta.facts.iter().flat_map(|facts| &facts.swap);
    recipes.try_for_each(|swap| check_swap(swap, layout, device.len()).map_err(recipe_error))
}

/// What runs on threads of its own ends when this is dropped, whichever way the restore ended.
struct Background {
    store: Arc<DiskStore>,
    is_over: Arc<AtomicBool>,
}

impl Drop for Background {
    fn drop(&mut self) {
        self.store.ledger().cancel();
        self.is_over.store(true, Ordering::Relaxed);
    }
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

    fn restart(&mut self, bytes_done: u64) {
        self.samples = [(Instant::now(), bytes_done)].into();
    }

    fn progress(&mut self, stage: Stage, bytes_done: u64, swarm: &Swarm, store: &DiskStore) -> Progress {
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
            written: store.ledger().bytes_written(),
            peers: u32::try_from(stats.peers).unwrap_or(u32::MAX),
        }
    }
}

//! The steps in their order.

use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockdev::Device;
use layout::parttable::TableKind;
use layout::parttable::adapt::{Grown, Wish};
use layout::parttable::stamp::Stamp;
use layout::{DiskOffset, DiskRange, Layout, LayoutError};
use metainfo::{Metainfo, PieceIndex};
use report::{Progress, Stage};
use swarm::{Have, Options, Swarm, SwarmError};
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::Interval;

use crate::discard::discard_unused;
use crate::finish::{Finished, finish, load_deferred};
use crate::look::{Sample, look, sample};
use crate::permission::Permission;
use crate::proof::{Proof, Unproven};
use crate::read_back::WrongPiece;
use crate::stall::Stall;
use crate::stamp::DueStamp;
use crate::store::DiskStore;
use crate::swap::check_swap;
use crate::zeros::{first_unkept, make_zeros};

const LOOKING: &str = "looking at what is there already on";
const PROVING: &str = "proving what was written to";
/// Lists of pieces that were looked at and that the swarm has not taken over yet.
const SEEN_MAX: usize = 64;

/// How often the caller hears of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Where a restore is.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// [`Stage::Restore`], [`Stage::Verify`] or [`Stage::Finish`].
    pub stage: Stage,
    /// How far it is.
    pub progress: Progress,
    /// Pieces that came with a wrong hash.
    pub bad_pieces: u64,
    /// Why no data is arriving, once none has arrived for a while. The restore keeps trying.
    pub trouble: Option<String>,
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
    /// [`RestoreOptions::permission`] was refused; nothing was written.
    #[error("nothing was written to {path}: {said}")]
    Refused {
        /// The device.
        path: PathBuf,
        /// The words of who refused.
        said: String,
    },
    /// Reading or writing the disk failed.
    #[error("{doing} {path}{advice}")]
    Disk {
        /// What we were at.
        doing: &'static str,
        /// The device.
        path: PathBuf,
        /// What to do about it, as the end of a sentence; may be empty.
        advice: &'static str,
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
        "{path} does not hold what was written to it: {what}, from disk offset {disk_offset}, reads back wrong; \
         the disk is failing or lies about its writes, replace it"
    )]
    ReadBack {
        /// The device.
        path: PathBuf,
        /// What is not there.
        what: Lost,
        /// Where it starts on the disk.
        disk_offset: DiskOffset,
    },
    /// Its table could not be written, and what is there of it could not be taken off again.
    #[error(
        "what was written of the table could not be taken off {path} again ({wipe}): the disk may look as if it could boot, \
         so replace it"
    )]
    NotWiped {
        /// The device.
        path: PathBuf,
        /// Why the table is still there.
        wipe: io::Error,
        /// Why the table is not right.
        #[source]
        why: Box<RestoreError>,
    },
    /// The proof's thread ended without a result.
    #[error("the read-back of {path} was cut short")]
    Interrupted {
        /// The device.
        path: PathBuf,
    },
}

impl RestoreError {
    fn disk(doing: &'static str, path: &Path, source: io::Error) -> RestoreError {
        RestoreError::Disk { doing, path: path.to_owned(), advice: advice(path, &source), source }
    }
}

/// What to do about a disk that cannot be read or written.
fn advice(path: &Path, cause: &io::Error) -> &'static str {
    // Files, and devices that are files somewhere, fail for reasons of their own, which their errors name.
    let is_block = path.metadata().is_ok_and(|found| found.file_type().is_block_device());
    if is_block && cause.kind() != io::ErrorKind::StorageFull {
        " (the disk is failing or badly connected: check its cable, or replace it)"
    } else {
        ""
    }
}

/// What a disk did not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A piece of the image.
    Piece(PieceIndex),
    /// Zeros that the image has without content.
    Zeros,
    /// Boot code, partition table, or a swap area.
    Table,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::Piece(piece) => write!(f, "piece {piece}"),
            Lost::Zeros => f.write_str("a stretch of zeros"),
            Lost::Table => f.write_str("a partition table or swap area"),
        }
    }
}

/// How a restore is to go.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Read everything back from the medium and hash it again.
    pub verify: bool,
    /// Look at what the disk holds already, and fetch only the rest.
    pub keep: bool,
    /// Tell a flash disk which space the image does not use.
    pub discard: bool,
    /// What is to be different in the partition table.
    pub table: Wish,
    /// What is written to a free sector when everything has been read back and proven; for whole disks only.
    pub stamp: Option<Stamp>,
    /// What is asked before the first write.
    pub permission: Option<Permission>,
}

impl Default for RestoreOptions {
    fn default() -> RestoreOptions {
        RestoreOptions {
            verify: true,
            keep: true,
            discard: true,
            table: Wish::default(),
            stamp: None,
            permission: None,
        }
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
    /// The stamp, if a partition grew: it is due when the file system in it has grown.
    pub due_stamp: Option<DueStamp>,
}

/// Restores the image to `device` from the swarm and proves it.
///
/// `options.have` is set here. `each` hears of progress twice a second. Nothing is written if the disk holds the whole
/// image already.
///
/// # Errors
/// [`RestoreError`]; except for [`RestoreError::DoesNotFit`], [`RestoreError::SwapRecipe`] and [`RestoreError::Refused`], the
/// disk is unbootable if anything was written to it.
pub async fn restore(
    meta: Arc<Metainfo>,
    layout: Arc<Layout>,
    device: Arc<Device>,
    options: Options,
    wishes: RestoreOptions,
    mut each: impl FnMut(Update),
) -> Result<Restored, RestoreError> {
    check(&meta, &layout, &device)?;
    let run = Run::start(meta, layout, device, options, wishes).await?;
    let store = Arc::clone(&run.store);
    run.complete(&mut each).await.map_err(|error| match store.refusal() {
        Some(said) => RestoreError::Refused { path: store.device().path().to_owned(), said: said.to_owned() },
        None => error,
    })
}

/// A restore on its way: the swarm fetches, the proof follows, both on the same store.
struct Run {
    meta: Arc<Metainfo>,
    layout: Arc<Layout>,
    device: Arc<Device>,
    wishes: RestoreOptions,
    store: Arc<DiskStore>,
    swarm: Swarm,
    proof: Arc<Proof>,
    following: JoinHandle<Result<(), Unproven>>,
    zeroing: JoinHandle<io::Result<Vec<DiskRange>>>,
    /// What has been zeroed and not been read back yet.
    zeroed: Vec<DiskRange>,
    discarding: Option<JoinHandle<u64>>,
    background: Background,
    meter: Meter,
    ticks: Interval,
}

impl Run {
    async fn start(
        meta: Arc<Metainfo>,
        layout: Arc<Layout>,
        device: Arc<Device>,
        options: Options,
        wishes: RestoreOptions,
    ) -> Result<Run, RestoreError> {
        let permission = wishes.permission.clone();
        let store = Arc::new(DiskStore::restoring(meta.geometry, Arc::clone(&layout), Arc::clone(&device), permission));
        let have = if wishes.keep { Have::Unknown } else { Have::None };
        let storage: Arc<dyn swarm::Storage> = Arc::clone(&store) as _;
        let swarm = Swarm::start(Arc::clone(&meta), storage, Options { have, ..options }).await;
        let swarm = swarm.map_err(|source| RestoreError::Swarm { path: device.path().to_owned(), source })?;
        let proof = Arc::new(Proof::new(Arc::clone(&meta), Arc::clone(&store), wishes.verify));
        let following = spawn_blocking({
            let proof = Arc::clone(&proof);
            move || proof.follow()
        });
        let background = Background { store: Arc::clone(&store), is_over: Arc::default() };
        let zeroing = spawn_blocking({
            let (layout, store) = (Arc::clone(&layout), Arc::clone(&store));
            let is_over = Arc::clone(&background.is_over);
            move || make_zeros(&layout, &store, &is_over)
        });
        Ok(Run {
            background,
            zeroing,
            zeroed: Vec::new(),
            meter: Meter::new(meta.geometry.content_len()),
            ticks: tokio::time::interval(PROGRESS_EVERY),
            discarding: None,
            meta,
            layout,
            device,
            wishes,
            store,
            swarm,
            proof,
            following,
        })
    }

    async fn complete(mut self, each: &mut impl FnMut(Update)) -> Result<Restored, RestoreError> {
        let kept = self.fetch(each).await?;
        self.prove(each).await?;
        let Finished { grown, warnings, due_stamp, .. } = self.finish(each).await?;
        let written = self.store.ledger().bytes_written();
        Ok(Restored { swarm: self.swarm, kept, written, grown, warnings, due_stamp })
    }

    /// Until every piece is on the disk, and zeros where they belong; gives the bytes of content that were there already.
    async fn fetch(&mut self, each: &mut impl FnMut(Update)) -> Result<u64, RestoreError> {
        let path = self.device.path().to_owned();
        let (mut looking, mut news) = self.look();
        let mut kept = None;
        let (mut is_complete, mut is_zeroed) = (false, false);
        let mut stall = Stall::new(Instant::now());
        let completed = self.swarm.completed();
        tokio::pin!(completed);
        while !(is_complete && is_zeroed) {
            tokio::select! {
                result = &mut completed, if !is_complete => {
                    result.map_err(|source| RestoreError::Swarm { path: path.clone(), source })?;
                    is_complete = true;
                }
                result = &mut self.zeroing, if !is_zeroed => {
                    self.zeroed = done(result, "writing zeros to", &path)?;
                    is_zeroed = true;
                }
                Some((right, wrong)) = news.recv() => {
                    right.iter().for_each(|&piece| self.proof.found(piece));
                    self.swarm.found(&right);
                    self.swarm.lacks(&wrong);
                }
                result = &mut looking, if kept.is_none() => kept = Some(done(result, LOOKING, &path)?),
                result = &mut self.following => return Err(unproven(result, &path)),
                _ = self.ticks.tick() => {
                    let stats = self.swarm.stats();
                    let is_disk_busy = kept.is_none() || self.store.ledger().is_writing();
                    let trouble = stall.look(&stats, is_disk_busy, Instant::now()).filter(|_| !is_complete);
                    let update = self.meter.update(Stage::Restore, stats.bytes_have, &self.swarm, &self.store);
                    each(Update { trouble, ..update });
                    let is_time = self.wishes.discard && self.discarding.is_none() && self.store.is_unbootable();
                    if is_time && self.layout.table() != TableKind::None {
                        let (layout, store) = (Arc::clone(&self.layout), Arc::clone(&self.store));
                        let is_over = Arc::clone(&self.background.is_over);
                        self.discarding = Some(spawn_blocking(move || discard_unused(&layout, &store, &is_over)));
                    }
                }
            }
        }
        each(self.meter.update(Stage::Restore, self.meta.geometry.content_len(), &self.swarm, &self.store));
        match kept {
            Some(kept) => Ok(kept),
            None => done(looking.await, LOOKING, &path),
        }
    }

    /// Looks at what is there, on threads of its own; what is right and what is not comes through the channel.
    fn look(&self) -> (JoinHandle<io::Result<u64>>, Receiver<Seen>) {
        let (seen, news) = mpsc::channel(SEEN_MAX);
        let (meta, layout, store) = (Arc::clone(&self.meta), Arc::clone(&self.layout), Arc::clone(&self.store));
        let is_over = Arc::clone(&self.background.is_over);
        let keep = self.wishes.keep;
        let looking = spawn_blocking(move || {
            if !keep {
                return Ok(0);
            }
            load_deferred(&layout, &store);
            look(&meta, &store, &is_over, &|right: &[PieceIndex], wrong: &[PieceIndex]| {
                // Whoever listened has ended with an error: then nobody needs to know.
                let _ = seen.blocking_send((right.to_vec(), wrong.to_vec()));
            })
        });
        (looking, news)
    }

    /// Until everything that was written has been read back.
    async fn prove(&mut self, each: &mut impl FnMut(Update)) -> Result<(), RestoreError> {
        self.store.ledger().complete();
        self.meter.restart(self.proof.bytes_proven());
        let path = self.device.path().to_owned();
        let (mut is_proven, mut are_zeros_kept) = (false, !self.wishes.verify);
        let mut reading_zeros = spawn_blocking({
            let (store, is_over) = (Arc::clone(&self.store), Arc::clone(&self.background.is_over));
            let zeroed = if self.wishes.verify { std::mem::take(&mut self.zeroed) } else { Vec::new() };
            move || first_unkept(&store, &zeroed, &is_over)
        });
        while !(is_proven && are_zeros_kept) {
            tokio::select! {
                result = &mut self.following, if !is_proven => match result {
                    Ok(Ok(())) => is_proven = true,
                    bad => return Err(unproven(bad, &path)),
                },
                result = &mut reading_zeros, if !are_zeros_kept => match done(result, PROVING, &path)? {
                    None => are_zeros_kept = true,
                    Some(disk_offset) => return Err(RestoreError::ReadBack { path, what: Lost::Zeros, disk_offset }),
                },
                _ = self.ticks.tick() => if self.wishes.verify {
                    each(self.meter.update(Stage::Verify, self.proof.bytes_proven(), &self.swarm, &self.store));
                }
            }
        }
        if self.wishes.verify {
            each(self.meter.update(Stage::Verify, self.meta.geometry.content_len(), &self.swarm, &self.store));
        }
        Ok(())
    }

    /// Makes the disk bootable.
    async fn finish(&mut self, each: &mut impl FnMut(Update)) -> Result<Finished, RestoreError> {
        let path = self.device.path().to_owned();
        let interrupted = |_| RestoreError::Interrupted { path: path.clone() };
        if let Some(discarding) = self.discarding.take() {
            discarding.await.map_err(interrupted)?;
        }
        each(self.meter.update(Stage::Finish, 0, &self.swarm, &self.store));
        let (meta, layout, store) = (Arc::clone(&self.meta), Arc::clone(&self.layout), Arc::clone(&self.store));
        let (device, wish) = (Arc::clone(&self.device), self.wishes.table.clone());
        // What was not read back is not proven.
        let stamp = self.wishes.stamp.clone().filter(|_| self.wishes.verify);
        let is_unproven = self.wishes.stamp.is_some() && stamp.is_none();
        let finish = move || {
            let mut result = finish(&meta, &layout, &store, &wish, stamp.as_ref());
            if let Ok(finished) = &mut result
                && is_unproven
            {
                finished.warnings.push("no stamp is on the disk: it was not read back".to_owned());
            }
            match &mut result {
                Ok(finished) if finished.wrong_at.is_none() => {
                    if let Err(cause) = device.reread_partition_table() {
                        let warning = format!("the kernel does not read the new partition table yet: {cause}");
                        finished.warnings.push(warning);
                    }
                }
                // A disk that cannot keep its table must not look as if it could.
                _ if store.is_unbootable() => return (result, store.wipe()),
                _ => {}
            }
            (result, Ok(()))
        };
        let (finished, wiped) = spawn_blocking(finish).await.map_err(interrupted)?;
        let doing = "writing the partition table of";
        let why = match finished {
            Err(source) => RestoreError::disk(doing, &path, source),
            Ok(finished) => match finished.wrong_at {
                None => return Ok(finished),
                Some(disk_offset) => RestoreError::ReadBack { path: path.clone(), what: Lost::Table, disk_offset },
            },
        };
        Err(match wiped {
            Ok(()) => why,
            Err(wipe) => RestoreError::NotWiped { path, wipe, why: Box::new(why) },
        })
    }
}

/// Pieces that were looked at: those that are right, those that are not.
type Seen = (Vec<PieceIndex>, Vec<PieceIndex>);

/// What a thread of its own has come to.
fn done<T>(result: Result<io::Result<T>, JoinError>, doing: &'static str, path: &Path) -> Result<T, RestoreError> {
    let result = result.map_err(|_| RestoreError::Interrupted { path: path.to_owned() })?;
    result.map_err(|source| RestoreError::disk(doing, path, source))
}

/// Why the proof ended although it should not have.
fn unproven(result: Result<Result<(), Unproven>, JoinError>, path: &Path) -> RestoreError {
    let path = path.to_owned();
    match result {
        Ok(Err(Unproven::Flush(source) | Unproven::Read(source))) => RestoreError::disk(PROVING, &path, source),
        Ok(Err(Unproven::Wrong(WrongPiece { piece, disk_offset }))) => {
            RestoreError::ReadBack { path, what: Lost::Piece(piece), disk_offset }
        }
        Ok(Ok(())) | Err(_) => RestoreError::Interrupted { path },
    }
}

/// Checks what [`restore`] checks before the first write, and looks at a sample of what is on the disk. Writes nothing. Blocks.
///
/// # Errors
/// [`RestoreError::DoesNotFit`] and [`RestoreError::Disk`].
pub fn survey(meta: &Metainfo, layout: &Arc<Layout>, device: &Arc<Device>) -> Result<Sample, RestoreError> {
    check(meta, layout, device)?;
    let store = DiskStore::restoring(meta.geometry, Arc::clone(layout), Arc::clone(device), None);
    load_deferred(layout, &store);
    let doing = "looking at what is there already on";
    sample(meta, &store).map_err(|source| RestoreError::disk(doing, device.path(), source))
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

    fn update(&mut self, stage: Stage, bytes_done: u64, swarm: &Swarm, store: &DiskStore) -> Update {
        let now = Instant::now();
        self.samples.push_back((now, bytes_done));
        while self.samples.len() > 2 && now.duration_since(self.samples[1].0) > Meter::WINDOW {
            self.samples.pop_front();
        }
        let (since, before) = self.samples[0];
        let millis = u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX).max(1);
        let stats = swarm.stats();
        let progress = Progress {
            bytes_done,
            bytes_total: self.total,
            rate_bytes_per_s: bytes_done.saturating_sub(before).saturating_mul(1000) / millis,
            downloaded: stats.downloaded,
            uploaded: stats.uploaded,
            written: store.ledger().bytes_written(),
            peers: u32::try_from(stats.peers).unwrap_or(u32::MAX),
        };
        Update { stage, progress, bad_pieces: stats.bad_pieces, trouble: None }
    }
}

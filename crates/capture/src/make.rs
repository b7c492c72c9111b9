//! From a plan to a listed image: the used bytes are read once, hashed and written, and samples are read again.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use layout::parttable::TableKind;
use layout::{DiskOffset, DiskRange};
use metainfo::{Geometry, ImageFacts, PieceHash, Zeros, usual_piece_len};

use crate::choices::Choices;
use crate::pipeline::{Job, default_threads};
use crate::plan::Plan;
use crate::rescue::RESCUE_HINT;
use crate::source::Source;
use crate::steady::{Sample, Steady};
use crate::stored::{Compression, NewContent};
use crate::torrent::{check_torrent_len, torrent};
use crate::{holders, rescue, zeros};
use library::describe::partition_line;
use library::live;
use library::manifest::{AccountInfo, Manifest, Origin, SCHEMA, Unreadable};
use library::space::check_room;
use library::{Draft, Image};
use terminal::Progress;

/// Bytes that are read again of every place of a sampled piece.
const NOTE_LEN: usize = 64 << 10;

/// How to make an image of a source.
#[derive(Debug)]
pub struct CaptureOptions {
    /// Which parts are taken.
    pub choices: Choices,
    /// Leave out stretches of zeros, to be recreated on restore.
    pub skip_zeros: bool,
    /// Copy nothing, and seed from the source.
    pub live: bool,
    /// Length of a piece in bytes; if `None`, the size of the image decides.
    pub piece_len: Option<u32>,
    /// How the content is stored; nothing is, if it is live.
    pub compression: Compression,
    /// Pieces in work at a time; if `None`, two more than there are cores.
    pub threads: Option<usize>,
    /// The origin of the image, for the manifest.
    pub origin: Origin,
}

/// Examines the source, copies the used bytes, and lists the image; also returns the rate, in bytes per second.
///
/// # Errors
/// A message for the person at the terminal. Nothing is left behind then.
pub fn make_image(
    source: &Source,
    draft: Draft,
    options: CaptureOptions,
    stop: &AtomicBool,
) -> anyhow::Result<(Image, f64)> {
    let choices = options.choices;
    let watch = Watch::begin(source, choices)?;
    let mut plan = Plan::make(source, &draft.scratch()?, choices, stop)?;
    ensure!(!stop.load(Ordering::Relaxed), "interrupted");
    for warning in &plan.warnings {
        log::warn!("{}: {warning}", source.path.display());
    }
    for partition in &plan.partitions {
        say!("{}", partition_line(partition));
    }
    plan.notes.iter().for_each(|note| say!("  {note}"));
    let zeros = if options.skip_zeros {
        let deferred = plan.deferred(source.len);
        zeros::find(source, &plan.layout, &deferred, choices.rescue, stop)?
    } else {
        Zeros::default()
    };
    plan.leave_out(&zeros)?;
    let account = AccountInfo::from(&plan.account);
    say!("  {account}");
    let content_len = plan.layout.content_len();
    ensure!(content_len > 0, "there is nothing in it to copy; if every byte of it is wanted, say --whole");
    check_room(draft.library_dir(), if options.live { 0 } else { content_len })?;
    let piece_len = options.piece_len.unwrap_or_else(|| usual_piece_len(content_len));
    let geometry = Geometry::new(content_len, piece_len)
        .with_context(|| format!("{content_len} bytes cannot be cut into pieces of {piece_len}: choose longer ones"))?;

    check_torrent_len(plan.layout.extents().len(), geometry.piece_count())?;
    // Everything that can be refused is refused before hours of copying.
    let live = options.live.then(|| live::describe(&source.path)).transpose()?;
    let watch = watch.note_landmarks(source, &plan)?;

    let content = match options.live {
        true => None,
        false => Some(NewContent::create(&draft, geometry, options.compression)?),
    };
    let threads = options.threads.unwrap_or_else(default_threads);
    let copy = Copy { source, plan: &plan, geometry, threads, rescue: choices.rescue, out: content.as_ref(), stop };
    let Copied { hashes, unreadable, rate } = copy.run(&watch)?;
    // Closed with that: on some file systems, an open file that is deleted is not gone.
    let compressed = content.map(NewContent::finish).transpose()?.flatten();
    watch.end(source, choices)?;

    let device = if plan.table == TableKind::None { source.device() } else { "" };
    let facts = ImageFacts {
        schema: 1,
        disk_size: source.len,
        sector_size: plan.sector_size,
        table: plan.table,
        // Not `partition`: the same file system must have the same infohash, whatever device it was copied from.
        device: if device == "disk" { device.to_owned() } else { String::new() },
        swap: Vec::new(),
        zeros,
    };
    let zeros_len = facts.zeros.len();
    let torrent_bytes = torrent(&plan.layout, piece_len, hashes, facts)?;
    let mut origin = options.origin;
    origin.tools.extend(plan.tools);
    let manifest = Manifest {
        schema: SCHEMA,
        disk_size: source.len,
        sector_size: plan.sector_size,
        table: plan.table,
        device: device.to_owned(),
        disk_id: plan.disk_id,
        partitions: plan.partitions,
        content_len,
        compressed: None,
        infohash: metainfo::Metainfo::parse(&torrent_bytes).context("reading the new torrent")?.infohash.to_string(),
        extent_count: plan.layout.extents().len() as u64,
        zeros_len,
        account: Some(account),
        unreadable,
        live,
        origin,
    };
    ensure!(!stop.load(Ordering::Relaxed), "interrupted");
    Ok((draft.publish(&torrent_bytes, &manifest.stored(compressed))?, rate))
}

/// What to copy, and how.
struct Copy<'a> {
    source: &'a Source,
    plan: &'a Plan,
    geometry: Geometry,
    threads: usize,
    rescue: bool,
    out: Option<&'a NewContent>,
    stop: &'a AtomicBool,
}

/// The result of the copy.
struct Copied {
    hashes: Vec<PieceHash>,
    unreadable: Vec<Unreadable>,
    /// Bytes per second.
    rate: f64,
}

impl Copy<'_> {
    fn run(self, watch: &Watch) -> anyhow::Result<Copied> {
        let Copy { source, plan, geometry, threads, rescue: is_rescue, out, stop } = self;
        let mut progress = Progress::new("capturing", geometry.content_len());
        let job = Job { geometry, threads, out, stop, progress: &mut progress };
        let is_sample = Sample::choose(geometry.piece_count());
        let mut unreadable = Vec::new();
        let hashes = job.hash(|range, buf| {
            let is_sample = geometry.piece_at(range.start).is_some_and(|piece| is_sample(piece.get()));
            let mut rest = buf;
            for part in plan.layout.on_disk(range)? {
                let (now, later) = rest.split_at_mut(usize::try_from(part.len)?);
                let read = source.read_at(now, part.disk);
                if is_rescue && read.is_err() {
                    let lost = rescue::read(now, part.disk, &|buf, at| source.file.read_exact_at(buf, at.0));
                    unreadable.extend(lost);
                } else {
                    read.context(RESCUE_HINT)?;
                    if is_sample {
                        watch.note(part.disk, &now[..now.len().min(NOTE_LEN)]);
                    }
                }
                rest = later;
            }
            Ok(())
        })?;
        let rate = progress.finish();
        if !unreadable.is_empty() {
            rescue::coalesce(&mut unreadable);
            let len: u64 = unreadable.iter().map(|range| range.len()).sum();
            let places = units::count(unreadable.len(), "place");
            log::warn!("{} in {places} could not be read and are zeros in the image", units::size(len));
        }
        Ok(Copied { hashes, unreadable: unreadable.into_iter().map(Unreadable::from).collect(), rate })
    }
}

/// Watches the source while it is read.
struct Watch {
    steady: Mutex<Steady>,
}

impl Watch {
    /// Refuses a source that a program can write to, and records its state.
    fn begin(source: &Source, choices: Choices) -> anyhow::Result<Watch> {
        match holders::refuse_writers(&source.path) {
            Err(error) if choices.at_own_risk => log::warn!("{error:#}"),
            result => result?,
        }
        let paths: Vec<&Path> = source.paths().collect();
        Ok(Watch { steady: Mutex::new(Steady::begin(&paths)?) })
    }

    /// Reads tables and superblocks, which must be the same at the end.
    fn note_landmarks(self, source: &Source, plan: &Plan) -> anyhow::Result<Watch> {
        let mut buf = Vec::new();
        for range in &plan.landmarks {
            buf.resize(usize::try_from(range.len())?, 0);
            // Bytes that cannot be read cannot be compared either.
            if source.read_at(&mut buf, range.start).is_ok() {
                self.note(range.start, &buf);
            }
        }
        Ok(self)
    }

    fn note(&self, at: DiskOffset, bytes: &[u8]) {
        let range = DiskRange::new(at.0..at.0 + bytes.len() as u64);
        self.steady.lock().unwrap_or_else(PoisonError::into_inner).note(range, bytes);
    }

    /// Checks the source again.
    fn end(self, source: &Source, choices: Choices) -> anyhow::Result<()> {
        let steady = self.steady.into_inner().unwrap_or_else(PoisonError::into_inner);
        let writers = holders::refuse_writers(&source.path);
        match steady.check(|buf, at| source.read_at(buf, at)).and(writers) {
            Err(error) if choices.at_own_risk => log::warn!("{error:#}"),
            result => result?,
        }
        Ok(())
    }
}

//! `ezio capture`: a disk becomes an image of the blocks in use.
//!
//! Table → partitions → used blocks → extents → content, hashed on the way. Everything is written into a draft of the
//! library, so whatever interrupts it leaves nothing that is listed.

mod decide;
mod health;
mod holders;
mod look;
mod make;
mod plan;
mod probe;
mod rescue;
mod steady;
mod table;
mod window;
mod zeros;

pub mod content;
pub mod pipeline;
pub mod progress;
pub mod source;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::BinaryBytes;
use layout::Layout;
use metainfo::{FileEntry, ImageFacts, MAX_PIECE_LEN, MIN_PIECE_LEN, NewTorrent, PieceHash, TORRENT_LEN_MAX};

pub use self::make::{Order, make_image};
pub use self::plan::Choices;
use self::probe::Probe;
use self::source::Source;
use crate::library::{DEFAULT_DIR, Image, Library, check_name};
use crate::manifest::{Captured, Origin, PartitionInfo};

/// `info.name` of every image. It is part of the infohash, and the same disk shall have the same infohash whatever
/// people call the image.
const TORRENT_NAME: &str = "root";
/// Room that stays free beside the content, in bytes: torrent, manifest, and a little peace.
const SPARE_ROOM: u64 = 64 << 20;
/// What an extent takes in a torrent at most, in bytes: its length, and its offset in 32 digits.
const EXTENT_LEN: u64 = 80;
const RESCUE_HINT: &str = "--rescue goes on without what cannot be read, and records it";

/// Makes an image of a disk: only the blocks in use, with its partition table and boot loader.
#[derive(Debug, Args)]
pub struct Capture {
    /// A disk such as /dev/sda, a single partition, or a raw disk image file; nothing on it may be mounted.
    source: PathBuf,
    /// The directory that holds the images; made if it is not there.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    library: PathBuf,
    /// What to call the image: A-Z a-z 0-9 . _ -
    #[arg(long)]
    name: String,
    /// Copy every byte of the source, used or not, whatever its partition table says.
    #[arg(long)]
    whole: bool,
    /// Take file systems that were not shut down or are hibernated, which are copied whole, and a source that a program writes to.
    #[arg(long)]
    at_own_risk: bool,
    /// Leave out what lies outside of partitions, such as what is left of deleted ones. Otherwise all of it that is not zeros is
    /// copied.
    #[arg(long, conflicts_with = "whole")]
    partitions_only: bool,
    /// Sector size of the disk in bytes. Of a disk image file it is found by looking, if this is not given.
    #[arg(long, value_name = "BYTES", value_parser = parse_sector_size)]
    sector_size: Option<u32>,
    /// Go on where the disk cannot be read: zeros are taken instead, and the places recorded.
    #[arg(long)]
    rescue: bool,
    /// Copy nothing: the image is seeded straight from SOURCE, which has to stay as it is. Only hashes are kept.
    #[arg(long, conflicts_with = "rescue")]
    live: bool,
    /// Leave blocks of zeros out of the image, and make them anew when it is restored. Only EZIO knows how.
    #[arg(long)]
    skip_zeros: bool,
    /// Length of a piece, such as 4M: a power of two from 16K to 64M. Chosen by the size of the image if not given.
    #[arg(long, value_name = "LEN", value_parser = parse_piece_len)]
    piece_len: Option<u32>,
    /// Replace the image of that name, if there is one, once the new one is complete.
    #[arg(long)]
    replace: bool,
    /// Pieces to work on at a time; two more than cores if not given. The image is the same with any number.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl Capture {
    /// Captures it.
    ///
    /// # Errors
    /// What went wrong, in words for the person at the terminal. Nothing is left behind then.
    pub fn run(self) -> anyhow::Result<()> {
        check_name(&self.name)?;
        let stop = stop_on_signals()?;
        let source = Source::open(&self.source)?;
        let library = Library::create(&self.library)?;
        let draft = library.draft(&self.name, self.replace)?;
        let origin = Origin::now("capture", &self.source);
        let choices = Choices {
            whole: self.whole,
            at_own_risk: self.at_own_risk,
            partitions_only: self.partitions_only,
            rescue: self.rescue,
            sector_size: self.sector_size,
        };
        let (piece_len, threads, skip_zeros) = (self.piece_len, self.threads, self.skip_zeros);
        let order = Order { choices, skip_zeros, live: self.live, piece_len, threads, origin };
        let (image, rate) = make_image(&source, draft, order, stop)?;
        say!("captured {}, {:.0} MB/s", summary(&image), rate / 1e6);
        Ok(())
    }
}

/// An image in one line: sizes, extents, pieces, infohash.
pub fn summary(image: &Image) -> String {
    let geometry = image.meta.geometry;
    let zeros = match image.manifest.zeros_len {
        0 => String::new(),
        len => format!(" ({} of zeros left out)", BinaryBytes(len)),
    };
    format!(
        "{}: {} in use{zeros} of {}, {} extents, {} pieces of {}, infohash {}",
        image.name,
        BinaryBytes(image.layout.content_len()),
        BinaryBytes(image.manifest.disk_size),
        image.layout.extents().len(),
        geometry.piece_count(),
        BinaryBytes(u64::from(geometry.piece_len())),
        image.meta.infohash
    )
}

/// A partition in one line: where, what, and what became of it.
pub fn partition_line(partition: &PartitionInfo) -> String {
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    let how = match partition.captured {
        Captured::UsedBlocks => format!("{} in use", BinaryBytes(partition.captured_len)),
        Captured::Whole => "copied whole".to_owned(),
        Captured::Recipe => "made anew, not copied".to_owned(),
        Captured::Missing => "left out".to_owned(),
        Captured::Container => "holds the logical partitions".to_owned(),
    };
    let mut line = format!(
        "  {:>3}  at {:>11}  {:>11}  {:<22} {:<10} {how}",
        partition.number,
        BinaryBytes(partition.start).to_string(),
        BinaryBytes(partition.length).to_string(),
        or(&partition.type_name, &or(&partition.type_id, "-")),
        or(&partition.file_system, "-"),
    );
    for (name, value) in [("label", &partition.label), ("uuid", &partition.uuid), ("", &partition.note)] {
        if !value.is_empty() {
            line += &format!(", {name}{}{value}", if name.is_empty() { "" } else { " " });
        }
    }
    line
}

/// The torrent of an image: one file an extent, private, no announce URL (clients ask the server they booted from).
///
/// # Errors
/// If what came out could not be read back.
pub fn torrent(layout: &Layout, piece_len: u32, hashes: Vec<PieceHash>, facts: ImageFacts) -> anyhow::Result<Vec<u8>> {
    let file =
        |extent: &layout::Extent| FileEntry { length: extent.len, path: vec![format!("{:032x}", extent.disk.0)] };
    let torrent = NewTorrent {
        name: TORRENT_NAME.to_owned(),
        announce: None,
        piece_len,
        files: layout.extents().iter().map(file).collect(),
        hashes,
        facts: Some(facts),
        private: true,
    };
    torrent.to_bytes().context("making the torrent")
}

/// What file system an image of a single partition holds, where its content shows it: the superblock is in the first
/// extent then, at the place where it is on the partition. Nothing if it cannot be told.
pub fn identify(content: &Path, layout: &Layout) -> Probe {
    match layout.extents().first() {
        Some(first) if first.disk.0 == 0 => probe::probe(content, &(0..first.len)).unwrap_or_default(),
        _ => Probe::default(),
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether machines could take a torrent of so many extents and pieces; of more extents as well, if it does not fit.
///
/// # Errors
/// What to do about it.
pub fn check_torrent_len(extents: usize, pieces: u32) -> anyhow::Result<()> {
    let len = (extents as u64).saturating_mul(EXTENT_LEN).saturating_add(u64::from(pieces) * 20);
    ensure!(
        len <= TORRENT_LEN_MAX,
        "the blocks in use lie in {extents} places or more, too many for a torrent of {}, the longest that machines take: \
         defragment it, or copy it whole (`ezio capture --whole` for a disk, --at-own-risk for an import)",
        BinaryBytes(TORRENT_LEN_MAX)
    );
    Ok(())
}

/// Whether the disk that a directory is on has room for that much more, in bytes.
///
/// # Errors
/// How much is needed and how much there is.
pub fn check_room(dir: &Path, len: u64) -> anyhow::Result<()> {
    let disk = nix::sys::statvfs::statvfs(dir).with_context(|| format!("measuring {}", dir.display()))?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    let needed = len.saturating_add(SPARE_ROOM);
    ensure!(
        free >= needed,
        "{} are needed, {} has {} free: make room, or choose another place",
        BinaryBytes(needed),
        dir.display(),
        BinaryBytes(free)
    );
    Ok(())
}

/// A flag that SIGINT and SIGTERM set; a second one ends the process at once.
///
/// # Errors
/// If the handlers cannot be installed.
pub fn stop_on_signals() -> anyhow::Result<&'static AtomicBool> {
    use tokio::signal::unix::{SignalKind, signal};
    static STOP: AtomicBool = AtomicBool::new(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("watching for signals")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let watch = |kind| signal(kind).context("watching for signals");
        (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            for _ in 0..2 {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                if STOP.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    });
    Ok(&STOP)
}

/// A piece length as people write it.
///
/// # Errors
/// If it cannot be one.
pub fn parse_piece_len(text: &str) -> anyhow::Result<u32> {
    let (digits, unit) = match text.trim_end_matches(['i', 'B']).char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        _ => (text, 1),
    };
    let len = digits.parse::<u32>().ok().and_then(|len| len.checked_mul(unit));
    match len {
        Some(len) if len.is_power_of_two() && (MIN_PIECE_LEN..=MAX_PIECE_LEN).contains(&len) => Ok(len),
        _ => bail!("a piece length is a power of two from 16K to 64M, such as 4M"),
    }
}

/// A sector size as people write it.
///
/// # Errors
/// If no disk has it.
pub fn parse_sector_size(text: &str) -> anyhow::Result<u32> {
    match text.parse::<u32>() {
        Ok(size) if size.is_power_of_two() && (512..=4096).contains(&size) => Ok(size),
        _ => bail!("a sector size is 512, 1024, 2048 or 4096 bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piece_lengths_are_read_as_people_write_them() {
        for (text, len) in
            [("16K", 16 << 10), ("4M", 4 << 20), ("4MiB", 4 << 20), ("1048576", 1 << 20), ("64m", 64 << 20)]
        {
            assert_eq!(parse_piece_len(text).expect(text), len);
        }
        for bad in ["", "M", "3M", "8K", "128M", "4G", "-4M", "é", "4294967296", "5000000M"] {
            assert!(parse_piece_len(bad).is_err(), "{bad}");
        }
    }
}

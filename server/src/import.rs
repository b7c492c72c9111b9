//! `ezio image import`: what other tools made of a disk becomes an image.
//!
//! Files named by their offset (partclone's BT directories, EZIO's torrents) hold the content already and are copied.
//! Of a disk image or a Clonezilla image, the disk is put together in the draft, and then captured like any other.

mod clonezilla;
mod disk_image;
mod partclone_dir;
mod torrent;
mod vhdx;

use std::fs;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use metainfo::{Geometry, PieceHash, PieceIndex};

use self::clonezilla::Packed;
pub use self::disk_image::signature as disk_image_format;
use crate::capture::content::Content;
use crate::capture::pipeline::{Job, default_threads};
use crate::capture::progress::Progress;
use crate::capture::source::Source;
use crate::capture::{Choices, Order, hex, make_image, parse_piece_len, parse_sector_size, stop_on_signals, summary};
use crate::container;
use crate::library::{Image, Library, check_name};
use crate::manifest::Origin;

/// How many directories are named that could have been meant.
const DIRS_SHOWN: usize = 5;

/// Makes an image of what another tool made of a disk or partition.
#[derive(Debug, Args)]
pub struct Import {
    /// A disk image (raw, qcow2, vmdk, vhdx, vhd, vdi, …), a Clonezilla image directory, a partclone image file, compressed or
    /// not, a directory that `partclone.<fs> -c -T` wrote (BT files and torrent.info), or an EZIO .torrent.
    source: PathBuf,
    /// Of a .torrent: the directory with its BT files (named by offset in hex), or one file with all its content.
    files: Option<PathBuf>,
    /// What to call the image.
    #[arg(long)]
    name: String,
    /// Of BT files: hash everything and compare it with torrent.info or the torrent.
    #[arg(long)]
    verify: bool,
    /// Replace the image of that name, if there is one, once the new one is complete.
    #[arg(long)]
    replace: bool,
    /// Of a disk image: copy every byte, used or not.
    #[arg(long)]
    whole: bool,
    /// Of a disk, Clonezilla or partclone image: take file systems that were not shut down, or are hibernated, as they are.
    #[arg(long)]
    at_own_risk: bool,
    /// Of a disk, Clonezilla or partclone image: leave out what lies outside of partitions.
    #[arg(long, conflicts_with = "whole")]
    partitions_only: bool,
    /// Of a disk image: sector size of the disk in bytes. It is found by looking, if this is not given.
    #[arg(long, value_name = "BYTES", value_parser = parse_sector_size)]
    sector_size: Option<u32>,
    /// Of a Clonezilla image with several disks: which one, such as sda.
    #[arg(long, value_name = "DISK")]
    disk: Option<String>,
    /// Of what is no BT files: leave blocks of zeros out of the image, and make them anew when it is restored. Only EZIO
    /// knows how.
    #[arg(long)]
    skip_zeros: bool,
    /// Of what is no BT files: length of a piece, such as 4M: a power of two from 16K to 64M. Chosen by the size of the image
    /// if not given.
    #[arg(long, value_name = "LEN", value_parser = parse_piece_len)]
    piece_len: Option<u32>,
}

impl Import {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, in words for the person at the terminal. Nothing is left behind then.
    pub fn run(self, library: &Path) -> anyhow::Result<()> {
        check_name(&self.name)?;
        let stop = stop_on_signals()?;
        let importing = || format!("importing {}", self.source.display());
        let image = self.import(&Library::create(library)?, stop).with_context(importing)?;
        say!("imported {}", summary(&image));
        Ok(())
    }

    fn import(&self, library: &Library, stop: &AtomicBool) -> anyhow::Result<Image> {
        let (name, source, replace) = (&self.name, &self.source, self.replace);
        let kind = source.metadata().with_context(|| format!("opening {}", source.display()))?.file_type();
        let is_torrent = kind.is_file() && source.extension().is_some_and(|extension| extension == "torrent");
        if let Some(files) = self.files.as_ref().filter(|_| !is_torrent) {
            bail!("{} goes with a .torrent file only, which {} is not", files.display(), source.display());
        }
        let is_clonezilla = kind.is_dir() && clonezilla::is_clonezilla(source);
        let is_bt_dir = kind.is_dir() && !is_clonezilla;
        let has_no_info = |error: io::Error| error.kind() == ErrorKind::NotFound;
        if is_bt_dir && fs::symlink_metadata(source.join("torrent.info")).is_err_and(has_no_info) {
            return Err(unknown_dir(source));
        }
        ensure!(self.disk.is_none() || is_clonezilla, "--disk goes with a Clonezilla image only");
        ensure!(!self.whole || !(kind.is_dir() || is_torrent), "--whole goes with a disk image only");
        ensure!(
            !(is_torrent || is_bt_dir) || !self.skip_zeros && self.piece_len.is_none(),
            "--skip-zeros and --piece-len do not go with BT files, which are copied as they are"
        );
        ensure!(
            !kind.is_block_device(),
            "{} is a disk: `ezio capture {} --name {name}` makes an image of it",
            source.display(),
            source.display()
        );
        ensure!(kind.is_file() || kind.is_dir(), "{} is neither a file nor a directory", source.display());
        if is_torrent {
            let files = self.files.as_ref().with_context(|| {
                format!(
                    "give the directory of BT files as well: ezio image import {} DIR --name NAME",
                    source.display()
                )
            })?;
            return torrent::import(library, name, source, files, self.verify, replace, stop);
        }
        if is_clonezilla {
            let order = self.order("import of a Clonezilla image");
            return clonezilla::import(library, name, source, self.disk.as_deref(), replace, order, stop);
        }
        if is_bt_dir {
            return partclone_dir::import(library, name, source, self.verify, replace, stop);
        }
        if let Some(packed) = Packed::find(source)? {
            let order = self.order("import of a partclone image");
            return clonezilla::import_file(library, name, source, &packed, replace, order, stop);
        }
        let format = disk_image::format_of(source)?;
        if format.is_none() && !self.whole {
            container::refuse(source)?;
        }
        let draft = library.draft(name, replace)?;
        let (disk, how) = match format {
            Some(format) => {
                (disk_image::convert(source, format, &draft, stop)?, format!("import of a {format} disk image"))
            }
            None => (source.clone(), "import of a raw disk image".to_owned()),
        };
        Ok(make_image(&Source::open(&disk)?, draft, self.order(&how), stop)?.0)
    }

    fn order(&self, how: &str) -> Order {
        let choices = Choices {
            whole: self.whole,
            at_own_risk: self.at_own_risk,
            partitions_only: self.partitions_only,
            rescue: false,
            sector_size: self.sector_size,
        };
        let origin = Origin::now(how, &self.source);
        let (skip_zeros, piece_len) = (self.skip_zeros, self.piece_len);
        Order { choices, skip_zeros, live: false, piece_len, threads: None, origin }
    }
}

/// What to say of a directory that is of neither kind.
fn unknown_dir(dir: &Path) -> anyhow::Error {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut inside: Vec<PathBuf> = entries.filter(|path| path.is_dir() && clonezilla::is_clonezilla(path)).collect();
    inside.sort_unstable();
    let shown: Vec<String> = inside.iter().take(DIRS_SHOWN).map(|path| path.display().to_string()).collect();
    let hint = match inside.len() {
        0 => String::new(),
        count => {
            let more = if count > DIRS_SHOWN { ", …" } else { "" };
            format!("; give one of the Clonezilla images in it: {}{more}", shown.join(", "))
        }
    };
    anyhow!(
        "{} is neither a Clonezilla image, which has a file `parts`, nor what `partclone.<fs> -c -T` wrote, which has \
         torrent.info and files named by offset in hex{hint}",
        dir.display()
    )
}

/// Content that is there already, on its way into a draft.
struct Copying<'a> {
    geometry: Geometry,
    /// What each piece has to hash to, if that is to be checked.
    hash_of: Option<&'a dyn Fn(PieceIndex) -> PieceHash>,
    /// Where it comes from, for people.
    from: &'a Path,
    stop: &'a AtomicBool,
}

impl Copying<'_> {
    /// Copies what `read` gives for a content offset and a buffer.
    ///
    /// # Errors
    /// If reading or writing fails, or a piece has another hash.
    fn run(
        self,
        content: &Path,
        read: impl Fn(u64, &mut [u8]) -> anyhow::Result<()> + Send + Sync,
    ) -> anyhow::Result<()> {
        let Copying { geometry, stop, .. } = self;
        let out = Content::create(content, geometry.content_len())?;
        let mut progress = Progress::new("importing", geometry.content_len());
        let job = Job { geometry, threads: default_threads(), out: Some(&out), stop, progress: &mut progress };
        let fill = |range: Range<u64>, buf: &mut [u8]| read(range.start, buf);
        let Some(hash_of) = self.hash_of else {
            job.copy(fill)?;
            progress.finish();
            return Ok(());
        };
        let hashes = job.hash(fill)?;
        progress.finish();
        for piece in geometry.pieces() {
            let (is, should) = (hashes[piece.as_usize()], hash_of(piece));
            ensure!(
                is == should,
                "piece {piece} of {} hashes to {} and should to {}: it is damaged, copy it again",
                self.from.display(),
                hex(&is),
                hex(&should)
            );
        }
        Ok(())
    }
}

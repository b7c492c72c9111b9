//! Makes images from what other tools made of a disk.
//!
//! Files named by their offset (partclone's BT directories, EZIO's torrents) already hold the content and are copied.
//! From a disk image or a Clonezilla image, the disk is assembled in the draft and then captured like any other.

mod clonezilla;
mod copying;
mod disk_image;
mod new_image;
mod partclone_dir;
mod torrent;
mod vhdx;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, anyhow, bail, ensure};
use library::Image;
use library::manifest::Origin;

use self::clonezilla::Packed;
use self::copying::HowToCopy;
pub use self::new_image::NewImage;
use crate::choices::Choices;
use crate::container;
use crate::make::{CaptureOptions, make_image};
use crate::source::Source;
use crate::stored::Compression;

/// Most directories that are named as possibly intended.
const DIRS_SHOWN: usize = 5;

/// How to make an image from what another tool made of a disk or partition.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// A disk image, a Clonezilla image directory, a partclone image file, a directory of BT files, or a torrent.
    pub source: PathBuf,
    /// For a torrent: the directory with its BT files, or one file with all its content.
    pub files: Option<PathBuf>,
    /// For BT files: hash everything and compare it.
    pub verify: bool,
    /// Which parts of a disk are taken.
    pub choices: Choices,
    /// For a Clonezilla image with several disks: which one.
    pub disk: Option<String>,
    /// Leave out stretches of zeros, to be recreated on restore.
    pub skip_zeros: bool,
    /// Length of a piece in bytes; if `None`, the size of the image decides.
    pub piece_len: Option<u32>,
    /// How the content is stored.
    pub compression: Compression,
}

impl ImportOptions {
    /// Makes the image.
    ///
    /// # Errors
    /// A message for the person at the terminal. Nothing is left behind then.
    pub fn import(&self, new: NewImage<'_>, stop: &AtomicBool) -> anyhow::Result<Image> {
        let (name, source) = (new.name, &self.source);
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
        ensure!(!self.choices.whole || !(kind.is_dir() || is_torrent), "--whole goes with a disk image only");
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
            return torrent::import(new, source, files, self.how(stop));
        }
        if is_clonezilla {
            let options = self.options("import of a Clonezilla image");
            return clonezilla::import(new, source, self.disk.as_deref(), options, stop);
        }
        if is_bt_dir {
            return partclone_dir::import(new, source, self.how(stop));
        }
        if let Some(packed) = Packed::find(source)? {
            let options = self.options("import of a partclone image");
            return clonezilla::import_file(new, source, &packed, options, stop);
        }
        let format = disk_image::format_of(source)?;
        if format.is_none() && !self.choices.whole {
            container::refuse(source)?;
        }
        let draft = new.draft()?;
        let (disk, how) = match format {
            Some(format) => {
                (disk_image::convert(source, format, &draft, stop)?, format!("import of a {format} disk image"))
            }
            None => (source.clone(), "import of a raw disk image".to_owned()),
        };
        Ok(make_image(&Source::open(&disk)?, draft, self.options(&how), stop)?.0)
    }

    fn how<'a>(&self, stop: &'a AtomicBool) -> HowToCopy<'a> {
        HowToCopy { verify: self.verify, compression: self.compression, stop }
    }

    fn options(&self, how: &str) -> CaptureOptions {
        CaptureOptions {
            choices: self.choices,
            skip_zeros: self.skip_zeros,
            live: false,
            piece_len: self.piece_len,
            compression: self.compression,
            threads: None,
            origin: Origin::now(how, &self.source),
        }
    }
}

/// The error about a directory that is of neither kind.
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

//! Presents a partition as a separate device or file, because partclone reads nothing else.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use layout::{DiskOffset, DiskRange};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use tempfile::NamedTempFile;

use crate::partclone::find_program;
use crate::source::Source;

/// Bytes of a partition that are copied at a time.
const COPY_LEN: usize = 1 << 20;

/// Keeps the device or file as long as it exists.
#[derive(Debug)]
pub(crate) struct Window {
    path: PathBuf,
    _held: Held,
}

#[derive(Debug)]
enum Held {
    /// A node or file that existed before.
    Nothing,
    /// A loop device. The kernel detaches it when the last process that has it open, this one, closes it or dies.
    Loop { _open: File },
    /// A copy that is deleted together with this.
    Copy { _file: NamedTempFile },
}

impl Window {
    /// Opens bytes `place` of the source: as the source itself, as an existing file or node, through a read-only loop
    /// device (root only), or as a sparse copy in `scratch`.
    ///
    /// # Errors
    /// If none of these works.
    pub(crate) fn open(source: &Source, place: DiskRange, scratch: &Path) -> anyhow::Result<Window> {
        if place == DiskRange::new(0..source.len) {
            return Ok(Window { path: source.path.clone(), _held: Held::Nothing });
        }
        if let Some(path) = source.partition_file(place) {
            return Ok(Window { path: path.to_owned(), _held: Held::Nothing });
        }
        if let Some(path) = source.partition_node(place) {
            return Ok(Window { path, _held: Held::Nothing });
        }
        match attach_loop(&source.path, place) {
            Ok(window) => return Ok(window),
            Err(error) => log::debug!("copying the partition, because no loop device is available: {error:#}"),
        }
        let copy = copy(source, place, scratch)
            .with_context(|| format!("copying the partition at byte {} to {}", place.start, scratch.display()))?;
        Ok(Window { path: copy.path().to_owned(), _held: Held::Copy { _file: copy } })
    }

    /// The path of the partition.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn attach_loop(source: &Path, place: DiskRange) -> anyhow::Result<Window> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can attach loop devices");
    }
    let losetup = find_program("losetup").context("looking for losetup")?;
    let attached = Command::new(&losetup)
        .args(["--find", "--show", "--read-only"])
        .arg(format!("--offset={}", place.start))
        .arg(format!("--sizelimit={}", place.len()))
        .arg(source)
        .stdin(Stdio::null())
        .output()
        .context("running losetup")?;
    if !attached.status.success() {
        bail!("losetup failed: {}", String::from_utf8_lossy(&attached.stderr).trim());
    }
    let path = PathBuf::from(String::from_utf8_lossy(&attached.stdout).trim());
    let open = File::open(&path);
    // Detach while it is open: the kernel keeps it until the last close, so it disappears however this process ends.
    let detached = Command::new(&losetup).arg("--detach").arg(&path).stdin(Stdio::null()).status();
    match detached {
        Ok(status) if status.success() => {}
        Ok(status) => log::warn!("{} stays attached: losetup --detach ended with {status}", path.display()),
        Err(error) => log::warn!("{} stays attached: {error}", path.display()),
    }
    let open = open.with_context(|| format!("opening {}", path.display()))?;
    Ok(Window { path, _held: Held::Loop { _open: open } })
}

/// Copies the data and leaves out the holes.
fn copy(source: &Source, place: DiskRange, scratch: &Path) -> anyhow::Result<NamedTempFile> {
    let copy = tempfile::Builder::new().prefix("partition.").tempfile_in(scratch)?;
    copy.as_file().set_len(place.len())?;
    let mut buf = vec![0; COPY_LEN];
    let (start, end) = (place.start.0, place.end.0);
    let mut at = start;
    while let Some(data) = source.next_data(DiskRange::new(at..end))? {
        at = data.start.0;
        while at < data.end.0 {
            let len = usize::try_from(data.end.0 - at).unwrap_or(COPY_LEN).min(COPY_LEN);
            source.read_at(&mut buf[..len], DiskOffset(at))?;
            copy.as_file().write_all_at(&buf[..len], at - start)?;
            at += u64::try_from(len).expect("at most COPY_LEN");
        }
    }
    Ok(copy)
}

/// The first run of data in bytes `at..end` of the file, `None` if there is only a hole; without SEEK_DATA everything counts as data.
pub(crate) fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if at >= end {
        return Ok(None);
    }
    let signed = |offset: u64| i64::try_from(offset).map_err(io::Error::other);
    let unsigned = |offset: i64| u64::try_from(offset).map_err(io::Error::other);
    let start = match lseek64(file, signed(at)?, Whence::SeekData) {
        Ok(start) => unsigned(start)?,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL) => return Ok(Some(at..end)),
        Err(error) => return Err(error.into()),
    };
    if start >= end {
        return Ok(None);
    }
    let hole = unsigned(lseek64(file, signed(start)?, Whence::SeekHole)?)?;
    Ok(Some(start..hole.min(end)))
}

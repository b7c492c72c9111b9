//! Files that hold a disk, or copies of one, and are none: archives, compressed files, what backup programs write.
//!
//! A person who names such a file means what is in it. Copied as it is, it would be an image that no machine starts from, so it is
//! named here, with what to do instead. It is recognised by its content, never by its name, and only by marks that no disk
//! carries by chance.

mod archive;
mod backup;
mod disk_format;
mod look;
mod packed;
mod sealed;

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};

pub(crate) use self::disk_format::disk_format;
pub(crate) use self::look::Container;
use self::look::Look;

/// Looks at a file of `len` bytes; `path` is for the commands that are proposed. `None` for what may be a disk.
///
/// Reads at most the first 64 KiB, the last 1 KiB, and of a tar file the heads of its first members. ISO images are disks
/// here, because sticks start from them, and so are file systems that cannot be written, such as squashfs.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn recognise(path: &Path, file: &File, len: u64) -> io::Result<Option<Container>> {
    let look = Look::new(path, file, len)?;
    if let Some(tar) = archive::tar(&look)? {
        return Ok(Some(tar));
    }
    Ok(archive::find(&look)
        .or_else(|| backup::find(&look))
        .or_else(|| sealed::find(&look))
        .or_else(|| packed::find(&look)))
}

/// Fails if the file at `path` is a container.
///
/// # Errors
/// What it is and what to do, or why it cannot be read.
pub(crate) fn refuse(path: &Path) -> anyhow::Result<()> {
    let reading = || format!("reading {}", path.display());
    let file = File::open(path).with_context(reading)?;
    let len = file.metadata().with_context(reading)?.len();
    match recognise(path, &file, len).with_context(reading)? {
        Some(container) => bail!(container.refusal(path)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;

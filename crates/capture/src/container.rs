//! Recognises files that contain a disk, or copies of one, but are not disk images: archives, compressed files, files
//! of backup programs.
//!
//! A user who names such a file means its contents. An image of the file itself would start no machine, so the file is
//! refused, and the error says what it is and what to do instead. It is recognised by its content, never by its name,
//! and only by marks that no disk carries by chance.

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

/// Examines a file of `len` bytes; `path` appears in the proposed commands. Returns `None` if the file may be a disk.
///
/// Reads at most the first 64 KiB, the last 1 KiB, and the heads of a tar file's first members. ISO images count as
/// disks here, because sticks start from them; so do read-only file systems such as squashfs.
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
/// The error says what the file is and what to do, or why it cannot be read.
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

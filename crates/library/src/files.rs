//! Files and directories of a library: locks, flushed writes, removal.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Makes a directory and those that it is in, as far as they are missing. What is in a library is for its owner alone: an
/// image holds every secret of the disk that it was taken from.
pub(crate) fn make_dirs(dir: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("making {}", dir.display()))
}

/// Whether the file system of `dir` can exchange two directories.
pub(crate) fn can_exchange(dir: &Path) -> anyhow::Result<bool> {
    let [old, new] = ["old", "new"].map(|name| dir.join(name));
    for dir in [&old, &new] {
        fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let exchanged = renameat2(AT_FDCWD, &old, AT_FDCWD, &new, RenameFlags::RENAME_EXCHANGE);
    for dir in [&old, &new] {
        fs::remove_dir(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    match exchanged {
        Err(Errno::EINVAL) => Ok(false),
        exchanged => exchanged.map(|()| true).with_context(|| format!("exchanging directories in {}", dir.display())),
    }
}

pub(crate) fn open_lock(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    opened.with_context(|| format!("opening the lock {}", path.display()))
}

pub(crate) fn try_lock(path: &Path) -> anyhow::Result<Option<File>> {
    let file = open_lock(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|mut file| {
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    });
    written.with_context(|| format!("writing {}", path.display()))
}

pub(crate) fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("flushing the directory {}", dir.display()))
}

pub(crate) fn remove_all(path: &Path) -> anyhow::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("deleting {}", path.display())),
    }
}

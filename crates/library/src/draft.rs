//! An image in the making.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::files::{remove_all, sync_dir, write_synced};
use crate::image::{COMPRESSED, CONTENT, Image, content_name, load};
use crate::library::{Guard, Library};
use crate::manifest::Manifest;

/// The directory in a draft that is no part of the image.
const SCRATCH: &str = "scratch";

/// An image in the making. [`Draft::publish`] makes it an image; dropping it takes everything back, unless it is one
/// that can go on later.
#[derive(Debug)]
pub struct Draft {
    pub(crate) library: Library,
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) replace: bool,
    pub(crate) guard: Guard,
    /// Whether what is there stays for the next attempt.
    pub(crate) is_kept: bool,
    /// Held for as long as the draft lives; the kernel lets go of them however the process ends.
    pub(crate) locks: Vec<(PathBuf, File)>,
}

impl Draft {
    /// The directory of the library it is for.
    pub fn library_dir(&self) -> &Path {
        self.library.dir()
    }

    /// A directory for what is needed meanwhile, made if it is not there; it is gone when the image is listed.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(SCRATCH);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(dir)
    }

    /// Where its content goes if it is stored as it is.
    pub fn content_path(&self) -> PathBuf {
        self.dir.join(CONTENT)
    }

    /// Where its content goes if it is stored compressed.
    pub fn compressed_path(&self) -> PathBuf {
        self.dir.join(COMPRESSED)
    }

    /// Writes torrent and manifest beside the content, flushes everything to the disk, checks it as a reader would,
    /// and only then lists it.
    ///
    /// # Errors
    /// If a file cannot be written or flushed, or the image would not load.
    pub fn publish(mut self, torrent_bytes: &[u8], manifest: &Manifest) -> anyhow::Result<Image> {
        remove_all(&self.dir.join(SCRATCH))?;
        write_synced(&self.dir.join("image.torrent"), torrent_bytes)?;
        write_synced(&self.dir.join("manifest.json"), &manifest.to_json())?;
        if manifest.live.is_none() {
            let content = self.dir.join(content_name(manifest));
            File::open(&content)
                .and_then(|file| {
                    file.set_permissions(Permissions::from_mode(0o600))?;
                    file.sync_all()
                })
                .with_context(|| format!("flushing {}", content.display()))?;
        }
        sync_dir(&self.dir)?;
        load(&self.name, self.dir.clone()).context("checking the finished image")?;

        let _busy = self.library.lock()?;
        // Once more: hours may have passed.
        self.library.check_free(&self.name, self.replace, self.guard)?;
        let images = self.library.images_dir();
        let to = images.join(&self.name);
        let listing = || format!("moving the finished image to {}", to.display());
        if self.replace && fs::symlink_metadata(&to).is_ok() {
            // Old and new change places in one step; the old one is then this draft's and goes when it is dropped.
            renameat2(AT_FDCWD, &self.dir, AT_FDCWD, &to, RenameFlags::RENAME_EXCHANGE).with_context(listing)?;
        } else {
            match renameat2(AT_FDCWD, &self.dir, AT_FDCWD, &to, RenameFlags::RENAME_NOREPLACE) {
                // A file system that knows no flags, such as NFS; who else would make it holds the library's lock.
                Err(Errno::EINVAL) => fs::rename(&self.dir, &to).with_context(listing)?,
                renamed => renamed.with_context(listing)?,
            }
        }
        self.is_kept = false;
        sync_dir(&images)?;
        load(&self.name, to)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Lock files are deleted under the library's lock only, or two processes could hold "the same" one.
        let _busy = self.library.lock().inspect_err(|error| log::warn!("{error:#}")).ok();
        let is_empty = fs::metadata(self.content_path()).map_or(true, |content| content.len() == 0);
        if (!self.is_kept || is_empty)
            && let Err(error) = remove_all(&self.dir)
        {
            log::warn!("{error:#}");
        }
        for (path, _held) in &self.locks {
            let _ = fs::remove_file(path);
        }
    }
}

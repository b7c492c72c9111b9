//! Images that come over the network and may take several attempts: `LIBRARY/tmp/pull-INFOHASH/`.
//!
//! The directory outlives its process, and the next pull of the same infohash continues it. `source` says where
//! it comes from, for people; the rest is as in any draft.

use std::fs::{self, File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use metainfo::Infohash;

use crate::draft::Draft;
use crate::files::{make_dirs, remove_all, sync_dir, try_lock, write_synced};
use crate::image::{COMPRESSED, check_name};
use crate::library::{Guard, Library};

/// What unfinished directories are called, before their infohash.
const PREFIX: &str = "pull-";
/// The file that says where the image comes from.
const SOURCE: &str = "source";

/// An image of which a part is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its infohash, 40 hex digits.
    pub infohash: String,
    /// Where it comes from: URL or file.
    pub source: String,
    /// Bytes of it that are there.
    pub len: u64,
    /// Whether a process is at it now; not if that cannot be told.
    pub is_busy: bool,
}

impl Library {
    /// Starts an image that can be interrupted, or goes on with what an earlier attempt left of it.
    ///
    /// # Errors
    /// If the name is bad or taken, or another process is at the same image.
    pub fn resumable_draft(
        &self,
        infohash: Infohash,
        name: &str,
        replace: bool,
        source: &str,
        guard: Guard,
    ) -> anyhow::Result<Draft> {
        check_name(name)?;
        let _busy = self.lock()?;
        self.clear_dead_drafts()?;
        self.check_free(name, replace, guard)?;
        let name_lock = self.lock_name(name)?;
        let lock_path = self.unfinished_lock(&infohash.to_string());
        let Some(lock) = try_lock(&lock_path)? else {
            bail!("another process is pulling this very image (infohash {infohash}) right now: wait for it");
        };
        let dir = self.unfinished_dir(&infohash.to_string());
        make_dirs(&dir)?;
        // Whatever was killed between writing these and listing the image left them behind.
        for file in [SOURCE, "image.torrent", "manifest.json", COMPRESSED] {
            remove_all(&dir.join(file))?;
        }
        write_synced(&dir.join(SOURCE), source.as_bytes())?;
        sync_dir(&dir)?;
        Ok(Draft {
            library: self.clone(),
            name: name.to_owned(),
            dir,
            replace,
            guard,
            is_kept: true,
            locks: vec![name_lock, (lock_path, lock)],
        })
    }

    /// What is there of unfinished images.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn unfinished(&self) -> anyhow::Result<Vec<Unfinished>> {
        let tmp = self.dir.join("tmp");
        if !tmp.is_dir() {
            return Ok(Vec::new());
        }
        let reading = || format!("reading {}", tmp.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&tmp).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let name = entry.file_name();
            let Some(infohash) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            if infohash.parse::<Infohash>().is_err() {
                continue;
            }
            // Whoever may only look is not told everything; that is no reason to hide the image.
            let is_busy = self.is_busy(infohash).unwrap_or_else(|error| {
                log::debug!("{error:#}");
                false
            });
            found.push(Unfinished {
                source: fs::read_to_string(entry.path().join(SOURCE)).unwrap_or_default(),
                len: fs::metadata(entry.path().join("content")).map_or(0, |content| len_on_disk(&content)),
                is_busy,
                infohash: infohash.to_owned(),
            });
        }
        found.sort_unstable_by(|a, b| a.source.cmp(&b.source));
        Ok(found)
    }

    /// Deletes what is there of the unfinished image from `source`, or of all that nobody is at; gives what went.
    ///
    /// # Errors
    /// If there is none from that source, or a process is at it, or it cannot be deleted.
    pub fn discard(&self, source: Option<&str>) -> anyhow::Result<Vec<Unfinished>> {
        let library = Library::create(&self.dir)?;
        let _busy = library.lock()?;
        let mut found = library.unfinished()?;
        if let Some(source) = source {
            found.retain(|unfinished| unfinished.source == source || unfinished.infohash == source);
            ensure!(!found.is_empty(), "nothing unfinished from {source} is in {}", self.dir.display());
            ensure!(!found.iter().any(|unfinished| unfinished.is_busy), "a process is pulling {source} right now");
        }
        found.retain(|unfinished| !unfinished.is_busy);
        for unfinished in &found {
            let lock_path = library.unfinished_lock(&unfinished.infohash);
            let Some(_lock) = try_lock(&lock_path)? else {
                bail!("a process is pulling {} right now", unfinished.source);
            };
            remove_all(&self.unfinished_dir(&unfinished.infohash))?;
            let _ = fs::remove_file(lock_path);
        }
        Ok(found)
    }

    /// Whether a process is at it. Needs to read only, and neither makes a lock nor keeps others from sharing it.
    fn is_busy(&self, infohash: &str) -> anyhow::Result<bool> {
        let path = self.unfinished_lock(infohash);
        let looking = || format!("looking at the lock {}", path.display());
        let lock = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.with_context(looking)?,
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error).with_context(looking),
        }
    }

    fn unfinished_dir(&self, infohash: &str) -> PathBuf {
        self.dir.join("tmp").join(format!("{PREFIX}{infohash}"))
    }

    /// With a dot in front, which no image's name has.
    fn unfinished_lock(&self, infohash: &str) -> PathBuf {
        self.locks_dir().join(format!(".{PREFIX}{infohash}"))
    }
}

/// Bytes of a file that are there: pieces come in any order, and between them are holes.
pub fn len_on_disk(file: &Metadata) -> u64 {
    // In units of 512 bytes, whatever the file system's block is; its last block may reach past the end.
    file.blocks().saturating_mul(512).min(file.len())
}

impl Draft {
    /// Takes away what only an unfinished image has; call it before [`Draft::publish`].
    ///
    /// # Errors
    /// If it cannot be deleted.
    pub fn completed(&self) -> anyhow::Result<()> {
        remove_all(&self.dir.join(SOURCE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_there_again_until_it_is_discarded() {
        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::create(dir.path()).expect("made");
        let infohash = Infohash([7; 20]);
        let open =
            || library.resumable_draft(infohash, "debian", false, "http://b/images/debian.torrent", |_, _| Ok(None));

        let draft = open().expect("free");
        assert!(library.unfinished().expect("read")[0].is_busy);
        assert!(open().expect_err("busy").to_string().contains("right now"));
        assert!(library.draft("debian", false, |_, _| Ok(None)).is_err(), "the name is held as well");
        drop(draft);
        assert_eq!(library.unfinished().expect("read"), [], "nothing came, nothing stays");

        let draft = open().expect("free");
        fs::write(draft.content_path(), b"half").expect("written");
        drop(draft);
        // Other work clears what is dead, but not this.
        drop(library.draft("other", false, |_, _| Ok(None)).expect("free"));
        let left = library.unfinished().expect("read");
        assert_eq!((left.len(), left[0].len, left[0].is_busy), (1, 4, false));
        let draft = open().expect("free");
        assert_eq!(fs::read(draft.content_path()).expect("still there"), b"half");
        assert!(library.discard(Some("http://b/images/debian.torrent")).is_err(), "busy");
        assert_eq!(library.discard(None).expect("read"), []);
        drop(draft);
        assert!(library.discard(Some("http://c/")).is_err());
        assert_eq!(library.discard(Some("http://b/images/debian.torrent")).expect("deleted").len(), 1);
        assert_eq!(library.unfinished().expect("read"), []);
    }
}

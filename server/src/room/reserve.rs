//! Space that is kept for a start on a full disk.
//!
//! SQLite needs a little space to open a database, also to read it. A server that finds none gives back what it has reserved
//! here while there was some. What is written then is kept or refused as on any full disk; the reserve is taken again once
//! there is space.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

/// Bytes in reserve: SQLite's index of its log has 32 KiB, and a change of some rows a few pages.
const LEN: u64 = 256 << 10;
/// A disk with less than this is full.
const FULL: u64 = 64 << 10;

/// The reserve of a state directory.
#[derive(Clone, Debug)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// That of a state directory.
    pub fn of(state_dir: &Path) -> Reserve {
        Reserve { path: state_dir.join("reserve") }
    }

    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        self.len() >= LEN
    }

    fn len(&self) -> u64 {
        fs::symlink_metadata(&self.path).map_or(0, |found| if found.is_file() { found.len() } else { 0 })
    }

    /// Takes it, all or nothing.
    ///
    /// # Errors
    /// If there is no space, or the directory cannot be written.
    pub fn take(&self) -> io::Result<()> {
        if self.is_whole() {
            return Ok(());
        }
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).open(&self.path)?;
        let len = i64::try_from(LEN).expect("small");
        if let Err(error) = posix_fallocate(&file, 0, len) {
            // A part of it would only make the disk fuller.
            let _ = file.set_len(0);
            return Err(error.into());
        }
        Ok(())
    }

    /// Gives it back if the disk is full. Whether that has made space.
    pub fn give_back(&self) -> bool {
        let is_full = self.path.parent().is_some_and(is_full);
        is_full && self.len() > 0 && fs::OpenOptions::new().write(true).truncate(true).open(&self.path).is_ok()
    }

    /// What is wrong while it is not there, as text.
    pub fn trouble(&self) -> Option<String> {
        let dir = self.path.parent().unwrap_or(&self.path).display();
        let why = "what machines report may be refused (503, they send it again), and a restart of the server may fail";
        (!self.is_whole())
            .then(|| format!("the disk of {dir} is full, or cannot be written: {why}; free some space there"))
    }
}

/// Whether there is hardly any space where a directory is.
pub fn is_full(dir: &Path) -> bool {
    statvfs(dir).is_ok_and(|found| found.blocks_available().saturating_mul(found.fragment_size()) < FULL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_once_and_given_back_only_on_a_full_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        let reserve = Reserve::of(dir.path());
        assert!(!reserve.is_whole() && reserve.trouble().expect("words").contains("free some space"));
        reserve.take().expect("space");
        assert!(reserve.is_whole() && reserve.trouble().is_none());
        assert!(!reserve.give_back() && reserve.is_whole(), "there is space");
        fs::write(dir.path().join("reserve"), "short").expect("written");
        assert!(!reserve.is_whole());
        reserve.take().expect("space");
        assert!(reserve.is_whole());
    }
}

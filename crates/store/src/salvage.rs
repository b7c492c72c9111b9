//! Keeps what can be read of a damaged database.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags};

use crate::{FILE, Result, Store, StoreError, rows};

/// Damaged databases kept aside.
const KEPT: usize = 2;
const MARK: &str = ".damaged-";

impl Store {
    /// Puts a damaged database aside and begins a new one with the rows of it that are as they were written. What is lost
    /// is noted, see [`Store::lost`].
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn salvage(dir: &Path, why: &str) -> Result<Store> {
        let path = dir.join(FILE);
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let name = |suffix: &str| dir.join(format!("{FILE}{MARK}{seconds}{suffix}"));
        for suffix in ["-wal", "-shm", ""] {
            let from = dir.join(format!("{FILE}{suffix}"));
            match fs::rename(&from, name(suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::File { doing: "putting aside", path: from, source: error });
                }
                _ => {}
            }
        }
        forget_oldest(dir);
        let found = readable(&name(""));
        let why = format!("{why}; {} rows of it could be read, and it is kept as {}", found.len(), name("").display());
        let mut store = Store::open(dir, |_| Ok(()))?;
        store.change(|change| {
            for (kind, key, body) in &found {
                change.put(kind, key, body)?;
            }
            change.note_loss(&why)
        })?;
        log::error!("{why}; a new {} is begun", path.display());
        Ok(store)
    }
}

/// Every row that is as it was written, except the store's own.
fn readable(path: &Path) -> Vec<(String, String, String)> {
    let read = || -> rusqlite::Result<Vec<(String, String, String)>> {
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let mut statement = conn.prepare("SELECT DISTINCT kind FROM rows WHERE kind <> 'store'")?;
        let mut kinds = Vec::new();
        let mut found = statement.query([])?;
        // A damaged page ends the list, not what was read before it.
        while let Ok(Some(row)) = found.next() {
            kinds.extend(row.get::<_, String>(0).ok());
        }
        let mut all = Vec::new();
        for kind in kinds {
            if let Ok((rows, _)) = rows(&conn, &kind) {
                all.extend(rows.into_iter().map(|(key, body)| (kind.clone(), key, body)));
            }
        }
        Ok(all)
    };
    read().unwrap_or_else(|error| {
        log::warn!("nothing can be read of {}: {error}", path.display());
        Vec::new()
    })
}

/// Removes all but the newest databases that were put aside.
fn forget_oldest(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let is_aside = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.strip_prefix(FILE)
            .is_some_and(|rest| rest.starts_with(MARK) && !rest.ends_with("-wal") && !rest.ends_with("-shm"))
    };
    let mut aside: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_aside).collect();
    aside.sort_unstable();
    let old = aside.len().saturating_sub(KEPT);
    for path in &aside[..old] {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", path.display()));
        }
    }
}

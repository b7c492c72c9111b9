//! Small files the server remembers things in: written whole or not at all, whatever moment it is killed at.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes `value` as JSON in one step: a reader sees the old file or the new one, also after a power cut.
///
/// # Errors
/// If the directory cannot be written.
pub fn write<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let writing = || format!("writing {}: is the disk full, or read-only?", path.display());
    let dir = path.parent().context("a state file lives in a directory")?;
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(writing)?;
    let mut bytes = serde_json::to_vec_pretty(value).with_context(writing)?;
    bytes.push(b'\n');
    file.write_all(&bytes).with_context(writing)?;
    file.as_file().sync_data().with_context(writing)?;
    file.persist(path).with_context(writing)?;
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(writing)
}

/// Reads what [`write()`] wrote; `None` if there is no such file.
///
/// # Errors
/// If it is damaged or cannot be read.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.with_context(|| format!("reading {}", path.display()))?,
    };
    let value = serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(Some(value))
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

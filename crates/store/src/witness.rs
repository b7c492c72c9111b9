//! The number of the last change, outside of the database.

use std::path::Path;

use crate::in_place::InPlace;
use crate::{Result, StoreError};

/// Length of the witness in bytes.
const LEN: usize = 64;

/// What the witness has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) generation: u64,
    /// Rows that the database had then, except its own.
    pub(crate) rows: u64,
}

#[derive(Debug)]
pub(crate) struct Witness(InPlace);

impl Witness {
    pub(crate) fn open(dir: &Path) -> Result<Witness> {
        let witness = InPlace::new(dir.join("room.witness"), LEN);
        let failed = |source| StoreError::File { doing: "writing", path: witness.path().to_owned(), source };
        witness.reserve().map_err(failed)?;
        Ok(Witness(witness))
    }

    /// What it has seen, `None` for nothing.
    ///
    /// # Errors
    /// That it is damaged.
    pub(crate) fn read(&self) -> std::result::Result<Option<Seen>, String> {
        let damaged = |what: &dyn std::fmt::Display| format!("{} is damaged ({what})", self.0.path().display());
        let text = self.0.read().map_err(|error| damaged(&error))?;
        if text.is_empty() {
            return Ok(None);
        }
        let numbers = text.strip_prefix("change ").and_then(|rest| rest.split_once(" rows "));
        let seen = numbers.and_then(|(generation, rows)| {
            Some(Seen { generation: generation.parse().ok()?, rows: rows.parse().ok()? })
        });
        seen.map(Some).ok_or_else(|| damaged(&format_args!("it says {text:?}")))
    }

    /// Notes a change, unless it has seen a later one. An error leaves it behind, and so may a power cut.
    pub(crate) fn write(&self, seen: Seen) {
        if let Ok(Some(before)) = self.read()
            && before.generation >= seen.generation
        {
            return;
        }
        let text = format!("change {} rows {}", seen.generation, seen.rows);
        if let Err(error) = self.0.write_unsynced(&text) {
            log::warn!("writing {}: {error}", self.0.path().display());
        }
    }
}

//! What a server must not forget, in one file: an SQLite database in WAL mode (<https://sqlite.org/wal.html>).
//!
//! SQLite notices a broken page, and not a flipped bit, a lost row or yesterday's copy of the file. So each row has a
//! checksum, each kind of rows has the sum of its rows' checksums, and each change has a number that is also written to a
//! second small file, the witness. [`Store::open`] compares them. If the database is older than its witness, or gone, the
//! store says so ([`Store::lost`]) until [`Change::accept_loss`].

#![warn(missing_docs, unreachable_pub)]
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]

#[cfg(feature = "faults")]
pub mod fault;
mod in_place;
mod row;
mod salvage;
#[cfg(test)]
mod tests;
mod witness;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};

use crate::row::{Total, checksum};
use crate::witness::Witness;

pub use crate::in_place::InPlace;

/// Name of the database in its directory.
pub const FILE: &str = "room.sqlite";
/// The schema's version, in the database's `user_version`.
const SCHEMA: i64 = 1;
/// How long another process may hold the database before a change fails.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);
/// The kind of rows that belongs to the store itself.
const OWN: &str = "store";
const GENERATION: &str = "generation";
const LOST: &str = "lost";
const SCHEMA_KEY: &str = "schema";

/// Why the store cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What is there cannot be right. [`Store::salvage`] keeps what can be read of it.
    #[error("{path} is damaged: {what}", path = path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A newer version has written it.
    #[error("{path} has format {found}, and this version knows {SCHEMA} at most: use the newer version", path = path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// The format's number.
        found: i64,
    },
    /// The disk, or another process.
    #[error("{doing} {path}{hint}", path = path.display())]
    Failed {
        /// Reading or writing.
        doing: &'static str,
        /// The database.
        path: PathBuf,
        /// What a person could look at.
        hint: &'static str,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A file beside the database.
    #[error("{doing} {path}", path = path.display())]
    File {
        /// Reading or writing.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the file was read and cannot be right, so that reading it again would not help.
    pub fn is_damage(&self) -> bool {
        matches!(self, StoreError::Damaged { .. })
    }
}

/// Keys and bodies, by key.
pub type Rows = Vec<(String, String)>;
type Result<T> = std::result::Result<T, StoreError>;

/// An open database. Several processes may have it open.
#[derive(Debug)]
pub struct Store {
    conn: Connection,
    path: PathBuf,
    /// Device and inode of the file that is open.
    opened: (u64, u64),
    witness: Witness,
}

impl Store {
    /// Opens the database in a directory, or makes an empty one. `fill` is called for a new one, before it counts as made:
    /// it takes over what older versions left.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is changed then.
    pub fn open(dir: &Path, fill: impl FnOnce(&mut Change<'_>) -> Result<()>) -> Result<Store> {
        let path = dir.join(FILE);
        // Before the database: what commits meanwhile only makes that one newer.
        let witness = Witness::open(dir)?;
        let conn = connect(&path)?;
        let opened =
            identity(&path).map_err(|source| StoreError::File { doing: "reading", path: path.clone(), source })?;
        let mut store = Store { conn, path, opened, witness };
        store.prepare(fill)?;
        Ok(store)
    }

    fn prepare(&mut self, fill: impl FnOnce(&mut Change<'_>) -> Result<()>) -> Result<()> {
        let witnessed = self.witness.read();
        let found: i64 = self.get("PRAGMA user_version")?;
        let tables: i64 = self.get("SELECT count(*) FROM sqlite_master")?;
        let is_new = found == 0 && tables == 0;
        // The version is in a header that SQLite does not check.
        let said = if tables > 0 { self.row(OWN, SCHEMA_KEY)? } else { None };
        let said = said.and_then(|said| said.parse::<i64>().ok());
        if found > SCHEMA && said.is_none_or(|said| said > SCHEMA) {
            return Err(StoreError::Newer { path: self.path.clone(), found });
        }
        if !is_new && found != SCHEMA {
            return Err(self.damaged(format!("its header says format {found}")));
        }
        if is_new {
            let mode: String = self.get("PRAGMA journal_mode = WAL")?;
            if mode != "wal" {
                log::debug!("{}: journal mode {mode}", self.path.display());
            }
        }
        let generation = if is_new { 0 } else { self.generation()? };
        let (seen, lost) = match witnessed {
            Err(damaged) if !is_new && self.has_rows()? => (None, Some(damaged)),
            Err(damaged) if is_new => (None, Some(format!("{} is gone, and {damaged}", self.path.display()))),
            Ok(Some(seen)) if is_new && seen.rows > 0 => (Some(seen), Some(format!("{} is gone", self.path.display()))),
            Ok(Some(seen)) if seen.generation > generation && seen.rows > 0 => {
                let path = self.path.display();
                let why = format!(
                    "{path} is older than it was: it has change {generation}, and change {} was made",
                    seen.generation
                );
                (Some(seen), Some(why))
            }
            Ok(seen) => (seen.filter(|seen| seen.generation > generation), None),
            Err(_) => (None, None),
        };
        if !is_new && seen.is_none() && lost.is_none() {
            return Ok(());
        }
        self.change(|change| {
            if change.is_new()? {
                change.create()?;
                fill(change)?;
            }
            if let Some(seen) = seen {
                change.continue_after(seen.generation)?;
            }
            if let Some(why) = &lost {
                change.put(OWN, LOST, why)?;
            }
            Ok(())
        })
    }

    /// Why something that was known is not known any more, until a person accepts that.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lost(&self) -> Result<Option<String>> {
        Ok(self.rows(OWN)?.into_iter().find(|(key, _)| key == LOST).map(|(_, why)| why))
    }

    fn has_rows(&self) -> Result<bool> {
        let count: i64 = self.get("SELECT coalesce(sum(count), 0) FROM totals WHERE kind <> 'store'")?;
        Ok(count != 0)
    }

    /// The number of the last change.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn generation(&self) -> Result<u64> {
        Ok(number(self.row(OWN, GENERATION)?.as_deref()))
    }

    /// The number of the last change that the witness has seen; `None` if it has seen nothing, or is damaged.
    pub fn witnessed(&self) -> Option<u64> {
        self.witness.read().ok().flatten().map(|seen| seen.generation)
    }

    /// A number that is another one whenever another connection has changed something.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn version(&self) -> Result<i64> {
        self.get("PRAGMA data_version")
    }

    /// Whether the file that is open is still the one in the directory. One that was removed or replaced is changed by
    /// others without our seeing it.
    pub fn is_in_place(&self) -> bool {
        identity(&self.path).is_ok_and(|now| now == self.opened)
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every row of a kind, by key.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] also if a row or the number of rows cannot be right.
    pub fn rows(&self, kind: &str) -> Result<Rows> {
        let snapshot = self.conn.unchecked_transaction().map_err(|error| self.failed("reading", error))?;
        let (rows, bad) = rows(&self.conn, kind).map_err(|error| self.failed("reading", error))?;
        let total = total(&self.conn, kind).map_err(|error| self.failed("reading", error))?;
        drop(snapshot);
        if let Some(what) = bad {
            return Err(self.damaged(what));
        }
        let found = Total::of(kind, &rows);
        if found != total {
            return Err(
                self.damaged(format!("of kind {kind} there are {} rows that do not add up to {total}", rows.len()))
            );
        }
        Ok(rows)
    }

    fn row(&self, kind: &str, key: &str) -> Result<Option<String>> {
        Ok(self.rows(kind)?.into_iter().find(|(found, _)| found == key).map(|(_, body)| body))
    }

    /// Reads everything and compares it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn check(&self) -> Result<()> {
        let said: String = self.get("PRAGMA integrity_check(1)")?;
        if said != "ok" {
            return Err(self.damaged(said));
        }
        let kinds = |conn: &Connection| -> rusqlite::Result<Vec<String>> {
            let mut kinds = conn.prepare("SELECT DISTINCT kind FROM rows UNION SELECT kind FROM totals")?;
            kinds.query_map([], |row| row.get(0))?.collect()
        };
        for kind in kinds(&self.conn).map_err(|error| self.failed("reading", error))? {
            self.rows(&kind)?;
        }
        Ok(())
    }

    /// Makes a change, all of it or nothing; it is on the disk when this returns.
    ///
    /// # Errors
    /// [`StoreError`], or what `make` returned.
    pub fn change<T, E: From<StoreError>>(
        &mut self,
        make: impl FnOnce(&mut Change<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let path = &self.path;
        let failed = |error| failed(path, "writing", error);
        #[cfg(feature = "faults")]
        if fault::is_next(fault::Fault::Full) {
            let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
            return Err(failed(rusqlite::Error::SqliteFailure(full, None)).into());
        }
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let mut change = Change { conn: &tx, path };
        let made = make(&mut change)?;
        let seen = change.next()?;
        tx.commit().map_err(failed)?;
        #[cfg(feature = "faults")]
        if fault::is_next(fault::Fault::NoWitness) {
            return Ok(made);
        }
        // A witness that stays behind claims less, never more.
        self.witness.write(seen);
        Ok(made)
    }

    fn get<T: rusqlite::types::FromSql>(&self, sql: &str) -> Result<T> {
        self.conn.query_row(sql, [], |row| row.get(0)).map_err(|error| self.failed("reading", error))
    }

    fn failed(&self, doing: &'static str, error: rusqlite::Error) -> StoreError {
        failed(&self.path, doing, error)
    }

    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what }
    }
}

/// A change that is being made.
#[derive(Debug)]
pub struct Change<'a> {
    conn: &'a Connection,
    path: &'a Path,
}

impl Change<'_> {
    /// Sets a row.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(&mut self, kind: &str, key: &str, body: &str) -> Result<()> {
        let conn = self.conn;
        self.written(|| {
            let mut total = total(conn, kind)?;
            total.remove(sum_of(conn, kind, key)?);
            let sum = checksum(kind, key, body);
            total.add(sum);
            let sql = "INSERT INTO rows (kind, key, body, sum) VALUES (?1, ?2, ?3, ?4)
                       ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body, sum = excluded.sum";
            conn.prepare(sql)?.execute(params![kind, key, body, sum.cast_signed()])?;
            set_total(conn, kind, total)
        })
    }

    /// Removes a row, if it is there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn delete(&mut self, kind: &str, key: &str) -> Result<()> {
        let conn = self.conn;
        self.written(|| {
            let Some(sum) = sum_of(conn, kind, key)? else { return Ok(()) };
            let mut total = total(conn, kind)?;
            total.remove(Some(sum));
            conn.prepare("DELETE FROM rows WHERE kind = ?1 AND key = ?2")?.execute([kind, key])?;
            set_total(conn, kind, total)
        })
    }

    /// Every row of a kind, by key, as [`Store::rows`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rows(&self, kind: &str) -> Result<Rows> {
        let failed = |error| failed(self.path, "reading", error);
        let damaged = |what| StoreError::Damaged { path: self.path.to_owned(), what };
        let (rows, bad) = rows(self.conn, kind).map_err(failed)?;
        match bad {
            Some(what) => Err(damaged(what)),
            None if Total::of(kind, &rows) != total(self.conn, kind).map_err(failed)? => {
                Err(damaged(format!("rows of kind {kind} are missing")))
            }
            None => Ok(rows),
        }
    }

    /// A person knows what is lost: [`Store::lost`] says no more of it. Gives what it said.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn accept_loss(&mut self) -> Result<Option<String>> {
        let lost = self.rows(OWN)?.into_iter().find(|(key, _)| key == LOST).map(|(_, why)| why);
        self.delete(OWN, LOST)?;
        Ok(lost)
    }

    /// Notes that something is lost; see [`Store::lost`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_loss(&mut self, why: &str) -> Result<()> {
        self.put(OWN, LOST, why)
    }

    fn is_new(&self) -> Result<bool> {
        let version = self.conn.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
        Ok(version.map_err(|error| failed(self.path, "reading", error))? == 0)
    }

    fn create(&mut self) -> Result<()> {
        let conn = self.conn;
        self.written(|| {
            conn.execute_batch(
                "CREATE TABLE rows (kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, sum INTEGER NOT NULL,
                                    PRIMARY KEY (kind, key)) WITHOUT ROWID;
                 CREATE TABLE totals (kind TEXT PRIMARY KEY, count INTEGER NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID;
                 PRAGMA user_version = 1;",
            )
        })?;
        self.put(OWN, SCHEMA_KEY, &SCHEMA.to_string())
    }

    /// The next change has a number after this one.
    fn continue_after(&mut self, generation: u64) -> Result<()> {
        let now = number(self.rows(OWN)?.iter().find(|(key, _)| key == GENERATION).map(|(_, body)| body.as_str()));
        self.put(OWN, GENERATION, &now.max(generation).to_string())
    }

    /// Gives the change its number.
    fn next(&mut self) -> Result<witness::Seen> {
        let own = self.rows(OWN)?;
        let now = number(own.iter().find(|(key, _)| key == GENERATION).map(|(_, body)| body.as_str()));
        let generation = now.saturating_add(1);
        self.put(OWN, GENERATION, &generation.to_string())?;
        let conn = self.conn;
        let rows = self.written(|| {
            let sql = "SELECT coalesce(sum(count), 0) FROM totals WHERE kind <> ?1";
            conn.query_row(sql, [OWN], |row| row.get::<_, i64>(0))
        })?;
        Ok(witness::Seen { generation, rows: rows.cast_unsigned() })
    }

    fn written<T>(&self, write: impl FnOnce() -> rusqlite::Result<T>) -> Result<T> {
        write().map_err(|error| failed(self.path, "writing", error))
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<Connection> {
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        // What is acknowledged survives a power cut.
        conn.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 256;")?;
        Ok(conn)
    };
    open().map_err(|error| failed(path, "opening", error))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let facts = fs::metadata(path)?;
    Ok((facts.dev(), facts.ino()))
}

fn failed(path: &Path, doing: &'static str, error: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    let hint = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            return StoreError::Damaged { path, what: error.to_string() };
        }
        Some(ErrorCode::DiskFull) => ": the disk is full",
        Some(ErrorCode::ReadOnly) => ": the file or its file system is read-only",
        Some(ErrorCode::CannotOpen) => ": does it exist, may this user write it, and is there space left?",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            ": another process has been writing to it for seconds; does it hang?"
        }
        Some(ErrorCode::SystemIoFailure) => ": the disk reports an error, is full, or is read-only",
        // A column that is missing, or that has another type: somebody else wrote this.
        None | Some(ErrorCode::Unknown | ErrorCode::TypeMismatch) if doing == "reading" => {
            return StoreError::Damaged { path, what: error.to_string() };
        }
        // A header that says what no version of SQLite writes; the statements that open a database are always the same.
        Some(ErrorCode::Unknown) if doing == "opening" => {
            return StoreError::Damaged { path, what: error.to_string() };
        }
        _ => "",
    };
    StoreError::Failed { doing, path, hint, source: error }
}

/// Rows of a kind whose checksum is right, and what is wrong with the first other one.
fn rows(conn: &Connection, kind: &str) -> rusqlite::Result<(Rows, Option<String>)> {
    let mut statement = conn.prepare("SELECT key, body, sum FROM rows WHERE kind = ?1 ORDER BY key")?;
    let mut found = statement.query([kind])?;
    let (mut rows, mut bad) = (Vec::new(), None);
    while let Some(row) = found.next()? {
        match (row.get::<_, String>(0), row.get::<_, String>(1), row.get::<_, i64>(2)) {
            (Ok(key), Ok(body), Ok(sum)) if checksum(kind, &key, &body) == sum.cast_unsigned() => {
                rows.push((key, body))
            }
            (Ok(key), _, _) => bad = bad.or(Some(format!("the row {kind} {key:?} is not as it was written"))),
            (Err(_), _, _) => bad = bad.or(Some(format!("a row of kind {kind} has no readable key"))),
        }
    }
    Ok((rows, bad))
}

fn sum_of(conn: &Connection, kind: &str, key: &str) -> rusqlite::Result<Option<u64>> {
    let mut statement = conn.prepare("SELECT sum FROM rows WHERE kind = ?1 AND key = ?2")?;
    Ok(statement.query_row([kind, key], |row| row.get::<_, i64>(0)).optional()?.map(i64::cast_unsigned))
}

fn total(conn: &Connection, kind: &str) -> rusqlite::Result<Total> {
    let mut statement = conn.prepare("SELECT count, sum FROM totals WHERE kind = ?1")?;
    let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let found = statement.query_row([kind], row).optional()?;
    Ok(found.map(|(count, sum)| Total::new(count.cast_unsigned(), sum.cast_unsigned())).unwrap_or_default())
}

fn set_total(conn: &Connection, kind: &str, total: Total) -> rusqlite::Result<()> {
    let sql = "INSERT INTO totals (kind, count, sum) VALUES (?1, ?2, ?3)
               ON CONFLICT (kind) DO UPDATE SET count = excluded.count, sum = excluded.sum";
    let (count, sum) = total.parts();
    conn.prepare(sql)?.execute(params![kind, count.cast_signed(), sum.cast_signed()])?;
    Ok(())
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

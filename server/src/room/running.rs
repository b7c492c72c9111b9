//! Which server runs on a library: the lock that it holds, and the note that it leaves for the other commands.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use library::Library;
use serde::{Deserialize, Serialize};

use crate::room::config::Settings;
use crate::room::state;

/// How often, and after which pause, the lock is tried that a look at it may hold.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A note for the other commands: which server runs on this library.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerNote {
    /// Where its HTTP is.
    pub url: String,
    pub pid: u32,
    /// What it was told; earlier versions did not say.
    #[serde(default)]
    settings: Option<Settings>,
}

impl ServerNote {
    /// Of this process.
    pub fn here(url: String, settings: Settings) -> ServerNote {
        ServerNote { url, pid: std::process::id(), settings: Some(settings) }
    }

    /// Leaves it for the other commands.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn leave(&self, state_dir: &Path) -> anyhow::Result<()> {
        state::write(&note_path(state_dir), self)
    }

    /// Takes it away when the server ends.
    pub fn take_away(state_dir: &Path) {
        let _ = std::fs::remove_file(note_path(state_dir));
    }

    /// The server that runs on this library now.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(library: &Library) -> anyhow::Result<ServerNote> {
        let state_dir = library.state_dir();
        let nobody = || {
            let elsewhere = match library.has_own_state() {
                true => String::new(),
                false => format!(" with its state in {}", state_dir.display()),
            };
            format!("no `ezio serve` is running on the library {}{elsewhere}", library.dir().display())
        };
        let lock = File::open(lock_path(&state_dir)).with_context(nobody)?;
        // The lock dies with its process, so a note left behind by kill -9 is not believed.
        ensure!(matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)), nobody());
        state::read(&note_path(&state_dir))?.with_context(nobody)
    }

    /// What it was told.
    ///
    /// # Errors
    /// If it is of a version that does not say.
    pub fn settings(self) -> anyhow::Result<Settings> {
        let pid = self.pid;
        self.settings
            .with_context(|| format!("the running `ezio serve` (process {pid}) is of an older version: restart it"))
    }
}

/// One server for one library: two would send the same machines different ways, also with their states in different places.
///
/// # Errors
/// If another one runs, or the directory cannot be written.
pub fn lock(library: &Library) -> anyhow::Result<(File, Option<File>)> {
    let state_dir = &library.state_dir();
    let path = lock_path(state_dir);
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    match try_often(&file) {
        Ok(()) => Ok((file, lock_images(library)?)),
        Err(TryLockError::WouldBlock) => {
            let pid = state::read::<ServerNote>(&note_path(state_dir)).ok().flatten().map(|note| note.pid);
            let who = pid.map_or(String::new(), |pid| format!(" (process {pid})"));
            bail!("another `ezio serve`{who} runs on this library already: stop it first, or use another --library")
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// Whether a server runs on the library, wherever its state is.
pub fn is_served(library: &Library) -> bool {
    File::open(library.dir()).is_ok_and(|images| matches!(images.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Locks a file. Whoever asks whether a server runs holds it for a moment.
fn try_often(file: &File) -> Result<(), TryLockError> {
    let mut locked = file.try_lock();
    for _ in 0..LOCK_TRIES {
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(LOCK_PAUSE);
        locked = file.try_lock();
    }
    locked
}

fn lock_images(library: &Library) -> anyhow::Result<Option<File>> {
    // Not every file system can lock a directory.
    let images = File::open(library.dir()).ok();
    if let Some(Err(TryLockError::WouldBlock)) = images.as_ref().map(try_often) {
        bail!(
            "another `ezio serve` runs on the library {} already, with its state elsewhere: stop it first, or use another \
             --library",
            library.dir().display()
        );
    }
    Ok(images)
}

fn lock_path(state_dir: &Path) -> PathBuf {
    state_dir.join("serve.lock")
}

fn note_path(state_dir: &Path) -> PathBuf {
    state_dir.join("serve.json")
}

//! What is stopped although the store cannot be written: on a full disk, while another process holds it, or when it is
//! damaged.
//!
//! A list of scopes, in a file that is rewritten where it is. If even that is impossible, because the library is read-only,
//! the list is under `/run` until this host restarts. The next change of the store takes the list over.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use store::InPlace;

use crate::room::place::in_run;
use crate::room::scope::Scope;

/// Length of a list in bytes; one with more scopes than fit stops everything.
const LEN: usize = 4096;
/// How long another command may hold the list.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// The lists of one library.
#[derive(Debug)]
pub struct Stops {
    state_dir: PathBuf,
    in_library: InPlace,
    in_run: InPlace,
}

/// What the lists hold, to be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    text: String,
}

impl Stops {
    /// Those of the library with this state directory.
    pub fn of(state_dir: &Path) -> Stops {
        let in_library = InPlace::new(state_dir.join("stops"), LEN);
        let in_run = InPlace::new(in_run("stops", state_dir), LEN);
        Stops { state_dir: state_dir.to_owned(), in_library, in_run }
    }

    /// The state directory that the lists belong to.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Takes the space that a list needs.
    ///
    /// # Errors
    /// If the library cannot be written.
    pub fn reserve(&self) -> io::Result<()> {
        self.in_library.reserve()
    }

    /// What is stopped. A list that cannot be read stops everything.
    pub fn held(&self) -> Held {
        let list = |file: &InPlace| {
            file.read().unwrap_or_else(|error| {
                log::error!("{}: {error}; everything is stopped", file.path().display());
                ALL.to_owned()
            })
        };
        let lists = [list(&self.in_library), list(&self.in_run)];
        Held { text: lists.into_iter().filter(|list| !list.is_empty()).collect::<Vec<_>>().join("\n") }
    }

    /// Adds to what is stopped. Gives a warning if that does not survive this host's restart.
    ///
    /// # Errors
    /// If it cannot be written anywhere.
    pub fn add(&self, scopes: &[Scope]) -> io::Result<Option<String>> {
        let _lock = self.lock();
        let more: Vec<String> = scopes.iter().map(Scope::key).collect();
        let with = |file: &InPlace| {
            let before = file.read().unwrap_or_else(|_| ALL.to_owned());
            let lines = before.lines().map(str::to_owned).filter(|line| !more.contains(line));
            let text = lines.chain(more.iter().cloned()).collect::<Vec<_>>().join("\n");
            if text.len() <= LEN { text } else { ALL.to_owned() }
        };
        let Err(error) = self.in_library.write(&with(&self.in_library)) else { return Ok(None) };
        if let Some(dir) = self.in_run.path().parent() {
            fs::create_dir_all(dir)?;
        }
        self.in_run.write(&with(&self.in_run))?;
        let path = self.in_library.path().display();
        Ok(Some(format!("{path} cannot be written ({error}), so this holds until this host restarts")))
    }

    /// Forgets what has been taken over.
    pub fn clear(&self) {
        for file in [&self.in_library, &self.in_run] {
            if !matches!(file.read(), Ok(text) if text.is_empty())
                && let Err(error) = file.write("")
            {
                log::warn!("{} stays, and stops what it names: {error}", file.path().display());
            }
        }
    }

    /// Keeps other commands from the lists. Without it, when one of them hangs, the lists are still whole.
    pub fn lock(&self) -> Option<File> {
        let dir = File::open(&self.state_dir).ok()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match dir.try_lock() {
                Ok(()) => return Some(dir),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(_) => return None,
            }
        }
    }
}

/// [`Scope::All`], as it is written.
const ALL: &str = "all";

impl Held {
    /// A line that makes no sense.
    pub fn nonsense(&self) -> Option<&str> {
        self.text.lines().find(|line| !line.trim().is_empty() && Scope::of_key(line).is_none())
    }

    /// What is stopped. A line that makes no sense stops everything.
    pub fn scopes(&self) -> Vec<Scope> {
        let lines = self.text.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| Scope::of_key(line).unwrap_or(Scope::All)).collect()
    }

    /// A number for this list: other lists have other numbers.
    pub fn number(&self) -> u64 {
        let digest = Sha256::digest(self.text.as_bytes());
        digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netboot::MacAddr;

    #[test]
    fn what_is_stopped_is_read_again_and_nonsense_stops_everything() {
        let dir = tempfile::tempdir().expect("a directory");
        let stops = Stops::of(dir.path());
        assert!(stops.held().scopes().is_empty());
        stops.reserve().expect("written");
        assert!(stops.held().scopes().is_empty());
        let scopes = [Scope::Machine(MacAddr([2, 0, 0, 0, 0, 1])), Scope::Group("lab 1".into())];
        assert_eq!(stops.add(&scopes).expect("written"), None);
        stops.add(&scopes[..1]).expect("written");
        assert_eq!(stops.held().scopes(), [scopes[1].clone(), scopes[0].clone()], "each once");
        let before = stops.held();
        stops.clear();
        assert!(stops.held().scopes().is_empty() && stops.held().number() != before.number());
        for garbage in ["machine x", "alle", "\u{1}"] {
            fs::write(dir.path().join("stops"), garbage).expect("written");
            assert_eq!(stops.held().scopes(), [Scope::All], "{garbage:?}");
        }
        fs::write(dir.path().join("stops"), [0xff; 20]).expect("written");
        assert_eq!(stops.held().scopes(), [Scope::All]);
        stops.clear();
        let many: Vec<Scope> = (0..255).map(|last| Scope::Machine(MacAddr([2, 0, 0, 0, 0, last]))).collect();
        stops.add(&many).expect("written");
        assert_eq!(stops.held().scopes(), [Scope::All], "more than fit");
    }
}

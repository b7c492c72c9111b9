//! Where the state of a library is: in the library, unless the server was told another directory.
//!
//! A server with its state elsewhere leaves a note in the library, if that can be written, and one under `/run`, so that other
//! commands find it without being told: what is disarmed is what the server obeys, and no image is removed because they
//! looked in the wrong place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use library::Library;
use sha2::{Digest, Sha256};

/// Where what holds until this host restarts is.
const RUN: &str = "/run/ezio";

/// A file under `/run` that belongs to a directory.
pub fn in_run(what: &str, of: &Path) -> PathBuf {
    let canonical = fs::canonicalize(of).unwrap_or_else(|_| of.to_owned());
    let digest = Sha256::digest(canonical.as_os_str().as_encoded_bytes());
    let id: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Path::new(RUN).join(format!("{what}-{id}"))
}

/// The note in a library.
const IN_LIBRARY: &str = "state-is-in";

/// A library with the state directory that a command was told; else the one of the last server.
pub fn with_state(library: Library, told: Option<PathBuf>) -> Library {
    if told.is_none() && !library.has_own_state() {
        return library;
    }
    let state = told.or_else(|| note_paths(&library).iter().find_map(|path| noted(path)));
    library.with_state(state)
}

/// What a note says.
fn noted(path: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(path).ok()?;
    let dir = PathBuf::from(text.strip_suffix('\n')?);
    dir.is_absolute().then_some(dir)
}

/// Leaves notes of where a server has its state, or takes older ones away.
pub fn note(library: &Library) {
    let paths = note_paths(library);
    if library.has_own_state() {
        for path in paths {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::warn!("{}: {error}; other commands look for the state where this file says", path.display());
                }
                _ => {}
            }
        }
        return;
    }
    let [in_run, in_library] = paths;
    let errors = [&in_library, &in_run].map(|path| leave(path, &library.state_dir()).err());
    if let [Some(in_library), Some(in_run)] = errors {
        log::warn!(
            "{in_library}, {in_run}: nothing says where the state is; give --state to the other commands as well"
        );
    }
}

fn leave(path: &Path, state_dir: &Path) -> io::Result<()> {
    if path.starts_with(RUN) {
        fs::create_dir_all(RUN)?;
    }
    let dir = fs::canonicalize(state_dir)?;
    let Some(dir) = dir.to_str().filter(|dir| !dir.contains('\n')) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the state directory has a name that is no plain text",
        ));
    };
    fs::write(path, format!("{dir}\n"))
}

fn note_paths(library: &Library) -> [PathBuf; 2] {
    [in_run("state", library.dir()), library.dir().join(IN_LIBRARY)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_note_is_believed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("note");
        assert_eq!(noted(&path), None);
        for bad in ["", "/srv/state", "srv/state\n", "\n"] {
            fs::write(&path, bad).expect("written");
            assert_eq!(noted(&path), None, "{bad:?}");
        }
        fs::write(&path, "/srv/state\n").expect("written");
        assert_eq!(noted(&path), Some("/srv/state".into()));
        let library = Library::at(dir.path());
        let told = with_state(library.clone(), Some("/told".into()));
        assert_eq!(told.state_dir(), Path::new("/told"));
        assert_eq!(with_state(told, None).state_dir(), Path::new("/told"), "what was told stays");
        assert_eq!(with_state(library.clone(), None).state_dir(), dir.path().join("state"));
        let elsewhere = tempfile::tempdir().expect("a directory");
        let state = fs::canonicalize(elsewhere.path()).expect("there");
        note(&library.clone().with_state(Some(state.clone())));
        assert_eq!(
            with_state(library.clone(), None).state_dir(),
            state,
            "the library says it, also after the host's restart"
        );
        note(&library);
        assert_eq!(with_state(library, None).state_dir(), dir.path().join("state"));
    }
}

//! What a server does with its library before it serves: other users of the machine are kept out, and what killed commands left
//! is taken away.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::library::Library;

/// No command writes a small file for so long: a temporary one that is older was left by one that was killed.
const LEFT_AFTER: Duration = Duration::from_secs(60);
/// How a temporary file's name begins (crate `tempfile`), before six letters and digits.
const TEMPORARY: &str = ".tmp";
const TEMPORARY_LEN: usize = TEMPORARY.len() + 6;
/// What stands in the name of a damaged file that was kept for people to look at, before its time.
const DAMAGED: &str = ".damaged-";
/// So many damaged files of one name are kept, the newest.
const DAMAGED_KEPT: usize = 3;

impl Library {
    /// Takes from other users of this machine what they may do with images and state: directories become 0700, files 0600.
    /// Touches only what belongs to the user who runs this, and follows no links. Gives how many were changed.
    pub fn keep_others_out(&self) -> usize {
        let mut changed = 0;
        for dir in [self.images_dir(), self.state_dir(), self.dir().join("tmp")] {
            changed += tighten(&dir, 3);
        }
        changed
    }

    /// Deletes what killed commands left in the state directory, and all but the newest damaged files that were kept there.
    /// Gives how many went.
    pub fn clear_state(&self) -> usize {
        let entries = fs::read_dir(self.state_dir()).into_iter().flatten().flatten();
        let files: Vec<DirEntry> = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())).collect();
        let mut old: Vec<PathBuf> = Vec::new();
        let mut damaged: BTreeMap<String, Vec<(SystemTime, PathBuf)>> = BTreeMap::new();
        for file in files {
            let name = file.file_name().to_string_lossy().into_owned();
            let Ok(changed) = file.metadata().and_then(|found| found.modified()) else { continue };
            // A time in the future is no age.
            let is_left = changed.elapsed().is_ok_and(|age| age >= LEFT_AFTER);
            if is_temporary(&name) && is_left {
                old.push(file.path());
            } else if let Some((of, _)) = name.split_once(DAMAGED) {
                damaged.entry(of.to_owned()).or_default().push((changed, file.path()));
            }
        }
        for mut kept in damaged.into_values() {
            kept.sort_unstable();
            kept.truncate(kept.len().saturating_sub(DAMAGED_KEPT));
            old.extend(kept.into_iter().map(|(_, path)| path));
        }
        let delete = |path: &PathBuf| match fs::remove_file(path) {
            Ok(()) => true,
            Err(cause) => {
                log::warn!("deleting {}: {cause}", path.display());
                false
            }
        };
        old.iter().filter(|path| delete(path)).count()
    }
}

fn is_temporary(name: &str) -> bool {
    name.len() == TEMPORARY_LEN
        && name.strip_prefix(TEMPORARY).is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// What is in a directory, and so many levels deeper, and the directory itself.
fn tighten(path: &Path, levels: usize) -> usize {
    let changed = match tighten_one(path) {
        Ok(changed) => usize::from(changed),
        // Links, pipes and what has just gone are passed over; what is refused is said.
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            log::warn!("keeping other users out of {}: {cause}", path.display());
            return 0;
        }
        Err(_) => return 0,
    };
    let is_dir = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if levels == 0 || !is_dir {
        return changed;
    }
    let inside = fs::read_dir(path).into_iter().flatten().flatten();
    changed + inside.map(|entry| tighten(&entry.path(), levels - 1)).sum::<usize>()
}

/// True if it was open to others, and is not any more.
fn tighten_one(path: &Path) -> io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() && !found.is_file() {
        return Ok(false);
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    // A file with other names is somebody else's as well.
    let is_ours = found.uid() == nix::unistd::geteuid().as_raw() && (found.is_dir() || found.nlink() == 1);
    if !is_ours || found.mode() & 0o077 == 0 {
        return Ok(false);
    }
    file.set_permissions(Permissions::from_mode(found.mode() & 0o700))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn other_users_are_kept_out_of_what_is_ours() {
        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::create(dir.path().join("new/library")).expect("made");
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
        assert_eq!([mode(library.dir()), mode(&library.state_dir())], [0o700, 0o700], "made that way");

        let image = library.image_dir("debian");
        fs::create_dir(&image).expect("made");
        let elsewhere = dir.path().join("elsewhere");
        for file in [image.join("content"), library.state_dir().join("armed.json"), elsewhere.clone()] {
            fs::write(&file, b"secret").expect("written");
            fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("ours");
        }
        fs::set_permissions(&image, Permissions::from_mode(0o755)).expect("ours");
        symlink(&elsewhere, image.join("link")).expect("a link");
        nix::unistd::mkfifo(&image.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert_eq!(library.keep_others_out(), 3);
        assert_eq!([mode(&image), mode(&image.join("content"))], [0o700, 0o600]);
        assert_eq!([mode(&library.state_dir().join("armed.json")), mode(&elsewhere)], [0o600, 0o644]);
        assert_eq!(library.keep_others_out(), 0, "nothing is left to do");
    }

    #[test]
    fn what_killed_commands_left_goes_and_what_is_in_the_making_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::create(dir.path()).expect("made");
        let state = library.state_dir();
        let file = |name: &str, age: u64| {
            let file = File::create(state.join(name)).expect("made");
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("ours");
        };
        for (name, age) in
            [(".tmpA1b2C3", 61), (".tmpzzzzzz", 86400), (".tmpYoung1", 5), (".tmp", 99), (".tmpA1b2C3x", 99)]
        {
            file(name, age);
        }
        (1..=5).for_each(|n| file(&format!("fleet.json.damaged-{n}"), 1000 - n));
        file("leases.json.damaged-1", 9999);
        file("armed.json", 9999);
        fs::create_dir(state.join(".tmpAbCdEf")).expect("made");
        assert_eq!(library.clear_state(), 4);
        let mut left: Vec<_> = fs::read_dir(&state)
            .expect("read")
            .map(|entry| entry.expect("read").file_name().into_string().expect("text"))
            .collect();
        left.sort_unstable();
        let kept = [
            ".tmp",
            ".tmpA1b2C3x",
            ".tmpAbCdEf",
            ".tmpYoung1",
            "armed.json",
            "fleet.json.damaged-3",
            "fleet.json.damaged-4",
            "fleet.json.damaged-5",
            "leases.json.damaged-1",
        ];
        assert_eq!(left, kept);
        assert_eq!(library.clear_state(), 0);
    }
}

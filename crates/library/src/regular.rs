//! Files of directories that others made: only regular ones are read, because a link or a device among them would make
//! bytes of this machine part of an image.

use std::fs::{self, File, Metadata};
use std::io::{self, Error, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, ensure};

/// Opens a file for reading.
///
/// # Errors
/// If it is not there, cannot be read, or is a link, a device, or anything else but a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Some devices do something when they are opened; O_NOFOLLOW and the second look are for what changes meanwhile.
    len(&fs::symlink_metadata(path)?)?;
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    len(&file.metadata()?)?;
    Ok(file)
}

/// Opens a file of a library for reading: one that is there and nowhere else, so that no other file of this machine is read
/// in its name.
///
/// # Errors
/// As [`open`], or if the file has another name as well (a hard link).
pub fn open_own(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    let names = file.metadata()?.nlink();
    if names > 1 {
        let why = format!(
            "it is a hard link: the same file has {names} names, so it may belong to something else; copy it (`cp`) and put the \
             copy in its place"
        );
        return Err(Error::new(ErrorKind::InvalidInput, why));
    }
    Ok(file)
}

/// The length in bytes of what was found at a path without following links.
///
/// # Errors
/// If it is not a regular file.
pub fn len(found: &Metadata) -> io::Result<u64> {
    if found.is_file() {
        return Ok(found.len());
    }
    let what = if found.is_symlink() { "a symbolic link" } else { "a device, a directory or the like" };
    let why = format!("it is {what}, and only regular files are read: put the file itself there");
    Err(Error::new(ErrorKind::InvalidInput, why))
}

/// Reads a file of a library that may have at most `limit` bytes.
///
/// # Errors
/// As [`open_own`], or if it is longer.
pub fn read_own(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let file = open_own(path).with_context(|| format!("opening {}", path.display()))?;
    read_limited(&file, path, limit)
}

/// Reads a file that may have at most `limit` bytes.
///
/// # Errors
/// As [`open`], or if it is longer.
pub fn read(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let file = open(path).with_context(|| format!("opening {}", path.display()))?;
    read_limited(&file, path, limit)
}

/// Reads what is left of an open file, at most `limit` bytes; `path` is for people.
///
/// # Errors
/// If it cannot be read or is longer, whatever length it claims to have.
pub fn read_limited(file: &File, path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {}", path.display()))?;
    ensure!(bytes.len() as u64 <= limit, "{} has more than the {limit} bytes such a file may have", path.display());
    Ok(bytes)
}

/// Reads a file that may have at most `limit` bytes, and that a link may lead to.
///
/// # Errors
/// If it cannot be read or is longer.
pub fn read_any(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    read_limited(&file, path, limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_devices_and_pipes_are_refused_in_words() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), b"12345").expect("written");
        symlink(path("file"), path("link")).expect("a link");
        symlink("/dev/zero", path("endless")).expect("a link");
        nix::unistd::mkfifo(&path("pipe"), Mode::S_IRWXU).expect("a pipe");
        assert_eq!(read(&path("file"), 5).expect("a file"), b"12345");
        let error = |path: &Path, limit| format!("{:#}", read(path, limit).expect_err("refused"));
        assert!(error(&path("file"), 4).contains("more than the 4 bytes"));
        for (name, why) in
            [("link", "a symbolic link"), ("endless", "a symbolic link"), ("pipe", "a device"), (".", "a")]
        {
            let said = error(&path(name), 5);
            assert!(said.contains(why) && said.contains("only regular files"), "{name}: {said}");
        }
        let own = |name: &str| read_own(&path(name), 5).map_err(|error| format!("{error:#}"));
        assert_eq!(own("file").expect("one name"), b"12345");
        fs::hard_link(path("file"), path("other name")).expect("a link");
        for name in ["file", "other name"] {
            let said = own(name).expect_err("two names");
            assert!(said.contains("hard link") && said.contains("`cp`"), "{said}");
        }
        assert!(own("link").expect_err("a link").contains("a symbolic link"));
        assert_eq!(read(&path("file"), 5).expect("where names do not matter"), b"12345");
        assert!(error(Path::new("/dev/zero"), 5).contains("a device"));
        assert!(error(&path("missing"), 5).contains("opening"));
    }

    #[test]
    fn what_claims_to_have_no_length_is_read_no_further_than_the_limit() {
        let endless = File::open("/dev/zero").expect("Linux has it");
        assert!(read_limited(&endless, Path::new("/dev/zero"), 1000).is_err());
    }
}

//! What is not written over: libraries, the sources of live images, and what another program writes to.

use std::ffi::OsString;
use std::fs;
use std::iter;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use library::Library;

use crate::holders::{Meant, refuse_other_processes};
use crate::in_use;

/// Directories in a library lie no deeper than this: `tmp/work/NAME/scratch`.
const LEVELS: usize = 4;

/// Fails if writing to `target` would destroy an image or interfere with a program: if it is in a library, or is a file of one
/// of `libraries` under another name, or such a file's loop device; if it has bytes of the source of a live image in one of
/// them; or if another process has it open for writing. A target that is not there yet may only not be in a library.
///
/// # Errors
/// Which of these it is, and what to do. Also if that cannot be found out.
pub fn refuse_to_destroy(target: &Path, libraries: &[&Path]) -> anyhow::Result<()> {
    let looking = || format!("looking at {}", target.display());
    let libraries: Vec<PathBuf> = libraries.iter().filter_map(|dir| fs::canonicalize(dir).ok()).collect();
    let found = fs::metadata(target).ok();
    let lower = iter::successors(found.clone(), in_use::under).take(in_use::LOOPS_DEEP);
    let under = lower.filter_map(|device| in_use::path_under(&device));
    for path in iter::once(target.to_owned()).chain(under) {
        if let Some(library) = real_path(&path)
            .with_context(looking)?
            .ancestors()
            .skip(1)
            .find(|dir| libraries.iter().any(|library| library == dir) || is_library(dir) || is_image(dir))
        {
            return Err(in_library(target, library));
        }
    }
    if found.is_none() {
        return Ok(());
    }
    let written = Meant::written_with(target)?;
    for dir in &libraries {
        if is_library(dir) && !written.files.is_empty() && has_any_of(dir, &written.files, LEVELS) {
            return Err(in_library(target, dir));
        }
        let Ok(images) = Library::open(dir).and_then(|library| library.images()) else { continue };
        for entry in images {
            let Some(live) = entry.image.ok().and_then(|image| image.manifest.live) else { continue };
            // One that is not attached cannot be overwritten. Devices may have changed their names since.
            let names = [live.path().to_owned(), PathBuf::from(&live.source)];
            let sources = names.iter().filter_map(|path| Meant::of(path).ok());
            if sources.into_iter().any(|source| written.meets(&source)) {
                bail!(
                    "{} has bytes of {live}, from which the live image {:?} is read: choose another target, or remove that \
                     image first (`ezio image remove {}`)",
                    target.display(),
                    entry.name,
                    entry.name
                );
            }
        }
    }
    refuse_other_processes(target)
}

fn in_library(target: &Path, library: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "{} belongs to the library {}, whose images would be destroyed: choose a place outside of it",
        target.display(),
        library.display()
    )
}

/// Without links, also of a file that is not there yet.
fn real_path(path: &Path) -> anyhow::Result<PathBuf> {
    if let Ok(real) = fs::canonicalize(path) {
        return Ok(real);
    }
    let path = std::path::absolute(path)?;
    let name = path.file_name().map(OsString::from).context("it is no path of a file")?;
    let dir = path.parent().context("it is no path of a file")?;
    // A directory that is not there has no library in it; whoever makes the file says so.
    Ok(fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned()).join(name))
}

fn is_library(dir: &Path) -> bool {
    dir.join("images").is_dir() && (dir.join("state").is_dir() || dir.join("tmp/locks").is_dir())
}

fn is_image(dir: &Path) -> bool {
    ["image.torrent", "manifest.json"].iter().all(|name| dir.join(name).is_file())
}

/// Whether a file in the directory, or so many levels below it, is one of these (device and inode number).
fn has_any_of(dir: &Path, files: &[(u64, u64)], levels: usize) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let Ok(found) = fs::symlink_metadata(entry.path()) else { return false };
        match found.is_dir() {
            true => levels > 0 && has_any_of(&entry.path(), files, levels - 1),
            false => files.contains(&(found.dev(), found.ino())),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::holders::tests::{Loop, disk};

    fn said(target: &Path, libraries: &[&Path]) -> String {
        format!("{:#}", refuse_to_destroy(target, libraries).expect_err("precious"))
    }

    #[test]
    fn what_is_in_a_library_is_spared_by_whatever_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let library = Library::create(path("library")).expect("made");
        let image = library.image_dir("debian");
        fs::create_dir(&image).expect("made");
        let content = image.join("content");
        fs::write(&content, vec![7; 1 << 20]).expect("written");
        symlink(&content, path("link")).expect("linked");
        fs::hard_link(&content, path("other name")).expect("linked");
        symlink(&image, path("image")).expect("linked");
        let used = [library.dir()];
        let inside = [content.clone(), path("link"), image.join("new"), library.dir().join("new"), path("image/new")];
        for target in &inside {
            for libraries in [&used[..], &[]] {
                assert!(said(target, libraries).contains("outside"), "{}", target.display());
            }
        }
        assert!(said(&path("other name"), &used).contains("belongs to the library"));
        fs::write(path("file"), b"x").expect("written");
        refuse_to_destroy(&path("file"), &used).expect("nobody's");
        refuse_to_destroy(&path("new"), &used).expect("nobody's");
        refuse_to_destroy(&path("no/such/directory"), &used).expect("no library");
        // An image's directory alone, as somebody may have copied it.
        fs::create_dir(path("copy")).expect("made");
        ["image.torrent", "manifest.json"]
            .iter()
            .for_each(|name| fs::write(path("copy").join(name), b"").expect("written"));
        assert!(said(&path("copy/content"), &used).contains("belongs to the library"));
    }

    #[test]
    fn a_loop_device_over_a_librarys_file_is_that_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::create(dir.path().join("library")).expect("made");
        let image = library.image_dir("debian");
        fs::create_dir(&image).expect("made");
        let content = disk(&image);
        let over = Loop::over(&content, &["--partscan"]);
        for libraries in [&[library.dir()][..], &[]] {
            assert!(said(over.path(), libraries).contains("belongs to the library"));
            assert!(said(&over.partition(1), libraries).contains("belongs to the library"));
        }
        let other = dir.path().join("other");
        fs::hard_link(&content, &other).expect("linked");
        let over = Loop::over(&other, &[]);
        assert!(said(over.path(), &[library.dir()]).contains("belongs to the library"));
    }

    #[test]
    fn what_another_process_writes_to_is_spared() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        fs::write(&path, b"x").expect("written");
        let mut child = std::process::Command::new("sh")
            .args(["-c", "exec 3>>\"$1\"; echo open; read line", "sh"])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("said");
        let words = said(&path, &[]);
        assert!(words.contains(&format!("(process {})", child.id())) && words.contains("try again"), "{words}");
        drop(child.stdin.take());
        child.wait().expect("it ends");
        let own = File::options().write(true).open(&path).expect("there");
        let started = std::time::Instant::now();
        // What another test starts has all that is open here until it runs its program.
        while refuse_to_destroy(&path, &[]).is_err() && started.elapsed() < std::time::Duration::from_secs(60) {
            std::thread::yield_now();
        }
        refuse_to_destroy(&path, &[]).expect("this process is no other");
        drop(own);
    }
}

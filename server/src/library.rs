//! The images this server holds: `LIBRARY/images/NAME/{image.torrent,manifest.json,content}`.
//!
//! An image appears and disappears by one rename, so whatever is listed is whole. Unfinished work lives under
//! `LIBRARY/tmp/`, held by a lock that dies with its process: what a killed capture left there is cleared by the next,
//! what a killed pull left there goes on ([`unfinished`]).

pub mod unfinished;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use layout::Layout;
use metainfo::{Metainfo, TORRENT_LEN_MAX};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::manifest::Manifest;
use crate::needed::refuse_if_needed;
use crate::regular;

/// Where a library is unless told otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/ezio";
/// Longest image name: it becomes a directory, a TFTP path and a line on a screen.
const NAME_LEN_MAX: usize = 64;
/// Largest manifest read, in bytes.
const MANIFEST_LEN_MAX: u64 = 16 << 20;

/// The directory in a draft that is no part of the image.
const SCRATCH: &str = "scratch";

/// A directory of images.
#[derive(Clone, Debug)]
pub struct Library {
    dir: PathBuf,
}

/// An image that has been checked: torrent, manifest and the length of the content agree. Whether the source of a live
/// image is there shows when it is opened.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name in the library.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// The torrent, parsed.
    pub meta: Arc<Metainfo>,
    /// Where its content lives on a disk.
    pub layout: Layout,
    /// The torrent as it is handed out.
    pub torrent_bytes: Bytes,
    /// The rest of what is known.
    pub manifest: Manifest,
}

/// One line of the library's list.
#[derive(Debug)]
pub struct ImageEntry {
    /// Its name: the directory's.
    pub name: String,
    /// The image, or why it cannot be used.
    pub image: anyhow::Result<Image>,
}

/// An image in the making. [`Draft::publish`] makes it an image; dropping it takes everything back, unless it is one
/// that can go on later.
#[derive(Debug)]
pub struct Draft {
    library: Library,
    name: String,
    dir: PathBuf,
    replace: bool,
    /// Whether what is there stays for the next attempt.
    is_kept: bool,
    /// Held for as long as the draft lives; the kernel lets go of them however the process ends.
    locks: Vec<(PathBuf, File)>,
}

impl Image {
    /// The image that a person means by a name in `library`, or by the path of its `image.torrent`. `None` if it is the
    /// path of a torrent elsewhere.
    ///
    /// # Errors
    /// If it is neither a file nor such a name, or the image is damaged.
    pub fn meant_by(what: &Path, library: &Path) -> anyhow::Result<Option<Image>> {
        if what.is_file() {
            let torrent = std::path::absolute(what).with_context(|| format!("finding {}", what.display()))?;
            let is_in_image = |dir: &&Path| torrent.ends_with("image.torrent") && dir.join("manifest.json").exists();
            let Some(dir) = torrent.parent().filter(is_in_image) else { return Ok(None) };
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            let image = load(&name, dir.to_owned()).with_context(|| format!("image {name:?} cannot be used"))?;
            return Ok(Some(image));
        }
        let name = what.to_str().filter(|name| check_name(name).is_ok());
        let name = name.with_context(|| format!("there is no torrent {}", what.display()))?;
        let image = Library::open(library).and_then(|library| library.image(name));
        image.map(Some).with_context(|| format!("there is no torrent {name} here, nor an image of that name"))
    }

    /// The file that holds the content: every extent's bytes, in order. A live image has none.
    pub fn content_path(&self) -> PathBuf {
        self.dir.join("content")
    }
}

impl Library {
    /// Opens an existing library.
    ///
    /// # Errors
    /// If there is no such directory.
    pub fn open(dir: impl Into<PathBuf>) -> anyhow::Result<Library> {
        let dir = dir.into();
        let is_dir = fs::metadata(&dir).with_context(|| no_library(&dir))?.is_dir();
        ensure!(is_dir, "the library {} is not a directory: give the directory that holds images/", dir.display());
        Ok(Library { dir })
    }

    /// Opens a library, making its directories if they are not there.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn create(dir: impl Into<PathBuf>) -> anyhow::Result<Library> {
        let library = Library { dir: dir.into() };
        for dir in [library.images_dir(), library.work_dir(), library.locks_dir(), library.state_dir()] {
            fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        Ok(library)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the server keeps what it remembers; made if missing by [`Library::create`].
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Every image by name; damaged ones say why, and never hide the others.
    ///
    /// # Errors
    /// If the directory itself cannot be read.
    pub fn images(&self) -> anyhow::Result<Vec<ImageEntry>> {
        Ok(self.names()?.into_iter().map(|name| ImageEntry { image: self.image(&name), name }).collect())
    }

    /// The names of all images, damaged ones as well.
    ///
    /// # Errors
    /// If the directory itself cannot be read.
    pub fn names(&self) -> anyhow::Result<Vec<String>> {
        let dir = self.images_dir();
        let reading = || format!("reading the library {}", dir.display());
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(reading)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.with_context(reading)?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// One image, checked.
    ///
    /// # Errors
    /// If there is none of that name, or it is damaged: what is wrong with it, and what to do.
    pub fn image(&self, name: &str) -> anyhow::Result<Image> {
        check_name(name)?;
        let dir = self.images_dir().join(name);
        if !dir.is_dir() {
            bail!(
                "there is no image {name:?} in {}: `ezio image list --library {}` shows what there is",
                self.dir.display(),
                self.dir.display()
            );
        }
        load(name, dir).with_context(|| format!("image {name:?} cannot be used"))
    }

    /// Starts a new image. `replace` allows an image of that name to be there already; it stays until the end.
    ///
    /// # Errors
    /// If the name is bad or taken, that image is needed by machines, or another process is making an image of that name.
    pub fn draft(&self, name: &str, replace: bool) -> anyhow::Result<Draft> {
        check_name(name)?;
        let _busy = self.lock()?;
        self.clear_dead_drafts()?;
        self.check_free(name, replace)?;
        let lock = self.lock_name(name)?;
        let dir = self.work_dir().join(name);
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let locks = vec![lock];
        let draft = Draft { library: self.clone(), name: name.to_owned(), dir, replace, is_kept: false, locks };
        if replace && fs::symlink_metadata(self.images_dir().join(name)).is_ok() {
            ensure!(
                can_exchange(&draft.scratch()?)?,
                "the file system of {} cannot put one image in the place of another in one step (NFS cannot): choose \
                 another name, or run `ezio image remove {name}` first",
                self.dir.display()
            );
        }
        Ok(draft)
    }

    /// Takes an image out of the library, damaged or not. What a server seeds of it ends.
    ///
    /// # Errors
    /// If there is none of that name, machines need it, or it cannot be deleted.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        check_name(name)?;
        let library = Library::create(&self.dir)?;
        let _busy = library.lock()?;
        library.clear_dead_drafts()?;
        let dir = self.images_dir().join(name);
        if fs::symlink_metadata(&dir).is_err() {
            bail!("there is no image {name:?} in {}", self.dir.display());
        }
        refuse_if_needed(&library, name, "")?;
        let lock_path = self.locks_dir().join(name);
        let Some(_lock) = try_lock(&lock_path)? else {
            bail!("an image named {name:?} is being made right now: wait for that to end");
        };
        // Out of the list first, by one rename: what is listed is always whole.
        let trash = self.work_dir().join(name);
        fs::rename(&dir, &trash).with_context(|| format!("removing {}", dir.display()))?;
        sync_dir(&self.images_dir())?;
        remove_all(&trash)?;
        let _ = fs::remove_file(lock_path);
        Ok(())
    }

    /// Where the image of that name is, or would be; damaged ones as well.
    pub fn image_dir(&self, name: &str) -> PathBuf {
        self.images_dir().join(name)
    }

    fn images_dir(&self) -> PathBuf {
        self.dir.join("images")
    }

    fn work_dir(&self) -> PathBuf {
        self.dir.join("tmp/work")
    }

    fn locks_dir(&self) -> PathBuf {
        self.dir.join("tmp/locks")
    }

    /// Held for moments only: while a draft starts, ends, or dead ones are cleared.
    fn lock(&self) -> anyhow::Result<File> {
        let path = self.dir.join("tmp/lock");
        let file = open_lock(&path)?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    }

    /// Nobody else makes an image of that name meanwhile. The caller holds [`Library::lock`].
    fn lock_name(&self, name: &str) -> anyhow::Result<(PathBuf, File)> {
        let path = self.locks_dir().join(name);
        let Some(lock) = try_lock(&path)? else {
            bail!("another process is making an image named {name:?} right now: wait for it or choose another name");
        };
        Ok((path, lock))
    }

    /// Whether an image of that name can be listed.
    fn check_free(&self, name: &str, replace: bool) -> anyhow::Result<()> {
        if fs::symlink_metadata(self.images_dir().join(name)).is_err() {
            return Ok(());
        }
        ensure!(
            replace,
            "there already is an image named {name:?} in {}: choose another name, or say --replace",
            self.dir.display()
        );
        refuse_if_needed(self, name, ", or choose another name and arm that")
    }

    /// Deletes what killed processes left under `tmp/work`. The caller holds [`Library::lock`].
    fn clear_dead_drafts(&self) -> anyhow::Result<()> {
        let dir = self.work_dir();
        let reading = || format!("reading {}", dir.display());
        for entry in fs::read_dir(&dir).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let lock_path = self.locks_dir().join(entry.file_name());
            if let Some(_lock) = try_lock(&lock_path)? {
                log::info!("clearing away {}, left by an interrupted capture", entry.path().display());
                remove_all(&entry.path())?;
                let _ = fs::remove_file(lock_path);
            }
        }
        Ok(())
    }
}

impl Draft {
    /// The directory of the library it is for.
    pub fn library_dir(&self) -> &Path {
        self.library.dir()
    }

    /// A directory for what is needed meanwhile, made if it is not there; it is gone when the image is listed.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(SCRATCH);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(dir)
    }

    /// Where its content goes.
    pub fn content_path(&self) -> PathBuf {
        self.dir.join("content")
    }

    /// Writes torrent and manifest beside the content, flushes everything to the disk, checks it as a reader would,
    /// and only then lists it.
    ///
    /// # Errors
    /// If a file cannot be written or flushed, or the image would not load.
    pub fn publish(mut self, torrent_bytes: &[u8], manifest: &Manifest) -> anyhow::Result<Image> {
        remove_all(&self.dir.join(SCRATCH))?;
        write_synced(&self.dir.join("image.torrent"), torrent_bytes)?;
        write_synced(&self.dir.join("manifest.json"), &manifest.to_json())?;
        if manifest.live.is_none() {
            let content = self.content_path();
            File::open(&content)
                .and_then(|file| file.sync_all())
                .with_context(|| format!("flushing {}", content.display()))?;
        }
        sync_dir(&self.dir)?;
        load(&self.name, self.dir.clone()).context("checking the finished image")?;

        let _busy = self.library.lock()?;
        // Once more: hours may have passed.
        self.library.check_free(&self.name, self.replace)?;
        let images = self.library.images_dir();
        let to = images.join(&self.name);
        let listing = || format!("moving the finished image to {}", to.display());
        if self.replace && fs::symlink_metadata(&to).is_ok() {
            // Old and new change places in one step; the old one is then this draft's and goes when it is dropped.
            renameat2(AT_FDCWD, &self.dir, AT_FDCWD, &to, RenameFlags::RENAME_EXCHANGE).with_context(listing)?;
        } else {
            match renameat2(AT_FDCWD, &self.dir, AT_FDCWD, &to, RenameFlags::RENAME_NOREPLACE) {
                // A file system that knows no flags, such as NFS; who else would make it holds the library's lock.
                Err(Errno::EINVAL) => fs::rename(&self.dir, &to).with_context(listing)?,
                renamed => renamed.with_context(listing)?,
            }
        }
        self.is_kept = false;
        sync_dir(&images)?;
        load(&self.name, to)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Lock files are deleted under the library's lock only, or two processes could hold "the same" one.
        let _busy = self.library.lock().inspect_err(|error| log::warn!("{error:#}")).ok();
        let is_empty = fs::metadata(self.content_path()).map_or(true, |content| content.len() == 0);
        if (!self.is_kept || is_empty)
            && let Err(error) = remove_all(&self.dir)
        {
            log::warn!("{error:#}");
        }
        for (path, _held) in &self.locks {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether the file system of `dir` can exchange two directories.
fn can_exchange(dir: &Path) -> anyhow::Result<bool> {
    let [old, new] = ["old", "new"].map(|name| dir.join(name));
    for dir in [&old, &new] {
        fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let exchanged = renameat2(AT_FDCWD, &old, AT_FDCWD, &new, RenameFlags::RENAME_EXCHANGE);
    for dir in [&old, &new] {
        fs::remove_dir(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    match exchanged {
        Err(Errno::EINVAL) => Ok(false),
        exchanged => exchanged.map(|()| true).with_context(|| format!("exchanging directories in {}", dir.display())),
    }
}

/// Whether `name` can be an image's.
///
/// # Errors
/// What names have to look like.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let is_good = (1..=NAME_LEN_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    ensure!(
        is_good,
        "{name:?} cannot be an image's name: use 1 to {NAME_LEN_MAX} of A-Z a-z 0-9 . _ - and no dot in front"
    );
    Ok(())
}

fn load(name: &str, dir: PathBuf) -> anyhow::Result<Image> {
    let torrent_bytes = Bytes::from(read_limited(&dir.join("image.torrent"), TORRENT_LEN_MAX)?);
    let meta = Metainfo::parse(&torrent_bytes).context("reading image.torrent")?;
    let layout = Layout::new(&meta).context("reading image.torrent")?;
    let manifest = read_limited(&dir.join("manifest.json"), MANIFEST_LEN_MAX)?;
    let manifest = Manifest::parse(&manifest).context("reading manifest.json")?;
    if manifest.infohash != meta.infohash.to_string() {
        bail!("manifest.json belongs to infohash {}, image.torrent is {}", manifest.infohash, meta.infohash);
    }
    if manifest.live.is_none() {
        check_content(&dir.join("content"), layout.content_len())?;
    }
    Ok(Image { name: name.to_owned(), dir, meta: Arc::new(meta), layout, torrent_bytes, manifest })
}

fn check_content(content: &Path, wanted: u64) -> anyhow::Result<()> {
    let found = fs::metadata(content).with_context(|| format!("opening {}", content.display()))?;
    ensure!(found.is_file(), "{} is not a regular file", content.display());
    ensure!(
        found.len() == wanted,
        "{} has {} bytes instead of {wanted}: the image is damaged, so remove it and capture it again",
        content.display(),
        found.len()
    );
    Ok(())
}

/// Reads a file that may have at most `limit` bytes.
///
/// # Errors
/// If it cannot be read or is longer.
pub fn read_limited(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    regular::read_limited(&file, path, limit)
}

fn no_library(dir: &Path) -> String {
    format!("there is no library at {}: give its directory with --library; `ezio capture` makes one", dir.display())
}

fn open_lock(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    opened.with_context(|| format!("opening the lock {}", path.display()))
}

fn try_lock(path: &Path) -> anyhow::Result<Option<File>> {
    let file = open_lock(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written = File::create_new(path).and_then(|mut file| {
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    });
    written.with_context(|| format!("writing {}", path.display()))
}

fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("flushing the directory {}", dir.display()))
}

fn remove_all(path: &Path) -> anyhow::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("deleting {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use metainfo::{FileEntry, NewTorrent};

    use super::*;
    use crate::armed::{Armed, Order, Scope};
    use crate::manifest::SCHEMA;

    fn image() -> (Vec<u8>, Manifest) {
        let torrent = NewTorrent {
            name: "root".into(),
            announce: None,
            piece_len: 16384,
            files: vec![FileEntry { length: 512, path: vec!["0".into()] }],
            hashes: vec![[7; 20]],
            facts: None,
            private: true,
        };
        let bytes = torrent.to_bytes().expect("sane");
        let infohash = Metainfo::parse(&bytes).expect("own torrent").infohash.to_string();
        (bytes, Manifest { schema: SCHEMA, content_len: 512, infohash, ..Manifest::default() })
    }

    fn publish(draft: Draft, byte: u8) -> anyhow::Result<Image> {
        fs::write(draft.content_path(), [byte; 512])?;
        let (torrent, manifest) = image();
        draft.publish(&torrent, &manifest)
    }

    #[test]
    fn what_is_armed_is_neither_replaced_nor_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::create(dir.path()).expect("made");
        let first = publish(library.draft("debian", false).expect("free"), 1).expect("listed");
        let before = library.draft("debian", true).expect("nothing is armed");
        let order = Order {
            scope: Scope::All,
            image: Some("debian".into()),
            deployment: String::new(),
            target: None,
            after: None,
            linger: None,
            conf: BTreeMap::new(),
            at: 0,
        };
        Armed::update(&library.state_dir(), |armed| armed.arm(order)).expect("written");
        let refused = |error: anyhow::Error| {
            let said = format!("{error:#}");
            assert!(said.contains("\"debian\" is armed") && said.contains("run `ezio disarm` first"), "{said}");
        };
        refused(publish(before, 2).expect_err("armed since it began"));
        refused(library.draft("debian", true).expect_err("armed"));
        let infohash = first.meta.infohash;
        refused(library.resumable_draft(infohash, "debian", true, "http://b/").expect_err("armed"));
        refused(library.remove("debian").expect_err("armed"));
        assert_eq!(fs::read(first.content_path()).expect("there"), [1; 512], "the old one is listed and whole");
        assert!(library.draft("debian", false).expect_err("taken").to_string().contains("already is an image"));
        publish(library.draft("other", true).expect("free"), 3).expect("another name is another image");

        Armed::update(&library.state_dir(), |armed| armed.disarm(&Scope::All)).expect("written");
        publish(library.draft("debian", true).expect("nothing is armed"), 2).expect("listed");
        assert_eq!(fs::read(first.content_path()).expect("there"), [2; 512]);
        library.remove("debian").expect("nothing is armed");
        assert_eq!(fs::read_dir(library.work_dir()).expect("read").count(), 0);
    }
}

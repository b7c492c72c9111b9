//! The directory of images: what is listed, and how an image appears and disappears.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::draft::Draft;
use crate::files::{can_exchange, make_dirs, open_lock, remove_all, sync_dir, try_lock, write_synced};
use crate::image::{Image, check_name, load};

/// Where a library is unless told otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/ezio";
/// So many names are listed where one is not found.
const NAMES_SHOWN: usize = 20;

/// A directory of images.
#[derive(Clone, Debug)]
pub struct Library {
    pub(crate) dir: PathBuf,
    /// Where its state is, if that is elsewhere.
    state: Option<PathBuf>,
}

/// One line of the library's list.
#[derive(Debug)]
pub struct ImageEntry {
    /// Its name: the directory's.
    pub name: String,
    /// The image, or why it cannot be used.
    pub image: anyhow::Result<Image>,
}

/// Asks why machines may need the image of that name now; `None` if they do not. Only a server knows, so it is asked
/// before an image is removed or replaced: without it, machines that fetch it would lose their seeder, or a room would end up
/// with two versions.
pub type Guard = fn(library: &Library, image: &str) -> anyhow::Result<Option<&'static str>>;

impl Library {
    /// Opens an existing library.
    ///
    /// # Errors
    /// If there is no such directory.
    pub fn open(dir: impl Into<PathBuf>) -> anyhow::Result<Library> {
        let dir = dir.into();
        let is_dir = fs::metadata(&dir).with_context(|| no_library(&dir))?.is_dir();
        ensure!(is_dir, "the library {} is not a directory: give the directory that holds images/", dir.display());
        Ok(Library { dir, state: None })
    }

    /// The library in a directory that may not be there.
    pub fn at(dir: impl Into<PathBuf>) -> Library {
        Library { dir: dir.into(), state: None }
    }

    /// The same library, with what the server remembers in another directory; `None` for its own.
    pub fn with_state(self, state: Option<PathBuf>) -> Library {
        Library { state, ..self }
    }

    /// Makes the directory for what the server remembers, if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn make_state_dir(&self) -> anyhow::Result<()> {
        make_dirs(&self.state_dir())
    }

    /// Opens a library, making its directories if they are not there.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn create(dir: impl Into<PathBuf>) -> anyhow::Result<Library> {
        let library = Library::create_images(dir)?;
        library.make_state_dir()?;
        Ok(library)
    }

    /// The same, without a directory for what the server remembers.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn create_images(dir: impl Into<PathBuf>) -> anyhow::Result<Library> {
        let library = Library::at(dir);
        for dir in [library.images_dir(), library.work_dir(), library.locks_dir()] {
            make_dirs(&dir)?;
        }
        Ok(library)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the server keeps what it remembers; made if missing by [`Library::create`].
    pub fn state_dir(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| self.dir.join("state"))
    }

    /// Whether its state is where a library has it of itself.
    pub fn has_own_state(&self) -> bool {
        self.state.is_none()
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
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let shown = dir.display();
                return Err(error).with_context(|| {
                    format!(
                        "reading the library {shown}, which is for its owner alone: run this as that user, or with sudo"
                    )
                });
            }
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
        match fs::symlink_metadata(&dir) {
            Ok(found) if found.is_symlink() => bail!(
                "image {name:?} cannot be used: {} is a symbolic link, and what it leads to may be anything; move the \
                 directory itself there, or name the library that it is in with --library",
                dir.display()
            ),
            Ok(found) if found.is_dir() => {}
            _ => bail!("there is no image {name:?} in {} ({})", self.dir.display(), self.instead_of(name)),
        }
        load(name, dir).with_context(|| format!("image {name:?} cannot be used"))
    }

    /// What to name in place of a name that no image has.
    fn instead_of(&self, name: &str) -> String {
        let names = self.names().unwrap_or_default();
        match order::nearest(name, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near:?}? `ezio image list` shows all"),
            None if names.is_empty() => "the library is empty; `ezio capture` makes one".to_owned(),
            None if names.len() <= NAMES_SHOWN => format!("there are: {}", names.join(", ")),
            None => format!("there are {}; `ezio image list` shows them", names.len()),
        }
    }

    /// Starts a new image. `replace` allows an image of that name to be there already; it stays until the end.
    ///
    /// # Errors
    /// If the name is bad or taken, that image is needed by machines, or another process is making an image of that name.
    pub fn draft(&self, name: &str, replace: bool, guard: Guard) -> anyhow::Result<Draft> {
        check_name(name)?;
        let _busy = self.lock()?;
        self.clear_dead_drafts()?;
        self.check_free(name, replace, guard)?;
        let lock = self.lock_name(name)?;
        let dir = self.work_dir().join(name);
        make_dirs(&dir)?;
        let locks = vec![lock];
        let draft = Draft { library: self.clone(), name: name.to_owned(), dir, replace, guard, is_kept: false, locks };
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
    pub fn remove(&self, name: &str, guard: Guard) -> anyhow::Result<()> {
        check_name(name)?;
        let library = Library::create(&self.dir)?.with_state(self.state.clone());
        let _busy = library.lock()?;
        library.clear_dead_drafts()?;
        let dir = self.images_dir().join(name);
        if fs::symlink_metadata(&dir).is_err() {
            bail!("there is no image {name:?} in {}", self.dir.display());
        }
        refuse_if_needed(&library, name, guard, "")?;
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

    /// Writes an image's manifest again, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_manifest(&self, image: &Image) -> anyhow::Result<()> {
        let (new, path) = (image.dir.join("manifest.json.new"), image.dir.join("manifest.json"));
        write_synced(&new, &image.manifest.to_json())?;
        fs::rename(&new, &path).with_context(|| format!("replacing {}", path.display()))?;
        sync_dir(&image.dir)
    }

    /// Where the image of that name is, or would be; damaged ones as well.
    pub fn image_dir(&self, name: &str) -> PathBuf {
        self.images_dir().join(name)
    }

    pub(crate) fn images_dir(&self) -> PathBuf {
        self.dir.join("images")
    }

    pub(crate) fn work_dir(&self) -> PathBuf {
        self.dir.join("tmp/work")
    }

    pub(crate) fn locks_dir(&self) -> PathBuf {
        self.dir.join("tmp/locks")
    }

    /// Held for moments only: while a draft starts, ends, or dead ones are cleared.
    pub(crate) fn lock(&self) -> anyhow::Result<File> {
        let path = self.dir.join("tmp/lock");
        let file = open_lock(&path)?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    }

    /// Nobody else makes an image of that name meanwhile. The caller holds [`Library::lock`].
    pub(crate) fn lock_name(&self, name: &str) -> anyhow::Result<(PathBuf, File)> {
        let path = self.locks_dir().join(name);
        let Some(lock) = try_lock(&path)? else {
            bail!("another process is making an image named {name:?} right now: wait for it or choose another name");
        };
        Ok((path, lock))
    }

    /// Whether an image of that name can be listed.
    pub(crate) fn check_free(&self, name: &str, replace: bool, guard: Guard) -> anyhow::Result<()> {
        if fs::symlink_metadata(self.images_dir().join(name)).is_err() {
            return Ok(());
        }
        ensure!(
            replace,
            "there already is an image named {name:?} in {}: choose another name, or say --replace",
            self.dir.display()
        );
        refuse_if_needed(self, name, guard, ", or choose another name and arm that")
    }

    /// Deletes what killed processes left under `tmp/work`. The caller holds [`Library::lock`].
    pub(crate) fn clear_dead_drafts(&self) -> anyhow::Result<()> {
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

/// The image that a person means by a name in `library`, or by the path of its `image.torrent`. `None` if it is the
/// path of a torrent elsewhere.
///
/// # Errors
/// If it is neither a file nor such a name, or the image is damaged.
pub fn image_meant_by(what: &Path, library: &Path) -> anyhow::Result<Option<Image>> {
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

/// Fails if machines may be fetching the image of that name; `or_else` is what else could be done than `ezio disarm`.
fn refuse_if_needed(library: &Library, name: &str, guard: Guard, or_else: &str) -> anyhow::Result<()> {
    match guard(library, name)? {
        None => Ok(()),
        Some(why) => {
            bail!("image {name:?} {why}: machines may be fetching it, so run `ezio disarm` first{or_else}")
        }
    }
}

fn no_library(dir: &Path) -> String {
    format!("there is no library at {}: give its directory with --library; `ezio capture` makes one", dir.display())
}

#[cfg(test)]
mod tests {
    use metainfo::{FileEntry, Metainfo, NewTorrent};

    use super::*;
    use crate::manifest::{Manifest, SCHEMA};

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

    /// Machines need what is named in a file of the test's.
    fn guard(library: &Library, name: &str) -> anyhow::Result<Option<&'static str>> {
        let needed = fs::read_to_string(library.state_dir().join("needed")).unwrap_or_default();
        Ok((needed == name).then_some("is armed"))
    }

    #[test]
    fn what_machines_need_is_neither_replaced_nor_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::create(dir.path()).expect("made");
        let first = publish(library.draft("debian", false, guard).expect("free"), 1).expect("listed");
        let before = library.draft("debian", true, guard).expect("nothing is needed");
        fs::write(library.state_dir().join("needed"), "debian").expect("written");
        let refused = |error: anyhow::Error| {
            let said = format!("{error:#}");
            assert!(said.contains("\"debian\" is armed") && said.contains("run `ezio disarm` first"), "{said}");
        };
        refused(publish(before, 2).expect_err("needed since it began"));
        refused(library.draft("debian", true, guard).expect_err("needed"));
        let infohash = first.meta.infohash;
        refused(library.resumable_draft(infohash, "debian", true, "http://b/", guard).expect_err("needed"));
        refused(library.remove("debian", guard).expect_err("needed"));
        assert_eq!(fs::read(first.content_path()).expect("there"), [1; 512], "the old one is listed and whole");
        assert!(library.draft("debian", false, guard).expect_err("taken").to_string().contains("already is an image"));
        publish(library.draft("other", true, guard).expect("free"), 3).expect("another name is another image");

        fs::remove_file(library.state_dir().join("needed")).expect("removed");
        publish(library.draft("debian", true, guard).expect("nothing is needed"), 2).expect("listed");
        assert_eq!(fs::read(first.content_path()).expect("there"), [2; 512]);
        library.remove("debian", guard).expect("nothing is needed");
        assert_eq!(fs::read_dir(library.work_dir()).expect("read").count(), 0);
    }

    #[test]
    fn compressed_content_is_read_plain_and_has_to_be_its_own() {
        use crate::manifest::{Compressed, Format};

        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::create(dir.path().join("library")).expect("made");
        let draft = library.draft("debian", false, guard).expect("free");
        let mut file = Vec::new();
        let packed = frames::Packer::new(3).expect("memory").pack(&[7; 512], &mut file).expect("memory");
        let mut table = frames::TableWriter::default();
        table.push(packed, 512).expect("one");
        file.extend_from_slice(&table.finish());
        fs::write(draft.compressed_path(), &file).expect("written");
        let (torrent, manifest) = image();
        let stored_len = file.len() as u64;
        let compressed = Compressed { format: Format::ZstdSeekable, stored_len, frame_len: 16 << 10 };
        let image = draft.publish(&torrent, &manifest.stored(Some(compressed))).expect("listed");
        assert_eq!((image.stored_len(), image.ratio()), (stored_len, Some(512.0 / stored_len as f64)));
        let piece = image.meta.geometry.piece(0).expect("one");
        let mut bytes = [0; 100];
        crate::content::open_image(&image).expect("whole").read(piece, 50, &mut bytes).expect("inside");
        assert_eq!(bytes, [7; 100]);

        let (path, elsewhere) = (image.content_path(), dir.path().join("elsewhere"));
        fs::hard_link(&path, &elsewhere).expect("linked");
        let said = format!("{:#}", library.image("debian").expect_err("not its own"));
        assert!(said.contains("hard link") && said.contains("content.zst"), "{said}");
        assert!(crate::content::open_image(&image).is_err());
        fs::remove_file(&elsewhere).expect("removed");
        fs::write(&path, &file[1..]).expect("written");
        let said = format!("{:#}", library.image("debian").expect_err("cut short"));
        assert!(said.contains("the image is damaged"), "{said}");
        fs::write(&path, [&file[..file.len() - 1], &[0]].concat()).expect("written");
        let said = format!("{:#}", crate::content::open_image(&image).err().expect("no table"));
        assert!(said.contains("does not end with a table of frames") && said.contains("content.zst"), "{said}");
    }

    #[test]
    fn what_an_image_is_made_of_is_in_its_own_directory() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::create(dir.path().join("library")).expect("made");
        let image = publish(library.draft("debian", false, guard).expect("free"), 1).expect("listed");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!([mode(&image.dir), mode(&image.content_path())], [0o700, 0o600], "for its owner alone");
        crate::content::open_image(&image).expect("whole");
        let elsewhere = dir.path().join("elsewhere");
        let links: [fn(&Path, &Path) -> io::Result<()>; 2] = [|to, at| symlink(to, at), |to, at| fs::hard_link(to, at)];
        for name in ["content", "image.torrent", "manifest.json"] {
            let file = image.dir.join(name);
            for (link, what) in links.iter().zip(["symbolic link", "hard link"]) {
                fs::rename(&file, &elsewhere).expect("moved");
                link(&elsewhere, &file).expect("linked");
                let said = format!("{:#}", library.image("debian").expect_err("not its own"));
                assert!(said.contains(what) && said.contains(name), "{said}");
                // Also after it was found good.
                assert_eq!(crate::content::open_image(&image).is_err(), name == "content");
                fs::remove_file(&file).expect("removed");
                fs::rename(&elsewhere, &file).expect("moved back");
            }
        }
        library.image("debian").expect("whole again");
        symlink(&image.dir, library.image_dir("again")).expect("linked");
        let said = library.image("again").expect_err("a link").to_string();
        assert!(said.contains("symbolic link") && said.contains("--library"), "{said}");
    }
}

//! Small files that are rewritten where they are: that needs no free space.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file of a fixed length whose text is filled up with newlines.
#[derive(Debug)]
pub struct InPlace {
    path: PathBuf,
    len: usize,
}

impl InPlace {
    /// The file at a path, of `len` bytes.
    pub fn new(path: PathBuf, len: usize) -> InPlace {
        InPlace { path, len }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the space that it will ever need, if it is not there yet.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn reserve(&self) -> io::Result<()> {
        match self.open(false) {
            Ok(file) if file.metadata()?.len() >= self.len as u64 => Ok(()),
            Ok(file) => self.fill(&file, &self.read().unwrap_or_default()).and_then(|()| file.sync_data()),
            Err(_) => {
                let file = self.open(true)?;
                self.fill(&file, "")?;
                file.sync_data()
            }
        }
    }

    /// Replaces its text.
    ///
    /// # Errors
    /// If it cannot be written, or the text is too long.
    pub fn write(&self, text: &str) -> io::Result<()> {
        let file = self.open(true)?;
        self.fill(&file, text)?;
        file.sync_data()
    }

    /// The same, and a power cut may undo it.
    ///
    /// # Errors
    /// As of [`InPlace::write`].
    pub fn write_unsynced(&self, text: &str) -> io::Result<()> {
        self.fill(&self.open(true)?, text)
    }

    /// Its text without what fills it up; `""` if there is no file.
    ///
    /// # Errors
    /// If it cannot be read, or is no text.
    pub fn read(&self) -> io::Result<String> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            file => file?,
        };
        let mut bytes = vec![0; self.len];
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        bytes.truncate(read);
        let text = String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    fn open(&self, create: bool) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(&self.path)
    }

    fn fill(&self, file: &File, text: &str) -> io::Result<()> {
        if text.len() > self.len {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the text is too long for its file"));
        }
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(self.len, b'\n');
        file.write_all_at(&bytes, 0)
    }
}

//! Where librqbit puts what it fetches: one flat file, in which a torrent's file starts where the ones before it end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use librqbit::storage::{BoxStorageFactory, StorageFactory, StorageFactoryExt, TorrentStorage};
use librqbit::{ManagedTorrentShared, TorrentMetadata};
use metainfo::Metainfo;

/// The content file of an image in the making.
#[derive(Debug)]
pub struct Content {
    file: File,
    /// Where each of the torrent's files starts, and after the last where the content ends.
    starts: Vec<u64>,
    /// What went wrong first in writing; librqbit passes it on as text only.
    failure: Mutex<Option<io::Error>>,
}

impl Content {
    /// For this torrent; lengths were checked when it was parsed.
    pub fn new(file: File, meta: &Metainfo) -> Content {
        let mut starts = Vec::with_capacity(meta.files.len() + 1);
        let mut end = 0;
        starts.push(end);
        for entry in &meta.files {
            end += entry.length;
            starts.push(end);
        }
        Content { file, starts, failure: Mutex::default() }
    }

    /// What went wrong in writing, once.
    pub fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The place of `len` bytes at `offset` in a file of the torrent.
    fn place(&self, file_id: usize, offset: u64, len: usize) -> anyhow::Result<u64> {
        let range = self.starts.get(file_id).zip(self.starts.get(file_id + 1));
        let (start, end) = range.context("the torrent has no such file")?;
        let at = start.checked_add(offset).context("past the end of a file")?;
        let past = at.checked_add(u64::try_from(len)?).filter(|past| past <= end);
        past.map(|_| at).context("past the end of a file")
    }
}

/// A handle on the content, and the maker of such handles.
#[derive(Clone, Debug)]
pub struct FlatStorage(Arc<Content>);

impl FlatStorage {
    /// As librqbit takes it.
    pub fn factory(content: Arc<Content>) -> BoxStorageFactory {
        FlatStorage(content).boxed()
    }
}

impl StorageFactory for FlatStorage {
    type Storage = FlatStorage;

    fn create(&self, _shared: &ManagedTorrentShared, _metadata: &TorrentMetadata) -> anyhow::Result<FlatStorage> {
        Ok(self.clone())
    }

    fn clone_box(&self) -> BoxStorageFactory {
        self.clone().boxed()
    }
}

impl TorrentStorage for FlatStorage {
    fn init(&mut self, _shared: &ManagedTorrentShared, _metadata: &TorrentMetadata) -> anyhow::Result<()> {
        Ok(())
    }

    fn pread_exact(&self, file_id: usize, offset: u64, buf: &mut [u8]) -> anyhow::Result<()> {
        let at = self.0.place(file_id, offset, buf.len())?;
        Ok(self.0.file.read_exact_at(buf, at)?)
    }

    fn pwrite_all(&self, file_id: usize, offset: u64, buf: &[u8]) -> anyhow::Result<()> {
        let at = self.0.place(file_id, offset, buf.len())?;
        self.0.file.write_all_at(buf, at).map_err(|error| {
            let text = error.to_string();
            self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            anyhow::anyhow!(text)
        })
    }

    fn remove_file(&self, _file_id: usize, _filename: &Path) -> anyhow::Result<()> {
        Ok(())
    }

    fn remove_directory_if_empty(&self, _path: &Path) -> anyhow::Result<()> {
        Ok(())
    }

    /// The content grows as it comes, and no further.
    fn ensure_file_length(&self, _file_id: usize, _length: u64) -> anyhow::Result<()> {
        Ok(())
    }

    fn take(&self) -> anyhow::Result<Box<dyn TorrentStorage>> {
        Ok(Box::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metainfo::{FileEntry, NewTorrent};

    #[test]
    fn files_lie_end_to_end_and_nothing_is_written_past_them() {
        let torrent = NewTorrent {
            name: "root".into(),
            announce: None,
            piece_len: 16384,
            files: vec![
                FileEntry { length: 10, path: vec!["0".into()] },
                FileEntry { length: 7, path: vec!["1000".into()] },
            ],
            hashes: vec![[0; 20]],
            facts: None,
            private: true,
        };
        let meta = Metainfo::parse(&torrent.to_bytes().expect("sane")).expect("own");
        let file = tempfile::tempfile().expect("a file");
        let storage = FlatStorage(Arc::new(Content::new(file.try_clone().expect("open"), &meta)));
        storage.pwrite_all(1, 2, b"abc").expect("fits");
        storage.pwrite_all(0, 9, b"z").expect("fits");
        let mut buf = [0; 6];
        file.read_exact_at(&mut buf, 9).expect("written");
        assert_eq!(&buf, b"z\0\0abc");
        for (file_id, offset, len) in [(0, 9, 2), (0, 10, 1), (1, 7, 1), (2, 0, 1), (0, u64::MAX, 1), (9, 0, 0)] {
            assert!(storage.pwrite_all(file_id, offset, &vec![1; len]).is_err(), "{file_id} {offset}");
        }
        assert_eq!(file.metadata().expect("open").len(), 15);
        assert!(storage.pread_exact(1, 0, &mut [0; 7]).is_err(), "not there yet");
        assert!(storage.0.take_failure().is_none());
    }
}

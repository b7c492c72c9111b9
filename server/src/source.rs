//! What a seeder reads from: the flat content of the library, or a directory of partclone's BT files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use metainfo::{Geometry, Metainfo, PieceIndex};
use swarm::Storage;

/// The concatenated content in one file.
#[derive(Debug)]
pub struct FlatContent {
    geometry: Geometry,
    file: File,
}

impl FlatContent {
    /// Opens it, and checks its length against the torrent's.
    ///
    /// # Errors
    /// If it is not there or of another length.
    pub fn open(path: &Path, geometry: Geometry) -> Result<FlatContent> {
        let opening = || format!("opening the content {}", path.display());
        let file = File::open(path).with_context(opening)?;
        let len = file.metadata().with_context(opening)?.len();
        if len != geometry.content_len() {
            let wanted = geometry.content_len();
            bail!(
                "{} has {len} bytes, the torrent describes {wanted}: it is not this torrent's content",
                path.display()
            );
        }
        Ok(FlatContent { geometry, file })
    }
}

impl Storage for FlatContent {
    fn write_piece(&self, _piece: PieceIndex, _data: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn read(&self, piece: PieceIndex, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, self.geometry.piece_range(piece).start + u64::from(offset))
    }
}

/// A directory as `partclone.<fs> -T` writes it: one file for each entry of the torrent, under the same name.
#[derive(Debug)]
pub struct BtFiles {
    geometry: Geometry,
    /// Path and first content byte of each file, in content order.
    files: Vec<(PathBuf, u64)>,
    content_len: u64,
}

impl BtFiles {
    /// Checks that every file of the torrent is in `dir`, with its length.
    ///
    /// # Errors
    /// The first file that is missing or of another length.
    pub fn open(dir: &Path, meta: &Metainfo) -> Result<BtFiles> {
        let mut files = Vec::with_capacity(meta.files.len());
        let mut start = 0;
        for entry in &meta.files {
            // Names are hex by now: the layout has been checked, so none of them leads out of `dir`.
            let path = dir.join(entry.path.join("/"));
            let len = path.metadata().with_context(|| format!("looking for {}", path.display()))?.len();
            if len != entry.length {
                bail!(
                    "{} has {len} bytes, the torrent says {}: it is not this torrent's",
                    path.display(),
                    entry.length
                );
            }
            files.push((path, start));
            start += entry.length;
        }
        Ok(BtFiles { geometry: meta.geometry, files, content_len: start })
    }
}

impl Storage for BtFiles {
    fn write_piece(&self, _piece: PieceIndex, _data: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn read(&self, piece: PieceIndex, offset: u32, mut buf: &mut [u8]) -> io::Result<()> {
        let mut at = self.geometry.piece_range(piece).start + u64::from(offset);
        let first = self.files.partition_point(|&(_, start)| start <= at).saturating_sub(1);
        for (index, (path, start)) in self.files.iter().enumerate().skip(first) {
            if buf.is_empty() {
                return Ok(());
            }
            let end = self.files.get(index + 1).map_or(self.content_len, |&(_, next)| next);
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(len);
            File::open(path)?.read_exact_at(now, at - start)?;
            at += u64::try_from(len).map_err(io::Error::other)?;
            buf = later;
        }
        if buf.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "a seeder's source is only read from")
}

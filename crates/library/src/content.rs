//! What a seeder reads from: the flat content of the library, the source of a live image, or a directory of partclone's BT files.

use std::borrow::Borrow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use frames::{ReadAt, Reader, has_table};
use layout::Layout;
use metainfo::{Geometry, PieceIndex};
use restore::DiskStore;
use swarm::Storage;

use crate::image::Image;
use crate::{live, regular};

/// Opens what an image of a library is seeded from: its content, or the source of a live image.
///
/// # Errors
/// If it is not there, or cannot be this image's.
pub fn open_image(image: &Image) -> Result<Arc<dyn Storage>> {
    let geometry = image.meta.geometry;
    Ok(match &image.manifest.live {
        None => Arc::new(FlatContent::of_image(image)?),
        Some(live) => {
            let device = Arc::new(live::open(live, &image.manifest)?);
            let sector_size = device.sector_size();
            image.layout.check_device(device.len(), sector_size).with_context(|| format!("looking at {live}"))?;
            Arc::new(DiskStore::complete(geometry, Arc::new(image.layout.clone()), device))
        }
    })
}

/// A content file, whatever form it is stored in: read at offsets of the plain content, by several threads at a time.
#[derive(Debug)]
pub struct ContentFile {
    form: Form,
}

#[derive(Debug)]
enum Form {
    Plain(File),
    Compressed(Reader<FramesFile<File>>),
}

/// The file that the frames are in.
#[derive(Debug)]
struct FramesFile<F>(F);

impl<F: Borrow<File>> ReadAt for FramesFile<F> {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.0.borrow().read_exact_at(buf, at)
    }
}

impl ContentFile {
    /// Takes an open file, which holds content of so many bytes as it is.
    ///
    /// # Errors
    /// If it is of another length.
    fn plain(file: File, path: &Path, content_len: u64) -> Result<ContentFile> {
        let len = length(&file, path)?;
        ensure!(
            len == content_len,
            "{} has {len} bytes, the torrent describes {content_len}: it is not this torrent's content",
            path.display()
        );
        Ok(ContentFile { form: Form::Plain(file) })
    }

    /// The same for compressed content.
    ///
    /// # Errors
    /// If it has no good table of frames, or holds another number of bytes.
    fn compressed(file: File, path: &Path, content_len: u64) -> Result<ContentFile> {
        let len = length(&file, path)?;
        let reader = Reader::open(FramesFile(file), len, content_len).with_context(|| {
            format!("{} cannot be used as content; if it is an image's, capture that again", path.display())
        })?;
        Ok(ContentFile { form: Form::Compressed(reader) })
    }

    /// Opens a new content file that was made compressed, to read it back.
    ///
    /// # Errors
    /// If it is not there, or no good content of so many bytes.
    pub fn open_compressed(path: &Path, content_len: u64) -> Result<ContentFile> {
        let file = regular::open_own(path).with_context(|| format!("opening the content {}", path.display()))?;
        ContentFile::compressed(file, path, content_len)
    }

    /// The same for one that was made plain.
    ///
    /// # Errors
    /// If it is not there, or of another length.
    pub fn open_plain(path: &Path, content_len: u64) -> Result<ContentFile> {
        let file = regular::open_own(path).with_context(|| format!("opening the content {}", path.display()))?;
        ContentFile::plain(file, path, content_len)
    }

    /// Fills `buf` with the plain content from byte `at` on.
    ///
    /// # Errors
    /// If the content ends before, or what is there cannot be read or unpacked.
    pub fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        match &self.form {
            Form::Plain(file) => file.read_exact_at(buf, at),
            Form::Compressed(reader) => reader.read_exact_at(buf, at),
        }
    }
}

fn length(file: &File, path: &Path) -> Result<u64> {
    let found = file.metadata().with_context(|| format!("opening the content {}", path.display()))?;
    Ok(found.len())
}

/// The concatenated content in one file.
#[derive(Debug)]
pub struct FlatContent {
    geometry: Geometry,
    file: ContentFile,
}

impl FlatContent {
    /// Opens a file that a person has named, plain or compressed, and checks its length against the torrent's.
    ///
    /// # Errors
    /// If it is not there, or holds another number of bytes.
    pub fn open(path: &Path, geometry: Geometry) -> Result<FlatContent> {
        let file = File::open(path).with_context(|| format!("opening the content {}", path.display()))?;
        let content_len = geometry.content_len();
        let is_plain = length(&file, path)? == content_len || !is_compressed(&file);
        let open = if is_plain { ContentFile::plain } else { ContentFile::compressed };
        Ok(FlatContent { geometry, file: open(file, path, content_len)? })
    }

    /// The same for what lies in a library: a link there may lead to any file of this machine.
    fn of_image(image: &Image) -> Result<FlatContent> {
        let path = image.content_path();
        let geometry = image.meta.geometry;
        let file = regular::open_own(&path).with_context(|| format!("opening the content {}", path.display()))?;
        let open = if image.manifest.compressed.is_some() { ContentFile::compressed } else { ContentFile::plain };
        Ok(FlatContent { geometry, file: open(file, &path, geometry.content_len())? })
    }
}

/// Whether a file is compressed content, by how it ends.
pub fn is_compressed(file: &File) -> bool {
    file.metadata().is_ok_and(|found| has_table(&FramesFile(file), found.len()))
}

impl Storage for FlatContent {
    fn write_piece(&self, _piece: PieceIndex, _data: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn read(&self, piece: PieceIndex, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, self.geometry.piece_range(piece).start + u64::from(offset))
    }
}

/// A directory as `partclone.<fs> -T` writes it: files named by their disk offset in hex, cut wherever partclone's buffer
/// ended, so one extent of the torrent may be several of them.
#[derive(Debug)]
pub struct BtFiles {
    geometry: Geometry,
    layout: Layout,
    /// First disk byte, the one past the last, and path; ascending.
    files: Vec<(Range<u64>, PathBuf)>,
}

impl BtFiles {
    /// Checks that the files in `dir` hold every byte of the image.
    ///
    /// # Errors
    /// The first stretch of disk that is in no file.
    pub fn open(dir: &Path, geometry: Geometry, layout: Layout) -> Result<BtFiles> {
        let reading = || format!("reading the directory {}", dir.display());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let name = entry.file_name();
            let start = name.to_str().and_then(|name| u64::try_from(u128::from_str_radix(name, 16).ok()?).ok());
            // torrent.info and the like lie beside the files.
            let Some(start) = start else { continue };
            let len = entry.metadata().and_then(|found| regular::len(&found));
            let end = start.saturating_add(len.with_context(|| format!("opening {}", entry.path().display()))?);
            files.push((start..end, entry.path()));
        }
        files.sort_by_key(|(range, _)| range.start);
        let source = BtFiles { geometry, layout, files };
        for extent in source.layout.extents() {
            let mut at = extent.disk.0;
            while at < extent.end().0 {
                at = source
                    .file_at(at)
                    .with_context(|| {
                        format!(
                            "{} has no file with the bytes at disk offset {at:#x}: it is not this torrent's",
                            dir.display()
                        )
                    })?
                    .0
                    .end;
            }
        }
        Ok(source)
    }

    /// The file that holds this byte of the disk.
    fn file_at(&self, disk_offset: u64) -> Option<&(Range<u64>, PathBuf)> {
        let index = self.files.partition_point(|(range, _)| range.start <= disk_offset).checked_sub(1)?;
        self.files.get(index).filter(|(range, _)| range.contains(&disk_offset))
    }
}

impl Storage for BtFiles {
    fn write_piece(&self, _piece: PieceIndex, _data: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn read(&self, piece: PieceIndex, offset: u32, mut buf: &mut [u8]) -> io::Result<()> {
        let start = self.geometry.piece_range(piece).start + u64::from(offset);
        let end = start + u64::try_from(buf.len()).map_err(io::Error::other)?;
        for part in self.layout.on_disk(start..end).map_err(io::Error::other)? {
            let mut disk_offset = part.disk.0;
            while disk_offset < part.disk.0 + part.len {
                let (range, path) = self.file_at(disk_offset).ok_or(io::ErrorKind::UnexpectedEof)?;
                let here = range.end.min(part.disk.0 + part.len) - disk_offset;
                let (now, later) = buf.split_at_mut(usize::try_from(here).map_err(io::Error::other)?);
                regular::open(path)?.read_exact_at(now, disk_offset - range.start)?;
                disk_offset += here;
                buf = later;
            }
        }
        Ok(())
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "a seeder's source is only read from")
}

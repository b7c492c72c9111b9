//! `ezio image export`: an image as a disk image file, or its torrent.

use std::collections::VecDeque;
use std::fs::{self, File, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail, ensure};
use clap::Args;
use layout::DiskOffset;
use tempfile::NamedTempFile;

use capture::content::write_sparse;
use capture::pipeline::{Job, default_threads};
use capture::refuse_to_destroy;
use library::content::open_image;
use library::space::check_room;
use library::{Image, Library};
use terminal::Progress;
use terminal::stop_on_signals;

/// How much nothing is written to a pipe at a time, in bytes.
const ZEROS_LEN: usize = 1 << 20;
/// Of a file that nobody had before; the umask takes away from it.
const FILE_MODE: u32 = 0o666;

/// Exports an image as a disk image, or its torrent.
#[derive(Debug, Args)]
pub struct Export {
    /// The image's name.
    name: String,
    /// Write the disk here as a raw image, sparse and as large as the disk was; - writes it to standard output. What
    /// was not captured reads as zeros. To write it to a disk use `ezio restore`.
    #[arg(long, value_name = "FILE|-", required_unless_present = "torrent")]
    raw: Option<PathBuf>,
    /// Write the .torrent here.
    #[arg(long, value_name = "FILE")]
    torrent: Option<PathBuf>,
    /// Replace files that are there.
    #[arg(long)]
    force: bool,
}

impl Export {
    /// Does it. A file is only there when it is whole.
    ///
    /// # Errors
    /// What went wrong, in words for the person at the terminal.
    pub fn run(self, library: &Path) -> anyhow::Result<()> {
        let image = Library::open(library)?.image(&self.name)?;
        let stop = stop_on_signals()?;
        let to_stdout = self.raw.as_deref() == Some(Path::new("-"));
        for file in self.raw.iter().filter(|_| !to_stdout).chain(&self.torrent) {
            self.check_target(file, &image, library)?;
        }
        if let Some(file) = &self.torrent {
            let mut draft = beside(file)?;
            draft.write_all(&image.torrent_bytes).with_context(|| format!("writing {}", file.display()))?;
            self.keep(draft, file)?;
            if !to_stdout {
                say!("wrote {}, infohash {}", file.display(), image.meta.infohash);
            }
        }
        match &self.raw {
            None => {}
            Some(_) if to_stdout => {
                ensure!(
                    !io::stdout().is_terminal(),
                    "a terminal cannot take a disk image: redirect the output, or name a file"
                );
                // Not through Stdout, which looks for lines.
                let out = io::stdout().as_fd().try_clone_to_owned().context("opening standard output")?;
                export(&image, &mut Pipe { out: File::from(out), at: 0 }, stop)?;
            }
            Some(file) => {
                let draft = beside(file)?;
                check_room(directory(file), image.layout.content_len())?;
                export(&image, &mut Sparse { file: draft.as_file() }, stop)?;
                self.keep(draft, file)?;
                let size = image.manifest.disk_size;
                let used = units::size(image.layout.content_len());
                say!("wrote {}, a disk of {} with {used} in use", file.display(), units::size(size));
            }
        }
        Ok(())
    }

    fn check_target(&self, file: &Path, image: &Image, library: &Path) -> anyhow::Result<()> {
        let shown = file.display();
        let not_written = || format!("{shown} was not written");
        let Ok(found) = fs::metadata(file) else {
            return refuse_to_destroy(file, &[library]).with_context(not_written);
        };
        let torrent = image.dir.join("image.torrent");
        ensure!(
            !found.file_type().is_block_device(),
            "{shown} is a disk: `ezio restore {} {shown}` writes an image to a disk, and proves it",
            torrent.display()
        );
        ensure!(found.is_file(), "{shown} is not a file");
        ensure!(self.force, "{shown} is there already: choose another name, or replace it with --force");
        refuse_to_destroy(file, &[library]).with_context(not_written)
    }

    /// Gives the file its name.
    fn keep(&self, draft: NamedTempFile, file: &Path) -> anyhow::Result<()> {
        let writing = || format!("writing {}", file.display());
        draft.as_file().sync_all().with_context(writing)?;
        let kept = if self.force { draft.persist(file) } else { draft.persist_noclobber(file) };
        kept.map(|_| ()).map_err(|error| error.error).with_context(writing)
    }
}

/// A file in the same directory, which is gone if it never gets its name.
fn beside(file: &Path) -> anyhow::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".ezio-export.").permissions(Permissions::from_mode(FILE_MODE));
    builder.tempfile_in(directory(file)).with_context(|| format!("making {}", file.display()))
}

fn directory(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where a disk goes. Writes come in ascending order.
trait Target: Send {
    /// Writes bytes at an offset of the disk.
    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// The disk has this many bytes.
    fn end(&mut self, len: u64) -> io::Result<()>;
}

/// A file that is all hole at first.
struct Sparse<'a> {
    file: &'a File,
}

impl Target for Sparse<'_> {
    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        write_sparse(self.file, bytes, at)
    }

    fn end(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

/// What can only be written from its start to its end.
struct Pipe<W> {
    out: W,
    at: u64,
}

impl<W: Write + Send> Target for Pipe<W> {
    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        if at < self.at {
            return Err(io::Error::other(format!("byte {at} of the disk comes twice")));
        }
        self.end(at)?;
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn end(&mut self, len: u64) -> io::Result<()> {
        let zeros = vec![0; ZEROS_LEN];
        while self.at < len {
            let now = usize::try_from(len - self.at).unwrap_or(ZEROS_LEN).min(ZEROS_LEN);
            self.out.write_all(&zeros[..now])?;
            self.at += now as u64;
        }
        self.out.flush()
    }
}

/// Writes the disk, and checks every piece on the way.
fn export(image: &Image, target: &mut impl Target, stop: &AtomicBool) -> anyhow::Result<()> {
    let storage = open_image(image)?;
    let geometry = image.meta.geometry;
    let disk_len = image.manifest.disk_size.max(image.layout.needed_len());
    let mut swap = swap_pages(image, disk_len)?;
    let writing = "writing the disk image: is the disk full?";
    let mut progress = Progress::new("exporting", geometry.content_len());
    let job = Job { geometry, threads: default_threads(), out: None, stop, progress: &mut progress };
    let hashes = job.hash(|range, buf| {
        let piece = geometry.piece_at(range.start).context("reading past the last piece")?;
        storage.read(piece, 0, buf).with_context(|| format!("reading the content at byte {}", range.start))?;
        let mut rest = &*buf;
        for part in image.layout.on_disk(range.clone())? {
            let (now, later) = rest.split_at(usize::try_from(part.len)?);
            while let Some((at, page)) = swap.pop_front_if(|(at, _)| *at < part.disk) {
                target.write(&page, at.0).context(writing)?;
            }
            target.write(now, part.disk.0).context(writing)?;
            rest = later;
        }
        Ok(())
    })?;
    for (at, page) in swap {
        target.write(&page, at.0).context(writing)?;
    }
    target.end(disk_len).context(writing)?;
    progress.finish();
    let mut bad = geometry.pieces().filter(|&piece| hashes[piece.as_usize()] != *image.meta.piece_hash(piece));
    if let Some(piece) = bad.next() {
        bail!("image {:?} is damaged: piece {piece} is bad; `ezio image verify {}` says more", image.name, image.name);
    }
    Ok(())
}

/// The headers of swap areas, which are no content; ascending.
fn swap_pages(image: &Image, disk_len: u64) -> anyhow::Result<VecDeque<(DiskOffset, Vec<u8>)>> {
    let mut pages = Vec::new();
    for facts in image.meta.facts.iter().flat_map(|facts| &facts.swap) {
        restore::check_swap(facts, &image.layout, disk_len).context("making a swap area")?;
        pages.push(restore::swap_page(facts).map_err(anyhow::Error::msg)?);
    }
    pages.sort_unstable_by_key(|(at, _)| *at);
    Ok(pages.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_fills_the_gaps() {
        let mut pipe = Pipe { out: Vec::new(), at: 0 };
        pipe.write(b"ab", 3).expect("memory");
        pipe.write(b"c", 5).expect("memory");
        pipe.write(b"d", 8).expect("memory");
        pipe.end(10).expect("memory");
        assert!(pipe.write(b"e", 9).is_err(), "there is no way back");
        assert_eq!(pipe.out, b"\0\0\0abc\0\0d\0");
    }
}

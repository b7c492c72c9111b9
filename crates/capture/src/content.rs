//! The file that receives an image's content.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use blockdev::ALIGN;

/// All-zero stretches of this many bytes are left as holes in the written file.
const HOLE_LEN: usize = 64 << 10;
static ZEROS: [u8; HOLE_LEN] = [0; HOLE_LEN];

/// A new content file. It is written past the page cache if the file system allows that: the disk works from the first
/// piece on, nothing is left to flush at the end, and other programs' data stays in memory.
#[derive(Debug)]
pub struct Content {
    file: File,
    /// The same file, opened with O_DIRECT.
    direct: Option<File>,
    /// Whether the file system refused a direct write, so that no thread tries again.
    is_refused: AtomicBool,
}

impl Content {
    /// Makes the file at its full length in bytes, as one hole.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: &Path, len: u64) -> anyhow::Result<Content> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|file| file.set_len(len).map(|()| file));
        let file = file.with_context(|| format!("making {}", path.display()))?;
        // Some file systems (tmpfs of older kernels, ZFS) do not support O_DIRECT.
        let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok();
        Ok(Content { file, direct, is_refused: AtomicBool::new(false) })
    }

    /// Writes the bytes that are not zero. It is fastest if `bytes` and `at` are aligned to [`ALIGN`], and correct in
    /// any case.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        each_run(bytes, |run, start| self.write_run(run, at + start))
    }

    /// Makes the file exactly so long, in bytes.
    ///
    /// # Errors
    /// If it cannot be changed.
    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn write_run(&self, run: &[u8], at: u64) -> io::Result<()> {
        let is_aligned = run.as_ptr().addr().is_multiple_of(ALIGN) && at.is_multiple_of(ALIGN as u64);
        let mut rest = 0;
        if let Some(direct) = &self.direct
            && is_aligned
            && !self.is_refused.load(Ordering::Relaxed)
        {
            rest = run.len() / ALIGN * ALIGN;
            if let Err(error) = direct.write_all_at(&run[..rest], at) {
                // The file could be opened, but the write is refused: the blocks are larger than ALIGN, or the file
                // system does not really support O_DIRECT.
                if error.kind() != io::ErrorKind::InvalidInput {
                    return Err(error);
                }
                self.is_refused.store(true, Ordering::Relaxed);
                rest = 0;
            }
        }
        if rest < run.len() { self.file.write_all_at(&run[rest..], at + rest as u64) } else { Ok(()) }
    }
}

/// Writes the bytes that are not zero to a file that is long enough and reads as zero there.
///
/// # Errors
/// If it cannot be written.
pub fn write_sparse(out: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    each_run(bytes, |run, start| out.write_all_at(run, at + start))
}

/// Passes on every stretch between holes, with its place in `bytes`.
fn each_run(bytes: &[u8], mut write: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
    let mut pending = 0..0;
    for start in (0..bytes.len()).step_by(HOLE_LEN) {
        let end = bytes.len().min(start + HOLE_LEN);
        if bytes[start..end] != ZEROS[..end - start] {
            pending.end = end;
            continue;
        }
        if !pending.is_empty() {
            write(&bytes[pending.clone()], pending.start as u64)?;
        }
        pending = end..end;
    }
    if pending.is_empty() { Ok(()) } else { write(&bytes[pending.clone()], pending.start as u64) }
}

#[cfg(test)]
impl Content {
    /// A content file that cannot be written to.
    pub(super) fn read_only(path: &Path) -> Content {
        std::fs::write(path, []).expect("writable");
        Content { file: File::open(path).expect("readable"), direct: None, is_refused: AtomicBool::new(false) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::AlignedBuf;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_written_is_there_and_zeros_are_holes() {
        const LEN: usize = 16 * HOLE_LEN + 5_000;
        let mut buf = AlignedBuf::new(LEN);
        buf.as_mut_slice().fill(7);
        buf.as_mut_slice()[3 * HOLE_LEN..9 * HOLE_LEN].fill(0);
        // The first is most likely on a disk, which accepts direct writes; the second is in memory, which may not.
        for dir in ["/var/tmp", "/dev/shm"] {
            let dir = tempfile::tempdir_in(dir).expect("a directory");
            for (name, skip, is_refused) in [("aligned", 0, false), ("not", 100, false), ("refused", 0, true)] {
                let path = dir.path().join(name);
                let bytes = &buf.as_slice()[skip..];
                let content = Content::create(&path, bytes.len() as u64).expect("a new file");
                content.is_refused.store(is_refused, Ordering::Relaxed);
                // The second piece starts inside a block of the file system.
                let (first, second) = bytes.split_at(9 * HOLE_LEN + 1_000);
                content.write(first, 0).expect("room");
                content.write(second, first.len() as u64).expect("room");
                assert!(fs::read(&path).expect("readable") == bytes, "{}", path.display());
                let on_disk = fs::metadata(&path).expect("there").blocks() * 512;
                assert!(on_disk <= (LEN - 4 * HOLE_LEN) as u64, "{}: {on_disk} bytes", path.display());
            }
        }
    }
}

//! Disks of virtual machines: sparse raw files.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::unistd::Whence;

/// The contents of an untouched disk: sixteen bytes, so that every sector starts with them.
const PATTERN: &[u8; 16] = b"EZIO-NOT-WRITTEN";
/// Bytes read or written at a time.
const STEP: usize = 1 << 20;

/// How a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// `/dev/vda`.
    Virtio,
    /// `/dev/nvme0n1`.
    Nvme,
    /// `/dev/sda` on virtio-scsi.
    Scsi,
    /// `/dev/sda` on AHCI, which the cloud kernel does not support.
    Ahci,
    /// `/dev/sda` on a USB port, which the cloud kernel does not support either.
    Usb,
}

impl std::fmt::Display for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Bus::Virtio => "virtio",
            Bus::Nvme => "nvme",
            Bus::Scsi => "scsi",
            Bus::Ahci => "ahci",
            Bus::Usb => "usb",
        })
    }
}

/// A raw file that a machine sees as a disk.
#[derive(Clone, Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// An existing file as a disk.
    pub fn open(path: &Path) -> Disk {
        Disk { path: path.into() }
    }

    /// A disk of zeros that takes no space.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn blank(path: &Path, len: u64) -> Result<Disk> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        file.set_len(len).with_context(|| format!("sizing {}", path.display()))?;
        Ok(Disk { path: path.into() })
    }

    /// A disk full of a pattern, so that every written byte shows.
    ///
    /// # Errors
    /// If the file cannot be made, or `len` is not a multiple of one MiB.
    pub fn patterned(path: &Path, len: u64) -> Result<Disk> {
        let disk = Disk::blank(path, len)?;
        let step = PATTERN.repeat(STEP / PATTERN.len());
        ensure!(len.is_multiple_of(STEP as u64), "a patterned disk of {len} bytes is not a whole number of MiB");
        let file = disk.file()?;
        for at in (0..len).step_by(STEP) {
            file.write_all_at(&step, at).with_context(|| format!("filling {}", disk.path.display()))?;
        }
        Ok(disk)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn len(&self) -> Result<u64> {
        Ok(self.path.metadata().with_context(|| format!("looking at {}", self.path.display()))?.len())
    }

    /// Bytes that it takes on the host.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn allocated(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.path.metadata().with_context(|| format!("looking at {}", self.path.display()))?.blocks() * 512)
    }

    /// Whether it has no bytes at all.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Opens it for reading and writing.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn file(&self) -> Result<File> {
        let file = File::options().read(true).write(true).open(&self.path);
        file.with_context(|| format!("opening {}", self.path.display()))
    }

    /// The first byte that is neither zero nor the pattern, if there is one: an untouched disk has none.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn first_written(&self) -> Result<Option<u64>> {
        self.first_written_in(0..self.len()?)
    }

    /// Like [`Disk::first_written`], within a half-open range of it.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn first_written_in(&self, range: std::ops::Range<u64>) -> Result<Option<u64>> {
        let file = self.file()?;
        let mut buffer = vec![0; STEP];
        let mut at = range.start;
        while at < range.end {
            let data = match nix::unistd::lseek(&file, i64::try_from(at)?, Whence::SeekData) {
                Ok(data) => u64::try_from(data)?,
                Err(nix::errno::Errno::ENXIO) => return Ok(None),
                Err(error) => return Err(error).context("looking for data in a disk"),
            };
            at = at.max(data);
            if at >= range.end {
                break;
            }
            let len = usize::try_from((range.end - at).min(STEP as u64))?;
            file.read_exact_at(&mut buffer[..len], at).context("reading a disk")?;
            let phase = usize::try_from(at % PATTERN.len() as u64)?;
            let expected = PATTERN.iter().cycle().skip(phase);
            if let Some(index) = buffer[..len].iter().zip(expected).position(|(&byte, &p)| byte != 0 && byte != p) {
                return Ok(Some(at + index as u64));
            }
            at += len as u64;
        }
        Ok(None)
    }

    /// The first byte in this range that is not zero, if there is one.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn first_not_zero_in(&self, range: std::ops::Range<u64>) -> Result<Option<u64>> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
        let read = self.file()?.read_exact_at(&mut bytes, range.start);
        read.with_context(|| format!("reading {}", self.path.display()))?;
        Ok((range.start..).zip(&bytes).find(|&(_, &byte)| byte != 0).map(|(at, _)| at))
    }

    /// Fails unless nothing was ever written to the disk.
    ///
    /// # Errors
    /// If something was written; the error says where.
    pub fn expect_untouched(&self) -> Result<()> {
        let written = self.first_written()?;
        ensure!(written.is_none(), "{} was written to at byte {}", self.path.display(), written.unwrap_or(0));
        Ok(())
    }
}

/// `len` incompressible bytes from a fast generator; the same seed gives the same bytes.
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    // The generator is xorshift64*, good enough to be different everywhere.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Copies a file into a disk at `offset`, leaving out zeros, because the disk is zero already.
///
/// # Errors
/// If either cannot be read or written.
pub fn copy_into(disk: &Disk, source: &Path, offset: u64) -> Result<()> {
    let mut from = File::open(source).with_context(|| format!("opening {}", source.display()))?;
    let to = disk.file()?;
    let mut buffer = vec![0; 64 * 1024];
    let mut at = offset;
    loop {
        let len = from.read(&mut buffer).with_context(|| format!("reading {}", source.display()))?;
        if len == 0 {
            return Ok(());
        }
        if buffer[..len].iter().any(|&byte| byte != 0) {
            to.write_all_at(&buffer[..len], at).with_context(|| format!("writing {}", disk.path().display()))?;
        }
        at += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_written_byte_shows() {
        let path = std::env::temp_dir().join(format!("ezio-disk-{}", std::process::id()));
        for make in [Disk::blank, Disk::patterned] {
            let disk = make(&path, 3 << 20).expect("a disk");
            assert_eq!(disk.first_written().expect("readable"), None);
            disk.file().expect("open").write_all_at(b"x", 2_000_000).expect("written");
            assert_eq!(disk.first_written().expect("readable"), Some(2_000_000));
            assert_eq!(disk.first_written_in(2_000_001..3 << 20).expect("readable"), None);
        }
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn random_bytes_are_the_same_every_time() {
        assert_eq!(random_bytes(1, 100), random_bytes(1, 100));
        assert_ne!(random_bytes(1, 100), random_bytes(2, 100));
        assert_eq!(random_bytes(1, 3).len(), 3);
    }
}

//! The safe handle on a disk.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use layout::DiskOffset;

use crate::aligned::{ALIGN, AlignedBuf};
use crate::ffi;

/// Most bytes that one direct read takes: large enough for full speed on a rotating disk, small enough that one reader
/// per core fits into 512 MB.
const READ_LEN: usize = 1 << 20;

/// The zeros that are written, or compared with what was read.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Whether all of these bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// What went wrong with a disk; the cause is the error's source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The disk is mounted, part of a RAID, or held by another program.
    #[error("{path} is in use: unmount it, or stop what holds it, and try again")]
    InUse {
        /// The device.
        path: PathBuf,
        /// EBUSY.
        source: io::Error,
    },
    /// It could not be opened, or its size could not be read.
    #[error("opening {path}")]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path that is neither a block device nor a regular file.
    #[error("{path} is neither a block device nor a regular file")]
    NotADisk {
        /// The path.
        path: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Block { sector_size: u32, is_rotational: bool },
    Regular,
}

/// An open disk, or a regular file that stands for one.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
    len: u64,
    kind: Kind,
}

impl Device {
    /// Opens a block device for reading and writing, exclusively (`O_EXCL`), or an existing regular file.
    ///
    /// # Errors
    /// [`DeviceError::InUse`] if the device is mounted, or another program has it open exclusively.
    pub fn open_exclusive(path: &Path) -> Result<Device, DeviceError> {
        let is_block = is_block(path)?;
        let flags = libc::O_CLOEXEC | if is_block { libc::O_EXCL } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        Device::from_file(file.map_err(|source| open_error(path, source))?, path, is_block)
    }

    /// Opens a block device or regular file for reading only.
    ///
    /// # Errors
    /// [`DeviceError::Open`] or [`DeviceError::NotADisk`].
    pub fn open_read(path: &Path) -> Result<Device, DeviceError> {
        let is_block = is_block(path)?;
        let file = File::open(path).map_err(|source| open_error(path, source))?;
        Device::from_file(file, path, is_block)
    }

    /// Creates a sparse regular file of `len` bytes that stands for a disk, or makes an existing one at least as long.
    ///
    /// # Errors
    /// [`DeviceError::Open`].
    pub fn create_file(path: &Path, len: u64) -> Result<Device, DeviceError> {
        let open = || -> io::Result<File> {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            if file.metadata()?.len() < len {
                file.set_len(len)?;
            }
            Ok(file)
        };
        Device::from_file(open().map_err(|source| open_error(path, source))?, path, false)
    }

    fn from_file(file: File, path: &Path, is_block: bool) -> Result<Device, DeviceError> {
        let measure = || -> io::Result<(u64, Kind)> {
            if is_block {
                let (sector_size, is_rotational) = (ffi::sector_size(&file)?, is_rotational(&file.metadata()?));
                Ok((ffi::device_len(&file)?, Kind::Block { sector_size, is_rotational }))
            } else {
                Ok((file.metadata()?.len(), Kind::Regular))
            }
        };
        let (len, kind) = measure().map_err(|source| open_error(path, source))?;
        Ok(Device { file, path: path.to_owned(), len, kind })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a disk is not a collection")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Its logical sector size in bytes; `None` for a regular file, which has no sectors.
    pub fn sector_size(&self) -> Option<u32> {
        match self.kind {
            Kind::Block { sector_size, .. } => Some(sector_size),
            Kind::Regular => None,
        }
    }

    /// Whether the kernel takes it for a disk that turns, which is slow at many places at a time.
    pub fn is_rotational(&self) -> bool {
        matches!(self.kind, Kind::Block { is_rotational: true, .. })
    }

    /// Writes all of `data` at a byte offset.
    ///
    /// # Errors
    /// The kernel's, with offset and length in its text; also if the write would go past the device's end.
    pub fn write_all_at(&self, data: &[u8], at: DiskOffset) -> io::Result<()> {
        self.check_bounds(at, data.len())?;
        self.file.write_all_at(data, at.0).map_err(|cause| self.explain("writing", at, data.len(), &cause))
    }

    /// Fills `buf` from a byte offset, through the page cache.
    ///
    /// # Errors
    /// The kernel's, with offset and length in its text; also if the read would go past the device's end.
    pub fn read_exact_at(&self, buf: &mut [u8], at: DiskOffset) -> io::Result<()> {
        self.check_bounds(at, buf.len())?;
        self.file.read_exact_at(buf, at.0).map_err(|cause| self.explain("reading", at, buf.len(), &cause))
    }

    /// Writes back everything cached and makes the device empty its write cache (`fdatasync` sends the flush).
    ///
    /// # Errors
    /// The kernel's. It reports a write that failed after it was accepted here, and only once.
    pub fn flush(&self) -> io::Result<()> {
        self.file
            .sync_data()
            .map_err(|cause| io::Error::new(cause.kind(), format!("flushing {} failed: {cause}", self.path.display())))
    }

    /// Tells a block device that it need not keep these bytes, so that a flash disk can use the space. Returns false
    /// for a regular file and for a device that cannot discard. Reads of the range are undefined afterwards.
    ///
    /// # Errors
    /// The kernel's; also if the range goes past the device's end.
    pub fn discard(&self, at: DiskOffset, len: u64) -> io::Result<bool> {
        self.check_bounds(at, usize::try_from(len).unwrap_or(usize::MAX))?;
        match self.kind {
            Kind::Regular => Ok(false),
            Kind::Block { .. } => match ffi::discard(&self.file, at.0, len) {
                Ok(()) => Ok(true),
                Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
                Err(cause) => Err(io::Error::new(
                    cause.kind(),
                    format!("discarding {len} bytes at offset {at} of {} failed: {cause}", self.path.display()),
                )),
            },
        }
    }

    /// Makes a range read as zeros: by `BLKZEROOUT` on a block device (some do it without moving the bytes), by writing
    /// to a regular file.
    ///
    /// # Errors
    /// The kernel's, with offset and length in its text; also if the range goes past the device's end.
    pub fn zero_out(&self, at: DiskOffset, len: u64) -> io::Result<()> {
        self.check_bounds(at, usize::try_from(len).unwrap_or(usize::MAX))?;
        // If the device cannot, or fails half-way, the zeros are written as to a file. A write that fails reports
        // where.
        if matches!(self.kind, Kind::Block { .. }) && ffi::zero_out(&self.file, at.0, len).is_ok() {
            return Ok(());
        }
        let end = at.0 + len;
        let mut next = at.0;
        while next < end {
            let now = usize::try_from(end - next).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write_all_at(&ZEROS[..now], DiskOffset(next))?;
            next += u64::try_from(now).expect("at most the length of ZEROS");
        }
        Ok(())
    }

    /// Makes the kernel read the partition table again, so that the new partitions appear. Does nothing for a regular
    /// file, a partition, or a loop device without partitions.
    ///
    /// # Errors
    /// The kernel's; EBUSY if a partition of the disk is in use.
    pub fn reread_partition_table(&self) -> io::Result<()> {
        match self.kind {
            Kind::Block { .. } => match ffi::reread_partition_table(&self.file) {
                // This is the kernel's answer for a device that cannot have partitions.
                Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => Ok(()),
                result => result,
            },
            Kind::Regular => Ok(()),
        }
    }

    /// A reader of the medium that bypasses the page cache. Call [`Device::flush`] first.
    ///
    /// # Errors
    /// If the device cannot be opened a second time.
    pub fn uncached(&self) -> io::Result<Uncached> {
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC).open(&self.path);
        let (file, is_direct) = match direct {
            Ok(file) => (file, true),
            // Some file systems (tmpfs) do not support O_DIRECT. Dropping the cache is the best that can be done there.
            Err(_) => (File::open(&self.path)?, false),
        };
        if !is_direct && matches!(self.kind, Kind::Block { .. }) {
            ffi::drop_cache(&file)?;
        }
        Ok(Uncached { file, is_direct, path: self.path.clone(), len: self.len, buf: AlignedBuf::new(READ_LEN) })
    }

    fn check_bounds(&self, at: DiskOffset, len: usize) -> io::Result<()> {
        let end = u64::try_from(len).ok().and_then(|len| at.0.checked_add(len));
        match end {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::Error::other(format!(
                "{len} bytes at offset {at} do not lie on {}, which has {} bytes",
                self.path.display(),
                self.len
            ))),
        }
    }

    fn explain(&self, doing: &str, at: DiskOffset, len: usize, cause: &io::Error) -> io::Error {
        explain(&self.path, doing, at, len, cause)
    }
}

/// Reads a device past the page cache; made by [`Device::uncached`], each thread needs one.
pub struct Uncached {
    file: File,
    is_direct: bool,
    path: PathBuf,
    len: u64,
    buf: AlignedBuf,
}

impl Uncached {
    /// Hands the `len` bytes at `at` to `each`, in order, in slices of any length.
    ///
    /// # Errors
    /// The kernel's, with offset and length in its text; also if the range goes past the device's end.
    pub fn read(&mut self, at: DiskOffset, len: u64, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let end = at.0.checked_add(len).filter(|&end| end <= self.len);
        let end = end.ok_or_else(|| io::Error::other(format!("{len} bytes at {at} leave {}", self.path.display())))?;
        let align = u64::try_from(ALIGN).expect("4096");
        let mut next = at.0;
        while next < end {
            let start = next / align * align;
            let wanted = usize::try_from((end - start).next_multiple_of(align)).unwrap_or(READ_LEN).min(READ_LEN);
            if !self.is_direct {
                self.forget(start, wanted);
            }
            let got = self.read_some(start, wanted)?;
            let skip = usize::try_from(next - start).expect("less than ALIGN");
            let upto = usize::try_from(end - start).unwrap_or(usize::MAX).min(got);
            if upto <= skip {
                return Err(explain(
                    &self.path,
                    "reading",
                    DiskOffset(next),
                    wanted,
                    &io::Error::from(io::ErrorKind::UnexpectedEof),
                ));
            }
            each(&self.buf.as_slice()[skip..upto]);
            next = start + u64::try_from(upto).expect("at most READ_LEN");
        }
        Ok(())
    }

    /// Fills `buf` from a byte offset; directly if it starts at a multiple of [`ALIGN`], and so do the offset and the length.
    ///
    /// # Errors
    /// Those of [`Uncached::read`].
    pub fn read_exact_at(&mut self, buf: &mut [u8], at: DiskOffset) -> io::Result<()> {
        let align = u64::try_from(ALIGN).expect("4096");
        let is_aligned = |buf: &[u8], at: u64| {
            at.is_multiple_of(align) && buf.len().is_multiple_of(ALIGN) && buf.as_ptr().addr().is_multiple_of(ALIGN)
        };
        let (mut rest, mut next) = (buf, at.0);
        // The end of a regular file may be reached in between: then the rest says so, or is not aligned.
        while self.is_direct && !rest.is_empty() && is_aligned(rest, next) {
            let got = match self.file.read_at(rest, next) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => {
                    return Err(explain(&self.path, "reading back", DiskOffset(next), rest.len(), &cause));
                }
                Ok(0) => break,
                Ok(got) => got,
            };
            rest = &mut rest[got..];
            next += u64::try_from(got).expect("at most the length of a buffer");
        }
        let len = u64::try_from(rest.len()).map_err(io::Error::other)?;
        self.read(DiskOffset(next), len, |bytes| {
            let now = rest.split_off_mut(..bytes.len()).expect("no more than was asked for");
            now.copy_from_slice(bytes);
        })
    }

    fn read_some(&mut self, at: u64, wanted: usize) -> io::Result<usize> {
        loop {
            match self.file.read_at(&mut self.buf.as_mut_slice()[..wanted], at) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(explain(&self.path, "reading back", DiskOffset(at), wanted, &cause)),
                Ok(got) => return Ok(got),
            }
        }
    }

    fn forget(&self, at: u64, len: usize) {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        let (at, len) = (i64::try_from(at).unwrap_or(0), i64::try_from(len).unwrap_or(0));
        // This is only advice; the read is correct even if the kernel ignores it.
        let _ = posix_fadvise(&self.file, at, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

fn is_block(path: &Path) -> Result<bool, DeviceError> {
    let metadata = std::fs::metadata(path).map_err(|source| open_error(path, source))?;
    match metadata.file_type() {
        kind if kind.is_block_device() => Ok(true),
        kind if kind.is_file() => Ok(false),
        _ => Err(DeviceError::NotADisk { path: path.to_owned() }),
    }
}

/// What sysfs says of a block device; of a partition, its disk does.
fn is_rotational(metadata: &Metadata) -> bool {
    let number = metadata.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    ["queue", "../queue"].iter().any(|queue| {
        let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/rotational"));
        text.is_ok_and(|text| text.trim() == "1")
    })
}

fn open_error(path: &Path, source: io::Error) -> DeviceError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::EBUSY) => DeviceError::InUse { path, source },
        _ => DeviceError::Open { path, source },
    }
}

fn explain(path: &Path, doing: &str, at: DiskOffset, len: usize, cause: &io::Error) -> io::Error {
    io::Error::new(cause.kind(), format!("{doing} {len} bytes at offset {at} of {} failed: {cause}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(len: u64) -> (tempfile::TempDir, Device) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let device = Device::create_file(&dir.path().join("disk"), len).expect("new file");
        (dir, device)
    }

    #[test]
    fn what_is_written_reads_back_past_the_cache() {
        let (_dir, device) = disk(3 * 1024 * 1024 + 512);
        let data: Vec<u8> = (0..device.len()).map(|i| u8::try_from(i % 251).expect("small")).collect();
        device.write_all_at(&data, DiskOffset(0)).expect("fits");
        device.flush().expect("flush");
        let mut uncached = device.uncached().expect("second open");
        for (at, len) in [
            (0, 1),
            (1, 4095),
            (4095, 2),
            (512, 1 << 20),
            (1000, 2 << 20),
            (8192, 1 << 20),
            (0, device.len()),
            (device.len() - 1, 1),
            (7, 0),
        ] {
            let mut read = Vec::new();
            uncached.read(DiskOffset(at), len, |bytes| read.extend_from_slice(bytes)).expect("inside");
            let range = usize::try_from(at).expect("small")..usize::try_from(at + len).expect("small");
            assert!(read == data[range.clone()], "{len} bytes at {at}");
            // Into a buffer that is aligned, and one that is not.
            for skip in [0, 1] {
                let mut buf = AlignedBuf::new(range.len() + skip);
                uncached.read_exact_at(&mut buf.as_mut_slice()[skip..], DiskOffset(at)).expect("inside");
                assert!(buf.as_slice()[skip..] == data[range.clone()], "{len} bytes at {at}, {skip} into the buffer");
            }
        }
        assert!(uncached.read(DiskOffset(device.len()), 1, |_| ()).is_err());
        for (at, len) in [(device.len(), 1), (device.len() - 512, 4096), (u64::MAX - 1, 1), (4096, 3 << 20)] {
            let mut buf = AlignedBuf::new(len);
            assert!(uncached.read_exact_at(buf.as_mut_slice(), DiskOffset(at)).is_err(), "{len} bytes at {at}");
        }
    }

    #[test]
    fn nothing_is_written_past_the_end() {
        let (_dir, device) = disk(1024);
        let error = device.write_all_at(&[0; 2], DiskOffset(1023)).expect_err("past the end");
        assert!(error.to_string().contains("which has 1024 bytes"), "{error}");
        assert!(device.write_all_at(&[0; 1], DiskOffset(u64::MAX)).is_err());
        assert_eq!(std::fs::metadata(device.path()).expect("still there").len(), 1024);
    }

    #[test]
    fn zeros_go_where_they_are_wanted() {
        let (_dir, device) = disk(1 << 20);
        device.write_all_at(&vec![7; 1 << 20], DiskOffset(0)).expect("fits");
        let last = device.len() - 1;
        for (at, len) in [(1, 300_000), (last, 1), (500_000, 0)] {
            device.zero_out(DiskOffset(at), len).expect("inside");
        }
        let bytes = std::fs::read(device.path()).expect("the disk");
        assert!(bytes[0] == 7 && is_zero(&bytes[1..300_001]) && bytes[300_001] == 7 && bytes[500_000] == 7);
        assert!(bytes[bytes.len() - 2] == 7 && is_zero(&bytes[bytes.len() - 1..]) && !is_zero(&bytes));
        assert!(device.zero_out(DiskOffset(last), 2).is_err() && device.zero_out(DiskOffset(0), u64::MAX).is_err());
        assert!(is_zero(&[]) && is_zero(&vec![0; 1 << 20]) && !is_zero(&[0, 1]));
    }

    #[test]
    fn a_directory_is_not_a_disk() {
        let error = Device::open_exclusive(Path::new("/")).expect_err("a directory");
        assert!(matches!(error, DeviceError::NotADisk { .. }), "{error}");
        let error = Device::open_exclusive(Path::new("/nonexistent/disk")).expect_err("not there");
        assert_eq!(error.to_string(), "opening /nonexistent/disk");
    }
}

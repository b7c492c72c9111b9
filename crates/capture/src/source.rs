//! The disk, partition or disk image that is captured, opened so that it cannot be mounted meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use layout::{DiskOffset, DiskRange};

use crate::in_use;
use crate::window::next_data;

/// The source of a capture.
#[derive(Debug)]
pub struct Source {
    /// The path as the user named it.
    pub path: PathBuf,
    /// Open for reading; a block device is open exclusively, so mounting it or its partitions fails as long as this
    /// exists.
    pub file: File,
    /// Size in bytes.
    pub len: u64,
    /// Logical sector size in bytes; a file has none.
    pub sector_size: Option<u32>,
    /// Its directory in sysfs, if it is a block device.
    sysfs: Option<PathBuf>,
    /// Partitions that are not in `file`; ascending and disjoint.
    apart: Vec<Apart>,
}

/// A partition whose bytes are elsewhere, or nowhere.
#[derive(Debug)]
struct Apart {
    place: DiskRange,
    /// A file of the partition's length; `None` if its bytes are not available.
    file: Option<(PathBuf, File)>,
}

impl Source {
    /// Opens a block device or a raw image file, if nothing uses it.
    ///
    /// # Errors
    /// If it is missing, is neither, is empty, or it or one of its partitions, or a loop device over them, is mounted,
    /// swapped on, or held by device mapper or RAID; the error says which, and by what.
    pub fn open(path: &Path) -> anyhow::Result<Source> {
        let shown = path.display();
        let found = fs::metadata(path).with_context(|| format!("opening the source {shown}"))?;
        let kind = found.file_type();
        let sysfs = if kind.is_block_device() {
            Some(in_use::sysfs_of(&found).with_context(|| format!("looking up {shown}"))?)
        } else if kind.is_file() {
            None
        } else {
            bail!("{shown} is neither a block device nor a disk image file: give a disk such as /dev/sda");
        };
        in_use::refuse_if_used(path)?;
        let mut options = OpenOptions::new();
        options.read(true);
        if sysfs.is_some() {
            // On a block device, O_EXCL fails if the kernel uses it, and keeps others from mounting it.
            options.custom_flags(libc::O_EXCL);
        }
        let mut file = options.open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => anyhow::anyhow!(
                "{shown} is in use by the kernel (mounted in another namespace, RAID, device mapper?): \
                 let go of it, or start this machine from another medium"
            ),
            _ => anyhow::Error::new(error).context(format!("opening the source {shown}")),
        })?;
        let len = file.seek(SeekFrom::End(0)).with_context(|| format!("measuring {shown}"))?;
        ensure!(len > 0, "{shown} has no bytes: an empty file or a drive without a medium");
        let sector_size = sysfs.as_deref().map(logical_sector_size).transpose()?;
        Ok(Source { path: path.to_owned(), file, len, sector_size, sysfs, apart: Vec::new() })
    }

    /// `disk` or `partition`, or empty if that is unknown: a file may be a copy of either, and devices made of disks
    /// (LVM, RAID, loop devices) are neither.
    pub fn device(&self) -> &'static str {
        self.sysfs.as_deref().map_or("", kind_of_device)
    }

    /// Takes bytes `place` of the disk from a separate file, or counts them as missing.
    ///
    /// # Errors
    /// If the file cannot be opened or has another length, or the place overlaps one that was set before.
    pub fn set_partition(&mut self, place: DiskRange, path: Option<PathBuf>) -> anyhow::Result<()> {
        let open = |path: PathBuf| -> anyhow::Result<(PathBuf, File)> {
            let opening = || format!("opening {}", path.display());
            let file = File::open(&path).with_context(opening)?;
            let len = file.metadata().with_context(opening)?.len();
            ensure!(len == place.len(), "{} has {len} bytes, its partition has another length", path.display());
            Ok((path, file))
        };
        let file = path.map(open).transpose()?;
        let at = self.apart.partition_point(|apart| apart.place.start < place.start);
        let is_apart = |other: &Apart| other.place.end <= place.start || place.end <= other.place.start;
        ensure!(
            self.apart.iter().all(is_apart),
            "the partitions of {} overlap, and were saved one by one: they cannot be put together",
            self.path.display()
        );
        self.apart.insert(at, Apart { place, file });
        Ok(())
    }

    /// The file that is exactly this partition, if it is kept separately.
    pub fn partition_file(&self, place: DiskRange) -> Option<&Path> {
        let apart = self.apart.iter().find(|apart| apart.place == place)?;
        apart.file.as_ref().map(|(path, _)| path.as_path())
    }

    /// The files with its bytes: the source itself, and the separate files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let apart = self.apart.iter().filter_map(|apart| apart.file.as_ref());
        std::iter::once(self.path.as_path()).chain(apart.map(|(path, _)| path.as_path()))
    }

    /// Whether the bytes of this partition are missing.
    pub fn is_missing(&self, place: DiskRange) -> bool {
        self.apart.iter().any(|apart| apart.place == place && apart.file.is_none())
    }

    /// Fills `buf` from byte `at` on.
    ///
    /// # Errors
    /// If it cannot be read, or is missing.
    pub fn read_at(&self, buf: &mut [u8], at: DiskOffset) -> anyhow::Result<()> {
        let (mut rest, mut at) = (buf, at);
        while !rest.is_empty() {
            let next = self.apart.partition_point(|apart| apart.place.end <= at);
            let (path, file, start, end) = match self.apart.get(next) {
                Some(Apart { place, file: Some((path, file)) }) if place.contains(at) => {
                    (path, file, place.start, place.end)
                }
                Some(Apart { place, file: None }) if place.contains(at) => {
                    bail!("byte {at} of {} is missing", self.path.display())
                }
                Some(Apart { place, .. }) => (&self.path, &self.file, DiskOffset(0), place.start),
                None => (&self.path, &self.file, DiskOffset(0), DiskOffset(u64::MAX)),
            };
            let len = usize::try_from(end.0 - at.0).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            let in_file = at.0 - start.0;
            let reading = || format!("reading {len} bytes at byte {in_file} of {}", path.display());
            file.read_exact_at(now, in_file).with_context(reading)?;
            at.0 += u64::try_from(len)?;
            rest = later;
        }
        Ok(())
    }

    /// The first run in `within` that may be data; `None` if there is only a hole. Partitions in separate files count
    /// as data.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub fn next_data(&self, within: DiskRange) -> io::Result<Option<DiskRange>> {
        let DiskRange { start: at, end } = within;
        let next = self.apart.partition_point(|apart| apart.place.end <= at);
        let apart = self.apart.get(next).filter(|apart| apart.place.start < end);
        let until = apart.map_or(end, |apart| apart.place.start);
        if until <= at {
            return Ok(apart.map(|apart| apart.place.intersect(within)));
        }
        let found = next_data(&self.file, at.0, until.0)?.map(DiskRange::new);
        Ok(found.or_else(|| apart.map(|apart| apart.place.intersect(within))))
    }

    /// The device node of the partition at this place, if the source is a disk whose partitions the kernel knows.
    pub fn partition_node(&self, place: DiskRange) -> Option<PathBuf> {
        let children = fs::read_dir(self.sysfs.as_deref()?).ok()?;
        // Sysfs counts in units of 512 bytes, whatever the sector size is.
        let number = |dir: &Path, name: &str| read_number(&dir.join(name)).map(|sectors| sectors * 512);
        let dir = children
            .filter_map(|child| Some(child.ok()?.path()))
            .find(|dir| number(dir, "start") == Some(place.start.0) && number(dir, "size") == Some(place.len()))?;
        let node = Path::new("/dev").join(dir.file_name()?);
        node.exists().then_some(node)
    }
}

fn kind_of_device(sysfs: &Path) -> &'static str {
    if sysfs.join("partition").exists() {
        "partition"
    } else if sysfs.join("device").exists() {
        "disk"
    } else {
        ""
    }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn logical_sector_size(sysfs: &Path) -> anyhow::Result<u32> {
    // A partition uses its disk's queue.
    let queue = [sysfs.join("queue"), sysfs.join("../queue")];
    let size = queue.iter().find_map(|dir| read_number(&dir.join("logical_block_size")));
    size.and_then(|size| u32::try_from(size).ok())
        .with_context(|| format!("reading the sector size in {}", sysfs.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_may_be_files_of_their_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let (disk, part) = (dir.path().join("disk"), dir.path().join("part"));
        fs::write(&disk, b"0123456789").expect("written");
        fs::write(&part, b"abc").expect("written");
        let mut source = Source::open(&disk).expect("a file");
        source.set_partition(DiskRange::new(7..9), None).expect("nothing to open");
        source.set_partition(DiskRange::new(2..5), Some(part.clone())).expect("3 bytes");
        assert!(source.set_partition(DiskRange::new(5..7), Some(part.clone())).is_err(), "another length");
        let [first, other, missing] = [2..5, 2..4, 7..9].map(DiskRange::new);
        assert_eq!(source.partition_file(first), Some(part.as_path()));
        assert_eq!((source.partition_file(other), source.partition_file(missing)), (None, None));
        assert!(source.is_missing(missing) && !source.is_missing(first));
        let read = |range| {
            let range = DiskRange::new(range);
            let mut buf = vec![0; usize::try_from(range.len()).expect("small")];
            source.read_at(&mut buf, range.start).map(|()| String::from_utf8(buf).expect("ASCII"))
        };
        for (range, wanted) in [(0..7, "01abc56"), (0..2, "01"), (3..4, "b"), (4..7, "c56"), (9..10, "9"), (5..5, "")] {
            assert_eq!(read(range.clone()).expect("there"), wanted, "{range:?}");
        }
        for range in [6..8, 7..9, 8..10, 9..11] {
            assert!(read(range.clone()).is_err(), "{range:?}");
        }
        assert!(source.set_partition(DiskRange::new(4..7), Some(part)).is_err(), "it overlaps the first");
    }

    #[test]
    fn what_is_kept_apart_is_no_hole() {
        const MIB: u64 = 1 << 20;
        let dir = tempfile::tempdir().expect("a directory");
        let (disk, part) = (dir.path().join("disk"), dir.path().join("part"));
        for (path, mib) in [(&disk, 10), (&part, 2)] {
            File::create(path).and_then(|file| file.set_len(mib * MIB)).expect("a file of one hole");
        }
        let mut source = Source::open(&disk).expect("a file");
        source.set_partition(DiskRange::new(4 * MIB..6 * MIB), Some(part)).expect("2 MiB");
        let next = |at, end| {
            let found = source.next_data(DiskRange::new(at * MIB..end * MIB)).expect("a file that knows its holes");
            found.map(DiskRange::bytes)
        };
        assert_eq!(next(0, 10), Some(4 * MIB..6 * MIB));
        assert_eq!(next(5, 10), Some(5 * MIB..6 * MIB));
        assert_eq!(next(0, 5), Some(4 * MIB..5 * MIB));
        assert_eq!((next(0, 4), next(6, 10)), (None, None));
    }

    #[test]
    fn disks_and_partitions_are_told_apart_and_the_rest_is_not_guessed() {
        let sysfs = tempfile::tempdir().expect("a directory");
        for (dir, device) in [("sda/device", "disk"), ("sda/sda1/partition", "partition"), ("dm-0/dm", "")] {
            let dir = sysfs.path().join(dir);
            fs::create_dir_all(&dir).expect("made");
            assert_eq!(kind_of_device(dir.parent().expect("has one")), device, "{}", dir.display());
        }
    }

    #[test]
    fn what_is_no_disk_is_refused_in_words() {
        let error = |path: &str| format!("{:#}", Source::open(Path::new(path)).expect_err(path));
        assert!(error("/nonexistent/disk").contains("opening the source /nonexistent/disk"));
        assert!(error("/dev/null").contains("neither a block device nor"));
        assert!(error("/tmp").contains("neither a block device nor"));
    }
}

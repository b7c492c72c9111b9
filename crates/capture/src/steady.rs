//! Checks whether a source stayed the same while it was read: an image of a source that changes may not boot.
//!
//! A file shows changes by its times and its length, a block device by its generation (`diskseq`) and by the kernel's
//! counts of writes and discards. The parts that were read early, and a sample of the rest, are read again at the end.
//! That finds writes that bypass the counters, such as a write to a partition through the node of its disk, or from
//! another machine.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use layout::{DiskOffset, DiskRange};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sha1::{Digest, Sha1};

use crate::in_use;

/// Most ranges that are remembered, with 40 bytes each.
const NOTES_MAX: usize = 1 << 16;
/// Bytes that are read again at a time.
const READ_LEN: usize = 1 << 20;
/// The page cache drops only whole folios; none is longer than this, in bytes.
const FOLIO_MAX: u64 = 4 << 20;
/// A sector in sysfs, in bytes, whatever the device's sectors are.
const SECTOR: u64 = 512;
/// Two writes within this time may leave the same modification time: two ticks of the slowest kernel.
const TICK: Duration = Duration::from_millis(20);
/// Most changed ranges that an error names; the others are only counted.
const NAMED_MAX: usize = 4;

/// The state of a source when capture began, for comparison at the end.
#[derive(Debug)]
pub(crate) struct Steady {
    /// The source comes first.
    parts: Vec<Part>,
    notes: Vec<Note>,
}

/// A device or file that the source's bytes come from.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: File,
    /// Its directory in sysfs, if it is a block device.
    sysfs: Option<PathBuf>,
    first: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    File(FileState),
    Device(DeviceState),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    /// Device and inode number.
    identity: (u64, u64),
    /// Length in bytes.
    len: u64,
    /// Modification time in nanoseconds.
    modified: i128,
    /// Like `modified`, but for every change that the file system knows of; no program can set it back.
    changed: i128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DeviceState {
    /// A number that is different for every medium and every attached file; kernels before 5.15 have none.
    generation: Option<u64>,
    /// Length in bytes.
    len: u64,
    /// `None` if the kernel does not count.
    writes: Option<Writes>,
}

/// The kernel's counters of a device (Documentation/block/stat.rst). The number of writes is useless here, because it
/// includes flushes, also our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Writes {
    written_sectors: u64,
    discards: u64,
    discarded_sectors: u64,
}

/// The earlier state of some bytes of the source.
#[derive(Debug)]
struct Note {
    at: DiskOffset,
    len: usize,
    hash: [u8; 20],
}

impl Steady {
    /// Records the state of the source, which comes first in `paths`, and of the files that its partitions come from,
    /// before any of them is read. Pending writes to them are written out first, so that they do not count as a change.
    ///
    /// # Errors
    /// If there are none, or one of them cannot be opened, flushed or examined.
    pub(crate) fn begin(paths: &[&Path]) -> anyhow::Result<Steady> {
        let parts = paths.iter().map(|path| Part::begin(path)).collect::<anyhow::Result<Vec<Part>>>()?;
        if parts.is_empty() {
            bail!("there is no source to look at");
        }
        if parts.iter().any(|part| part.first.is_recent()) {
            thread::sleep(TICK);
        }
        Ok(Steady { parts, notes: Vec::new() })
    }

    /// Remembers these bytes of the source: a table, a superblock, a part of the sample. It keeps only their hash, and
    /// ignores further calls once there are some ten thousand. So note tables first, and only some places of scattered
    /// pieces.
    pub(crate) fn note(&mut self, range: DiskRange, bytes: &[u8]) {
        debug_assert_eq!(u64::try_from(bytes.len()), Ok(range.len()), "{range:?}");
        if self.notes.len() < NOTES_MAX && !bytes.is_empty() {
            self.notes.push(Note { at: range.start, len: bytes.len(), hash: Sha1::digest(bytes).into() });
        }
    }

    /// Checks the state again, and reads the noted bytes again: `reread` fills a buffer from a byte of the source on.
    /// May be called more than once.
    ///
    /// # Errors
    /// The error says what changed and what to do. Also if the source cannot be read again.
    pub(crate) fn check(&self, reread: impl FnMut(&mut [u8], DiskOffset) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let changes = self.changes(reread)?;
        if changes.is_empty() {
            return Ok(());
        }
        bail!(
            "the source changed while it was read: {}. An image of it may not boot, so nothing was kept. Unmount it or stop \
             what writes to it, and try again; of a system that has to run on, capture an LVM snapshot \
             (`lvcreate --snapshot`)",
            changes.join("; ")
        )
    }

    /// Like [`Steady::check`], for a caller that continues anyway: each change as text, empty if there are none.
    ///
    /// # Errors
    /// If the source cannot be read again.
    pub(crate) fn changes(
        &self,
        reread: impl FnMut(&mut [u8], DiskOffset) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<String>> {
        let mut changes = Vec::new();
        for part in &self.parts {
            let found = part.changes()?;
            if !found.is_empty() {
                changes.push(format!("{}: {}", part.path.display(), found.join(", ")));
            }
        }
        let differing = self.differing(reread)?;
        let mut named: Vec<String> =
            differing.iter().take(NAMED_MAX).map(|range| format!("{} to {}", range.start, range.end)).collect();
        if differing.len() > NAMED_MAX {
            named.push(format!("{} more ranges", differing.len() - NAMED_MAX));
        }
        if !named.is_empty() {
            changes.push(format!("bytes {} are not what was read first", named.join(", ")));
        }
        Ok(changes)
    }

    /// The noted ranges that have changed.
    fn differing(
        &self,
        mut reread: impl FnMut(&mut [u8], DiskOffset) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<DiskRange>> {
        // Only the caller knows where a range lies in a partition's file, so all of the file is dropped.
        self.parts.iter().skip(1).for_each(|part| forget(&part.file, 0, 0));
        let mut buf = vec![0; READ_LEN];
        let mut differing = Vec::new();
        for note in &self.notes {
            let (from, to) = (note.at.0, note.at.0.saturating_add(u64::try_from(note.len)?));
            if let Some(source) = self.parts.first() {
                let start = from / FOLIO_MAX * FOLIO_MAX;
                let end = to.checked_next_multiple_of(FOLIO_MAX).unwrap_or(to);
                forget(&source.file, start, end - start);
            }
            let mut hash = Sha1::new();
            let mut at = from;
            while at < to {
                let len = usize::try_from(to - at).unwrap_or(READ_LEN).min(READ_LEN);
                let reading = || format!("looking again at bytes {from} to {to} of the source");
                reread(&mut buf[..len], DiskOffset(at)).with_context(reading)?;
                hash.update(&buf[..len]);
                at += u64::try_from(len)?;
            }
            if <[u8; 20]>::from(hash.finalize()) != note.hash {
                differing.push(DiskRange::new(from..to));
            }
        }
        Ok(differing)
    }
}

/// Makes the page cache drop what is already written; all of it if `len` is 0. This is only advice.
fn forget(file: &File, at: u64, len: u64) {
    if let (Ok(at), Ok(len)) = (i64::try_from(at), i64::try_from(len)) {
        let _ = posix_fadvise(file, at, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

impl Part {
    fn begin(path: &Path) -> anyhow::Result<Part> {
        let looking = || format!("looking at {}", path.display());
        let file = open(path).with_context(looking)?;
        let found = file.metadata().with_context(looking)?;
        let is_device = found.file_type().is_block_device();
        let sysfs = if is_device { Some(in_use::sysfs_of(&found).with_context(looking)?) } else { None };
        flush(path, &file, sysfs.as_deref())?;
        let first = look(path, sysfs.as_deref())?;
        if let State::Device(DeviceState { writes: None, .. }) = first {
            log::warn!(
                "the kernel does not count what is written to {} (see queue/iostats in /sys/block): a change is only \
                 noticed in data that is read twice",
                path.display()
            );
        }
        Ok(Part { path: path.to_owned(), file, sysfs, first })
    }

    /// The changes, as text.
    fn changes(&self) -> anyhow::Result<Vec<String>> {
        if self.sysfs.as_ref().is_some_and(|sysfs| !sysfs.exists()) {
            return Ok(vec!["the device is gone".to_owned()]);
        }
        // Writes of another process are counted once they have reached the device.
        flush(&self.path, &self.file, self.sysfs.as_deref())?;
        if self.sysfs.is_none() && !self.path.exists() {
            return Ok(vec!["the file is gone".to_owned()]);
        }
        Ok(match (self.first, look(&self.path, self.sysfs.as_deref())?) {
            (State::File(first), State::File(now)) => first.changes(&now),
            (State::Device(first), State::Device(now)) => first.changes(&now),
            _ => vec!["something else has its name".to_owned()],
        })
    }
}

/// Opens for reading, without waiting for another process if a pipe has taken the file's name.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Writes out what the page cache has of a device and its partitions, or of a file. Only then is it counted, and only
/// then does a write through a mapping change the file's times again.
fn flush(path: &Path, file: &File, sysfs: Option<&Path>) -> anyhow::Result<()> {
    let partitions = sysfs.map(in_use::devices_of).transpose()?.unwrap_or_default().into_iter();
    for partition in partitions.filter(|device| Some(device.sysfs.as_path()) != sysfs) {
        // A missing node cannot have been used for writing.
        if let Ok(node) = File::open(Path::new("/dev").join(partition.name.replace('!', "/"))) {
            write_out(&node).with_context(|| format!("writing out what is cached of /dev/{}", partition.name))?;
        }
    }
    write_out(file).with_context(|| format!("writing out what is cached of {}", path.display()))
}

/// Some file systems and read-only media do not support this.
fn write_out(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EROFS | libc::ENOSYS | libc::EOPNOTSUPP)) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Reads the state of the device with this directory in sysfs, or else of the file that has this name now.
fn look(path: &Path, sysfs: Option<&Path>) -> anyhow::Result<State> {
    let looking = || format!("looking at {}", path.display());
    match sysfs {
        Some(sysfs) => Ok(State::Device(DeviceState::of(sysfs).with_context(looking)?)),
        // It is opened again, so that a file server has to report what others changed.
        None => Ok(State::File(FileState::of(&open(path).and_then(|file| file.metadata()).with_context(looking)?))),
    }
}

impl State {
    /// Whether a further write could leave the same times.
    fn is_recent(&self) -> bool {
        let State::File(file) = self else { return false };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let since = i128::try_from(now).unwrap_or(i128::MAX) - file.modified.max(file.changed);
        u128::try_from(since).is_ok_and(|since| since < TICK.as_nanos())
    }
}

impl FileState {
    fn of(found: &Metadata) -> FileState {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        FileState {
            identity: (found.dev(), found.ino()),
            len: found.len(),
            modified: nanoseconds(found.mtime(), found.mtime_nsec()),
            changed: nanoseconds(found.ctime(), found.ctime_nsec()),
        }
    }

    fn changes(&self, now: &FileState) -> Vec<String> {
        if self.identity != now.identity {
            return vec!["another file has its name".to_owned()];
        }
        let mut changes = Vec::new();
        if self.len != now.len {
            changes.push(format!("it had {} bytes and has {}", self.len, now.len));
        }
        if self.modified != now.modified {
            changes.push("it has another modification time".to_owned());
        } else if self.changed != now.changed {
            changes.push("its bytes, owner, mode or links were changed (it has another change time)".to_owned());
        }
        changes
    }
}

impl DeviceState {
    fn of(sysfs: &Path) -> io::Result<DeviceState> {
        // A partition shares the medium and the queue of its disk.
        let disk = if sysfs.join("partition").exists() { sysfs.parent().unwrap_or(sysfs) } else { sysfs };
        let number = |path: PathBuf| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
        let sectors = number(sysfs.join("size")).ok_or_else(|| {
            io::Error::other(format!("there is no number of sectors in {}", sysfs.join("size").display()))
        })?;
        let is_counted = number(disk.join("queue/iostats")) != Some(0);
        let counts = fs::read_to_string(sysfs.join("stat")).unwrap_or_default();
        Ok(DeviceState {
            generation: number(disk.join("diskseq")),
            len: sectors.saturating_mul(SECTOR),
            writes: Writes::parse(&counts).filter(|_| is_counted),
        })
    }

    fn changes(&self, now: &DeviceState) -> Vec<String> {
        let mut changes = Vec::new();
        if self.generation != now.generation {
            changes.push("it has another medium, or something else is attached to it".to_owned());
        }
        if self.len != now.len {
            changes.push(format!("it had {} bytes and has {}", self.len, now.len));
        }
        match (self.writes, now.writes) {
            (Some(first), Some(now)) => changes.extend(first.changes(&now)),
            (Some(_), None) => changes.push("the kernel stopped counting what is written to it".to_owned()),
            (None, _) => {}
        }
        changes
    }
}

impl Writes {
    /// Parses `stat` of a block device in sysfs. Kernels before 4.18 do not count discards.
    fn parse(text: &str) -> Option<Writes> {
        let fields: Vec<u64> = text.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        Some(Writes {
            written_sectors: *fields.get(6)?,
            discards: fields.get(11).copied().unwrap_or_default(),
            discarded_sectors: fields.get(13).copied().unwrap_or_default(),
        })
    }

    fn changes(&self, now: &Writes) -> Vec<String> {
        // The counters wrap.
        let bytes = |first: u64, now: u64| now.wrapping_sub(first).saturating_mul(SECTOR);
        let mut changes = Vec::new();
        if self.written_sectors != now.written_sectors {
            changes.push(format!("{} bytes were written to it", bytes(self.written_sectors, now.written_sectors)));
        }
        if (self.discards, self.discarded_sectors) != (now.discards, now.discarded_sectors) {
            changes
                .push(format!("{} bytes of it were discarded", bytes(self.discarded_sectors, now.discarded_sectors)));
        }
        changes
    }
}

/// Chooses the pieces that are read twice.
pub(crate) struct Sample;

impl Sample {
    /// Most pieces in the sample.
    const LEN: u32 = 64;

    /// Whether a piece is in the sample, for this number of pieces: the first and the last always are, the others are
    /// evenly spread. The choice is the same every time.
    pub(crate) fn choose(piece_count: u32) -> impl Fn(u32) -> bool {
        let last = piece_count.saturating_sub(1);
        let chosen = Sample::LEN.min(piece_count);
        let gaps = u64::from(chosen.saturating_sub(1).max(1));
        let nth = move |n: u32| u64::from(n) * u64::from(last) / gaps;
        let chosen: Vec<u64> = (0..chosen).map(nth).collect();
        move |piece| chosen.binary_search(&u64::from(piece)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::ops::Range;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::holders::tests::{Loop, disk};

    /// A source whose state is recorded and whose ranges are noted, and a descriptor that reads it.
    fn begin(path: &Path, ranges: &[Range<u64>]) -> (Steady, File) {
        let mut steady = Steady::begin(&[path]).expect("looked at");
        let file = File::open(path).expect("opened");
        for range in ranges {
            let bytes = read(&file, range);
            steady.note(DiskRange::new(range.clone()), &bytes);
        }
        (steady, file)
    }

    fn read(file: &File, range: &Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).expect("small")];
        file.read_exact_at(&mut bytes, range.start).expect("read");
        bytes
    }

    fn changes(steady: &Steady, file: &File) -> String {
        let reread = |buf: &mut [u8], at: DiskOffset| Ok(file.read_exact_at(buf, at.0)?);
        steady.changes(reread).expect("looked at again").join("; ")
    }

    fn writable(path: &Path) -> File {
        OpenOptions::new().write(true).open(path).expect("opened")
    }

    #[test]
    fn reading_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        let device = Loop::over(&path, &["--partscan", "--read-only"]);
        for source in [&path, device.path(), &device.partition(1)] {
            let (steady, mut file) = begin(source, &[0..512, 4096..5000, 100..900_000]);
            let upper = Loop::over(source, &["--read-only", "--offset=4096"]);
            io::copy(&mut File::open(upper.path()).expect("opened"), &mut io::sink()).expect("read");
            drop(upper);
            file.read_to_end(&mut Vec::new()).expect("read");
            writable(&dir.path().join("disk")).sync_all().expect("flushed");
            for _ in 0..2 {
                let reread = |buf: &mut [u8], at: DiskOffset| Ok(file.read_exact_at(buf, at.0)?);
                steady.check(reread).expect("nothing changed");
            }
        }
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        let (steady, file) = begin(&path, &[]);
        writable(&path).write_all_at(b"x", 5 << 20).expect("written");
        assert_eq!(changes(&steady, &file), format!("{}: it has another modification time", path.display()));

        let (steady, file) = begin(&path, &[]);
        writable(&path).set_len(9 << 20).expect("longer");
        let said = changes(&steady, &file);
        assert!(said.contains("it had 8388608 bytes and has 9437184, it has another modification time"), "{said}");

        let (steady, file) = begin(&path, &[]);
        fs::hard_link(&path, dir.path().join("link")).expect("linked");
        assert!(changes(&steady, &file).contains("another change time"));

        let (steady, file) = begin(&path, &[]);
        fs::copy(&path, dir.path().join("copy")).expect("copied");
        fs::rename(dir.path().join("copy"), &path).expect("renamed");
        assert!(changes(&steady, &file).contains("another file has its name"));
        fs::remove_file(&path).expect("removed");
        assert!(changes(&steady, &file).contains("the file is gone"));
    }

    #[test]
    fn a_modification_time_that_is_set_back_hides_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        let (steady, file) = begin(&path, &[0..512, 4096..4608, 8192..8704]);
        let modified = file.metadata().and_then(|found| found.modified()).expect("a time");
        let writer = writable(&path);
        writer.write_all_at(b"x", 4500).expect("written");
        writer.set_modified(modified).expect("set back");
        let reread = |buf: &mut [u8], at: DiskOffset| Ok(file.read_exact_at(buf, at.0)?);
        let said = steady.check(reread).expect_err("it changed").to_string();
        for part in ["changed while it was read", "another change time", "nothing was kept", "lvcreate --snapshot"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(said.contains("; bytes 4096 to 4608 are not what was read first. "), "{said}");
        assert!(!said.contains("modification time"), "{said}");
    }

    #[test]
    fn files_that_partitions_come_from_are_looked_at() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        let apart = dir.path().join("partition");
        fs::write(&apart, b"bytes").expect("written");
        let steady = Steady::begin(&[&path, &apart]).expect("looked at");
        let file = File::open(&path).expect("opened");
        assert_eq!(changes(&steady, &file), "");
        fs::write(&apart, b"other").expect("written");
        assert!(changes(&steady, &file).starts_with(&format!("{}: ", apart.display())));
        assert!(Steady::begin(&[]).is_err());
        assert!(Steady::begin(&[&dir.path().join("missing")]).is_err());
    }

    #[test]
    fn a_device_that_is_written_to_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let device = Loop::over(&disk(dir.path()), &[]);
        // This is not written out yet, so it is no change later.
        let early = writable(device.path());
        early.write_all_at(&[1; 4096], 8192).expect("written");
        let (steady, file) = begin(device.path(), &[0..512, 8192..8704]);
        assert_eq!(changes(&steady, &file), "");
        // The data is still in the page cache, and the writer has the device open.
        early.write_all_at(&[1; 8192], 1 << 20).expect("written");
        let said = changes(&steady, &file);
        assert_eq!(said, format!("{}: 8192 bytes were written to it", device.path().display()));
        early.write_all_at(&[2; 4096], 8192).expect("written");
        let said = changes(&steady, &file);
        let wanted = ": 12288 bytes were written to it; bytes 8192 to 8704 are not what was read first";
        assert!(said.ends_with(wanted), "{said}");

        let (steady, file) = begin(device.path(), &[]);
        let mut discard = Command::new("blkdiscard");
        discard.args(["--force", "--offset", "1048576", "--length", "1048576"]).arg(device.path());
        assert!(status_of(&mut discard), "blkdiscard failed");
        assert!(changes(&steady, &file).contains("1048576 bytes of it were discarded"));

        let (steady, file) = begin(device.path(), &[]);
        fs::write(dir.path().join("disk"), vec![0; 4 << 20]).expect("shorter");
        assert!(status_of(Command::new("losetup").arg("--set-capacity").arg(device.path())), "losetup failed");
        assert!(changes(&steady, &file).contains("it had 8388608 bytes and has 4194304"));
    }

    fn status_of(command: &mut Command) -> bool {
        command.status().expect("the tool is there (apt install util-linux)").success()
    }

    #[test]
    fn a_partition_has_its_own_writes_and_its_disk_has_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let device = Loop::over(&disk(dir.path()), &["--partscan"]);
        let [first, second] = [1, 2].map(|number| device.partition(number));
        let all = [device.path(), &first, &second].map(|path| begin(path, &[]));
        // This goes through the page cache of the partition, which is not that of its disk.
        let mut writer = writable(&second);
        writer.write_all(&[1; 4096]).expect("written");
        let all = all.map(|(steady, file)| changes(&steady, &file));
        assert!(all[0].contains("4096 bytes were written") && all[2].contains("4096 bytes were written"), "{all:?}");
        assert_eq!(all[1], "");
    }

    /// The file under a loop device changes unseen by the device, as data on a shared disk does: nothing counts that.
    #[test]
    fn noted_bytes_are_read_past_the_page_cache() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        let device = Loop::over(&path, &[]);
        let (steady, file) = begin(device.path(), &[0..512, 70_000..80_000, (8 << 20) - 512..8 << 20]);
        assert_eq!(changes(&steady, &file), "");
        writable(&path).write_all_at(b"x", 75_000).expect("written");
        assert_eq!(read(&file, &(75_000..75_001)), [0], "it is in the page cache");
        assert_eq!(changes(&steady, &file), "bytes 70000 to 80000 are not what was read first");
    }

    #[test]
    fn a_device_that_is_another_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        let device = Loop::over(&path, &[]);
        let sysfs = in_use::sysfs_of(&fs::metadata(device.path()).expect("a node")).expect("in sysfs");
        let first = DeviceState::of(&sysfs).expect("there");
        assert!(first.generation.is_some() && first.writes.is_some() && first.len == 8 << 20);
        let other = DeviceState { generation: first.generation.map(|number| number + 1), ..first };
        assert_eq!(first.changes(&other), ["it has another medium, or something else is attached to it"]);
        let uncounted = DeviceState { writes: None, ..first };
        assert_eq!(first.changes(&uncounted), ["the kernel stopped counting what is written to it"]);
        assert_eq!((uncounted.changes(&first), first.changes(&first)), (vec![], vec![]));
    }

    #[test]
    fn what_cannot_be_read_again_is_an_error_and_many_changes_are_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        let starts: Vec<u64> = (0..10).map(|number| number * 1000).collect();
        let (steady, _) = begin(&path, &starts.iter().map(|&start| start..start + 10).collect::<Vec<_>>());
        let error = steady.check(|_, _| bail!("bad sector")).expect_err("not read");
        assert_eq!(format!("{error:#}"), "looking again at bytes 0 to 10 of the source: bad sector");
        let ones = |buf: &mut [u8], _| {
            buf.fill(1);
            Ok(())
        };
        let said = steady.changes(ones).expect("read").join("; ");
        assert_eq!(
            said,
            "bytes 0 to 10, 1000 to 1010, 2000 to 2010, 3000 to 3010, 6 more ranges are not what was read first"
        );
    }

    #[test]
    fn notes_do_not_fill_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut steady = Steady::begin(&[&disk(dir.path())]).expect("looked at");
        for at in 0..u64::try_from(NOTES_MAX).expect("small") + 10 {
            steady.note(DiskRange::new(at..at + 1), &[0]);
        }
        steady.note(DiskRange::new(0..0), &[]);
        assert_eq!(steady.notes.len(), NOTES_MAX);
        assert!(size_of::<Note>() <= 40);
    }

    #[test]
    fn counters_parse() {
        let old = "  48 0 2088 48 3 2 24 6 0 16 60";
        let new = format!("{old} 1 0 2048 0 2 5\n");
        let writes = |discards, discarded_sectors| Writes { written_sectors: 24, discards, discarded_sectors };
        assert_eq!(Writes::parse(old), Some(writes(0, 0)));
        assert_eq!(Writes::parse(&new), Some(writes(1, 2048)));
        for bad in ["", "1 2 3 4 5 6", "1 2 3 4 5 6 x"] {
            assert_eq!(Writes::parse(bad), None, "{bad}");
        }
        let wrapped = Writes { written_sectors: u64::MAX, ..writes(0, 0) };
        assert_eq!(wrapped.changes(&writes(0, 0)), ["12800 bytes were written to it"]);
    }

    proptest! {
        #[test]
        fn samples_are_spread_and_have_both_ends(count: u32, small in 0_u32..300) {
            for count in [count % 200_000, small] {
                let is_chosen = Sample::choose(count);
                let chosen: Vec<u32> = (0..count).filter(|&piece| is_chosen(piece)).collect();
                prop_assert_eq!(chosen.len(), usize::try_from(count.min(64)).expect("small"));
                prop_assert_eq!(chosen.first().copied(), (count > 0).then_some(0));
                prop_assert_eq!(chosen.last().copied(), count.checked_sub(1));
                let gaps: Vec<u32> = chosen.windows(2).map(|two| two[1] - two[0]).collect();
                let [least, most] = [gaps.iter().min(), gaps.iter().max()].map(|gap| gap.copied().unwrap_or_default());
                prop_assert!(most - least <= 1, "{:?}", gaps);
                prop_assert!(!is_chosen(count) && !is_chosen(u32::MAX));
            }
        }

        #[test]
        fn no_counters_are_too_odd(text in "[0-9 x\\n-]{0,80}", other in "[0-9 ]{0,80}") {
            if let (Some(first), Some(now)) = (Writes::parse(&text), Writes::parse(&other)) {
                let _ = first.changes(&now);
            }
        }
    }
}

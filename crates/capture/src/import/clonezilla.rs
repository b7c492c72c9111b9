//! A Clonezilla image directory becomes the disk it was made from, which is then captured like any other.
//!
//! The partition table comes from the sectors of it that Clonezilla kept. Each partition comes from its stream: split,
//! compressed, and made by partclone (restored by `partclone.restore`) or by dd. Every partition becomes a separate
//! sparse file in the draft, so nothing is copied to assemble the disk; these files are deleted when the image is
//! listed. Partitions that are not in the directory (saveparts) are left out of the image.

mod partclone_head;
mod saved;
mod stream;
mod table;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use layout::parttable::{Table, TableKind};
use metainfo::SwapFacts;

use self::partclone_head::Head;
use self::saved::{Files, Kept, Saved};
use self::stream::Stream;
use super::new_image::NewImage;
use crate::child::{Running, said};
use crate::content::write_sparse;
use crate::make::{CaptureOptions, make_image};
use crate::partclone::{find_program, last_words};
use crate::source::Source;
use library::space::check_room;
use library::{Draft, Image};
use terminal::Progress;

/// Bytes that go through memory at a time.
const BUFFER_LEN: usize = 1 << 20;
/// The page size of the machines that Clonezilla runs on, in bytes; Clonezilla does not record it.
const SWAP_PAGE_SIZE: u32 = 4096;
/// Bytes of an NTFS boot sector that matter, however long its sectors are.
const NTFS_SECTOR_LEN: usize = 512;

/// Whether a directory looks like one of Clonezilla's.
pub(super) fn is_clonezilla(dir: &Path) -> bool {
    saved::is_clonezilla(dir)
}

/// Imports the disk called `disk` there (the only one, if not given) as image `name`.
///
/// # Errors
/// If the directory is incomplete, encrypted, or has parts that cannot be assembled; the message says which, and what
/// to do.
pub(super) fn import(
    new: NewImage<'_>,
    dir: &Path,
    disk: Option<&str>,
    mut options: CaptureOptions,
    stop: &AtomicBool,
) -> anyhow::Result<Image> {
    let saved = Saved::read(dir, disk)?;
    let draft = new.draft()?;
    let scratch = draft.scratch()?;
    // It has the disk's name, because people see it in messages.
    let base = scratch.join(&saved.disk);
    let mut source = None;
    let mut streams = Vec::new();
    if let Some(files) = saved.whole_disk()? {
        streams.push(PartitionStream {
            name: saved.disk.clone(),
            path: base.clone(),
            len: None,
            kept: Kept::Stream(files),
        });
    } else {
        let sector_size = table::rebuild(&saved, &base, stop)?;
        let mut disk = Source::open(&base)?;
        disk.sector_size = Some(sector_size);
        let reading = || format!("reading the partition table of {} that Clonezilla kept", saved.disk);
        let table = Table::read(&mut &disk.file, disk.len, sector_size).with_context(reading)?;
        ensure!(table.kind != TableKind::None, "{} has no partition table of {}", dir.display(), saved.disk);
        let mut known = Vec::new();
        for partition in table.partitions.iter().filter(|partition| !partition.is_extended) {
            let name = saved.name_of(partition.number);
            known.push(name.clone());
            match saved.kept(&name)? {
                Kept::Nothing => {
                    log::warn!(
                        "{name} is not in {}: it is left out, and disks that get this image lose it",
                        dir.display()
                    );
                    disk.set_partition(partition.range(), None)?;
                }
                kept => {
                    let path = scratch.join(&name);
                    streams.push(PartitionStream { name, path, len: Some(partition.len), kept });
                }
            }
        }
        if let Some(stray) = saved.parts.iter().find(|part| !known.contains(part)) {
            bail!("{} lists {stray}, which the partition table of {} does not have", dir.display(), saved.disk);
        }
        source = Some((disk, table));
    }

    unpack(&saved.disk, &streams, &draft, stop)?;
    let source = match source {
        None => Source::open(&base)?,
        Some((mut disk, table)) => {
            for partition in &table.partitions {
                let name = saved.name_of(partition.number);
                if let Some(stream) = streams.iter().find(|stream| stream.name == name) {
                    disk.set_partition(partition.range(), Some(stream.path.clone()))?;
                }
            }
            disk
        }
    };
    options.origin.source = format!("{} ({})", options.origin.source, saved.disk);
    Ok(make_image(&source, draft, options, stop)?.0)
}

/// A file that is not a plain disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packed {
    /// An image that partclone made.
    Partclone,
    /// It is compressed, with unknown contents.
    Compressed {
        /// The command that unpacks it.
        unpacker: String,
    },
}

impl Packed {
    /// Examines the first bytes of a file; `None` for a plain disk.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn find(file: &Path) -> anyhow::Result<Option<Packed>> {
        let mut start = Vec::new();
        let read = File::open(file).and_then(|open| open.take(partclone_head::LEN as u64).read_to_end(&mut start));
        read.with_context(|| format!("reading {}", file.display()))?;
        if partclone_head::is_partclone(&start) {
            return Ok(Some(Packed::Partclone));
        }
        Ok(stream::unpacker(&start).map(|unpacker| Packed::Compressed { unpacker }))
    }
}

/// Imports the partition that partclone wrote to a single file, compressed or not.
///
/// # Errors
/// If the file is compressed but no partclone image, or is damaged; the message says which, and what to do.
pub(super) fn import_file(
    new: NewImage<'_>,
    file: &Path,
    packed: &Packed,
    options: CaptureOptions,
    stop: &AtomicBool,
) -> anyhow::Result<Image> {
    let draft = new.draft()?;
    let scratch = draft.scratch()?;
    // The user may name a link to it, but no link is followed later.
    let path = fs::canonicalize(file).with_context(|| format!("opening {}", file.display()))?;
    let files = Files::new(vec![path], None)?;
    let shown = file.display();
    if let Packed::Compressed { unpacker } = packed
        && !partclone_head::is_partclone(&Stream::open(&files, &scratch)?.start(partclone_head::LEN)?)
    {
        bail!(
            "{shown} is compressed, and what is in it is no partclone image: unpack it first, as with `{unpacker}`, and \
             import what comes out"
        );
    }
    ensure!(
        !options.choices.whole,
        "{shown} is a partclone image, which has no more than the blocks in use: leave --whole out"
    );
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let streams = [PartitionStream { name, path: scratch.join("partition"), len: None, kept: Kept::Stream(files) }];
    unpack(&streams[0].name, &streams, &draft, stop)?;
    Ok(make_image(&Source::open(&streams[0].path)?, draft, options, stop)?.0)
}

/// Makes the files of all partitions of the source named `what`.
fn unpack(what: &str, streams: &[PartitionStream], draft: &Draft, stop: &AtomicBool) -> anyhow::Result<()> {
    let scratch = draft.scratch()?;
    let needed = streams.iter().map(|stream| stream.needed(&scratch)).sum::<anyhow::Result<u64>>()?;
    // The content is equally long, and the partitions stay until it is complete.
    check_room(draft.library_dir(), needed.saturating_mul(2)).context("making room for the disk and for its image")?;
    say!("putting {what} together: {} of data; this temporarily takes twice the space", units::size(needed));
    let mut progress = Progress::new("unpacking", streams.iter().map(PartitionStream::len_packed).sum());
    for stream in streams {
        let unpacking = || format!("unpacking {}", stream.name);
        stream.unpack(&scratch, &mut progress, stop).with_context(unpacking)?;
    }
    progress.finish();
    Ok(())
}

/// A partition that is to be unpacked.
struct PartitionStream {
    name: String,
    path: PathBuf,
    /// Length of the partition in bytes; `None` if it was not recorded.
    len: Option<u64>,
    kept: Kept,
}

impl PartitionStream {
    /// The space that unpacking needs, in bytes, as far as the head shows it.
    fn needed(&self, scratch: &Path) -> anyhow::Result<u64> {
        let Kept::Stream(files) = &self.kept else { return Ok(0) };
        let mut stream = Stream::open(files, scratch)?;
        let start = stream.start(partclone_head::LEN)?;
        match Head::parse(&start) {
            Some(head) => {
                let len = self.len.unwrap_or(u64::MAX);
                ensure!(
                    head.device_size <= len,
                    "{} holds a file system of {} bytes, the partition has {len}: they do not belong together",
                    files.shown(),
                    head.device_size
                );
                Ok(head.used_len)
            }
            None if partclone_head::is_partclone(&start) => Ok(0),
            None => Ok(self.len.unwrap_or(0)),
        }
    }

    fn len_packed(&self) -> u64 {
        match &self.kept {
            Kept::Stream(files) => files.len,
            Kept::Swap { .. } | Kept::Nothing => 0,
        }
    }

    fn unpack(&self, scratch: &Path, progress: &mut Progress, stop: &AtomicBool) -> anyhow::Result<()> {
        let making = || format!("making {}", self.path.display());
        let file = File::options().read(true).write(true).create_new(true).open(&self.path).with_context(making)?;
        match &self.kept {
            Kept::Nothing => {}
            Kept::Swap { uuid, label } => {
                let length = self.len.context("a swap area without a partition")?;
                let (uuid, label) = (uuid.clone(), label.clone());
                let facts = SwapFacts { offset: 0, length, page_size: SWAP_PAGE_SIZE, label, uuid };
                let (_, page) = restore::swap_page(&facts).map_err(anyhow::Error::msg)?;
                file.write_all_at(&page, 0).with_context(making)?;
            }
            Kept::Stream(files) => {
                let mut stream = Stream::open(files, scratch)?;
                let start = stream.start(partclone_head::LEN)?;
                if partclone_head::is_partclone(&start) {
                    self.restore(&start, stream, scratch, progress, stop)?;
                } else {
                    self.copy(&file, &start, stream, progress, stop)?;
                }
            }
        }
        if let Some(len) = self.len {
            let found = file.metadata().with_context(making)?.len();
            ensure!(found <= len, "it has {found} bytes, the partition only {len}: they do not belong together");
            file.set_len(len).with_context(making)?;
        }
        keep_ntfs_copy(&file).with_context(making)
    }

    /// Copies bytes that are stored unchanged.
    fn copy(
        &self,
        file: &File,
        start: &[u8],
        mut stream: Stream,
        progress: &mut Progress,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        let mut at: u64 = 0;
        let mut buf = vec![0; BUFFER_LEN];
        buf[..start.len()].copy_from_slice(start);
        let mut len = start.len();
        loop {
            let read = stream.read(&mut buf[len..])?;
            progress.advance(stream.taken());
            len += read;
            ensure!(!stop.load(Ordering::Relaxed), "interrupted");
            if read > 0 && len < buf.len() {
                continue;
            }
            let end = at + u64::try_from(len)?;
            let room = self.len.unwrap_or(u64::MAX);
            ensure!(end <= room, "it has more than the partition's {room} bytes: they do not belong together");
            file.set_len(end)
                .and_then(|()| write_sparse(file, &buf[..len], at))
                .context("writing it: is the disk full?")?;
            (at, len) = (end, 0);
            if read == 0 {
                break;
            }
        }
        let room = self.len.unwrap_or(at);
        ensure!(at == room, "it ends after {at} of {room} bytes: the directory is incomplete, copy it again");
        stream.finish(stop)
    }

    /// Restores partclone's format.
    fn restore(
        &self,
        start: &[u8],
        mut stream: Stream,
        scratch: &Path,
        progress: &mut Progress,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        let program = find_program("partclone.restore")
            .context("looking for partclone.restore: run `apt install partclone` (as root)")?;
        let output = tempfile::tempfile_in(scratch).context("making room for what partclone says")?;
        let clone = || output.try_clone().context("making room for what partclone says");
        let log = tempfile::Builder::new().prefix("log.").tempfile_in(scratch).context("making room for a log")?;
        // -C: skip the size check, because a file has no size to compare; -W: make the file as long as the file system.
        let child = Command::new(&program)
            .args(["-C", "-W", "-s", "-", "-O"])
            .arg(&self.path)
            .arg("-L")
            .arg(log.path())
            .env("LC_ALL", "C")
            .env("TERM", "dumb")
            .stdin(Stdio::piped())
            .stdout(clone()?)
            .stderr(clone()?)
            .spawn()
            .context("running partclone.restore")?;
        let mut running = Running(child);
        let mut stdin = running.0.stdin.take().context("writing to partclone.restore")?;
        let mut buf = vec![0; BUFFER_LEN];
        let mut part = start;
        let mut len = 0;
        let is_read = loop {
            match stdin.write_all(part) {
                Ok(()) => {}
                // The program has ended, and its exit status will say why.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break false,
                Err(error) => return Err(error).context("writing to partclone.restore"),
            }
            ensure!(!stop.load(Ordering::Relaxed), "interrupted");
            if len == 0 && part.is_empty() {
                break true;
            }
            len = stream.read(&mut buf)?;
            progress.advance(stream.taken());
            part = &buf[..len];
            if len == 0 {
                break true;
            }
        };
        drop(stdin);
        if is_read {
            // A damaged stream is the cause of any error of partclone.
            stream.finish(stop)?;
        }
        let status = running.wait(stop, || ())?;
        let words = || said(&output).map(|said| last_words(&said)).unwrap_or_default();
        ensure!(
            status.success(),
            "partclone.restore could not read it ({status}): it may be damaged, copy it again; it said:\n{}",
            words()
        );
        Ok(())
    }
}

/// Copies the boot sector of an NTFS to the sector after its last one, where Windows keeps a second copy. Partclone
/// does not count that sector as used, and leaves it out.
fn keep_ntfs_copy(file: &File) -> std::io::Result<()> {
    let len = file.metadata()?.len();
    let mut boot = [0; NTFS_SECTOR_LEN];
    if len < boot.len() as u64 {
        return Ok(());
    }
    file.read_exact_at(&mut boot, 0)?;
    let Some(at) = ntfs_copy_at(&boot, len) else { return Ok(()) };
    let mut copy = [0; NTFS_SECTOR_LEN];
    file.read_exact_at(&mut copy, at)?;
    if copy == [0; NTFS_SECTOR_LEN] { file.write_all_at(&boot, at) } else { Ok(()) }
}

/// Where the second boot sector of an NTFS belongs, if this is the first and there is room for another.
fn ntfs_copy_at(boot: &[u8; NTFS_SECTOR_LEN], len: u64) -> Option<u64> {
    let sector_len = u64::from(u16::from_le_bytes([boot[0x0b], boot[0x0c]]));
    let sectors = u64::from_le_bytes(boot[0x28..0x30].try_into().expect("8 bytes"));
    let at = sectors.checked_mul(sector_len)?;
    let is_ntfs = boot[3..11] == *b"NTFS    " && boot[510..] == [0x55, 0xaa];
    let has_room = at >= boot.len() as u64 && at.checked_add(boot.len() as u64)? <= len;
    (is_ntfs && has_room).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_second_boot_sector_lies_behind_the_first_and_in_the_partition(
            sector_len in any::<u16>(),
            sectors in prop_oneof![0u64..100, any::<u64>()],
            len in 512u64..100_000,
        ) {
            let mut boot = [0; NTFS_SECTOR_LEN];
            boot[3..11].copy_from_slice(b"NTFS    ");
            boot[510..].copy_from_slice(&[0x55, 0xaa]);
            boot[0x0b..0x0d].copy_from_slice(&sector_len.to_le_bytes());
            boot[0x28..0x30].copy_from_slice(&sectors.to_le_bytes());
            if let Some(at) = ntfs_copy_at(&boot, len) {
                prop_assert!((512..=len - 512).contains(&at));
            }
            boot[3] = b'n';
            prop_assert_eq!(ntfs_copy_at(&boot, len), None);
        }
    }
}

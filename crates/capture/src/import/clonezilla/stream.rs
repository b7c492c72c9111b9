//! The bytes of a partition before Clonezilla compressed and split them.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, anyhow, bail, ensure};

use super::saved::Files;
use crate::child::{Running, said};
use crate::partclone::{find_program, last_words};
use library::regular;

/// How a stream is compressed.
struct Compression {
    /// The endings that Clonezilla appends to names.
    names: &'static [&'static str],
    /// The first bytes of such streams; one of these.
    magics: &'static [&'static [u8]],
    /// The program that decompresses from standard input, with its options.
    program: &'static [&'static str],
    /// The Debian package of that program.
    package: &'static str,
}

const COMPRESSIONS: [Compression; 9] = [
    Compression { names: &["gz"], magics: &[b"\x1f\x8b\x08"], program: &["gzip", "-dc"], package: "gzip" },
    Compression {
        names: &["zst"],
        // The second is a skippable frame; pzstd's streams start with one.
        magics: &[b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"],
        program: &["zstd", "-dc"],
        package: "zstd",
    },
    Compression { names: &["xz"], magics: &[b"\xfd7zXZ\0"], program: &["xz", "-dc"], package: "xz-utils" },
    Compression {
        names: &["lz4"],
        magics: &[b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"],
        program: &["lz4", "-dc"],
        package: "lz4",
    },
    Compression { names: &["bz2"], magics: &[b"BZh"], program: &["bzip2", "-dc"], package: "bzip2" },
    Compression { names: &["lzo"], magics: &[b"\x89LZO\0"], program: &["lzop", "-dc"], package: "lzop" },
    Compression { names: &["lzip", "lz"], magics: &[b"LZIP"], program: &["lzip", "-dc"], package: "lzip" },
    Compression {
        names: &["lzma"],
        magics: &[b"\x5d\0\0"],
        program: &["xz", "-dc", "--format=lzma"],
        package: "xz-utils",
    },
    Compression { names: &["lrz"], magics: &[b"LRZI"], program: &[], package: "lrzip" },
];

/// Whether Clonezilla appends this to the names of compressed files.
pub(super) fn is_compression(name: &str) -> bool {
    name == "uncomp" || COMPRESSIONS.iter().any(|compression| compression.names.contains(&name))
}

/// The command that unpacks a file with this start: a program with its options. `None` if it is not compressed.
pub(super) fn unpacker(start: &[u8]) -> Option<String> {
    let compression = compression_of(start)?;
    let program = compression.program.join(" ");
    Some(if program.is_empty() { compression.package.to_owned() } else { program })
}

fn compression_of(start: &[u8]) -> Option<&'static Compression> {
    COMPRESSIONS.iter().find(|known| known.magics.iter().any(|magic| start.starts_with(magic)))
}

/// The rest of a partition's files, decompressed.
pub(super) struct Stream {
    out: Box<dyn Read + Send>,
    /// Bytes of the files read so far, and how many of these [`Stream::taken`] has reported.
    read: Arc<AtomicU64>,
    told: u64,
    unpacking: Option<Unpacking>,
}

struct Unpacking {
    program: &'static str,
    running: Running,
    feeder: JoinHandle<io::Result<()>>,
    complaints: File,
}

impl Stream {
    /// Starts reading. `scratch` is a directory for the tools' messages.
    ///
    /// # Errors
    /// If the files cannot be read, are not what their names say, or the program for them is missing.
    pub(super) fn open(files: &Files, scratch: &Path) -> anyhow::Result<Stream> {
        let first = files.paths.first().context("a partition without files")?;
        let mut start = Vec::new();
        let opened = regular::open(first).and_then(|file| file.take(16).read_to_end(&mut start));
        opened.with_context(|| format!("reading {}", first.display()))?;
        let found = compression_of(&start);
        if let Some(name) = files.compression.as_deref().filter(|&name| name != "uncomp")
            && found.is_none_or(|found| !found.names.contains(&name))
        {
            bail!("{} does not start as .{name} files do: it is damaged, copy it again", first.display());
        }
        let read = Arc::new(AtomicU64::new(0));
        let packed = Joined { paths: files.paths.clone().into_iter(), current: None, read: Arc::clone(&read) };
        let Some(compression) = found.filter(|_| files.compression.as_deref() != Some("uncomp")) else {
            return Ok(Stream { out: Box::new(packed), read, told: 0, unpacking: None });
        };
        let [program, options @ ..] = compression.program else {
            bail!(
                "{} is compressed with {}, which cannot be read as a stream: unpack it first, or convert the image in \
                 Clonezilla (ocs-cvtimg-comp) to zstd, and try again",
                first.display(),
                compression.package
            );
        };
        let path = find_program(program).with_context(|| {
            let package = compression.package;
            format!("looking for {program}, which reads {}: run `apt install {package}` (as root)", first.display())
        })?;
        let complaints = tempfile::tempfile_in(scratch).context("making room for what the tools say")?;
        let child = Command::new(path)
            .args(options)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints.try_clone().context("making room for what the tools say")?)
            .spawn()
            .with_context(|| format!("running {program}"))?;
        let mut running = Running(child);
        let stdin = running.0.stdin.take().with_context(|| format!("writing to {program}"))?;
        let out = running.0.stdout.take().with_context(|| format!("reading from {program}"))?;
        let feeder = thread::spawn(move || feed(packed, stdin));
        let unpacking = Some(Unpacking { program, running, feeder, complaints });
        Ok(Stream { out: Box::new(out), read, told: 0, unpacking })
    }

    /// The first `len` bytes, fewer only if the stream ends earlier. Later reads start after them.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn start(&mut self, len: usize) -> anyhow::Result<Vec<u8>> {
        let mut start = Vec::new();
        self.out.by_ref().take(u64::try_from(len)?).read_to_end(&mut start).context("reading it")?;
        Ok(start)
    }

    /// Reads the next bytes; 0 at the end.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> anyhow::Result<usize> {
        self.out.read(buf).context("reading it")
    }

    /// How many bytes of the files were read since the last call.
    pub(super) fn taken(&mut self) -> u64 {
        let read = self.read.load(Ordering::Relaxed);
        let taken = read - self.told;
        self.told = read;
        taken
    }

    /// Call it at the end: checks that everything was read and was intact.
    ///
    /// # Errors
    /// The message of the decompressing program, or why a file could not be read.
    pub(super) fn finish(self, stop: &AtomicBool) -> anyhow::Result<()> {
        let Some(Unpacking { program, mut running, feeder, complaints }) = self.unpacking else { return Ok(()) };
        drop(self.out);
        let status = running.wait(stop, || ())?;
        feeder.join().map_err(|_| anyhow!("the reading thread ended unexpectedly"))?.context("reading it")?;
        let words = || said(&complaints).map(|said| last_words(&said)).unwrap_or_default();
        ensure!(status.success(), "its files are damaged or incomplete, copy them again; {program} said:\n{}", words());
        Ok(())
    }
}

fn feed(mut packed: Joined, mut stdin: impl io::Write) -> io::Result<()> {
    match io::copy(&mut packed, &mut stdin) {
        // The program reads no more; its exit code says why.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        copied => copied.map(|_| ()),
    }
}

/// Files one after the other.
struct Joined {
    paths: std::vec::IntoIter<PathBuf>,
    current: Option<File>,
    read: Arc<AtomicU64>,
}

impl Read for Joined {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(file) = &mut self.current {
                let len = file.read(buf)?;
                if len > 0 || buf.is_empty() {
                    self.read.fetch_add(len as u64, Ordering::Relaxed);
                    return Ok(len);
                }
            }
            let Some(path) = self.paths.next() else { return Ok(0) };
            let opened = regular::open(&path);
            self.current =
                Some(opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?);
        }
    }
}

//! Measures how fast a disk becomes an image, compared with partclone's BT files and with the limits of disk and cores.

use std::fs::{self, File};
use std::io::Write as _;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::summary::Figure;

/// Number of files that hold nearly all of the data.
const LARGE_FILES: u64 = 8;
/// Number of small files, of `SMALL_LEN` bytes each.
const SMALL_FILES: u64 = 4_000;
const SMALL_LEN: u64 = 9_000;
const BLOCK: usize = 1 << 20;
const MEMORY: &str = "/dev/shm";

/// What is to be measured, and how often.
#[derive(Args, Clone, Debug)]
pub struct CaptureOptions {
    /// Bytes in use on the disk in MiB; it has twice as many.
    #[arg(long, default_value_t = 4096)]
    mib: u64,
    /// How often everything is run, in turns; medians are shown.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Seconds of rest for the disk before anything is written to it, for disks that are fast only for a while.
    #[arg(long, default_value_t = 0)]
    rest: u64,
    /// Our program.
    #[arg(long, default_value = "target/release/ezio")]
    ezio: PathBuf,
    /// Where the table goes; the disk image and its copies are made there too, and deleted.
    #[arg(long, default_value = "build/bench")]
    out: PathBuf,
}

/// The programs that are timed, in the order of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Read,
    Hash,
    Write,
    Live,
    Ours,
    Partclone,
    /// [`Subject::Partclone`], timed until everything is on the disk, as with ours.
    PartcloneFlushed,
    OursInMemory,
    PartcloneInMemory,
}

impl Subject {
    const ALL: [(Subject, &str); 9] = [
        (Subject::Read, "reading alone"),
        (Subject::Hash, "SHA-1 alone (`openssl speed`, all cores)"),
        (Subject::Write, "writing alone (`dd oflag=direct`)"),
        (Subject::Live, "`ezio capture --live`: reads and hashes"),
        (Subject::Ours, "`ezio capture`: reads, hashes, writes, flushed"),
        (Subject::Partclone, "`partclone.ext4 -c -T`"),
        (Subject::PartcloneFlushed, "`partclone.ext4 -c -T`, then `sync`"),
        (Subject::OursInMemory, "`ezio capture` to memory (tmpfs)"),
        (Subject::PartcloneInMemory, "`partclone.ext4 -c -T` to memory (tmpfs)"),
    ];
}

/// Measures everything, and writes the table to `capture.md`.
///
/// # Errors
/// If a tool is missing or fails, or there is no space.
pub fn run(options: &CaptureOptions) -> Result<ExitCode> {
    fs::create_dir_all(&options.out).with_context(|| format!("making {}", options.out.display()))?;
    let bench = Bench {
        disk: Scratch::make(options.out.join("capture.tmp"))?,
        memory: Scratch::make(Path::new(MEMORY).join(format!("ezio-bench.{}", std::process::id())))?,
        ezio: fs::canonicalize(&options.ezio)
            .with_context(|| format!("looking for {}: build it first", options.ezio.display()))?,
    };
    let used = make_disk(&bench.disk.0, options.mib << 20)?;
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); Subject::ALL.len()];
    for turn in 0..options.runs {
        let mut partclone = None;
        for ((subject, name), times) in Subject::ALL.iter().zip(&mut times) {
            if matches!(subject, Subject::Write | Subject::Ours | Subject::Partclone) {
                thread::sleep(Duration::from_secs(options.rest));
            }
            let seconds = match subject {
                Subject::PartcloneFlushed => partclone.unwrap_or_default() + timed(&mut Command::new("sync"))?,
                _ => bench.time(*subject, used)?,
            };
            if *subject == Subject::Partclone {
                partclone = Some(seconds);
            }
            println!("turn {} of {}: {name}: {seconds:.2} s", turn + 1, options.runs);
            times.push(seconds);
        }
    }
    let table = table(used, &times);
    println!("\n{table}");
    let path = options.out.join("capture.md");
    fs::write(&path, &table).with_context(|| format!("writing {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

struct Bench {
    disk: Scratch,
    memory: Scratch,
    ezio: PathBuf,
}

impl Bench {
    /// Seconds that the subject takes; its output is deleted before the next measurement starts.
    fn time(&self, subject: Subject, used: u64) -> Result<f64> {
        let disk = self.disk.0.as_path();
        let seconds = match subject {
            Subject::Read => {
                let started = Instant::now();
                let read = read_all(&disk_image(disk))?;
                ensure!(read >= used, "only {read} of {used} bytes could be read");
                started.elapsed().as_secs_f64()
            }
            Subject::Hash => used as f64 / openssl_rate()?,
            Subject::Write => {
                let mut dd = Command::new("dd");
                dd.arg(format!("if={}", disk_image(disk).display())).arg(format!("of={}", disk.join("dd").display()));
                dd.args(["bs=1M", "iflag=count_bytes", "oflag=direct", "conv=fsync"]).arg(format!("count={used}"));
                timed(&mut dd)?
            }
            Subject::Live => timed(self.ezio(disk).arg("--live"))?,
            Subject::Ours => timed(&mut self.ezio(disk))?,
            Subject::OursInMemory | Subject::PartcloneInMemory => {
                self.touch_memory(used)?;
                let ours = subject == Subject::OursInMemory;
                timed(&mut if ours { self.ezio(&self.memory.0) } else { self.partclone(&self.memory.0)? })?
            }
            Subject::Partclone => timed(&mut self.partclone(disk)?)?,
            Subject::PartcloneFlushed => bail!("it is timed together with another"),
        };
        // Partclone's files stay until they are flushed, because that is timed as well.
        if subject != Subject::Partclone {
            self.clear()?;
        }
        Ok(seconds)
    }

    /// Takes as many bytes of memory as will be needed and returns them: a virtual machine may have to get them from
    /// its host, which is slow and depends on what ran before.
    fn touch_memory(&self, len: u64) -> Result<()> {
        let mut dd = Command::new("dd");
        dd.arg("if=/dev/zero").arg(format!("of={}", self.memory.0.join("dd").display()));
        timed(dd.args(["bs=1M", "iflag=count_bytes"]).arg(format!("count={len}")))?;
        remove(&self.memory.0.join("dd"), |path| fs::remove_file(path))
    }

    fn ezio(&self, dir: &Path) -> Command {
        let mut ezio = Command::new(&self.ezio);
        ezio.arg("capture").arg(disk_image(&self.disk.0)).args([
            "--name",
            "bench",
            "--replace",
            "--uncompressed",
            "--library",
        ]);
        ezio.arg(dir.join("library"));
        ezio
    }

    fn partclone(&self, dir: &Path) -> Result<Command> {
        let files = dir.join("bt");
        fs::create_dir_all(&files).with_context(|| format!("making {}", files.display()))?;
        let mut partclone = Command::new("partclone.ext4");
        partclone.args(["-c", "-T", "-B", "-q", "-L"]).arg(dir.join("log")).arg("-s").arg(disk_image(&self.disk.0));
        // Partclone appends the file names directly to this.
        partclone.arg("-O").arg(format!("{}/", files.display()));
        Ok(partclone)
    }

    fn clear(&self) -> Result<()> {
        for dir in [&self.disk.0, &self.memory.0] {
            for name in ["library", "bt"] {
                remove(&dir.join(name), |path| fs::remove_dir_all(path))?;
            }
            for name in ["dd", "log"] {
                remove(&dir.join(name), |path| fs::remove_file(path))?;
            }
        }
        timed(&mut Command::new("sync")).map(|_| ())
    }
}

/// A directory that is deleted when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make(dir: PathBuf) -> Result<Scratch> {
        remove(&dir, |path| fs::remove_dir_all(path))?;
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Scratch(fs::canonicalize(&dir).with_context(|| format!("finding {}", dir.display()))?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is still there: {error}", self.0.display());
        }
    }
}

fn remove(path: &Path, remove: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    match remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
    .with_context(|| format!("deleting {}", path.display()))
}

fn disk_image(dir: &Path) -> PathBuf {
    dir.join("disk.img")
}

/// Makes an ext4 with about `used` bytes of files on a disk image of twice the size; returns how many of its bytes are
/// not holes.
fn make_disk(dir: &Path, used: u64) -> Result<u64> {
    let tree = dir.join("tree");
    let small = tree.join("small");
    fs::create_dir_all(&small).with_context(|| format!("making {}", small.display()))?;
    let mut random = SmallRng::seed_from_u64(used);
    for i in 0..SMALL_FILES {
        fill(&small.join(i.to_string()), SMALL_LEN, &mut random)?;
    }
    let rest = used.checked_sub(SMALL_FILES * SMALL_LEN).context("too few MiB")? / LARGE_FILES;
    for i in 0..LARGE_FILES {
        fill(&tree.join(i.to_string()), rest, &mut random)?;
    }
    let image = disk_image(dir);
    let file = File::create(&image).with_context(|| format!("making {}", image.display()))?;
    file.set_len(2 * used).with_context(|| format!("making {}", image.display()))?;
    timed(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).arg(&image))?;
    fs::remove_dir_all(&tree).with_context(|| format!("deleting {}", tree.display()))?;
    file.sync_all().with_context(|| format!("flushing {}", image.display()))?;
    read_all(&image)
}

fn fill(path: &Path, len: u64, random: &mut SmallRng) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    let mut file = File::create(path).with_context(writing)?;
    let mut buf = vec![0; BLOCK];
    let mut left = len;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        random.fill_bytes(&mut buf[..now]);
        file.write_all(&buf[..now]).with_context(writing)?;
        left -= now as u64;
    }
    Ok(())
}

/// Reads everything that is not a hole, and returns how many bytes that was.
fn read_all(path: &Path) -> Result<u64> {
    let reading = || format!("reading {}", path.display());
    let file = File::open(path).with_context(reading)?;
    let mut buf = vec![0; BLOCK];
    let (mut at, mut read) = (0, 0);
    loop {
        let start = match lseek64(&file, at, Whence::SeekData) {
            Err(Errno::ENXIO) => return Ok(read),
            start => start.with_context(reading)?,
        };
        let end = lseek64(&file, start, Whence::SeekHole).with_context(reading)?;
        at = start;
        while at < end {
            let now = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
            file.read_exact_at(&mut buf[..now], u64::try_from(at)?).with_context(reading)?;
            at += i64::try_from(now)?;
            read += now as u64;
        }
    }
}

/// SHA-1 on all cores, in bytes per second.
fn openssl_rate() -> Result<f64> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let mut openssl = Command::new("openssl");
    openssl.args(["speed", "-seconds", "2", "-bytes", "1048576", "-multi"]).arg(cores.to_string()).arg("sha1");
    let output = openssl.stdin(Stdio::null()).output().context("running openssl speed")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "sha1  4156940.29k"
    let figure = text.lines().rfind(|line| line.starts_with("sha1")).and_then(|line| line.split_whitespace().nth(1));
    let figure = figure.and_then(|figure| figure.strip_suffix('k')).and_then(|figure| figure.parse::<f64>().ok());
    Ok(1000.0 * figure.with_context(|| format!("openssl speed said nothing of use: {text}"))?)
}

/// Runs the command, and returns how many seconds it took.
fn timed(command: &mut Command) -> Result<f64> {
    let name = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {name}"))?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{name} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(seconds)
}

fn table(used: u64, times: &[Vec<f64>]) -> String {
    let mut out = format!("| {:.2} GiB in use | seconds | GB/s |\n|---|---|---|\n", used as f64 / f64::from(1 << 30));
    for ((_, name), times) in Subject::ALL.iter().zip(times) {
        if let Some(Figure { median, min, max }) = Figure::of(times.iter().copied()) {
            let rate = used as f64 / median / 1e9;
            out += &format!("| {name} | {median:.2} ({min:.2}–{max:.2}) | {rate:.2} |\n");
        }
    }
    out
}

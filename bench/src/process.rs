//! Child processes: their output lines with times, and their resource use.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// How often a condition is checked; also the precision of the time at which a process ended.
pub const POLL: Duration = Duration::from_millis(10);

type Lines = Arc<Mutex<Vec<(Instant, String)>>>;

/// A running program; killed when dropped.
pub struct Process {
    name: String,
    pid: Pid,
    stdin: Option<ChildStdin>,
    log: PathBuf,
    lines: Lines,
    ended: Option<Ended>,
}

/// How a process ended, and its resource use.
#[derive(Clone, Copy, Debug)]
struct Ended {
    at: Instant,
    status: libc::c_int,
    cost: Cost,
}

/// The resources that a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// User and system time of the process and its ended children, in seconds.
    pub cpu_s: f64,
    /// Peak memory, in bytes; pages of mapped files count.
    pub peak_rss: u64,
}

impl Process {
    /// Starts `command`; its output is also written to `log`.
    ///
    /// The kernel kills it when the calling thread ends, so call it only from the main thread.
    ///
    /// # Errors
    /// If the log cannot be made or the program is missing.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        let mut log_file = File::create(log).with_context(|| format!("creating the log {}", log.display()))?;
        writeln!(log_file, "$ {}", line_of(&command)).context("writing a log")?;
        let (reader, writer) = std::io::pipe().context("making a pipe")?;
        let second = writer.try_clone().context("duplicating a pipe")?;
        command.stdin(Stdio::piped()).stdout(writer).stderr(second);
        // SAFETY: the closure runs between fork and exec and makes one system call, prctl, that takes no pointers.
        unsafe {
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        // Otherwise our end of the pipe would keep the reader waiting for ever.
        drop(command);
        let lines = Lines::default();
        let shared = Arc::clone(&lines);
        std::thread::spawn(move || read_lines(BufReader::new(reader), &shared, &mut log_file));
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id past 31 bits")?);
        Ok(Process { name: name.into(), pid, stdin: child.stdin.take(), log: log.into(), lines, ended: None })
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// If it does not accept the line.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("no standard input")?;
        writeln!(stdin, "{line}").with_context(|| format!("telling {} to go", self.name))
    }

    /// When it first printed a line that `wanted` accepts.
    pub fn printed(&self, wanted: impl Fn(&str) -> bool) -> Option<Instant> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().find(|(_, line)| wanted(line)).map(|&(at, _)| at)
    }

    /// When it ended, and whether successfully, if it has ended.
    pub fn exited(&mut self) -> Option<(Instant, bool)> {
        if self.ended.is_none() {
            self.ended = reap(self.pid);
        }
        self.ended.map(|ended| (ended.at, libc::WIFEXITED(ended.status) && libc::WEXITSTATUS(ended.status) == 0))
    }

    /// Its process id.
    pub fn id(&self) -> Pid {
        self.pid
    }

    /// The log with its output.
    pub fn log(&self) -> std::path::Display<'_> {
        self.log.display()
    }

    /// The resources it has used so far.
    pub fn cost(&mut self) -> Cost {
        if self.exited().is_none()
            && let Some(cost) = cost_so_far(self.pid)
        {
            return cost;
        }
        self.exited();
        self.ended.map(|ended| ended.cost).unwrap_or_default()
    }

    /// Asks it to end with SIGTERM.
    pub fn terminate(&mut self) {
        if self.exited().is_none() {
            // This fails only if it has ended meanwhile, which is fine.
            let _ = kill(self.pid, Signal::SIGTERM);
        }
    }

    /// Sends SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        while self.exited().is_none() {
            // The process is not reaped yet, so the id still belongs to it.
            let _ = kill(self.pid, Signal::SIGKILL);
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lines(mut from: impl BufRead, to: &Lines, log: &mut File) {
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
        let now = Instant::now();
        // A log that cannot be written is no reason to stop.
        let _ = log.write_all(&line);
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        to.lock().unwrap_or_else(PoisonError::into_inner).push((now, text));
        line.clear();
    }
}

fn reap(pid: Pid) -> Option<Ended> {
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers point to live locals of the right types; the child is ours, and reaped only once since the
    // caller keeps what this returns.
    let reaped = unsafe { libc::wait4(pid.as_raw(), &raw mut status, libc::WNOHANG, &raw mut usage) };
    if reaped != pid.as_raw() {
        return None;
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let cpu_s = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    let peak_rss = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    Some(Ended { at: Instant::now(), status, cost: Cost { cpu_s, peak_rss } })
}

fn cost_so_far(pid: Pid) -> Option<Cost> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ticks_a_second = sysconf(SysconfVar::CLK_TCK).ok()?? as f64;
    // These fields follow the name, which may contain anything: state is field 3; utime, stime, cutime and cstime are
    // 14 to 17.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kib: u64 = peak.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    Some(Cost { cpu_s: ticks / ticks_a_second, peak_rss: peak_kib * 1024 })
}

/// Waits until `is_so` returns true; `what` describes that in errors.
///
/// # Errors
/// If `is_so` fails, or still returns false after `deadline`.
pub fn wait_until(what: &str, deadline: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + deadline;
    while !is_so()? {
        if Instant::now() > end {
            bail!("{what}: not within {} s", deadline.as_secs());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Runs a short command line, with words separated by blanks, and returns its standard output.
///
/// # Errors
/// If it is missing or fails; the message contains its output.
pub fn sh(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let name = words.next().context("an empty command line")?;
    let program = find_program(name).with_context(|| format!("`{name}` is not installed"))?;
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The path of a program; also searches places that are not in an ordinary user's PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

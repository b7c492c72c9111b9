//! Child processes that never outlive the case: each dies with its parent, however the parent ends.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a condition is checked.
pub const POLL: Duration = Duration::from_millis(100);

/// A running program with its output in a log file; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with standard output and error in `log`.
    ///
    /// The kernel kills it when the calling thread ends, so call it only from the case's own thread.
    ///
    /// # Errors
    /// If the log cannot be made or the program is missing.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        note(&command)?;
        let out = OpenOptions::new().create(true).append(true).open(log);
        let out = out.with_context(|| format!("creating the log {}", log.display()))?;
        let err = out.try_clone().context("duplicating a log's handle")?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        die_with_parent(&mut command);
        let child = command.spawn().with_context(|| format!("starting {}", program(&command)))?;
        Ok(Process { name: name.into(), child, log: log.into() })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The log with its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("asking whether {} has ended", self.name))
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it has not ended after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "{} has not ended within {} s", self.name, deadline.as_secs());
            std::thread::sleep(POLL);
        }
    }

    /// Ends it with SIGTERM, and after `deadline` with SIGKILL; returns its exit status.
    ///
    /// # Errors
    /// If SIGTERM was not enough.
    pub fn stop(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.exited()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait(deadline).inspect_err(|_| self.kill())
    }

    /// Sends SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // Both fail only if it has already ended, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a process id past 31 bits")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal} to {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a short command to its end and returns its standard output.
///
/// # Errors
/// If it is missing or fails; the message contains its output.
pub fn run(command: &mut Command) -> Result<String> {
    note(command)?;
    die_with_parent(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {}", program(command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}{}", line_of(command), ending(output.status), stderr.trim(), stdout.trim());
    }
    Ok(stdout)
}

/// Runs a command line given as words separated by blanks.
///
/// # Errors
/// As [`run`].
pub fn sh(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command line")?;
    run(Command::new(program).args(words))
}

/// The exit status as text: "exit code 1" or "killed by signal 9".
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended in no known way".into(),
    }
}

/// Makes the kernel kill the child when its parent's thread ends, even by SIGKILL, when no destructor runs.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one system call, prctl, that takes no pointers.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

/// Records every command line, so that a failed case can be repeated by hand.
fn note(command: &Command) -> Result<()> {
    if std::env::var_os(crate::sandbox::INSIDE).is_none() {
        return Ok(());
    }
    let file = File::options().create(true).append(true).open("commands.log");
    writeln!(file.context("opening commands.log")?, "{}", line_of(command)).context("writing commands.log")
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

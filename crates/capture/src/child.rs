//! Other programs, which have to end when this one does.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How often a running program is checked: often enough for a quick one, seldom enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How much of a program's output is searched for its last message, in bytes.
const SAID_MAX: u64 = 64 << 10;
/// How long a program may run before a line says what it does, and the interval of further lines.
const SILENT_FIRST: Duration = Duration::from_millis(800);
const SILENT_THEN: Duration = Duration::from_secs(5);

/// A running program that is killed when this value is dropped.
#[derive(Debug)]
pub(crate) struct Running(pub Child);

impl Running {
    /// Waits for its end, calling `look` now and then.
    ///
    /// # Errors
    /// If `stop` is set, or waiting fails.
    pub(crate) fn wait(&mut self, stop: &AtomicBool, mut look: impl FnMut()) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait().context("waiting for a program")? {
                look();
                return Ok(status);
            }
            if stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            look();
            thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end, and returns its exit status and the end of its output. `what` says what it does; it is
/// shown if the program takes long.
///
/// # Errors
/// If it cannot be run, or `stop` is set; the program is killed then.
pub(crate) fn run(command: &mut Command, stop: &AtomicBool, what: &str) -> anyhow::Result<(ExitStatus, Vec<u8>)> {
    let name = command.get_program().to_string_lossy().into_owned();
    let running = || format!("running {name}");
    let out = tempfile::tempfile().with_context(running)?;
    let copies = out.try_clone().and_then(|first| Ok((first, out.try_clone()?))).with_context(running)?;
    command.stdin(Stdio::null()).stdout(copies.0).stderr(copies.1);
    let mut child = Running(command.spawn().with_context(running)?);
    let started = Instant::now();
    let mut next = SILENT_FIRST;
    let status = child.wait(stop, || {
        if started.elapsed() >= next {
            match started.elapsed().as_secs() {
                0 | 1 => complain!("{what}"),
                seconds => complain!("{what}, {seconds} s so far"),
            }
            next = started.elapsed() + SILENT_THEN;
        }
    })?;
    Ok((status, said(&out).with_context(running)?))
}

/// The end of the output that a program wrote to a file.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn said(mut file: &File) -> io::Result<Vec<u8>> {
    let len = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(len.saturating_sub(SAID_MAX)))?;
    let mut said = Vec::new();
    file.take(SAID_MAX).read_to_end(&mut said)?;
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_ends_with_us() {
        let stop = AtomicBool::new(false);
        let (status, said) =
            run(Command::new("sh").args(["-c", "echo a; echo b >&2; exit 3"]), &stop, "testing").expect("runs");
        assert_eq!((status.code(), said.as_slice()), (Some(3), &b"a\nb\n"[..]));
        stop.store(true, Ordering::Relaxed);
        let started = Instant::now();
        let error = run(Command::new("sleep").arg("600"), &stop, "testing").expect_err("stopped");
        assert_eq!(error.to_string(), "interrupted");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}

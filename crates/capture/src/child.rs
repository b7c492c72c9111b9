//! Foreign programs, which have to end when we do.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How often a running program is looked at: often enough for one that is quick, seldom enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How much of what a program wrote is looked at for its last words, in bytes.
const SAID_MAX: u64 = 64 << 10;
/// How long a program may take before people are told what is going on, and how long until they are told again.
const SILENT_FIRST: Duration = Duration::from_millis(800);
const SILENT_THEN: Duration = Duration::from_secs(5);

/// A running program that is killed when nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct Running(pub Child);

impl Running {
    /// Waits for its end, calling `look` now and then.
    ///
    /// # Errors
    /// That we were told to stop, or that it cannot be waited for.
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
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end, and returns how it ended and the last of what it wrote. `what` says what it does; people read
/// that if it takes long.
///
/// # Errors
/// If it cannot be run, or that we were told to stop. It is killed then.
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

/// The end of what a program wrote to a file.
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

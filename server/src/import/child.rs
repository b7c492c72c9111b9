//! Other people's programs, which have to end when we do.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

/// How often a running program is looked at: often enough for one that is quick, seldom enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How much of what a program wrote is looked at for its last words, in bytes.
const SAID_MAX: u64 = 64 << 10;

/// A running program that is killed when nobody waits for it any more.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Waits for its end, calling `look` now and then.
    ///
    /// # Errors
    /// That we were told to stop, or that it cannot be waited for.
    pub fn wait(&mut self, stop: &AtomicBool, mut look: impl FnMut()) -> anyhow::Result<ExitStatus> {
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

/// The end of what a program wrote to a file.
///
/// # Errors
/// If the file cannot be read.
pub fn said(mut file: &File) -> io::Result<Vec<u8>> {
    let len = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(len.saturating_sub(SAID_MAX)))?;
    let mut said = Vec::new();
    file.take(SAID_MAX).read_to_end(&mut said)?;
    Ok(said)
}

//! Log files of machines and servers, and waiting for words in them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::POLL;

/// A file that another process writes.
#[derive(Clone, Debug)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// The log at `path`, which need not exist yet.
    pub fn new(path: &Path) -> Log {
        Log { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its current text, without the control sequences that firmware uses to draw its screen.
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        plain(&String::from_utf8_lossy(&bytes))
    }

    /// How often `needle` occurs in it.
    pub fn count(&self, needle: &str) -> usize {
        self.text().matches(needle).count()
    }

    /// Its last `count` lines, under a heading with its name.
    pub fn tail(&self, count: usize) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(count)..];
        format!("--- {} ---\n{}\n", self.path.display(), last.join("\n"))
    }

    /// Waits for a line that `is_it` accepts, and returns it.
    ///
    /// `is_it` gets lines with their `\n`. The last line may lack it and be incomplete. `what` describes the line in
    /// errors. `ended` says that nothing more will be written, so that a missing line will not come.
    ///
    /// # Errors
    /// If no such line came within `deadline` or before the end.
    pub fn wait_for(
        &self,
        what: &str,
        is_it: impl Fn(&str) -> bool,
        deadline: Duration,
        mut ended: impl FnMut() -> Result<Option<String>>,
    ) -> Result<String> {
        let start = Instant::now();
        loop {
            // Ask before reading the log, so that the last lines are read before it counts as complete.
            let end = ended()?;
            if let Some(line) = self.text().split_inclusive('\n').find(|line| is_it(line)) {
                return Ok(line.trim().to_string());
            }
            let name = self.path.display();
            if let Some(end) = end {
                bail!("{name}: {end} without saying {what:?}");
            }
            if start.elapsed() > deadline {
                bail!("{name}: {what:?} has not come within {} s", deadline.as_secs());
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Removes carriage returns and ANSI escape sequences.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {}
            '\x1b' => {
                if chars.next_if_eq(&'[').is_some() {
                    // A control sequence ends with its first byte from @ to ~.
                    while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
                } else {
                    chars.next();
                }
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_not_text() {
        assert_eq!(plain("a\x1b[0;37mb\r\nc\x1b"), "ab\nc");
        assert_eq!(plain("\x1b[2J\x1b[1;1Hx\x1b["), "x");
    }

    #[test]
    fn an_end_without_the_word_is_an_error() {
        let log = Log::new(Path::new("/nonexistent/log"));
        let error = log.wait_for("word", |_| false, Duration::from_secs(60), || Ok(Some("it ended".into())));
        assert!(error.is_err_and(|error| error.to_string().contains("it ended without saying")));
    }
}

//! Progress of a long job: a bar on a terminal, plain lines in a log.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};

/// How often a plain line is printed: often enough to show that the job is alive, seldom enough for a log.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows progress on standard error.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts counting towards `total` bytes; `what` is a participle such as `capturing`.
    pub fn new(what: &'static str, total: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{msg} {percent:>3}% [{wide_bar}] {size} of {whole}, {rate}, {eta} left";
            let style = ProgressStyle::with_template(template).expect("the template is a constant");
            let style = style.with_key("size", |state: &ProgressState, out: &mut dyn Write| {
                let _ = out.write_str(&units::size(state.pos()));
            });
            let style = style.with_key("whole", |state: &ProgressState, out: &mut dyn Write| {
                let _ = out.write_str(&units::size(state.len().unwrap_or_default()));
            });
            let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
                let _ = out.write_str(&text_of(state.per_sec()));
            });
            ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(what)
        });
        let now = Instant::now();
        Progress { what, total, done: 0, started: now, last_line: now, bar }
    }

    /// Counts `bytes` more.
    pub fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        match &self.bar {
            Some(bar) => bar.inc(bytes),
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                crate::complain!("{}", self.line());
            }
            None => {}
        }
    }

    /// Ends the bar and returns the rate, in bytes per second.
    pub fn finish(self) -> f64 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.rate()
    }

    fn rate(&self) -> f64 {
        self.done as f64 / self.started.elapsed().as_secs_f64().max(0.001)
    }

    fn line(&self) -> String {
        let rate = self.rate();
        let percent = self.done.saturating_mul(100).checked_div(self.total).unwrap_or(100);
        let left = self.total.saturating_sub(self.done) as f64 / rate.max(1.0);
        format!(
            "{} {percent}%: {} of {}, {}, {} left",
            self.what,
            units::size(self.done),
            units::size(self.total),
            text_of(rate),
            // A rate near zero gives a time that does not fit into a Duration.
            HumanDuration(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX))
        )
    }
}

/// A rate in bytes per second, as text.
fn text_of(rate: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is no whole number that fits becomes the nearest one that does"
    )]
    units::rate(rate as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_much_and_how_long() {
        let mut progress = Progress::new("capturing", 200 << 20);
        progress.advance(50 << 20);
        let line = progress.line();
        assert!(line.starts_with("capturing 25%: 50.0 MiB of 200.0 MiB, "), "{line}");
        assert!(line.ends_with(" left"), "{line}");
        assert!(!Progress::new("verifying", u64::MAX).line().is_empty());
    }
}

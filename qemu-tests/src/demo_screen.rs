//! The output of the demo: one line per machine while it runs, and the table at the end.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

use report::Stage;

use crate::demo::Member;

/// Interval of lines without a terminal: they are not overwritten there, so there are fewer of them.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

pub struct Screen {
    is_terminal: bool,
    lines_shown: usize,
    last_plain: Option<Instant>,
}

impl Screen {
    /// Checks whether standard output is a terminal.
    pub fn new() -> Screen {
        Screen { is_terminal: stdout().is_terminal(), lines_shown: 0, last_plain: None }
    }

    /// Shows the current state of the room; on a terminal, it overwrites the previous one.
    pub fn show(&mut self, room: &[Member], elapsed: Duration, is_last: bool) {
        let mut text = String::new();
        if self.is_terminal {
            if self.lines_shown > 0 {
                text += &format!("\x1b[{}A", self.lines_shown);
            }
            room.iter().for_each(|member| text += &format!("\x1b[2K{}\n", line(member)));
            self.lines_shown = room.len();
        } else {
            if !is_last && self.last_plain.is_some_and(|last| last.elapsed() < PLAIN_EVERY) {
                return;
            }
            self.last_plain = Some(Instant::now());
            room.iter().for_each(|member| text += &format!("{:>4} s  {}\n", elapsed.as_secs(), line(member)));
        }
        // The output has no reader any more; the exit code still shows the result.
        let _ = stdout().write_all(text.as_bytes());
    }
}

impl Default for Screen {
    fn default() -> Self {
        Screen::new()
    }
}

fn line(member: &Member) -> String {
    let name = member.spec.name();
    let Some(report) = &member.report else {
        let what = if member.boot_seconds.is_some() { "network" } else { "firmware" };
        return format!("{name:12} {what}");
    };
    let percent = usize::from(report.progress.percent());
    let bar = format!("{}{}", "#".repeat(percent * 30 / 100), ".".repeat(30 - percent * 30 / 100));
    let rate = units::rate(report.progress.rate_bytes_per_s);
    match report.stage {
        Stage::Restore | Stage::Verify => {
            format!(
                "{name:12} {:8} {bar} {percent:3} % {rate:>11}  {}",
                report.stage,
                units::count(report.progress.peers, "peer")
            )
        }
        stage => format!("{name:12} {stage:8}"),
    }
}

/// The result, one row per machine.
pub fn table(room: &[Member], content_len: u64) -> String {
    const STAGES: [Stage; 6] =
        [Stage::Network, Stage::Fetch, Stage::Disk, Stage::Restore, Stage::Verify, Stage::Finish];
    let mut text = format!("{:12} {:8} {:6} {:>6}", "machine", "firmware", "disk", "boot s");
    STAGES.iter().for_each(|stage| text += &format!(" {stage:>7}"));
    text += &format!(" {:>7} {:>6} {:>8} {:>6}\n", "total s", "MiB/s", "verified", "booted");
    let yes = |is_so: bool| if is_so { "yes" } else { "NO" };
    let number = |seconds: Option<f64>| seconds.map_or_else(|| "-".into(), |seconds| format!("{seconds:.1}"));
    for member in room {
        let times = member.report.as_ref().map(|report| report.times.as_slice()).unwrap_or_default();
        let of = |stage| times.iter().find(|time| time.stage == stage).map(|time| time.seconds);
        text += &format!("{:12} {:8} {:6}", member.spec.name(), member.firmware, member.bus);
        text += &format!(" {:>6}", number(member.boot_seconds));
        STAGES.iter().for_each(|&stage| text += &format!(" {:>7}", number(of(stage))));
        let rate = of(Stage::Restore).map(|seconds| mebibytes(content_len as f64 / seconds.max(0.001)));
        text += &format!(
            " {:>7} {:>6} {:>8} {:>6}\n",
            number(member.total_seconds),
            number(rate),
            yes(member.verified.is_ok()),
            yes(member.booted.is_ok())
        );
    }
    text
}

fn mebibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

//! What the person at the screen sees: lines on every serial console, and on a monitor one picture that can be read
//! across a room.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use report::{Report, Stage};

use crate::glyphs;

/// A monitor's text mode, and the least that a terminal has.
const ROWS: usize = 25;
/// Characters of a row that are used; two on either side are left.
const WIDTH: usize = 76;
/// Progress lines on a serial console come this often.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Warnings that are shown in any [`WARNINGS_TIME`]: a serial line is slow, and a peer may cause as many as it likes.
const WARNINGS: u32 = 10;
const WARNINGS_TIME: Duration = Duration::from_secs(10);

/// The machine's consoles. Cheap to clone.
#[derive(Clone)]
pub struct Console {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    serial: Vec<File>,
    monitor: Option<File>,
    picture: Picture,
    started: Instant,
    last_progress: Option<Instant>,
    warnings: Warnings,
}

/// What the monitor shows.
#[derive(Default)]
struct Picture {
    big: String,
    title: String,
    detail: String,
    colour: Colour,
    log: Vec<String>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Colour {
    #[default]
    Blue,
    Green,
    Red,
}

impl Console {
    /// Opens every console that the kernel uses; without any, `/dev/console`.
    pub fn open() -> Console {
        let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let open = |name: &str| OpenOptions::new().write(true).open(format!("/dev/{name}")).ok();
        let monitor = active.split_whitespace().find(|name| *name == "tty0").and_then(open);
        let mut serial: Vec<File> = active.split_whitespace().filter(|name| *name != "tty0").filter_map(open).collect();
        if serial.is_empty() && monitor.is_none() {
            serial.extend(open("console"));
        }
        let shared = Shared {
            serial,
            monitor,
            picture: Picture { title: "starting".to_owned(), ..Picture::default() },
            started: Instant::now(),
            last_progress: None,
            warnings: Warnings::default(),
        };
        Console { shared: Arc::new(Mutex::new(shared)) }
    }

    /// A line that somebody else may be the cause of, as often as they like.
    pub fn warning(&self, text: &str) {
        let Some(left_out) = self.lock().warnings.admit(Instant::now()) else { return };
        self.say_left_out(left_out);
        self.line(text);
    }

    fn say_left_out(&self, warnings: u32) {
        if warnings > 0 {
            self.line(&format!("({} not shown)", units::count(warnings, "more warning")));
        }
    }

    /// Something worth a line.
    pub fn line(&self, text: &str) {
        let mut shared = self.lock();
        shared.say("", text);
        shared.picture.remember(text);
        shared.draw();
    }

    pub fn stage(&self, stage: Stage) {
        let left_out = std::mem::take(&mut self.lock().warnings.left_out);
        self.say_left_out(left_out);
        let mut shared = self.lock();
        shared.say("", &format!("stage {stage}"));
        shared.last_progress = None;
        shared.picture.title = title(stage).to_owned();
        shared.picture.colour = Colour::Blue;
        shared.picture.big.clear();
        shared.picture.detail.clear();
        shared.draw();
    }

    /// How far it is.
    pub fn progress(&self, report: &Report) {
        let mut shared = self.lock();
        let detail = progress_line(report);
        shared.picture.big = format!("{}%", report.progress.percent());
        shared.picture.detail.clone_from(&detail);
        if shared.last_progress.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            shared.last_progress = Some(Instant::now());
            shared.say("", &format!("{} {}% {detail}", report.stage, report.progress.percent()));
        }
        shared.draw();
    }

    /// Something is wrong, and the machine goes on trying.
    pub fn trouble(&self, why: &str) {
        let mut shared = self.lock();
        // One line, because how it ends tells this from giving up.
        let text = format!("{}; trying again", why.lines().collect::<Vec<_>>().join(" "));
        shared.say("failed: ", &text);
        shared.picture.big = "WAIT".to_owned();
        shared.picture.detail = text;
        shared.picture.colour = Colour::Red;
        shared.draw();
    }

    /// The proof is done.
    pub fn verified(&self, text: &str) {
        let mut shared = self.lock();
        shared.say("verified ", text);
        shared.picture.big = "OK".to_owned();
        shared.picture.detail = text.to_owned();
        shared.picture.colour = Colour::Green;
        shared.draw();
    }

    /// A dry run has nothing against it.
    pub fn dry_run(&self, text: &str) {
        let mut shared = self.lock();
        shared.say("", text);
        shared.picture.big = "OK".to_owned();
        shared.picture.detail = text.to_owned();
        shared.picture.colour = Colour::Green;
        shared.draw();
    }

    /// It is over, well.
    pub fn done(&self, after: &str) {
        let mut shared = self.lock();
        shared.say("", &format!("done, {after}"));
        shared.picture.big = "DONE".to_owned();
        shared.picture.title = format!("done, {after}");
        shared.picture.colour = Colour::Green;
        shared.draw();
    }

    /// It is over before it began: the disk is as it was, and the machine starts from it.
    pub fn stopped(&self, why: &str) {
        let mut shared = self.lock();
        shared.say("stopped: ", why);
        shared.say("", "nothing was written; restarting");
        shared.picture.big = "STOP".to_owned();
        shared.picture.title = "stopped, nothing was written; restarting".to_owned();
        shared.picture.detail = why.to_owned();
        shared.picture.colour = Colour::Red;
        shared.draw();
    }

    /// It is over, not well. Every line of the reason starts the same on a serial console, so that all of it is found
    /// together, and one more line says that nothing follows.
    pub fn failed(&self, why: &str) {
        let mut shared = self.lock();
        shared.say("failed: ", why);
        shared.say("", "stopped; switch the machine off and on to try again");
        shared.picture.big = "FAIL".to_owned();
        shared.picture.title = "failed".to_owned();
        shared.picture.detail = why.to_owned();
        shared.picture.colour = Colour::Red;
        shared.draw();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn say(&mut self, what: &str, text: &str) {
        let at = self.started.elapsed().as_secs_f64();
        let lines = text.lines().map(printable);
        let lines: String = lines.map(|line| format!("[{at:>7.1}] EZIO: {what}{line}\r\n")).collect();
        // A console that does not take it is no reason to stop imaging.
        self.serial.iter_mut().for_each(|console| drop(console.write_all(lines.as_bytes())));
    }

    fn draw(&mut self) {
        if let Some(monitor) = &mut self.monitor {
            let _ = monitor.write_all(self.picture.render().as_bytes());
        }
    }
}

impl Picture {
    fn remember(&mut self, text: &str) {
        const LINES: usize = 8;
        self.log.push(text.to_owned());
        let surplus = self.log.len().saturating_sub(LINES);
        self.log.drain(..surplus);
    }

    /// The whole screen as terminal codes: coloured ground, large letters, the rest below. 80 columns suffice.
    fn render(&self) -> String {
        let ground = match self.colour {
            Colour::Blue => "\x1b[1;37;44m",
            Colour::Green => "\x1b[1;37;42m",
            Colour::Red => "\x1b[1;37;41m",
        };
        let mut top = vec![String::new(), format!("EZIO   {}", self.title), String::new()];
        top.extend(glyphs::large(&self.big).into_iter().map(|row| format!("  {row}")));
        top.push(String::new());
        // Below the last row is the cursor's; one more, and the large word would scroll away.
        let room = ROWS.saturating_sub(top.len() + 2);
        let mut detail = wrap(&self.detail, WIDTH);
        if detail.len() > room {
            detail.truncate(room.saturating_sub(1));
            detail.push("... the rest: `ezio status` on the server, or the serial console".to_owned());
        }
        let log: Vec<_> = self.log.iter().flat_map(|line| wrap(line, WIDTH)).collect();
        let log_from = log.len().saturating_sub(room - detail.len());
        let mut screen = format!("{ground}\x1b[H\x1b[2J\x1b[?25l");
        for row in top.iter().chain(&detail).chain([&String::new()]).chain(&log[log_from..]) {
            screen.push_str(&format!("  {row}\r\n"));
        }
        screen
    }
}

/// Breaks a text at blanks. What a line after the first goes on with is set in, so that a list stays one.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let indent = if number == 0 { "" } else { "  " };
        for (row, words) in wrap_line(&printable(line), width - indent.len()).into_iter().enumerate() {
            rows.push(if row == 0 { words } else { format!("{indent}{words}") });
        }
    }
    rows
}

/// Text from outside without what a terminal would obey.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[derive(Default)]
struct Warnings {
    since: Option<Instant>,
    shown: u32,
    left_out: u32,
}

impl Warnings {
    /// Whether one may be shown now: then, how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u32> {
        if self.since.is_none_or(|since| now.duration_since(since) >= WARNINGS_TIME) {
            self.since = Some(now);
            self.shown = 0;
        }
        if self.shown == WARNINGS {
            self.left_out += 1;
            return None;
        }
        self.shown += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

fn wrap_line(text: &str, width: usize) -> Vec<String> {
    let mut rows: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for part in letters.chunks(width) {
            match rows.last_mut() {
                Some(row) if row.chars().count() + 1 + part.len() <= width => {
                    row.push(' ');
                    row.extend(part);
                }
                _ => rows.push(part.iter().collect()),
            }
        }
    }
    rows
}

fn title(stage: Stage) -> &'static str {
    match stage {
        Stage::Network => "waiting for the network",
        Stage::Fetch => "asking the server what to do",
        Stage::Disk => "choosing the disk",
        Stage::Restore => "writing the image",
        Stage::Verify => "reading everything back to prove it",
        Stage::Finish => "writing the partition table",
        Stage::Seeding => "proven; helping the other machines",
        Stage::Done => "done",
        Stage::Failed => "failed",
        Stage::Unknown(_) => "",
    }
}

/// Rate, time left, peers, in one line.
fn progress_line(report: &Report) -> String {
    let (done, total) = (units::size(report.progress.bytes_done), units::size(report.progress.bytes_total));
    let mut line = format!("{done} of {total}, {}", units::rate(report.progress.rate_bytes_per_s));
    if let Some(seconds) = report.progress.eta_seconds() {
        line.push_str(&format!(", {}:{:02} left", seconds / 60, seconds % 60));
    }
    line + ", " + &units::count(report.progress.peers, "peer")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_picture_has_the_big_word_and_the_reason() {
        let picture = Picture {
            big: "FAIL".to_owned(),
            detail: "no disk may be written ".repeat(8),
            colour: Colour::Red,
            ..Picture::default()
        };
        let screen = picture.render();
        assert!(screen.starts_with("\x1b[1;37;41m"));
        assert!(screen.contains("no disk may be written"));
        assert!(screen.split("\r\n").all(|line| line.chars().count() <= 80), "{screen}");
    }

    #[test]
    fn a_long_list_does_not_push_the_first_line_off_the_screen() {
        let list =
            "\n/dev/sda (465.8 GiB, ata, Some Model of Disk, serial S3Z, 512-byte sectors; GPT: 1 NTFS): it matches";
        let picture = |disks: usize| Picture {
            big: "FAIL".to_owned(),
            detail: format!("2 disks match, nothing was touched:{}", list.repeat(disks)),
            log: (0..8).map(|n| format!("line {n}")).collect(),
            ..Picture::default()
        };
        for disks in 0..20 {
            let screen = picture(disks).render();
            assert!(screen.matches("\r\n").count() < ROWS, "{screen}");
            assert!(screen.contains("2 disks match, nothing was touched"));
            assert_eq!(screen.contains("`ezio status`"), disks > 6, "{disks}: {screen}");
            assert!(!screen.replace("\r\n", "").contains('\n'));
        }
        // The newest lines are kept where there is room for some.
        let screen = picture(5).render();
        assert!(screen.contains("line 7") && !screen.contains("line 0"), "{screen}");
    }

    #[test]
    fn texts_are_wrapped_line_by_line() {
        assert_eq!(wrap("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("aaaaaaa b", 5), ["aaaaa", "aa b"]);
        assert_eq!(wrap("aa bb:\ncc dd ee\nff", 6), ["aa bb:", "cc", "  dd", "  ee", "ff"]);
        assert_eq!(wrap("", 5), Vec::<String>::new());
    }

    #[test]
    fn warnings_come_in_bounded_numbers() {
        let mut warnings = Warnings::default();
        let start = Instant::now();
        let shown = (0..100).filter(|_| warnings.admit(start).is_some()).count();
        assert_eq!(shown, 10);
        assert_eq!(warnings.admit(start + WARNINGS_TIME), Some(90));
        assert_eq!(warnings.admit(start + WARNINGS_TIME), Some(0));
    }

    #[test]
    fn a_terminal_obeys_nothing_from_outside() {
        assert_eq!(wrap("disk \x1b[2Jof\u{9b}doom", 76), ["disk [2Jof doom"]);
    }

    #[test]
    fn a_reason_of_several_lines_starts_alike_on_every_line() {
        let (mut console, serial) = std::io::pipe().expect("a pipe");
        let shared = Shared {
            serial: vec![File::from(std::os::fd::OwnedFd::from(serial))],
            monitor: None,
            picture: Picture::default(),
            started: Instant::now(),
            last_progress: None,
            warnings: Warnings::default(),
        };
        Console { shared: Arc::new(Mutex::new(shared)) }.failed("2 disks match:\n/dev/sda: no\n/dev/sdb: no");
        let mut text = String::new();
        console.read_to_string(&mut text).expect("text");
        let said: Vec<_> =
            text.split("\r\n").filter_map(|line| line.split_once("EZIO: ")).map(|(_, said)| said).collect();
        let expected = [
            "failed: 2 disks match:",
            "failed: /dev/sda: no",
            "failed: /dev/sdb: no",
            "stopped; switch the machine off and on to try again",
        ];
        assert_eq!(said, expected);
    }
}

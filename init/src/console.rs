//! What the person at the screen sees: lines on every serial console, and on a monitor one picture that can be read
//! across a room.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use report::{Report, Stage};

use crate::glyphs;

/// Progress lines on a serial console come this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

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
        };
        Console { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Something worth a line.
    pub fn line(&self, text: &str) {
        let mut shared = self.lock();
        shared.say(text);
        shared.picture.remember(text);
        shared.draw();
    }

    /// A new stage.
    pub fn stage(&self, stage: Stage) {
        let mut shared = self.lock();
        shared.say(&format!("stage {stage}"));
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
        shared.picture.big = format!("{}%", report.percent());
        shared.picture.detail.clone_from(&detail);
        if shared.last_progress.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            shared.last_progress = Some(Instant::now());
            shared.say(&format!("{} {}% {detail}", report.stage, report.percent()));
        }
        shared.draw();
    }

    /// Something is wrong, and the machine goes on trying.
    pub fn trouble(&self, why: &str) {
        let mut shared = self.lock();
        shared.say(&format!("failed: {why}; trying again"));
        shared.picture.big = "WAIT".to_owned();
        shared.picture.detail = format!("{why}; trying again");
        shared.picture.colour = Colour::Red;
        shared.draw();
    }

    /// The proof is done.
    pub fn verified(&self, text: &str) {
        let mut shared = self.lock();
        shared.say(&format!("verified {text}"));
        shared.picture.big = "OK".to_owned();
        shared.picture.detail = text.to_owned();
        shared.picture.colour = Colour::Green;
        shared.draw();
    }

    /// A dry run has nothing against it.
    pub fn dry_run(&self, text: &str) {
        let mut shared = self.lock();
        shared.say(text);
        shared.picture.big = "OK".to_owned();
        shared.picture.detail = text.to_owned();
        shared.picture.colour = Colour::Green;
        shared.draw();
    }

    /// It is over, well.
    pub fn done(&self, after: &str) {
        let mut shared = self.lock();
        shared.say(&format!("done, {after}"));
        shared.picture.big = "DONE".to_owned();
        shared.picture.title = format!("done, {after}");
        shared.picture.colour = Colour::Green;
        shared.draw();
    }

    /// It is over, not well.
    pub fn failed(&self, why: &str) {
        let mut shared = self.lock();
        shared.say(&format!("failed: {why}"));
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
    fn say(&mut self, text: &str) {
        let line = format!("[{:>7.1}] EZIO: {text}\r\n", self.started.elapsed().as_secs_f64());
        // A console that does not take it is no reason to stop imaging.
        self.serial.iter_mut().for_each(|console| drop(console.write_all(line.as_bytes())));
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
        let mut screen = format!("{ground}\x1b[H\x1b[2J\x1b[?25l\r\n  EZIO   {}\r\n\r\n", self.title);
        for row in glyphs::large(&self.big) {
            screen.push_str(&format!("    {row}\r\n"));
        }
        screen.push_str("\r\n");
        for line in wrap(&self.detail, 76) {
            screen.push_str(&format!("  {line}\r\n"));
        }
        screen.push_str("\r\n");
        for line in self.log.iter().flat_map(|line| wrap(line, 76)) {
            screen.push_str(&format!("  {line}\r\n"));
        }
        screen
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
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
    }
}

/// Rate, time left, peers, in one line.
fn progress_line(report: &Report) -> String {
    let rate = report.rate_bytes_per_s / 1_000_000;
    let mut line = format!("{} of {} MB, {rate} MB/s", report.bytes_done / 1_000_000, report.bytes_total / 1_000_000,);
    if let Some(seconds) = report.eta_seconds() {
        line.push_str(&format!(", {}:{:02} left", seconds / 60, seconds % 60));
    }
    match report.peers {
        1 => line.push_str(", 1 peer"),
        n => line.push_str(&format!(", {n} peers")),
    }
    line
}

#[cfg(test)]
mod tests {
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
    fn long_words_do_not_stop_wrapping() {
        assert_eq!(wrap("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("aaaaaaaaaa b", 5), ["aaaaaaaaaa", "b"]);
        assert_eq!(wrap("", 5), Vec::<String>::new());
    }
}

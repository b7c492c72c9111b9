//! `ezio status`: the room as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use netboot::MacAddr;
use report::{Report, Stage};
use serde::{Deserialize, Serialize};

use crate::armed::Order;
use crate::config::Settings;
use crate::fleet::Machine;
use crate::room::{Boot, Room};
use crate::say;
use crate::seeder::SeedStatus;
use crate::serve::Running;
use crate::state;

/// Seconds without a report after which a machine is shown as silent, unless the config says otherwise.
const SILENT_AFTER_S: u64 = 15;
/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Width of the table; error texts are broken to it.
const WIDTH: usize = 100;

/// Shows every machine: stage, progress, speed, and what went wrong.
#[derive(Debug, Args)]
pub struct StatusCommand {
    /// Go on showing it, once a second.
    #[arg(long)]
    watch: bool,
    /// The server, as 10.0.0.1, 10.0.0.1:8080 or a URL; by default the one that runs on this machine.
    #[arg(long, value_name = "HOST")]
    server: Option<String>,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// The server's config file, to find its library.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's library directory [default: /var/lib/ezio].
    #[arg(long, value_name = "DIR")]
    library: Option<PathBuf>,
}

/// Everything there is to show; `GET /status.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the server.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// What is armed.
    pub armed: Vec<Order>,
    /// What is armed, in words: orders, then what is different for some.
    #[serde(default)]
    pub orders: Vec<String>,
    /// The armed and published images and our own seeding of them.
    pub images: Vec<SeedStatus>,
    /// Every machine we have heard of, and those of the config that are armed.
    pub machines: Vec<MachineStatus>,
    /// Packets answered and packets that were no use.
    pub counters: BTreeMap<String, u64>,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Its address.
    pub mac: MacAddr,
    /// What the config calls it, or empty.
    #[serde(default)]
    pub name: String,
    /// What it would boot now: `image` or `local`.
    pub boot: String,
    /// The image it is armed with, or empty.
    pub image: String,
    /// Seconds since 1970; 0 for one that has not been heard of.
    pub first_seen: u64,
    /// Seconds since 1970; 0 for one that has not been heard of.
    pub last_seen: u64,
    /// Seconds since it was last heard of.
    pub age_s: u64,
    /// Whether it should have reported by now and has not.
    pub silent: bool,
    /// Whether it is armed and has not begun: a report is what became of an earlier deployment.
    #[serde(default)]
    pub waiting: bool,
    /// What it asked for after its last report, in words, or empty.
    pub asked: String,
    /// The deployment that it has finished.
    pub done: Option<String>,
    /// Its last report.
    pub report: Option<Report>,
}

impl Status {
    /// A snapshot.
    pub fn of(room: &Room) -> Status {
        let now = state::unix_now();
        let silent_after = room.settings.silent_after.unwrap_or(SILENT_AFTER_S);
        let mut machines: Vec<Machine> = room.fleet().machines().cloned().collect();
        let is_known = |mac: &MacAddr| machines.iter().any(|machine| machine.mac == *mac);
        let is_armed = |mac: &MacAddr| room.armed().job_for(*mac, &room.settings).is_some();
        let awaited = room.settings.machines_named().into_iter().filter(|mac| !is_known(mac) && is_armed(mac));
        let awaited: Vec<Machine> = awaited.map(Machine::awaited).collect();
        machines.extend(awaited);
        machines.sort_by_key(|machine| machine.mac);
        let machines = machines.into_iter().map(|machine| {
            let boot = room.boot(machine.mac);
            let age_s = now.saturating_sub(machine.last_seen);
            let is_busy = machine.report.as_ref().is_some_and(|report| !report.stage.is_final());
            let silent = is_busy && machine.asked.is_empty() && age_s > silent_after;
            let waiting = match (&boot, &machine.report) {
                (Boot::Local(_), _) => false,
                (Boot::Image(_), None) => true,
                // What is under way is shown, whatever it was begun for.
                (Boot::Image(job), Some(report)) => {
                    report.deployment != job.deployment && (report.stage.is_verified() || !is_busy || silent)
                }
            };
            MachineStatus {
                mac: machine.mac,
                name: room.settings.name_of(machine.mac).to_owned(),
                boot: if matches!(boot, Boot::Image(_)) { "image".into() } else { "local".into() },
                image: room.armed().job_for(machine.mac, &room.settings).map(|job| job.image).unwrap_or_default(),
                first_seen: machine.first_seen,
                last_seen: machine.last_seen,
                age_s,
                silent: silent && !waiting,
                waiting,
                asked: machine.asked,
                done: machine.done,
                report: machine.report,
            }
        });
        let machines = machines.collect();
        let counters = &room.counters;
        let number = |name: &str, counter: &AtomicU64| (name.to_owned(), counter.load(Ordering::Relaxed));
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: room.started.elapsed().as_secs(),
            armed: room.armed().orders().to_vec(),
            orders: room.armed().lines(&room.settings),
            images: room.seeds(),
            machines,
            counters: BTreeMap::from([
                number("dhcp_answered", &counters.dhcp_answered),
                number("dhcp_malformed", &counters.dhcp_malformed),
                number("tftp_served", &counters.tftp_served),
                number("tftp_refused", &counters.tftp_refused),
                number("http_bad", &counters.http_bad),
                number("reports_bad", &counters.reports_bad),
                number("announces_bad", &counters.announces_bad),
            ]),
        }
    }
}

impl StatusCommand {
    /// Shows it.
    ///
    /// # Errors
    /// If no server answers.
    pub fn run(self) -> anyhow::Result<()> {
        let url = match &self.server {
            Some(server) => url_of(server),
            None => {
                let flags = Settings { library: self.library.clone(), ..Settings::default() };
                let settings = Settings::load(self.config.as_deref(), flags)?;
                let found = Running::find(&settings.library_dir());
                found.context("looking for the server; --server names one")?.url
            }
        };
        let agent = agent();
        loop {
            let text = match (fetch(&agent, &url), self.json) {
                (Ok(status), true) => serde_json::to_string(&status).context("writing JSON")? + "\n",
                (Ok(status), false) => table(&status),
                (Err(error), _) if self.watch => format!("{error:#}\n"),
                (Err(error), _) => return Err(error),
            };
            let is_terminal = std::io::stdout().is_terminal();
            let clear = if self.watch && is_terminal { "\x1b[H\x1b[J" } else { "" };
            let mut stdout = std::io::stdout().lock();
            match write!(stdout, "{clear}{}", say::plain(&text)).and_then(|()| stdout.flush()) {
                // Somebody who closes the pipe has seen enough.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(error).context("writing to standard output"),
                Ok(()) if !self.watch => return Ok(()),
                Ok(()) => {}
            }
            drop(stdout);
            std::thread::sleep(WATCH_EVERY);
        }
    }
}

fn url_of(server: &str) -> String {
    let server = server.trim_end_matches('/');
    if server.contains("://") { server.to_owned() } else { format!("http://{server}") }
}

/// A client that does not wait for ever.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build().into()
}

/// What the server at `url` says of the room.
///
/// # Errors
/// If nobody answers there, or something that is no status.
pub fn fetch(agent: &ureq::Agent, url: &str) -> anyhow::Result<Status> {
    let asking = || format!("asking {url} for the status: does `ezio serve` run there?");
    let answer = agent.get(format!("{url}/status.json")).call().with_context(asking)?.body_mut().read_to_string();
    serde_json::from_str(&answer.with_context(asking)?).with_context(|| format!("reading what {url} said"))
}

/// The table, 100 columns wide where names allow it.
pub fn table(status: &Status) -> String {
    let mut out = String::new();
    let armed = if status.orders.is_empty() { ", nothing is armed" } else { "" };
    line(&mut out, &format!("ezio {}, up {}{armed}", status.version, duration(status.uptime_s)));
    for order in &status.orders {
        wrap(&mut out, "armed: ", order);
    }
    for seed in &status.images {
        match &seed.error {
            Some(error) => wrap(&mut out, &format!("image {}: ", seed.image), error),
            None => line(&mut out, &seed_line(seed)),
        }
    }
    if status.machines.is_empty() {
        line(&mut out, "no machine has been heard of yet");
        return out;
    }
    line(&mut out, "");
    let has_names = status.machines.iter().any(|machine| !machine.name.is_empty());
    let start = start_of_row(has_names, ["MACHINE", "NAME", "IP", "SERIAL", "IMAGE"]);
    line(&mut out, &format!("{start} {:<8} {:>4} {:>7} {:>7}", "STAGE", "%", "MB/S", "ETA"));
    for machine in &status.machines {
        machine_lines(&mut out, machine, has_names);
    }
    line(&mut out, "");
    line(&mut out, &totals(&status.machines));
    out
}

fn seed_line(seed: &SeedStatus) -> String {
    let ratio = seed.uploaded as f64 / (seed.content_len.max(1) as f64);
    format!(
        "image {}: {}, sent {} = {ratio:.2} x, {} connected, {} fetching, {} complete",
        seed.image,
        bytes(seed.content_len),
        bytes(seed.uploaded),
        seed.peers,
        seed.leechers,
        seed.seeders
    )
}

/// Address, name, IP, serial number and image; names take their room from the images.
fn start_of_row(has_names: bool, [mac, name, ip, serial, image]: [&str; 5]) -> String {
    let (ip, serial) = (cut(ip, 15), cut(serial, 12));
    if has_names {
        format!("{mac:<17} {:<12} {ip:<15} {serial:<12} {:<10}", cut(name, 12), cut(image, 10))
    } else {
        format!("{mac:<17} {ip:<15} {serial:<12} {:<14}", cut(image, 14))
    }
}

fn machine_lines(out: &mut String, machine: &MachineStatus, has_names: bool) {
    let mac = machine.mac.to_string();
    let Some(report) = &machine.report else {
        let what = if machine.asked.is_empty() { "seen" } else { machine.asked.as_str() };
        let when = match machine.last_seen {
            0 => "not heard of yet".to_owned(),
            _ => format!("{what} {} ago", duration(machine.age_s)),
        };
        let name = if has_names { format!(" {:<12}", cut(&machine.name, 12)) } else { String::new() };
        return line(out, &format!("{mac:<17}{name} {when}, boots {}", boot_words(machine)));
    };
    let start = |image| start_of_row(has_names, [&mac, &machine.name, &report.ip, &report.serial, image]);
    if machine.waiting {
        line(out, &format!("{} waiting (last time: {})", start(&machine.image), stage_words(report)));
        if let Some(error) = &report.error {
            wrap(out, "    last time: ", error);
        }
        return asked_line(out, machine);
    }
    let rate = report.rate_bytes_per_s as f64 / 1e6;
    let is_moving = !report.stage.is_final() && report.bytes_total > 0;
    let row = format!(
        "{} {:<8} {:>4} {:>7} {:>7}",
        start(&report.image),
        stage_words(report),
        if is_moving { report.percent().to_string() } else { String::new() },
        if is_moving { format!("{rate:.1}") } else { String::new() },
        if is_moving { report.eta_seconds().map(duration).unwrap_or_default() } else { String::new() },
    );
    line(out, row.trim_end());
    if let Some(error) = &report.error {
        wrap(out, "    ", error);
    }
    if !report.note.is_empty() {
        wrap(out, "    ", &report.note);
    }
    if machine.silent {
        let text = format!("silent for {}: is it switched off, or its cable out?", duration(machine.age_s));
        wrap(out, "    ", &text);
    }
    asked_line(out, machine);
}

fn stage_words(report: &Report) -> String {
    if report.dry_run && report.stage == Stage::Done { "dry run".into() } else { report.stage.to_string() }
}

fn asked_line(out: &mut String, machine: &MachineStatus) {
    if !machine.asked.is_empty() {
        let text = format!("{} {} ago, boots {}", machine.asked, duration(machine.age_s), boot_words(machine));
        wrap(out, "    then: ", &text);
    }
}

fn boot_words(machine: &MachineStatus) -> String {
    match machine.boot.as_str() {
        "image" => format!("the imaging system for {}", machine.image),
        _ => "its own disk".into(),
    }
}

fn totals(machines: &[MachineStatus]) -> String {
    let count = |test: fn(&Report) -> bool| {
        machines.iter().filter(|m| !m.waiting).filter_map(|m| m.report.as_ref()).filter(|r| test(r)).count()
    };
    let done = count(|report| report.stage.is_verified() && !report.dry_run);
    let dry = count(|report| report.stage.is_verified() && report.dry_run);
    let failed = count(|report| report.stage == Stage::Failed);
    let busy = count(|report| !report.stage.is_verified() && !report.stage.is_final());
    let silent = machines.iter().filter(|machine| machine.silent).count();
    let dry = if dry > 0 { format!("{dry} ready (dry run), ") } else { String::new() };
    let waiting = machines.iter().filter(|machine| machine.waiting).count();
    let waiting = if waiting > 0 { format!(", {waiting} waiting") } else { String::new() };
    format!("{} machines: {done} done, {dry}{busy} busy ({silent} silent), {failed} failed{waiting}", machines.len())
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("writing to a string");
}

/// Breaks a text at its line ends, and long lines at spaces: every line indented like the first, and what a later one
/// goes on with a little more, so that a list stays one.
fn wrap(out: &mut String, prefix: &str, text: &str) {
    let mut row = prefix.to_owned();
    let indent = " ".repeat(prefix.chars().count());
    for (number, text) in text.lines().enumerate() {
        if number > 0 {
            line(out, row.trim_end());
            row.clone_from(&indent);
        }
        let hang = if number > 0 { "  " } else { "" };
        for word in text.split_whitespace() {
            if row.chars().count() + word.chars().count() >= WIDTH && row.trim() != prefix.trim() {
                line(out, row.trim_end());
                row = format!("{indent}{hang}");
            }
            row += word;
            row.push(' ');
        }
    }
    line(out, row.trim_end());
}

fn cut(text: &str, len: usize) -> String {
    if text.chars().count() <= len { text.into() } else { text.chars().take(len - 1).chain(['…']).collect() }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5999 => format!("{}m{:02}", seconds / 60, seconds % 60),
        6000..=359_999 => format!("{}h{:02}", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d", seconds / 86400),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..=9_999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{} kB", count / 1000),
        10_000_000..=9_999_999_999 => format!("{} MB", count / 1_000_000),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(json: &str) -> MachineStatus {
        MachineStatus {
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
            boot: "image".into(),
            image: "debian-12".into(),
            name: String::new(),
            first_seen: 1,
            last_seen: 1,
            age_s: 3,
            silent: false,
            waiting: false,
            asked: String::new(),
            done: None,
            report: serde_json::from_str(json).ok(),
        }
    }

    #[test]
    fn the_table_fits_a_hundred_columns() {
        let report = r#"{"mac":"52:54:00:00:00:01","stage":"restore","ip":"192.168.100.200","serial":"A-VERY-LONG-SERIAL",
            "image":"debian-12-with-long-name","bytes_done":5,"bytes_total":10,"rate_bytes_per_s":1}"#;
        let mut failed = machine(&report.replace("restore", "failed"));
        let long = "writing the disk failed: ".repeat(20);
        failed.report.as_mut().expect("parses").error = Some(long);
        let mut silent = machine(report);
        silent.silent = true;
        let mut asked = machine("");
        asked.asked = "boot script".into();
        let status = Status { machines: vec![machine(report), failed, silent, asked], ..Status::default() };
        let mut named = status.clone();
        named.machines[0].name = "a-name-longer-than-its-column".into();
        named.machines.push(MachineStatus { name: "pc2".into(), last_seen: 0, ..machine("") });
        let text = table(&named);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        for words in
            ["MACHINE           NAME         IP", " a-name-long… ", " pc2          not heard of yet, boots the"]
        {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
        let text = table(&status);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.contains("  50     0.0     5 s"), "{text}");
        assert!(text.contains("silent for 3 s") && text.contains("boot script 3 s ago"), "{text}");
        assert!(text.contains("4 machines: 0 done, 2 busy (1 silent), 1 failed"), "{text}");
    }

    #[test]
    fn what_became_of_the_last_deployment_is_not_what_became_of_this_one() {
        let report = |stage: &str| {
            format!(
                r#"{{"mac":"52:54:00:00:00:01","stage":"{stage}","ip":"192.168.100.200","serial":"A-VERY-LONG-SERIAL",
                "image":"old","deployment":"d1","note":"all kept","error":"no disk"}}"#
            )
        };
        let waiting = |stage: &str| MachineStatus { waiting: true, ..machine(&report(stage)) };
        let machines = vec![waiting("done"), waiting("failed"), waiting("network"), machine(&report("done"))];
        let text = table(&Status { machines, ..Status::default() });
        for row in ["debian-12      waiting (last time: done)", "waiting (last time: failed)", "    last time: no disk"]
        {
            assert!(text.contains(row), "{row:?} is not in\n{text}");
        }
        assert_eq!(text.matches("all kept").count(), 1, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.contains("4 machines: 1 done, 0 busy (0 silent), 0 failed, 3 waiting"), "{text}");
    }

    #[test]
    fn a_list_of_disks_stays_a_list() {
        let mut failed = machine(r#"{"mac":"52:54:00:00:00:01","stage":"failed"}"#);
        let disk = "(500.1 GB, ata, Some Model, serial S3Z, 512-byte sectors; GPT: 1 NTFS, 2 ext4): it matches";
        let error = format!("2 disks match, nothing was touched:\n/dev/sda {disk}\n/dev/sdb {disk}");
        failed.report.as_mut().expect("parses").error = Some(error);
        let text = table(&Status { machines: vec![failed], ..Status::default() });
        let (_, list) = text.split_once("    2 disks match, nothing was touched:\n").expect("a line of its own");
        let rows: Vec<_> = list.lines().take(4).collect();
        assert!(
            rows[0].starts_with("    /dev/sda (500.1 GB") && rows[2].starts_with("    /dev/sdb (500.1 GB"),
            "{text}"
        );
        assert_eq!((rows[1], rows[3]), ("      matches", "      matches"));
    }

    #[test]
    fn a_server_needs_no_scheme() {
        for (server, url) in [
            ("127.0.0.1:8181", "http://127.0.0.1:8181"),
            ("images.lan/", "http://images.lan"),
            ("https://x/", "https://x"),
        ] {
            assert_eq!(url_of(server), url);
        }
    }

    #[test]
    fn an_empty_room_says_so() {
        let text = table(&Status::default());
        assert!(text.contains("nothing is armed") && text.contains("no machine"), "{text}");
    }
}

//! The room as a table, for terminals and the page.

use std::fmt::Write as _;

use report::{Report, Stage};

use crate::room::fleet::Claim;
use crate::room::seeds::SeedStatus;
use crate::room::status::{MachineStatus, Status};

/// Width of the table; error texts are broken to it.
const WIDTH: usize = 100;

/// The table, 100 columns wide where names allow it.
pub fn table(status: &Status) -> String {
    let mut out = String::new();
    let is_armed = status.armed.iter().any(|order| order.image.is_some());
    let armed = if is_armed { "" } else { ", nothing is armed" };
    line(&mut out, &format!("ezio {}, up {}{armed}", status.version, duration(status.uptime_s)));
    for trouble in &status.troubles {
        wrap(&mut out, "TROUBLE: ", trouble);
    }
    for hint in &status.hints {
        wrap(&mut out, "note: ", hint);
    }
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
        line(&mut out, "no machine has asked for anything yet");
        return out;
    }
    line(&mut out, "");
    let has_names = status.machines.iter().any(|machine| !machine.name.is_empty());
    let start = start_of_row(has_names, ["MACHINE", "NAME", "IP", "SERIAL", "IMAGE"]);
    line(&mut out, &format!("{start} {:<8} {:>4} {:>7} {:>7}", "STAGE", "%", "MIB/S", "ETA"));
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
        "image {}: {}, sent {} ({ratio:.2} times its size), {} connected, {} fetching, {} complete",
        seed.image,
        units::size(seed.content_len),
        units::size(seed.uploaded),
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
            0 => "not seen yet".to_owned(),
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
    let rate = report.progress.rate_bytes_per_s as f64 / f64::from(1 << 20);
    let is_moving = !report.stage.is_final() && report.progress.bytes_total > 0;
    let row = format!(
        "{} {:<8} {:>4} {:>7} {:>7}",
        start(&report.image),
        said(machine, report),
        if is_moving { report.progress.percent().to_string() } else { String::new() },
        if is_moving { format!("{rate:.1}") } else { String::new() },
        if is_moving { report.progress.eta_seconds().map(duration).unwrap_or_default() } else { String::new() },
    );
    line(out, row.trim_end());
    if let Some(error) = &report.error {
        wrap(out, "    ", error);
    }
    if !report.note.is_empty() {
        wrap(out, "    ", &report.note);
    }
    for (key, value) in &report.more {
        wrap(out, "    ", &format!("{key}: {value}"));
    }
    if !machine.proven && report.stage.is_verified() {
        wrap(out, "    ", "this was said without the machine's token, so it does not count");
    }
    if let Some(Claim { stage, from, .. }) = &machine.claim {
        wrap(out, "    ", &format!("{from} says {stage:?} in its name, without its token: that does not count"));
    }
    if machine.silent {
        let text = format!("silent for {}: is it switched off, or is its cable unplugged?", duration(machine.age_s));
        wrap(out, "    ", &text);
    }
    asked_line(out, machine);
}

fn stage_words(report: &Report) -> String {
    if report.dry_run && report.stage == Stage::Done { "dry run".into() } else { report.stage.to_string() }
}

/// The stage, with a question mark if any client may have said it.
fn said(machine: &MachineStatus, report: &Report) -> String {
    format!("{}{}", stage_words(report), if machine.proven { "" } else { "?" })
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
    let is_done = |m: &&MachineStatus| {
        m.proven && !m.waiting && m.report.as_ref().is_some_and(|r| r.stage.is_verified() && !r.dry_run)
    };
    let done = machines.iter().filter(is_done).count();
    let dry = count(|report| report.stage.is_verified() && report.dry_run);
    let failed = count(|report| report.stage == Stage::Failed);
    let busy = count(|report| !report.stage.is_verified() && !report.stage.is_final());
    let silent = machines.iter().filter(|machine| machine.silent).count();
    let dry = if dry > 0 { format!("{dry} ready (dry run), ") } else { String::new() };
    let waiting = machines.iter().filter(|machine| machine.waiting).count();
    let waiting = if waiting > 0 { format!(", {waiting} waiting") } else { String::new() };
    let machines = units::count(machines.len(), "machine");
    format!("{machines}: {done} done, {dry}{busy} busy ({silent} silent), {failed} failed{waiting}")
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

#[cfg(test)]
mod tests {
    use netboot::MacAddr;

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
            proven: true,
            claim: None,
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
        for words in ["MACHINE           NAME         IP", " a-name-long… ", " pc2          not seen yet, boots the"]
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
        let disk = "(465.8 GiB, ata, Some Model, serial S3Z, 512-byte sectors; GPT: 1 NTFS, 2 ext4): it matches";
        let error = format!("2 disks match, nothing was touched:\n/dev/sda {disk}\n/dev/sdb {disk}");
        failed.report.as_mut().expect("parses").error = Some(error);
        let text = table(&Status { machines: vec![failed], ..Status::default() });
        let (_, list) = text.split_once("    2 disks match, nothing was touched:\n").expect("a line of its own");
        let rows: Vec<_> = list.lines().take(4).collect();
        assert!(
            rows[0].starts_with("    /dev/sda (465.8 GiB") && rows[2].starts_with("    /dev/sdb (465.8 GiB"),
            "{text}"
        );
        assert_eq!((rows[1], rows[3]), ("      matches", "      matches"));
    }

    #[test]
    fn an_empty_room_says_so() {
        let text = table(&Status::default());
        assert!(text.contains("nothing is armed") && text.contains("no machine"), "{text}");
    }
}

//! What each machine reported last, and what it did before. Kept in `LIBRARY/state/fleet.json`, so that a machine that is
//! done stays done when the server restarts.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use netboot::MacAddr;
use report::{Report, Stage};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::room::config::Settings;
use crate::room::orders::Armed;
use crate::room::state;
use terminal::Throttle;

/// Most machines remembered. No room has as many; a flood of invented ones ends here, the quietest going first.
const MAX_MACHINES: usize = 4096;
/// Most bytes that all machines come to as JSON. `ezio status` reads 10 MiB at most, and what is armed is in there too.
const MAX_BYTES: usize = 8 << 20;
/// What the status adds to what is remembered of a machine, in bytes, the longest image name included.
const STATUS_BYTES: usize = 256;
/// Longest text taken over from a report, in bytes.
const MAX_TEXT: usize = 2000;
/// Longest reason for a failure, in bytes: a line for each of some forty disks.
const MAX_ERROR: usize = 8000;
/// Most stage times in a report; there are nine stages.
const MAX_TIMES: usize = 32;
/// Most fields of a newer version in a report; each has [`MAX_TEXT`] bytes at most.
const MAX_MORE: usize = 4;

/// Lines in the log about machines: a room of two hundred has them all at once, a flood has no more than one a second.
static STAGES: Throttle = Throttle::new(2000, Duration::from_secs(1));
/// Every machine that finishes would say it again at each report.
static FULL: Throttle = Throttle::new(10, Duration::from_secs(10));

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub mac: MacAddr,
    /// When it was first heard of, in seconds since 1970.
    pub first_seen: u64,
    /// When it last reported or asked for something.
    pub last_seen: u64,
    /// When it last reported, 0 for never.
    #[serde(default)]
    pub last_report: u64,
    #[serde(default)]
    pub report: Option<Report>,
    /// What it asked for last, in words, if that was after the last report.
    #[serde(default)]
    pub asked: String,
    /// The deployment it has finished, verified.
    #[serde(default)]
    pub done: Option<String>,
}

impl Machine {
    /// One that nothing has been heard of.
    pub fn awaited(mac: MacAddr) -> Machine {
        Machine { mac, first_seen: 0, last_seen: 0, last_report: 0, report: None, asked: String::new(), done: None }
    }
}

#[derive(Debug)]
pub struct Fleet {
    machines: BTreeMap<MacAddr, Machine>,
    /// What they come to, as [`weight`] counts.
    bytes: usize,
    change: u64,
    /// The last change that a machine waits to see on disk.
    important: u64,
}

impl Fleet {
    /// What was known before, and why that is not all if the file is gone or damaged. A damaged file is kept aside.
    pub fn load(state_dir: &Path) -> (Fleet, Option<String>) {
        let path = path(state_dir);
        let (machines, lost) = match state::read::<Vec<Machine>>(&path) {
            Ok(Some(machines)) => (machines, None),
            Ok(None) => (Vec::new(), Some(format!("{} is gone", path.display()))),
            Err(error) => {
                let aside = path.with_extension(format!("json.damaged-{}", state::unix_now()));
                if let Err(cause) = std::fs::rename(&path, &aside) {
                    log::warn!("keeping {} aside: {cause}", path.display());
                }
                (Vec::new(), Some(format!("{error:#}")))
            }
        };
        (Fleet::of(machines), lost)
    }

    fn of(machines: Vec<Machine>) -> Fleet {
        let machines: BTreeMap<_, _> = machines.into_iter().map(|machine| (machine.mac, machine)).collect();
        Fleet { bytes: machines.values().map(weight).sum(), machines, change: 0, important: 0 }
    }

    /// Every machine, by address.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values()
    }

    /// Notes that a machine asked for something.
    pub fn asked(&mut self, mac: MacAddr, what: &str, armed: &Armed) {
        let mut machine = self.take(mac);
        machine.last_seen = state::unix_now();
        machine.asked = what.into();
        self.put(machine, armed);
    }

    /// Takes a report. If it is an important one, a change of stage, it should be on disk before it is answered: the
    /// number of the change then, for [`History::saved`].
    ///
    /// Anybody can send one. So a machine is done only with what it is armed for: a report that names something else
    /// must not undo that, or the machine would be imaged again.
    ///
    /// # Errors
    /// In words for the machine, if the report cannot be right or there is no place for the machine.
    pub fn report(&mut self, mut report: Report, armed: &Armed, settings: &Settings) -> Result<Option<u64>, String> {
        let mac: MacAddr = report.mac.parse().map_err(|error| format!("{error}"))?;
        if !mac.is_unicast() {
            return Err(format!("{mac} is no machine's MAC address"));
        }
        tidy(&mut report);
        let mut machine = self.take(mac);
        let before = machine.report.as_ref().map(|old| (old.stage, old.deployment.clone()));
        let is_new_stage = before != Some((report.stage, report.deployment.clone()));
        if is_new_stage {
            log_stage(mac, &report);
        }
        let job = armed.job_for(mac, settings);
        if report.stage.is_verified() && job.is_some_and(|job| job.deployment == report.deployment) {
            machine.done = Some(report.deployment.clone());
        }
        (machine.last_seen, machine.last_report) = (state::unix_now(), state::unix_now());
        machine.asked.clear();
        machine.report = Some(report);
        if !self.put(machine, armed) {
            let full =
                format!("{MAX_MACHINES} machines have finished this deployment, and the server remembers no more");
            if let Some(more) = FULL.pass() {
                log::error!("{mac}: {full}: run `ezio arm` again, which starts a new deployment{more}");
            }
            return Err(full);
        }
        if is_new_stage {
            self.important = self.change;
        }
        // Who says again that it is done may not have been told yet that this is kept.
        let is_done = self.machines.get(&mac).is_some_and(|machine| machine.done.is_some());
        Ok((is_new_stage || is_done).then_some(self.important))
    }

    /// Whether the machine has finished this deployment.
    pub fn is_done(&self, mac: MacAddr, deployment: &str) -> bool {
        self.machines.get(&mac).is_some_and(|machine| machine.done.as_deref() == Some(deployment))
    }

    /// What is known of a machine, taken out to be changed.
    fn take(&mut self, mac: MacAddr) -> Machine {
        if let Some(machine) = self.machines.remove(&mac) {
            self.bytes -= weight(&machine);
            return machine;
        }
        let now = state::unix_now();
        Machine { first_seen: now, last_seen: now, ..Machine::awaited(mac) }
    }

    /// Puts a machine in or back. `false` if there is no place for a new one.
    fn put(&mut self, machine: Machine, armed: &Armed) -> bool {
        let len = weight(&machine);
        while self.machines.len() >= MAX_MACHINES || self.bytes + len > MAX_BYTES {
            if !self.forget(armed) {
                return false;
            }
        }
        self.bytes += len;
        self.machines.insert(machine.mac, machine);
        self.change += 1;
        true
    }

    /// Makes room: the quietest machine goes, one that never reported first. Who is done with what is armed is never
    /// forgotten, only what it said besides. `false` if there is nothing to forget.
    fn forget(&mut self, armed: &Armed) -> bool {
        let orders = armed.orders().iter().filter(|order| order.image.is_some());
        let deployments: HashSet<&str> = orders.map(|order| order.deployment.as_str()).collect();
        let is_done = |machine: &Machine| machine.done.as_deref().is_some_and(|done| deployments.contains(done));
        let key = |machine: &&Machine| (machine.report.is_some(), machine.last_seen);
        let quietest = self.machines.values().filter(|machine| !is_done(machine)).min_by_key(key).map(|m| m.mac);
        if let Some(mac) = quietest {
            self.take(mac);
            return true;
        }
        if self.machines.len() >= MAX_MACHINES {
            return false;
        }
        let reports = self.machines.values_mut().filter(|machine| machine.report.is_some());
        let Some(quietest) = reports.min_by_key(|machine| machine.last_seen) else { return false };
        self.bytes -= weight(quietest);
        quietest.report = None;
        self.bytes += weight(quietest);
        true
    }
}

/// Bytes that a machine comes to in the status.
fn weight(machine: &Machine) -> usize {
    serde_json::to_vec(machine).map_or(0, |json| json.len()) + STATUS_BYTES
}

/// Where the machines' history is kept. One task writes it, and whoever reports waits for that task without a thread:
/// the threads for what blocks are the seeder's too, and reports must not hold up its reading.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    /// The change that is on disk; held while that is being written.
    written: Mutex<u64>,
    /// The change up to which writing was tried, and why it is not on disk.
    tried: watch::Sender<(u64, Option<String>)>,
    wanted: Notify,
}

impl History {
    /// The history in a state directory.
    pub fn new(state_dir: &Path) -> History {
        let (written, tried, wanted) = (Mutex::default(), watch::Sender::default(), Notify::new());
        History { path: path(state_dir), written, tried, wanted }
    }

    /// Waits until somebody waits for [`History::saved`].
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Waits until a change is on disk.
    ///
    /// # Errors
    /// Why it could not be written; it is tried again.
    pub async fn saved(&self, change: u64) -> Result<(), String> {
        let mut tried = self.tried.subscribe();
        if tried.borrow().0 < change {
            self.wanted.notify_one();
        }
        // An error would mean that the sender is gone, and it is ours.
        let tried = tried.wait_for(|(tried, _)| *tried >= change).await;
        tried.ok().and_then(|tried| tried.1.clone()).map_or(Ok(()), Err)
    }

    /// Why what machines report is not kept at the moment.
    pub fn trouble(&self) -> Option<String> {
        self.tried.borrow().1.clone()
    }

    /// Writes what has changed; when this returns, everything reported before the call is on disk. The machines are
    /// locked only while they are copied: a disk that takes a second to flush must not hold up a room that boots.
    /// An error is logged once, and given to those who wait for this.
    pub fn save(&self, fleet: &Mutex<Fleet>) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let (change, machines) = {
            let fleet = fleet.lock().unwrap_or_else(PoisonError::into_inner);
            if fleet.change == *written {
                return;
            }
            (fleet.change, fleet.machines.values().cloned().collect::<Vec<_>>())
        };
        let trouble = match state::write(&self.path, &machines) {
            Ok(()) => {
                *written = change;
                None
            }
            Err(error) => {
                let trouble = format!("what machines report cannot be kept: {error:#}");
                if self.trouble().as_ref() != Some(&trouble) {
                    log::error!("{trouble}");
                }
                Some(trouble)
            }
        };
        self.tried.send_replace((change, trouble));
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("fleet.json")
}

/// Writes an empty history if there is none: from then on, a history that is gone has been lost.
///
/// # Errors
/// If the directory cannot be written.
pub fn begin(state_dir: &Path) -> anyhow::Result<()> {
    let path = path(state_dir);
    if path.exists() { Ok(()) } else { state::write(&path, &Vec::<Machine>::new()) }
}

fn log_stage(mac: MacAddr, report: &Report) {
    let Some(more) = STAGES.pass() else { return };
    match (&report.error, report.stage) {
        // On one line, or a report could look like another line of the log.
        (Some(error), _) => log::error!("{mac} {}: {}{more}", report.stage, error.replace('\n', " | ")),
        (None, Stage::Failed) => log::error!("{mac} failed and gave no reason{more}"),
        (None, stage) => log::info!("{mac} {stage} {}{more}", report.image),
    }
}

/// Cuts what is too long and takes out what would garble a terminal.
fn tidy(report: &mut Report) {
    let texts = [
        &mut report.deployment,
        &mut report.ip,
        &mut report.serial,
        &mut report.image,
        &mut report.disk,
        &mut report.note,
    ];
    for text in texts {
        *text = tidied(text, MAX_TEXT, |c| !c.is_control());
    }
    if let Some(error) = &mut report.error {
        // A refusal has a line for every disk.
        *error = tidied(error, MAX_ERROR, |c| !c.is_control() || c == '\n');
    }
    report.times.truncate(MAX_TIMES);
    report.stage = named(report.stage);
    report.times.iter_mut().for_each(|time| time.stage = named(time.stage));
    let len = |value: &serde_json::Value| value.to_string().len();
    let fits = |key: &str, value: &serde_json::Value| key.len() + len(value) <= MAX_TEXT;
    let more = std::mem::take(&mut report.more).into_iter().filter(|(key, value)| fits(key, value));
    report.more = more.take(MAX_MORE).collect();
}

/// A stage without what must not be in its name.
fn named(stage: Stage) -> Stage {
    match stage {
        Stage::Unknown(name) => Stage::from(tidied(name.as_str(), MAX_TEXT, |c| !c.is_control())),
        known => known,
    }
}

/// At most `max` bytes of a text, with spaces for what must not be in it.
fn tidied(text: &str, max: usize, is_fine: impl Fn(char) -> bool) -> String {
    text[..text.floor_char_boundary(max)].chars().map(|c| if is_fine(c) { c } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::room::Room;
    use crate::room::orders::Order;
    use crate::room::scope::Scope;
    use library::Library;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

    fn report(stage: &str, deployment: &str) -> Report {
        let json = format!(r#"{{"mac":"{MAC}","stage":"{stage}","deployment":"{deployment}"}}"#);
        serde_json::from_str(&json).expect("a report")
    }

    /// The same from another machine.
    fn report_of(number: usize, stage: &str, deployment: &str) -> Report {
        let mac = format!("02:00:00:00:{:02x}:{:02x}", number >> 8, number & 0xff);
        Report { mac, ..report(stage, deployment) }
    }

    /// Everybody is to get this.
    fn armed(deployment: &str) -> Armed {
        let (scope, image, deployment) = (Scope::All, Some("debian".into()), deployment.into());
        let mut armed = Armed::default();
        armed.arm(Order { scope, image, deployment, overrides: order::Overrides::default(), at: 0 });
        armed
    }

    fn take(fleet: &mut Fleet, report: Report) -> bool {
        fleet.report(report, &armed("d1"), &Settings::default()).expect("good").is_some()
    }

    fn empty() -> Fleet {
        Fleet { machines: BTreeMap::new(), bytes: 0, change: 0, important: 0 }
    }

    #[test]
    fn done_survives_a_restart_and_counts_for_its_deployment_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut fleet = Fleet::of(Vec::new());
        take(&mut fleet, report("restore", "d1"));
        assert!(!fleet.is_done(MAC, "d1"));
        assert!(take(&mut fleet, report("seeding", "d1")), "a new stage");
        let before = fleet.important;
        assert!(take(&mut fleet, report("seeding", "d1")), "it waits until the first one is kept");
        assert_eq!(fleet.important, before, "and asks for no new write");
        assert!(take(&mut fleet, report_of(9, "restore", "d1")) && fleet.important > before);
        let history = History::new(dir.path());
        history.save(&Mutex::new(fleet));
        let (fleet, lost) = Fleet::load(dir.path());
        assert_eq!(lost, None);
        assert!(fleet.is_done(MAC, "d1"));
        assert!(!fleet.is_done(MAC, "d2"));
    }

    #[test]
    fn a_late_failure_does_not_undo_a_proven_disk() {
        let mut fleet = empty();
        take(&mut fleet, report("done", "d1"));
        take(&mut fleet, report("failed", "d1"));
        assert!(fleet.is_done(MAC, "d1"));
    }

    #[test]
    fn done_with_something_else_does_not_undo_what_is_armed() {
        let mut fleet = empty();
        take(&mut fleet, report("done", "d1"));
        take(&mut fleet, report("done", "x"));
        assert!(fleet.is_done(MAC, "d1") && !fleet.is_done(MAC, "x"));
        // Nothing armed, nothing done.
        let mut fleet = empty();
        fleet.report(report("done", "d1"), &Armed::default(), &Settings::default()).expect("good");
        assert!(!fleet.is_done(MAC, "d1"));
    }

    #[test]
    fn invented_machines_never_push_out_who_is_done() {
        let mut fleet = empty();
        take(&mut fleet, report("done", "d1"));
        // It has been switched off since.
        fleet.machines.get_mut(&MAC).expect("known").last_seen = 0;
        take(&mut fleet, report_of(0, "done", "old"));
        for number in 0..MAX_MACHINES + 10 {
            fleet.asked(MacAddr([2, 1, 0, 0, (number >> 8) as u8, number as u8]), "boot script", &armed("d1"));
            take(&mut fleet, report_of(number, "restore", "d1"));
        }
        assert!(fleet.is_done(MAC, "d1"));
        assert_eq!(fleet.machines().count(), MAX_MACHINES);
    }

    #[test]
    fn a_fleet_that_is_done_takes_no_more() {
        let mut fleet = empty();
        for number in 0..MAX_MACHINES {
            take(&mut fleet, report_of(number, "done", "d1"));
        }
        let refusal = fleet.report(report("restore", "d1"), &armed("d1"), &Settings::default());
        assert_eq!(
            refusal,
            Err("4096 machines have finished this deployment, and the server remembers no more".into())
        );
        let before = fleet.important;
        take(&mut fleet, report_of(7, "done", "d1"));
        assert_eq!(fleet.important, before, "known machines still report, and nothing is written for that");
        // With the next deployment nobody is done, and there are places again.
        fleet.report(report("restore", "d2"), &armed("d2"), &Settings::default()).expect("a place");
    }

    #[test]
    fn the_status_stays_readable_whatever_is_reported() {
        const COUNT: usize = 1000;
        for stage in ["failed", "done"] {
            let mut fleet = empty();
            for number in 0..COUNT {
                let mut fat = report_of(number, stage, "d1");
                fat.error = Some("\"€\n".repeat(5000));
                for text in [&mut fat.note, &mut fat.disk, &mut fat.image, &mut fat.serial, &mut fat.ip] {
                    *text = "\\é".repeat(2000);
                }
                take(&mut fleet, fat);
            }
            let machines: Vec<&Machine> = fleet.machines().collect();
            let len = serde_json::to_vec(&machines).expect("JSON").len();
            assert!(len + machines.len() * STATUS_BYTES <= MAX_BYTES + COUNT, "{stage}: {len} bytes");
            assert_eq!(fleet.bytes, machines.iter().map(|machine| weight(machine)).sum::<usize>());
            assert!(machines.iter().any(|machine| machine.report.is_some()), "{stage}: the latest is kept");
            assert!(stage == "failed" || fleet.machines.len() == COUNT, "who is done is remembered");
        }
    }

    #[test]
    fn impossible_reports_are_refused_and_texts_are_tidied() {
        let mut fleet = empty();
        let mut bad = report("done", "d");
        bad.mac = "ff:ff:ff:ff:ff:ff".into();
        assert!(fleet.report(bad, &armed("d1"), &Settings::default()).is_err());
        let mut garbled = report("failed", "d");
        garbled.error = Some("\x1b[2J\n€".repeat(5000));
        garbled.note = "é".repeat(5000);
        take(&mut fleet, garbled);
        let report = fleet.machines().next().and_then(|machine| machine.report.as_ref()).expect("one");
        let error = report.error.as_ref().expect("kept");
        assert!(error.len() <= MAX_ERROR && !error.contains('\x1b') && error.starts_with(" [2J\n€"));
        assert_eq!(report.note.len(), MAX_TEXT);
    }

    #[test]
    #[expect(clippy::await_holding_lock, reason = "it stands for a disk that takes its time")]
    fn reports_wait_for_a_slow_disk_without_a_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(2).build();
        runtime.expect("a runtime").block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let room = Room::new(
                Settings::default(),
                Library::create(dir.path()).expect("made"),
                vec![],
                armed("d1"),
                Fleet::of(Vec::new()),
            );
            let room = Arc::new(room);
            let (_stop, watcher) = watch::channel(false);
            tokio::spawn(crate::services::history::run(room.clone(), watcher));
            let slow = room.history().written.lock().expect("nobody else has it");
            let mut reports = tokio::task::JoinSet::new();
            for number in 0..100 {
                let room = room.clone();
                reports.spawn(async move { room.report(report_of(number, "restore", "d1")).await.expect("good") });
            }
            let second = Duration::from_secs(1);
            tokio::time::sleep(second / 5).await;
            // As the seeder reads.
            let read = tokio::time::timeout(10 * second, tokio::task::spawn_blocking(|| ())).await;
            read.expect("a thread is free").expect("it ran");
            assert!(tokio::time::timeout(second, reports.join_next()).await.is_err(), "answered before it is on disk");
            drop(slow);
            tokio::time::timeout(10 * second, reports.join_all()).await.expect("answered");
            assert_eq!(Fleet::load(&room.library.state_dir()).0.machines().count(), 100);
        });
    }

    #[test]
    fn a_disk_that_cannot_be_written_keeps_nobody_waiting() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let history = History::new(Path::new("/nonexistent"));
            let mut fleet = empty();
            let change = fleet.report(report("done", "d1"), &armed("d1"), &Settings::default()).expect("good");
            let fleet = Mutex::new(fleet);
            history.save(&fleet);
            let kept = history.saved(change.expect("important")).await;
            assert!(kept.expect_err("no directory").contains("cannot be kept"), "and is not acknowledged");
            assert!(history.trouble().is_some());
            assert_eq!(*history.written.lock().expect("free"), 0, "it is tried again");
        });
    }

    #[test]
    fn a_history_that_is_gone_or_damaged_is_known_to_be_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let (fleet, lost) = Fleet::load(dir.path());
        assert_eq!(fleet.machines().count(), 0);
        assert!(lost.expect("lost").contains("is gone"));
        begin(dir.path()).expect("written");
        assert_eq!(Fleet::load(dir.path()).1, None, "an empty one is not lost");
        std::fs::write(dir.path().join("fleet.json"), b"[{").expect("written");
        assert!(Fleet::load(dir.path()).1.expect("lost").contains("is damaged"));
        let mut files =
            std::fs::read_dir(dir.path()).expect("a directory").map(|entry| entry.expect("an entry").path());
        let aside = files.find(|path| path.to_string_lossy().contains("fleet.json.damaged-")).expect("kept aside");
        assert_eq!(std::fs::read(aside).expect("read"), b"[{");
    }
}

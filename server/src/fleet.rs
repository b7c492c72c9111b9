//! What each machine last said, and what it did before. Kept in `LIBRARY/state/fleet.json`, so that a machine that is
//! done stays done when the server restarts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use netboot::MacAddr;
use report::{Report, Stage};
use serde::{Deserialize, Serialize};

use crate::state;

/// Most machines remembered. No room has as many; a flood of invented ones ends here, the quietest going first.
const MAX_MACHINES: usize = 4096;
/// Longest text taken over from a report, in bytes.
const MAX_TEXT: usize = 2000;
/// Longest reason for a failure, in characters: a line for each of some forty disks.
const MAX_ERROR: usize = 8000;
/// Most stage times in a report; there are nine stages.
const MAX_TIMES: usize = 32;

/// One machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its address.
    pub mac: MacAddr,
    /// When it was first heard of, in seconds since 1970.
    pub first_seen: u64,
    /// When it last reported or asked for something.
    pub last_seen: u64,
    /// When it last reported, 0 for never.
    #[serde(default)]
    pub last_report: u64,
    /// The last report.
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

/// All machines.
#[derive(Debug)]
pub struct Fleet {
    machines: BTreeMap<MacAddr, Machine>,
    dirty: bool,
}

impl Fleet {
    /// Remembers what was known before. A damaged file costs the memory, not the server.
    pub fn load(state_dir: &Path) -> Fleet {
        let machines: Vec<Machine> = state::read(&path(state_dir))
            .unwrap_or_else(|error| {
                log::error!("the machines' history is lost: {error:#}");
                None
            })
            .unwrap_or_default();
        Fleet { machines: machines.into_iter().map(|machine| (machine.mac, machine)).collect(), dirty: false }
    }

    /// Every machine, by address.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values()
    }

    /// Notes that a machine asked for something.
    pub fn asked(&mut self, mac: MacAddr, what: &str) {
        let machine = self.entry(mac);
        machine.last_seen = state::unix_now();
        machine.asked = what.into();
        self.dirty = true;
    }

    /// Takes a report. Whether it is an important one, a change of stage, which should be on disk before it is answered.
    ///
    /// # Errors
    /// In words for the machine, if the report cannot be right.
    pub fn report(&mut self, mut report: Report) -> Result<bool, String> {
        let mac: MacAddr = report.mac.parse().map_err(|error| format!("{error}"))?;
        if !mac.is_unicast() {
            return Err(format!("{mac} is no machine's MAC address"));
        }
        tidy(&mut report);
        let machine = self.entry(mac);
        let before = machine.report.as_ref().map(|old| (old.stage, old.deployment.clone()));
        let is_new_stage = before != Some((report.stage, report.deployment.clone()));
        if is_new_stage {
            log_stage(mac, &report);
        }
        if report.stage.is_verified() {
            machine.done = Some(report.deployment.clone());
        }
        (machine.last_seen, machine.last_report) = (state::unix_now(), state::unix_now());
        machine.asked.clear();
        machine.report = Some(report);
        self.dirty = true;
        Ok(is_new_stage)
    }

    /// Whether the machine has finished this deployment.
    pub fn is_done(&self, mac: MacAddr, deployment: &str) -> bool {
        self.machines.get(&mac).is_some_and(|machine| machine.done.as_deref() == Some(deployment))
    }

    /// What has to be written, if anything has changed since this was last asked.
    fn changes(&mut self) -> Option<Vec<Machine>> {
        std::mem::take(&mut self.dirty).then(|| self.machines.values().cloned().collect())
    }

    fn entry(&mut self, mac: MacAddr) -> &mut Machine {
        if self.machines.len() >= MAX_MACHINES && !self.machines.contains_key(&mac) {
            // Whoever only asked for a script goes first: what has reported may be done, and must stay so.
            let key = |machine: &&Machine| (machine.report.is_some(), machine.last_seen);
            let quietest = self.machines.values().min_by_key(key).map(|machine| machine.mac);
            quietest.and_then(|mac| self.machines.remove(&mac));
        }
        let now = state::unix_now();
        let new = || Machine { first_seen: now, last_seen: now, ..Machine::awaited(mac) };
        self.machines.entry(mac).or_insert_with(new)
    }
}

/// Where the machines' history is kept, and who is writing it.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    writing: Mutex<()>,
}

impl History {
    /// The history in a state directory.
    pub fn new(state_dir: &Path) -> History {
        History { path: path(state_dir), writing: Mutex::default() }
    }

    /// Writes what has changed; when this returns, everything reported before the call is on disk. The machines are
    /// locked only while they are copied: a disk that takes a second to flush must not hold up a room that boots.
    /// An error is logged, the machines matter more.
    pub fn save(&self, fleet: &Mutex<Fleet>) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let fleet = || fleet.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(machines) = fleet().changes() else { return };
        if let Err(error) = state::write(&self.path, &machines) {
            fleet().dirty = true;
            log::error!("the machines' history cannot be kept: {error:#}");
        }
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("fleet.json")
}

fn log_stage(mac: MacAddr, report: &Report) {
    match (&report.error, report.stage) {
        (Some(error), _) => log::error!("{mac} {}: {error}", report.stage),
        (None, Stage::Failed) => log::error!("{mac} failed, without saying why"),
        (None, stage) => log::info!("{mac} {stage} {}", report.image),
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
        *text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect();
    }
    if let Some(error) = &mut report.error {
        // A refusal has a line for every disk.
        let shown = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
        *error = error.chars().map(shown).take(MAX_ERROR).collect();
    }
    report.times.truncate(MAX_TIMES);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stage: &str, deployment: &str) -> Report {
        let json = format!(r#"{{"mac":"52:54:00:00:00:01","stage":"{stage}","deployment":"{deployment}"}}"#);
        serde_json::from_str(&json).expect("a report")
    }

    #[test]
    fn done_survives_a_restart_and_counts_for_its_deployment_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
        let mut fleet = Fleet::load(dir.path());
        fleet.report(report("restore", "d1")).expect("good");
        assert!(!fleet.is_done(mac, "d1"));
        assert!(fleet.report(report("seeding", "d1")).expect("good"), "a new stage");
        assert!(!fleet.report(report("seeding", "d1")).expect("good"), "the same stage");
        let history = History::new(dir.path());
        history.save(&Mutex::new(fleet));
        let fleet = Fleet::load(dir.path());
        assert!(fleet.is_done(mac, "d1"));
        assert!(!fleet.is_done(mac, "d2"));
    }

    #[test]
    fn a_late_failure_does_not_undo_a_proven_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut fleet = Fleet::load(dir.path());
        fleet.report(report("done", "d1")).expect("good");
        fleet.report(report("failed", "d1")).expect("good");
        assert!(fleet.is_done(MacAddr([0x52, 0x54, 0, 0, 0, 1]), "d1"));
    }

    #[test]
    fn impossible_reports_are_refused_and_texts_are_tidied() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut fleet = Fleet::load(dir.path());
        let mut bad = report("done", "d");
        bad.mac = "ff:ff:ff:ff:ff:ff".into();
        assert!(fleet.report(bad).is_err());
        let mut garbled = report("failed", "d");
        garbled.error = Some("\x1b[2J\n".repeat(5000));
        fleet.report(garbled).expect("good");
        let machine = fleet.machines().next().expect("one");
        let error = machine.report.as_ref().and_then(|report| report.error.as_ref()).expect("kept");
        assert!(error.len() <= MAX_ERROR && !error.contains('\x1b') && error.starts_with(" [2J\n"));
    }

    #[test]
    fn a_damaged_history_starts_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("fleet.json"), b"[{").expect("written");
        assert_eq!(Fleet::load(dir.path()).machines().count(), 0);
    }
}

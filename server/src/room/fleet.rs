//! What each machine reported last, and what it did before. Kept in the store, so that a machine that is done stays done
//! when the server restarts.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use netboot::MacAddr;
use report::{Report, Stage};
use serde::{Deserialize, Serialize};
use store::{Change, Store};
use tokio::sync::{Notify, watch};

use crate::room::config::Settings;
use crate::room::identity::Identity;
use crate::room::orders::{Armed, Job, Order};
use crate::room::state;
use terminal::{Throttle, is_plain};

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
/// Highest rate that is shown, in bytes per second: 100 times what the fastest network card carries.
const MAX_RATE: u64 = 10 << 40;
/// Deployments remembered of one card.
const MAX_FINISHED: usize = 64;
/// Most stage times in a report; there are nine stages.
const MAX_TIMES: usize = 32;
/// Most fields of a newer version in a report; each has [`MAX_TEXT`] bytes at most.
const MAX_MORE: usize = 4;

/// Kind of the rows with machines.
const KIND: &str = "machine";
/// Bytes per second that the history may write on average, and at once after a pause.
const WRITE_RATE: f64 = 700e3;
const WRITE_BURST: f64 = 8e6;
/// What a commit and a row cost on disk besides the row's text, in bytes: pages of the log and of the database.
const COMMIT_BYTES: usize = 24 << 10;
const ROW_BYTES: usize = 3 << 9;
/// Rows of so many bytes are written at once.
const BATCH_BYTES: usize = 1 << 20;
/// And of rows that nobody waits for.
const LAZY_BYTES: usize = 64 << 10;
/// Pause after a failure.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Lines in the log about machines: a room of two hundred has them all at once, a flood has no more than one a second.
static STAGES: Throttle = Throttle::new(2000, Duration::from_secs(1));
/// Reports that are not a machine's own.
static CLAIMS: Throttle = Throttle::new(20, Duration::from_secs(60));
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
    /// What it is besides its card, as far as it is known.
    #[serde(default, skip_serializing_if = "Identity::is_empty")]
    pub identity: Identity,
    /// Which machines have finished what through this card, the newest last: a dock lends its card to many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finished: Vec<Finished>,
    /// Whether the last report proved that it is this machine's, by its token.
    #[serde(default)]
    pub proven: bool,
    /// The last report without the machine's token, while there are reports with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
}

/// A deployment that a machine has finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    pub deployment: String,
    pub by: Identity,
}

/// What a report without the machine's token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The stage that it names.
    pub stage: String,
    /// Where it came from.
    pub from: String,
    /// When, in seconds since 1970.
    pub at: u64,
}

impl Machine {
    /// Another machine may have the card now.
    fn meet(&mut self, identity: &Identity) {
        if self.identity.contradicts(identity) {
            self.identity = Identity::default();
        }
        self.identity.learn(identity);
    }

    /// One that nothing has been heard of.
    pub fn awaited(mac: MacAddr) -> Machine {
        Machine {
            identity: Identity::default(),
            finished: Vec::new(),
            mac,
            first_seen: 0,
            last_seen: 0,
            last_report: 0,
            report: None,
            asked: String::new(),
            done: None,
            proven: false,
            claim: None,
        }
    }
}

#[derive(Debug, Default)]
pub struct Fleet {
    machines: BTreeMap<MacAddr, Machine>,
    /// What they come to, as [`weight`] counts.
    bytes: usize,
    unsaved: Unsaved,
}

/// What differs from what is on disk.
#[derive(Debug, Default)]
struct Unsaved {
    /// Machines with a change that is acknowledged once it is kept.
    urgent: BTreeSet<MacAddr>,
    /// Machines with other changes, or that are forgotten.
    lazy: BTreeSet<MacAddr>,
    /// Those that are being written at this moment.
    in_flight: BTreeSet<MacAddr>,
}

impl Fleet {
    /// What is known, from the store.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn load(store: &Store) -> anyhow::Result<Fleet> {
        let machine = |(_, body): (String, String)| serde_json::from_str::<Machine>(&body);
        let machines = store.rows(KIND)?.into_iter().map(machine).collect::<Result<Vec<_>, _>>();
        Ok(Fleet::of(machines.context("reading the record of a machine")?))
    }

    fn of(machines: Vec<Machine>) -> Fleet {
        let machines: BTreeMap<_, _> = machines.into_iter().map(|machine| (machine.mac, machine)).collect();
        Fleet { bytes: machines.values().map(weight).sum(), machines, unsaved: Unsaved::default() }
    }

    /// Every machine, by address.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values()
    }

    /// Notes that a machine asked for something, and what it is if it said so.
    pub fn asked(&mut self, mac: MacAddr, what: &str, identity: &Identity, armed: &Armed) {
        let mut machine = self.take(mac);
        machine.meet(identity);
        machine.last_seen = state::unix_now();
        machine.asked = what.into();
        self.put(machine, armed);
    }

    /// Takes a report. Whether it is an important one, a change of stage: it should be on disk before it is answered, see
    /// [`History::saved`].
    ///
    /// Any client can send one. So a report counts only if it is `proven`, by the machine's token; another one is shown as
    /// what it is, a claim. And a machine is done only with what it is armed for: a report that names something else must
    /// not undo that, or the machine would be imaged again.
    ///
    /// # Errors
    /// In words for the machine, if the report cannot be right or there is no place for the machine.
    pub fn report(
        &mut self,
        mut report: Report,
        is_proven: bool,
        armed: &Armed,
        settings: &Settings,
    ) -> Result<bool, String> {
        let mac: MacAddr = report.mac.parse().map_err(|error| format!("{error}"))?;
        if !mac.is_unicast() {
            return Err(format!("{mac} is no machine's MAC address"));
        }
        tidy(&mut report);
        report.token.clear();
        let mut machine = self.take(mac);
        if !is_proven && machine.proven {
            let claim = Claim { stage: report.stage.to_string(), from: report.ip, at: state::unix_now() };
            let is_new =
                machine.claim.as_ref().is_none_or(|old| (&old.stage, &old.from) != (&claim.stage, &claim.from));
            if is_new && let Some(more) = CLAIMS.pass() {
                log::warn!(
                    "{mac}: a report from {} without its token says {:?}; it does not count{more}",
                    claim.from,
                    claim.stage
                );
            }
            machine.claim = Some(claim);
            // A machine that is known has its place.
            self.put(machine, armed);
            return Ok(false);
        }
        machine.meet(&Identity::of(&report.uuid, &report.serial));
        let before = machine.report.as_ref().map(|old| (old.stage, old.deployment.clone()));
        let is_new_stage = before != Some((report.stage, report.deployment.clone()));
        if is_new_stage {
            log_stage(mac, &report);
        }
        let job = armed.job_for(mac, settings);
        if is_proven && report.stage.is_verified() && job.is_some_and(|job| job.deployment == report.deployment) {
            machine.done = Some(report.deployment.clone());
            let by = machine.identity.clone();
            let finished = Finished { deployment: report.deployment.clone(), by };
            machine.finished.retain(|old| *old != finished);
            machine.finished.push(finished);
            let old = machine.finished.len().saturating_sub(MAX_FINISHED);
            machine.finished.drain(..old);
        }
        (machine.last_seen, machine.last_report) = (state::unix_now(), state::unix_now());
        machine.asked.clear();
        machine.proven = is_proven;
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
            self.unsaved.urgent.insert(mac);
        }
        // A machine that says again that it is done may have had no answer yet.
        Ok(is_new_stage || self.is_unsaved(mac))
    }

    /// Whether a change that is acknowledged once it is kept is not on disk yet.
    fn is_unsaved(&self, mac: MacAddr) -> bool {
        self.unsaved.urgent.contains(&mac) || self.unsaved.in_flight.contains(&mac)
    }

    /// Whether the machine has finished this job: the one that used the card last, through this card or another one.
    pub fn is_done(&self, mac: MacAddr, job: &Job) -> bool {
        let Some(machine) = self.machines.get(&mac) else { return false };
        let by_card = machine.finished.iter().filter(|finished| job.is_done_by(&finished.deployment));
        let mut by_card = by_card.peekable();
        if by_card.peek().is_none() {
            // A version before this one did not say which machine it was.
            return machine.done.as_deref().is_some_and(|done| job.is_done_by(done))
                || self.is_done_elsewhere(machine, job);
        }
        by_card.any(|finished| !finished.by.contradicts(&machine.identity)) || self.is_done_elsewhere(machine, job)
    }

    fn is_done_elsewhere(&self, machine: &Machine, job: &Job) -> bool {
        // One number alone may be a maker's for a whole series.
        let is_certain = !machine.identity.uuid.is_empty() && !machine.identity.serial.is_empty();
        is_certain
            && self.machines.values().flat_map(|other| &other.finished).any(|finished| {
                !finished.by.serial.is_empty()
                    && finished.by.is_same(&machine.identity)
                    && job.is_done_by(&finished.deployment)
            })
    }

    /// The other cards of the machine that used this one last, as far as they are known.
    pub fn other_cards(&self, mac: MacAddr) -> Vec<MacAddr> {
        let Some(machine) = self.machines.get(&mac).filter(|machine| !machine.identity.is_empty()) else {
            return Vec::new();
        };
        let is_same = |other: &&Machine| other.mac != mac && other.identity.is_same(&machine.identity);
        self.machines.values().filter(is_same).map(|other| other.mac).collect()
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
        self.unsaved.lazy.insert(machine.mac);
        self.machines.insert(machine.mac, machine);
        true
    }

    /// Makes room: the quietest machine goes, one that never reported first. Who is done with what is armed is never
    /// forgotten, only what it said besides. `false` if there is nothing to forget.
    fn forget<'a>(&mut self, armed: &'a Armed) -> bool {
        let orders = armed.orders().iter().filter(|order| order.image.is_some());
        let ids = |order: &'a Order| order.counts.iter().chain([&order.deployment]).map(String::as_str);
        let deployments: HashSet<&str> = orders.flat_map(ids).collect();
        let is_done = |machine: &Machine| machine.done.as_deref().is_some_and(|done| deployments.contains(done));
        let key = |machine: &&Machine| (machine.report.is_some(), machine.last_seen);
        let quietest = self.machines.values().filter(|machine| !is_done(machine)).min_by_key(key).map(|m| m.mac);
        if let Some(mac) = quietest {
            self.take(mac);
            self.unsaved.lazy.insert(mac);
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
        self.unsaved.lazy.insert(quietest.mac);
        true
    }

    /// What to write next, as rows; `None` is a machine that is forgotten. What a report waits for comes first, and of the
    /// rest so much that all of it is no more than `max` bytes.
    fn next_rows(&mut self, max: usize) -> Vec<(MacAddr, Option<String>)> {
        let Unsaved { urgent, lazy, in_flight } = &mut self.unsaved;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        // A machine that is done must not wait for those that change their stage all the time.
        let is_done = |mac: &MacAddr| self.machines.get(mac).is_some_and(|machine| machine.done.is_some());
        let (done, other): (Vec<MacAddr>, Vec<MacAddr>) = urgent.iter().partition(|mac| is_done(mac));
        let urgent_len = urgent.len();
        for (index, mac) in done.into_iter().chain(other).chain(lazy.difference(urgent).copied()).enumerate() {
            // Who waits for an answer does not wait for what nobody waits for.
            if bytes >= if index < urgent_len { max } else { max.min(LAZY_BYTES) } {
                break;
            }
            let row = self.machines.get(&mac).and_then(|machine| serde_json::to_string(machine).ok());
            bytes += ROW_BYTES + row.as_ref().map_or(0, String::len);
            rows.push((mac, row));
        }
        for (mac, _) in &rows {
            lazy.remove(mac);
            if urgent.remove(mac) {
                in_flight.insert(*mac);
            }
        }
        rows
    }

    /// What [`Fleet::next_rows`] gave is on disk, or is not.
    fn written(&mut self, rows: &[(MacAddr, Option<String>)], is_kept: bool) {
        for (mac, _) in rows {
            let was_urgent = self.unsaved.in_flight.remove(mac);
            if !is_kept {
                if was_urgent { &mut self.unsaved.urgent } else { &mut self.unsaved.lazy }.insert(*mac);
            }
        }
    }
}

/// Bytes that a machine comes to in the status.
fn weight(machine: &Machine) -> usize {
    serde_json::to_vec(machine).map_or(0, |json| json.len()) + STATUS_BYTES
}

/// Where the machines' history is kept. One task writes it, and requests that report wait for that task without a thread:
/// the threads for what blocks are the seeder's too, and reports must not hold up its reading.
#[derive(Debug)]
pub struct History {
    /// Held while something is being written.
    store: Mutex<Store>,
    /// How often writing was tried, and why what was to be written is not on disk.
    tried: watch::Sender<(u64, Option<String>)>,
    wanted: Notify,
    allowance: Mutex<Allowance>,
}

impl History {
    /// The history in a store.
    pub fn new(store: Store) -> History {
        let (tried, wanted) = (watch::Sender::default(), Notify::new());
        History { store: Mutex::new(store), tried, wanted, allowance: Mutex::new(Allowance::full()) }
    }

    /// Waits until a report waits for [`History::saved`].
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Waits until what a machine reported is on disk.
    ///
    /// # Errors
    /// Why it could not be written; it is tried again.
    pub async fn saved(&self, fleet: &Mutex<Fleet>, mac: MacAddr) -> Result<(), String> {
        let mut tried = self.tried.subscribe();
        loop {
            if !fleet.lock().unwrap_or_else(PoisonError::into_inner).is_unsaved(mac) {
                return Ok(());
            }
            self.wanted.notify_one();
            // An error would mean that the sender is gone, and it is ours.
            let _ = tried.changed().await;
            let is_unsaved = fleet.lock().unwrap_or_else(PoisonError::into_inner).is_unsaved(mac);
            if let Some(error) = tried.borrow_and_update().1.clone().filter(|_| is_unsaved) {
                return Err(error);
            }
        }
    }

    /// Why what machines report is not kept at the moment.
    pub fn trouble(&self) -> Option<String> {
        self.tried.borrow().1.clone()
    }

    /// Writes what reports wait for, and some of what has changed besides; [`History::save_all`] for all of it. The
    /// machines are locked only while they are copied: a disk that takes a second to flush must not hold up a room that
    /// boots. An error is logged once, and given to those who wait for this. Gives how long to pause, so that a room with
    /// much to say writes [`WRITE_RATE`] bytes a second at most.
    pub fn save(&self, fleet: &Mutex<Fleet>) -> Duration {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = fleet.lock().unwrap_or_else(PoisonError::into_inner).next_rows(BATCH_BYTES);
        if rows.is_empty() {
            return Duration::ZERO;
        }
        let written: anyhow::Result<()> = store.change(|change| {
            for (mac, row) in &rows {
                match row {
                    Some(row) => change.put(KIND, &mac.to_string(), row)?,
                    None => change.delete(KIND, &mac.to_string())?,
                }
            }
            Ok(())
        });
        let is_in_place = store.is_in_place();
        let trouble = match written {
            Ok(()) if !is_in_place => {
                let path = store.path().display();
                Some(format!(
                    "{path} was removed or replaced while the server runs: put it back, or restart `ezio serve`"
                ))
            }
            Ok(()) => None,
            Err(error) => Some(format!("what machines report cannot be kept: {error:#}")),
        };
        if let Some(trouble) = &trouble
            && self.trouble().as_ref() != Some(trouble)
        {
            log::error!("{trouble}");
        }
        fleet.lock().unwrap_or_else(PoisonError::into_inner).written(&rows, trouble.is_none());
        drop(store);
        let is_kept = trouble.is_none();
        self.tried.send_modify(|tried| *tried = (tried.0 + 1, trouble));
        let bytes =
            COMMIT_BYTES + rows.iter().map(|(_, row)| ROW_BYTES + row.as_ref().map_or(0, String::len)).sum::<usize>();
        if is_kept { self.allowance.lock().unwrap_or_else(PoisonError::into_inner).take(bytes) } else { TRY_AGAIN }
    }

    /// Writes all that has changed; when this returns without trouble, everything reported before the call is on disk.
    pub fn save_all(&self, fleet: &Mutex<Fleet>) {
        loop {
            self.save(fleet);
            let is_all = {
                let unsaved = &fleet.lock().unwrap_or_else(PoisonError::into_inner).unsaved;
                unsaved.urgent.is_empty() && unsaved.lazy.is_empty()
            };
            if is_all || self.trouble().is_some() {
                return;
            }
        }
    }
}

/// Bytes that may be written. A room that starts a stage together may write at once what it did not write before.
#[derive(Debug)]
struct Allowance {
    bytes: f64,
    at: Instant,
}

impl Allowance {
    fn full() -> Allowance {
        Allowance { bytes: WRITE_BURST, at: Instant::now() }
    }

    /// Takes bytes, and gives how long to pause until there are some again.
    fn take(&mut self, bytes: usize) -> Duration {
        let since = self.at.elapsed().as_secs_f64();
        self.at = Instant::now();
        self.bytes = (self.bytes + since * WRITE_RATE).min(WRITE_BURST) - bytes as f64;
        Duration::from_secs_f64((-self.bytes / WRITE_RATE).max(0.0))
    }
}

/// Takes over what older versions kept in `fleet.json`. Gives why that is not all.
///
/// # Errors
/// If it cannot be read because of the disk, or the store cannot be written.
pub fn take_over(state_dir: &Path, change: &mut Change<'_>) -> anyhow::Result<Option<String>> {
    let path = state_dir.join("fleet.json");
    let lost = |what: &dyn std::fmt::Display| {
        format!("the record of finished machines is lost ({what}), so machines that are done would be imaged again")
    };
    let machines = match state::read::<Vec<Machine>>(&path) {
        Ok(Some(machines)) => machines,
        Ok(None) => return Ok(Some(lost(&format_args!("{} is gone", path.display())))),
        Err(error) if error.root_cause().is::<serde_json::Error>() => {
            return Ok(Some(lost(&format_args!("{error:#}"))));
        }
        Err(error) => return Err(error.context("reading the record of finished machines")),
    };
    for machine in machines {
        let row = serde_json::to_string(&machine).context("writing the record of a machine")?;
        change.put(KIND, &machine.mac.to_string(), &row)?;
    }
    Ok(None)
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
        &mut report.uuid,
        &mut report.image,
        &mut report.disk,
        &mut report.note,
    ];
    for text in texts {
        *text = tidied(text, MAX_TEXT, is_plain);
    }
    if let Some(error) = &mut report.error {
        // A refusal has a line for every disk.
        *error = tidied(error, MAX_ERROR, |c| is_plain(c) || c == '\n');
    }
    report.times.truncate(MAX_TIMES);
    let progress = &mut report.progress;
    progress.bytes_done = progress.bytes_done.min(progress.bytes_total);
    progress.rate_bytes_per_s = progress.rate_bytes_per_s.min(MAX_RATE);
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
        Stage::Unknown(name) => Stage::from(tidied(name.as_str(), MAX_TEXT, is_plain)),
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

    /// Every machine gets this.
    fn armed(deployment: &str) -> Armed {
        let mut armed = Armed::default();
        armed.arm(order(deployment));
        armed
    }

    fn order(deployment: &str) -> Order {
        Order { image: Some("debian".into()), deployment: deployment.into(), ..Order::hold(Scope::All) }
    }

    fn take(fleet: &mut Fleet, report: Report) -> bool {
        fleet.report(report, true, &armed("d1"), &Settings::default()).expect("good")
    }

    fn is_done(fleet: &Fleet, deployment: &str) -> bool {
        let job = armed(deployment).job_for(MAC, &Settings::default()).expect("armed");
        fleet.is_done(MAC, &job)
    }

    fn empty() -> Fleet {
        Fleet::default()
    }

    fn open(dir: &Path) -> Store {
        Store::open(dir, |_| Ok(())).expect("opens")
    }

    #[test]
    fn done_survives_a_restart_and_counts_for_its_deployment_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let fleet = Mutex::new(Fleet::default());
        let history = History::new(open(dir.path()));
        let take = |report| take(&mut fleet.lock().expect("free"), report);
        take(report("restore", "d1"));
        assert!(!is_done(&fleet.lock().expect("free"), "d1"));
        assert!(take(report("seeding", "d1")), "a new stage");
        assert!(take(report("seeding", "d1")), "it waits until the first one is kept");
        history.save(&fleet);
        assert!(!take(report("seeding", "d1")), "it is kept");
        assert!(take(report_of(9, "restore", "d1")));
        history.save_all(&fleet);
        let fleet = Fleet::load(&open(dir.path())).expect("read");
        assert_eq!(fleet.machines().count(), 2);
        assert!(is_done(&fleet, "d1") && !is_done(&fleet, "d2"));
    }

    #[test]
    fn a_report_without_the_token_is_a_claim() {
        let mut fleet = empty();
        let say = |fleet: &mut Fleet, stage: &str, is_proven| {
            fleet.report(report(stage, "d1"), is_proven, &armed("d1"), &Settings::default()).expect("good");
        };
        say(&mut fleet, "done", false);
        assert!(!is_done(&fleet, "d1"));
        let machine = |fleet: &Fleet| fleet.machines().next().expect("one").clone();
        assert_eq!((machine(&fleet).proven, machine(&fleet).report.expect("shown").stage), (false, Stage::Done));
        say(&mut fleet, "restore", true);
        say(&mut fleet, "done", false);
        let now = machine(&fleet);
        assert_eq!((now.proven, now.report.expect("its own").stage), (true, Stage::Restore));
        assert_eq!(now.claim.expect("shown").stage, "done");
        assert!(!is_done(&fleet, "d1"));
        say(&mut fleet, "done", true);
        say(&mut fleet, "failed", false);
        assert!(is_done(&fleet, "d1"));
    }

    #[test]
    fn a_dock_has_many_machines_and_a_machine_has_many_cards() {
        const DOCK: &str = "00:e0:4c:68:00:01";
        let uuid = |last: u8| format!("4c4c4544-0043-3510-8051-b7c04f4d32{last:02x}");
        let mut fleet = empty();
        let say = |fleet: &mut Fleet, mac: &str, stage: &str, machine: u8| {
            let (uuid, serial) = (uuid(machine), format!("LAPTOP-{machine}"));
            let report = Report { mac: mac.into(), uuid, serial, ..report(stage, "d1") };
            fleet.report(report, true, &armed("d1"), &Settings::default()).expect("good");
        };
        let boots = |fleet: &mut Fleet, mac: &str, machine: u8| {
            let (mac, identity) =
                (mac.parse().expect("a MAC"), Identity::of(&uuid(machine), &format!("LAPTOP-{machine}")));
            fleet.asked(mac, "boot script", &identity, &armed("d1"));
            let job = armed("d1").job_for(mac, &Settings::default()).expect("armed");
            fleet.is_done(mac, &job)
        };
        say(&mut fleet, DOCK, "done", 1);
        assert!(boots(&mut fleet, DOCK, 1));
        assert!(!boots(&mut fleet, DOCK, 2), "another laptop in the same dock");
        say(&mut fleet, DOCK, "restore", 2);
        say(&mut fleet, DOCK, "done", 2);
        assert!(boots(&mut fleet, DOCK, 1) && boots(&mut fleet, DOCK, 2) && !boots(&mut fleet, DOCK, 3));
        // The first one with its own card.
        assert!(boots(&mut fleet, "02:00:00:00:00:31", 1) && !boots(&mut fleet, "02:00:00:00:00:33", 3));
        let own: MacAddr = "02:00:00:00:00:31".parse().expect("a MAC");
        assert!(boots(&mut fleet, DOCK, 1));
        assert_eq!(fleet.other_cards(own), [DOCK.parse().expect("a MAC")]);
        assert!(boots(&mut fleet, DOCK, 2));
        assert!(fleet.other_cards(own).is_empty(), "the dock is another one's now");
    }

    #[test]
    fn a_late_failure_does_not_undo_a_proven_disk() {
        let mut fleet = empty();
        take(&mut fleet, report("done", "d1"));
        take(&mut fleet, report("failed", "d1"));
        assert!(is_done(&fleet, "d1"));
    }

    #[test]
    fn done_with_something_else_does_not_undo_what_is_armed() {
        let mut fleet = empty();
        take(&mut fleet, report("done", "d1"));
        take(&mut fleet, report("done", "x"));
        assert!(is_done(&fleet, "d1") && !is_done(&fleet, "x"));
        // Nothing armed, nothing done.
        let mut fleet = empty();
        fleet.report(report("done", "d1"), true, &Armed::default(), &Settings::default()).expect("good");
        assert!(!is_done(&fleet, "d1"));
    }

    #[test]
    fn invented_machines_never_push_out_who_is_done() {
        let mut fleet = empty();
        take(&mut fleet, report("done", "d1"));
        // It has been switched off since.
        fleet.machines.get_mut(&MAC).expect("known").last_seen = 0;
        take(&mut fleet, report_of(0, "done", "old"));
        for number in 0..MAX_MACHINES + 10 {
            fleet.asked(
                MacAddr([2, 1, 0, 0, (number >> 8) as u8, number as u8]),
                "boot script",
                &Identity::default(),
                &armed("d1"),
            );
            take(&mut fleet, report_of(number, "restore", "d1"));
        }
        assert!(is_done(&fleet, "d1"));
        assert_eq!(fleet.machines().count(), MAX_MACHINES);
    }

    #[test]
    fn a_fleet_that_is_done_takes_no_more() {
        let mut fleet = empty();
        for number in 0..MAX_MACHINES {
            take(&mut fleet, report_of(number, "done", "d1"));
        }
        let refusal = fleet.report(report("restore", "d1"), true, &armed("d1"), &Settings::default());
        assert_eq!(
            refusal,
            Err("4096 machines have finished this deployment, and the server remembers no more".into())
        );
        fleet.unsaved = Unsaved::default();
        assert!(
            !take(&mut fleet, report_of(7, "done", "d1")),
            "known machines still report, and nothing waits for that"
        );
        // With the next deployment nobody is done, and there are places again.
        fleet.report(report("restore", "d2"), true, &armed("d2"), &Settings::default()).expect("a place");
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
        assert!(fleet.report(bad, true, &armed("d1"), &Settings::default()).is_err());
        let mut garbled = report("failed", "d");
        garbled.error = Some("\x1b[2J\n€".repeat(5000));
        garbled.disk = "a\u{202e}b\u{2066}c\u{200b}d".into();
        garbled.progress.rate_bytes_per_s = u64::MAX;
        garbled.note = "é".repeat(5000);
        take(&mut fleet, garbled);
        let report = fleet.machines().next().and_then(|machine| machine.report.as_ref()).expect("one");
        let error = report.error.as_ref().expect("kept");
        assert!(error.len() <= MAX_ERROR && !error.contains('\x1b') && error.starts_with(" [2J\n€"));
        assert_eq!(report.note.len(), MAX_TEXT);
        assert_eq!((report.disk.as_str(), report.progress.rate_bytes_per_s), ("a b c d", MAX_RATE));
    }

    #[test]
    #[expect(clippy::await_holding_lock, reason = "it stands for a disk that takes its time")]
    fn reports_wait_for_a_slow_disk_without_a_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(2).build();
        runtime.expect("a runtime").block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let library = Library::create(dir.path()).expect("made");
            crate::room::book::update(&library.state_dir(), |armed| armed.arm(order("d1"))).expect("armed");
            let room = Room::open(Settings::default(), library, vec![]).expect("read");
            let room = Arc::new(room);
            let (_stop, watcher) = watch::channel(false);
            tokio::spawn(crate::services::history::run(room.clone(), watcher));
            let slow = room.history().store.lock().expect("nobody else has it");
            let mut reports = tokio::task::JoinSet::new();
            for number in 0..100 {
                let room = room.clone();
                let client = std::net::Ipv4Addr::LOCALHOST.into();
                reports
                    .spawn(async move { room.report(report_of(number, "restore", "d1"), client).await.expect("good") });
            }
            let second = Duration::from_secs(1);
            tokio::time::sleep(second / 5).await;
            // As the seeder reads.
            let read = tokio::time::timeout(10 * second, tokio::task::spawn_blocking(|| ())).await;
            read.expect("a thread is free").expect("it ran");
            assert!(tokio::time::timeout(second, reports.join_next()).await.is_err(), "answered before it is on disk");
            drop(slow);
            tokio::time::timeout(10 * second, reports.join_all()).await.expect("answered");
            let kept = Fleet::load(&open(&room.library.state_dir())).expect("read");
            assert_eq!(kept.machines().count(), 100);
        });
    }

    #[test]
    fn a_disk_that_cannot_be_written_keeps_nobody_waiting() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let history = History::new(open(dir.path()));
            let mut fleet = empty();
            assert!(take(&mut fleet, report("done", "d1")));
            let fleet = Mutex::new(fleet);
            // Another process holds the store for as long as it likes.
            let mut other = open(dir.path());
            let held = other.change(|_| -> anyhow::Result<()> {
                history.save(&fleet);
                Ok(())
            });
            held.expect("written");
            let kept = history.saved(&fleet, MAC);
            let kept = tokio::time::timeout(Duration::from_millis(100), kept).await;
            assert!(kept.is_err(), "it waits for the next try");
            assert!(history.trouble().expect("known").contains("cannot be kept"));
            history.save(&fleet);
            history.saved(&fleet, MAC).await.expect("kept now");
            assert_eq!(history.trouble(), None);
        });
    }

    #[test]
    fn a_busy_room_writes_no_more_than_it_may() {
        let mut fleet = empty();
        for number in 0..MAX_MACHINES {
            take(&mut fleet, report_of(number, "restore", "d1"));
        }
        // A machine that is done is written first, whoever else waits.
        take(&mut fleet, report("done", "d1"));
        let rows = fleet.next_rows(BATCH_BYTES);
        assert_eq!(rows[0].0, MAC);
        let bytes: usize = rows.iter().map(|(_, row)| ROW_BYTES + row.as_ref().map_or(0, String::len)).sum();
        assert!(bytes < BATCH_BYTES + 2 * ROW_BYTES && rows.len() > 100, "{bytes}");
        assert!(fleet.is_unsaved(MAC));
        fleet.written(&rows, false);
        assert!(fleet.is_unsaved(MAC), "it could not be written");
        let rows = fleet.next_rows(BATCH_BYTES);
        fleet.written(&rows, true);
        assert!(!fleet.is_unsaved(MAC));
        let mut allowance = Allowance::full();
        let pause: f64 = (0..100).map(|_| allowance.take(BATCH_BYTES).as_secs_f64()).fold(0.0, f64::max);
        let expected = (100.0 * BATCH_BYTES as f64 - WRITE_BURST) / WRITE_RATE;
        assert!((pause - expected).abs() < 5.0, "{pause} s for what takes {expected} s");
    }
}

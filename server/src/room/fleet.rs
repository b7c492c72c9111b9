//! What each machine reported last, and what it did before.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use netboot::MacAddr;
use report::{Report, Stage};
use serde::{Deserialize, Serialize};

use crate::room::config::Settings;
use crate::room::identity::Identity;
use crate::room::orders::{Armed, Job, Order};
use crate::room::state;
use crate::room::tidy::tidy;
use crate::room::unsaved::{Row, Unsaved};
use terminal::Throttle;

/// Most machines remembered. No room has as many; a flood of invented ones ends here, the quietest going first.
const MAX_MACHINES: usize = 4096;
/// Most bytes that all machines come to as JSON. `ezio status` reads 10 MiB at most, and what is armed is in there too.
const MAX_BYTES: usize = 8 << 20;
/// What the status adds to what is remembered of a machine, in bytes, the longest image name included.
const STATUS_BYTES: usize = 256;
/// Deployments remembered of one card.
const MAX_FINISHED: usize = 256;
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

impl Fleet {
    /// With what is known of these.
    pub fn of(machines: Vec<Machine>) -> Fleet {
        let machines: BTreeMap<_, _> = machines.into_iter().map(|machine| (machine.mac, machine)).collect();
        Fleet { bytes: machines.values().map(weight).sum(), machines, unsaved: Unsaved::default() }
    }

    /// Every machine, by address.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values()
    }

    /// Notes that a machine asked for something, and what it is if it said so. Of one that does not say, nothing is known:
    /// what another client said before must not make it another machine.
    pub fn asked(&mut self, mac: MacAddr, what: &str, identity: &Identity, armed: &Armed) {
        let mut machine = self.take(mac);
        match identity.is_empty() {
            true => machine.identity = Identity::default(),
            false => machine.meet(identity),
        }
        machine.last_seen = state::unix_now();
        machine.asked = what.into();
        self.put(machine, armed);
    }

    /// Takes a report. Whether it is an important one, a change of stage: it should be on disk before it is answered, see
    /// `History::saved`.
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
        if is_proven {
            machine.meet(&Identity::of(&report.uuid, &report.serial));
        }
        let before = machine.report.as_ref().map(|old| (old.stage, old.deployment.clone()));
        let is_new_stage = before != Some((report.stage, report.deployment.clone()));
        if is_new_stage {
            log_stage(mac, &report);
        }
        let job = armed.job_for(mac, settings);
        if is_proven && report.stage.is_verified() && job.is_some_and(|job| job.is_done_by(&report.deployment)) {
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
                log::error!("{mac}: {full}: `ezio arm --again` starts a new deployment{more}");
            }
            return Err(full);
        }
        if is_new_stage {
            self.unsaved.add(mac, true);
        }
        // A machine that says again that it is done may have had no answer yet.
        Ok(is_new_stage || self.unsaved.is_waited_for(mac))
    }

    /// What differs from what is on disk.
    pub fn unsaved(&mut self) -> &mut Unsaved {
        &mut self.unsaved
    }

    /// What to write next; see [`Unsaved::next`]. A machine that is done does not wait for those that change their stage all
    /// the time.
    pub fn next_rows(&mut self) -> Vec<Row> {
        let machines = &self.machines;
        let is_done = |mac: &MacAddr| machines.get(mac).is_some_and(|machine| machine.done.is_some());
        let row = |mac: &MacAddr| machines.get(mac).and_then(|machine| serde_json::to_string(machine).ok());
        self.unsaved.next(is_done, row)
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

    /// Whether these are two cards of one machine, as far as is known.
    pub fn are_cards_of_one(&self, a: MacAddr, b: MacAddr) -> bool {
        let identity = |mac| self.machines.get(&mac).map(|machine| &machine.identity);
        a != b && identity(a).zip(identity(b)).is_some_and(|(a, b)| a.is_same(b))
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
        self.unsaved.add(machine.mac, false);
        self.machines.insert(machine.mac, machine);
        true
    }

    /// Makes room: the quietest machine goes, one that never reported first. Who is done with what is armed is never
    /// forgotten, only what it said besides. `false` if there is nothing to forget.
    fn forget<'a>(&mut self, armed: &'a Armed) -> bool {
        let orders = armed.orders().iter().filter(|order| order.image.is_some());
        let ids = |order: &'a Order| order.counts.iter().chain([&order.deployment]).map(String::as_str);
        let deployments: HashSet<&str> = orders.flat_map(ids).collect();
        let done = |machine: &Machine| deployments.contains(machine.done.as_deref().unwrap_or_default());
        let is_done = |machine: &Machine| {
            done(machine) || machine.finished.iter().any(|finished| deployments.contains(finished.deployment.as_str()))
        };
        let key = |machine: &&Machine| (machine.report.is_some(), machine.last_seen);
        let quietest = self.machines.values().filter(|machine| !is_done(machine)).min_by_key(key).map(|m| m.mac);
        if let Some(mac) = quietest {
            self.take(mac);
            self.unsaved.add(mac, false);
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
        self.unsaved.add(quietest.mac, false);
        true
    }
}

/// Bytes that a machine comes to in the status.
fn weight(machine: &Machine) -> usize {
    serde_json::to_vec(machine).map_or(0, |json| json.len()) + STATUS_BYTES
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::orders::Order;
    use crate::room::scope::Scope;

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
        let dock: MacAddr = DOCK.parse().expect("a MAC");
        assert!(fleet.are_cards_of_one(own, dock) && fleet.are_cards_of_one(dock, own));
        assert!(boots(&mut fleet, DOCK, 2));
        assert!(!fleet.are_cards_of_one(own, dock), "the dock is another one's now");
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
    fn impossible_reports_are_refused() {
        let mut bad = report("done", "d");
        bad.mac = "ff:ff:ff:ff:ff:ff".into();
        assert!(empty().report(bad, true, &armed("d1"), &Settings::default()).is_err());
    }

    #[test]
    fn what_another_client_says_does_not_make_a_machine_another_one() {
        let asks = |fleet: &mut Fleet, uuid: &str| {
            fleet.asked(MAC, "boot script", &Identity::of(uuid, ""), &armed("d1"));
            is_done(fleet, "d1")
        };
        let uuid = |last| format!("4c4c4544-0043-3510-8051-b7c04f4d32{last}");
        let mut fleet = empty();
        take(&mut fleet, Report { uuid: uuid("31"), ..report("done", "d1") });
        assert!(!asks(&mut fleet, &uuid("99")), "as another laptop in its dock would");
        assert!(asks(&mut fleet, ""), "its firmware does not say who it is");
        let mut claimed = report("restore", "d1");
        claimed.uuid = uuid("99");
        fleet.report(claimed, false, &armed("d1"), &Settings::default()).expect("a claim");
        assert!(is_done(&fleet, "d1"));
    }

    #[test]
    fn what_counts_as_the_order_is_done_with_it() {
        // Two groups had an order each, and one for every machine has taken their place meanwhile.
        let mut armed = Armed::default();
        armed.arm(Order { counts: vec!["d2".into()], ..order("d1") });
        let mut fleet = empty();
        fleet.report(report("done", "d2"), true, &armed, &Settings::default()).expect("good");
        let job = armed.job_for(MAC, &Settings::default()).expect("armed");
        assert!(fleet.is_done(MAC, &job), "it was being imaged when the order changed");
    }
}

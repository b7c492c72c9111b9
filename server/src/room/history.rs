//! The machines' records on disk, so that a machine that is done stays done when the server restarts.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use netboot::MacAddr;
use store::{Change, Store};
use tokio::sync::{Notify, watch};

use crate::room::fleet::{Fleet, Machine};
use crate::room::state;
use crate::room::unsaved::cost;

/// Kind of the rows with machines.
const KIND: &str = "machine";
/// Bytes per second that the history may write on average, and at once after a pause.
const WRITE_RATE: f64 = 700e3;
const WRITE_BURST: f64 = 8e6;
/// Pause after a failure.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What is known, from the store.
///
/// # Errors
/// If it cannot be read.
pub fn load(store: &Store) -> anyhow::Result<Fleet> {
    let machine = |(_, body): (String, String)| serde_json::from_str::<Machine>(&body);
    let machines = store.rows(KIND)?.into_iter().map(machine).collect::<Result<Vec<_>, _>>();
    Ok(Fleet::of(machines.context("reading the record of a machine")?))
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
            if !is_waited_for(fleet, mac) {
                return Ok(());
            }
            self.wanted.notify_one();
            // An error would mean that the sender is gone, and it is ours.
            let _ = tried.changed().await;
            let is_waited_for = is_waited_for(fleet, mac);
            if let Some(error) = tried.borrow_and_update().1.clone().filter(|_| is_waited_for) {
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
        let rows = fleet.lock().unwrap_or_else(PoisonError::into_inner).next_rows();
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
        fleet.lock().unwrap_or_else(PoisonError::into_inner).unsaved().written(&rows, trouble.is_none());
        drop(store);
        let is_kept = trouble.is_none();
        self.tried.send_modify(|tried| *tried = (tried.0 + 1, trouble));
        if is_kept {
            self.allowance.lock().unwrap_or_else(PoisonError::into_inner).take(cost(&rows))
        } else {
            TRY_AGAIN
        }
    }

    /// Writes all that has changed; when this returns without trouble, everything reported before the call is on disk.
    pub fn save_all(&self, fleet: &Mutex<Fleet>) {
        loop {
            self.save(fleet);
            let is_all = fleet.lock().unwrap_or_else(PoisonError::into_inner).unsaved().is_empty();
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
    for mut machine in machines {
        // What it said last is its own word; there were no tokens to prove it.
        machine.proven = machine.done.is_some();
        let row = serde_json::to_string(&machine).context("writing the record of a machine")?;
        change.put(KIND, &machine.mac.to_string(), &row)?;
    }
    Ok(None)
}

fn is_waited_for(fleet: &Mutex<Fleet>, mac: MacAddr) -> bool {
    fleet.lock().unwrap_or_else(PoisonError::into_inner).unsaved().is_waited_for(mac)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use library::Library;
    use report::Report;

    use super::*;
    use crate::room::Room;
    use crate::room::book;
    use crate::room::config::Settings;
    use crate::room::orders::{Armed, Order};
    use crate::room::scope::Scope;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

    fn report_of(number: usize, stage: &str, deployment: &str) -> Report {
        let mac = MacAddr([0x52, 0x54, 0, 0, (number >> 8) as u8, number as u8]);
        let json = format!(r#"{{"mac":"{mac}","stage":"{stage}","deployment":"{deployment}"}}"#);
        serde_json::from_str(&json).expect("a report")
    }

    fn report(stage: &str, deployment: &str) -> Report {
        report_of(1, stage, deployment)
    }

    /// Every machine gets this.
    fn order(deployment: &str) -> Order {
        Order { image: Some("debian".into()), deployment: deployment.into(), ..Order::hold(Scope::All) }
    }

    fn armed(deployment: &str) -> Armed {
        Armed::of(vec![order(deployment)], None)
    }

    fn take(fleet: &mut Fleet, report: Report) -> bool {
        fleet.report(report, true, &armed("d1"), &Settings::default()).expect("good")
    }

    fn is_done(fleet: &Fleet, deployment: &str) -> bool {
        let job = armed(deployment).job_for(MAC, &Settings::default()).expect("armed");
        fleet.is_done(MAC, &job)
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
        let fleet = load(&open(dir.path())).expect("read");
        assert_eq!(fleet.machines().count(), 2);
        assert!(is_done(&fleet, "d1") && !is_done(&fleet, "d2"));
    }

    #[test]
    #[expect(clippy::await_holding_lock, reason = "it stands for a disk that takes its time")]
    fn reports_wait_for_a_slow_disk_without_a_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(2).build();
        runtime.expect("a runtime").block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let library = Library::create(dir.path()).expect("made");
            book::update(&library.state_dir(), |armed| armed.arm(order("d1"))).expect("armed");
            let store = book::open_checked(&library.state_dir()).expect("opens");
            let room = Room::open(Settings::default(), library, store).expect("read");
            let room = Arc::new(room);
            let (_stop, watcher) = watch::channel(false);
            tokio::spawn(crate::services::history::run(room.clone(), watcher));
            let slow = room.history().store.lock().expect("nobody else has it");
            let mut reports = tokio::task::JoinSet::new();
            for number in 0..100 {
                let room = room.clone();
                let client = std::net::Ipv4Addr::LOCALHOST.into();
                reports.spawn(async move {
                    room.report(report_of(number, "restore", "d1"), None, client).await.expect("good")
                });
            }
            let second = Duration::from_secs(1);
            tokio::time::sleep(second / 5).await;
            // As the seeder reads.
            let read = tokio::time::timeout(10 * second, tokio::task::spawn_blocking(|| ())).await;
            read.expect("a thread is free").expect("it ran");
            assert!(tokio::time::timeout(second, reports.join_next()).await.is_err(), "answered before it is on disk");
            drop(slow);
            tokio::time::timeout(10 * second, reports.join_all()).await.expect("answered");
            let kept = load(&open(&room.library.state_dir())).expect("read");
            assert_eq!(kept.machines().count(), 100);
        });
    }

    #[test]
    fn a_disk_that_cannot_be_written_keeps_nobody_waiting() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let history = History::new(open(dir.path()));
            let mut fleet = Fleet::default();
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
        const BATCH: usize = 1 << 20;
        let mut allowance = Allowance::full();
        let pause: f64 = (0..100).map(|_| allowance.take(BATCH).as_secs_f64()).fold(0.0, f64::max);
        let expected = (100.0 * BATCH as f64 - WRITE_BURST) / WRITE_RATE;
        assert!((pause - expected).abs() < 5.0, "{pause} s for what takes {expected} s");
    }
}

//! The orders on disk: written by `ezio arm` and `ezio disarm`, read by the running server before each answer.
//!
//! The server answers from what is on disk, not from its memory. So an order that has been taken back is handed out no
//! more once the command that took it back has written it, even if the server hung meanwhile.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use store::{Change, InPlace, Store, StoreError};

use crate::room::history;
use crate::room::leases;
use crate::room::orders::{Armed, Order};
use crate::room::reserve::{Reserve, is_full};
use crate::room::scope::Scope;
use crate::room::state;
use crate::room::stops::{Held, Stops};

/// Kind of the rows with orders.
const KIND: &str = "order";
/// Length in bytes of the file in which the server says what it obeys.
const OBEYED_LEN: usize = 64;
/// What versions before the store kept, each in a file.
const OLDER: [&str; 3] = ["armed.json", "fleet.json", "leases.json"];
/// What such a file is renamed to once it has been taken over.
const TAKEN_OVER: &str = "taken-over";

/// Opens the store of a state directory, and takes over what older versions left there.
///
/// # Errors
/// If it is damaged, or cannot be read or written.
pub fn open(state_dir: &Path) -> anyhow::Result<Store> {
    let mut unread = None;
    let opened = Store::open(state_dir, |change| {
        take_over(state_dir, change).map_err(|error| match error.downcast::<StoreError>() {
            Ok(error) => error,
            Err(error) => {
                let source = io::Error::other(format!("{error:#}"));
                unread = Some(error);
                StoreError::File { doing: "reading", path: state_dir.to_owned(), source }
            }
        })
    });
    let store = match (opened, unread) {
        (Ok(store), _) => store,
        (Err(_), Some(error)) => return Err(error),
        (Err(error), None) => return Err(error.into()),
    };
    for name in OLDER {
        let path = state_dir.join(name);
        if path.is_file()
            && let Err(error) = fs::rename(&path, state_dir.join(format!("{name}.{TAKEN_OVER}")))
        {
            log::warn!("{} has been taken over and should be removed: {error}", path.display());
        }
    }
    Ok(store)
}

/// Opens the store for a server that starts: it is read as a whole, and if it is damaged, what can be read is kept.
///
/// # Errors
/// If it cannot be read or written.
pub fn open_checked(state_dir: &Path) -> anyhow::Result<Store> {
    let open_whole = || {
        open(state_dir).and_then(|store| {
            store.check()?;
            Ok(store)
        })
    };
    let reserve = Reserve::of(state_dir);
    let opened = match open_whole() {
        Err(error) if !is_damage(&error) && reserve.give_back() => {
            log::warn!("{} is on a full disk: its reserve is used to open it ({error:#})", state_dir.display());
            open_whole()
        }
        opened => opened,
    };
    let store = match opened {
        Err(error) if is_damage(&error) => Store::salvage(state_dir, &format!("{error:#}"))?,
        Err(error) if is_full(state_dir) => {
            return Err(error.context(format!(
                "the disk of {} is full, so that what the server remembers cannot be opened: free 1 MiB there and start \
                 again; no machine gets an order meanwhile",
                state_dir.display()
            )));
        }
        store => store.context("reading what the server remembers")?,
    };
    Stops::of(state_dir).reserve().with_context(|| format!("writing to {}", state_dir.display()))?;
    InPlace::new(obeyed_path(state_dir), OBEYED_LEN).reserve().context("writing what the server obeys")?;
    if let Err(error) = reserve.take() {
        let dir = state_dir.display();
        log::error!("{dir}: no space can be reserved ({error}); free some, or reports of machines may be refused");
    }
    Ok(store)
}

/// Whether what is there cannot be right, so that reading it again would not help.
pub fn is_damage(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StoreError>().is_some_and(StoreError::is_damage)
}

fn take_over(state_dir: &Path, change: &mut Change<'_>) -> anyhow::Result<()> {
    let armed = match state::read::<Armed>(&state_dir.join(OLDER[0])) {
        Ok(armed) => armed.unwrap_or_default(),
        Err(error) if error.root_cause().is::<serde_json::Error>() => {
            change.note_loss(&format!("the orders are lost ({error:#}): nothing is armed and nothing is held back"))?;
            Armed::default()
        }
        Err(error) => return Err(error.context("reading what is armed")),
    };
    write(&armed, change)?;
    match history::take_over(state_dir, change)? {
        Some(lost) if armed.is_anything_armed() => change.note_loss(&lost)?,
        _ => {}
    }
    leases::take_over(state_dir, change)
}

/// What is armed.
///
/// # Errors
/// If it is damaged or cannot be read.
pub fn read(state_dir: &Path) -> anyhow::Result<Armed> {
    let exists = |name: &str| fs::symlink_metadata(state_dir.join(name)).is_ok();
    if !exists(store::FILE) && !OLDER.into_iter().any(exists) {
        return Ok(Armed::default());
    }
    let store = open(state_dir).context("reading what is armed")?;
    let mut armed = of(&store).context("reading what is armed")?;
    Stops::of(state_dir).held().scopes().iter().for_each(|scope| armed.disarm(scope));
    Ok(armed)
}

fn of(store: &Store) -> anyhow::Result<Armed> {
    parsed(store.rows(KIND)?, store.lost()?)
}

fn parsed(rows: Vec<(String, String)>, lost: Option<String>) -> anyhow::Result<Armed> {
    let order = |(_, body): (String, String)| serde_json::from_str::<Order>(&body);
    let orders = rows.into_iter().map(order).collect::<Result<Vec<_>, _>>().context("reading an order")?;
    Ok(Armed::of(orders, lost))
}

fn write(armed: &Armed, change: &mut Change<'_>) -> anyhow::Result<()> {
    for (key, _) in change.rows(KIND)? {
        if !armed.orders().iter().any(|order| order.scope.key() == key) {
            change.delete(KIND, &key)?;
        }
    }
    for order in armed.orders() {
        change.put(KIND, &order.scope.key(), &serde_json::to_string(order).context("writing an order")?)?;
    }
    Ok(())
}

/// A change of what is armed.
#[derive(Clone, Debug)]
pub struct Written {
    /// What is armed now.
    pub armed: Armed,
    /// The change's number.
    pub generation: u64,
}

/// Changes what is armed, all of it or nothing. What was only stopped before is taken back with it.
///
/// # Errors
/// If it is damaged, or cannot be read or written.
pub fn update(state_dir: &Path, change: impl FnOnce(&mut Armed)) -> anyhow::Result<Written> {
    let stops = Stops::of(state_dir);
    let _lock = stops.lock();
    let mut store = open(state_dir)?;
    let lost = store.lost()?;
    let armed = store.change(|rows| -> anyhow::Result<Armed> {
        let mut armed = parsed(rows.rows(KIND)?, lost)?;
        stops.held().scopes().iter().for_each(|scope| armed.disarm(scope));
        armed.end_before(state::unix_now());
        change(&mut armed);
        if armed.suspended().is_none() {
            rows.accept_loss()?;
        }
        write(&armed, rows)?;
        Ok(armed)
    })?;
    stops.clear();
    let _ = stops.reserve();
    Ok(Written { armed, generation: store.generation()? })
}

/// Takes orders back, also where the store cannot be written. Gives what is armed then, if it can be read, and what a person
/// should know.
///
/// # Errors
/// If it cannot be written anywhere.
pub fn disarm(state_dir: &Path, scopes: &[Scope]) -> anyhow::Result<(Option<Written>, Option<String>)> {
    let error = match update(state_dir, |armed| scopes.iter().for_each(|scope| armed.disarm(scope))) {
        Ok(written) => return Ok((Some(written), None)),
        Err(error) => error,
    };
    let lasts = Stops::of(state_dir).add(scopes).with_context(|| format!("{error:#}; and stopping it without that"))?;
    let mut warning = format!("the orders could not be changed ({error:#}), so what they say is stopped beside them");
    if let Some(lasts) = lasts {
        warning += &format!("; {lasts}");
    }
    Ok((None, Some(warning)))
}

/// The orders as the running server reads them.
#[derive(Debug)]
pub struct OrderBook {
    stops: Stops,
    obeyed: InPlace,
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    store: Store,
    /// As [`Store::version`] says; `None` to read it again in any case.
    version: Option<i64>,
    held: Held,
    generation: u64,
    /// What was read last.
    read: Armed,
    armed: Arc<Armed>,
    /// When the first of its orders ends, in seconds since 1970.
    until: Option<u64>,
    trouble: Option<String>,
    /// What the server has said that it obeys.
    said: Option<(u64, u64)>,
}

impl OrderBook {
    /// The orders in a store that has been checked.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn new(state_dir: &Path, store: Store) -> anyhow::Result<OrderBook> {
        let read = of(&store).context("reading what is armed")?;
        let live = Live {
            store,
            version: None,
            held: Held::default(),
            generation: 0,
            armed: Arc::new(read.clone()),
            read,
            until: None,
            trouble: None,
            said: None,
        };
        let obeyed = InPlace::new(obeyed_path(state_dir), OBEYED_LEN);
        Ok(OrderBook { stops: Stops::of(state_dir), obeyed, live: Mutex::new(live) })
    }

    /// What is armed at this moment. If it cannot be read, nothing is handed out, and [`OrderBook::trouble`] says why.
    pub fn armed(&self) -> Arc<Armed> {
        self.live().armed.clone()
    }

    /// Why what is armed cannot be read.
    pub fn trouble(&self) -> Option<String> {
        self.live().trouble.clone()
    }

    /// The numbers of what is obeyed at this moment: the change of the store, and what is stopped.
    pub fn obeys(&self) -> (u64, u64) {
        let live = self.live();
        (live.generation, live.held.number())
    }

    /// Says on disk what is obeyed, for commands that wait for it, and takes over what was only stopped.
    pub fn acknowledge(&self) {
        let mut live = self.live();
        let obeys = (live.generation, live.held.number());
        if live.trouble.is_none() && live.said != Some(obeys) {
            match self.obeyed.write_unsynced(&obeyed_text(obeys)) {
                Ok(()) => live.said = Some(obeys),
                Err(error) => log::debug!("{}: {error}", self.obeyed.path().display()),
            }
        }
        let is_to_take_over = live.trouble.is_none() && !live.held.scopes().is_empty();
        // Another process may hold the store for seconds, and answers must not wait for that.
        drop(live);
        if is_to_take_over {
            match update(self.stops.state_dir(), |_| ()) {
                Ok(_) => log::info!("what was stopped while the orders could not be changed has been taken over"),
                Err(error) => log::debug!("what is stopped is not taken over yet: {error:#}"),
            }
        }
    }

    /// With what is on disk now.
    fn live(&self) -> MutexGuard<'_, Live> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.refresh(&self.stops);
        live
    }
}

impl Live {
    fn refresh(&mut self, stops: &Stops) {
        let held = stops.held();
        let trouble = match self.look(&held) {
            Ok(()) => None,
            Err(error) => Some(format!("nothing is handed out: {error:#}")),
        };
        if trouble.is_some() && trouble != self.trouble {
            log::error!("{}", trouble.as_deref().unwrap_or_default());
        }
        if let Some(why) = &trouble
            && self.trouble != trouble
        {
            let mut armed = self.read.clone();
            armed.suspend(why.clone());
            (self.armed, self.version) = (Arc::new(armed), None);
        }
        self.trouble = trouble;
    }

    fn look(&mut self, held: &Held) -> anyhow::Result<()> {
        if !self.store.is_in_place() {
            let path = self.store.path().display();
            anyhow::bail!("{path} was removed or replaced while the server runs: put it back, or restart `ezio serve`");
        }
        let version = self.store.version()?;
        let now = state::unix_now();
        let is_over = self.until.is_some_and(|until| until <= now);
        if self.version == Some(version) && self.held == *held && !is_over {
            return Ok(());
        }
        if let Some(line) = held.nonsense().filter(|_| self.held != *held) {
            log::error!("the list of what is stopped has a line {line:?}, which makes no sense: everything is stopped");
        }
        // First, or what commits meanwhile would look like a change that is missing.
        let witnessed = self.store.witnessed();
        let read = of(&self.store)?;
        let generation = self.store.generation()?;
        anyhow::ensure!(
            witnessed.is_none_or(|witnessed| witnessed <= generation),
            "{} is older than it was: restart `ezio serve`, then `ezio resume` hands the orders out",
            self.store.path().display()
        );
        let mut armed = read.clone();
        held.scopes().iter().for_each(|scope| armed.disarm(scope));
        armed.end_before(now);
        (self.generation, self.held, self.until) = (generation, held.clone(), armed.first_end());
        (self.read, self.armed, self.version) = (read, Arc::new(armed), Some(version));
        Ok(())
    }
}

/// What the running server says that it obeys, as [`OrderBook::obeys`].
pub fn obeyed(state_dir: &Path) -> Option<(u64, u64)> {
    let text = InPlace::new(obeyed_path(state_dir), OBEYED_LEN).read().ok()?;
    let (generation, stops) = text.strip_prefix("change ")?.split_once(" stops ")?;
    Some((generation.parse().ok()?, u64::from_str_radix(stops, 16).ok()?))
}

fn obeyed_text((generation, stops): (u64, u64)) -> String {
    format!("change {generation} stops {stops:016x}")
}

fn obeyed_path(state_dir: &Path) -> PathBuf {
    state_dir.join("obeyed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use netboot::MacAddr;

    const A: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

    fn order(scope: Scope, image: &str) -> Order {
        Order { image: Some(image.into()), deployment: image.into(), ..Order::hold(scope) }
    }

    fn arm(dir: &Path, order: Order) -> Written {
        update(dir, |armed| armed.arm(order)).expect("written")
    }

    fn book(dir: &Path) -> OrderBook {
        OrderBook::new(dir, open_checked(dir).expect("opens")).expect("read")
    }

    #[test]
    fn it_survives_the_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()).expect("none"), Armed::default());
        assert!(!dir.path().join(store::FILE).exists(), "looking makes no file");
        let written = arm(dir.path(), order(Scope::Machine(A), "x"));
        assert_eq!(read(dir.path()).expect("read"), written.armed);
        let book = book(dir.path());
        assert_eq!(*book.armed(), written.armed);
        book.acknowledge();
        assert_eq!(obeyed(dir.path()).expect("said").0, written.generation);
    }

    #[test]
    fn the_running_server_reads_what_is_on_disk_before_each_answer() {
        let dir = tempfile::tempdir().expect("a directory");
        let book = book(dir.path());
        assert!(!book.armed().is_anything_armed());
        arm(dir.path(), order(Scope::All, "room"));
        assert!(book.armed().is_anything_armed());
        disarm(dir.path(), &[Scope::All]).expect("written");
        assert!(!book.armed().is_anything_armed());
        arm(dir.path(), Order { until: Some(state::unix_now() + 3600), ..order(Scope::All, "room") });
        assert!(book.armed().is_anything_armed());
        arm(dir.path(), Order { until: Some(state::unix_now()), ..order(Scope::All, "room") });
        assert!(!book.armed().is_anything_armed(), "it has ended");
    }

    #[test]
    fn what_cannot_be_read_is_not_handed_out() {
        let dir = tempfile::tempdir().expect("a directory");
        arm(dir.path(), order(Scope::All, "room"));
        let book = book(dir.path());
        assert_eq!(book.armed().suspended(), None);
        let path = dir.path().join(store::FILE);
        fs::rename(&path, dir.path().join("aside")).expect("renamed");
        assert!(book.armed().suspended().expect("suspended").contains("was removed or replaced"));
        assert!(book.trouble().is_some());
        fs::rename(dir.path().join("aside"), &path).expect("renamed");
        assert_eq!(book.armed().suspended(), None);
        assert_eq!(book.trouble(), None);
        // What was taken back while it was away must not come back with it.
        fs::rename(&path, dir.path().join("aside")).expect("renamed");
        assert!(book.armed().suspended().is_some());
        disarm(dir.path(), &[Scope::All]).expect("written");
        fs::rename(dir.path().join("aside"), &path).expect("renamed");
        assert!(book.armed().suspended().expect("suspended").contains("is older than it was"));
    }

    #[test]
    fn disarm_works_where_the_store_cannot_be_written() {
        let dir = tempfile::tempdir().expect("a directory");
        arm(dir.path(), order(Scope::All, "room"));
        let book = book(dir.path());
        {
            // Another process writes and does not end.
            let mut other = open(dir.path()).expect("opens");
            let held = other.change(|_| -> anyhow::Result<()> {
                let (written, warning) = disarm(dir.path(), &[Scope::Machine(A)])?;
                assert!(written.is_none());
                let warning = warning.expect("said");
                assert!(warning.contains("another process has been writing to it for seconds"), "{warning}");
                assert_eq!(book.armed().held_back().count(), 1);
                assert_eq!(book.obeys().1, Stops::of(dir.path()).held().number());
                Ok(())
            });
            held.expect("written");
        }
        book.acknowledge();
        assert!(Stops::of(dir.path()).held().scopes().is_empty(), "the store has it now");
        assert_eq!(read(dir.path()).expect("read").held_back().count(), 1);
        assert_eq!(book.armed().held_back().count(), 1);
    }

    #[test]
    fn a_lost_store_is_suspended_until_a_person_resumes() {
        let dir = tempfile::tempdir().expect("a directory");
        arm(dir.path(), order(Scope::All, "room"));
        fs::remove_file(dir.path().join(store::FILE)).expect("removed");
        arm(dir.path(), order(Scope::All, "room"));
        assert!(book(dir.path()).armed().suspended().expect("suspended").contains("is gone"));
        update(dir.path(), |armed| {
            armed.resume();
        })
        .expect("written");
        assert_eq!(book(dir.path()).armed().suspended(), None);
    }
}

//! Generated sequences of what people, machines, disks and power do, and what must hold after each step: what is done is
//! never forgotten while it is armed, what is held back is never handed out, and what is acknowledged is kept.
//!
//! `EZIO_SEQUENCES` sets how many there are, `EZIO_SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use library::Library;
use netboot::MacAddr;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use report::Report;
use store::fault::{self, Fault};

use crate::room::book;
use crate::room::config::Settings;
use crate::room::orders::{Armed, Order};
use crate::room::scope::Scope;
use crate::room::state;
use crate::room::stops::Stops;
use crate::room::{Boot, Room};

/// Sequences, steps in each, and machines.
const SEQUENCES: u32 = 100_000;
const STEPS: u32 = 6;
const MACHINES: u8 = 3;

fn mac(machine: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, machine])
}

/// What the world must remember, whatever happens.
#[derive(Debug, Default)]
struct Model {
    /// Acknowledged.
    done: BTreeMap<MacAddr, BTreeSet<String>>,
    /// Reported as successful by the command.
    held: BTreeSet<MacAddr>,
    /// Something was lost while there was something to lose, and nobody has said that it is to go on.
    is_lost: bool,
}

struct World {
    dir: PathBuf,
    room: Option<Room>,
    model: Model,
    rng: StdRng,
    deployments: u32,
    /// What each machine was given last.
    begun: BTreeMap<MacAddr, String>,
    log: Vec<String>,
}

impl World {
    fn start(&mut self) {
        let library = Library::create(&self.dir).expect("made");
        let store = book::open_checked(&library.state_dir()).expect("it starts");
        self.room = Some(Room::open(Settings::default(), library, store).expect("it starts"));
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn room(&self) -> &Room {
        self.room.as_ref().expect("it runs")
    }

    fn machine(&mut self) -> u8 {
        self.rng.random_range(0..MACHINES)
    }

    fn step(&mut self) {
        let fault = match self.rng.random_range(0..10) {
            0 => Some(Fault::Full),
            1 => Some(Fault::NoWitness),
            _ => None,
        };
        let what = self.rng.random_range(0..40);
        self.log.push(format!("{what} {fault:?}"));
        fault::next(fault);
        match what {
            0..=5 => self.arm(),
            6 => self.disarm_all(),
            7..=9 => self.hold(),
            10 => self.release(),
            11..=28 => self.report(),
            29..=30 => self.resume(),
            31..=33 => self.restart(|_| ()),
            34 => self.lose(),
            35 => self.roll_back(),
            36..=37 => self.ask(),
            _ => self.room().book().acknowledge(),
        }
        fault::next(None);
        self.check();
    }

    fn order(&mut self, scope: Scope) -> Order {
        self.deployments += 1;
        let deployment = format!("d{}", self.deployments);
        let infohash = if self.rng.random() { "one" } else { "two" }.to_owned();
        // The clock may step back.
        let at = state::unix_now().saturating_sub(self.rng.random_range(0..3) * 86_400);
        Order { image: Some("golden".into()), deployment, infohash, at, ..Order::hold(scope) }
    }

    fn arm(&mut self) {
        let machine = self.machine();
        let scope = if self.rng.random_range(0..3) == 0 { Scope::Machine(mac(machine)) } else { Scope::All };
        let order = self.order(scope.clone());
        let is_again = self.rng.random_range(0..4) == 0;
        let written = book::update(&self.state_dir(), |armed| {
            let before = armed.clone();
            armed.arm(if is_again { order } else { order.continuing(&before) });
        });
        if written.is_ok()
            && let Scope::Machine(mac) = scope
        {
            self.model.held.remove(&mac);
        }
    }

    fn disarm_all(&mut self) {
        book::disarm(&self.state_dir(), &[Scope::All]).expect("it always works");
        assert!(!self.room().armed().is_anything_armed(), "it has obeyed");
    }

    fn hold(&mut self) {
        let mac = mac(self.machine());
        book::disarm(&self.state_dir(), &[Scope::Machine(mac)]).expect("it always works");
        self.model.held.insert(mac);
    }

    fn release(&mut self) {
        let mac = mac(self.machine());
        let written = book::update(&self.state_dir(), |armed| {
            armed.release(&Scope::Machine(mac));
        });
        if written.is_ok() {
            self.model.held.remove(&mac);
        }
    }

    fn resume(&mut self) {
        if book::update(&self.state_dir(), |armed| drop(armed.resume())).is_ok() {
            if self.model.is_lost {
                // A person has taken it upon himself.
                let armed = book::read(&self.state_dir()).expect("read");
                self.model.held.retain(|mac| armed.held_back().any(|scope| *scope == Scope::Machine(*mac)));
                self.model.done.clear();
            }
            self.model.is_lost = false;
        }
    }

    fn report(&mut self) {
        let mac = mac(self.machine());
        let Some(job) = self.room().armed().job_for(mac, &self.room().settings) else { return };
        let stage = ["restore", "done", "done", "failed"][self.rng.random_range(0..4usize)];
        // It may have begun before the order was changed.
        let begun = self.begun.insert(mac, job.deployment.clone()).filter(|begun| job.is_done_by(begun));
        let deployment = begun.unwrap_or(job.deployment);
        let json = format!(r#"{{"mac":"{mac}","stage":"{stage}","deployment":"{deployment}"}}"#);
        let report: Report = serde_json::from_str(&json).expect("JSON");
        let room = self.room();
        let armed = room.armed();
        let waits = room.fleet().report(report, true, &armed, &room.settings).expect("taken");
        if waits {
            room.save_fleet();
        }
        if room.history().trouble().is_none() && stage == "done" {
            self.model.done.entry(mac).or_default().insert(deployment);
        }
    }

    fn ask(&mut self) {
        let machine = self.machine();
        self.room().asked(mac(machine), "boot script", &Default::default());
        self.room().save_fleet();
    }

    /// As after kill -9, or a power cut.
    fn restart(&mut self, meanwhile: impl FnOnce(&Path)) {
        fault::next(None);
        self.room = None;
        meanwhile(&self.state_dir());
        self.start();
    }

    fn has_something_to_lose(&self) -> bool {
        !self.room().armed().orders().is_empty() || self.room().fleet().machines().next().is_some()
    }

    fn lose(&mut self) {
        let has_something = self.has_something_to_lose();
        let (how, at, bit) =
            (self.rng.random_range(0..5), self.rng.random::<u32>() as usize, self.rng.random_range(0..8));
        self.log.push(format!("lost: {how}"));
        self.restart(|dir| {
            let path = dir.join(store::FILE);
            let bytes = fs::read(&path).expect("read");
            match how {
                0 => fs::remove_file(&path).expect("removed"),
                1 => fs::write(&path, &bytes[..at % bytes.len()]).expect("written"),
                2 => fs::write(&path, "").expect("written"),
                3 => fs::write(&path, "x".repeat(5000)).expect("written"),
                _ => {
                    let mut bytes = bytes;
                    let at = at % bytes.len();
                    bytes[at] ^= 1 << bit;
                    fs::write(&path, bytes).expect("written");
                }
            }
        });
        // A flipped bit may be where nothing is.
        let is_suspended = self.room().armed().suspended().is_some();
        self.model.is_lost |= is_suspended || (has_something && how != 4);
    }

    fn roll_back(&mut self) {
        let has_something = self.has_something_to_lose();
        let dir = self.state_dir();
        self.restart(|_| ());
        self.room = None;
        let copy = fs::read(dir.join(store::FILE)).expect("read");
        self.start();
        let before = self.room().book().obeys().0;
        self.hold();
        let after = self.room().book().obeys().0;
        let is_newer = after > before;
        self.restart(|dir| fs::write(dir.join(store::FILE), copy).expect("written"));
        if is_newer {
            self.model.is_lost |= has_something || self.room().armed().suspended().is_some();
        }
        if self.room().armed().suspended().is_none() {
            // Of a store without rows there is nothing that could be older.
            let armed = self.room().armed();
            self.model.held.retain(|mac| armed.held_back().any(|scope| *scope == Scope::Machine(*mac)));
        }
    }

    fn check(&self) {
        let room = self.room();
        for machine in 0..MACHINES {
            let mac = mac(machine);
            let Boot::Image(job) = room.boot(mac) else { continue };
            assert!(!self.model.held.contains(&mac), "{mac} is held back, and gets {}", job.deployment);
            let done = self.model.done.get(&mac);
            let is_done = done.is_some_and(|done| done.iter().any(|done| job.is_done_by(done)));
            assert!(!is_done, "{mac} is done with {}, and gets it again", job.deployment);
            assert!(!self.model.is_lost, "something is lost, and {mac} gets {}", job.deployment);
        }
    }
}

#[test]
fn whatever_happens_no_machine_gets_what_it_must_not_get() {
    let number = |key: &str| std::env::var(key).ok().and_then(|text| text.parse::<u64>().ok());
    let sequences = number("EZIO_SEQUENCES").map_or(SEQUENCES, |count| u32::try_from(count).unwrap_or(u32::MAX));
    let seed = number("EZIO_SEED").unwrap_or_else(rand::random);
    // On two cores.
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || run(sequences / 2, seed.wrapping_add(half)));
        }
    });
}

fn run(sequences: u32, seed: u64) {
    let shared = Path::new("/dev/shm");
    let base = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
    let base = base.expect("a directory");
    let mut world = World {
        dir: base.path().to_owned(),
        room: None,
        model: Model::default(),
        rng: StdRng::seed_from_u64(seed),
        deployments: 0,
        begun: BTreeMap::new(),
        log: Vec::new(),
    };
    for sequence in 0..sequences {
        // Every hundredth begins with nothing; the others with what the one before them left.
        if sequence % 100 == 0 {
            world.room = None;
            let _ = fs::remove_dir_all(&world.dir);
            fs::create_dir_all(&world.dir).expect("made");
            Stops::of(&world.dir.join("state")).clear();
            (world.model, world.log) = (Model::default(), Vec::new());
            world.start();
        }
        let steps = world.rng.random_range(1..=STEPS);
        for _ in 0..steps {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.step()));
            if let Err(panic) = result {
                let armed: &Armed = &world.room.as_ref().map(|room| room.armed()).unwrap_or_default();
                let tail = &world.log[world.log.len().saturating_sub(40)..];
                eprintln!(
                    "EZIO_SEED={seed}, sequence {sequence}; {:?}\n{armed:?}\nthe last steps: {tail:?}",
                    world.model
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
}

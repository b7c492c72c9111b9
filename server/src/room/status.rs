//! Everything there is to show of a room.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use netboot::MacAddr;
use report::Report;
use serde::{Deserialize, Serialize};

use crate::room::fleet::{Claim, Machine};
use crate::room::orders::Order;
use crate::room::reserve::Reserve;
use crate::room::rivals::Rival;
use crate::room::seeds::SeedStatus;
use crate::room::shared::{Boot, Room};
use crate::room::state;

/// Everything there is to show; `GET /status.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the server.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    pub armed: Vec<Order>,
    /// What is armed, in words: orders, then what is different for some.
    #[serde(default)]
    pub orders: Vec<String>,
    /// Why nothing is handed out although something is armed.
    #[serde(default)]
    pub suspended: Option<String>,
    /// What the server cannot do at the moment, in words.
    #[serde(default)]
    pub troubles: Vec<String>,
    /// What is obeyed: the number of the last change of the orders, and of what is stopped beside them.
    #[serde(default)]
    pub obeys: (u64, u64),
    /// What else people should know of the network, as text.
    #[serde(default)]
    pub hints: Vec<String>,
    /// Servers on our networks that send machines elsewhere and are not listed as meant to be there.
    #[serde(default)]
    pub rivals: Vec<Rival>,
    /// The armed and published images and our own seeding of them.
    pub images: Vec<SeedStatus>,
    /// Every machine we have heard of, and those of the config that are armed.
    pub machines: Vec<MachineStatus>,
    /// Packets answered and packets that were no use.
    pub counters: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineStatus {
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
    pub report: Option<Report>,
    /// Whether the report proved that it is this machine's.
    #[serde(default)]
    pub proven: bool,
    /// A report without the machine's token that came after one with it.
    #[serde(default)]
    pub claim: Option<Claim>,
}

impl Status {
    pub fn of(room: &Room) -> Status {
        let now = state::unix_now();
        let silent_after = room.settings.silent_after();
        let (armed, obeys) = (room.armed(), room.book().obeys());
        let mut machines: Vec<Machine> = room.fleet().machines().cloned().collect();
        let is_known = |mac: &MacAddr| machines.iter().any(|machine| machine.mac == *mac);
        let is_armed = |mac: &MacAddr| armed.job_for(*mac, &room.settings).is_some();
        let awaited = room.settings.machines_named().into_iter().filter(|mac| !is_known(mac) && is_armed(mac));
        let awaited: Vec<Machine> = awaited.map(Machine::awaited).collect();
        machines.extend(awaited);
        machines.sort_by_key(|machine| machine.mac);
        let machines = machines.into_iter().map(|machine| {
            let boot = room.boot_of(machine.mac, &armed, &room.fleet());
            let age_s = now.saturating_sub(machine.last_seen);
            let is_busy = machine.report.as_ref().is_some_and(|report| !report.stage.is_final());
            let silent = is_busy && machine.asked.is_empty() && age_s > silent_after;
            let waiting = match (&boot, &machine.report) {
                (Boot::Local(_), _) => false,
                (Boot::Image(_), None) => true,
                // What is under way is shown, whatever it was begun for.
                (Boot::Image(job), Some(report)) => {
                    !job.is_done_by(&report.deployment) && (report.stage.is_verified() || !is_busy || silent)
                }
            };
            MachineStatus {
                mac: machine.mac,
                name: room.settings.name_of(machine.mac).to_owned(),
                boot: if matches!(boot, Boot::Image(_)) { "image".into() } else { "local".into() },
                image: armed.job_for(machine.mac, &room.settings).map(|job| job.image).unwrap_or_default(),
                first_seen: machine.first_seen,
                last_seen: machine.last_seen,
                age_s,
                silent: silent && !waiting,
                waiting,
                asked: machine.asked,
                done: machine.done,
                report: machine.report,
                proven: machine.proven,
                claim: machine.claim,
            }
        });
        let machines = machines.collect();
        let rivals = room.rivals().list(&room.settings);
        let (bad, other): (Vec<&Rival>, Vec<&Rival>) =
            rivals.iter().partition(|rival| rival.is_trouble(&room.settings));
        let words =
            |rivals: Vec<&Rival>| rivals.into_iter().map(|rival| rival.words(&room.settings)).collect::<Vec<_>>();
        let reserve = Reserve::of(&room.library.state_dir()).trouble();
        let own = [room.book().trouble(), room.history().trouble(), reserve, room.alarm()].into_iter().flatten();
        let troubles = own.chain(room.network_troubles()).chain(words(bad)).collect();
        let hints = words(other);
        let counters = &room.counters;
        let number = |name: &str, counter: &AtomicU64| (name.to_owned(), counter.load(Ordering::Relaxed));
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: room.started.elapsed().as_secs(),
            armed: armed.orders().to_vec(),
            orders: armed.lines(&room.settings),
            suspended: armed.suspended().map(str::to_owned),
            troubles,
            hints,
            rivals: rivals.into_iter().filter(Rival::sends_machines_elsewhere).collect(),
            obeys,
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

//! What the services share: the config, what is armed, the machines, the images in use, and the texts made of them
//! (boot scripts and `ezio.conf`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use netboot::MacAddr;
use netboot::pxe::BootServer;
use report::Report;
use seal::{About, Proof, PublicKey, Said, Sealed, Token};

use crate::room::book::{self, OrderBook};
use crate::room::config::Settings;
use crate::room::fleet::Fleet;
use crate::room::history::{self, History};
use crate::room::identity::Identity;
use crate::room::orders::{Armed, Job};
use crate::room::rivals::Rivals;
use crate::room::scope::Scope;
use crate::room::seeds::SeedStatus;
use crate::room::tokens::{Asker, Issue, Tokens};
use crate::services::binding::Binding;
use library::{Image, Library};
use store::Store;
use terminal::Throttle;

/// Packets that were no use, by service; shown in the status, because a flood should not be a secret.
#[derive(Debug, Default)]
pub struct Counters {
    /// DHCP packets that could not be read.
    pub dhcp_malformed: AtomicU64,
    /// DHCP messages that were answered.
    pub dhcp_answered: AtomicU64,
    pub tftp_served: AtomicU64,
    pub tftp_refused: AtomicU64,
    /// HTTP requests that could not be understood.
    pub http_bad: AtomicU64,
    /// Reports that could not be understood.
    pub reports_bad: AtomicU64,
    /// Announces that could not be understood.
    pub announces_bad: AtomicU64,
}

/// Two machines with one address are named so often in the log, and so long in the status.
static TWICE: Throttle = Throttle::new(5, Duration::from_secs(60));
const ALARM_SHOWN: Duration = Duration::from_secs(600);

pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The state of the whole server.
#[derive(Debug)]
pub struct Room {
    pub settings: Settings,
    pub library: Library,
    /// Kernel, initramfs and loaders.
    pub boot_dir: PathBuf,
    /// Since when we run.
    pub started: Instant,
    /// What was no use.
    pub counters: Counters,
    book: OrderBook,
    tokens: Mutex<Tokens>,
    /// Two machines with one address: what was said of it, and when.
    alarm: Mutex<Option<(String, Instant)>>,
    fleet: Mutex<Fleet>,
    history: History,
    images: RwLock<BTreeMap<String, Result<Arc<Image>, String>>>,
    seeds: RwLock<Vec<SeedStatus>>,
    bindings: RwLock<Vec<Binding>>,
    /// What is wrong with the interfaces that should be served, as text.
    network_troubles: RwLock<Vec<String>>,
    rivals: Mutex<Rivals>,
}

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    Image(Job),
    /// Its own disk, and why.
    Local(&'static str),
}

/// A token, as its machine gets it.
#[derive(Clone, Copy, Debug)]
pub enum Given {
    /// To one that asked without a key.
    Plain(Token),
    Sealed(Sealed),
}

/// Why a report is not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportError {
    /// It cannot be right, or there is no place for the machine.
    Refused(String),
    /// It was understood, and cannot be kept at the moment: the machine should send it again.
    NotKept(String),
}

impl Room {
    /// A room with what its library's store knows, which [`book::open_checked`] gave.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn open(settings: Settings, library: Library, mut store: Store) -> anyhow::Result<Room> {
        let state_dir = library.state_dir();
        Ok(Room {
            boot_dir: settings.boot_dir(),
            tokens: Mutex::new(Tokens::open(&mut store)?),
            alarm: Mutex::default(),
            fleet: Mutex::new(history::load(&store)?),
            history: History::new(book::open(&state_dir)?),
            book: OrderBook::new(&state_dir, store)?,
            settings,
            library,
            started: Instant::now(),
            counters: Counters::default(),
            images: RwLock::default(),
            seeds: RwLock::default(),
            bindings: RwLock::default(),
            network_troubles: RwLock::default(),
            rivals: Mutex::default(),
        })
    }

    /// Where we are reachable now.
    pub fn bindings(&self) -> Vec<Binding> {
        self.bindings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces where we are reachable, and what is wrong with the interfaces that are missing there.
    pub fn set_bindings(&self, bindings: Vec<Binding>, troubles: Vec<String>) {
        *self.bindings.write().unwrap_or_else(PoisonError::into_inner) = bindings;
        *self.network_troubles.write().unwrap_or_else(PoisonError::into_inner) = troubles;
    }

    /// What is wrong with the interfaces that should be served, as text.
    pub fn network_troubles(&self) -> Vec<String> {
        self.network_troubles.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The other servers of our networks; hold it for a moment only.
    pub fn rivals(&self) -> MutexGuard<'_, Rivals> {
        self.rivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is armed now.
    pub fn armed(&self) -> Arc<Armed> {
        self.book.armed()
    }

    /// What proves reports; hold it for a moment only.
    pub fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token for the client that asks for a machine's order. If another client has one and is there, why there is none.
    ///
    /// # Errors
    /// In words for the machine.
    pub fn token(&self, mac: MacAddr, job: &Job, asker: Asker) -> Result<Given, String> {
        let about = About { mac, deployment: &job.deployment };
        let client = asker.client;
        // Before anything is issued: it must not take the place of a token that is in use.
        if let Some(Err(error)) = asker.key.map(PublicKey::check) {
            return Err(format!("no token can be sealed to the key in this name: {error}"));
        }
        let issued = self.tokens().issue(about, asker, Instant::now());
        let failed = |error: anyhow::Error| {
            log::error!("no token for {mac}: {error:#}");
            "the server cannot make a token; its log says why".to_owned()
        };
        match issued {
            Ok(Issue::Token(token)) => match asker.key {
                None => Ok(Given::Plain(token)),
                Some(key) => match Tokens::seal(&token, key, about).map_err(failed)? {
                    Ok(sealed) => Ok(Given::Sealed(sealed)),
                    Err(error) => Err(format!("no token can be sealed to the key in this name: {error}")),
                },
            },
            Ok(Issue::Taken(other)) => {
                let text =
                    format!("two machines say that they are {mac}: {other} is being imaged, and {client} asks too");
                if let Some(more) = TWICE.pass() {
                    log::error!("{text}; if it is the same machine with a new address, restart it{more}");
                }
                *self.alarm.lock().unwrap_or_else(PoisonError::into_inner) = Some((text, Instant::now()));
                Err(format!("another machine with this address is being imaged ({other})"))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Two machines with one address, while that was not long ago.
    pub fn alarm(&self) -> Option<String> {
        let alarm = self.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        alarm.as_ref().filter(|(_, at)| at.elapsed() < ALARM_SHOWN).map(|(text, _)| text.clone())
    }

    /// Whether a machine with an order, which says its token or proves it, may begin to write; why not, in words for the
    /// machine.
    pub fn confirm(&self, mac: MacAddr, deployment: &str, token: &str, client: IpAddr) -> Result<(), String> {
        let (about, now) = (About { mac, deployment }, Instant::now());
        let is_ours = match token.parse::<Proof>() {
            Ok(proof) => self.tokens().check_proof(about, &proof, Said::MayWrite, None, client, now),
            Err(_) => self.tokens().check(about, token, client, now),
        };
        if !is_ours {
            return Err("this order is not from this server, or for another machine".into());
        }
        match self.boot(mac) {
            Boot::Image(job) if job.is_done_by(deployment) => Ok(()),
            Boot::Image(_) => Err("it has been armed anew meanwhile: restart it to get the new order".into()),
            Boot::Local(why) => Err(why.into()),
        }
    }

    /// The orders on disk.
    pub fn book(&self) -> &OrderBook {
        &self.book
    }

    /// The machines; hold it for a moment only.
    pub fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a machine asked for something, and what it is if it said so.
    pub fn asked(&self, mac: MacAddr, what: &str, identity: &Identity) {
        let armed = self.armed();
        self.fleet().asked(mac, what, identity, &armed);
    }

    /// Takes a report that came from a client, with the proof in its header and the bytes that the proof is over; see
    /// [`Fleet::report`]. An important one is on disk when this returns, so that a machine that is done is never imaged again.
    ///
    /// # Errors
    /// [`ReportError`]; what is acknowledged is kept.
    pub async fn report(
        &self,
        mut report: Report,
        proven: Option<(Proof, &[u8])>,
        client: IpAddr,
    ) -> Result<(), ReportError> {
        let armed = self.armed();
        let mac = report.mac.parse::<MacAddr>().map_err(|error| ReportError::Refused(format!("{error}")))?;
        let (about, now) = (About { mac, deployment: &report.deployment }, Instant::now());
        let is_proven = match proven {
            Some((proof, body)) => {
                let (said, count) = (Said::Report(body), Some(report.count));
                self.tokens().check_proof(about, &proof, said, count, client, now)
            }
            None => self.tokens().check(about, &report.token, client, now),
        };
        // It was for this one report.
        report.count = 0;
        if !is_proven {
            // Where it came from, not where it says that it came from.
            report.ip = client.to_string();
        }
        if self.fleet().report(report, is_proven, &armed, &self.settings).map_err(ReportError::Refused)? {
            self.history.saved(&self.fleet, mac).await.map_err(ReportError::NotKept)?;
        }
        Ok(())
    }

    /// The machines' history on disk.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Writes what the machines have reported; takes as long as the disk takes to flush. Gives how long to pause.
    pub fn save_fleet(&self) -> Duration {
        self.history.save(&self.fleet)
    }

    /// Writes all that the machines have reported.
    pub fn save_all(&self) {
        self.history.save_all(&self.fleet);
    }

    /// Replaces what is known of the armed and published images.
    pub fn set_images(&self, images: BTreeMap<String, Result<Arc<Image>, String>>) {
        *self.images.write().unwrap_or_else(PoisonError::into_inner) = images;
    }

    /// What our own seeders have done.
    pub fn seeds(&self) -> Vec<SeedStatus> {
        self.seeds.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces what is shown of our own seeders.
    pub fn set_seeds(&self, seeds: Vec<SeedStatus>) {
        *self.seeds.write().unwrap_or_else(PoisonError::into_inner) = seeds;
    }

    /// The torrent of an armed image; `Ok(None)` if it is not armed, `Err` with the reason if it is damaged.
    pub fn torrent(&self, name: &str) -> Result<Option<Arc<Image>>, String> {
        if !self.armed().images(&self.settings).iter().any(|armed| armed == name) {
            return Ok(None);
        }
        let loaded = self.images.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        match loaded {
            Some(image) => image.map(Some),
            // Armed this very moment: the seeder has not got to it yet.
            None => self.library.image(name).map(|image| Some(Arc::new(image))).map_err(|error| format!("{error:#}")),
        }
    }

    /// Every image that the seeder has taken up, by name; damaged ones are left out.
    pub fn images(&self) -> Vec<Arc<Image>> {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        images.values().filter_map(|image| image.as_ref().ok()).cloned().collect()
    }

    /// What a machine boots. A machine that is done with its deployment boots what it was given, or it would be
    /// imaged again and again.
    pub fn boot(&self, mac: MacAddr) -> Boot {
        self.boot_of(mac, &self.armed(), &self.fleet())
    }

    /// The same with what is armed and known at one moment.
    pub fn boot_of(&self, mac: MacAddr, armed: &Armed, fleet: &Fleet) -> Boot {
        match armed.job_for(mac, &self.settings) {
            None => Boot::Local("nothing is armed for it"),
            Some(_) if self.kept_back(armed).any(|other| fleet.are_cards_of_one(mac, other)) => {
                Boot::Local("it is held back, or never to be imaged, by its other network card")
            }
            Some(_) if armed.suspended().is_some() => Boot::Local(
                "the server has lost its record of machines, or cannot read it; see ezio status on the server",
            ),
            Some(job) if fleet.is_done(mac, &job) => Boot::Local("it has its image"),
            Some(job) => Boot::Image(job),
        }
    }

    /// The machines of which a person has said that they are not to be imaged.
    fn kept_back<'a>(&'a self, armed: &'a Armed) -> impl Iterator<Item = MacAddr> + 'a {
        let held = armed.held_back().filter_map(|scope| match scope {
            Scope::Machine(mac) => Some(*mac),
            _ => None,
        });
        held.chain(self.settings.machines_named().into_iter().filter(|mac| self.settings.is_never(*mac)))
    }

    /// How clients reach us under this address.
    pub fn boot_server(&self, address: Ipv4Addr) -> BootServer {
        BootServer { address, http_port: self.settings.http().then(|| self.settings.http_port()) }
    }
}

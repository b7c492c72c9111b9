//! The services of each interface, as long as it is there.
//!
//! A card may be pulled out and come back, go down and up, get its address late or another one. What was opened for the old
//! card or address is closed, and opened again on the new one, without a restart. What is not served is in the log and in
//! the status.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use netboot::message::SERVER_PORT;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::room::Room;
use crate::room::running::ServerNote;
use crate::services::binding::{Binding, Present, Wanted};
use crate::services::changes::Changes;
use crate::services::dhcp::{self, DhcpService};
use crate::services::holders::holders;
use crate::services::stop::stopped;
use crate::services::tftp::{self, TftpService};
use crate::services::tracker::TrackerService;
use crate::services::{http, rivals};

/// One change brings others: an interface that comes back gets its address in the next moment.
const SETTLE: Duration = Duration::from_millis(100);
/// How often an interface is tried again that is there and cannot be served.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// How often we look who else on this computer holds port 67.
const LOOK_AROUND: Duration = Duration::from_secs(10);

/// Everything that is served on interfaces.
pub struct Network {
    room: Arc<Room>,
    tracker: Arc<TrackerService>,
    places: Vec<Place>,
    changes: Changes,
    /// HTTP for the commands on this computer, where no interface is needed.
    local: Option<Served>,
    local_url: Option<String>,
}

/// One interface.
struct Place {
    wanted: Wanted,
    served: Option<Served>,
    /// Where it was served last.
    last: Option<Binding>,
    /// Why it is not served, as text.
    trouble: Option<String>,
    /// Whether it is there, and could be served.
    is_to_try_again: bool,
    /// Which other server of this computer answers DHCP there, as text.
    other: Option<String>,
}

/// What is open on an interface.
struct Opened {
    binding: Binding,
    dhcp: Option<DhcpService>,
    tftp: Option<TftpService>,
    http: Option<TcpListener>,
}

/// What runs there.
struct Served {
    binding: Binding,
    /// The kernel's number of our socket on port 67, if there is one.
    port_67: Option<u64>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    tftp: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Network {
    /// Serves what is there. Everything is opened before anything is answered: half a server is worse than none.
    ///
    /// # Errors
    /// Whatever keeps an interface that is there from being served.
    pub async fn start(room: Arc<Room>, tracker: Arc<TrackerService>, wanted: Vec<Wanted>) -> anyhow::Result<Network> {
        let changes = Changes::listen();
        let present = Present::look().context("listing the network interfaces")?;
        let found: Vec<_> = wanted.iter().map(|wanted| wanted.find(&present, None)).collect();
        dhcp::has_range(&room.settings)?;
        if found.iter().all(Result::is_ok) {
            let bindings: Vec<Binding> = found.iter().flatten().cloned().collect();
            dhcp::check_range(&room.settings, &bindings)?;
        }
        let mut opened = Vec::new();
        for binding in &found {
            opened.push(match binding {
                Ok(binding) => Some(open(&room, binding, &present.addresses()).await?),
                Err(_) => None,
            });
        }
        let mut network = Network { room, tracker, places: Vec::new(), changes, local: None, local_url: None };
        for ((wanted, found), opened) in wanted.into_iter().zip(found).zip(opened) {
            let served = opened.map(|opened| network.run(opened)).transpose()?;
            let trouble = found.err().map(|why| waiting(&why));
            if let Some(trouble) = &trouble {
                log::warn!("{trouble}");
            }
            let last = served.as_ref().map(|served: &Served| served.binding.clone());
            network.places.push(Place { wanted, served, last, trouble, is_to_try_again: false, other: None });
        }
        network.serve_local().await;
        network.tell();
        Ok(network)
    }

    /// Follows the interfaces until the signal to stop, then stops serving.
    pub async fn follow(mut self, mut stop: watch::Receiver<bool>) {
        let mut look_around = tokio::time::interval(LOOK_AROUND);
        loop {
            let is_to_try_again = self.places.iter().any(|place| place.is_to_try_again);
            tokio::select! {
                () = self.changes.next() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(TRY_AGAIN), if is_to_try_again => {}
                _ = look_around.tick() => {
                    self.look_around();
                    continue;
                }
                () = stopped(&mut stop) => break,
            }
            match Present::look() {
                Ok(present) => self.compare(&present).await,
                Err(error) => log::warn!("listing the network interfaces failed: {error}"),
            }
        }
        for served in self.places.into_iter().filter_map(|place| place.served).chain(self.local) {
            served.end().await;
        }
    }

    /// Serves what is there now, and no longer what is not.
    async fn compare(&mut self, present: &Present) {
        let mut has_changed = false;
        for at in 0..self.places.len() {
            let before = self.places[at].served.as_ref().map(|served| served.binding.clone());
            let found = self.places[at].wanted.find(present, self.places[at].last.as_ref());
            if found.as_ref().ok() == before.as_ref() && before.is_some() {
                continue;
            }
            if let Some(old) = self.places[at].served.take() {
                old.end().await;
            }
            let (trouble, is_to_try_again) = match found {
                Err(why) => (Some(waiting(&why)), false),
                Ok(binding) => match self.serve(&binding, present).await {
                    Ok(served) => {
                        log::warn!(
                            "{}: served now, under {}/{}",
                            binding.interface,
                            binding.address,
                            binding.prefix_len
                        );
                        self.places[at].last = Some(served.binding.clone());
                        self.places[at].served = Some(served);
                        (None, false)
                    }
                    Err(error) => {
                        let why = format!("{} is there and cannot be served: {error:#}", binding.interface);
                        (Some(why), true)
                    }
                },
            };
            let place = &mut self.places[at];
            has_changed |= place.served.is_some() || before.is_some() || place.trouble != trouble;
            if let Some(trouble) = trouble.as_ref().filter(|trouble| place.trouble.as_ref() != Some(trouble)) {
                log::warn!("{trouble}");
            }
            (place.trouble, place.is_to_try_again) = (trouble, is_to_try_again);
        }
        if has_changed {
            self.tell();
        }
    }

    /// A DHCP server that was started after us for the same interface: the kernel let it have the port as well.
    fn look_around(&mut self) {
        let Ok(holders) = holders(SERVER_PORT) else { return };
        let ours: Vec<u64> =
            self.places.iter().filter_map(|place| place.served.as_ref().and_then(|served| served.port_67)).collect();
        let mut has_changed = false;
        for place in &mut self.places {
            let served = place.served.as_ref().filter(|served| served.port_67.is_some());
            let other = served.and_then(|served| {
                let name = &served.binding.interface;
                let mut others = holders.iter().filter(|holder| !ours.contains(&holder.inode));
                let what = if others.clone().any(|holder| holder.index == served.binding.index) {
                    format!("another DHCP server on this computer serves {name} too, and machines get the answers of both")
                } else if others.any(|holder| holder.index == 0) {
                    format!(
                        "another DHCP server on this computer listens on every interface; if it serves {name} too, machines \
                         get the answers of both"
                    )
                } else {
                    return None;
                };
                Some(format!("{what}: stop one of them (`ss -ulpn sport = :67` shows who it is)"))
            });
            if place.other != other {
                if let Some(other) = &other {
                    log::warn!("{other}");
                }
                place.other = other;
                has_changed = true;
            }
        }
        if has_changed {
            self.tell();
        }
    }

    async fn serve(&self, binding: &Binding, present: &Present) -> anyhow::Result<Served> {
        let opened = open(&self.room, binding, &present.addresses()).await?;
        self.run(opened)
    }

    fn run(&self, opened: Opened) -> anyhow::Result<Served> {
        let Opened { binding, dhcp, tftp, http } = opened;
        let (stop, watcher) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut thread = None;
        if let Some(service) = tftp {
            let (stop, watcher) = oneshot::channel();
            thread = Some((stop, tftp::run(service, watcher).context("starting TFTP")?));
        }
        let port_67 = dhcp.as_ref().and_then(DhcpService::inode);
        if let Some(service) = dhcp {
            tasks.spawn(dhcp::run(self.room.clone(), service, watcher.clone()));
        }
        if let Some(listener) = http {
            tasks.spawn(http::run(self.room.clone(), self.tracker.clone(), listener, watcher.clone()));
        }
        tasks.spawn(rivals::run(self.room.clone(), binding.clone(), watcher));
        Ok(Served { binding, port_67, stop, tasks, tftp: thread })
    }

    /// The commands on this computer ask us also while the interface, and with it our address, is away, or HTTP is off.
    async fn serve_local(&mut self) {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.and_then(|socket| Ok((socket.local_addr()?, socket))) {
            Ok((address, listener)) => {
                let (stop, watcher) = watch::channel(false);
                let mut tasks = JoinSet::new();
                tasks.spawn(http::run(self.room.clone(), self.tracker.clone(), listener, watcher));
                let binding = Binding { interface: "lo".into(), index: 0, address: Ipv4Addr::LOCALHOST, prefix_len: 8 };
                self.local = Some(Served { binding, port_67: None, stop, tasks, tftp: None });
                self.local_url = Some(format!("http://{address}"));
            }
            Err(error) => log::debug!("no port on this computer itself: {error}"),
        }
    }

    /// Tells the status, and the other commands, where we are.
    fn tell(&self) {
        let served = |place: &Place| place.served.as_ref().map(|served| served.binding.clone());
        let bindings: Vec<Binding> = self.places.iter().filter_map(served).collect();
        let address = bindings.first().map_or(Ipv4Addr::LOCALHOST, |binding| binding.address);
        let mut troubles: Vec<String> =
            self.places.iter().flat_map(|place| [place.trouble.clone(), place.other.clone()]).flatten().collect();
        if !bindings.is_empty()
            && let Err(error) = dhcp::check_range(&self.room.settings, &bindings)
        {
            log::warn!("no addresses are given out: {error:#}");
            troubles.push(format!("no addresses are given out: {error:#}"));
        }
        self.room.set_bindings(bindings, troubles);
        let url = format!("http://{address}:{}", self.room.settings.http_port());
        let note = ServerNote::here(self.local_url.clone().unwrap_or(url), self.room.settings.clone());
        if let Err(error) = note.leave(&self.room.library.state_dir()) {
            log::error!("the other commands will not find this server: {error:#}");
        }
    }
}

impl Served {
    async fn end(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
        if let Some((stop, thread)) = self.tftp {
            drop(stop);
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// What is said while an interface is not served.
fn waiting(why: &str) -> String {
    format!("{why}: machines behind it are not served; waiting for it")
}

async fn open(room: &Arc<Room>, binding: &Binding, own: &[Ipv4Addr]) -> anyhow::Result<Opened> {
    let settings = &room.settings;
    let dhcp = dhcp::bind(settings, binding, own, &room.library.state_dir())?;
    let tftp = if settings.tftp() { Some(tftp::bind(room, binding)?) } else { None };
    let http = if settings.http() { Some(http::bind(room, binding).await?) } else { None };
    Ok(Opened { binding: binding.clone(), dhcp, tftp, http })
}

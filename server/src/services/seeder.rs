//! Our own seeders: one swarm for each armed image, started and stopped as arming changes, and while the library is
//! published, one for each of its images.
//!
//! If an image is damaged or its port cannot be opened, the status shows the reason, and the image is tried again. The
//! other images continue.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use metainfo::PieceIndex;
use swarm::owners::Owners;
use swarm::{Have, Options, Stats, Storage, Swarm};
use tokio::sync::watch;

use crate::room::Room;
use crate::room::seeds::SeedStatus;
use crate::services::stop::stopped;
use crate::services::tracker::TrackerService;
use library::Image;
use library::content::open_image;

/// How often the orders are looked at. Half of what a person who has just typed `ezio arm` notices.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// Peers of one swarm that we keep links to. They feed each other; we start them.
const MAX_PEERS: usize = 256;
/// Ports tried from the first one on, if some are taken.
const PORT_TRIES: usize = 64;
/// How often an image that could not be used is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(3);

struct Running {
    image: Arc<Image>,
    /// The directory's inode: a new image of the same name is another directory.
    inode: u64,
    /// The address that it listens on.
    address: Ipv4Addr,
    swarm: Option<Swarm>,
    /// What the swarm reads from.
    content: Option<Arc<Switch>>,
    error: Option<String>,
}

/// Content that can be replaced by the same bytes from another file while it is read.
struct Switch {
    content: RwLock<Arc<dyn Storage>>,
}

impl Switch {
    fn new(content: Arc<dyn Storage>) -> Switch {
        Switch { content: RwLock::new(content) }
    }

    fn now(&self) -> Arc<dyn Storage> {
        self.content.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, content: Arc<dyn Storage>) {
        *self.content.write().unwrap_or_else(PoisonError::into_inner) = content;
    }
}

impl Storage for Switch {
    fn write_piece(&self, piece: PieceIndex, data: &[u8]) -> io::Result<()> {
        self.now().write_piece(piece, data)
    }

    fn read(&self, piece: PieceIndex, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        self.now().read(piece, offset, buf)
    }
}

impl Running {
    fn port(&self) -> Option<u16> {
        self.swarm.as_ref().map(|swarm| swarm.local_addr().port())
    }
}

/// An image that cannot be used, why, and since when we know.
struct Broken {
    error: String,
    tried: Instant,
}

/// Watches what is armed and keeps the seeders to it, until told to stop.
pub async fn run(room: Arc<Room>, tracker: Arc<TrackerService>, mut stop: watch::Receiver<bool>) {
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    let mut broken: BTreeMap<String, Broken> = BTreeMap::new();
    loop {
        let wanted = wanted(&room).await;
        let gone: Vec<String> = running.keys().filter(|name| !wanted.contains(name)).cloned().collect();
        for name in gone {
            end(&name, &mut running, &tracker).await;
            log::info!("image {name} is no longer armed or published");
        }
        broken.retain(|name, _| wanted.contains(name));
        for name in wanted {
            keep(&room, &tracker, &name, &mut running, &mut broken).await;
        }
        publish(&room, &tracker, &running, &broken);
        tokio::select! {
            () = tokio::time::sleep(WATCH_EVERY) => {}
            () = stopped(&mut stop) => break,
        }
    }
    while let Some(name) = running.keys().next().cloned() {
        end(&name, &mut running, &tracker).await;
    }
}

/// The images to seed: what is armed, and if the library is published, all of it.
async fn wanted(room: &Arc<Room>) -> Vec<String> {
    let mut wanted = room.armed().images(&room.settings);
    if !room.settings.publish() {
        return wanted;
    }
    let library = room.library.clone();
    match tokio::task::spawn_blocking(move || library.names()).await {
        Ok(Ok(names)) => {
            wanted.extend(names);
            wanted.sort_unstable();
            wanted.dedup();
        }
        Ok(Err(error)) => log::error!("{error:#}; only armed images are published"),
        Err(error) => log::error!("listing the library failed: {error}"),
    }
    wanted
}

/// Starts an image that should run and does not, and restarts one that has been replaced.
async fn keep(
    room: &Arc<Room>,
    tracker: &TrackerService,
    name: &str,
    running: &mut BTreeMap<String, Running>,
    broken: &mut BTreeMap<String, Broken>,
) {
    if broken.get(name).is_some_and(|broken| broken.tried.elapsed() < TRY_AGAIN) {
        return;
    }
    let inode = inode_of(room, name);
    if let Some(seed) = running.get_mut(name) {
        // While no interface is there, the old address may come back.
        let is_at_home = room.bindings().is_empty() || seed.address == address_of(room);
        if seed.inode == inode && seed.error.is_none() && is_at_home {
            return;
        }
        if is_at_home && repacked(room, name, seed, inode).await {
            return;
        }
        end(name, running, tracker).await;
    }
    let loading = (room.clone(), name.to_owned());
    let loaded = tokio::task::spawn_blocking(move || loading.0.library.image(&loading.1)).await;
    let image = match loaded {
        Ok(Ok(image)) => Arc::new(image),
        Ok(Err(error)) => return note(broken, name, format!("{error:#}")),
        Err(error) => return note(broken, name, format!("reading it failed: {error}")),
    };
    let infohash = image.meta.infohash;
    let own: Vec<u16> = running.values().filter_map(Running::port).collect();
    let address = address_of(room);
    let (swarm, content, error) = match start(room, &image, address, &own).await {
        Ok(Some((swarm, content))) => (Some(swarm), Some(content), None),
        Ok(None) => (None, None, None),
        Err(error) => (None, None, Some(format!("{error:#}"))),
    };
    match &error {
        Some(error) => note(broken, name, error.clone()),
        None => drop(broken.remove(name)),
    }
    let seed = Running { image, inode, address, swarm, content, error };
    tracker.allow(infohash, seed.port());
    if let Some(port) = seed.port() {
        log::info!("image {name}: seeding {} on port {port}", units::size(seed.image.layout.content_len()));
    }
    running.insert(name.to_owned(), seed);
}

fn inode_of(room: &Room, name: &str) -> u64 {
    std::fs::metadata(room.library.image_dir(name)).map_or(0, |dir| dir.ino())
}

/// Goes on with an image whose directory is another one now, if it is the same torrent and only its content is stored in another
/// way: machines that fetch it notice nothing. False if it has to be started again.
async fn repacked(room: &Arc<Room>, name: &str, seed: &mut Running, inode: u64) -> bool {
    let (Some(swarm), Some(content)) = (&seed.swarm, &seed.content) else { return false };
    // What could not be read before may be right in the new file, which only a new seeder finds out.
    if seed.error.is_some() || swarm.stats().withheld_why.is_some() {
        return false;
    }
    let loading = (room.clone(), name.to_owned());
    let loaded = tokio::task::spawn_blocking(move || {
        let image = loading.0.library.image(&loading.1)?;
        let content = open_image(&image)?;
        anyhow::Ok((image, content))
    });
    let Ok(Ok((image, new))) = loaded.await else { return false };
    if image.meta.infohash != seed.image.meta.infohash {
        return false;
    }
    content.set(new);
    log::info!("image {name}: read from {} from now on", image.content_path().display());
    (seed.image, seed.inode) = (Arc::new(image), inode);
    true
}

/// Says what is wrong with an image, once.
fn note(broken: &mut BTreeMap<String, Broken>, name: &str, error: String) {
    if broken.get(name).is_none_or(|old| old.error != error) {
        log::error!("image {name}: {error}");
    }
    broken.insert(name.to_owned(), Broken { error, tried: Instant::now() });
}

/// Where to listen. With several interfaces everywhere, also while one of them is away: its coming and going should not
/// disturb the machines behind the others.
fn address_of(room: &Room) -> Ipv4Addr {
    match &room.bindings()[..] {
        [only] if room.settings.interface.len() < 2 => only.address,
        _ => Ipv4Addr::UNSPECIFIED,
    }
}

/// Starts to seed an image, on the lowest port from the configured one on that is free; `own` are those that we have taken
/// for other images.
async fn start(
    room: &Room,
    image: &Image,
    address: Ipv4Addr,
    own: &[u16],
) -> anyhow::Result<Option<(Swarm, Arc<Switch>)>> {
    if !room.settings.seed() {
        return Ok(None);
    }
    let storage = Arc::new(Switch::new(open_image(image)?));
    let base = room.settings.peer_port();
    let mut ports: Vec<u16> = (base..=u16::MAX).filter(|port| *port == 0 || !own.contains(port)).collect();
    ports.truncate(if base == 0 { 1 } else { PORT_TRIES });
    let mut result = None;
    for port in &ports {
        let listen = SocketAddr::from((address, *port));
        let owners = Owners::by_card();
        let options = Options { listen, have: Have::All, max_peers: MAX_PEERS, owners, ..Options::default() };
        let swarm = Swarm::start(image.meta.clone(), storage.clone(), options).await;
        match swarm {
            Ok(swarm) => {
                if *port != ports[0] {
                    let first = ports[0];
                    log::warn!(
                        "image {}: port {first} is in use, so it is seeded on port {port}: open that port in the firewall",
                        image.name
                    );
                }
                return Ok(Some((swarm, storage)));
            }
            Err(error) => result = Some(error),
        }
    }
    Err(result.map_or_else(|| anyhow::anyhow!("no port to seed on"), anyhow::Error::from).context("starting to seed"))
}

async fn end(name: &str, running: &mut BTreeMap<String, Running>, tracker: &TrackerService) {
    let Some(seed) = running.remove(name) else { return };
    let infohash = seed.image.meta.infohash;
    // The same disk captured twice is one torrent under two names.
    match running.values().find(|other| other.image.meta.infohash == infohash) {
        Some(other) => tracker.allow(infohash, other.port()),
        None => tracker.disallow(&infohash),
    }
    if let Some(swarm) = seed.swarm {
        swarm.shutdown().await;
    }
}

/// What is wrong with an image that is seeded all the same.
fn trouble(room: &Room, name: &str, seed: &Running, stats: &Stats) -> Option<String> {
    let advice = format!(
        "machines get the rest from here and from each other; `ezio image verify {name}` says more, and then capture the image \
         again"
    );
    if let Some(why) = &stats.withheld_why {
        let count = units::count(stats.pieces_withheld, "piece");
        return Some(format!("{count} cannot be given to machines ({why}): {advice}"));
    }
    // Before anybody asks for what is missing.
    let wanted = seed.image.stored_len();
    let path = seed.image.content_path();
    let found = std::fs::metadata(&path).map_or(0, |content| content.len());
    let is_there = || inode_of(room, name) == seed.inode;
    (seed.image.manifest.live.is_none() && seed.swarm.is_some() && found < wanted && is_there()).then(|| {
        format!("{} has {found} bytes instead of {wanted}: it was cut short or is gone; {advice}", path.display())
    })
}

fn publish(
    room: &Room,
    tracker: &TrackerService,
    running: &BTreeMap<String, Running>,
    broken: &BTreeMap<String, Broken>,
) {
    let mut images: BTreeMap<String, Result<Arc<Image>, String>> =
        broken.iter().map(|(name, broken)| (name.clone(), Err(broken.error.clone()))).collect();
    let mut seeds: Vec<SeedStatus> = Vec::new();
    for (name, seed) in running {
        images.insert(name.clone(), Ok(seed.image.clone()));
        let stats = seed.swarm.as_ref().map(Swarm::stats).unwrap_or_default();
        let (leechers, seeders) = tracker.counts(&seed.image.meta.infohash);
        seeds.push(SeedStatus {
            image: name.clone(),
            infohash: seed.image.meta.infohash.to_string(),
            content_len: seed.image.layout.content_len(),
            uploaded: stats.uploaded,
            peers: stats.peers,
            leechers,
            seeders,
            port: seed.swarm.as_ref().map_or(0, |swarm| swarm.local_addr().port()),
            error: seed.error.clone().or_else(|| trouble(room, name, seed, &stats)),
        });
    }
    for (image, broken) in broken.iter().filter(|(name, _)| !running.contains_key(*name)) {
        seeds.push(SeedStatus {
            image: image.clone(),
            infohash: String::new(),
            content_len: 0,
            uploaded: 0,
            peers: 0,
            leechers: 0,
            seeders: 0,
            port: 0,
            error: Some(broken.error.clone()),
        });
    }
    room.set_images(images);
    room.set_seeds(seeds);
}

//! `ezio serve`: every service of the room in one process.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::room::Room;
use crate::room::book;
use crate::room::config::{Answer, DhcpMode, Pinned, Settings};
use crate::room::never;
use crate::room::orders::check_target;
use crate::room::place;
use crate::room::running::{self, ServerNote};
use crate::services::binding::{self, Binding, Present};
use crate::services::network::Network;
use crate::services::tracker::TrackerService;
use crate::services::{history, orders, seeder};
use library::Library;
use netboot::loaders::{BOOT_FILES, BOOT_SCHEMA};

/// How long the services get to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);
/// Serves a room: DHCP, TFTP, HTTP, tracker and seeder. Machines are only written while an image is armed.
#[derive(Debug, Args)]
pub struct ServeCommand {
    /// TOML file; each of its keys is also a flag.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl ServeCommand {
    /// Serves until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// Whatever keeps it from starting, in words for the person at the terminal.
    pub fn run(self) -> anyhow::Result<()> {
        let settings = Settings::load(self.config.as_deref(), self.settings)?;
        raise_file_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting up")?;
        let result = runtime.block_on(serve(settings, self.config));
        runtime.shutdown_timeout(GOODBYE);
        result
    }
}

async fn serve(settings: Settings, config: Option<PathBuf>) -> anyhow::Result<()> {
    let library = opened(&settings).map_err(|error| if_read_only(error, &settings))?;
    let state_dir = library.state_dir();
    let _locks = running::lock(&library).map_err(|error| if_read_only(error, &settings))?;
    place::note(&library);
    let tightened = library.keep_others_out();
    if tightened > 0 {
        log::info!(
            "other users of this machine can no longer read what is in the library (things changed: {tightened})"
        );
    }
    let cleared = library.clear_state();
    if cleared > 0 {
        log::info!("files deleted that killed commands left in {}: {cleared}", state_dir.display());
    }
    let (is_tftp_on, is_http_on) = (settings.tftp(), settings.http());
    ensure!(
        is_tftp_on || is_http_on || settings.dhcp() == DhcpMode::Off,
        "with TFTP and HTTP off there is nothing to boot: switch one of them on, or set dhcp = \"off\""
    );
    if is_tftp_on || is_http_on {
        check_boot_dir(&settings.boot_dir())?;
    }
    check_images(&settings, &library, config.as_deref())?;
    let mut settings = settings;
    let mut store = book::open_checked(&state_dir)?;
    never::remember(&mut store, &mut settings, config.is_some())?;
    let wanted = binding::wanted(&settings, &Present::look().context("listing the network interfaces")?)?;
    let room = Arc::new(Room::open(settings, library, store)?);
    if let Some(why) = room.armed().suspended() {
        log::error!("no machine gets an order: {why}; check what is armed and held back, then run `ezio resume`");
    }

    let (stop, watcher) = watch::channel(false);
    let tracker = Arc::new(TrackerService::default());
    let network = Network::start(room.clone(), tracker.clone(), wanted).await?;
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;

    let mut tasks = JoinSet::new();
    tasks.spawn(network.follow(watcher.clone()));
    tasks.spawn(seeder::run(room.clone(), tracker.clone(), watcher.clone()));
    tasks.spawn(orders::run(room.clone(), watcher.clone()));
    tasks.spawn(history::run(room.clone(), watcher));
    say!("{}", summary(&room).trim_end());

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    log::info!("stopping");
    let _ = stop.send(true);
    let goodbye = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(GOODBYE, goodbye).await.is_err() {
        log::warn!("a service did not stop in time");
    }
    room.save_all();
    ServerNote::take_away(&state_dir);
    Ok(())
}

/// The library, which needs not be writable if its state is elsewhere.
fn opened(settings: &Settings) -> anyhow::Result<Library> {
    let Some(state) = settings.state.clone() else { return Library::create(settings.library()) };
    let library = match Library::create_images(settings.library()) {
        Ok(library) => library,
        Err(error) => {
            log::debug!("the library stays as it is: {error:#}");
            Library::open(settings.library())?
        }
    };
    let library = library.with_state(Some(state));
    library.make_state_dir()?;
    Ok(library)
}

/// What to do if the state is on a medium that cannot be written.
fn if_read_only(error: anyhow::Error, settings: &Settings) -> anyhow::Error {
    let is_read_only = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::ReadOnlyFilesystem);
    if !is_read_only {
        return error;
    }
    let state_dir = settings.state.clone().unwrap_or_else(|| settings.library().join("state"));
    error.context(format!(
        "what the server must not forget cannot be kept in {}, because its file system is read-only: name another directory, on \
         a disk that stays, with --state DIR or the key `state`",
        state_dir.display()
    ))
}

fn check_boot_dir(dir: &Path) -> anyhow::Result<()> {
    let missing: Vec<&str> = BOOT_FILES.into_iter().filter(|name| !dir.join(name).is_file()).collect();
    ensure!(
        missing.is_empty(),
        "the boot directory {} lacks {}: `make image FLAVOUR=generic` builds one; then name it with `boot_dir` or --boot-dir",
        dir.display(),
        missing.join(", ")
    );
    let manifest = std::fs::read(dir.join("manifest.json")).ok();
    let manifest = manifest.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    let Some(manifest) = manifest else { return Ok(()) };
    ensure!(
        manifest["schema"].as_u64() >= Some(BOOT_SCHEMA),
        "the boot directory {} is of an earlier version: its machines report without a token, so they would be imaged again at \
         each network boot; `make image FLAVOUR=generic` builds a new one",
        dir.display()
    );
    if manifest["flavour"] == "cloud" {
        log::info!(
            "{} has drivers for virtual machines only; `make image FLAVOUR=generic` builds a boot image for all",
            dir.display()
        );
    }
    Ok(())
}

/// An image that the config names has to be there, with a rule that says well enough where it goes. One that is there and
/// damaged is shown in the status instead: the other images should be served meanwhile.
fn check_images(settings: &Settings, library: &Library, config: Option<&Path>) -> anyhow::Result<()> {
    let entries = library.images()?;
    for entry in &entries {
        if let Err(error) = &entry.image {
            log::error!("image {} cannot be used: {error:#}", entry.name);
        }
    }
    for Pinned { place, image, .. } in settings.pinned() {
        if !entries.iter().any(|entry| entry.name == image) {
            let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
            let there_are = if names.is_empty() { "there is none yet".into() } else { names.join(", ") };
            let config = config.map(|file| file.display().to_string()).unwrap_or_default();
            bail!(
                "{place} in {config} names the image {image:?}, which is not in {}: correct it, or capture that image \
                 first; images there: {there_are}",
                library.dir().display()
            );
        }
    }
    for pinned in settings.pinned() {
        let image = entries.iter().find(|entry| entry.name == pinned.image).and_then(|entry| entry.image.as_ref().ok());
        if let Some(image) = image {
            check_target(image, &pinned.target)
                .with_context(|| format!("{} in the config (its key there is `target`)", pinned.place))?;
        }
    }
    Ok(())
}

fn summary(room: &Room) -> String {
    let settings = &room.settings;
    let mut out = String::new();
    let mut say = |what: &str, text: String| out += &format!("{what:<9}{text}\n");
    say("ezio", format!("{} serves {}", env!("CARGO_PKG_VERSION"), room.library.dir().display()));
    let at = |b: &Binding| format!("{} ({}/{})", b.interface, b.address, b.prefix_len);
    let bindings = room.bindings();
    let network: Vec<String> = bindings.iter().map(at).chain(room.network_troubles()).collect();
    if !room.library.has_own_state() {
        say("state", format!("in {}", room.library.state_dir().display()));
    }
    say("network", network.join(", "));
    let tftp_port = settings.tftp_port();
    let address = bindings.first().map(|binding| binding.address);
    let boot_url = room.boot_server(address.unwrap_or(Ipv4Addr::UNSPECIFIED)).url("boot.ipxe");
    let address = address.map_or_else(|| "ADDRESS".into(), |address| address.to_string());
    let boot_url = boot_url.unwrap_or_else(|| "boot.ipxe".into()).replace("//0.0.0.0", "//ADDRESS");
    say(
        "dhcp",
        match settings.dhcp() {
            DhcpMode::Proxy => match settings.answer() {
                Answer::Armed => "beside the site's DHCP server; answers machines that something is armed for".into(),
                Answer::All => "beside the site's DHCP server; silent while nothing is armed".into(),
            },
            DhcpMode::Server => {
                let range = settings.dhcp_range.as_ref().map(|range| format!("{}-{}", range.0.start(), range.0.end()));
                format!("gives out {}", range.unwrap_or_default())
            }
            DhcpMode::Off => format!(
                "off: in the site's DHCP server set next-server {address} and the boot file undionly.kpxe (architecture 0), \
             snponly.efi (7, 9) or, for iPXE (option 77 or 175), {boot_url}"
            ),
        },
    );
    let on = |is_on: bool, text: String| if is_on { text } else { "off".into() };
    say("tftp", on(settings.tftp(), format!("port {tftp_port}, boot files from {}", room.boot_dir.display())));
    say("http", on(settings.http(), format!("http://{address}:{}/ shows the room", settings.http_port())));
    let entries = room.library.images().unwrap_or_default();
    let names: Vec<String> = entries
        .iter()
        .map(|entry| if entry.image.is_ok() { entry.name.clone() } else { format!("{} (damaged)", entry.name) })
        .collect();
    say("images", if names.is_empty() { "none yet: `ezio capture` makes one".into() } else { names.join(", ") });
    if settings.publish() {
        say("publish", format!("http://{address}:{}/images/ lists what other sites may copy", settings.http_port()));
    }
    let orders = room.armed().lines(settings);
    if orders.is_empty() {
        say("armed", "nothing: `ezio arm IMAGE` sends machines to it".into());
    }
    orders.into_iter().for_each(|order| say("armed", order));
    out
}

/// Every transfer and connection takes a file descriptor, and the usual limit of 1024 is for interactive programs.
fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard.min(65536).max(soft), hard)
    {
        log::debug!("raising the limit on open files failed: {error}");
    }
}

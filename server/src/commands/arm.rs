//! `ezio arm`, `ezio disarm` and `ezio resume`: which machines get which image.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use netboot::MacAddr;

use crate::commands::ask::{agent, fetch};
use crate::commands::lasts::Lasts;
use crate::commands::preview;
use crate::room::book::{self, Written};
use crate::room::config::Settings;
use crate::room::orders::{Armed, Order, new_deployment};
use crate::room::place;
use crate::room::rivals::Role;
use crate::room::running::{self, ServerNote};
use crate::room::scope::Scope;
use crate::room::state;
use crate::room::stops::Stops;
use library::Library;
use order::{After, Grow, Overrides, TargetRule};

/// How long the server may take to notice; it looks five times a second.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);
/// How often the disk is looked at, and after which pause, before the server is asked.
const LOOKS: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(50);

const NEVER_HINT: &str =
    "`never = true` under [machines.\"MAC\"] or [groups.NAME] in the config, and restart `ezio serve`";

/// Recipients the command is for; everybody if nothing is named.
#[derive(Clone, Debug, Args)]
struct Recipients {
    /// Only this machine; may be given several times.
    #[arg(long = "mac", value_name = "MAC")]
    machines: Vec<MacAddr>,
    /// Only this group of the config; may be given several times.
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<String>,
    /// The server's config file, for its library and groups.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The library directory [default: /var/lib/ezio].
    #[arg(long, value_name = "DIR")]
    library: Option<PathBuf>,
    /// Where the server keeps what it must not forget [default: where the last server did, else LIBRARY/state].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Sends machines to the imaging system at their next network boot: WRITES THE IMAGE TO THEIR DISKS.
#[derive(Debug, Args)]
pub struct ArmCommand {
    /// The image.
    image: String,
    #[command(flatten)]
    recipients: Recipients,
    /// Which disk is written: `auto`, or terms such as serial=S4EVNX0N123456 or bus=nvme,min=500G; else the config decides.
    #[arg(long, value_name = "RULE")]
    target: Option<TargetRule>,
    /// What a machine does when it is done: reboot, poweroff or halt; else the config decides.
    #[arg(long, value_name = "WHAT")]
    after: Option<After>,
    /// Seconds that a finished machine keeps seeding; else the config decides.
    #[arg(long, value_name = "SECONDS")]
    linger: Option<u32>,
    /// On larger disks: the partition that should use the space, `last` or a number. An ext4 in it grows too.
    #[arg(long, value_name = "WHICH", default_value_t = Grow::No)]
    grow: Grow,
    /// Give every disk a new GUID (or MBR signature). Systems that find their disk by the old one will not boot.
    #[arg(long)]
    new_ids: bool,
    /// Write nothing: machines choose their disk, check everything, measure, and say what they would do.
    #[arg(long)]
    dry_run: bool,
    /// Fetch and write everything, even what a disk holds already.
    #[arg(long)]
    no_keep: bool,
    /// Do not report unused space to flash disks (no discard).
    #[arg(long)]
    no_discard: bool,
    /// Do not read the content back: faster where the disk is slower than the network, and unproven.
    #[arg(long)]
    no_verify: bool,
    /// How long the order holds, such as 90m, 12h or 7d; `forever` until `ezio disarm`.
    #[arg(long = "for", value_name = "TIME", default_value = "7d")]
    lasts: Lasts,
    /// Image machines again that have this image already by an order that is in force.
    #[arg(long)]
    again: bool,
    /// Show what would change, and change nothing.
    #[arg(long)]
    preview: bool,
    /// Arm although this other EZIO or PXE server is on the network; may be given several times.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    beside: Vec<Ipv4Addr>,
}

/// Ends what holds orders back. With --mac or --group: a machine or group that `ezio disarm` holds back. Without: orders that
/// `ezio serve` has suspended because its record of finished machines was lost; machines that are done may then be imaged again.
#[derive(Debug, Args)]
pub struct ResumeCommand {
    #[command(flatten)]
    recipients: Recipients,
}

/// Lets machines boot from their own disks again. Machines that are being written go on to the end.
#[derive(Debug, Args)]
pub struct DisarmCommand {
    #[command(flatten)]
    recipients: Recipients,
}

impl ArmCommand {
    /// Does it.
    ///
    /// # Errors
    /// An unknown image or group, or a library that cannot be written.
    pub fn run(self) -> anyhow::Result<()> {
        let library = self.recipients.library()?;
        let image = library.image(&self.image).or_else(|error| bail!("nothing was armed: {error:#}"))?;
        let settings = self.recipients.settings(&library)?;
        let scopes = self.recipients.scopes(settings.as_ref())?;
        let state_dir = library.state_dir();
        let before = book::read(&state_dir)?;
        let (deployment, at) = (new_deployment()?, state::unix_now());
        let until = self.lasts.0.map(|seconds| at.saturating_add(seconds));
        let infohash = image.manifest.infohash.clone();
        let order = |scope: &Scope, armed: &Armed| {
            let order = Order {
                image: Some(self.image.clone()),
                deployment: deployment.clone(),
                overrides: self.overrides(),
                at,
                until,
                infohash: infohash.clone(),
                ..Order::hold(scope.clone())
            };
            if self.again { order } else { order.continuing(armed) }
        };
        let arm = |armed: &mut Armed| {
            let before = armed.clone();
            scopes.iter().for_each(|scope| armed.arm(order(scope, &before)));
        };
        let mut wanted = Armed::default();
        arm(&mut wanted);
        let settings = settings.unwrap_or_default();
        refuse_never(&scopes, &settings)?;
        check(&wanted, &settings, &library)?;
        library.make_state_dir()?;
        let mut after = before.clone();
        arm(&mut after);
        let fleet = preview::known(&state_dir)?;
        let changes = preview::changes(&before, &after, &fleet, &settings);
        if self.preview {
            changes.iter().for_each(|line| say!("{line}"));
            say!("nothing was changed");
            return Ok(());
        }
        refuse_beside_rivals(&library, &[&settings.beside[..], &self.beside].concat())?;
        let written = book::update(&state_dir, arm)?;
        let armed = &written.armed;
        let how = if self.dry_run { ", a dry run: nothing will be written" } else { "" };
        let ids: BTreeSet<&str> = armed
            .orders()
            .iter()
            .filter(|order| scopes.contains(&order.scope))
            .map(|order| order.deployment.as_str())
            .collect();
        let ids = ids.into_iter().collect::<Vec<_>>().join(", ");
        say!("armed {} for {} {} (deployment {ids}){how}", self.image, words(&scopes), self.lasts);
        changes.iter().for_each(|line| say!("{line}"));
        if let Some(why) = armed.suspended() {
            say!("SUSPENDED, no machine gets an order before `ezio resume`: {why}");
        }
        let held: Vec<Scope> = armed.held_back().filter(|scope| !is_never(scope, &settings)).cloned().collect();
        if !held.is_empty() {
            say!("still held back: {}; {}", words(&held), resume_hint(&held));
        }
        let never: Vec<Scope> = settings.machines_named().into_iter().map(Scope::Machine).collect();
        let never: Vec<Scope> = never.into_iter().filter(|scope| is_never(scope, &settings)).collect();
        if scopes.contains(&Scope::All) && !never.is_empty() {
            say!("left out (`never = true` in the config): {}", words(&never));
        }
        if let Err(error) = wait_for_server(&library, Some(&written)) {
            say!("{error:#}");
        }
        Ok(())
    }
}

/// Refuses an order while the running server sees another one that sends machines elsewhere; `beside` are meant to be there.
fn refuse_beside_rivals(library: &Library, beside: &[Ipv4Addr]) -> anyhow::Result<()> {
    let Some(status) = ServerNote::find(library).ok().and_then(|server| fetch(&agent(), &server.url).ok()) else {
        // Without a server there is no order to hand out; one that does not answer is complained about later.
        return Ok(());
    };
    if let Some(rival) = status.rivals.iter().find(|rival| !beside.contains(&rival.address)) {
        let (address, interface) = (rival.address, &rival.interface);
        let what = if rival.role == Role::Ezio { "another EZIO server" } else { "another PXE server (ProxyDHCP)" };
        bail!(
            "nothing was armed: {what}, {address}, is on the network of {interface}, and machines may take its answer for \
             ours. Stop it there, and wait a minute until it is forgotten; or give --beside {address} to arm all the same for this once; or, if it is meant to be \
             there, write `beside = [\"{address}\"]` into the config and restart `ezio serve`"
        );
    }
    Ok(())
}

/// Whether the config never wants it imaged.
fn is_never(scope: &Scope, settings: &Settings) -> bool {
    match scope {
        Scope::All => false,
        Scope::Group(name) => settings.groups.get(name).is_some_and(|group| settings.is_never_all(&group.machines)),
        Scope::Machine(mac) => settings.is_never(*mac),
    }
}

/// Refuses an order for those by name that it would not reach.
fn refuse_never(scopes: &[Scope], settings: &Settings) -> anyhow::Result<()> {
    for scope in scopes {
        ensure!(
            !is_never(scope, settings),
            "nothing was armed: {scope} has `never = true` in the config; take that out, and restart `ezio serve`, if it is \
             to be imaged after all"
        );
    }
    Ok(())
}

impl ArmCommand {
    /// What is different from what the config says.
    fn overrides(&self) -> Overrides {
        let given = |is_given: bool, value: bool| is_given.then_some(value);
        Overrides {
            target: self.target.clone(),
            after: self.after,
            linger: self.linger,
            verify: given(self.no_verify, false),
            keep: given(self.no_keep, false),
            discard: given(self.no_discard, false),
            grow: (self.grow != Grow::No).then_some(self.grow),
            new_ids: given(self.new_ids, true),
            confirm: None,
            dry_run: given(self.dry_run, true),
        }
    }
}

impl DisarmCommand {
    /// Does it.
    ///
    /// # Errors
    /// An unknown group, or a library that cannot be written.
    pub fn run(self) -> anyhow::Result<()> {
        let library = self.recipients.library()?;
        let settings = self.recipients.settings(&library)?;
        let scopes = self.recipients.scopes(settings.as_ref())?;
        let state_dir = library.state_dir();
        if !state_dir.is_dir() {
            library.make_state_dir()?;
        }
        let (written, warning) = book::disarm(&state_dir, &scopes)?;
        if let Some(warning) = warning {
            complain!("ezio: {warning}");
        }
        wait_for_server(&library, written.as_ref())?;
        say!("disarmed {}", words(&scopes));
        if !scopes.contains(&Scope::All) {
            say!("held back from later orders for every machine as well; {}", resume_hint(&scopes));
            say!("a machine that must never be imaged, whoever names it, has {NEVER_HINT}");
        }
        Ok(())
    }
}

impl ResumeCommand {
    /// Does it.
    ///
    /// # Errors
    /// A library that cannot be written.
    pub fn run(self) -> anyhow::Result<()> {
        let library = self.recipients.library()?;
        let settings = self.recipients.settings(&library)?;
        let scopes = self.recipients.scopes(settings.as_ref())?;
        library.make_state_dir()?;
        let (mut why, mut released) = (None, Vec::new());
        let written = book::update(&library.state_dir(), |armed| {
            if scopes.contains(&Scope::All) {
                why = armed.resume();
            }
            released = scopes.iter().filter(|scope| armed.release(scope)).cloned().collect();
        })?;
        match why {
            Some(why) => say!("resumed, although {why}"),
            None if scopes.contains(&Scope::All) => say!("nothing was suspended"),
            None if released.is_empty() => say!("{} was not held back", words(&scopes)),
            None => say!("no longer held back: {}", words(&released)),
        }
        let settings = settings.unwrap_or_default();
        written.armed.lines(&settings).iter().for_each(|line| say!("armed: {line}"));
        wait_for_server(&library, Some(&written))
    }
}

/// Refuses what machines would, before they are switched on. An image of the config that is damaged shows in the status.
fn check(wanted: &Armed, settings: &Settings, library: &Library) -> anyhow::Result<()> {
    for (who, job) in wanted.jobs(settings) {
        if let Ok(image) = library.image(&job.image) {
            job.check(&image).with_context(|| format!("nothing was armed for {who}"))?;
        }
    }
    Ok(())
}

/// Waits until the server obeys what was written last, so that a machine can be switched on next. It says so on disk, and
/// by HTTP where it cannot write.
///
/// # Errors
/// If it says nothing of it in time.
fn wait_for_server(library: &Library, written: Option<&Written>) -> anyhow::Result<()> {
    let Ok(server) = ServerNote::find(library) else {
        ensure!(
            !running::is_served(library),
            "an `ezio serve` runs on the library {}, but nothing in {} is from it, so it does not obey this: if its state is \
             elsewhere, name that directory with --state; if it has only just been started, try again",
            library.dir().display(),
            library.state_dir().display()
        );
        say!("no `ezio serve` is running on this library yet");
        return Ok(());
    };
    let state_dir = library.state_dir();
    let stops = Stops::of(&state_dir);
    let generation = written.map_or(0, |written| written.generation);
    // Another command may have changed more meanwhile, and what it changed includes this.
    let is_obeyed = |(obeyed, held): (u64, u64)| obeyed >= generation && held == stops.held().number();
    let agent = agent();
    let deadline = Instant::now() + NOTICED_WITHIN;
    loop {
        for _ in 0..LOOKS {
            if book::obeyed(&state_dir).is_some_and(is_obeyed) {
                return Ok(());
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        let said = fetch(&agent, &server.url);
        if matches!(&said, Ok(status) if is_obeyed(status.obeys)) {
            return Ok(());
        }
        if let Ok(status) = &said
            && let Some(why) = &status.suspended
        {
            say!("it is written, and the server gives no machine an order at the moment: {why}");
            return Ok(());
        }
        if Instant::now() >= deadline {
            let said = said.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
            bail!(
                "it is written, and the server (process {pid}) has not confirmed it within {} s{said}: does it hang? Once it \
                 goes on, it reads what is written before it answers any machine. To be certain now, stop it: \
                 kill -9 {pid}",
                NOTICED_WITHIN.as_secs(),
                pid = server.pid
            );
        }
    }
}

impl Recipients {
    fn library(&self) -> anyhow::Result<Library> {
        let flags = Settings { library: self.library.clone(), state: self.state.clone(), ..Settings::default() };
        let settings = Settings::load(self.config.as_deref(), flags)?;
        Ok(place::with_state(Library::open(settings.library())?, settings.state))
    }

    /// The config: the file's, else what the running server was told; none if there is neither.
    fn settings(&self, library: &Library) -> anyhow::Result<Option<Settings>> {
        match &self.config {
            Some(file) => Settings::load(Some(file), Settings::default()).map(Some),
            None => match ServerNote::find(library) {
                Ok(running) => running.settings().map(Some),
                Err(_) => Ok(None),
            },
        }
    }

    fn scopes(&self, settings: Option<&Settings>) -> anyhow::Result<Vec<Scope>> {
        let mut scopes: Vec<Scope> = self.machines.iter().map(|mac| Scope::Machine(*mac)).collect();
        if !self.groups.is_empty() {
            let Some(settings) = settings else {
                bail!("which groups are there? no `ezio serve` is running on this library: give --config FILE");
            };
            for group in &self.groups {
                if !settings.groups.contains_key(group) {
                    let known: Vec<&str> = settings.groups.keys().map(String::as_str).collect();
                    let known = if known.is_empty() { "none at all".into() } else { known.join(", ") };
                    bail!("there is no group {group:?} in the config; there are: {known}");
                }
                scopes.push(Scope::Group(group.clone()));
            }
        }
        if scopes.is_empty() {
            scopes.push(Scope::All);
        }
        Ok(scopes)
    }
}

/// How a hold is ended, for those scopes.
fn resume_hint(scopes: &[Scope]) -> String {
    let flag = |scope: &Scope| match scope {
        Scope::All => String::new(),
        Scope::Group(name) => format!(" --group {name}"),
        Scope::Machine(mac) => format!(" --mac {mac}"),
    };
    format!("`ezio resume{}` ends that", scopes.iter().map(flag).collect::<String>())
}

fn words(scopes: &[Scope]) -> String {
    scopes.iter().map(Scope::to_string).collect::<Vec<_>>().join(", ")
}

//! What is armed: which machines get which image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use anyhow::{Context, bail, ensure};
use netboot::MacAddr;
use serde::{Deserialize, Serialize};

use crate::room::config::{Pinned, Settings, group_place, machine_place};
use crate::room::scope::Scope;
use crate::room::state;
use layout::parttable::TableKind;
use layout::parttable::adapt::ALIGN;
use library::Image;
use library::manifest::{Captured, Manifest, time_text};
use order::{After, Grow, Options, Overrides, TargetRule};

/// One `ezio arm` or `ezio disarm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredOrder", into = "StoredOrder")]
pub struct Order {
    /// Whom it is for.
    pub scope: Scope,
    /// The image; `None` holds these machines back from an order with a wider scope.
    pub image: Option<String>,
    /// The deployment's id, new at each `ezio arm`: a machine that is done is done for this one.
    pub deployment: String,
    /// What is different from what the config says.
    pub overrides: Overrides,
    /// When, in seconds since 1970.
    pub at: u64,
    /// When it ends, in seconds since 1970; never if it is `None`.
    pub until: Option<u64>,
    /// The image's infohash when it was armed, or empty.
    pub infohash: String,
    /// Deployments of the same image in whose place this one is: who is done with them is done with this.
    pub counts: Vec<String>,
}

/// An order as it is kept and shown; all versions have had this form.
#[derive(Serialize, Deserialize)]
struct StoredOrder {
    scope: Scope,
    image: Option<String>,
    deployment: String,
    #[serde(default)]
    target: Option<TargetRule>,
    #[serde(default)]
    after: Option<After>,
    #[serde(default)]
    linger: Option<u32>,
    /// Other keys of `ezio.conf`.
    #[serde(default)]
    conf: BTreeMap<String, String>,
    #[serde(default)]
    at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    infohash: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    counts: Vec<String>,
}

impl TryFrom<StoredOrder> for Order {
    type Error = String;

    fn try_from(stored: StoredOrder) -> Result<Order, String> {
        let StoredOrder { scope, image, deployment, target, after, linger, conf, at, until, infohash, counts } = stored;
        // Both become parts of names and lines.
        if let Some(image) = &image {
            library::check_name(image).map_err(|error| format!("{error:#}"))?;
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if let Some(bad) = counts.iter().chain([&deployment]).find(|id| id.len() > 128 || !id.bytes().all(is_plain)) {
            return Err(format!("an order has the deployment {bad:?}, which is no id"));
        }
        let mut overrides = Overrides { target, after, linger, ..Overrides::default() };
        for (key, value) in conf {
            match overrides.set(&key, &value) {
                Ok(true) => {}
                Ok(false) => return Err(format!("an order has {key}={value}, which this version does not know")),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(Order { scope, image, deployment, overrides, at, until, infohash, counts })
    }
}

impl From<Order> for StoredOrder {
    fn from(order: Order) -> StoredOrder {
        let Order { scope, image, deployment, mut overrides, at, until, infohash, counts } = order;
        let (target, after, linger) = (overrides.target.take(), overrides.after.take(), overrides.linger.take());
        let conf = overrides.lines().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        StoredOrder { scope, image, deployment, target, after, linger, conf, at, until, infohash, counts }
    }
}

/// Every order, at most one for each scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    orders: Vec<Order>,
    /// Why nothing is handed out although something is armed, until `ezio resume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suspended: Option<String>,
}

/// What one machine is to do, everything decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub image: String,
    pub deployment: String,
    /// Deployments that count as this one.
    pub counts: Vec<String>,
    /// How it is done.
    pub options: Options,
    /// More for the kernel command line.
    pub kernel_args: String,
}

impl Armed {
    /// These orders, the oldest first, and why they are suspended.
    pub fn of(mut orders: Vec<Order>, suspended: Option<String>) -> Armed {
        orders.sort_by(|a, b| (a.at, &a.scope).cmp(&(b.at, &b.scope)));
        Armed { orders, suspended }
    }

    pub fn orders(&self) -> &[Order] {
        &self.orders
    }

    /// Adds an order; an older one for the same scope is gone, also one that held it back. Arming everybody also ends what
    /// groups and machines were armed with: the room is one again. Who is held back stays so.
    pub fn arm(&mut self, order: Order) {
        if order.scope == Scope::All {
            self.orders.retain(|old| old.image.is_none());
        }
        self.put(order);
    }

    /// Puts an order in its scope's place.
    fn put(&mut self, order: Order) {
        self.orders.retain(|old| old.scope != order.scope);
        self.orders.push(order);
        *self = Armed::of(std::mem::take(&mut self.orders), self.suspended.take());
    }

    /// Removes the orders that have ended at that time, in seconds since 1970.
    pub fn end_before(&mut self, now: u64) {
        self.orders.retain(|order| order.until.is_none_or(|until| until > now));
    }

    /// When the first order ends, in seconds since 1970.
    pub fn first_end(&self) -> Option<u64> {
        self.orders.iter().filter_map(|order| order.until).min()
    }

    /// Takes the orders for a scope back. A group or machine is held back from wider orders as well, those of now and all
    /// later ones, until an order names it or [`Armed::release`].
    pub fn disarm(&mut self, scope: &Scope) {
        if *scope == Scope::All {
            self.orders.retain(|old| old.image.is_none());
            return;
        }
        self.put(Order { at: state::unix_now(), ..Order::hold(scope.clone()) });
    }

    /// Holds a group or machine back no longer; false if it was not.
    pub fn release(&mut self, scope: &Scope) -> bool {
        let before = self.orders.len();
        self.orders.retain(|order| order.scope != *scope || order.image.is_some());
        self.orders.len() < before
    }

    /// Whether any machine at all may be sent to the imaging system.
    pub fn is_anything_armed(&self) -> bool {
        self.orders.iter().any(|order| order.image.is_some())
    }

    /// Hands nothing out until [`Armed::resume`], and why.
    pub fn suspend(&mut self, why: String) {
        self.suspended = Some(why);
    }

    /// Hands out again what is armed; why that had been suspended.
    pub fn resume(&mut self) -> Option<String> {
        self.suspended.take()
    }

    /// Why nothing is handed out although something is armed.
    pub fn suspended(&self) -> Option<&str> {
        self.suspended.as_deref()
    }

    /// Every image that a machine could be given now, config included.
    pub fn images(&self, settings: &Settings) -> Vec<String> {
        let mut images: Vec<String> = self.orders.iter().filter_map(|order| order.image.clone()).collect();
        images.extend(self.pinned(settings).map(|pinned| pinned.image.to_owned()));
        images.sort_unstable();
        images.dedup();
        images
    }

    /// What the config gives to a group or machine instead of what everybody is armed with, where no order or hold of its
    /// own decides.
    fn pinned<'a>(&'a self, settings: &'a Settings) -> impl Iterator<Item = Pinned<'a>> {
        let has = |scope: Scope| self.orders.iter().any(|order| order.scope == scope);
        let decides = move |scope: &Scope| match scope {
            Scope::Machine(mac) => {
                let group = settings.group_of(*mac).map(|(name, _)| Scope::Group(name.to_owned()));
                has(scope.clone()) || group.is_some_and(has)
            }
            _ => has(scope.clone()),
        };
        let pinned = if has(Scope::All) { settings.pinned() } else { Vec::new() };
        pinned.into_iter().filter(move |pinned| !decides(&pinned.scope))
    }

    /// What is armed, for whom and with what exceptions, in words: a line an order, then a line an exception.
    pub fn lines(&self, settings: &Settings) -> Vec<String> {
        let orders = self.orders.iter().filter_map(|order| order.line(settings));
        let held = self.held_back().map(|scope| {
            format!("held back, also from later orders, until `ezio resume`: {}", settings.called_scope(scope))
        });
        let suspended =
            self.suspended().map(|why| format!("SUSPENDED, no machine gets an order before `ezio resume`: {why}"));
        let mut lines: Vec<String> = suspended.into_iter().chain(orders).chain(held).collect();
        if let Some(all) = self.orders.iter().find(|order| order.scope == Scope::All) {
            for Pinned { place, image, target, .. } in self.pinned(settings) {
                lines.push(format!("{place} in the config gets {image} instead, target {target}"));
            }
            let groups = settings.groups.iter().map(|(name, group)| (group_place(name), &group.image, &group.target));
            let machines = settings.machines.iter().map(|(mac, own)| (machine_place(*mac), &own.image, &own.target));
            for (place, image, target) in groups.chain(machines) {
                if let (None, Some(target), None) = (image, target, &all.overrides.target) {
                    lines.push(format!("{place} in the config: target {target}"));
                }
            }
        }
        let never: Vec<String> = settings
            .machines_named()
            .into_iter()
            .filter(|mac| settings.is_never(*mac))
            .map(|mac| settings.called(mac))
            .collect();
        if !lines.is_empty() && !never.is_empty() {
            lines.push(format!("never imaged (`never = true` in the config): {}", never.join(", ")));
        }
        lines
    }

    /// Whom an order with a wider scope leaves out, as `ezio disarm` was told.
    pub fn held_back(&self) -> impl Iterator<Item = &Scope> {
        self.orders.iter().filter(|order| order.image.is_none()).map(|order| &order.scope)
    }

    /// What this machine is to do: the order for it alone, else for its group, else for everybody. `None` means its
    /// own disk, and always for a machine that the config never wants imaged.
    pub fn job_for(&self, mac: MacAddr, settings: &Settings) -> Option<Job> {
        if settings.is_never(mac) {
            return None;
        }
        let group = settings.group_of(mac).map(|(name, _)| name);
        let find = |scope: &Scope| self.orders.iter().find(|order| order.scope == *scope);
        let order = find(&Scope::Machine(mac))
            .or_else(|| find(&Scope::Group(group?.to_owned())))
            .or_else(|| find(&Scope::All))?;
        job(order, Some(mac), settings)
    }

    /// What everybody is to do whom an order or the config names, and what all others are; with whom it is for.
    pub fn jobs(&self, settings: &Settings) -> Vec<(String, Job)> {
        let mut machines = settings.machines_named();
        machines.extend(self.orders.iter().filter_map(|order| match order.scope {
            Scope::Machine(mac) => Some(mac),
            _ => None,
        }));
        let named = machines.into_iter().filter_map(|mac| Some((mac.to_string(), self.job_for(mac, settings)?)));
        let others = self.job_for_unknown(settings).map(|job| ("every machine".to_owned(), job));
        others.into_iter().chain(named).collect()
    }

    /// What a machine we know nothing of is to do.
    pub fn job_for_unknown(&self, settings: &Settings) -> Option<Job> {
        job(self.orders.iter().find(|order| order.scope == Scope::All)?, None, settings)
    }
}

impl Order {
    /// Goes on with the orders in force for the same image, so that machines that are done stay done. Not with a rehearsal,
    /// and not with another image of the same name.
    pub fn continuing(self, armed: &Armed) -> Order {
        let is_rehearsal = |order: &Order| order.overrides.dry_run == Some(true);
        let is_same = |old: &&Order| {
            old.image == self.image && old.infohash == self.infohash && !old.infohash.is_empty() && !is_rehearsal(old)
        };
        if is_rehearsal(&self) {
            return self;
        }
        let same: Vec<&Order> = armed.orders().iter().filter(is_same).collect();
        let best = same.iter().find(|old| old.scope == self.scope);
        let best = best.or_else(|| same.iter().find(|old| old.scope == Scope::All)).or(same.first());
        let Some(deployment) = best.map(|old| old.deployment.clone()) else { return self };
        let mut counts: Vec<String> =
            same.iter().flat_map(|old| old.counts.iter().chain([&old.deployment])).cloned().collect();
        counts.retain(|other| *other != deployment);
        counts.sort_unstable();
        counts.dedup();
        Order { deployment, counts, ..self }
    }

    /// Holds a group or machine back.
    pub fn hold(scope: Scope) -> Order {
        let (deployment, infohash) = (String::new(), String::new());
        let (overrides, counts) = (Overrides::default(), Vec::new());
        Order { scope, image: None, deployment, overrides, at: 0, until: None, infohash, counts }
    }

    /// In words, with what it does to disks; nothing if it only holds back.
    fn line(&self, settings: &Settings) -> Option<String> {
        let image = self.image.as_ref()?;
        let own = match &self.scope {
            Scope::All => None,
            Scope::Group(name) => settings.groups.get(name).and_then(|group| group.target.clone()),
            Scope::Machine(mac) => settings.overrides_of(*mac).target,
        };
        let target = self.overrides.target.clone().or(own).unwrap_or_else(|| settings.target());
        let what = if self.overrides.dry_run == Some(true) { "dry run" } else { "WRITES DISKS" };
        let since = time_text(self.at);
        let until = self.until.map(|until| format!(" until {}", time_text(until))).unwrap_or_default();
        let whom = settings.called_scope(&self.scope);
        Some(format!("{image} for {whom} since {since}{until}, each once, target {target}, {what}"))
    }
}

impl Job {
    /// Whether a machine that has finished this deployment has what the job would give it.
    pub fn is_done_by(&self, deployment: &str) -> bool {
        self.deployment == deployment || self.counts.iter().any(|counts| counts == deployment)
    }

    /// Whether a machine could do it with this image, as far as that can be told before it is on.
    ///
    /// # Errors
    /// What would be refused there, or should be.
    pub fn check(&self, image: &Image) -> anyhow::Result<()> {
        check_target(image, &self.options.target)?;
        let grow = self.options.grow;
        check_grow(&image.manifest, grow).with_context(|| format!("--grow {grow} with the image {}", image.name))
    }
}

/// Whether a partition could grow on a larger disk, as far as the manifest tells; `layout` decides on the disk.
fn check_grow(manifest: &Manifest, grow: Grow) -> anyhow::Result<()> {
    let partitions = || manifest.partitions.iter();
    let chosen = match grow {
        Grow::No => return Ok(()),
        // A torrent from elsewhere does not say which ones there are.
        _ if manifest.table != TableKind::None && manifest.partitions.is_empty() => return Ok(()),
        _ if manifest.table == TableKind::None => bail!("it has no partition table, so no partition to grow"),
        Grow::Last => partitions().max_by_key(|partition| partition.start).context("it has no partition to grow")?,
        Grow::Number(number) => partitions().find(|partition| partition.number == number).with_context(|| {
            let numbers: Vec<String> = partitions().map(|partition| partition.number.to_string()).collect();
            format!("it has no partition {number}; there are: {}", numbers.join(", "))
        })?,
    };
    let (number, end) = (chosen.number, chosen.start.saturating_add(chosen.length));
    ensure!(
        chosen.captured != Captured::Container && (manifest.table != TableKind::Mbr || number <= 4),
        "partition {number} is a logical partition or holds some, and these are not grown: choose a primary partition"
    );
    // What is free is used up to a full MiB.
    let next = partitions().filter(|other| other.start > chosen.start).min_by_key(|other| other.start);
    if let Some(next) = next {
        ensure!(
            next.start - next.start % ALIGN > end,
            "partition {} follows partition {number} directly, which cannot grow: choose the last one",
            next.number
        );
    }
    Ok(())
}

/// Whether a rule says well enough where an image goes.
///
/// # Errors
/// A rule that names no disk for an image that may be of a single partition: on a whole disk
/// it would take the place of everything there.
pub fn check_target(image: &Image, target: &TargetRule) -> anyhow::Result<()> {
    ensure!(
        image.layout.is_whole_disk() || target.is_name(),
        "the image {} would go where the rule {target} finds a disk, but this is one partition (or a file system without a \
         partition table): name where it goes with --target /dev/sda2",
        image.name
    );
    Ok(())
}

fn job(order: &Order, mac: Option<MacAddr>, settings: &Settings) -> Option<Job> {
    let own = mac.map(|mac| settings.overrides_of(mac)).unwrap_or_default();
    let (mut image, mut overrides) = (order.image.clone()?, order.overrides.clone());
    if let (Scope::All, Some(pinned)) = (&order.scope, own.image) {
        // The order's rule was meant for the order's image: where one takes the disk, the other may be of a partition.
        (image, overrides.target) = (pinned, None);
    }
    let mut options = Options {
        target: own.target.unwrap_or_else(|| settings.target()),
        after: own.after.unwrap_or_else(|| settings.after()),
        linger: own.linger.unwrap_or_else(|| settings.linger()),
        ..Options::default()
    };
    overrides.apply(&mut options);
    Some(Job {
        image,
        deployment: order.deployment.clone(),
        counts: order.counts.clone(),
        options,
        kernel_args: own.kernel_args.or(settings.kernel_args.clone()).unwrap_or_default(),
    })
}

/// A new deployment's id: 16 hex digits nobody has had before.
///
/// # Errors
/// If the kernel's random numbers cannot be read.
pub fn new_deployment() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("reading /dev/urandom")?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use library::manifest::PartitionInfo;

    const A: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);

    fn settings() -> Settings {
        toml::from_str(&format!(
            "linger = 7\n[groups.lab]\nmachines = [\"{A}\"]\nafter = \"halt\"\n[machines.\"{B}\"]\nimage = \"own\"\n"
        ))
        .expect("good")
    }

    fn rule(text: &str) -> TargetRule {
        text.parse().expect(text)
    }

    fn order(scope: Scope, image: &str) -> Order {
        Order { image: Some(image.into()), deployment: image.into(), ..Order::hold(scope) }
    }

    #[test]
    fn the_narrowest_order_wins() {
        let settings = settings();
        let mut armed = Armed::default();
        assert_eq!(armed.job_for(A, &settings), None);
        armed.arm(order(Scope::All, "room"));
        let job = armed.job_for(A, &settings).expect("armed");
        assert_eq!((job.image.as_str(), job.options.after, job.options.linger), ("room", After::Halt, 7));
        assert_eq!(armed.job_for(B, &settings).expect("armed").image, "own");
        armed.arm(order(Scope::Group("lab".into()), "lab"));
        assert_eq!(armed.job_for(A, &settings).expect("armed").image, "lab");
        armed.arm(order(Scope::Machine(B), "single"));
        assert_eq!(armed.job_for(B, &settings).expect("armed").image, "single");
        assert_eq!(armed.images(&settings), ["lab", "room", "single"]);
        let overrides = Overrides { target: Some(rule("/dev/sda")), ..Overrides::default() };
        armed.arm(Order { overrides, ..order(Scope::All, "again") });
        assert_eq!(armed.images(&settings), ["again", "own"]);
        assert_eq!(
            armed.job_for(B, &settings).expect("armed").options.target,
            rule("auto"),
            "the rule is for the order's own image"
        );
        assert_eq!(armed.job_for(A, &settings).expect("armed").options.target, rule("/dev/sda"));
        assert_eq!(armed.job_for(A, &settings).expect("armed").image, "again");
    }

    #[test]
    fn a_machine_can_be_held_back() {
        let settings = settings();
        let mut armed = Armed::default();
        armed.arm(order(Scope::All, "room"));
        armed.disarm(&Scope::Machine(A));
        assert_eq!(armed.job_for(A, &settings), None);
        assert!(armed.is_anything_armed());
        // Whatever is ordered after that, until it is named itself.
        armed.arm(order(Scope::All, "rehearsal"));
        assert_eq!(armed.job_for(A, &settings), None);
        armed.disarm(&Scope::All);
        assert!(!armed.is_anything_armed());
        armed.arm(order(Scope::Group("lab".into()), "lab"));
        assert_eq!(armed.job_for(A, &settings), None, "its group is armed, it is not");
        armed.arm(order(Scope::All, "room"));
        assert_eq!(armed.job_for(A, &settings), None);
        assert!(armed.job_for(B, &settings).is_some());
        assert!(armed.release(&Scope::Machine(A)) && !armed.release(&Scope::Machine(A)));
        assert!(armed.job_for(A, &settings).is_some());
        armed.disarm(&Scope::Machine(A));
        armed.arm(order(Scope::Machine(A), "x"));
        assert_eq!(armed.job_for(A, &settings).expect("named").image, "x");
        assert!(!armed.release(&Scope::Machine(A)), "an order is no hold");
    }

    #[test]
    fn never_is_stronger_than_any_order() {
        let settings: Settings = toml::from_str(&format!(
            "[groups.staff]\nmachines = [\"{A}\", \"{B}\"]\nnever = true\n[machines.\"{B}\"]\nnever = false\n"
        ))
        .expect("good");
        let mut armed = Armed::default();
        armed.arm(order(Scope::All, "room"));
        armed.arm(order(Scope::Group("staff".into()), "room"));
        armed.arm(order(Scope::Machine(A), "room"));
        assert_eq!(armed.job_for(A, &settings), None);
        assert!(armed.job_for(B, &settings).is_some(), "said for itself");
        assert!(armed.job_for(MacAddr([2; 6]), &settings).is_some(), "in no group");
        assert!(armed.jobs(&settings).iter().all(|(who, _)| *who != A.to_string()));
    }

    #[test]
    fn an_order_is_told_with_its_exceptions() {
        let settings: Settings = toml::from_str(&format!(
            "target = \"bus=nvme\"\n[groups.lab]\nmachines = [\"{A}\"]\nimage = \"own\"\ntarget = \"serial=X\"\n\
             [groups.old]\ntarget = \"bus=ata\"\n[machines.\"{B}\"]\nnever = true\nname = \"pc1\"\n"
        ))
        .expect("good");
        let mut armed = Armed::default();
        assert!(armed.lines(&settings).is_empty());
        armed.arm(order(Scope::All, "room"));
        let other = MacAddr([0x52, 0x54, 0, 0, 0, 3]);
        let overrides = Overrides { dry_run: Some(true), target: Some(rule("auto")), ..Overrides::default() };
        armed.arm(Order { overrides, ..order(Scope::Machine(A), "room") });
        armed.disarm(&Scope::Machine(other));
        assert_eq!(
            armed.lines(&settings),
            [
                "room for every machine since 1970-01-01 00:00 UTC, each once, target bus=nvme, WRITES DISKS"
                    .to_owned(),
                format!("room for {A} since 1970-01-01 00:00 UTC, each once, target auto, dry run"),
                format!("held back, also from later orders, until `ezio resume`: {other}"),
                "[groups.lab] in the config gets own instead, target serial=X".to_owned(),
                "[groups.old] in the config: target bus=ata".to_owned(),
                format!("never imaged (`never = true` in the config): pc1 ({B})"),
            ]
        );
    }

    #[test]
    fn only_what_can_grow_is_armed_to() {
        let partition = |number, start_mib: u64, mib: u64| PartitionInfo {
            number,
            start: start_mib << 20,
            length: mib << 20,
            ..PartitionInfo::default()
        };
        let with = |table: &str, partitions: Vec<PartitionInfo>| Manifest {
            table: TableKind::try_from(table.to_owned()).expect("a kind of table"),
            partitions,
            ..Manifest::default()
        };
        let gpt = with("gpt", vec![partition(1, 1, 10), partition(2, 11, 10), partition(5, 30, 10)]);
        let container = PartitionInfo { captured: Captured::Container, ..partition(2, 11, 30) };
        let mbr = with("mbr", vec![partition(1, 1, 10), container, partition(5, 12, 10)]);
        let bare = with("none", vec![partition(0, 0, 10)]);
        let said = |manifest, grow: &str| match check_grow(manifest, grow.parse().expect(grow)) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        for (manifest, grow, words) in [
            (&gpt, "no", ""),
            (&gpt, "last", ""),
            (&gpt, "5", ""),
            (&gpt, "2", ""),
            (&gpt, "1", "partition 2 follows partition 1 directly"),
            (&gpt, "3", "it has no partition 3; there are: 1, 2, 5"),
            (&mbr, "1", "partition 2 follows partition 1 directly"),
            (&mbr, "2", "partition 2 is a logical partition or holds some"),
            (&mbr, "5", "partition 5 is a logical partition or holds some"),
            (&mbr, "last", "partition 5 is a logical partition or holds some"),
            (&bare, "last", "it has no partition table"),
            (&bare, "no", ""),
            (&with("gpt", vec![]), "last", ""),
        ] {
            let said = said(manifest, grow);
            assert!(said.starts_with(words) && said.is_empty() == words.is_empty(), "{grow}: {said:?}");
        }
    }

    #[test]
    fn orders_of_older_versions_are_read_and_written_as_they_were() {
        let text = r#"{"orders":[{"scope":"all","image":"room","deployment":"7f","target":"bus=nvme","after":"halt",
            "linger":3,"conf":{"DRY_RUN":"yes","GROW":"last","KEEP":"no"},"at":5},
            {"scope":{"group":"lab"},"image":null,"deployment":""}]}"#;
        let armed: Armed = serde_json::from_str(text).expect("of an older version");
        let overrides = Overrides {
            target: Some(rule("bus=nvme")),
            after: Some(After::Halt),
            linger: Some(3),
            dry_run: Some(true),
            grow: Some(Grow::Last),
            keep: Some(false),
            ..Overrides::default()
        };
        assert_eq!(armed.orders()[0], Order { overrides, at: 5, deployment: "7f".into(), ..order(Scope::All, "room") });
        assert_eq!(armed.orders()[1].image, None);
        let json = serde_json::to_value(&armed).expect("plain data");
        let first = serde_json::from_str::<serde_json::Value>(text).expect("JSON")["orders"][0].clone();
        assert_eq!(json["orders"][0], first);
        let newer = text.replace("KEEP", "KEPT");
        let error = serde_json::from_str::<Armed>(&newer).expect_err("not known").to_string();
        assert!(error.contains("KEPT=no, which this version does not know"), "{error}");
    }
}

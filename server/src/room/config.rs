//! What the person who runs the server decides: one TOML file, every key of it also a flag.
//!
//! `boot_dir = "…"` in the file is `--boot-dir …` on the command line, which wins. Only groups and single machines
//! are for the file alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use netboot::MacAddr;
use order::{After, TargetRule};
use serde::{Deserialize, Serialize};

use crate::room::scope::Scope;
use library::{self, DEFAULT_DIR};

/// Where the boot directory is unless told otherwise.
const DEFAULT_BOOT_DIR: &str = "/usr/lib/ezio/boot";

/// Every key, each of them optional, from the file or from the command line.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directory of the images, and of what the server remembers [default: /var/lib/ezio].
    #[arg(long, value_name = "DIR")]
    pub library: Option<PathBuf>,
    /// Directory with vmlinuz, initrd.img and the iPXE loaders, as `make image` builds it [default: /usr/lib/ezio/boot].
    #[arg(long, value_name = "DIR")]
    pub boot_dir: Option<PathBuf>,
    /// Network interface to serve; several may be given. Needed when the machine has more than one.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    pub interface: Vec<String>,
    /// IPv4 address to serve under; needed when the interface has more than one.
    #[arg(long, value_name = "IP")]
    pub address: Option<Ipv4Addr>,
    /// DHCP: `proxy` beside the site's DHCP server, `server` to give out leases, or `off` [default: proxy].
    #[arg(long, value_enum)]
    pub dhcp: Option<DhcpMode>,
    /// Addresses that DHCP mode `server` gives out, such as 10.0.0.50-10.0.0.99.
    #[arg(long, value_name = "FIRST-LAST")]
    pub dhcp_range: Option<AddressRange>,
    /// How long a lease lasts, in seconds [default: 3600].
    #[arg(long, value_name = "SECONDS")]
    pub dhcp_lease: Option<u32>,
    /// Default router that DHCP mode `server` names.
    #[arg(long, value_name = "IP")]
    pub dhcp_router: Option<Ipv4Addr>,
    /// Name servers that DHCP mode `server` names.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub dhcp_dns: Vec<Ipv4Addr>,
    /// Serve TFTP [default: true].
    #[arg(long, value_name = "BOOL")]
    pub tftp: Option<bool>,
    /// UDP port of TFTP; firmware always asks at 69 [default: 69].
    #[arg(long, value_name = "PORT")]
    pub tftp_port: Option<u16>,
    /// Serve HTTP: kernel, boot script, tracker, reports, status [default: true].
    #[arg(long, value_name = "BOOL")]
    pub http: Option<bool>,
    /// TCP port of HTTP [default: 80].
    #[arg(long, value_name = "PORT")]
    pub http_port: Option<u16>,
    /// Seed the armed images from this server [default: true].
    #[arg(long, value_name = "BOOL")]
    pub seed: Option<bool>,
    /// First TCP port for seeding, one more for each armed or published image, and the next one if that is taken; 0 takes
    /// any free port [default: 6882].
    #[arg(long, value_name = "PORT")]
    pub peer_port: Option<u16>,
    /// Let other sites' servers copy every image of this library with `ezio image pull` [default: false].
    #[arg(long, value_name = "BOOL")]
    pub publish: Option<bool>,
    /// Added to the kernel command line of the imaging system, such as `console=ttyS0`.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub kernel_args: Option<String>,
    /// Which disk is written: `auto`, or terms such as serial=S4EVNX0N123456 or bus=nvme,min=500G [default: auto].
    #[arg(long, value_name = "RULE")]
    pub target: Option<TargetRule>,
    /// What a machine does when it is done: reboot, poweroff or halt [default: reboot].
    #[arg(long, value_name = "WHAT")]
    pub after: Option<After>,
    /// Seconds without an upload after which a finished machine stops seeding [default: 15].
    #[arg(long, value_name = "SECONDS")]
    pub linger: Option<u32>,
    /// Seconds without a report after which a machine is shown as silent [default: 15].
    #[arg(long, value_name = "SECONDS")]
    pub silent_after: Option<u64>,
    /// Machines with something in common.
    #[arg(skip)]
    pub groups: BTreeMap<String, Group>,
    /// Single machines, by MAC address.
    #[arg(skip)]
    pub machines: BTreeMap<MacAddr, Overrides>,
}

/// How DHCP is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DhcpMode {
    /// Beside the site's DHCP server; answers only netboot clients.
    #[default]
    Proxy,
    /// Gives leases: only for a network without any other DHCP server.
    Server,
    /// Not at all; the site's DHCP server has to name our boot files.
    Off,
}

/// `FIRST-LAST`, both included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange(pub RangeInclusive<Ipv4Addr>);

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<AddressRange, String> {
        let error = || format!("{text:?} is not a range of addresses; write it as 10.0.0.50-10.0.0.99");
        let (first, last) = text.split_once('-').ok_or_else(error)?;
        let first: Ipv4Addr = first.trim().parse().map_err(|_| error())?;
        let last: Ipv4Addr = last.trim().parse().map_err(|_| error())?;
        if first > last { Err(error()) } else { Ok(AddressRange(first..=last)) }
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> String {
        format!("{}-{}", range.0.start(), range.0.end())
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<AddressRange, String> {
        text.parse()
    }
}

/// Machines with something in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Group {
    /// Who belongs to it.
    pub machines: Vec<MacAddr>,
    /// Never to be imaged, whatever is armed.
    pub never: Option<bool>,
    /// Image for these machines when the whole room is armed with another one.
    pub image: Option<String>,
    /// As the key of that name for everybody.
    pub target: Option<TargetRule>,
    /// As the key of that name for everybody.
    pub after: Option<After>,
    /// As the key of that name for everybody.
    pub linger: Option<u32>,
    /// As the key of that name for everybody.
    pub kernel_args: Option<String>,
}

/// What is different for one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    /// What people call it.
    pub name: Option<String>,
    /// Never to be imaged, whatever is armed; `false` for one machine of a group that is not.
    pub never: Option<bool>,
    /// Image for this machine when the whole room is armed with another one.
    pub image: Option<String>,
    /// As the key of that name for everybody.
    pub target: Option<TargetRule>,
    /// As the key of that name for everybody.
    pub after: Option<After>,
    /// As the key of that name for everybody.
    pub linger: Option<u32>,
    /// As the key of that name for everybody.
    pub kernel_args: Option<String>,
}

/// An image that a group or machine names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned<'a> {
    /// Who names it: the section of the config.
    pub place: String,
    /// Whom that is.
    pub scope: Scope,
    /// Its name.
    pub image: &'a str,
    /// Where it goes.
    pub target: TargetRule,
}

/// The section of a group.
pub fn group_place(name: &str) -> String {
    format!("[groups.{name}]")
}

/// The section of a machine.
pub fn machine_place(mac: MacAddr) -> String {
    format!("[machines.\"{mac}\"]")
}

impl Settings {
    /// Reads the file, if one is given, and lays the command line over it.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown key or a bad value: with the file, the line and what is allowed.
    pub fn load(file: Option<&Path>, flags: Settings) -> anyhow::Result<Settings> {
        let settings = match file {
            None => flags,
            Some(path) => {
                let text =
                    fs::read_to_string(path).with_context(|| format!("reading the config {}", path.display()))?;
                let in_file: Settings = toml::from_str(&text)
                    .map_err(with_hint)
                    .with_context(|| format!("in the config {}", path.display()))?;
                in_file.check().with_context(|| format!("in the config {}", path.display()))?;
                in_file.overlaid(flags)
            }
        };
        settings.check().context("in the settings")?;
        Ok(settings)
    }

    fn overlaid(self, flags: Settings) -> Settings {
        let many = |flag: Vec<_>, file| if flag.is_empty() { file } else { flag };
        Settings {
            library: flags.library.or(self.library),
            boot_dir: flags.boot_dir.or(self.boot_dir),
            interface: many(flags.interface, self.interface),
            address: flags.address.or(self.address),
            dhcp: flags.dhcp.or(self.dhcp),
            dhcp_range: flags.dhcp_range.or(self.dhcp_range),
            dhcp_lease: flags.dhcp_lease.or(self.dhcp_lease),
            dhcp_router: flags.dhcp_router.or(self.dhcp_router),
            dhcp_dns: if flags.dhcp_dns.is_empty() { self.dhcp_dns } else { flags.dhcp_dns },
            tftp: flags.tftp.or(self.tftp),
            tftp_port: flags.tftp_port.or(self.tftp_port),
            http: flags.http.or(self.http),
            http_port: flags.http_port.or(self.http_port),
            seed: flags.seed.or(self.seed),
            peer_port: flags.peer_port.or(self.peer_port),
            publish: flags.publish.or(self.publish),
            kernel_args: flags.kernel_args.or(self.kernel_args),
            target: flags.target.or(self.target),
            after: flags.after.or(self.after),
            linger: flags.linger.or(self.linger),
            silent_after: flags.silent_after.or(self.silent_after),
            groups: self.groups,
            machines: self.machines,
        }
    }

    /// Where the images are.
    pub fn library_dir(&self) -> PathBuf {
        self.library.clone().unwrap_or_else(|| DEFAULT_DIR.into())
    }

    /// Where kernel and loaders are.
    pub fn boot_dir(&self) -> PathBuf {
        self.boot_dir.clone().unwrap_or_else(|| DEFAULT_BOOT_DIR.into())
    }

    /// Whether other sites may copy the images.
    pub fn is_publishing(&self) -> bool {
        self.publish == Some(true)
    }

    /// The group a machine belongs to.
    pub fn group_of(&self, mac: MacAddr) -> Option<(&str, &Group)> {
        self.groups.iter().find(|(_, group)| group.machines.contains(&mac)).map(|(name, group)| (name.as_str(), group))
    }

    /// What is different for a machine: its own entry, and where that says nothing, its group's.
    pub fn overrides_of(&self, mac: MacAddr) -> Overrides {
        let own = self.machines.get(&mac).cloned().unwrap_or_default();
        let group = self.group_of(mac).map(|(_, group)| group.clone()).unwrap_or_default();
        Overrides {
            name: own.name,
            never: own.never.or(group.never),
            image: own.image.or(group.image),
            target: own.target.or(group.target),
            after: own.after.or(group.after),
            linger: own.linger.or(group.linger),
            kernel_args: own.kernel_args.or(group.kernel_args),
        }
    }

    /// What people call a machine; empty if the config does not say.
    pub fn name_of(&self, mac: MacAddr) -> &str {
        self.machines.get(&mac).and_then(|own| own.name.as_deref()).unwrap_or_default()
    }

    /// A machine with its name, if it has one.
    pub fn called(&self, mac: MacAddr) -> String {
        match self.name_of(mac) {
            "" => mac.to_string(),
            name => format!("{name} ({mac})"),
        }
    }

    /// Whom an order is for, with the name of a single machine.
    pub fn called_scope(&self, scope: &Scope) -> String {
        match scope {
            Scope::Machine(mac) => self.called(*mac),
            other => other.to_string(),
        }
    }

    /// Whether a machine is left out of every order.
    pub fn is_never(&self, mac: MacAddr) -> bool {
        self.overrides_of(mac).never == Some(true)
    }

    /// Every machine that a group or an entry of its own names.
    pub fn machines_named(&self) -> BTreeSet<MacAddr> {
        self.groups.values().flat_map(|group| &group.machines).chain(self.machines.keys()).copied().collect()
    }

    /// Every image that a group or machine names and may get.
    pub fn pinned(&self) -> Vec<Pinned<'_>> {
        let groups = self.groups.iter().filter(|(_, group)| !self.is_never_all(&group.machines));
        let groups =
            groups.map(|(name, group)| (group_place(name), Scope::Group(name.clone()), &group.image, &group.target));
        let machines = self.machines.iter().filter(|(mac, _)| !self.is_never(**mac)).map(|(mac, machine)| {
            let group = self.group_of(*mac).map_or(&None, |(_, group)| &group.target);
            let target = if machine.target.is_some() { &machine.target } else { group };
            (machine_place(*mac), Scope::Machine(*mac), &machine.image, target)
        });
        let mut pinned = Vec::new();
        for (place, scope, image, target) in groups.chain(machines) {
            if let Some(image) = image {
                let target = target.as_ref().or(self.target.as_ref()).cloned().unwrap_or_default();
                pinned.push(Pinned { place, scope, image, target });
            }
        }
        pinned
    }

    /// Whether these are machines, and all of them left out of every order.
    pub fn is_never_all(&self, machines: &[MacAddr]) -> bool {
        !machines.is_empty() && machines.iter().all(|mac| self.is_never(*mac))
    }

    /// Values that parse but cannot be.
    fn check(&self) -> anyhow::Result<()> {
        let mut seen: BTreeMap<MacAddr, &str> = BTreeMap::new();
        for (name, group) in &self.groups {
            for mac in &group.machines {
                if let Some(other) = seen.insert(*mac, name) {
                    bail!("machine {mac} is in group {other:?} and in group {name:?}: leave it in one of them");
                }
            }
        }
        let mut names: BTreeMap<&str, MacAddr> = BTreeMap::new();
        for (mac, name) in self.machines.iter().filter_map(|(mac, own)| Some((*mac, own.name.as_deref()?))) {
            check_line("name", name)?;
            ensure!(!name.trim().is_empty(), "the name of {} is empty: leave it out", machine_place(mac));
            if let Some(other) = names.insert(name, mac) {
                bail!("{name:?} is the name of {other} and of {mac}: give one of them another");
            }
        }
        for Pinned { place, image, .. } in self.pinned() {
            library::check_name(image).with_context(|| format!("image of {place}"))?;
        }
        let arguments = [&self.kernel_args].into_iter().chain(self.groups.values().map(|group| &group.kernel_args));
        for arguments in arguments.chain(self.machines.values().map(|machine| &machine.kernel_args)).flatten() {
            check_line("kernel_args", arguments)?;
            ensure!(
                !arguments.contains("||") && !arguments.contains("&&"),
                "kernel_args may not contain || or &&, which end a command in the boot script"
            );
        }
        ensure!(self.http_port != Some(0), "http_port 0 is no port; `http = false` switches HTTP off");
        ensure!(self.tftp_port != Some(0), "tftp_port 0 is no port; `tftp = false` switches TFTP off");
        ensure!(
            !self.is_publishing() || self.http != Some(false),
            "publish = true needs HTTP: leave `http` on, or switch `publish` off"
        );
        ensure!(self.dhcp_lease.is_none_or(|lease| lease >= 60), "dhcp_lease is at least 60 seconds");
        Ok(())
    }
}

/// Refuses text that would start a second line in `ezio.conf` or the boot script.
///
/// # Errors
/// If it has a control character.
pub fn check_line(key: &str, text: &str) -> anyhow::Result<()> {
    ensure!(!text.chars().any(char::is_control), "{key} has to be one line, without control characters: {text:?}");
    Ok(())
}

/// An error of the TOML reader, with the key that may have been meant in place of one that is not known.
fn with_hint(error: toml::de::Error) -> anyhow::Error {
    let hint = error.message().strip_prefix("unknown field `").and_then(|rest| {
        let (key, rest) = rest.split_once('`')?;
        // The reader lists the known ones in backquotes.
        order::nearest(key, rest.split('`').skip(1).step_by(2)).map(|near| format!("did you mean `{near}`?"))
    });
    match hint {
        Some(hint) => anyhow!("{error}{hint}"),
        None => error.into(),
    }
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "an interface name, or a list of them")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(name) => vec![name],
        OneOrMany::Many(names) => names,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> anyhow::Result<Settings> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), text).expect("written");
        Settings::load(Some(file.path()), Settings::default())
    }

    fn refused(text: &str) -> String {
        format!("{:#}", load(text).expect_err("bad"))
    }

    #[test]
    fn a_whole_file_reads() {
        let settings = load(
            r#"
            library = "/srv/ezio"
            interface = "eth1"
            dhcp = "server"
            dhcp_range = "10.0.0.50-10.0.0.99"
            after = "poweroff"
            [groups.lab]
            machines = ["52:54:00:00:00:01", "52-54-00-00-00-02"]
            image = "lab-2026"
            linger = 5
            [machines."52:54:00:00:00:02"]
            after = "halt"
            "#,
        )
        .expect("good");
        assert_eq!(settings.interface, ["eth1"]);
        let own = settings.overrides_of(MacAddr([0x52, 0x54, 0, 0, 0, 2]));
        assert_eq!(own.after, Some(After::Halt));
        assert_eq!(own.linger, Some(5));
        let (place, scope) = ("[groups.lab]".to_owned(), Scope::Group("lab".to_owned()));
        assert_eq!(settings.pinned(), [Pinned { place, scope, image: "lab-2026", target: TargetRule::default() }]);
    }

    #[test]
    fn mistakes_are_named_with_line_and_choice() {
        let unknown = refused("library = \"/x\"\nlibary = 1\n");
        assert!(unknown.contains("line 2") && unknown.contains("libary") && unknown.contains("boot_dir"), "{unknown}");
        assert!(unknown.contains("did you mean `library`?"), "{unknown}");
        let unknown = refused("[groups.lab]\nmachine = []\n");
        assert!(unknown.contains("line 2") && unknown.contains("did you mean `machines`?"), "{unknown}");
        let unknown = refused("colour = 1\n");
        assert!(unknown.contains("boot_dir") && !unknown.contains("did you mean"), "{unknown}");
        let mode = refused("dhcp = \"yes\"\n");
        assert!(mode.contains("line 1") && mode.contains("proxy"), "{mode}");
        let mac = refused("[machines.\"52:54\"]\nlinger = 1\n");
        assert!(mac.contains("52:54:00:12:34:56"), "{mac}");
        let twice =
            refused("[groups.a]\nmachines=[\"52:54:00:00:00:01\"]\n[groups.b]\nmachines=[\"52:54:00:00:00:01\"]\n");
        assert!(twice.contains("leave it in one"), "{twice}");
        assert!(refused("dhcp_range = \"10.0.0.9-10.0.0.1\"").contains("10.0.0.50-10.0.0.99"));
        assert!(refused("kernel_args = \"a\\nb\"").contains("one line"));
        assert!(refused("http_port = 70000").contains("line 1"));
        assert!(refused("publish = true\nhttp = false").contains("needs HTTP"));
        for (text, line) in [
            ("target = \"serail=X\"", "line 1"),
            ("[groups.a]\ntarget = \"serail=X\"", "line 2"),
            ("\n\n[machines.\"52:54:00:00:00:01\"]\ntarget = \"serail=X\"", "line 4"),
        ] {
            let rule = refused(text);
            assert!(
                rule.contains(line) && rule.contains("\"serail=X\" does not say which disk (did you mean"),
                "{rule}"
            );
        }
        assert!(refused("after = \"explode\"").contains("poweroff"));
        let twice =
            refused("[machines.\"52:54:00:00:00:01\"]\nname = \"pc\"\n[machines.\"52:54:00:00:00:02\"]\nname = \"pc\"");
        assert!(twice.contains("\"pc\" is the name of 52:54:00:00:00:01 and of 52:54:00:00:00:02"), "{twice}");
    }

    #[test]
    fn the_documentation_has_every_key_and_is_right() {
        let text = include_str!("../../../docs/config.md");
        let toml = text.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        let settings = load(toml).expect("the example is right");
        let all = serde_json::to_value(&settings).expect("plain data");
        let mut sections = vec![("the file", &all)];
        sections.extend(all["groups"].as_object().expect("groups").values().map(|group| ("a group", group)));
        sections.extend(all["machines"].as_object().expect("machines").values().map(|own| ("a machine", own)));
        assert_eq!(sections.len(), 3);
        for (place, section) in sections {
            for (key, value) in section.as_object().expect("keys") {
                let is_there = !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
                assert!(is_there, "docs/config.md lacks {key} in {place}");
            }
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), "http_port = 8080\ntftp = false\n").expect("written");
        let flags = Settings { http_port: Some(81), ..Settings::default() };
        let settings = Settings::load(Some(file.path()), flags).expect("good");
        assert_eq!((settings.http_port, settings.tftp), (Some(81), Some(false)));
    }
}

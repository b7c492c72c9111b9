//! What the person who runs the server decides: one TOML file, every key of it also a flag.
//!
//! `boot_dir = "…"` in the file is `--boot-dir …` on the command line, which wins. Only groups and single machines
//! are for the file alone.

mod keys;
mod read;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow, ensure};
use netboot::MacAddr;
use order::TargetRule;

pub use self::keys::{Group, MachineSection, Settings, document};
use self::read::Mistake;
pub use self::value::{Answer, DhcpMode};
use crate::room::scope::Scope;

/// An image that a group or machine names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned<'a> {
    /// Who names it: the section of the config.
    pub place: String,
    pub scope: Scope,
    pub image: &'a str,
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
                let in_config = || format!("in the config {}", path.display());
                let in_file = read::read(&text).with_context(in_config)?;
                in_file.check().map_err(|mistake| mistake.in_file(&text)).with_context(in_config)?;
                in_file.overlaid(flags)
            }
        };
        settings.check().map_err(|mistake| anyhow!(mistake.why)).context("in the settings")?;
        Ok(settings)
    }

    /// The group a machine belongs to.
    pub fn group_of(&self, mac: MacAddr) -> Option<(&str, &Group)> {
        self.groups.iter().find(|(_, group)| group.machines.contains(&mac)).map(|(name, group)| (name.as_str(), group))
    }

    /// What is different for a machine: its own section, and where that says nothing, its group's.
    pub fn overrides_of(&self, mac: MacAddr) -> MachineSection {
        let own = self.machines.get(&mac).cloned().unwrap_or_default();
        own.over(self.group_of(mac).map(|(_, group)| group.clone()).unwrap_or_default())
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
                let target = target.clone().unwrap_or_else(|| self.target());
                pinned.push(Pinned { place, scope, image, target });
            }
        }
        pinned
    }

    /// Whether these are machines, and all of them left out of every order.
    pub fn is_never_all(&self, machines: &[MacAddr]) -> bool {
        !machines.is_empty() && machines.iter().all(|mac| self.is_never(*mac))
    }

    /// Values that can be read and are wrong.
    fn check(&self) -> Result<(), Mistake> {
        let mut seen: BTreeMap<MacAddr, &str> = BTreeMap::new();
        for (name, group) in &self.groups {
            for mac in &group.machines {
                if let Some(other) = seen.insert(*mac, name) {
                    let why =
                        format!("machine {mac} is in group {other:?} and in group {name:?}: leave it in one of them");
                    return Err(Mistake { place: place_in_group(name, "machines"), why });
                }
            }
        }
        let mut names: BTreeMap<&str, MacAddr> = BTreeMap::new();
        for (mac, name) in self.machines.iter().filter_map(|(mac, own)| Some((*mac, own.name.as_deref()?))) {
            let is_wrong = |why| Mistake { place: place_in_machine(mac, "name"), why };
            check_line("name", name).map_err(|error| is_wrong(error.to_string()))?;
            if name.trim().is_empty() {
                return Err(is_wrong(format!("the name of {} is empty: leave it out", machine_place(mac))));
            }
            if let Some(other) = names.insert(name, mac) {
                let why = format!("{name:?} is the name of {other} and of {mac}: rename one of them");
                return Err(is_wrong(why));
            }
        }
        for Pinned { place, scope, image, .. } in self.pinned() {
            let place_of_key = match &scope {
                Scope::Machine(mac) => place_in_machine(*mac, "image"),
                Scope::Group(name) => place_in_group(name, "image"),
                Scope::All => Vec::new(),
            };
            library::check_name(image)
                .map_err(|error| Mistake { place: place_of_key, why: format!("image of {place}: {error:#}") })?;
        }
        let of_groups =
            self.groups.iter().map(|(name, group)| (place_in_group(name, "kernel_args"), &group.kernel_args));
        let of_machines =
            self.machines.iter().map(|(mac, own)| (place_in_machine(*mac, "kernel_args"), &own.kernel_args));
        for (place, text) in [(key("kernel_args"), &self.kernel_args)].into_iter().chain(of_groups).chain(of_machines) {
            if let Some(text) = text {
                check_kernel_args(text).map_err(|error| Mistake { place, why: error.to_string() })?;
            }
        }
        let is_wrong = |name: &str, why: &str| Err(Mistake { place: key(name), why: why.to_owned() });
        if self.http_port == Some(0) {
            return is_wrong("http_port", "http_port is 1 to 65535; `http = false` switches HTTP off");
        }
        if self.tftp_port == Some(0) {
            return is_wrong("tftp_port", "tftp_port is 1 to 65535; `tftp = false` switches TFTP off");
        }
        if self.publish() && !self.http() {
            return is_wrong("publish", "publish = true needs HTTP: leave `http` on, or switch `publish` off");
        }
        if self.dhcp_lease() < LEASE_MIN_S {
            return is_wrong("dhcp_lease", &format!("dhcp_lease is at least {LEASE_MIN_S} seconds"));
        }
        Ok(())
    }
}

/// Shorter leases would make machines ask all the time.
const LEASE_MIN_S: u32 = 60;

fn key(name: &str) -> read::Place {
    vec![name.to_owned()]
}

fn place_in_group(name: &str, key: &str) -> read::Place {
    ["groups", name, key].map(str::to_owned).into()
}

fn place_in_machine(mac: MacAddr, key: &str) -> read::Place {
    vec!["machines".to_owned(), mac.to_string(), key.to_owned()]
}

fn check_kernel_args(text: &str) -> anyhow::Result<()> {
    check_line("kernel_args", text)?;
    ensure!(
        !text.contains("||") && !text.contains("&&"),
        "kernel_args may not contain || or &&, which end a command in the boot script"
    );
    Ok(())
}

/// Refuses text that would start a second line in `ezio.conf` or the boot script.
///
/// # Errors
/// If it has a control character.
pub fn check_line(key: &str, text: &str) -> anyhow::Result<()> {
    ensure!(!text.chars().any(char::is_control), "{key} has to be one line, without control characters: {text:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use order::After;

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
        assert!(refused("publish = true\nhttp = false").contains("line 1: publish = true needs HTTP"));
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
    fn a_bad_value_is_named_with_line_key_and_choice() {
        for (text, line, allowed) in [
            ("http_port = 70000", 1, "`http_port` takes a port number, up to 65535"),
            ("\nhttp_port = 0", 2, "http_port is 1 to 65535"),
            ("tftp = \"yes\"", 1, "`tftp` takes `true` or `false`"),
            ("dhcp = \"yes\"", 1, "`dhcp` takes `\"proxy\"`, `\"server\"` or `\"off\"`"),
            ("dhcp_dns = [\"10.0.0.1\", \"x\"]", 1, "`dhcp_dns` takes an IPv4 address, or a list of them"),
            ("dhcp_relayed = \"10.1.0.5-10.1.0.9\"", 1, "`\"10.1.0.50-10.1.0.99/24\"`, or a list of such"),
            ("dhcp_relayed = [\"10.1.0.5-10.1.1.9/24\"]", 1, "`dhcp_relayed` takes"),
            ("dhcp_relayed = \"10.1.0.5-10.1.0.9/33\"", 1, "write it as 10.1.0.50-10.1.0.99/24"),
            ("beside = \"host\"", 1, "`beside` takes an IPv4 address, or a list of them"),
            ("answer = \"some\"", 1, "`answer` takes `\"armed\"` or `\"all\"`"),
            ("interface = 1", 1, "`interface` takes a name, or a list of names"),
            ("linger = -1", 1, "`linger` takes a number of seconds"),
            ("\n[groups.a]\nafter = \"explode\"", 3, "`after` takes `\"reboot\"`, `\"poweroff\"` or `\"halt\"`"),
            ("[groups.a]\nmachines = 1", 2, "`machines` takes a list of MAC addresses"),
            ("[groups.a]\nimage = \"\"", 2, "image of [groups.a]"),
            ("\n[machines.52-54-00-00-00-0A]\nname = \" \"", 3, "is empty"),
            ("[machines.\"52:54:00:00:00:0A\"]\n\nkernel_args = \"a && b\"", 3, "may not contain"),
            ("[groups.a]\nhttp_port = 80", 2, "`http_port` is for all machines: write it above the first [section]"),
            ("[machine.\"52:54:00:00:00:0A\"]\nname = \"x\"", 1, "did you mean `machines`?"),
            ("[machines.\"52:54:00:00:00:0A\"]\nnmae = \"x\"", 2, "did you mean `name`?"),
            ("dhcp_lease = 5", 1, "at least 60"),
        ] {
            let error = refused(text);
            assert!(error.contains(&format!("line {line}")) && error.contains(allowed), "{text}: {error}");
        }
    }

    #[test]
    fn one_value_is_a_list_of_one() {
        let settings = load("interface = \"eth0\"\ndhcp_dns = \"10.0.0.1\"\n").expect("good");
        assert_eq!((settings.interface, settings.dhcp_dns.len()), (vec!["eth0".to_owned()], 1));
    }

    #[test]
    fn the_documentation_has_the_table_of_keys() {
        let text = include_str!("../../../docs/config.md");
        let table = text.split("<!-- keys: `make docs` writes this -->\n").nth(1).expect("a place for the table");
        let table = table.split("<!-- end of keys -->").next().expect("its end");
        assert_eq!(table, document(), "docs/config.md is not what the table of keys says: run `make docs`");
        let toml = text.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        load(toml).expect("the example is right");
    }

    #[test]
    fn help_shows_the_default_that_holds() {
        let settings = Settings::default();
        let shown = |name: &str| Settings::keys().into_iter().find(|key| key.name == name).expect("there").default;
        assert_eq!(shown("http_port"), Some(settings.http_port().to_string()));
        assert_eq!(shown("target"), Some(settings.target().to_string()));
        assert_eq!(shown("after"), Some(settings.after().to_string()));
        assert_eq!(shown("library"), Some(settings.library().display().to_string()));
        assert_eq!((shown("dhcp").as_deref(), shown("interface")), (Some("proxy"), None));
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

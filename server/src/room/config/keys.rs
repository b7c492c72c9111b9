//! The one table of the config's keys. A key that is added here is read from the file and from the command line, shown
//! by `--help` and the man page, and listed in docs/config.md (`make docs`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::Args;
use library::DEFAULT_DIR;
use netboot::MacAddr;
use order::{After, Options, TargetRule};
use serde::{Deserialize, Serialize};

use crate::room::config::value::{AddressRange, Allowed, Answer, DhcpMode, Field, RelayedAddresses, written};

/// A key of the config, for people and documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// The values that it can have.
    pub allowed: &'static str,
    /// The value that holds if it is not there, as it is written.
    pub default: Option<String>,
    /// What it means.
    pub help: &'static str,
}

macro_rules! settings {
    ($($name:ident: $many:ident<$type:ty> $(= $default:expr)?, [$($arg:tt)*], $help:literal;)*) => {
        /// Every key, each of them optional, from the file or from the command line.
        #[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Settings {
            $(#[doc = $help]
            #[arg(long, $($arg)*, help = help_of(stringify!($name)))]
            #[serde(deserialize_with = "Field::read")]
            pub $name: $many<$type>,)*
            /// Machines with something in common.
            #[arg(skip)]
            pub groups: BTreeMap<String, Group>,
            /// Single machines, by MAC address.
            #[arg(skip)]
            pub machines: BTreeMap<MacAddr, MachineSection>,
        }

        impl Settings {
            /// The keys of the file, except its sections.
            pub fn keys() -> Vec<Key> {
                let defaults = Settings::default();
                vec![$(Key {
                    name: stringify!($name),
                    allowed: <$many<$type>>::ALLOWED,
                    default: settings!(@shown defaults.$name() $(, $default)?),
                    help: $help,
                },)*]
            }

            /// Lays the command line over the file, whose sections stay.
            pub fn overlaid(self, flags: Settings) -> Settings {
                Settings { $($name: flags.$name.over(self.$name),)* groups: self.groups, machines: self.machines }
            }

            $($(#[doc = $help]
            ///
            /// What is set, or the default.
            pub fn $name(&self) -> $type {
                self.$name.clone().unwrap_or_else(|| $default)
            })?)*
        }
    };
    (@shown $value:expr, $default:expr) => { Some(written(&$value)) };
    (@shown $value:expr) => { None };
}

settings! {
    library: Option<PathBuf> = DEFAULT_DIR.into(), [value_name = "DIR"],
        "Directory of the images, and of what the server remembers";
    state: Option<PathBuf>, [value_name = "DIR"],
        "Directory of what the server must not forget, such as what is armed and who is done, if it is not LIBRARY/state: for a library that cannot be written. It has to outlast a restart";
    boot_dir: Option<PathBuf> = "/usr/lib/ezio/boot".into(), [value_name = "DIR"],
        "Directory with vmlinuz, initrd.img and the iPXE loaders, as `make image` builds it";
    interface: Vec<String>, [value_name = "NAME", value_delimiter = ','],
        "Network interface to serve; several may be given. Needed if the machine has more than one";
    address: Option<Ipv4Addr>, [value_name = "IP"],
        "IPv4 address to serve under; needed if the interface has more than one";
    dhcp: Option<DhcpMode> = DhcpMode::Proxy, [value_enum],
        "DHCP: `proxy` beside the site's DHCP server, `server` to give out leases, or `off`";
    answer: Option<Answer> = Answer::Armed, [value_enum],
        "Whom DHCP mode `proxy` answers while something is armed: `armed` leaves machines alone that no order is for, `all` sends them to their own disks";
    beside: Vec<Ipv4Addr>, [value_name = "IP", value_delimiter = ','],
        "Other EZIO or PXE servers on these networks that are meant to be there: `ezio arm` does not refuse because of them";
    dhcp_range: Option<AddressRange>, [value_name = "FIRST-LAST"],
        "Addresses that DHCP mode `server` gives out, such as 10.0.0.50-10.0.0.99";
    dhcp_relayed: Vec<RelayedAddresses>, [value_name = "FIRST-LAST/LENGTH", value_delimiter = ','],
        "Addresses that DHCP mode `server` gives out behind DHCP relays, with the length of that network's prefix, such as 10.1.0.50-10.1.0.99/24; the relay is the router there";
    dhcp_lease: Option<u32> = 3600, [value_name = "SECONDS"],
        "How long a lease lasts, in seconds; at least 60";
    dhcp_router: Option<Ipv4Addr>, [value_name = "IP"],
        "Default router that DHCP mode `server` names";
    dhcp_dns: Vec<Ipv4Addr>, [value_name = "IP", value_delimiter = ','],
        "Name servers that DHCP mode `server` names";
    tftp: Option<bool> = true, [value_name = "BOOL"],
        "Serve TFTP";
    tftp_port: Option<u16> = 69, [value_name = "PORT"],
        "UDP port of TFTP; firmware always asks at 69";
    http: Option<bool> = true, [value_name = "BOOL"],
        "Serve HTTP: kernel, boot script, tracker, reports, status";
    http_port: Option<u16> = 80, [value_name = "PORT"],
        "TCP port of HTTP";
    http_names: Vec<String>, [value_name = "NAME", value_delimiter = ','],
        "DNS names by which browsers may reach this server, besides its addresses and names such as `ezio` or `ezio.lan`";
    seed: Option<bool> = true, [value_name = "BOOL"],
        "Seed the armed images from this server";
    // 6881 is the port of `ezio seed`.
    peer_port: Option<u16> = 6882, [value_name = "PORT"],
        "First TCP port for seeding. Each armed or published image takes one more; a port in use is skipped; 0 takes any free port";
    publish: Option<bool> = false, [value_name = "BOOL"],
        "Let other sites' servers copy every image of this library with `ezio image pull`";
    kernel_args: Option<String>, [value_name = "TEXT", allow_hyphen_values = true],
        "Added to the kernel command line of the imaging system, such as `console=ttyS0`";
    target: Option<TargetRule> = Options::default().target, [value_name = "RULE"],
        "Which disk is written: `auto`, or terms such as serial=S4EVNX0N123456 or bus=nvme,min=500G";
    after: Option<After> = Options::default().after, [value_name = "WHAT"],
        "What a machine does when it is done: reboot, poweroff or halt";
    linger: Option<u32> = Options::default().linger, [value_name = "SECONDS"],
        "Seconds without an upload after which a finished machine stops seeding; after 10 minutes, or this time if longer, it stops in any case";
    silent_after: Option<u64> = 15, [value_name = "SECONDS"],
        "Seconds without a report after which a machine is shown as silent";
}

macro_rules! sections {
    (of a group: $members:ident: $list:ty, $members_help:literal;
        of a machine: $called:ident: $text:ty, $called_help:literal;
        $($name:ident: $many:ident<$type:ty>, $help:literal;)*) => {
        /// Machines with something in common.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Group {
            #[doc = $members_help]
            #[serde(deserialize_with = "Field::read")]
            pub $members: $list,
            $(#[doc = $help]
            pub $name: $many<$type>,)*
        }

        /// What is different for one machine.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct MachineSection {
            #[doc = $called_help]
            pub $called: $text,
            $(#[doc = $help]
            pub $name: $many<$type>,)*
        }

        impl Group {
            /// The keys of `[groups.NAME]`.
            pub fn keys() -> Vec<Key> {
                let own = Key {
                    name: stringify!($members), allowed: <$list>::ALLOWED, default: None, help: $members_help
                };
                [vec![own], shared_keys()].concat()
            }
        }

        impl MachineSection {
            /// The keys of `[machines."MAC"]`.
            pub fn keys() -> Vec<Key> {
                let own = Key { name: stringify!($called), allowed: <$text>::ALLOWED, default: None, help: $called_help };
                [vec![own], shared_keys()].concat()
            }

            /// What the machine's section says, and where that says nothing, its group's.
            pub fn over(self, group: Group) -> MachineSection {
                MachineSection { $called: self.$called, $($name: self.$name.over(group.$name),)* }
            }
        }

        fn shared_keys() -> Vec<Key> {
            vec![$(Key { name: stringify!($name), allowed: <$many<$type>>::ALLOWED, default: None, help: $help },)*]
        }
    };
}

sections! {
    of a group: machines: Vec<MacAddr>,
        "MAC addresses of the group's machines; a machine is in one group at most";
    of a machine: name: Option<String>,
        "Name that `ezio status` shows";
    never: Option<bool>,
        "Never imaged, whatever is armed; `false` for one machine exempts it from its group's `true`";
    image: Option<String>,
        "Image instead of the one that is armed for every machine";
    target: Option<TargetRule>,
        "As above, for this group or machine";
    after: Option<After>,
        "As above, for this group or machine";
    linger: Option<u32>,
        "As above, for this group or machine";
    kernel_args: Option<String>,
        "As above, for this group or machine";
}

/// What `--help` says of a key.
fn help_of(name: &str) -> String {
    let key = Settings::keys().into_iter().find(|key| key.name == name).expect("a key of the table");
    match key.default {
        Some(default) => format!("{} [default: {default}]", key.help),
        None => key.help.to_owned(),
    }
}

/// The keys as tables, for docs/config.md.
pub fn document() -> String {
    let mut text = String::from("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in Settings::keys() {
        let default = key.default.map(|default| format!("`{default}`")).unwrap_or_default();
        text += &format!("| `{}` | {} | {default} | {} |\n", key.name, key.allowed, key.help);
    }
    for (section, keys) in [("[groups.NAME]", Group::keys()), ("[machines.\"MAC\"]", MachineSection::keys())] {
        text += &format!("\n| key of `{section}` | value | meaning |\n|---|---|---|\n");
        for key in keys {
            text += &format!("| `{}` | {} | {} |\n", key.name, key.allowed, key.help);
        }
    }
    text
}

//! The one table of the keys of an order. A key that is added here is read, written, kept in orders, and documented.

use layout::parttable::adapt::Grow;

use crate::target::TargetRule;
use crate::value::{After, Value, ValueError};

/// Seconds without an upload after which a finished machine stops seeding, unless an order says otherwise.
const LINGER_S: u32 = 15;

/// A key of `ezio.conf`, for people and documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// What EZIO called it in 2017, if otherwise.
    pub old: Option<&'static str>,
    /// What it says.
    pub help: &'static str,
    /// What holds if it is not there, in words.
    pub default: &'static str,
    /// A value.
    pub example: &'static str,
}

macro_rules! options {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr,
        $name:literal $(or $old:literal)?, $help:literal, [$shown:literal], $example:literal;)*) => {
        /// How a machine does what it is to do; every field has a default.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Options {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl Default for Options {
            fn default() -> Options {
                Options { $($field: $default,)* }
            }
        }

        /// What is to be different from what holds otherwise.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Overrides {
            $($(#[$doc])* pub $field: Option<$type>,)*
        }

        impl Options {
            /// Everything as `ezio.conf` says it: key and value, in the order of the table.
            pub fn lines(&self) -> Vec<(&'static str, String)> {
                vec![$(($name, self.$field.write()),)*]
            }
        }

        impl Overrides {
            /// Sets what a key of `ezio.conf` says; `false` for a key that is none of an option.
            ///
            /// # Errors
            /// If the key cannot have that value.
            pub fn set(&mut self, key: &str, value: &str) -> Result<bool, ValueError> {
                $(if key.eq_ignore_ascii_case($name) $(|| key.eq_ignore_ascii_case($old))? {
                    self.$field = Some(Value::read(key, value)?);
                    return Ok(true);
                })*
                Ok(false)
            }

            /// What is set, as `ezio.conf` says it.
            pub fn lines(&self) -> Vec<(&'static str, String)> {
                let mut lines = Vec::new();
                $(if let Some(value) = &self.$field {
                    lines.push(($name, value.write()));
                })*
                lines
            }

            /// Lays it over what holds otherwise.
            pub fn apply(&self, options: &mut Options) {
                $(if let Some(value) = &self.$field {
                    options.$field = value.clone();
                })*
            }
        }

        /// Every key of `ezio.conf`.
        pub const KEYS: &[Key] = &[
            Key { name: "FORMAT", old: None, help: "version of this text; machines refuse a newer one than they know", default: "1", example: "1" },
            Key { name: "TORRENT", old: None, help: "the torrent's path on the TFTP server", default: "", example: "torrents/golden.torrent" },
            Key { name: "IMAGE", old: None, help: "the name that people see", default: "the torrent's name", example: "golden" },
            Key { name: "TRACKER", old: None, help: "URLs with commas between", default: "the torrent's", example: "http://10.0.0.1/announce" },
            Key { name: "REPORT", old: None, help: "URL that progress is reported to", default: "nowhere", example: "http://10.0.0.1/report" },
            Key { name: "BOOT", old: None, help: "URL of the boot files, by which a dry run measures the network", default: "not measured", example: "http://10.0.0.1/boot" },
            Key { name: "DEPLOYMENT", old: None, help: "given back in every report; a finished disk carries it in its stamp", default: "", example: "7" },
            Key { name: "TOKEN", old: None, help: "hex digits, given back in every report and in the last question before the first write", default: "", example: "5eed" },
            Key { name: "SEALED_TOKEN", old: None, help: "the same, sealed to the key in the name that the machine asked for; docs/trust.md says how", default: "", example: "5eed" },
            $(Key { name: $name, old: options!(@old $($old)?), help: $help, default: $shown, example: $example },)*
        ];
    };
    (@old) => { None };
    (@old $old:literal) => { Some($old) };
}

options! {
    /// Which disk is written.
    target: TargetRule = TargetRule::default(),
        "TARGET" or "DISK", "which disk is written", ["auto"], "bus=nvme,min=200G";
    /// What happens once the disk is proven.
    after: After = After::Reboot,
        "AFTER", "reboot, poweroff or halt, once the disk is proven", ["reboot"], "poweroff";
    /// Seconds without an upload after which a finished machine stops seeding.
    linger: u32 = LINGER_S,
        "LINGER", "seconds without an upload after which a finished machine stops seeding", ["15"], "15";
    /// Read everything back.
    verify: bool = true,
        "VERIFY", "read everything back", ["yes"], "yes";
    /// Look at what the disk holds already, and fetch only the rest.
    keep: bool = true,
        "KEEP", "look at what the disk holds, and fetch only the rest", ["yes"], "yes";
    /// Say to a flash disk which space the image does not use.
    discard: bool = true,
        "DISCARD", "report unused space to flash disks", ["yes"], "yes";
    /// The partition that uses the space of a larger disk.
    grow: Grow = Grow::No,
        "GROW", "the partition that uses the space of a larger disk: no, last, or a number", ["no"], "last";
    /// Give the disk an identity different from that of all others.
    new_ids: bool = false,
        "NEW_IDS", "give the disk a new identity", ["no"], "no";
    /// Ask the server once more, directly before the first write.
    confirm: bool = false,
        "CONFIRM", "ask the server once more, directly before the first write", ["no"], "no";
    /// Say what would be done, and write nothing.
    dry_run: bool = false,
        "DRY_RUN", "say what would be done, and write nothing", ["no"], "no";
}

/// An `ezio.conf` with every key, each explained in the line above it.
pub fn example() -> String {
    let mut text = String::new();
    for key in KEYS {
        let default = if key.default.is_empty() { String::new() } else { format!(" [{}]", key.default) };
        let old = key.old.map(|old| format!("; {old} means the same")).unwrap_or_default();
        text += &format!("# {}{default}{old}\n{}={}\n", key.help, key.name, key.example);
    }
    text
}

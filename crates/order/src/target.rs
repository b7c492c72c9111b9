//! Which disk an order means: the rule of `--target`, `target` in the config, and `TARGET` in `ezio.conf`.
//!
//! The same parser runs where a rule is written and where it is obeyed, so a mistake shows at the keyboard. What a term
//! says of a disk is for `init` to compare. Pure.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::nearest::nearest;

/// Keys of terms.
const KEYS: [&str; 9] = ["by-id", "by-path", "serial", "wwn", "model", "bus", "min", "max", "rotational"];

/// Which disk may be written: every term has to hold, and exactly one disk has to be left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetRule {
    /// No terms means `auto`.
    terms: Vec<Term>,
    /// As it was written; empty for `auto`.
    text: String,
}

/// What has to hold of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// Its kernel name, or a partition's.
    Path(PathBuf),
    /// A name that udev gives it below `/dev/disk/by-id`.
    ById(String),
    /// The slot it is in, as below `/dev/disk/by-path`.
    ByPath(String),
    /// Its serial number.
    Serial(String),
    /// Its world-wide name.
    Wwn(String),
    /// A part of its model name.
    Model(String),
    /// What it is attached to.
    Bus(Bus),
    /// At least so many bytes.
    MinLen(u64),
    /// At most so many bytes.
    MaxLen(u64),
    /// With platters or without.
    Rotational(bool),
}

/// What a disk is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk.
    Virtio,
    /// NVMe.
    Nvme,
    /// ATA and SATA.
    Ata,
    /// SCSI and SAS.
    Scsi,
    /// USB.
    Usb,
    /// SD cards and eMMC.
    Mmc,
}

/// Every bus by the names that people use for it; the first of each is the one that is written.
pub const BUSES: [(&str, Bus); 8] = [
    ("virtio", Bus::Virtio),
    ("nvme", Bus::Nvme),
    ("ata", Bus::Ata),
    ("sata", Bus::Ata),
    ("scsi", Bus::Scsi),
    ("sas", Bus::Scsi),
    ("usb", Bus::Usb),
    ("mmc", Bus::Mmc),
];

impl Bus {
    /// Its name, as the inventory of disks has it.
    pub fn as_str(self) -> &'static str {
        BUSES.iter().find(|(_, bus)| *bus == self).map_or("", |(name, _)| name)
    }
}

/// A rule that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{term:?} does not say which disk{hint}: use auto, /dev/NAME, by-id=NAME, by-path=NAME, serial=…, wwn=…, model=…, \
     bus=virtio|nvme|ata|scsi|usb|mmc, min=SIZE, max=SIZE (such as 500G or 465GiB) or rotational=yes|no, several with a comma between"
)]
pub struct BadTarget {
    term: String,
    hint: String,
}

impl BadTarget {
    fn new(term: &str) -> BadTarget {
        let (key, value) = term.split_once('=').unwrap_or((term, ""));
        let (key, value) = (key.trim(), value.trim());
        let near = match key {
            "bus" => nearest(value, BUSES.map(|(name, _)| name)).map(|bus| format!("bus={bus}")),
            _ => nearest(key, KEYS).filter(|near| *near != key).map(|near| format!("{near}=")),
        };
        let hint = near.map(|near| format!(" (did you mean {near}?)"));
        BadTarget { term: term.to_owned(), hint: hint.unwrap_or_default() }
    }
}

impl TryFrom<String> for TargetRule {
    type Error = BadTarget;

    fn try_from(text: String) -> Result<TargetRule, BadTarget> {
        text.parse()
    }
}

impl From<TargetRule> for String {
    fn from(rule: TargetRule) -> String {
        rule.to_string()
    }
}

impl FromStr for TargetRule {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<TargetRule, BadTarget> {
        if text.contains(char::is_control) {
            return Err(BadTarget::new(text));
        }
        let terms = text.split(',').map(str::trim).filter(|term| !term.is_empty() && *term != "auto");
        let terms = terms.map(parse_term).collect::<Result<Vec<_>, _>>()?;
        let text = if terms.is_empty() { "" } else { text.trim() };
        Ok(TargetRule { terms, text: text.to_owned() })
    }
}

impl TargetRule {
    /// What has to hold; nothing for `auto`.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Whether it names a disk or partition, not only a kind of disks.
    pub fn is_name(&self) -> bool {
        self.terms.iter().any(Term::is_name)
    }
}

impl fmt::Display for TargetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() { "auto" } else { &self.text })
    }
}

impl Term {
    /// Whether it names a disk, not a kind of disks.
    pub fn is_name(&self) -> bool {
        matches!(self, Term::Serial(_) | Term::Wwn(_) | Term::ById(_)) || self.is_way()
    }

    /// Whether it names one of several ways to a disk.
    pub fn is_way(&self) -> bool {
        matches!(self, Term::Path(_) | Term::ByPath(_))
    }
}

impl FromStr for Term {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Term, BadTarget> {
        parse_term(text)
    }
}

fn parse_term(text: &str) -> Result<Term, BadTarget> {
    let bad = || BadTarget::new(text);
    if let Some(name) = text.strip_prefix("/dev/disk/") {
        // File systems and partitions have names there as well, which say nothing about which disk may lose them.
        return match name.split_once('/') {
            Some(("by-id", name)) if !name.is_empty() => Ok(Term::ById(name.to_owned())),
            Some(("by-path", name)) if !name.is_empty() => Ok(Term::ByPath(name.to_owned())),
            _ => Err(bad()),
        };
    }
    if text.starts_with('/') {
        return Ok(Term::Path(PathBuf::from(text)));
    }
    let (key, value) = text.split_once('=').map(|(key, value)| (key.trim(), value.trim())).ok_or_else(bad)?;
    if value.is_empty() {
        return Err(bad());
    }
    Ok(match key {
        "by-id" => Term::ById(value.to_owned()),
        "by-path" => Term::ByPath(value.to_owned()),
        "serial" => Term::Serial(value.to_owned()),
        "wwn" => Term::Wwn(value.to_owned()),
        "model" => Term::Model(value.to_owned()),
        "bus" => Term::Bus(parse_bus(value).ok_or_else(bad)?),
        "min" => Term::MinLen(parse_size(value).ok_or_else(bad)?),
        "max" => Term::MaxLen(parse_size(value).ok_or_else(bad)?),
        "rotational" => match value {
            "yes" | "1" => Term::Rotational(true),
            "no" | "0" => Term::Rotational(false),
            _ => return Err(bad()),
        },
        _ => return Err(bad()),
    })
}

fn parse_bus(text: &str) -> Option<Bus> {
    BUSES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, bus)| *bus)
}

/// `500G` as printed on the drive, or `465GiB` as partition tools and our screens show it.
fn parse_size(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let with_unit = |(name, unit): &(&str, u64)| Some((text.strip_suffix(name)?, *unit));
    let (number, unit) = UNITS.iter().find_map(with_unit).unwrap_or((text, 1));
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_label_or_of_partition_tools() {
        for (text, bytes) in [("500", 500), ("500G", 500_000_000_000), ("465GiB", 465 << 30), ("2TiB", 2 << 40)] {
            let rule: TargetRule = format!("min={text}").parse().expect(text);
            assert_eq!(rule.terms(), [Term::MinLen(bytes)]);
        }
        assert!("min=5GB".parse::<TargetRule>().is_err());
    }

    #[test]
    fn bad_rules_name_the_term() {
        let bad = [
            "size",
            "serial=",
            "serial= ",
            "serail=X",
            "colour=red",
            "min=lots",
            "min=500X",
            "auto,foo",
            "bus=scuzzy",
            "bus=nvmee",
            "rotational=maybe",
            "/dev/disk/by-uuid/1234-ABCD",
            "/dev/disk/by-id/",
        ];
        for bad in bad {
            let error = bad.parse::<TargetRule>().expect_err(bad).to_string();
            let term = bad.trim_start_matches("auto,").trim();
            assert!(error.starts_with(&format!("{term:?} does not say which disk")), "{error}");
            assert!(error.contains(": use auto, /dev/NAME"), "{error}");
        }
        for auto in ["", "auto", " auto ,"] {
            assert_eq!(auto.parse(), Ok(TargetRule::default()), "{auto:?}");
        }
        assert_eq!(TargetRule::default().to_string(), "auto");
        assert_eq!(parse_size("500G"), Some(500_000_000_000));
        assert_eq!(parse_size("18446744073709551615T"), None);
    }

    #[test]
    fn a_slip_is_answered_with_what_was_meant() {
        for (rule, meant) in [
            ("serail=X", "(did you mean serial=?)"),
            ("bus=nvmee", "(did you mean bus=nvme?)"),
            ("rotationl=no", "(did you mean rotational=?)"),
            ("auto\nDRY_RUN=no", ""),
        ] {
            let error = rule.parse::<TargetRule>().expect_err(rule).to_string();
            assert!(error.contains(meant), "{error}");
        }
        let error = "colour=red".parse::<TargetRule>().expect_err("bad").to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn kinds_of_disks_are_no_names() {
        let is_name = |rule: &str| rule.parse::<TargetRule>().expect(rule).is_name();
        for kind in ["auto", "bus=nvme", "min=1G,max=2T", "model=Fast", "rotational=no"] {
            assert!(!is_name(kind), "{kind}");
        }
        for name in ["/dev/sda2", "serial=X", "bus=nvme,wwn=0x5", "by-id=ata-X", "/dev/disk/by-path/pci-0"] {
            assert!(is_name(name), "{name}");
        }
    }
}

//! Which disk an order means: the rule of `--target`, `target` in the config, and `TARGET` in `ezio.conf`.
//!
//! The same parser runs where a rule is written and where it is obeyed, so a mistake in one is told at the keyboard. What
//! a term says of a disk is for `init` to compare. Pure.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Which disk may be written: every term has to hold, and exactly one disk has to be left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// The bus, as the inventory of disks calls it.
    Bus(&'static str),
    /// At least so many bytes.
    MinLen(u64),
    /// At most so many bytes.
    MaxLen(u64),
    /// With platters or without.
    Rotational(bool),
}

/// A rule that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{term:?} does not say which disk: use auto, /dev/NAME, by-id=NAME, by-path=NAME, serial=…, wwn=…, model=…, \
     bus=virtio|nvme|ata|scsi|usb|mmc, min=SIZE, max=SIZE (such as 500G) or rotational=yes|no, several with a comma between"
)]
pub struct BadTarget {
    term: String,
}

impl FromStr for TargetRule {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<TargetRule, BadTarget> {
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
    let bad = || BadTarget { term: text.to_owned() };
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

fn parse_bus(text: &str) -> Option<&'static str> {
    Some(match text.to_ascii_lowercase().as_str() {
        "virtio" => "virtio",
        "nvme" => "nvme",
        "ata" | "sata" => "ata",
        "scsi" | "sas" => "scsi",
        "usb" => "usb",
        "mmc" => "mmc",
        _ => return None,
    })
}

/// `500G` and the like: decimal units, as printed on the drive.
fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix(['k', 'M', 'G', 'T']) {
        Some(number) => (number, text.chars().last()?),
        None => (text, ' '),
    };
    let unit = match unit {
        'k' => 1_000,
        'M' => 1_000_000,
        'G' => 1_000_000_000,
        'T' => 1_000_000_000_000,
        _ => 1,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(error.starts_with(&format!("{term:?} does not say which disk: use auto, /dev/NAME")), "{error}");
        }
        for auto in ["", "auto", " auto ,"] {
            assert_eq!(auto.parse(), Ok(TargetRule::default()), "{auto:?}");
        }
        assert_eq!(TargetRule::default().to_string(), "auto");
        assert_eq!(parse_size("500G"), Some(500_000_000_000));
        assert_eq!(parse_size("18446744073709551615T"), None);
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

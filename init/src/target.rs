//! Choosing the disk, or refusing with a reason for every disk there is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use blockdev::inventory::{Disk, size_text};
use layout::Layout;

/// Which disk may be written: every term has to hold, and exactly one disk has to be left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetRule {
    /// No terms means `auto`.
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Path(PathBuf),
    Serial(String),
    Wwn(String),
    Model(String),
    Bus(String),
    MinLen(u64),
    MaxLen(u64),
}

/// A rule that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "TARGET term {term:?} is not known: use auto, /dev/NAME, serial=…, wwn=…, model=…, bus=…, min=SIZE or max=SIZE, \
     several with a comma between"
)]
pub struct BadTarget {
    term: String,
}

impl FromStr for TargetRule {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<TargetRule, BadTarget> {
        let terms = text.split(',').map(str::trim).filter(|term| !term.is_empty() && *term != "auto");
        Ok(TargetRule { terms: terms.map(parse_term).collect::<Result<_, _>>()? })
    }
}

fn parse_term(text: &str) -> Result<Term, BadTarget> {
    let bad = || BadTarget { term: text.to_owned() };
    if text.starts_with('/') {
        return Ok(Term::Path(PathBuf::from(text)));
    }
    let (key, value) = text.split_once('=').filter(|(_, value)| !value.is_empty()).ok_or_else(bad)?;
    Ok(match key {
        "serial" => Term::Serial(value.to_owned()),
        "wwn" => Term::Wwn(value.to_owned()),
        "model" => Term::Model(value.to_owned()),
        "bus" => Term::Bus(value.to_owned()),
        "min" => Term::MinLen(parse_size(value).ok_or_else(bad)?),
        "max" => Term::MaxLen(parse_size(value).ok_or_else(bad)?),
        _ => return Err(bad()),
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

impl Term {
    /// Why the disk is not meant, if it is not.
    fn rejects(&self, disk: &Disk) -> Option<String> {
        let differs = |what: &str, is: &str, wanted: &str| {
            let is = if is.is_empty() { "unknown" } else { is };
            (is != wanted).then(|| format!("its {what} is {is}, not {wanted}"))
        };
        match self {
            Term::Path(path) => (disk.path != *path).then(|| format!("it is not {}", path.display())),
            Term::Serial(wanted) => differs("serial number", &disk.serial, wanted),
            Term::Wwn(wanted) => differs("WWN", &disk.wwn, wanted),
            Term::Bus(wanted) => differs("bus", &disk.bus, wanted),
            Term::Model(wanted) => {
                let is_it = disk.model.to_lowercase().contains(&wanted.to_lowercase());
                (!is_it).then(|| format!("its model is {:?}, which does not contain {wanted:?}", disk.model))
            }
            Term::MinLen(min) => (disk.len < *min).then(|| format!("it is smaller than {}", size_text(*min))),
            Term::MaxLen(max) => (disk.len > *max).then(|| format!("it is larger than {}", size_text(*max))),
        }
    }
}

/// Why no disk was chosen: every disk with its reason.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    matching: usize,
    reasons: Vec<(String, String)>,
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reasons.is_empty() {
            return f.write_str(
                "this machine has no disk that the RAM system can see: check cables and firmware settings (RAID mode hides \
                 disks), or use the generic boot image, which has more drivers",
            );
        }
        match self.matching {
            0 => f.write_str("no disk may be written, nothing was touched:")?,
            n => write!(
                f,
                "{n} disks match and nothing says which, nothing was touched; set TARGET (serial=… is safest):"
            )?,
        }
        for (index, (disk, reason)) in self.reasons.iter().enumerate() {
            write!(f, "{} {disk}: {reason}", if index == 0 { "" } else { ";" })?;
        }
        Ok(())
    }
}

/// Chooses the one disk that the rule means and the image fits.
///
/// Disks that are read-only, held by something, too small or of the wrong sector size are never chosen; USB and removable
/// ones only when the rule names a path, serial number or WWN.
///
/// # Errors
/// [`Refusal`] unless exactly one disk is left.
pub fn choose<'a>(rule: &TargetRule, disks: &'a [Disk], layout: &Layout) -> Result<&'a Disk, Refusal> {
    let verdicts: Vec<_> = disks.iter().map(|disk| (disk, reason_against(rule, disk, layout))).collect();
    let chosen: Vec<_> = verdicts.iter().filter(|(_, reason)| reason.is_none()).map(|(disk, _)| *disk).collect();
    if let [only] = chosen.as_slice() {
        return Ok(only);
    }
    let reasons = verdicts
        .iter()
        .map(|(disk, reason)| (disk.describe(), reason.clone().unwrap_or_else(|| "it matches".to_owned())));
    Err(Refusal { matching: chosen.len(), reasons: reasons.collect() })
}

fn reason_against(rule: &TargetRule, disk: &Disk, layout: &Layout) -> Option<String> {
    let is_named = rule.terms.iter().any(|term| matches!(term, Term::Path(_) | Term::Serial(_) | Term::Wwn(_)));
    if let Some(reason) = rule.terms.iter().find_map(|term| term.rejects(disk)) {
        return Some(reason);
    }
    if disk.is_read_only {
        return Some("it is read-only".to_owned());
    }
    if let Some(usage) = disk.uses.first() {
        return Some(format!("it is in use: {usage}"));
    }
    if !is_named && (disk.bus == "usb" || disk.is_removable) {
        return Some("it is removable, and only taken if TARGET names it".to_owned());
    }
    layout.check_device(disk.len, Some(disk.sector_size)).err().map(|cause| cause.to_string())
}

impl TargetRule {
    /// The partition that the rule names, as EZIO's `disk=/dev/sda1` did: a path that is no whole disk.
    pub fn partition(&self, disks: &[Disk], sysfs: &Path) -> Option<PathBuf> {
        let [Term::Path(path)] = self.terms.as_slice() else { return None };
        let is_disk = disks.iter().any(|disk| disk.path == *path);
        let name = path.strip_prefix("/dev").ok()?;
        (!is_disk && sysfs.join("class/block").join(name).join("partition").exists()).then(|| path.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::{DiskOffset, Extent};

    fn disk(name: &str) -> Disk {
        Disk {
            name: name.to_owned(),
            path: Path::new("/dev").join(name),
            len: 10_000_000_000,
            sector_size: 512,
            bus: "ata".to_owned(),
            model: "Fast SSD".to_owned(),
            serial: format!("S-{name}"),
            ..Disk::default()
        }
    }

    fn image(needed: u64) -> Layout {
        Layout::of_extents(vec![Extent { disk: DiskOffset(0), len: needed }]).expect("one extent")
    }

    fn chosen(rule: &str, disks: &[Disk]) -> Result<String, String> {
        let rule: TargetRule = rule.parse().expect("a good rule");
        choose(&rule, disks, &image(5_000_000_000)).map(|disk| disk.name.clone()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn auto_takes_the_only_fixed_disk_that_fits() {
        let usb = Disk { bus: "usb".to_owned(), ..disk("sda") };
        let small = Disk { len: 4_000_000_000, ..disk("sdc") };
        assert_eq!(chosen("auto", &[usb, disk("sdb"), small]), Ok("sdb".to_owned()));
    }

    #[test]
    fn two_equal_disks_are_refused_and_named() {
        let refusal = chosen("auto", &[disk("sda"), disk("sdb")]).expect_err("two");
        assert!(refusal.starts_with("2 disks match"), "{refusal}");
        for word in ["/dev/sda", "S-sda", "/dev/sdb", "S-sdb", "nothing was touched", "set TARGET"] {
            assert!(refusal.contains(word), "{word}: {refusal}");
        }
        assert_eq!(chosen("serial=S-sdb", &[disk("sda"), disk("sdb")]), Ok("sdb".to_owned()));
        assert_eq!(chosen("bus=ata,/dev/sda", &[disk("sda"), disk("sdb")]), Ok("sda".to_owned()));
    }

    #[test]
    fn each_reason_is_told() {
        let refusal = |rule: &str, disk: Disk| chosen(rule, &[disk]).expect_err("refused");
        assert!(refusal("auto", Disk { is_read_only: true, ..disk("sda") }).contains("it is read-only"));
        assert!(refusal("auto", Disk { is_removable: true, ..disk("sda") }).contains("it is removable"));
        assert!(refusal("auto", Disk { uses: vec!["dm-0 holds sda1".into()], ..disk("sda") }).contains("in use: dm-0 holds sda1"));
        let small = refusal("auto", Disk { len: 4_999_999_999, ..disk("sda") });
        assert!(small.contains("needs a disk of at least 5000000000 bytes, this one has 4999999999"), "{small}");
        assert!(refusal("serial=X", disk("sda")).contains("its serial number is S-sda, not X"));
        assert!(refusal("wwn=X", disk("sda")).contains("its WWN is unknown, not X"));
        assert!(refusal("min=20G", disk("sda")).contains("it is smaller than 20.0 GB"));
        assert!(refusal("max=1T,model=slow", disk("sda")).contains("does not contain \"slow\""));
        assert!(chosen("auto", &[]).expect_err("none").contains("no disk that the RAM system can see"));
    }

    #[test]
    fn usb_disks_are_taken_when_named() {
        let usb = || Disk { bus: "usb".to_owned(), ..disk("sda") };
        assert!(chosen("bus=usb", &[usb()]).is_err());
        assert_eq!(chosen("serial=S-sda", &[usb()]), Ok("sda".to_owned()));
    }

    #[test]
    fn bad_rules_name_the_term() {
        for bad in ["size", "serial=", "colour=red", "min=lots", "auto,foo"] {
            let error = bad.parse::<TargetRule>().expect_err(bad).to_string();
            assert!(error.contains("use auto, /dev/NAME"), "{error}");
        }
        assert_eq!("".parse::<TargetRule>(), Ok(TargetRule::default()));
        assert_eq!(parse_size("500G"), Some(500_000_000_000));
        assert_eq!(parse_size("18446744073709551615T"), None);
    }
}

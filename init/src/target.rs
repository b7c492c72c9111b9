//! Choosing the disk, or refusing with a reason for every disk there is.

use std::fmt;
use std::path::{Path, PathBuf};

use blockdev::inventory::{Disk, is_same_wwn};
use layout::Layout;
use order::{Bus, TargetRule, Term};

/// Why a term does not mean the disk, if it does not.
fn rejects(term: &Term, disk: &Disk) -> Option<String> {
    let unless = |holds: bool, reason: String| if holds { None } else { Some(reason) };
    let known = |is: &str| if is.is_empty() { "unknown".to_owned() } else { is.to_owned() };
    match term {
        Term::Path(path) => unless(disk.path == *path, format!("it is not {}", path.display())),
        Term::ById(wanted) => {
            let is_it = disk.by_id.iter().any(|name| is_same_name(name, wanted));
            unless(is_it, format!("it is not by-id {wanted}"))
        }
        Term::ByPath(wanted) => {
            let at = known(disk.by_path.first().map_or("", String::as_str));
            unless(disk.by_path.contains(wanted), format!("its path is {at}, not {wanted}"))
        }
        // Firmware and labels differ in case; two serial numbers that differ in nothing else are refused as two.
        Term::Serial(wanted) => {
            let is_it = disk.serial.trim().eq_ignore_ascii_case(wanted.trim());
            unless(is_it, format!("its serial number is {}, not {wanted}", known(&disk.serial)))
        }
        Term::Wwn(wanted) => {
            let is_it = !disk.wwn.is_empty() && is_same_wwn(&disk.wwn, wanted);
            unless(is_it, format!("its WWN is {}, not {wanted}", known(&disk.wwn)))
        }
        Term::Bus(wanted) => {
            let bus = disk.bus.map_or("", Bus::as_str);
            unless(disk.bus == Some(*wanted), format!("its bus is {}, not {}", known(bus), wanted.as_str()))
        }
        Term::Model(wanted) => {
            let is_it = disk.model.to_lowercase().contains(&wanted.to_lowercase());
            unless(is_it, format!("its model is {:?}, which does not contain {wanted:?}", disk.model))
        }
        Term::MinLen(min) => unless(disk.len >= *min, format!("it is smaller than {}", units::size(*min))),
        Term::MaxLen(max) => unless(disk.len <= *max, format!("it is larger than {}", units::size(*max))),
        Term::Rotational(true) => unless(disk.is_rotational, "it is not rotational".to_owned()),
        Term::Rotational(false) => unless(!disk.is_rotational, "it is rotational".to_owned()),
    }
}

/// Whether two names below `by-id` are the same. How many underscores a run of blanks becomes depends on the bus and on
/// the version of udev.
fn is_same_name(a: &str, b: &str) -> bool {
    let words = |name: &str| name.split('_').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    words(a) == words(b)
}

/// Why no disk was chosen: every disk with its reason, one a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    rule: String,
    /// Every disk, so that what is on it can be filled in before it is shown.
    pub disks: Vec<Disk>,
    /// For each disk why it was passed over; `None` if it matches.
    reasons: Vec<Option<String>>,
}

impl Refusal {
    /// A term that names one of the matching disks and none of the others.
    fn example(&self) -> Option<String> {
        let matching = || self.disks.iter().zip(&self.reasons).filter(|(_, reason)| reason.is_none());
        let is_unique = |term: &String| {
            let Ok(term) = term.parse() else { return false };
            self.disks.iter().filter(|disk| rejects(&term, disk).is_none()).count() == 1
        };
        // A comma would end the term.
        let usable =
            |(key, value): (&str, &str)| (!value.is_empty() && !value.contains(',')).then(|| format!("{key}={value}"));
        let terms_of = |disk: &Disk| {
            let by_path = disk.by_path.first().map_or("", String::as_str);
            [("serial", disk.serial.as_str()), ("wwn", disk.wwn.as_str()), ("by-path", by_path)]
                .into_iter()
                .filter_map(usable)
                .collect::<Vec<_>>()
        };
        matching().flat_map(|(disk, _)| terms_of(disk)).find(is_unique)
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.disks.is_empty() {
            return f.write_str(
                "this machine has no disk that the RAM system can see: check cables and firmware settings (RAID mode hides \
                 disks), or use the generic boot image, which has more drivers",
            );
        }
        match (self.reasons.iter().filter(|reason| reason.is_none()).count(), self.example()) {
            (0, _) => write!(
                f,
                "no disk matches TARGET={}, nothing was touched; change TARGET, or attach a disk that fits:",
                self.rule
            )?,
            (n, Some(example)) => write!(
                f,
                "{n} disks match TARGET={}, nothing was touched; set TARGET, for example TARGET={example}:",
                self.rule
            )?,
            (n, None) => write!(
                f,
                "{n} disks match TARGET={}, nothing was touched; set TARGET to say which, or unplug the others:",
                self.rule
            )?,
        }
        for (disk, reason) in self.disks.iter().zip(&self.reasons) {
            write!(f, "\n{}: {}", disk.describe_fully(), reason.as_deref().unwrap_or("it matches"))?;
        }
        Ok(())
    }
}

/// Chooses the one disk that the rule means and the image fits.
///
/// An image that is not known to be of a whole disk goes only where the rule names a disk. Disks that are read-only, in use, too small or of the wrong sector size are never chosen; USB and removable ones only
/// when the rule names the disk; one that is seen twice only when the rule names the way to it.
///
/// # Errors
/// [`Refusal`] unless exactly one disk is left.
pub fn choose<'a>(rule: &TargetRule, disks: &'a [Disk], layout: &Layout) -> Result<&'a Disk, Refusal> {
    let reasons: Vec<_> = disks.iter().map(|disk| reason_against(rule, disk, disks, layout)).collect();
    let mut chosen = disks.iter().zip(&reasons).filter(|(_, reason)| reason.is_none());
    match (chosen.next(), chosen.next()) {
        (Some((only, _)), None) => Ok(only),
        _ => Err(Refusal { rule: rule.to_string(), disks: disks.to_vec(), reasons }),
    }
}

fn reason_against(rule: &TargetRule, disk: &Disk, all: &[Disk], layout: &Layout) -> Option<String> {
    if let Some(reason) = rule.terms().iter().find_map(|term| rejects(term, disk)) {
        return Some(reason);
    }
    if disk.is_read_only {
        return Some("it is read-only".to_owned());
    }
    if !disk.uses.is_empty() {
        return Some(format!("it is in use: {}", disk.uses.join(", ")));
    }
    if let Err(cause) = layout.check_device(disk.len, Some(disk.sector_size)) {
        return Some(cause.to_string());
    }
    if !rule.is_name() && !layout.is_whole_disk() {
        return Some(
            "the image is one partition (or a file system without a partition table), only taken if TARGET names where it \
             goes, such as TARGET=/dev/sda2"
                .to_owned(),
        );
    }
    if !rule.is_name() && (disk.bus == Some(Bus::Usb) || disk.is_removable) {
        let kind = if disk.bus == Some(Bus::Usb) { "a USB disk" } else { "removable" };
        return Some(format!("it is {kind}, only taken if TARGET names it"));
    }
    if !rule.terms().iter().any(Term::is_way)
        && let Some(twin) = all.iter().find(|other| disk.is_twin_of(other))
    {
        let way = disk.by_path.first().map_or_else(|| disk.path.display().to_string(), |way| format!("by-path={way}"));
        return Some(format!(
            "it has the same name or number as {}: one disk seen by two ways, only taken by TARGET={way}",
            twin.path.display()
        ));
    }
    None
}

/// The partition that the rule names, as EZIO's `disk=/dev/sda1` did: a path that is no whole disk.
pub fn partition(rule: &TargetRule, disks: &[Disk], sysfs: &Path) -> Option<PathBuf> {
    let [Term::Path(path)] = rule.terms() else { return None };
    let is_disk = disks.iter().any(|disk| disk.path == *path);
    let name = path.strip_prefix("/dev").ok()?;
    (!is_disk && sysfs.join("class/block").join(name).join("partition").exists()).then(|| path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::{DiskOffset, Extent};

    const NEEDED: u64 = 5_000_000_000;

    fn disk(name: &str) -> Disk {
        Disk {
            name: name.to_owned(),
            path: Path::new("/dev").join(name),
            len: 10_000_000_000,
            sector_size: 512,
            bus: Some(Bus::Ata),
            model: "Fast SSD".to_owned(),
            serial: format!("S-{name}"),
            wwn: format!("naa.5000c500000000{}", name.len() + usize::from(name.as_bytes()[2])),
            by_id: vec![format!("ata-Fast_SSD_S-{name}")],
            by_path: vec![format!("pci-0000:00:1f.2-ata-{name}"), format!("pci-0000:00:1f.2-ata-{name}.0")],
            ..Disk::default()
        }
    }

    /// An image of a disk with 512-byte sectors.
    fn image() -> Layout {
        image_of(NEEDED, "gpt", "")
    }

    fn image_of(disk_size: u64, table: &str, device: &str) -> Layout {
        let torrent = metainfo::NewTorrent {
            name: "image".into(),
            announce: None,
            piece_len: 1 << 18,
            files: vec![metainfo::FileEntry { length: 512, path: vec!["0".repeat(32)] }],
            hashes: vec![[0; 20]],
            facts: Some(metainfo::ImageFacts {
                schema: 1,
                disk_size,
                sector_size: 512,
                table: metainfo::TableKind::try_from(table.to_owned()).expect("a kind of table"),
                device: device.into(),
                ..Default::default()
            }),
            private: true,
        };
        let meta = metainfo::Metainfo::parse(&torrent.to_bytes().expect("good")).expect("good");
        Layout::new(&meta).expect("good")
    }

    fn chosen(rule: &str, disks: &[Disk]) -> Result<String, String> {
        let rule: TargetRule = rule.parse().expect("a good rule");
        choose(&rule, disks, &image()).map(|disk| disk.name.clone()).map_err(|refusal| refusal.to_string())
    }

    /// The refusal's line for a disk.
    fn line<'a>(refusal: &'a str, disk: &str) -> &'a str {
        refusal.lines().find(|line| line.starts_with(&format!("/dev/{disk} "))).expect("every disk has a line")
    }

    #[test]
    fn auto_takes_the_only_fixed_disk_that_fits() {
        // The stick comes first, as the kernel often has it.
        let usb = Disk { bus: Some(Bus::Usb), ..disk("sda") };
        let small = Disk { len: 4_000_000_000, ..disk("sdc") };
        assert_eq!(chosen("auto", &[usb.clone(), disk("sdb"), small]), Ok("sdb".to_owned()));
        let refusal = chosen("auto", &[usb]).expect_err("only a stick");
        assert!(line(&refusal, "sda").contains("it is a USB disk, only taken if TARGET names it"), "{refusal}");
    }

    #[test]
    fn two_equal_disks_are_refused_and_named() {
        let refusal = chosen("auto", &[disk("sda"), disk("sdb")]).expect_err("two");
        let first = refusal.lines().next().expect("not empty");
        assert_eq!(
            first,
            "2 disks match TARGET=auto, nothing was touched; set TARGET, for example TARGET=serial=S-sda:"
        );
        assert_eq!(refusal.lines().count(), 3);
        for name in ["sda", "sdb"] {
            let expected =
                format!("/dev/{name} (9.3 GiB, ata, Fast SSD, serial S-{name}, 512-byte sectors): it matches");
            assert_eq!(line(&refusal, name), expected);
        }
        assert_eq!(chosen("serial=S-sdb", &[disk("sda"), disk("sdb")]), Ok("sdb".to_owned()));
        assert_eq!(chosen("bus=ata,/dev/sda", &[disk("sda"), disk("sdb")]), Ok("sda".to_owned()));
    }

    #[test]
    fn the_example_names_one_matching_disk_and_no_other() {
        let example = |change: fn(Disk) -> Disk| {
            let stick = Disk { bus: Some(Bus::Usb), ..disk("sda") };
            let refusal = chosen("auto", &[stick, change(disk("sdb")), change(disk("sdc"))]).expect_err("two");
            let first = refusal.lines().next().expect("not empty").to_owned();
            first.split_once("set TARGET").expect("what to do").1.to_owned()
        };
        assert_eq!(example(|disk| disk), ", for example TARGET=serial=S-sdb:");
        let no_serial = example(|disk| Disk { serial: String::new(), ..disk });
        assert!(no_serial.starts_with(", for example TARGET=wwn=naa.5000c5"), "{no_serial}");
        let by_path = example(|disk| Disk {
            serial: "0,1".into(),
            wwn: String::new(),
            len: disk.len + u64::from(disk.name == "sdb"),
            ..disk
        });
        assert_eq!(by_path, ", for example TARGET=by-path=pci-0000:00:1f.2-ata-sdb:");
        // Never a kernel name: tomorrow it may be another disk's.
        assert_eq!(
            example(|disk| Disk { serial: String::new(), wwn: String::new(), by_path: Vec::new(), ..disk }),
            " to say which, or unplug the others:"
        );
    }

    #[test]
    fn a_disk_seen_by_two_ways_is_taken_only_by_one_of_them() {
        let pair = || [disk("sda"), Disk { wwn: disk("sda").wwn, serial: "S-SDA".into(), ..disk("sdb") }];
        for rule in ["auto", "serial=S-sda", "bus=ata"] {
            let refusal = chosen(rule, &pair()).expect_err("one disk twice");
            assert!(refusal.starts_with(&format!("no disk matches TARGET={rule}, nothing was touched")), "{refusal}");
            assert!(line(&refusal, "sda").contains("as /dev/sdb: one disk seen by two ways"), "{refusal}");
            assert!(line(&refusal, "sdb").ends_with("only taken by TARGET=by-path=pci-0000:00:1f.2-ata-sdb"));
        }
        assert_eq!(chosen("by-path=pci-0000:00:1f.2-ata-sdb", &pair()), Ok("sdb".to_owned()));
        assert_eq!(chosen("/dev/sda", &pair()), Ok("sda".to_owned()));
        // Another disk beside them is still the only one that fits.
        let [a, b] = pair();
        assert_eq!(chosen("auto", &[a, b, disk("sdc")]), Ok("sdc".to_owned()));
    }

    #[test]
    fn each_reason_is_told() {
        let refusal = |rule: &str, disk: Disk| chosen(rule, &[disk]).expect_err("refused");
        for rule in ["auto", "serial=S-sda", "/dev/sda", "by-path=pci-0000:00:1f.2-ata-sda"] {
            assert!(refusal(rule, Disk { is_read_only: true, ..disk("sda") }).contains("it is read-only"));
            let used = refusal(rule, Disk { uses: vec!["dm-0 holds sda1".into()], ..disk("sda") });
            assert!(used.contains("it is in use: dm-0 holds sda1"), "{used}");
            let small = refusal(rule, Disk { len: NEEDED - 512, ..disk("sda") });
            assert!(small.contains("needs a disk of at least 5000000000 bytes, this one has 4999999488"), "{small}");
        }
        assert!(chosen("auto", &[Disk { len: NEEDED, ..disk("sda") }]).is_ok());
        assert!(refusal("auto", Disk { is_removable: true, ..disk("sda") }).contains("it is removable, only taken if"));
        let wrong = refusal("serial=X", disk("sda"));
        assert!(wrong.starts_with("no disk matches TARGET=serial=X, nothing was touched"), "{wrong}");
        assert!(wrong.contains("its serial number is S-sda, not X"));
        assert!(refusal("wwn=X", Disk { wwn: String::new(), ..disk("sda") }).contains("its WWN is unknown, not X"));
        assert!(refusal("min=20G", disk("sda")).contains("it is smaller than 18.6 GiB"));
        assert!(refusal("max=1T,model=slow", disk("sda")).contains("does not contain \"slow\""));
        assert!(refusal("rotational=yes", disk("sda")).contains("it is not rotational"));
        assert!(refusal("by-id=ata-X", disk("sda")).contains("it is not by-id ata-X"));
        assert!(refusal("by-path=pci-X", disk("sda")).contains("its path is pci-0000:00:1f.2-ata-sda, not pci-X"));
        assert!(chosen("auto", &[]).expect_err("none").contains("no disk that the RAM system can see"));
    }

    #[test]
    fn an_image_of_one_partition_takes_no_disk_that_is_not_named() {
        // As the C++ EZIO made them: nothing tells what they are of.
        let old = Layout::of_extents(vec![Extent { disk: DiskOffset(0), len: NEEDED }]).expect("one extent");
        for image in [old, image_of(NEEDED, "none", "")] {
            for rule in ["auto", "bus=ata", "min=1G", "model=fast", "rotational=no"] {
                let parsed: TargetRule = rule.parse().expect(rule);
                let refusal = choose(&parsed, &[disk("sda")], &image).expect_err(rule).to_string();
                assert!(
                    refusal.starts_with(&format!("no disk matches TARGET={rule}, nothing was touched")),
                    "{refusal}"
                );
                assert!(line(&refusal, "sda").contains("the image is one partition"), "{refusal}");
                assert!(line(&refusal, "sda").ends_with("such as TARGET=/dev/sda2"), "{refusal}");
            }
            for rule in ["/dev/sda", "serial=S-sda", "bus=ata,by-id=ata-Fast_SSD_S-sda"] {
                assert!(choose(&rule.parse().expect(rule), &[disk("sda")], &image).is_ok(), "{rule}");
            }
        }
        let bare_disk = image_of(NEEDED, "none", "disk");
        assert!(choose(&TargetRule::default(), &[disk("sda")], &bare_disk).is_ok(), "known to be of a whole disk");
    }

    #[test]
    fn the_other_sector_size_is_refused_also_by_name() {
        let rule: TargetRule = "serial=S-sda".parse().expect("good");
        let refusal =
            choose(&rule, &[Disk { sector_size: 4096, ..disk("sda") }], &image()).expect_err("4Kn").to_string();
        assert!(refusal.contains("512-byte sectors") && refusal.contains("4096-byte sectors"), "{refusal}");
    }

    #[test]
    fn what_is_on_a_disk_stands_in_its_line() {
        let disks = [disk("sda"), disk("sdb")];
        let mut refusal = choose(&TargetRule::default(), &disks, &image()).expect_err("two");
        refusal.disks[1].contents = "GPT: 1 NTFS".to_owned();
        assert!(line(&refusal.to_string(), "sdb").contains("512-byte sectors; GPT: 1 NTFS): it matches"));
    }

    #[test]
    fn every_term_finds_its_disk() {
        let disks = [
            Disk { is_rotational: true, ..disk("sda") },
            Disk { bus: Some(Bus::Nvme), model: "Disk of Glory".into(), len: 20_000_000_000, ..disk("sdb") },
        ];
        for (rule, name) in [
            ("by-id=ata-Fast_SSD_S-sda", "sda"),
            ("/dev/disk/by-id/ata-Fast__SSD_S-sda", "sda"),
            ("/dev/disk/by-path/pci-0000:00:1f.2-ata-sdb.0", "sdb"),
            ("by-path=pci-0000:00:1f.2-ata-sdb", "sdb"),
            ("serial= s-SDA ", "sda"),
            ("model=glory", "sdb"),
            ("bus=sata", "sda"),
            ("BUS=nvme".to_lowercase().as_str(), "sdb"),
            ("min=15G", "sdb"),
            ("max=15G", "sda"),
            ("rotational=yes", "sda"),
            ("auto,rotational=no,min=1G", "sdb"),
        ] {
            assert_eq!(chosen(rule, &disks), Ok(name.to_owned()), "{rule}");
        }
        let wwn = disks[0].wwn.replace("naa.", "0x").to_uppercase().replace("0X", "0x");
        assert_eq!(chosen(&format!("wwn={wwn}"), &disks), Ok("sda".to_owned()));
    }

    #[test]
    fn usb_disks_are_taken_when_named() {
        let usb = || Disk { bus: Some(Bus::Usb), ..disk("sda") };
        assert!(chosen("bus=usb", &[usb()]).is_err());
        assert_eq!(chosen("serial=S-sda", &[usb()]), Ok("sda".to_owned()));
        assert_eq!(chosen("by-id=ata-Fast_SSD_S-sda", &[usb()]), Ok("sda".to_owned()));
    }
}

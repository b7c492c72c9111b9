//! Model and serial number, and the names that udev makes of them (`60-persistent-storage.rules` and its helpers
//! `ata_id`, `scsi_id` and `usb_id`). The RAM system has no udev, but people copy these names from systems that have
//! it.

use order::Bus;
use std::fs;
use std::path::Path;

use super::sysfs::{Place, bare_wwn, clean, first_of, read};

/// What a device reports about itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity {
    pub(super) model: String,
    pub(super) serial: String,
}

impl Identity {
    pub(super) fn read(place: &Place) -> Identity {
        let dir = &place.dir;
        // The SCSI layer cuts a SATA disk's model to 16 characters.
        let Identity { mut model, mut serial } = ata(dir).unwrap_or_default();
        if model.is_empty() {
            model = first_of(dir, &["device/model", "device/name"]);
        }
        if serial.is_empty() {
            serial = first_of(dir, &["serial", "device/serial"]);
        }
        if serial.is_empty() {
            serial = page_80(dir);
        }
        if serial.is_empty() {
            serial = usb_device(&place.way()).map(|device| read(device, "serial")).unwrap_or_default();
        }
        Identity { model, serial }
    }
}

/// The unit serial number page (SPC-4, 7.8.15): four bytes of header, then text.
fn page_80(dir: &Path) -> String {
    let page = fs::read(dir.join("device/vpd_pg80")).unwrap_or_default();
    clean(&String::from_utf8_lossy(page.get(4..).unwrap_or_default()))
}

/// Model and serial number of a SATA disk: 40 and 20 characters behind "ATA     ", in its T10 designator (SAT-3, 10.4.3),
/// or in the kernel's text of it.
fn ata(dir: &Path) -> Option<Identity> {
    let page = fs::read(dir.join("device/vpd_pg83")).unwrap_or_default();
    let designators = designators(&page);
    let t10 = designators.iter().find(|d| d.kind == Designator::T10 && d.data.starts_with(b"ATA     "));
    if let Some((model, serial)) = t10.and_then(|d| d.data.get(8..)?.split_at_checked(40)) {
        let text = |bytes: &[u8]| clean(&String::from_utf8_lossy(bytes));
        return Some(Identity { model: text(model), serial: text(serial) });
    }
    let wwid = read(dir, "device/wwid");
    let rest = wwid.strip_prefix("t10.ATA")?;
    match rest.split_at_checked(5 + 40) {
        Some((model, serial)) if !serial.trim().is_empty() => {
            Some(Identity { model: clean(model), serial: clean(serial) })
        }
        _ => {
            let serial = rest.split_whitespace().last().unwrap_or_default().to_owned();
            Some(Identity { model: String::new(), serial })
        }
    }
}

/// One name of a logical unit, from the device identification page (SPC-4, 7.8.6.1).
struct Designator<'a> {
    kind: u8,
    is_text: bool,
    data: &'a [u8],
}

impl Designator<'_> {
    const VENDOR: u8 = 0;
    const T10: u8 = 1;
    const NAA: u8 = 3;
}

fn designators(page: &[u8]) -> Vec<Designator<'_>> {
    const ASCII: u8 = 2;
    let mut rest = page.get(4..).unwrap_or_default();
    let mut found = Vec::new();
    while let [code, kind, _, len, data @ ..] = rest {
        let Some((data, next)) = data.split_at_checked(usize::from(*len)) else { break };
        // Other associations name a port or the whole enclosure.
        if kind & 0x30 == 0 {
            found.push(Designator { kind: kind & 0x0f, is_text: code & 0x0f == ASCII, data });
        }
        rest = next;
    }
    found
}

/// Names below `/dev/disk/by-id`.
pub(super) fn by_id(place: &Place, bus: Option<Bus>, identity: &Identity) -> Vec<String> {
    let dir = &place.dir;
    let Identity { model, serial } = identity;
    let has_serial = !serial.is_empty();
    let mut names = Vec::new();
    match bus {
        Some(Bus::Nvme) => {
            let wwid = read(dir, "wwid");
            if has_serial {
                let nsid = first_of(dir, &["nsid"]);
                names.push(format!("nvme-{}_{}", udev(model), udev(serial)));
                let nsid = if nsid.is_empty() { "1" } else { &nsid };
                names.push(format!("nvme-{}_{}_{nsid}", udev(model), udev(serial)));
            }
            if !wwid.is_empty() {
                names.push(format!("nvme-{}", udev(&wwid)));
            }
        }
        Some(Bus::Virtio) if has_serial => names.push(format!("virtio-{}", udev(serial))),
        Some(Bus::Mmc) if has_serial => names.push(format!("mmc-{}_{}", udev(model), udev(serial))),
        Some(Bus::Usb) => names.extend(usb(place)),
        Some(Bus::Ata | Bus::Scsi) => {
            if (bus == Some(Bus::Ata) || read(dir, "device/vendor") == "ATA") && has_serial {
                names.push(format!("ata-{}_{}", udev(model), udev(serial)));
            }
            names.extend(scsi(dir));
        }
        Some(Bus::Virtio | Bus::Mmc) | None => {}
    }
    let wwid = first_of(dir, &["device/wwid"]);
    if let Some(number) = wwid.strip_prefix("naa.")
        && bare_wwn(number).chars().any(|c| c != '0')
    {
        names.push(format!("wwn-0x{number}"));
    }
    names
}

/// As `scsi_id` builds it: the type of the designator as a digit, then the designator; page 80 as a last resort.
/// Returns all of them, because systems differ in which one they use.
fn scsi(dir: &Path) -> Vec<String> {
    let page = fs::read(dir.join("device/vpd_pg83")).unwrap_or_default();
    let maker = format!("{:<8}{:<16}", read(dir, "device/vendor"), read(dir, "device/model"));
    let mut names = Vec::new();
    for Designator { kind, is_text, data } in designators(&page) {
        // Types above NAA name ports and groups.
        if data.is_empty() || kind > Designator::NAA {
            continue;
        }
        let id = match is_text {
            true => String::from_utf8_lossy(data).trim_end_matches('\0').to_owned(),
            false => data.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let maker = if kind == Designator::VENDOR { maker.as_str() } else { "" };
        names.push(format!("scsi-{}", udev(&format!("{kind}{maker}{id}"))));
    }
    let serial = page_80(dir);
    if !serial.is_empty() {
        names.push(format!("scsi-{}", udev(&format!("S{maker}{serial}"))));
    }
    names
}

/// As `usb_id` builds it: vendor and model from the SCSI layer, the serial number from the USB device, then target and
/// unit.
fn usb(place: &Place) -> Option<String> {
    let way = place.way();
    let device = usb_device(&way)?;
    let (_, address) = way.iter().rfind(|(_, name)| name.split(':').count() == 4)?;
    let (_, unit) = address.split_once(':')?.1.split_once(':')?;
    let or = |text: String, name: &str| if text.is_empty() { read(device, name) } else { text };
    let vendor = or(or(read(&place.dir, "device/vendor"), "manufacturer"), "idVendor");
    let model = or(or(read(&place.dir, "device/model"), "product"), "idProduct");
    let serial = read(device, "serial");
    let serial = if serial.is_empty() { serial } else { format!("_{}", udev(&serial)) };
    Some(format!("usb-{}_{}{serial}-{unit}", udev(&vendor), udev(&model)))
}

fn usb_device<'a>(way: &[(&'a Path, &str)]) -> Option<&'a Path> {
    way.iter().map(|(dir, _)| *dir).rfind(|dir| dir.join("idVendor").exists())
}

/// Converts text to udev's form for names: an underscore replaces each run of blanks, and each character that udev does
/// not allow.
fn udev(text: &str) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join("_");
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii();
    joined.chars().map(|c| if is_allowed(c) { c } else { '_' }).collect()
}

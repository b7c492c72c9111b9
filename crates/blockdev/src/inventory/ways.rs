//! The way to a disk, as udev's `path_id` writes it: which slot of which controller.

use order::Bus;
use std::path::Path;

use super::sysfs::{Place, list, read};

/// Names below `/dev/disk/by-path`, the usual one first; none if the disk is not attached through PCI.
pub(super) fn by_path(place: &Place, bus: Option<Bus>) -> Vec<String> {
    let way = place.way();
    let Some(at) = way.iter().rposition(|(_, name)| is_pci_function(name)) else { return Vec::new() };
    let (pci, way) = (format!("pci-{}", way[at].1), &way[at + 1..]);
    let is_virtio = way.iter().any(|(_, name)| name.starts_with("virtio"));
    let ends = match bus {
        Some(Bus::Nvme) => {
            let nsid = read(&place.dir, "nsid");
            vec![format!("-nvme-{}", if nsid.is_empty() { "1" } else { &nsid })]
        }
        Some(Bus::Ata) => ata(way),
        Some(Bus::Usb) => usb(way),
        Some(Bus::Scsi) => scsi(way),
        Some(Bus::Virtio | Bus::Mmc) => vec![String::new()],
        None => Vec::new(),
    };
    let mut names: Vec<_> = ends.into_iter().map(|end| format!("{pci}{end}")).collect();
    if is_virtio {
        // Older versions of systemd wrote this form.
        names.extend(names.clone().into_iter().map(|name| format!("virtio-{name}")));
    }
    names
}

/// `0000:00:1f.2`: domain, bus, slot and function in hex.
fn is_pci_function(name: &str) -> bool {
    let is_hex = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    let parts: Vec<_> = name.split([':', '.']).collect();
    parts.len() == 4 && name.matches(':').count() == 2 && name.contains('.') && parts.into_iter().all(is_hex)
}

/// Host, channel, target and unit of the nearest SCSI device.
fn address(way: &[(&Path, &str)]) -> Option<[u64; 4]> {
    let numbers = |name: &str| -> Option<[u64; 4]> {
        name.split(':').map(|part| part.parse().ok()).collect::<Option<Vec<_>>>()?.try_into().ok()
    };
    way.iter().rev().find_map(|(_, name)| numbers(name))
}

fn ata(way: &[(&Path, &str)]) -> Vec<String> {
    let is_port = |name: &str| name.strip_prefix("ata").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let Some((dir, port)) = way.iter().find(|(_, name)| is_port(name)) else { return Vec::new() };
    // The number in the name counts the ports of all controllers; this one counts the ports of one controller.
    let number = read(&dir.join("ata_port").join(port), "port_no");
    let number = if number.is_empty() { port.trim_start_matches("ata").to_owned() } else { number };
    match address(way) {
        Some([_, 0, 0, _]) => vec![format!("-ata-{number}"), format!("-ata-{number}.0")],
        // The second disk on a cable, and those behind a port multiplier, share the short name with the first.
        Some([_, 0, target, _]) => vec![format!("-ata-{number}.{target}")],
        Some([_, channel, _, _]) => vec![format!("-ata-{number}.{channel}.0")],
        None => vec![format!("-ata-{number}")],
    }
}

fn usb(way: &[(&Path, &str)]) -> Vec<String> {
    // An interface: `2-1.3:1.0` is interface 0 in configuration 1 of the device in port 3 of the hub in port 1 of bus
    // 2.
    let port = |name: &str| {
        let (bus, rest) = name.split_once('-')?;
        (bus.parse::<u32>().is_ok() && rest.contains(':')).then(|| rest.to_owned())
    };
    let Some(port) = way.iter().rev().find_map(|(_, name)| port(name)) else { return Vec::new() };
    scsi_address(way).into_iter().map(|address| format!("-usb-0:{port}{address}")).collect()
}

fn scsi(way: &[(&Path, &str)]) -> Vec<String> {
    let mut names = sas(way).unwrap_or_default();
    names.extend(scsi_address(way));
    names
}

fn scsi_address(way: &[(&Path, &str)]) -> Option<String> {
    let [host, channel, target, unit] = address(way)?;
    // Hosts are numbered in the order they were found; their order within one controller does not change.
    let number = |name: &str| name.strip_prefix("host")?.parse::<u64>().ok();
    let (dir, _) = way.iter().find(|(_, name)| number(name).is_some())?;
    let siblings = dir.parent().map(list).unwrap_or_default();
    let first = siblings.iter().filter_map(|name| number(name)).min().unwrap_or(host);
    Some(format!("-scsi-{}:{channel}:{target}:{unit}", host.saturating_sub(first)))
}

/// `port-0:0/end_device-0:0/target…`: by its phy (the current name), and by its address (the name of wide ports and of
/// older versions).
fn sas(way: &[(&Path, &str)]) -> Option<Vec<String>> {
    let at = way.iter().position(|(_, name)| name.starts_with("end_device-"))?;
    let (dir, name) = way[at];
    let device = dir.join("sas_device").join(name);
    let [_, _, _, unit] = address(way)?;
    let mut names = Vec::new();
    let phy = read(&device, "phy_identifier");
    if let Some([(upper_dir, upper), (port_dir, port)]) = at.checked_sub(2).map(|from| [way[from], way[from + 1]])
        && !phy.is_empty()
        && read(&port_dir.join("sas_port").join(port), "num_phys") == "1"
    {
        let expander = read(&upper_dir.join("sas_device").join(upper), "sas_address");
        let expander = if expander.is_empty() { expander } else { format!("exp{expander}-") };
        names.push(format!("-sas-{expander}phy{phy}-lun-{unit}"));
    }
    let address = read(&device, "sas_address");
    if !address.is_empty() {
        names.push(format!("-sas-{address}-lun-{unit}"));
    }
    Some(names)
}

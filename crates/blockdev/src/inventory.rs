//! Which disks this machine has, as sysfs tells it.

use std::fs;
use std::path::{Path, PathBuf};

/// One whole disk. Text fields are empty where the kernel does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Kernel name (`sda`, `nvme0n1`); changes between boots, so it is never stored.
    pub name: String,
    /// `/dev/` and the name.
    pub path: PathBuf,
    /// Size in bytes.
    pub len: u64,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// `virtio`, `nvme`, `ata`, `scsi`, `usb`, `mmc`, or empty.
    pub bus: String,
    /// Model name.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// World-wide name.
    pub wwn: String,
    /// The kernel marks it removable.
    pub is_removable: bool,
    /// The kernel will not write to it.
    pub is_read_only: bool,
    /// Platters, not flash.
    pub is_rotational: bool,
    /// What holds it (device mapper, RAID), by kernel name.
    pub holders: Vec<String>,
}

impl Disk {
    /// Name, size, bus, model and serial in one line, for a person who has to find it in the machine.
    pub fn describe(&self) -> String {
        let mut line = format!("{} ({}", self.path.display(), size_text(self.len));
        for (label, value) in [("", &self.bus), ("", &self.model), ("serial ", &self.serial)] {
            if !value.is_empty() {
                line.push_str(&format!(", {label}{value}"));
            }
        }
        line.push(')');
        line
    }
}

/// A size for people: decimal units, as printed on the drive.
pub fn size_text(len: u64) -> String {
    let units = [(1_000_000_000_000u64, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.iter().find(|(unit, _)| len >= *unit) {
        Some((unit, name)) => {
            let tenths = u128::from(len) * 10 / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{len} bytes"),
    }
}

/// The whole disks below `sysfs` (normally `/sys`), by name. Memory disks, loops, optical drives and mapped devices are
/// not disks of the machine and are left out, as is anything of zero size (an empty card reader).
pub fn disks(sysfs: &Path) -> Vec<Disk> {
    let Ok(entries) = fs::read_dir(sysfs.join("block")) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut disks: Vec<_> = names.filter_map(|name| disk(sysfs, &name)).collect();
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks
}

fn disk(sysfs: &Path, name: &str) -> Option<Disk> {
    const NOT_DISKS: [&str; 9] = ["loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "mtdblock"];
    // A multipath member of an NVMe subsystem (nvme0c0n1) is the same disk as nvme0n1.
    let is_hidden = read(&sysfs.join("block").join(name), "hidden") == "1";
    if NOT_DISKS.iter().any(|prefix| name.starts_with(prefix)) || is_hidden {
        return None;
    }
    let dir = sysfs.join("block").join(name);
    let sectors: u64 = read(&dir, "size").parse().ok()?;
    // The kernel counts size in 512-byte units whatever the sector size.
    let len = sectors.checked_mul(512).filter(|&len| len > 0)?;
    let real = fs::canonicalize(&dir).unwrap_or_else(|_| dir.clone());
    Some(Disk {
        name: name.to_owned(),
        path: Path::new("/dev").join(name),
        len,
        sector_size: read(&dir, "queue/logical_block_size").parse().unwrap_or(512),
        bus: bus(&real).to_owned(),
        model: first_of(&dir, &["device/model", "device/name"]),
        serial: serial(&dir),
        wwn: first_of(&dir, &["wwid", "device/wwid"]),
        is_removable: read(&dir, "removable") == "1",
        is_read_only: read(&dir, "ro") == "1",
        is_rotational: read(&dir, "queue/rotational") == "1",
        holders: list(&dir.join("holders")),
    })
}

fn bus(real: &Path) -> &'static str {
    // The path through sysfs names every bridge on the way; the one nearest to the disk decides.
    let parts: Vec<_> = real.iter().filter_map(|part| part.to_str()).collect();
    let has = |prefix: &str| parts.iter().any(|part| part.starts_with(prefix));
    match () {
        () if has("usb") => "usb",
        () if has("nvme") => "nvme",
        () if has("mmc") => "mmc",
        () if has("ata") => "ata",
        () if parts.iter().any(|part| part.starts_with("host") || part.starts_with("target")) => "scsi",
        () if has("virtio") => "virtio",
        () => "",
    }
}

fn serial(dir: &Path) -> String {
    let plain = first_of(dir, &["serial", "device/serial"]);
    if !plain.is_empty() {
        return plain;
    }
    // SCSI: the unit serial number page (SPC-4, 7.8.15) is four bytes of header, then text.
    let page = fs::read(dir.join("device/vpd_pg80")).unwrap_or_default();
    if let Some(text) = page.get(4..).filter(|text| !text.is_empty()) {
        return String::from_utf8_lossy(text).trim_matches(['\0', ' ']).to_owned();
    }
    // SATA through libata: "t10.ATA     MODEL                  SERIAL".
    let wwid = read(dir, "device/wwid");
    match wwid.strip_prefix("t10.ATA") {
        Some(rest) => rest.split_whitespace().last().unwrap_or_default().to_owned(),
        None => String::new(),
    }
}

fn first_of(dir: &Path, names: &[&str]) -> String {
    names.iter().map(|name| read(dir, name)).find(|text| !text.is_empty()).unwrap_or_default()
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default().trim().to_owned()
}

fn list(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Kernel name, place below `devices`, and the files there with their text.
    type FakeDisk<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

    fn sysfs(disks: &[FakeDisk<'_>]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(root.path().join("block")).expect("new");
        for (name, real, files) in disks {
            let dir = root.path().join("devices").join(real).join("block").join(name);
            for (file, text) in *files {
                let path = dir.join(file);
                fs::create_dir_all(path.parent().expect("below dir")).expect("new");
                fs::write(path, text).expect("new");
            }
            symlink(&dir, root.path().join("block").join(name)).expect("new");
        }
        root
    }

    #[test]
    fn disks_are_told_from_what_is_none() {
        let root = sysfs(&[
            ("vda", "pci0000:00/virtio1", &[("size", "2048\n"), ("serial", "GOLD-1"), ("ro", "0")]),
            (
                "nvme0n1",
                "pci0000:00/nvme/nvme0",
                &[
                    ("size", "4096\n"),
                    ("device/serial", "S-22               \n"),
                    ("device/model", "QEMU NVMe Ctrl      "),
                    ("queue/logical_block_size", "4096\n"),
                ],
            ),
            (
                "sda",
                "pci0000:00/ata1/host0/target0:0:0",
                &[("size", "1\n"), ("device/wwid", "t10.ATA     QEMU HARDDISK                           QM00001\n")],
            ),
            (
                "sdb",
                "pci0000:00/usb1/host1",
                &[("size", "9\n"), ("removable", "1\n"), ("device/vpd_pg80", "\0\u{1}\0\u{4}AB12")],
            ),
            ("sdc", "pci0000:00/usb1/host2", &[("size", "0\n")]),
            ("loop0", "virtual", &[("size", "9\n")]),
            ("sr0", "pci0000:00/ata2", &[("size", "9\n")]),
        ]);
        let disks = disks(root.path());
        let names: Vec<_> = disks.iter().map(|d| (d.name.as_str(), d.bus.as_str(), d.serial.as_str())).collect();
        let expected = [
            ("nvme0n1", "nvme", "S-22"),
            ("sda", "ata", "QM00001"),
            ("sdb", "usb", "AB12"),
            ("vda", "virtio", "GOLD-1"),
        ];
        assert_eq!(names, expected);
        assert_eq!(disks[0].sector_size, 4096);
        assert_eq!(disks[0].len, 4096 * 512);
        assert!(disks[2].is_removable);
        assert_eq!(disks[3].describe(), "/dev/vda (1.0 MB, virtio, serial GOLD-1)");
    }

    #[test]
    fn sizes_are_what_the_label_says() {
        for (len, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1_500, "1.5 kB"),
            (500_107_862_016, "500.1 GB"),
            (u64::MAX, "18446744.0 TB"),
        ] {
            assert_eq!(size_text(len), text);
        }
    }
}

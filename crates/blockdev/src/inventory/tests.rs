//! Machines as sysfs shows them.

use std::os::unix::fs::symlink;

use super::*;

/// Kernel name, place below `devices`, and the files there with their text.
type FakeDisk<'a> = (&'a str, &'a str, &'a [(&'a str, &'a [u8])]);

fn sysfs(disks: &[FakeDisk<'_>]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("temporary directory");
    fs::create_dir(root.path().join("block")).expect("new");
    for (name, real, files) in disks {
        let dir = root.path().join("devices").join(real).join("block").join(name);
        for (file, text) in *files {
            put(&dir.join(file), text);
        }
        symlink(&dir, root.path().join("block").join(name)).expect("new");
    }
    root
}

fn put(path: &Path, text: &[u8]) {
    fs::create_dir_all(path.parent().expect("below the root")).expect("new");
    fs::write(path, text).expect("new");
}

const SIZE: (&str, &[u8]) = ("size", b"2048\n");

/// A device identification page with these designators: code set, association and type, data.
fn page_83(designators: &[(u8, u8, &[u8])]) -> Vec<u8> {
    let designator = |&(code, kind, data): &(u8, u8, &[u8])| {
        [&[code, kind, 0, u8::try_from(data.len()).expect("short")], data].concat()
    };
    [vec![0, 0x83, 0, 0], designators.iter().flat_map(designator).collect()].concat()
}

fn only(root: &tempfile::TempDir) -> Disk {
    let mut disks = disks(root.path());
    assert_eq!(disks.len(), 1);
    disks.remove(0)
}

#[test]
fn disks_are_told_from_what_is_none() {
    let root = sysfs(&[
        ("vda", "pci0000:00/virtio1", &[("size", b"2048\n"), ("serial", b"GOLD-1"), ("ro", b"0")]),
        (
            "nvme0n1",
            "pci0000:00/nvme/nvme0",
            &[
                ("size", b"4096\n"),
                ("device/serial", b"S-22               \n"),
                ("device/model", b"QEMU NVMe Ctrl      "),
                ("queue/logical_block_size", b"4096\n"),
            ],
        ),
        (
            "sda",
            "pci0000:00/ata1/host0/target0:0:0",
            &[("size", b"1\n"), ("device/wwid", b"t10.ATA     QEMU HARDDISK                           QM00001\n")],
        ),
        (
            "sdb",
            "pci0000:00/usb1/host1",
            &[("size", b"9\n"), ("removable", b"1\n"), ("device/vpd_pg80", b"\0\x01\0\x04AB12")],
        ),
        ("sdc", "pci0000:00/usb1/host2", &[("size", b"0\n")]),
        ("loop0", "virtual", &[("size", b"9\n")]),
        ("sr0", "pci0000:00/ata2", &[("size", b"9\n")]),
        ("mmcblk0boot0", "pci0000:00/mmc_host/mmc0", &[("size", b"9\n")]),
        ("nvme0c0n1", "pci0000:00/nvme/nvme0", &[("size", b"9\n"), ("hidden", b"1\n")]),
    ]);
    let disks = disks(root.path());
    let names: Vec<_> =
        disks.iter().map(|d| (d.name.as_str(), d.bus.map_or("", |bus| bus.as_str()), d.serial.as_str())).collect();
    let expected =
        [("nvme0n1", "nvme", "S-22"), ("sda", "ata", "QM00001"), ("sdb", "usb", "AB12"), ("vda", "virtio", "GOLD-1")];
    assert_eq!(names, expected);
    assert_eq!(disks[0].sector_size, 4096);
    assert_eq!(disks[0].len, 4096 * 512);
    assert_eq!(disks[1].model, "QEMU HARDDISK");
    assert!(disks[2].is_removable);
    assert_eq!(disks[3].describe(), "/dev/vda (1.0 MiB, virtio, serial GOLD-1)");
    let told = Disk { contents: "blank".into(), ..disks[3].clone() };
    assert_eq!(told.describe_fully(), "/dev/vda (1.0 MiB, virtio, serial GOLD-1, 512-byte sectors; blank)");
}

#[test]
fn a_sata_disk_has_udevs_names() {
    let t10 = format!("ATA     {:<40}{:>20}", "Samsung SSD 860 EVO  500GB", "S3Z2NB0K123456X");
    let page = page_83(&[
        (2, 0, b"     S3Z2NB0K123456X"),
        (2, 1, t10.as_bytes()),
        (1, 3, &[0x50, 0x02, 0x53, 0x8e, 0x40, 0, 0, 1]),
        (1, 0x14, &[0, 0, 0, 1]),
    ]);
    let way = "pci0000:00/0000:00:1f.2/ata5/host4/target4:0:0/4:0:0:0";
    let files: &[(&str, &[u8])] = &[
        SIZE,
        ("device/vendor", b"ATA     \n"),
        ("device/model", b"Samsung SSD 860 \n"),
        ("device/vpd_pg83", &page),
        ("device/wwid", b"naa.5002538e40000001\n"),
    ];
    let root = sysfs(&[("sda", way, files)]);
    put(&root.path().join("devices/pci0000:00/0000:00:1f.2/ata5/ata_port/ata5/port_no"), b"1\n");
    let disk = only(&root);
    assert_eq!((disk.model.as_str(), disk.serial.as_str()), ("Samsung SSD 860 EVO  500GB", "S3Z2NB0K123456X"));
    for name in ["ata-Samsung_SSD_860_EVO_500GB_S3Z2NB0K123456X", "wwn-0x5002538e40000001", "scsi-35002538e40000001"] {
        assert!(disk.by_id.iter().any(|is| is == name), "{name}: {:?}", disk.by_id);
    }
    assert_eq!(disk.by_path, ["pci-0000:00:1f.2-ata-1", "pci-0000:00:1f.2-ata-1.0"]);
}

#[test]
fn other_buses_have_udevs_names() {
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a [u8])], &'a [&'a str], &'a [&'a str]);
    let scsi_page = page_83(&[(2, 0, b"DISK0-01"), (1, 3, &[0x60; 16])]);
    let cases: &[Case<'_>] = &[
        (
            "nvme0n1",
            "pci0000:00/0000:00:1d.0/0000:3d:00.0/nvme/nvme0",
            &[
                ("device/model", b"Samsung SSD 970 EVO Plus 500GB          "),
                ("device/serial", b"S4EVNX0N123456      "),
                ("nsid", b"1\n"),
                ("wwid", b"eui.0025385b01234567\n"),
            ],
            &[
                "nvme-Samsung_SSD_970_EVO_Plus_500GB_S4EVNX0N123456",
                "nvme-Samsung_SSD_970_EVO_Plus_500GB_S4EVNX0N123456_1",
                "nvme-eui.0025385b01234567",
            ],
            &["pci-0000:3d:00.0-nvme-1"],
        ),
        (
            "sda",
            "pci0000:00/0000:00:05.0/virtio2/host2/target2:0:1/2:0:1:0",
            &[("device/vendor", b"QEMU    "), ("device/model", b"QEMU HARDDISK   "), ("device/vpd_pg83", &scsi_page)],
            &["scsi-0QEMU_QEMU_HARDDISK_DISK0-01", "scsi-360606060606060606060606060606060"],
            &["pci-0000:00:05.0-scsi-0:0:1:0", "virtio-pci-0000:00:05.0-scsi-0:0:1:0"],
        ),
        (
            "vda",
            "pci0000:00/0000:00:05.0/virtio2",
            &[("serial", b"DISK 0"), ("device/vendor", b"0x1af4")],
            &["virtio-DISK_0"],
            &["pci-0000:00:05.0", "virtio-pci-0000:00:05.0"],
        ),
        (
            "mmcblk0",
            "pci0000:00/0000:00:1c.0/mmc_host/mmc0/mmc0:0001",
            &[("device/name", b"DF4032\n"), ("device/serial", b"0x01234567\n")],
            &["mmc-DF4032_0x01234567"],
            &["pci-0000:00:1c.0"],
        ),
    ];
    for (name, way, files, by_id, by_path) in cases {
        let files: Vec<_> = files.iter().copied().chain([SIZE]).collect();
        let disk = only(&sysfs(&[(name, way, &files)]));
        assert_eq!(disk.by_id, *by_id);
        assert_eq!(disk.by_path, *by_path);
    }
}

#[test]
fn a_usb_stick_is_named_by_its_usb_side() {
    let device = "pci0000:00/0000:00:14.0/usb2/2-1/2-1.3";
    let files: &[(&str, &[u8])] = &[SIZE, ("device/vendor", b"Kingston"), ("device/model", b"DataTraveler 3.0")];
    let root = sysfs(&[("sdb", &format!("{device}/2-1.3:1.0/host6/target6:0:0/6:0:0:0"), files)]);
    let device = root.path().join("devices").join(device);
    put(&device.join("idVendor"), b"0951\n");
    put(&device.join("serial"), b"60A44C413FAE\n");
    // The root hub is a USB device as well.
    put(&device.join("../../idVendor"), b"1d6b\n");
    put(&device.join("../../serial"), b"0000:00:14.0\n");
    let disk = only(&root);
    assert_eq!(disk.serial, "60A44C413FAE");
    assert_eq!(disk.by_id, ["usb-Kingston_DataTraveler_3.0_60A44C413FAE-0:0"]);
    assert_eq!(disk.by_path, ["pci-0000:00:14.0-usb-0:1.3:1.0-scsi-0:0:0:0"]);
}

#[test]
fn a_sas_disk_is_named_by_phy_and_address() {
    let way = "pci0000:00/0000:02:00.0/host0/port-0:3/end_device-0:3/target0:0:3/0:0:3:0";
    let root = sysfs(&[("sda", way, &[SIZE])]);
    let host = root.path().join("devices/pci0000:00/0000:02:00.0/host0");
    put(&host.join("port-0:3/sas_port/port-0:3/num_phys"), b"1\n");
    let device = host.join("port-0:3/end_device-0:3/sas_device/end_device-0:3");
    put(&device.join("phy_identifier"), b"3\n");
    put(&device.join("sas_address"), b"0x5000c50012345679\n");
    let expected = ["sas-phy3-lun-0", "sas-0x5000c50012345679-lun-0", "scsi-0:0:3:0"];
    assert_eq!(only(&root).by_path, expected.map(|end| format!("pci-0000:02:00.0-{end}")));
}

#[test]
fn a_second_host_of_a_controller_is_told_from_the_first() {
    let root = sysfs(&[("sdb", "pci0000:00/0000:00:05.0/host3/target3:0:0/3:0:0:0", &[SIZE])]);
    fs::create_dir_all(root.path().join("devices/pci0000:00/0000:00:05.0/host2")).expect("new");
    assert_eq!(only(&root).by_path, ["pci-0000:00:05.0-scsi-1:0:0:0"]);
}

#[test]
fn whatever_uses_a_disk_or_its_partitions_is_told() {
    let root = sysfs(&[(
        "sda",
        "pci0000:00/ata1",
        &[
            SIZE,
            ("dev", b"8:0\n"),
            ("holders/md0", b""),
            ("sda1/partition", b"1"),
            ("sda1/dev", b"8:1\n"),
            ("sda1/holders/dm-0", b""),
            ("sda2/partition", b"2"),
            ("sda2/dev", b"8:2\n"),
            ("sda3/partition", b"3"),
            ("sda3/dev", b"8:3\n"),
        ],
    )]);
    let mut disks = disks(root.path());
    assert_eq!(disks[0].uses, ["md0 holds sda", "dm-0 holds sda1"]);
    disks[0].uses.clear();
    let mountinfo = "22 1 0:20 / /proc rw - proc proc rw\n\
                     30 1 8:2 / /mnt rw,relatime shared:1 - ext4 /dev/root rw\n\
                     31 1 0:44 /@ /pool rw - btrfs /dev/sda1 rw\n\
                     nonsense\n";
    let swaps = "Filename Type Size Used Priority\n/dev/sda3 partition 1 0 -2\n";
    mark_mounted(&mut disks, root.path(), mountinfo, swaps);
    assert_eq!(disks[0].uses, ["sda1 is mounted on /pool", "sda2 is mounted on /mnt", "sda3 is swapped to"]);
}

#[test]
fn world_wide_names_are_compared_as_numbers() {
    for same in ["0x5000C500A1B2C3D4", "naa.5000c500a1b2c3d4", "wwn-0x5000c500a1b2c3d4", "50:00:c5:00:a1:b2:c3:d4"] {
        assert!(is_same_wwn(same, "5000c500a1b2c3d4"), "{same}");
    }
    assert!(is_same_wwn("EUI.0025385b01234567", "nvme-eui.0025385B01234567"));
    assert!(!is_same_wwn("naa.5000c500a1b2c3d4", "naa.5000c500a1b2c3d5"));
    assert!(!is_same_wwn("t10.ATA A-B", "t10.ATA AB"));
}

#[test]
fn twins_share_a_wwn_or_all_else() {
    let disk = |name: &str, wwn: &str, serial: &str| Disk {
        name: name.into(),
        wwn: wwn.into(),
        serial: serial.into(),
        model: "M".into(),
        len: 9,
        ..Disk::default()
    };
    assert!(disk("sda", "naa.1", "A").is_twin_of(&disk("sdb", "NAA.1", "B")));
    assert!(!disk("sda", "naa.1", "A").is_twin_of(&disk("sdb", "naa.2", "A")), "two namespaces or units");
    assert!(disk("sda", "", "A").is_twin_of(&disk("sdb", "naa.2", "A")));
    assert!(!disk("sda", "", "").is_twin_of(&disk("sdb", "", "")));
    assert!(!disk("sda", "", "A").is_twin_of(&Disk { len: 8, ..disk("sdb", "", "A") }));
    assert!(!disk("sda", "naa.1", "A").is_twin_of(&disk("sda", "naa.1", "A")), "itself");
    let root = sysfs(&[("sda", "pci0000:00/ata1", &[SIZE, ("device/wwid", b"naa.0000000000000000\n")])]);
    assert_eq!(only(&root).wwn, "", "zeroes are no name");
}

#[test]
fn looking_at_a_disk_says_what_is_there_or_why_not() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = |name: &str, len: u64| Disk {
        name: name.into(),
        path: dir.path().join(name),
        len,
        sector_size: 512,
        ..Disk::default()
    };
    fs::write(dir.path().join("sda"), vec![0; 1 << 20]).expect("new");
    // Opening a pipe without a writer blocks, as a dying disk does.
    nix::unistd::mkfifo(&dir.path().join("sdc"), nix::sys::stat::Mode::S_IRWXU).expect("new");
    let mut disks = [disk("sda", 1 << 20), disk("sdb", 9), disk("sdc", 9)];
    look_at(&mut disks, Duration::from_secs(1));
    assert_eq!(disks[0].contents, "blank");
    assert!(disks[1].contents.starts_with("unreadable: No such file"), "{}", disks[1].contents);
    assert_eq!(disks[2].contents, "unreadable: it does not answer");
}

#[test]
fn names_from_devices_cannot_command_the_terminal() {
    let root = sysfs(&[("vda", "pci0000:00/virtio1", &[SIZE, ("serial", b"A\x1b[2J\nB\xff")])]);
    assert_eq!(only(&root).serial, "A?[2J?B\u{fffd}");
}

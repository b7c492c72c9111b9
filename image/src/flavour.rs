//! Decides which kernel, modules and firmware go into a boot directory.

use clap::ValueEnum;

/// The kind of machines that a boot directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Flavour {
    /// Debian's cloud kernel: virtual machines.
    Cloud,
    /// Debian's ordinary kernel with every wired NIC and disk driver: real machines, and virtual ones with old devices.
    Generic,
}

/// Places of the drivers of wired NICs and of disks, and of the buses they use. A `/` at the end selects a whole
/// directory.
///
/// Modules that these depend on are added automatically. Of the file systems, only ext4 is included; the kernel grows
/// it.
const WANTED: &[&str] = &[
    // Network. Wireless, tunnels and software devices are left out.
    "kernel/drivers/net/ethernet/",
    "kernel/drivers/net/fjes/",
    "kernel/drivers/net/hyperv/",
    "kernel/drivers/net/mdio/",
    "kernel/drivers/net/pcs/",
    "kernel/drivers/net/phy/",
    "kernel/drivers/net/usb/",
    "kernel/drivers/net/virtio_net.ko",
    "kernel/drivers/net/vmxnet3/",
    "kernel/drivers/net/xen-netfront.ko",
    "kernel/net/packet/af_packet.ko",
    // File systems.
    "kernel/fs/ext4/ext4.ko",
    // Disks.
    "kernel/drivers/ata/",
    "kernel/drivers/block/mtip32xx/",
    "kernel/drivers/block/virtio_blk.ko",
    "kernel/drivers/block/xen-blkfront.ko",
    "kernel/drivers/message/fusion/",
    "kernel/drivers/mmc/",
    "kernel/drivers/nvme/host/nvme-core.ko",
    "kernel/drivers/nvme/host/nvme.ko",
    "kernel/drivers/scsi/",
    "kernel/drivers/ufs/",
    "kernel/drivers/usb/storage/",
    // Buses. VMD hides the NVMe disks of many recent Intel machines.
    "kernel/drivers/hv/",
    "kernel/drivers/pci/controller/",
    "kernel/drivers/usb/common/",
    "kernel/drivers/usb/core/",
    "kernel/drivers/usb/host/",
    "kernel/drivers/virtio/",
];

/// Modules that match [`WANTED`] but that no machine needs for imaging: test devices, tape, disks over the network.
const UNWANTED: &[&str] = &[
    "kernel/drivers/ata/pata_legacy.ko",
    "kernel/drivers/ata/pata_pcmcia.ko",
    "kernel/drivers/scsi/ch.ko",
    "kernel/drivers/scsi/device_handler/",
    "kernel/drivers/scsi/fcoe/",
    "kernel/drivers/scsi/iscsi_tcp.ko",
    "kernel/drivers/scsi/pcmcia/",
    "kernel/drivers/scsi/scsi_debug.ko",
    "kernel/drivers/scsi/sr_mod.ko",
    "kernel/drivers/scsi/st.ko",
];

/// Debian's packages that hold firmware for the drivers above.
const FIRMWARE_PACKAGES: &[&str] = &[
    "firmware-linux-free",
    "firmware-bnx2",
    "firmware-bnx2x",
    "firmware-cavium",
    "firmware-misc-nonfree",
    "firmware-myricom",
    "firmware-netronome",
    "firmware-netxen",
    "firmware-qlogic",
    "firmware-realtek",
];

impl Flavour {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
        }
    }

    /// The package that always depends on the newest kernel.
    pub fn kernel_package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
        }
    }

    /// Whether a module, given as in `modules.dep`, is wanted itself, not only as a dependency.
    pub fn wants(self, module: &str) -> bool {
        let listed = |list: &[&str]| {
            list.iter().any(|entry| if entry.ends_with('/') { module.starts_with(entry) } else { module == *entry })
        };
        listed(WANTED) && !listed(UNWANTED)
    }

    /// The packages that are searched for firmware. Virtual machines need none.
    pub fn firmware_packages(self) -> &'static [&'static str] {
        match self {
            Self::Cloud => &[],
            Self::Generic => FIRMWARE_PACKAGES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wants_nics_and_disks_only() {
        for module in [
            "kernel/drivers/net/virtio_net.ko",
            "kernel/drivers/net/ethernet/intel/e1000/e1000.ko",
            "kernel/drivers/pci/controller/vmd.ko",
            "kernel/drivers/message/fusion/mptsas.ko",
        ] {
            assert!(Flavour::Generic.wants(module), "{module}");
        }
        for module in [
            "kernel/drivers/net/wireless/ath/ath9k/ath9k.ko",
            "kernel/drivers/scsi/scsi_debug.ko",
            "kernel/drivers/nvme/target/nvmet.ko",
            "kernel/drivers/net/virtio_net.ko.xz",
            "kernel/fs/xfs/xfs.ko",
        ] {
            assert!(!Flavour::Generic.wants(module), "{module}");
        }
    }
}

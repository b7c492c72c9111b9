//! The places of the workspace's own products, and of programs of the host.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The products that a rack uses. An environment variable can change the place of each.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The `ezio` binary; `EZIO_BIN`.
    pub ezio: PathBuf,
    /// Boot directory with the cloud kernel; `EZIO_BOOT`.
    pub boot: PathBuf,
    /// Boot directory with the generic kernel; `EZIO_BOOT_GENERIC`.
    pub boot_generic: PathBuf,
    /// Log folders, one per case.
    pub racks: PathBuf,
    /// Golden disks, kept from run to run.
    pub golden: PathBuf,
    /// Where a complete run writes its results; `EZIO_DOCS`.
    pub docs: PathBuf,
}

impl Paths {
    /// The usual places, or those in the environment.
    pub fn new() -> Paths {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf);
        let from = |key: &str, usual: &str| {
            let path = std::env::var_os(key).map_or_else(|| root.join(usual), PathBuf::from);
            std::path::absolute(&path).unwrap_or(path)
        };
        Paths {
            ezio: from("EZIO_BIN", "build/ezio"),
            boot: from("EZIO_BOOT", "build/boot/cloud"),
            boot_generic: from("EZIO_BOOT_GENERIC", "build/boot/generic"),
            racks: from("EZIO_RACKS", "build/racks"),
            golden: from("EZIO_GOLDEN", "build/golden"),
            docs: from("EZIO_DOCS", "docs"),
        }
    }

    /// The environment variables that make [`Paths::new`] return the same places in a process with another current
    /// directory.
    pub fn environment(&self) -> [(&'static str, &Path); 6] {
        [
            ("EZIO_BIN", &self.ezio),
            ("EZIO_BOOT", &self.boot),
            ("EZIO_BOOT_GENERIC", &self.boot_generic),
            ("EZIO_RACKS", &self.racks),
            ("EZIO_GOLDEN", &self.golden),
            ("EZIO_DOCS", &self.docs),
        ]
    }
}

impl Default for Paths {
    fn default() -> Self {
        Paths::new()
    }
}

/// The program's path; also searches places that are not in an ordinary user's PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let places = path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]);
    places.map(|place| Path::new(place).join(name)).find(|program| program.is_file())
}

/// Programs and files of the host that a rack needs, with the Debian package of each. Of several places, one is enough.
const NEEDED: [(&str, &str); 16] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
    // The path in Debian 12, and in Debian 13.
    ("/usr/lib/ipxe/qemu/pxe-virtio.rom|/usr/share/qemu/pxe-virtio.rom", "ipxe-qemu"),
    ("unshare", "util-linux"),
    ("ip", "iproute2"),
    ("dnsmasq", "dnsmasq-base"),
    ("busybox", "busybox-static"),
    ("mkfs.vfat", "dosfstools"),
    ("mcopy", "mtools"),
    ("mkfs.ext4", "e2fsprogs"),
    ("sgdisk", "gdisk"),
    ("syslinux", "syslinux"),
    ("/usr/lib/syslinux/mbr/gptmbr.bin", "syslinux-common"),
    ("/usr/lib/SYSLINUX.EFI/efi64/syslinux.efi", "syslinux-efi"),
    ("cpio", "cpio"),
    ("zstd", "zstd"),
];

/// Reports everything that is missing at once, before anything is started.
///
/// # Errors
/// If something is missing.
pub fn check_host(paths: &Paths) -> Result<()> {
    let is_there = |what: &str| match what.starts_with('/') {
        true => what.split('|').any(|place| Path::new(place).exists()),
        false => find_program(what).is_some(),
    };
    let missing: Vec<_> = NEEDED.iter().filter(|(what, _)| !is_there(what)).collect();
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|(what, _)| *what).collect();
        let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
        bail!("{} missing: apt-get install {}", names.join(", "), packages.join(" "));
    }
    std::fs::File::options().read(true).write(true).open("/dev/net/tun").context(
        "opening /dev/net/tun, which gives machines their network: as root `modprobe tun; chmod 666 /dev/net/tun`",
    )?;
    for (file, how) in [(&paths.ezio, "make build"), (&paths.boot.join("vmlinuz"), "make image")] {
        if !file.exists() {
            bail!("{} is not there: run `{how}` first", file.display());
        }
    }
    Ok(())
}

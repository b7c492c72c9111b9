//! A real Debian: installed by mmdebstrap on a GPT disk with ESP, ext4, swap and btrfs, started by its own systemd.
//!
//! Packages come over the network and into a chroot, so root makes it outside the racks' sandboxes. It is made again
//! only when this file changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::disk::{Disk, copy_into};
use crate::golden::{make_bootable_esp, partition};
use crate::golden_initrd::make_executable;
use crate::machine::KERNEL_ARGS;
use crate::paths::Paths;
use crate::process::run;

/// Printed by the clone when its systemd has started everything, and its swap and its data are intact.
pub const MARKER: &str = "EZIO-CLONE-READY debian";
/// The login prompt that follows.
pub const LOGIN: &str = "golden-debian login:";

/// Increased when this file makes another disk.
const VERSION: u32 = 2;
const ROOT_UUID: &str = "e210c10e-0000-4000-8000-0000000deb12";
const SWAP_UUID: &str = "e210c10e-0000-4000-8000-0000000005a9";
const DATA_UUID: &str = "e210c10e-0000-4000-8000-00000000da7a";
const MIB: u64 = 1 << 20;
const ESP_MIB: u64 = 128;
const ROOT_MIB: u64 = 900;
const SWAP_MIB: u64 = 64;
const DATA_MIB: u64 = 160;
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,udev,kmod,zstd";

fn path(paths: &Paths) -> PathBuf {
    paths.golden.join(format!("debian-{VERSION}.img"))
}

/// The disk that [`make`] has made.
///
/// # Errors
/// If it does not exist.
pub fn disk(paths: &Paths) -> Result<Disk> {
    let path = path(paths);
    ensure!(path.exists(), "{} is missing: `rack test` makes it, as root", path.display());
    Ok(Disk::open(&path))
}

/// Installs it, unless it exists.
///
/// # Errors
/// If this is not root, or a program fails.
pub fn make(paths: &Paths) -> Result<()> {
    let path = path(paths);
    if path.exists() {
        return Ok(());
    }
    ensure!(nix::unistd::geteuid().is_root(), "installing a Debian for the case debian_installation takes root");
    println!("installing a Debian on the golden disk (some minutes, once)");
    fs::create_dir_all(&paths.golden).with_context(|| format!("creating {}", paths.golden.display()))?;
    let work = tempfile::tempdir_in(&paths.golden).context("creating a work directory")?;
    let root = work.path().join("root");
    install(&root)?;

    let esp_image = work.path().join("esp.img");
    Disk::blank(&esp_image, ESP_MIB * MIB)?;
    let (kernel, initrd) = (newest(&root, "vmlinuz-")?, newest(&root, "initrd.img-")?);
    let append = format!("root=UUID={ROOT_UUID} ro {KERNEL_ARGS} systemd.show_status=false");
    make_bootable_esp(&esp_image, &kernel, &initrd, &append, work.path())?;

    let data = work.path().join("data");
    fs::create_dir_all(data.join("photos")).context("creating the data")?;
    for n in 0..40 {
        let bytes = crate::disk::random_bytes(900 + n, 40_000 * usize::try_from(n + 1)?);
        fs::write(data.join(format!("photos/{n}.jpg")), bytes).context("writing the data")?;
    }
    let sums = run(Command::new("sh").arg("-c").arg("sha256sum photos/*").current_dir(&data))?;
    fs::write(data.join("sums"), sums).context("writing the data's hashes")?;

    let (root_image, data_image, swap_image) =
        (work.path().join("root.img"), work.path().join("data.img"), work.path().join("swap.img"));
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-L", "debian", "-U", ROOT_UUID, "-d"])
        .arg(&root)
        .arg(&root_image)
        .arg(format!("{ROOT_MIB}M")))?;
    Disk::blank(&data_image, DATA_MIB * MIB)?;
    run(Command::new("mkfs.btrfs")
        .args(["-q", "-L", "data", "-U", DATA_UUID, "--rootdir"])
        .arg(&data)
        .arg(&data_image))?;
    Disk::blank(&swap_image, SWAP_MIB * MIB)?;
    run(Command::new("mkswap").args(["-L", "swap", "-U", SWAP_UUID]).arg(&swap_image))?;

    let image = work.path().join("disk.img");
    let parts = [
        (&esp_image, ESP_MIB, "EF00"),
        (&root_image, ROOT_MIB, "8300"),
        (&swap_image, SWAP_MIB, "8200"),
        (&data_image, DATA_MIB, "8300"),
    ];
    let disk = Disk::blank(&image, (2 + parts.iter().map(|(_, mib, _)| mib).sum::<u64>()) * MIB)?;
    let mut at = MIB;
    let mut table = Vec::new();
    for (part, mib, kind) in parts {
        copy_into(&disk, part, at)?;
        table.push((at, mib * MIB, kind));
        at += mib * MIB;
    }
    partition(&disk, &table)?;
    let boot_code = fs::read("/usr/lib/syslinux/mbr/gptmbr.bin").context("reading gptmbr.bin")?;
    std::os::unix::fs::FileExt::write_all_at(&disk.file()?, &boot_code, 0).context("writing the boot code")?;
    fs::rename(&image, &path).context("keeping the golden disk")
}

/// A minimal Debian 12 with systemd, a kernel, and a service that checks everything and reports the result.
fn install(root: &Path) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--mode=root", "--variant=minbase", "--format=directory", "--quiet"]);
    mmdebstrap.arg(format!("--include={PACKAGES}"));
    mmdebstrap.args(["--aptopt=APT::Install-Recommends \"false\"", "--dpkgopt=path-exclude=/usr/share/doc/*"]);
    mmdebstrap.args(["--dpkgopt=path-exclude=/usr/share/locale/*", "bookworm"]).arg(root);
    run(&mut mmdebstrap)?;
    let write = |name: &str, text: &str| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().context("a file without a directory")?).context("creating a directory")?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("etc/hostname", "golden-debian\n")?;
    let fstab = format!(
        "UUID={ROOT_UUID} / ext4 defaults 0 1\nUUID={SWAP_UUID} none swap sw 0 0\nUUID={DATA_UUID} /srv btrfs defaults 0 0\n"
    );
    write("etc/fstab", &fstab)?;
    write("usr/local/sbin/say-ready", SAY_READY)?;
    make_executable(&root.join("usr/local/sbin/say-ready"))?;
    write("etc/systemd/system/say-ready.service", SERVICE)?;
    let wants = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants).context("enabling the service")?;
    std::os::unix::fs::symlink("/etc/systemd/system/say-ready.service", wants.join("say-ready.service"))
        .context("enabling the service")
}

/// The service ends before the login prompt appears: agetty hangs the line up first, and a process that has it open
/// then can write no more.
const SERVICE: &str = "[Unit]\nAfter=local-fs.target swap.target\nBefore=serial-getty@ttyS0.service\n\
                       RequiresMountsFor=/srv\n[Service]\nType=oneshot\n\
                       ExecStart=/usr/local/sbin/say-ready\nStandardOutput=file:/dev/ttyS0\n\
                       [Install]\nWantedBy=multi-user.target\n";

const SAY_READY: &str = r#"#!/bin/sh
cd /srv && sha256sum --quiet -c sums || { echo "EZIO-CLONE-BROKEN: the data differ"; exit 1; }
grep -q partition /proc/swaps || { echo "EZIO-CLONE-BROKEN: no swap"; exit 1; }
echo "EZIO-CLONE-READY debian"
"#;

fn newest(root: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(root.join("boot")).context("listing the new system's /boot")?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    found.sort();
    found.pop().with_context(|| format!("the new system has no {prefix}* in /boot"))
}

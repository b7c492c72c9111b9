//! The golden disk: a small system on a GPT disk that starts in BIOS and UEFI (or on an MBR disk), checks its own
//! files, and reports the result.
//!
//! It is made without root, mounts or loop devices, and kept under `build/golden` as long as its inputs stay the same.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::disk::{Disk, copy_into, random_bytes};
use crate::golden_initrd as initrd;
use crate::machine::KERNEL_ARGS;
use crate::paths::{Paths, find_program};
use crate::process::run;

/// Printed by a clone that has started, mounted its root and found its files intact.
pub const MARKER: &str = "EZIO-CLONE-READY golden";

/// Increased when this file makes another disk from the same inputs.
const VERSION: u32 = 6;
const ROOT_UUID: &str = "e210c10e-0000-4000-8000-00000000601d";
const SWAP_UUID: &str = "e210c10e-0000-4000-8000-00000000005a";
const MIB: u64 = 1 << 20;
/// A FAT32 file system needs 65,525 clusters, 33 MiB; the kernel and its initramfs take 18 more.
const ESP_MIB: u64 = 64;
const SWAP_MIB: u64 = 16;
/// Bytes of files that the clone hashes itself: this takes half a second in software emulation.
const SAMPLE_BYTES: u64 = 24 * MIB;

/// How much data is on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Size {
    /// About 30 MB in use, for cases that test something else.
    Small,
    /// About 250 MB in use, of which more than 200 are files of every size.
    Large,
    /// The same amount as small, with an MBR and with root and swap in logical partitions, for BIOS only.
    Mbr,
}

impl Size {
    fn root_mib(self) -> u64 {
        match self {
            Size::Small | Size::Mbr => 48,
            Size::Large => 400,
        }
    }

    fn file_bytes(self) -> u64 {
        match self {
            Size::Small | Size::Mbr => 8 * MIB,
            Size::Large => 215 * MIB,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Size::Small => "small",
            Size::Large => "large",
            Size::Mbr => "mbr",
        }
    }
}

/// The disk, from the store if it is there, otherwise newly made.
///
/// # Errors
/// If a program fails, or the boot directory holds no kernel.
pub fn disk(paths: &Paths, size: Size) -> Result<Disk> {
    fs::create_dir_all(&paths.golden).with_context(|| format!("creating {}", paths.golden.display()))?;
    let lock = fs::File::create(paths.golden.join("lock")).context("creating the store's lock")?;
    // Cases run in parallel; the lock is held until this function ends.
    lock.lock().context("waiting for another process that makes a golden disk")?;
    let work = paths.golden.join("tmp");
    if work.exists() {
        fs::remove_dir_all(&work).context("removing an unfinished golden disk")?;
    }
    fs::create_dir_all(&work).context("creating a work directory")?;

    let modules = initrd::modules(&paths.boot.join("initrd.img"), &work)?;
    let files = files_of_this_host(size.file_bytes())?;
    let mut key = DefaultHasher::new();
    (VERSION, size, &files).hash(&mut key);
    fs::read(paths.boot.join("vmlinuz")).context("reading the kernel")?.hash(&mut key);
    for module in &modules {
        fs::read(module).with_context(|| format!("reading {}", module.display()))?.hash(&mut key);
    }
    let path = paths.golden.join(format!("{}-{:016x}.img", size.name(), key.finish()));
    if !path.exists() {
        let made = make(paths, size, &files, &modules, &work)?;
        fs::rename(&made, &path).context("keeping the golden disk")?;
    }
    fs::remove_dir_all(&work).context("removing the work directory")?;
    Ok(Disk::open(&path))
}

/// A GPT disk with one partition of random bytes, which no file system tool recognises: it is captured whole and never
/// started.
///
/// # Errors
/// If it cannot be written.
pub fn random_disk(path: &Path, mib: u64) -> Result<Disk> {
    let disk = random_bytes_disk(path, mib + 2)?;
    let file = disk.file()?;
    for at in [0, (mib + 1) * MIB] {
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; MIB as usize], at)
            .context("making room for a table")?;
    }
    partition(&disk, &[(MIB, mib * MIB, "8300")])?;
    Ok(disk)
}

/// A disk of random bytes from its first to its last.
///
/// # Errors
/// If it cannot be written.
pub fn random_bytes_disk(path: &Path, mib: u64) -> Result<Disk> {
    let disk = Disk::blank(path, mib * MIB)?;
    let file = disk.file()?;
    for n in 0..mib {
        let bytes = random_bytes(n, MIB as usize);
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, n * MIB).context("writing random bytes")?;
    }
    Ok(disk)
}

/// The same for a disk with 4096-byte sectors, which sgdisk does not support in a file.
///
/// # Errors
/// If it cannot be written.
pub fn random_disk_4kn(path: &Path, mib: u64) -> Result<Disk> {
    const SECTOR: u64 = 4096;
    let disk = Disk::blank(path, (mib + 2) * MIB)?;
    let mut file = disk.file()?;
    let bytes = random_bytes(4, usize::try_from(mib * MIB)?);
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, MIB).context("writing random bytes")?;
    let mut gpt = gptman::GPT::new_from(&mut file, SECTOR, [0x4e; 16]).context("making a GPT")?;
    gpt[1] = gptman::GPTPartitionEntry {
        partition_type_guid: *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4",
        unique_partition_guid: [0x4b; 16],
        starting_lba: MIB / SECTOR,
        ending_lba: (mib + 1) * MIB / SECTOR - 1,
        attribute_bits: 0,
        partition_name: "random".into(),
    };
    gptman::GPT::write_protective_mbr_into(&mut file, SECTOR).context("writing the protective MBR")?;
    gpt.write_into(&mut file).context("writing the GPT")?;
    Ok(disk)
}

fn make(paths: &Paths, size: Size, files: &[HostFile], modules: &[PathBuf], work: &Path) -> Result<PathBuf> {
    let root = work.join("root");
    fill_root(&root, files)?;
    let root_image = work.join("root.img");
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", "golden", "-U", ROOT_UUID, "-E", &format!("root_owner=0:0,hash_seed={ROOT_UUID}")]);
    mkfs.arg("-d").arg(&root).arg(&root_image).arg(format!("{}M", size.root_mib()));
    run(&mut mkfs)?;

    let esp_image = work.join("esp.img");
    Disk::blank(&esp_image, ESP_MIB * MIB)?;
    let initrd = initrd::write(modules, ROOT_UUID, work)?;
    make_bootable_esp(&esp_image, &paths.boot.join("vmlinuz"), &initrd, KERNEL_ARGS, work)?;

    let path = work.join("disk.img");
    match size {
        Size::Mbr => {
            let root_at = (2 + ESP_MIB) * MIB;
            let disk = Disk::blank(&path, root_at + (size.root_mib() + 2 + SWAP_MIB) * MIB)?;
            partition_mbr(&disk, size, work)?;
            copy_into(&disk, &esp_image, MIB)?;
            copy_into(&disk, &root_image, root_at)?;
            let swap_image = work.join("swap.img");
            Disk::blank(&swap_image, SWAP_MIB * MIB)?;
            run(Command::new("mkswap").args(["-L", "swap", "-U", SWAP_UUID]).arg(&swap_image))?;
            copy_into(&disk, &swap_image, root_at + (size.root_mib() + 1) * MIB)?;
            write_boot_code(&disk, "mbr.bin")?;
        }
        Size::Small | Size::Large => {
            let disk = Disk::blank(&path, (1 + ESP_MIB + size.root_mib() + 1) * MIB)?;
            let root_at = (1 + ESP_MIB) * MIB;
            partition(&disk, &[(MIB, ESP_MIB * MIB, "EF00"), (root_at, size.root_mib() * MIB, "8300")])?;
            copy_into(&disk, &esp_image, MIB)?;
            copy_into(&disk, &root_image, root_at)?;
            write_boot_code(&disk, "gptmbr.bin")?;
        }
    }
    Ok(path)
}

/// Writes only the boot code of Syslinux: the rest of the first sector is the partition table.
///
/// # Errors
/// If syslinux is not installed.
pub fn write_boot_code(disk: &Disk, name: &str) -> Result<()> {
    let boot_code =
        fs::read(Path::new("/usr/lib/syslinux/mbr").join(name)).with_context(|| format!("reading {name}"))?;
    ensure!(boot_code.len() <= 440, "{name} has {} bytes, more than fit", boot_code.len());
    std::os::unix::fs::FileExt::write_all_at(&disk.file()?, &boot_code, 0).context("writing the boot code")
}

/// Writes an MBR with a primary FAT, and with root and swap as logical partitions 5 and 6.
fn partition_mbr(disk: &Disk, size: Size, work: &Path) -> Result<()> {
    let sectors = |mib: u64| mib * MIB / 512;
    let (extended, root) = (sectors(1 + ESP_MIB), sectors(2 + ESP_MIB));
    let swap = root + sectors(size.root_mib() + 1);
    let script = work.join("mbr.sfdisk");
    let text = format!(
        "label: dos\nlabel-id: 0xe210d15c\n\
         start={}, size={}, type=c, bootable\nstart={extended}, size={}, type=f\n\
         start={root}, size={}, type=83\nstart={swap}, size={}, type=82\n",
        sectors(1),
        sectors(ESP_MIB),
        swap + sectors(SWAP_MIB) - extended,
        sectors(size.root_mib()),
        sectors(SWAP_MIB)
    );
    fs::write(&script, text).context("writing sfdisk's script")?;
    run(Command::new("sh").arg("-c").arg("sfdisk -q \"$1\" <\"$0\"").arg(&script).arg(disk.path())).map(drop)
}

/// Writes a GPT with these partitions: start and length in bytes, and sgdisk's code for the type. BIOS starts the first
/// of them.
///
/// # Errors
/// If sgdisk fails.
pub fn partition(disk: &Disk, partitions: &[(u64, u64, &str)]) -> Result<()> {
    let mut sgdisk = Command::new("sgdisk");
    sgdisk.args(["-a", "1", "-U", "e210d15c-0000-4000-8000-000000000001"]);
    for (index, (start, len, kind)) in partitions.iter().enumerate() {
        let n = index + 1;
        sgdisk.arg("-n").arg(format!("{n}:{}:{}", start / 512, (start + len) / 512 - 1));
        sgdisk.arg("-t").arg(format!("{n}:{kind}"));
        sgdisk.arg("-u").arg(format!("{n}:e210d15c-0000-4000-8000-0000000001{n:02}"));
    }
    // Attribute 2 is "legacy BIOS bootable", which gptmbr.bin looks for.
    run(sgdisk.args(["-A", "1:set:2"]).arg(disk.path())).map(drop)
}

/// Makes a FAT32 in this file that starts a kernel in BIOS and UEFI.
///
/// # Errors
/// If a program fails.
pub fn make_bootable_esp(image: &Path, kernel: &Path, initrd: &Path, append: &str, work: &Path) -> Result<()> {
    let config = work.join("syslinux.cfg");
    let text = format!("DEFAULT golden\nLABEL golden\n  LINUX /vmlinuz\n  INITRD /initrd.img\n  APPEND {append}\n");
    fs::write(&config, text).context("writing syslinux.cfg")?;
    run(Command::new("mkfs.vfat").args(["-F", "32", "-n", "ESP", "-i", "e210c10e"]).arg(image))?;
    run(Command::new("mmd").arg("-i").arg(image).args(["::EFI", "::EFI/BOOT"]))?;
    for (from, to) in [
        (kernel, "::vmlinuz"),
        (initrd, "::initrd.img"),
        (config.as_path(), "::syslinux.cfg"),
        (Path::new("/usr/lib/SYSLINUX.EFI/efi64/syslinux.efi"), "::EFI/BOOT/BOOTX64.EFI"),
        (Path::new("/usr/lib/syslinux/modules/efi64/ldlinux.e64"), "::EFI/BOOT/ldlinux.e64"),
    ] {
        run(Command::new("mcopy").arg("-i").arg(image).arg(from).arg(to))?;
    }
    run(Command::new("syslinux").arg("--install").arg(image)).map(drop)
}

/// A file of this host that is copied to the golden disk.
#[derive(Debug, Hash)]
struct HostFile {
    path: PathBuf,
    len: u64,
}

/// Real files of every size, up to `bytes` in total, ordered by name.
fn files_of_this_host(bytes: u64) -> Result<Vec<HostFile>> {
    let mut files = Vec::new();
    let mut left = bytes;
    for top in ["/usr/lib/x86_64-linux-gnu", "/usr/share", "/usr/lib"] {
        collect(Path::new(top), &mut left, &mut files)?;
    }
    ensure!(left < bytes / 20, "this host has not enough files under /usr to fill a golden disk");
    Ok(files)
}

fn collect(dir: &Path, left: &mut u64, files: &mut Vec<HostFile>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        // A package may be installed or removed meanwhile, and only root can read some files.
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() {
            let _ = collect(&path, left, files);
        } else if meta.is_file() && meta.len() <= *left && fs::File::open(&path).is_ok() {
            // A file takes whole blocks of 4096 bytes, however small it is.
            *left -= meta.len().next_multiple_of(4096).min(*left);
            files.push(HostFile { path, len: meta.len() });
        }
    }
    Ok(())
}

fn fill_root(root: &Path, files: &[HostFile]) -> Result<()> {
    for dir in ["bin", "sbin", "etc", "proc", "sys", "dev", "usr"] {
        fs::create_dir_all(root.join(dir)).context("creating the golden root")?;
    }
    fs::copy(find_program("busybox").context("finding busybox")?, root.join("bin/busybox"))
        .context("copying busybox")?;
    fs::write(root.join("etc/hostname"), "golden\n").context("writing the host's name")?;
    fs::write(root.join("sbin/init"), ROOT_INIT).context("writing init")?;
    initrd::make_executable(&root.join("sbin/init"))?;

    let sample_every = (files.iter().map(|file| file.len).sum::<u64>() / SAMPLE_BYTES).max(1);
    let mut sample = Command::new("sha256sum");
    sample.current_dir(root);
    for (n, file) in files.iter().enumerate() {
        let inside = file.path.strip_prefix("/").context("a path that is not absolute")?;
        let to = root.join(inside);
        fs::create_dir_all(to.parent().context("a file without a directory")?).context("creating a directory")?;
        fs::copy(&file.path, &to).with_context(|| format!("copying {}", file.path.display()))?;
        let escaped = inside.to_string_lossy().contains(['\\', '\n']);
        if (n as u64).is_multiple_of(sample_every) && !escaped {
            sample.arg(inside);
        }
    }
    let sums = run(sample.arg("bin/busybox"))?;
    fs::write(root.join("etc/sample.sha256"), sums).context("writing the sample's hashes")
}

/// The clone's init. It prints only what it has checked.
const ROOT_INIT: &str = r#"#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B hostname -F /etc/hostname
cd /
if $B sha256sum -c /etc/sample.sha256 >/dev/null; then
    echo "EZIO-CLONE-READY $($B hostname)" >/dev/console
    echo "$($B hostname) login: " >/dev/console
else
    echo "EZIO-CLONE-BROKEN: files differ from their hashes" >/dev/console
fi
echo o >/proc/sysrq-trigger
$B sleep 60
"#;

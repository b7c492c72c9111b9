//! The golden disk's own initramfs: busybox, and the modules it needs to see its disk.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::find_program;
use crate::process::run;

/// Drivers of every disk that a virtual rack may have, if the kernel has them as modules.
const WANTED: [&str; 9] =
    ["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "nvme", "ahci", "crc32c_generic", "ext4", "vfat"];

/// Unpacks the modules it needs from the RAM system's initramfs, in load order.
///
/// # Errors
/// If the initramfs cannot be unpacked or has no modules.
pub fn modules(ram_system: &Path, work: &Path) -> Result<Vec<PathBuf>> {
    let unpacked = work.join("modules");
    fs::create_dir_all(&unpacked).context("creating a directory for modules")?;
    let mut unpack = Command::new("sh");
    unpack.arg("-c").arg("zstd -dcq \"$0\" | cpio -id --quiet --no-absolute-filenames '*lib/modules/*'");
    run(unpack.arg(ram_system).current_dir(&unpacked))?;
    let top = unpacked.join("lib/modules");
    let version = fs::read_dir(&top).ok().and_then(|mut dirs| dirs.next()).context("there are no modules in it")??;
    let dep = fs::read_to_string(version.path().join("modules.dep")).context("reading modules.dep")?;
    Ok(load_order(&dep, &WANTED).iter().map(|module| version.path().join(module)).collect())
}

/// Writes the initramfs that loads `modules`, finds the file system with this UUID, and continues there.
///
/// # Errors
/// If it cannot be packed.
pub fn write(modules: &[PathBuf], root_uuid: &str, work: &Path) -> Result<PathBuf> {
    let tree = work.join("initrd");
    for dir in ["bin", "modules", "proc", "sys", "dev", "root"] {
        fs::create_dir_all(tree.join(dir)).context("creating the initramfs tree")?;
    }
    fs::copy(find_program("busybox").context("finding busybox")?, tree.join("bin/busybox"))
        .context("copying busybox")?;
    let mut order = String::new();
    for module in modules {
        let name = module.file_name().context("a module without a name")?;
        fs::copy(module, tree.join("modules").join(name)).context("copying a module")?;
        order += &format!("/modules/{}\n", name.to_string_lossy());
    }
    fs::write(tree.join("modules/order"), order).context("writing the order of modules")?;
    fs::write(tree.join("init"), INIT.replace("ROOT_UUID", root_uuid)).context("writing init")?;
    make_executable(&tree.join("init"))?;
    let path = work.join("initrd.img");
    let mut pack = Command::new("sh");
    pack.arg("-c").arg("find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet --reproducible | zstd -q -3 -o \"$0\"");
    run(pack.arg(&path).current_dir(&tree))?;
    Ok(path)
}

/// Sets mode 755.
///
/// # Errors
/// If the file belongs to another user.
pub fn make_executable(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| format!("marking {}", path.display()))
}

/// Modules and their dependencies, each after its own dependencies; a module that is not listed is built in.
fn load_order(modules_dep: &str, wanted: &[&str]) -> Vec<String> {
    let parse = |line: &str| -> Option<(String, Vec<String>)> {
        let (module, needs) = line.split_once(':')?;
        // depmod lists the module that is loaded first at the end.
        Some((module.to_string(), needs.split_whitespace().rev().map(String::from).collect()))
    };
    let needs: HashMap<String, Vec<String>> = modules_dep.lines().filter_map(parse).collect();
    let name_of = |path: &str| -> String {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split('.').next().unwrap_or(file).replace('-', "_")
    };
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let Some((module, needs)) = needs.iter().find(|(path, _)| name_of(path) == *name) else { continue };
        for path in needs.iter().chain([module]) {
            if !order.contains(path) {
                order.push(path.clone());
            }
        }
    }
    order
}

const INIT: &str = r#"#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs devtmpfs /dev
while read module; do $B insmod $module 2>/dev/null; done </modules/order
tries=0
until root=$($B findfs UUID=ROOT_UUID) && $B mount -o ro $root /root; do
    tries=$((tries + 1))
    if [ $tries -gt 300 ]; then
        echo "EZIO-CLONE-BROKEN: no file system with UUID ROOT_UUID"
        echo o >/proc/sysrq-trigger
    fi
    $B sleep 0.1
done
$B mount -o move /dev /root/dev
exec $B switch_root /root /sbin/init
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first() {
        let dep = "kernel/a/virtio_blk.ko: kernel/v/virtio_ring.ko kernel/v/virtio.ko\n\
                   kernel/v/virtio_ring.ko: kernel/v/virtio.ko\nkernel/v/virtio.ko:\n\
                   kernel/s/sd-mod.ko: kernel/v/virtio.ko\n";
        let order = load_order(dep, &["virtio_blk", "nvme", "sd_mod"]);
        let expected =
            ["kernel/v/virtio.ko", "kernel/v/virtio_ring.ko", "kernel/a/virtio_blk.ko", "kernel/s/sd-mod.ko"];
        assert_eq!(order, expected);
    }
}

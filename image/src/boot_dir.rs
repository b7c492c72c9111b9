//! Builds a boot directory: completely or not at all, and only if something has changed.

use netboot::loaders::{BOOT_SCHEMA, LOADERS};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::apt::{Apt, Unpacked};
use crate::flavour::Flavour;
use crate::initramfs::{self, Initramfs};
use crate::kernel::Kernel;

/// What to build, from which inputs, and where.
pub struct Request {
    pub flavour: Flavour,
    pub init: PathBuf,
    pub out: PathBuf,
    pub level: i32,
    pub cache: PathBuf,
    pub ipxe: PathBuf,
    pub refresh: bool,
}

const MANIFEST: &str = "manifest.json";

/// The description that a boot directory contains.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    schema: u64,
    flavour: String,
    kernel: String,
    packages: Vec<String>,
    compression_level: i32,
    /// SHA-256 of everything that the directory was made from.
    inputs: String,
    files: BTreeMap<String, FileFacts>,
    initramfs_unpacked_bytes: u64,
    initramfs_members: usize,
    modules: BTreeSet<String>,
    firmware: BTreeSet<String>,
    firmware_missing: BTreeMap<String, BTreeSet<String>>,
    firmware_packages_missing: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct FileFacts {
    bytes: u64,
    sha256: String,
}

/// The result of a build, as text.
pub struct Done {
    manifest: Manifest,
    fresh: bool,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Manifest { flavour, kernel, modules, firmware, files, .. } = &self.manifest;
        let size = |name: &str| units::size(files.get(name).map_or(0, |facts| facts.bytes));
        write!(f, "{flavour}, kernel {kernel} ({}), ", size("vmlinuz"))?;
        write!(f, "initramfs {} ", size("initrd.img"))?;
        write!(f, "({} unpacked, ", units::size(self.manifest.initramfs_unpacked_bytes))?;
        write!(f, "{} modules, {} firmware files)", modules.len(), firmware.len())?;
        if self.fresh { Ok(()) } else { write!(f, ", up to date") }
    }
}

/// Builds the boot directory, unless it already exists and was made from the same inputs.
pub fn build(request: &Request) -> Result<Done> {
    let init = initramfs::read_init(&request.init)?;
    let loaders = LOADERS.map(|name| request.ipxe.join(name));
    for loader in &loaders {
        ensure!(loader.is_file(), "there is no {} (apt-get install ipxe)", loader.display());
    }
    let apt = Apt::open(&request.cache, request.refresh)?;
    let package = apt.dependency(request.flavour.kernel_package(), "linux-image-")?;
    let (firmware, firmware_packages_missing) = firmware_packages(&apt, request.flavour);
    let packages: Vec<_> = [&package].into_iter().chain(&firmware).map(|package| package.file.clone()).collect();
    let inputs = inputs(request, &init, &packages, &loaders)?;
    if let Some(manifest) = up_to_date(&request.out, &inputs) {
        return Ok(Done { manifest, fresh: false });
    }

    let kernel = Kernel::open(&package)?;
    let content = initramfs::collect(request.flavour, init, &kernel, &firmware)?;
    report_missing(&content);

    let parent = request.out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(parent).context("making a directory to build in")?;
    let unpacked_bytes = compress(&content, request.level, &new.path().join("initrd.img"))?;
    copy(&kernel.vmlinuz, &new.path().join("vmlinuz"))?;
    for (name, loader) in LOADERS.iter().zip(&loaders) {
        copy(loader, &new.path().join(name))?;
    }
    let mut files = BTreeMap::new();
    for name in LOADERS.into_iter().chain(["vmlinuz", "initrd.img"]) {
        files.insert(name.to_owned(), facts(&new.path().join(name))?);
    }
    let manifest = Manifest {
        schema: BOOT_SCHEMA,
        flavour: request.flavour.name().to_owned(),
        kernel: kernel.release,
        packages,
        compression_level: request.level,
        inputs,
        files,
        initramfs_unpacked_bytes: unpacked_bytes,
        initramfs_members: content.archive.len(),
        modules: content.modules,
        firmware: content.firmware,
        firmware_missing: content.firmware_missing,
        firmware_packages_missing,
    };
    let text = serde_json::to_string_pretty(&manifest).context("writing the manifest")? + "\n";
    fs::write(new.path().join(MANIFEST), text).context("writing the manifest")?;
    swap_in(new, &request.out)?;
    Ok(Done { manifest, fresh: true })
}

/// The available firmware packages, and the names of those that are not available. Missing ones are reported but stop
/// nothing, because most drivers work without firmware.
fn firmware_packages(apt: &Apt, flavour: Flavour) -> (Vec<Unpacked>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in flavour.firmware_packages() {
        match apt.package(name) {
            Ok(package) => found.push(package),
            Err(error) => {
                eprintln!("warning: continuing without the firmware in {name}: {error:#}");
                missing.push((*name).to_owned());
            }
        }
    }
    (found, missing)
}

fn report_missing(content: &Initramfs) {
    let missing = &content.firmware_missing;
    if missing.is_empty() {
        return;
    }
    let drivers: BTreeSet<_> = missing.values().flatten().map(String::as_str).collect();
    let drivers = drivers.into_iter().collect::<Vec<_>>().join(" ");
    eprintln!(
        "note: {} firmware files that drivers list are in none of the packages ({MANIFEST} names them); drivers: {drivers}",
        missing.len(),
    );
}

/// One hash over everything that determines the directory's contents, including this program.
fn inputs(request: &Request, init: &[u8], packages: &[String], loaders: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(request.flavour.name().as_bytes());
    add(&request.level.to_le_bytes());
    add(init);
    for package in packages {
        add(package.as_bytes());
    }
    let program = std::env::current_exe().context("finding this program")?;
    for path in loaders.iter().chain([&program]) {
        add(&fs::read(path).with_context(|| format!("reading {}", path.display()))?);
    }
    Ok(hex(&hash.finalize()))
}

/// The manifest of `out`, if it was made from `inputs` and its files still have the same lengths.
fn up_to_date(out: &Path, inputs: &str) -> Option<Manifest> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(out.join(MANIFEST)).ok()?).ok()?;
    let whole = |(name, facts): (&String, &FileFacts)| {
        fs::metadata(out.join(name)).is_ok_and(|metadata| metadata.len() == facts.bytes)
    };
    (manifest.schema == BOOT_SCHEMA && manifest.inputs == inputs && manifest.files.iter().all(whole))
        .then_some(manifest)
}

/// Writes the initramfs and returns its unpacked size, in bytes.
fn compress(content: &Initramfs, level: i32, to: &Path) -> Result<u64> {
    let writing = || format!("writing {}", to.display());
    let mut archive = Vec::new();
    content.archive.write(&mut archive).with_context(writing)?;
    let out = BufWriter::new(File::create(to).with_context(writing)?);
    let mut encoder = zstd::Encoder::new(out, level).with_context(writing)?;
    encoder.set_pledged_src_size(Some(archive.len() as u64)).with_context(writing)?;
    io::copy(&mut archive.as_slice(), &mut encoder).with_context(writing)?;
    encoder.finish().and_then(|mut out| out.flush()).with_context(writing)?;
    Ok(archive.len() as u64)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, Permissions::from_mode(0o644)).with_context(|| format!("opening up {}", to.display()))
}

fn facts(path: &Path) -> Result<FileFacts> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(FileFacts { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(&bytes)) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Replaces the old directory by the new one in one step: a server that reads it sees one or the other.
fn swap_in(new: tempfile::TempDir, out: &Path) -> Result<()> {
    let moving = || format!("moving the new boot directory to {}", out.display());
    fs::set_permissions(new.path(), Permissions::from_mode(0o755)).with_context(moving)?;
    if out.exists() {
        // The old directory is now the temporary one, and is deleted with it.
        renameat2(AT_FDCWD, new.path(), AT_FDCWD, out, RenameFlags::RENAME_EXCHANGE).with_context(moving)?;
        new.close().context("removing the old boot directory")
    } else {
        fs::rename(new.path(), out).with_context(moving)?;
        let _moved_away = new.keep();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::fixture;

    /// A kernel package with two modules, in its state after unpacking and indexing.
    fn kernel(root: &Path) -> Unpacked {
        let modules = root.join("lib/modules/6.1.0-test");
        let net = modules.join("kernel/drivers/net");
        fs::create_dir_all(&net).unwrap();
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(root.join("boot/vmlinuz-6.1.0-test"), "kernel").unwrap();
        fs::write(net.join("virtio_net.ko"), fixture::module(&["firmware=gone.bin"])).unwrap();
        fs::write(net.join("tun.ko"), fixture::module(&[])).unwrap();
        let dep = "kernel/drivers/net/virtio_net.ko:\nkernel/drivers/net/tun.ko:\n";
        let indexes = [("dep", dep), ("alias", "alias virtio:d1v* virtio_net\n"), ("softdep", ""), ("builtin", "b\n")];
        for (name, text) in indexes.into_iter().chain([("devname", "")]) {
            fs::write(modules.join(format!("modules.{name}")), text).unwrap();
        }
        Unpacked { file: "linux-image.deb".into(), root: root.to_owned() }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let package = kernel(&dir.path().join("package"));
        let image = |name: &str| {
            let kernel = Kernel::open(&package).unwrap();
            let content = initramfs::collect(Flavour::Cloud, b"init".to_vec(), &kernel, &[]).unwrap();
            assert_eq!(content.modules, BTreeSet::from(["kernel/drivers/net/virtio_net.ko".to_owned()]));
            assert_eq!(content.firmware_missing.keys().collect::<Vec<_>>(), ["gone.bin"]);
            let path = dir.path().join(name);
            let unpacked = compress(&content, 3, &path).unwrap();
            let bytes = fs::read(path).unwrap();
            let archive = zstd::decode_all(bytes.as_slice()).unwrap();
            assert_eq!(archive.len() as u64, unpacked);
            for path in ["init", "lib/modules/6.1.0-test/modules.builtin", "lib/firmware", "proc"] {
                let name = format!("{path}\0");
                assert!(archive.windows(name.len()).any(|window| window == name.as_bytes()), "{path}");
            }
            bytes
        };
        assert_eq!(image("one"), image("two"));
    }

    #[test]
    fn a_new_directory_replaces_the_old_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("cloud");
        for generation in ["1", "2"] {
            let new = tempfile::Builder::new().prefix(".new-").tempdir_in(dir.path()).unwrap();
            fs::write(new.path().join(generation), generation).unwrap();
            swap_in(new, &out).unwrap();
            let names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, [generation]);
            assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o755);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
        }
    }

    #[test]
    fn missing_inputs_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let request = Request {
            flavour: Flavour::Cloud,
            init: dir.path().join("init"),
            out: dir.path().join("out"),
            level: 3,
            cache: dir.path().join("cache"),
            ipxe: dir.path().join("ipxe"),
            refresh: false,
        };
        let error = |request| format!("{:#}", build(request).err().unwrap());
        assert!(error(&request).contains("make build"), "{}", error(&request));
        fs::write(&request.init, fixture::program(1)).unwrap();
        assert!(error(&request).contains("apt-get install ipxe"), "{}", error(&request));
        assert!(!request.out.exists());
    }
}

//! The contents of the initramfs: `/init`, modules, their indexes and firmware, and the directories to mount on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::apt::Unpacked;
use crate::cpio::Archive;
use crate::flavour::Flavour;
use crate::kernel::Kernel;
use crate::modules::{Index, module_name};
use crate::{elf, firmware};

/// The largest `/init`, in bytes. It is unpacked into RAM on every machine; a larger one has one dependency too many.
const INIT_MAX: usize = 6_000_000;
/// The last member: if it is missing, `/init` knows that memory was too small to unpack the others.
const LAST: &str = "unpacked";
/// Directories that `/init` mounts on or writes to.
const DIRECTORIES: [&str; 6] = ["dev", "etc", "proc", "run", "sys", "tmp"];

/// An initramfs and a list of its contents.
pub struct Initramfs {
    pub archive: Archive,
    /// Paths as in `modules.dep`.
    pub modules: BTreeSet<String>,
    /// Firmware names as drivers request them.
    pub firmware: BTreeSet<String>,
    /// Names of missing firmware, with the modules that list them.
    pub firmware_missing: BTreeMap<String, BTreeSet<String>>,
}

/// Reads `/init` and checks that it can run as the first process of a system without libraries.
pub fn read_init(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let init = fs::read(path).with_context(|| format!("reading /init from {name} (`make build` makes it)"))?;
    elf::check_static_program(&init).with_context(|| format!("{name} cannot be /init"))?;
    ensure!(
        init.len() <= INIT_MAX,
        "{name} cannot be /init: it has {} bytes, at most {INIT_MAX} are allowed",
        init.len()
    );
    Ok(init)
}

/// Assembles the initramfs of a flavour.
pub fn collect(flavour: Flavour, init: Vec<u8>, kernel: &Kernel, packages: &[Unpacked]) -> Result<Initramfs> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    archive.file("init", true, init)?;

    let index = Index::read(&kernel.modules)?;
    let modules = index.select(|module| flavour.wants(module))?;
    ensure!(!modules.is_empty(), "the kernel {} has none of the modules that are wanted", kernel.release);
    let dir = format!("lib/modules/{}", kernel.release);
    let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for module in &modules {
        let path = kernel.modules.join(module);
        let bytes = fs::read(&path).with_context(|| format!("reading the module {}", path.display()))?;
        let names = firmware::names(&bytes).with_context(|| format!("reading the module {}", path.display()))?;
        for name in names {
            wanted.entry(name).or_default().insert(module_name(module));
        }
        archive.file(&format!("{dir}/{module}"), false, bytes)?;
    }
    let cut = index.cut(&modules);
    archive.file(&format!("{dir}/modules.dep"), false, cut.dep.into_bytes())?;
    archive.file(&format!("{dir}/modules.alias"), false, cut.alias.into_bytes())?;
    archive.file(&format!("{dir}/modules.softdep"), false, cut.softdep.into_bytes())?;
    // The list is included completely: a built-in module counts as loaded, and the list is short.
    let builtin = kernel.modules.join("modules.builtin");
    let builtin = fs::read(&builtin).with_context(|| format!("reading {}", builtin.display()))?;
    archive.file(&format!("{dir}/modules.builtin"), false, builtin)?;

    archive.directory("lib/firmware")?;
    let found = firmware::find(wanted, packages)?;
    for (name, path) in &found.files {
        let bytes = fs::read(path).with_context(|| format!("reading the firmware {}", path.display()))?;
        archive.file(&format!("lib/firmware/{name}"), false, bytes)?;
    }
    archive.file(LAST, false, Vec::new())?;
    Ok(Initramfs { archive, modules, firmware: found.files.into_keys().collect(), firmware_missing: found.missing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::fixture;

    #[test]
    fn the_last_member_comes_last() {
        for earlier in DIRECTORIES.iter().chain(&["init", "lib"]) {
            assert!(*earlier < LAST, "members are sorted by name: {earlier}");
        }
    }

    fn check(bytes: &[u8], expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init");
        fs::write(&path, bytes).unwrap();
        let error = format!("{:#}", read_init(&path).unwrap_err());
        assert!(error.contains(expected) && error.contains("/init"), "{error}");
    }

    #[test]
    fn an_init_that_cannot_run_is_refused() {
        check(b"", "not an ELF file");
        check(&fixture::program(3), "must be static");
        let mut large = fixture::program(1);
        large.resize(INIT_MAX + 1, 0);
        check(&large, "at most 6000000");
        let error = format!("{:#}", read_init(Path::new("/nonexistent/init")).unwrap_err());
        assert!(error.contains("/nonexistent/init") && error.contains("make build"), "{error}");
    }
}

//! Debian's signed kernel, unchanged from its package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt::{self, Unpacked};

/// An unpacked kernel package, with module indexes.
#[derive(Debug)]
pub struct Kernel {
    /// Its release, as shown by `uname -r`.
    pub release: String,
    pub vmlinuz: PathBuf,
    /// `/lib/modules/<release>` of the package.
    pub modules: PathBuf,
}

/// The last file that depmod writes: if it exists, all of them do.
const LAST_INDEX: &str = "modules.devname";

impl Kernel {
    /// Opens an unpacked kernel package, and lets depmod write the module indexes if they do not exist yet.
    pub fn open(package: &Unpacked) -> Result<Self> {
        let kernel = Self::find(&package.root).with_context(|| format!("looking into the package {}", package.file))?;
        if !kernel.modules.join(LAST_INDEX).exists() {
            apt::run(Command::new(depmod()).arg("-b").arg(&package.root).arg(&kernel.release))
                .context("indexing the kernel's modules (depmod is in the package kmod)")?;
        }
        Ok(kernel)
    }

    fn find(root: &Path) -> Result<Self> {
        let releases = root.join("lib/modules");
        let mut names = Vec::new();
        for entry in
            fs::read_dir(&releases).with_context(|| format!("listing the modules in {}", releases.display()))?
        {
            names.push(entry.context("listing the modules")?.file_name().to_string_lossy().into_owned());
        }
        ensure!(names.len() == 1, "{} holds {} kernels' modules, not one", releases.display(), names.len());
        let release = names.remove(0);
        let vmlinuz = root.join(format!("boot/vmlinuz-{release}"));
        ensure!(vmlinuz.is_file(), "it has modules of {release} but no kernel boot/vmlinuz-{release}");
        Ok(Self { modules: releases.join(&release), vmlinuz, release })
    }
}

/// The path of depmod, which is not in the PATH of ordinary users.
fn depmod() -> &'static str {
    ["/usr/sbin/depmod", "/sbin/depmod"].into_iter().find(|path| Path::new(path).exists()).unwrap_or("depmod")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let package = Unpacked { file: "linux-image-1.deb".into(), root: dir.path().to_owned() };
        let error = format!("{:#}", Kernel::open(&package).unwrap_err());
        assert!(error.contains(expected) && error.contains("linux-image-1.deb"), "{error}");
    }

    #[test]
    fn packages_that_are_no_kernel_are_refused() {
        check(&[], "listing the modules");
        check(&["lib/modules/1/x"], "no kernel boot/vmlinuz-1");
        check(&["lib/modules/1/x", "lib/modules/2/x", "boot/vmlinuz-1"], "2 kernels' modules");
    }
}

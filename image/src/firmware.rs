//! Finds the firmware that a selection of modules may request.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt::Unpacked;
use crate::elf;

/// Where packages keep firmware.
const DIRS: [&str; 2] = ["lib/firmware", "usr/lib/firmware"];

/// Firmware found and firmware that no package had.
#[derive(Debug, Default)]
pub struct Found {
    /// Firmware name, as drivers request it, and its file.
    pub files: BTreeMap<String, PathBuf>,
    /// Firmware name, and the modules that may request it.
    pub missing: BTreeMap<String, BTreeSet<String>>,
}

/// The names of the firmware files that a module's `.modinfo` lists.
pub fn names(module: &[u8]) -> Result<Vec<String>> {
    let pairs = elf::modinfo(module)?;
    Ok(pairs.into_iter().filter(|(key, _)| key == "firmware").map(|(_, name)| name).collect())
}

/// Searches `packages` for every file in `wanted`, which maps firmware to the modules that list it.
pub fn find(wanted: BTreeMap<String, BTreeSet<String>>, packages: &[Unpacked]) -> Result<Found> {
    let mut found = Found::default();
    for (name, modules) in wanted {
        let places = packages.iter().flat_map(|package| DIRS.map(|dir| package.root.join(dir).join(&name)));
        let escapes = name.split('/').any(|part| part == "..");
        match places.into_iter().find(|place| place.is_file()) {
            // Links are followed, because the same blob may have several names. Absolute links would leave the package.
            Some(place) if !escapes => {
                let file = fs::canonicalize(&place).with_context(|| format!("finding {}", place.display()))?;
                let inside = packages.iter().any(|package| file.starts_with(&package.root));
                if inside {
                    found.files.insert(name, file);
                } else {
                    found.missing.insert(name, modules);
                }
            }
            _ => {
                found.missing.insert(name, modules);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::elf::fixture;

    #[test]
    fn names_come_from_modinfo() {
        let module = fixture::module(&["license=GPL", "firmware=rtl_nic/rtl8168d-1.fw", "firmware=b.bin"]);
        assert_eq!(names(&module).unwrap(), ["rtl_nic/rtl8168d-1.fw", "b.bin"]);
        assert!(names(b"not a module").is_err());
    }

    #[test]
    fn links_are_followed_inside_packages_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let firmware = root.join("lib/firmware");
        fs::create_dir_all(&firmware).unwrap();
        fs::write(firmware.join("real-1.2.bin"), "x").unwrap();
        symlink("real-1.2.bin", firmware.join("alias.bin")).unwrap();
        symlink("/etc/passwd", firmware.join("outside.bin")).unwrap();
        let wanted = ["real-1.2.bin", "alias.bin", "outside.bin", "gone.bin", "../firmware/real-1.2.bin"];
        let wanted = wanted.map(|name| (name.to_owned(), BTreeSet::from(["driver".to_owned()])));
        let packages = [Unpacked { file: "firmware.deb".into(), root }];
        let found = find(wanted.into(), &packages).unwrap();
        assert_eq!(found.files.keys().collect::<Vec<_>>(), ["alias.bin", "real-1.2.bin"]);
        let missing: Vec<_> = found.missing.keys().collect();
        assert_eq!(missing, ["../firmware/real-1.2.bin", "gone.bin", "outside.bin"]);
    }
}

//! The kernel's modules: their dependencies, and the index files reduced to a selection.
//!
//! Index files are the text that depmod writes: `modules.dep`, `modules.alias`, `modules.softdep`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// The data of depmod about one kernel's modules.
#[derive(Debug, Default)]
pub struct Index {
    /// Path and the paths it needs, in the file's order.
    deps: Vec<(String, Vec<String>)>,
    /// Pattern and module name, in the file's order.
    aliases: Vec<(String, String)>,
    /// Module name and the rest of the line, in the file's order.
    softdeps: Vec<(String, String)>,
    /// Index of each module in `deps`, by name.
    by_name: HashMap<String, usize>,
    /// Index of each module in `deps`, by path.
    by_path: HashMap<String, usize>,
}

/// The reduced index files, ready to be written.
pub struct Cut {
    pub dep: String,
    pub alias: String,
    pub softdep: String,
}

/// The kernel's name for the module in a file: without directory and suffix, and with `_` for `-`.
pub fn module_name(path: &str) -> String {
    let file = path.rsplit_once('/').map_or(path, |(_, file)| file);
    file.split_once(".ko").map_or(file, |(name, _)| name).replace('-', "_")
}

impl Index {
    /// Reads the index files in `/lib/modules/<release>`.
    pub fn read(dir: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading the module index {}", path.display()))
        };
        Self::parse(&text("modules.dep")?, &text("modules.alias")?, &text("modules.softdep")?)
            .with_context(|| format!("reading the module indexes in {}", dir.display()))
    }

    fn parse(dep: &str, alias: &str, softdep: &str) -> Result<Self> {
        let mut index = Self::default();
        for line in lines(dep) {
            let (path, needs) =
                line.split_once(':').with_context(|| format!("modules.dep has no colon in {line:?}"))?;
            if !path.ends_with(".ko") {
                bail!("{path} is compressed, which is not supported: Debian 12's modules are not");
            }
            index.by_name.insert(module_name(path), index.deps.len());
            index.by_path.insert(path.to_owned(), index.deps.len());
            index.deps.push((path.to_owned(), needs.split_whitespace().map(str::to_owned).collect()));
        }
        for line in lines(alias) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let ["alias", pattern, module] = fields[..] else { bail!("modules.alias has the line {line:?}") };
            index.aliases.push((pattern.to_owned(), module.replace('-', "_")));
        }
        for line in lines(softdep) {
            let rest = line.strip_prefix("softdep ").and_then(|rest| rest.split_once(' '));
            let (module, rest) = rest.with_context(|| format!("modules.softdep has the line {line:?}"))?;
            index.softdeps.push((module.replace('-', "_"), rest.to_owned()));
        }
        ensure!(!index.deps.is_empty(), "modules.dep lists no module");
        Ok(index)
    }

    /// The paths of the modules that `wants` accepts, and of all their dependencies, including soft ones.
    pub fn select(&self, wants: impl Fn(&str) -> bool) -> Result<BTreeSet<String>> {
        let mut selected = BTreeSet::new();
        let mut todo: Vec<usize> = (0..self.deps.len()).filter(|at| wants(&self.deps[*at].0)).collect();
        while let Some(at) = todo.pop() {
            let (path, needs) = &self.deps[at];
            if !selected.insert(path.clone()) {
                continue;
            }
            for need in needs {
                let at = self.by_path.get(need);
                todo.push(*at.with_context(|| format!("{path} needs {need}, which modules.dep does not list"))?);
            }
            todo.extend(self.soft_needs(&module_name(path)));
        }
        Ok(selected)
    }

    /// The modules that `module` requests without depending on them, except those built into the kernel.
    fn soft_needs(&self, module: &str) -> impl Iterator<Item = usize> {
        let lines = self.softdeps.iter().filter(move |(name, _)| name == module);
        let names = lines.flat_map(|(_, rest)| rest.split_whitespace()).filter(|word| !word.ends_with(':'));
        names.flat_map(|name| {
            let direct = self.by_name.get(&name.replace('-', "_")).copied();
            let aliases = self.aliases.iter().filter(move |(pattern, _)| pattern == name);
            aliases.filter_map(|(_, module)| self.by_name.get(module).copied()).chain(direct)
        })
    }

    /// The index files, reduced to the lines about the modules in `selected`.
    pub fn cut(&self, selected: &BTreeSet<String>) -> Cut {
        let names: HashSet<String> = selected.iter().map(|path| module_name(path)).collect();
        let mut cut = Cut { dep: String::new(), alias: String::new(), softdep: String::new() };
        for (path, needs) in self.deps.iter().filter(|(path, _)| selected.contains(path)) {
            cut.dep += &[&[format!("{path}:")], &needs[..]].concat().join(" ");
            cut.dep.push('\n');
        }
        for (pattern, module) in self.aliases.iter().filter(|(_, module)| names.contains(module)) {
            cut.alias += &format!("alias {pattern} {module}\n");
        }
        for (module, rest) in self.softdeps.iter().filter(|(module, _)| names.contains(module)) {
            cut.softdep += &format!("softdep {module} {rest}\n");
        }
        cut
    }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/r8169.ko: kernel/net/libphy.ko kernel/net/mdio-devres.ko\n\
        kernel/net/libphy.ko:\n\
        kernel/net/mdio-devres.ko: kernel/net/libphy.ko\n\
        kernel/net/phy/realtek.ko: kernel/net/libphy.ko\n\
        kernel/fs/ext4.ko:\n\
        kernel/crypto/crc32c_generic.ko:\n\
        kernel/crypto/crc32c-intel.ko:\n";
    const ALIAS: &str = "# Aliases\nalias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169\nalias fs-ext4 ext4\n\
        alias crypto-crc32c crc32c_generic\nalias crypto-crc32c crc32c_intel\nalias mdio:000?1 realtek\n";
    const SOFTDEP: &str = "softdep r8169 pre: realtek builtin_thing\nsoftdep ext4 pre: crypto-crc32c\n";

    fn index() -> Index {
        Index::parse(DEP, ALIAS, SOFTDEP).unwrap()
    }

    fn check(wanted: &str, expected: &[&str]) {
        let selected = index().select(|path| module_name(path) == wanted).unwrap();
        assert_eq!(selected.iter().map(|path| module_name(path)).collect::<Vec<_>>(), expected, "{wanted}");
    }

    #[test]
    fn closure_follows_needs_and_soft_needs() {
        check("r8169", &["libphy", "mdio_devres", "realtek", "r8169"]);
        check("libphy", &["libphy"]);
        check("ext4", &["crc32c_intel", "crc32c_generic", "ext4"]);
        check("nothing", &[]);
    }

    #[test]
    fn index_files_are_cut_to_the_selection() {
        let index = index();
        let cut = index.cut(&index.select(|path| path.ends_with("/r8169.ko")).unwrap());
        assert_eq!(
            cut.dep,
            "kernel/net/r8169.ko: kernel/net/libphy.ko kernel/net/mdio-devres.ko\nkernel/net/libphy.ko:\n\
             kernel/net/mdio-devres.ko: kernel/net/libphy.ko\nkernel/net/phy/realtek.ko: kernel/net/libphy.ko\n"
        );
        assert_eq!(cut.alias, "alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169\nalias mdio:000?1 realtek\n");
        assert_eq!(cut.softdep, "softdep r8169 pre: realtek builtin_thing\n");
    }

    #[test]
    fn bad_indexes_say_what_is_wrong() {
        let error = |dep, alias, softdep| Index::parse(dep, alias, softdep).unwrap_err().to_string();
        assert!(error("a.ko b.ko", "", "").contains("no colon"));
        assert!(error("a.ko.xz:", "", "").contains("compressed"));
        assert!(error("", "", "").contains("no module"));
        assert!(error(DEP, "alias x", "").contains("modules.alias"));
        assert!(error(DEP, "", "softdep x").contains("modules.softdep"));
        let dangling = Index::parse("a.ko: b.ko\n", "", "").unwrap().select(|_| true).unwrap_err();
        assert_eq!(dangling.to_string(), "a.ko needs b.ko, which modules.dep does not list");
    }
}

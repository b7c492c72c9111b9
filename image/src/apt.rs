//! Debian's packages, fetched and unpacked without touching the machine's own package state.
//!
//! apt runs on a private configuration in the cache directory: it works without root, and sees the component
//! `non-free-firmware` even if the machine's own sources leave it out. apt checks signatures as usual. Fetched packages
//! are used again until a refresh is requested, so that building is quick and works offline.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The Debian release whose kernel and firmware are used, whatever release the building machine runs.
const SUITE: &str = "bookworm";
/// The source of packages, unless the machine's own sources name another mirror of the suite.
const MIRROR: &str = "http://deb.debian.org/debian";
/// The same for security updates.
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";
/// Debian's archive keys, from the package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A cache of packages, and the private apt that fills it.
pub struct Apt {
    dir: PathBuf,
    /// Whether cached packages may be used although there may be newer ones.
    reuse: bool,
    /// Whether the package lists were fetched in this run.
    updated: Cell<bool>,
}

/// A package that was fetched and unpacked.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// The package's file name, with its version.
    pub file: String,
    /// The directory that holds its files.
    pub root: PathBuf,
}

impl Apt {
    /// Opens the cache in `dir`, and creates it if necessary.
    pub fn open(dir: &Path, refresh: bool) -> Result<Self> {
        let make = |dir: PathBuf| fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()));
        for sub in ["debs", "unpacked", "resolved", "apt/lists/partial", "apt/archives/partial"] {
            make(dir.join(sub))?;
        }
        let dir = fs::canonicalize(dir).with_context(|| format!("finding {}", dir.display()))?;
        Ok(Self { dir, reuse: !refresh, updated: Cell::new(false) })
    }

    /// The package that `metapackage` depends on, fetched and unpacked; `prefix` starts the wanted package's name.
    pub fn dependency(&self, metapackage: &str, prefix: &str) -> Result<Unpacked> {
        self.cached_or(metapackage, || {
            let shown = self.output("apt-cache", &["show", "--no-all-versions", metapackage])?;
            let package = first_dependency(&shown, prefix)
                .with_context(|| format!("{metapackage} depends on no package called {prefix}…"))?;
            self.download(package)
        })
    }

    /// A package, fetched and unpacked.
    pub fn package(&self, package: &str) -> Result<Unpacked> {
        self.cached_or(package, || self.download(package))
    }

    /// The earlier result for `name`, if it may be used; otherwise the result of `fetch`, which is stored.
    fn cached_or(&self, name: &str, fetch: impl Fn() -> Result<String>) -> Result<Unpacked> {
        let note = self.dir.join("resolved").join(name);
        if self.reuse
            && let Ok(file) = fs::read_to_string(&note)
            && self.dir.join("debs").join(&file).is_file()
        {
            return self.unpack(&file);
        }
        self.update()?;
        let file = fetch()?;
        let unpacked = self.unpack(&file)?;
        write_atomically(&note, file.as_bytes())?;
        Ok(unpacked)
    }

    /// Fetches one package's file and returns its name.
    fn download(&self, package: &str) -> Result<String> {
        println!("fetching {package}");
        let into = tempfile::tempdir_in(&self.dir).context("making a directory to download into")?;
        let mut apt = self.command("apt-get", &["download", "-qq", package])?;
        run(apt.current_dir(into.path())).with_context(|| {
            format!("fetching the Debian package {package} of {SUITE} (is the mirror reachable? see `apt-get update`)")
        })?;
        for entry in fs::read_dir(into.path()).context("listing the downloaded package")? {
            let entry = entry.context("listing the downloaded package")?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".deb") {
                let to = self.dir.join("debs").join(&name);
                fs::rename(entry.path(), &to).with_context(|| format!("moving the package to {}", to.display()))?;
                return Ok(name);
            }
        }
        bail!("fetching the Debian package {package}: apt-get ended well but left no .deb file")
    }

    /// Unpacks a fetched package, once.
    fn unpack(&self, file: &str) -> Result<Unpacked> {
        let root = self.dir.join("unpacked").join(file.trim_end_matches(".deb"));
        if !root.is_dir() {
            let into = tempfile::tempdir_in(&self.dir).context("making a directory to unpack into")?;
            let package = self.dir.join("debs").join(file);
            run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(into.path()))
                .with_context(|| format!("unpacking {} (damaged? delete it and try again)", package.display()))?;
            fs::rename(into.path(), &root).with_context(|| format!("moving unpacked files to {}", root.display()))?;
        }
        Ok(Unpacked { file: file.to_owned(), root })
    }

    /// Fetches the package lists, at most once per run.
    fn update(&self) -> Result<()> {
        if self.updated.get() {
            return Ok(());
        }
        println!("fetching the package lists of {SUITE}");
        let machine = Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)"]).output();
        let machine = machine.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let sources = sources_list(&machine, Path::new(KEYRING).exists());
        write_atomically(&self.dir.join("apt/sources.list"), sources.as_bytes())?;
        write_atomically(&self.dir.join("apt/status"), b"")?;
        write_atomically(&self.dir.join("apt/apt.conf"), self.configuration()?.as_bytes())?;
        run(&mut self.command("apt-get", &["update", "-qq"])?)
            .with_context(|| format!("fetching Debian's package lists of {SUITE} (is the mirror reachable?)"))?;
        self.updated.set(true);
        Ok(())
    }

    fn configuration(&self) -> Result<String> {
        let dir = self.dir.join("apt");
        let dir = dir.to_str().with_context(|| format!("the path {} is not text", dir.display()))?;
        ensure!(!dir.contains(['"', '\n']), "the path {dir} has a quote in it, which apt cannot take");
        // Hooks of the machine (indexes for software centres and the like) must not run for a private cache.
        Ok(format!(
            "#clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n\
             Dir::Etc::SourceList \"{dir}/sources.list\";\nDir::Etc::SourceParts \"/dev/null\";\n\
             Dir::Etc::Preferences \"/dev/null\";\nDir::Etc::PreferencesParts \"/dev/null\";\n\
             Dir::State \"{dir}\";\nDir::State::Lists \"{dir}/lists\";\nDir::State::Status \"{dir}/status\";\n\
             Dir::Cache \"{dir}\";\nDir::Cache::Archives \"{dir}/archives\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Acquire::Retries \"3\";\n"
        ))
    }

    /// A command of apt that uses the private configuration.
    fn command(&self, program: &str, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.dir.join("apt/apt.conf")).args(args).env("LC_ALL", "C");
        Ok(command)
    }

    fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program, args)?.output().with_context(|| format!("running {program}"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {}: {}", args.join(" "), complaint.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Runs a command; the text of an error contains its error output.
pub fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running {program} (is it installed?)"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed: {}", complaint.trim());
    Ok(())
}

/// Writes a file completely or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    fs::write(&new, bytes).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("moving {} to its place", path.display()))
}

/// The first package in the `Depends:` of the text of `apt-cache show` whose name starts with `prefix`.
fn first_dependency<'a>(shown: &'a str, prefix: &str) -> Option<&'a str> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let packages = depends.split([',', '|']).filter_map(|alternative| alternative.split_whitespace().next());
    packages.into_iter().find(|package| package.starts_with(prefix))
}

/// The private sources, on the machine's own mirrors if `index_targets` (one mirror and release per line) names them.
fn sources_list(index_targets: &str, keyring: bool) -> String {
    let signed_by = if keyring { format!(" signed-by={KEYRING}") } else { String::new() };
    let line = |release: &str, default: &str| {
        let mut mirrors = index_targets.lines().filter_map(|line| line.split_once(' '));
        let mirror = mirrors.find(|(_, of)| *of == release).map_or(default, |(mirror, _)| mirror);
        format!("deb [arch=amd64{signed_by}] {mirror} {release} main non-free-firmware\n")
    };
    line(SUITE, MIRROR) + &line(&format!("{SUITE}-security"), SECURITY_MIRROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dependency_is_found() {
        let shown = "Package: linux-image-amd64\nDepends: x (>= 1) | linux-image-6.1.0-9-amd64 (= 6.1.27-1), y\n\
                     Depends: linux-image-0\n";
        assert_eq!(first_dependency(shown, "linux-image-"), Some("linux-image-6.1.0-9-amd64"));
        assert_eq!(first_dependency("Package: x\n", "linux-image-"), None);
        assert_eq!(first_dependency("Depends: y\n", "linux-image-"), None);
    }

    #[test]
    fn sources_follow_the_machine() {
        let here = sources_list("http://mirror.lan/debian/ bookworm\nhttp://other/ trixie\n", true);
        let expected = format!(
            "deb [arch=amd64 signed-by={KEYRING}] http://mirror.lan/debian/ bookworm main non-free-firmware\n\
             deb [arch=amd64 signed-by={KEYRING}] {SECURITY_MIRROR} bookworm-security main non-free-firmware\n"
        );
        assert_eq!(here, expected);
        assert!(sources_list("", false).starts_with(&format!("deb [arch=amd64] {MIRROR} bookworm main")));
    }

    #[test]
    fn a_failed_command_says_why() {
        let error = run(Command::new("dpkg-deb").args(["-x", "/nonexistent.deb", "/nonexistent"])).unwrap_err();
        assert!(error.to_string().contains("/nonexistent.deb"), "{error}");
    }
}

//! `ezio-image`: builds one boot directory (kernel, initramfs and boot loaders) that the server hands out.

mod apt;
mod boot_dir;
mod cpio;
mod elf;
mod firmware;
mod flavour;
mod initramfs;
mod kernel;
mod modules;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use flavour::Flavour;

/// Builds what a machine loads before it joins the swarm.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Build(Build),
    CheckInit(CheckInit),
}

/// Builds a boot directory; does nothing if it is already up to date.
#[derive(clap::Args)]
struct Build {
    /// `cloud`: small, for virtual machines. `generic`: every NIC and disk driver and their firmware, for real ones.
    #[arg(long, default_value = "cloud")]
    flavour: Flavour,
    /// The static `/init` of the RAM system.
    #[arg(long, default_value = "build/init")]
    init: PathBuf,
    /// Where the boot directory goes; it is replaced as a whole.
    #[arg(long)]
    out: PathBuf,
    /// zstd level of the initramfs: 19 to ship, 3 when it only has to be built quickly.
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
    /// Where downloaded and unpacked packages are kept.
    #[arg(long, default_value = "build/cache")]
    cache: PathBuf,
    /// Where Debian's package `ipxe` has its boot loaders.
    #[arg(long, default_value = "/usr/lib/ipxe")]
    ipxe: PathBuf,
    /// Ask the mirror for newer packages instead of using those in the cache.
    #[arg(long)]
    refresh: bool,
}

impl Build {
    fn run(self) -> Result<()> {
        let out = self.out.clone();
        let done = boot_dir::build(&boot_dir::Request {
            flavour: self.flavour,
            init: self.init,
            out: self.out,
            level: self.level,
            cache: self.cache,
            ipxe: self.ipxe,
            refresh: self.refresh,
        })?;
        println!("{}: {done}", out.display());
        Ok(())
    }
}

/// Checks that a file can be the `/init` of the RAM system: static, for x86-64, small enough.
#[derive(clap::Args)]
struct CheckInit {
    file: PathBuf,
}

impl CheckInit {
    fn run(self) -> Result<()> {
        let init = initramfs::read_init(&self.file)?;
        println!("{}: static, {} bytes", self.file.display(), init.len());
        Ok(())
    }
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Build(build) => build.run(),
        Command::CheckInit(check) => check.run(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_flavour_is_refused_with_the_known_ones() {
        let error = Cli::try_parse_from(["ezio-image", "build", "--flavour", "server", "--out", "x"]).err().unwrap();
        let error = error.to_string();
        assert!(error.contains("server") && error.contains("cloud") && error.contains("generic"), "{error}");
    }
}

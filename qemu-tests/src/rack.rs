//! The starting point of every case: a network, the products, and the case's folder.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::disk::Disk;
use crate::golden;
use crate::log::Log;
use crate::machine::{Machine, MachineSpec};
use crate::network::Network;
use crate::paths::Paths;
use crate::sandbox;
use crate::server::{Server, ServerConfig};

/// A case's surroundings. The current directory is its folder: logs have relative names.
pub struct Rack {
    /// The places of the products.
    pub paths: Paths,
    pub network: Network,
    folder: PathBuf,
}

impl Rack {
    /// Makes the LAN, inside the sandbox that [`sandbox::command`] made.
    ///
    /// # Errors
    /// If this is not a sandbox, or the kernel refuses something.
    pub fn new() -> Result<Rack> {
        sandbox::enter()?;
        let folder = std::env::current_dir().context("finding the case's folder")?;
        std::fs::create_dir_all("disks").context("creating the folder for disks")?;
        Ok(Rack { paths: Paths::new(), network: Network::new()?, folder })
    }

    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// A new disk full of the pattern of untouched disks.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new_disk(&self, name: &str, mib: u64) -> Result<Disk> {
        Disk::patterned(&self.disk_path(name), mib << 20)
    }

    /// The path for a disk of this name.
    pub fn disk_path(&self, name: &str) -> PathBuf {
        self.folder.join("disks").join(format!("{name}.img"))
    }

    /// The golden disk.
    ///
    /// # Errors
    /// If it has to be made and this fails.
    pub fn golden(&self, size: golden::Size) -> Result<Disk> {
        golden::disk(&self.paths, size)
    }

    /// Starts `ezio serve` and waits until it answers.
    ///
    /// # Errors
    /// If it does not.
    pub fn serve(&self, config: ServerConfig) -> Result<Server> {
        Server::start(&self.paths, &self.folder, config)
    }

    /// Switches a machine on.
    ///
    /// # Errors
    /// If QEMU does not start.
    pub fn power_on(&mut self, spec: &MachineSpec) -> Result<Machine> {
        spec.start(&mut self.network)
    }

    /// Starts a machine from only the disk that `spec` was cloned to, and waits until the clone has checked itself.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn expect_clone_boots(&mut self, spec: &MachineSpec) -> Result<()> {
        let mut machine = self.power_on(&spec.clone().named(&format!("{}-clone", spec.name())).from_disk_only())?;
        machine.wait_for(golden::MARKER)?;
        machine.wait_off()
    }

    /// Notes a tried fault, where it was injected, and what happened, for the table in the docs.
    ///
    /// # Errors
    /// If the note cannot be written.
    pub fn fault(&self, fault: &str, place: &str, happened: &str) -> Result<()> {
        crate::faults::note(&self.folder, fault, place, happened)
    }

    /// The last lines of every log in the folder, for a person to read after a failure.
    pub fn tails(lines: usize) -> String {
        let Ok(entries) = std::fs::read_dir(".") else { return String::new() };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ext| ext == "log"));
        paths.retain(|path| !["./case.log", "./commands.log"].iter().any(|own| path.as_os_str() == *own));
        paths.sort();
        paths.iter().filter(|path| path.metadata().is_ok_and(|meta| meta.len() > 0)).fold(
            String::new(),
            |mut all, path| {
                all += &Log::new(path).tail(lines);
                all
            },
        )
    }
}

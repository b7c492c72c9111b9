//! A disk knows that it is done, whatever the server has forgotten.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::disk::Bus;
use crate::golden::{MARKER, Size};
use crate::machine::MachineSpec;
use crate::rack::Rack;
use crate::server::{Dhcp, ServerConfig};

/// The server comes back with its state of before the machine was done, as from a backup, and a person lets it go on.
pub fn server_forgets(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let mut server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let image = server.capture(&golden, "golden")?;
    server.arm("golden", &["--after", "reboot", "--linger", "1"])?;
    server.stop()?;
    let (state, before) = (server.library().join("state"), rack.folder().join("state-before"));
    copy(&state, &before)?;
    server.restart()?;

    let target = rack.new_disk("target", 160)?;
    let spec = MachineSpec::new("machine", 1).disk(&target, Bus::Virtio).may_reboot();
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("EZIO: done, reboot")?;
    machine.wait_for(MARKER)?;
    machine.wait_off()?;
    let done = fs::read(target.path()).context("reading the finished disk")?;

    server.stop()?;
    fs::remove_dir_all(&state).context("removing the server's state")?;
    copy(&before, &state)?;
    server.restart()?;
    // Whether there is anything to resume depends on what was in the state; it hands out the image either way.
    println!("{}", server.ezio(&["resume"]).unwrap_or_else(|error| format!("{error:#}")));

    let mut machine = rack.power_on(&spec.named("machine-again"))?;
    machine.wait_for("the disk has it already")?;
    machine.wait_for("EZIO: done, reboot")?;
    machine.wait_for(MARKER)?;
    machine.wait_off()?;
    ensure!(machine.log().count("EZIO: stage restore") == 0, "it was imaged again");
    let after = fs::read(target.path()).context("reading the disk")?;
    ensure!(after == done, "the disk of a finished machine was written to");
    image.compare(&golden, &target)?;
    server.stop()?;
    rack.fault("the server's state is of before the machine was done", "restart, resume", "not one byte is written")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let path = entry.context("reading the state")?.path();
        let name = path.file_name().context("a name")?;
        if path.is_file() {
            fs::copy(&path, to.join(name)).with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}

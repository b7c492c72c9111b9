//! Which disk: exactly one that fits, or a refusal that leaves every disk as it is.

use anyhow::{Result, ensure};

use crate::disk::{Bus, Disk};
use crate::golden::Size;
use crate::machine::MachineSpec;
use crate::rack::Rack;
use crate::server::{Dhcp, Server, ServerConfig};

pub fn no_disk(rack: &mut Rack) -> Result<()> {
    let server = armed(rack)?;
    let spec = direct(rack, "machine", 1);
    expect_refusal(rack, &server, &spec, &[], &["has no disk that the RAM system can see"])
}

pub fn two_disks(rack: &mut Rack) -> Result<()> {
    let server = armed(rack)?;
    let disks = [rack.new_disk("first", 128)?, rack.new_disk("second", 128)?];
    let with_disks = |spec: MachineSpec| spec.disk(&disks[0], Bus::Virtio).disk(&disks[1], Bus::Nvme);
    let spec = with_disks(direct(rack, "machine", 1));
    expect_refusal(rack, &server, &spec, &disks, &["2 disks match", "DISK0-01", "DISK1-01"])?;

    server.arm("golden", &["--target", "serial=DISK1-02", "--after", "poweroff", "--linger", "1"])?;
    let mut machine = rack.power_on(&with_disks(direct(rack, "told", 2)))?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    disks[0].expect_untouched()?;
    server.image("golden")?.compare(&rack.golden(Size::Small)?, &disks[1])
}

pub fn disk_too_small(rack: &mut Rack) -> Result<()> {
    let server = armed(rack)?;
    let disk = rack.new_disk("small", 64)?;
    let spec = direct(rack, "machine", 1).disk(&disk, Bus::Virtio);
    expect_refusal(rack, &server, &spec, &[disk], &["needs a disk of at least", "nothing was touched"])
}

pub fn other_sector_size(rack: &mut Rack) -> Result<()> {
    let server = armed(rack)?;
    let disk = rack.new_disk("4kn", 128)?;
    let spec = direct(rack, "machine", 1).disk(&disk, Bus::Nvme).sector_size(4096);
    expect_refusal(rack, &server, &spec, &[disk], &["512-byte sectors", "4096-byte sectors"])
}

/// A server on which the small golden image is armed for everybody.
fn armed(rack: &Rack) -> Result<Server> {
    let golden = rack.golden(Size::Small)?;
    let server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    server.capture(&golden, "golden")?;
    server.arm("golden", &[])?;
    Ok(server)
}

fn direct(rack: &Rack, name: &str, number: u8) -> MachineSpec {
    MachineSpec::new(name, number).direct(&rack.paths.boot, "ezio.server=10.77.0.1")
}

/// Switches a machine on and expects these words on its console and in `ezio status`, and its disks as they were.
fn expect_refusal(rack: &mut Rack, server: &Server, spec: &MachineSpec, disks: &[Disk], words: &[&str]) -> Result<()> {
    let mut machine = rack.power_on(spec)?;
    let line = machine.wait_for_failure()?;
    let report = server.wait_for_report(&machine, "failed", |report| report.error.is_some())?;
    let told = report.error.unwrap_or_default();
    let table = server.status_table()?;
    for word in words {
        ensure!(line.contains(word), "the console does not say {word:?}: {line}");
        ensure!(told.contains(word), "the report does not say {word:?}: {told}");
    }
    ensure!(table.contains(words[0]), "`ezio status` does not say {:?}:\n{table}", words[0]);
    machine.pull_plug();
    disks.iter().try_for_each(Disk::expect_untouched)
}

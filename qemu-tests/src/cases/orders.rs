//! No server answers, or no server has an order: the machine reports it and keeps trying, without touching its disk.

use anyhow::Result;

use crate::disk::Bus;
use crate::foreign::Dnsmasq;
use crate::golden::Size;
use crate::machine::MachineSpec;
use crate::rack::Rack;
use crate::server::{Dhcp, ServerConfig};

pub fn no_dhcp_answer(rack: &mut Rack) -> Result<()> {
    let disk = rack.new_disk("target", 128)?;
    let spec = MachineSpec::new("machine", 1).direct(&rack.paths.boot, "").disk(&disk, Bus::Virtio);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for_trouble("no DHCP answer")?;
    disk.expect_untouched()?;
    let _dnsmasq = Dnsmasq::dhcp_and_tftp(None)?;
    machine.wait_for("EZIO: stage fetch")?;
    Ok(())
}

/// The address answers, but the port does not: there is a firewall between, or the server has just started.
pub fn no_tftp_answer(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let disk = rack.new_disk("target", 128)?;
    let _dnsmasq = Dnsmasq::dhcp_and_tftp(None)?;
    let mut server = rack.serve(ServerConfig::reports_only())?;
    server.capture(&golden, "golden")?;
    server.arm("golden", &["--after", "poweroff", "--linger", "1"])?;
    let spec = MachineSpec::new("machine", 1).direct(&rack.paths.boot, "").disk(&disk, Bus::Virtio);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for_trouble("10.77.0.1:69")?;
    disk.expect_untouched()?;
    server.stop()?;
    let server = rack.serve(ServerConfig::new(Dhcp::Off))?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    server.image("golden")?.compare(&golden, &disk)
}

pub fn no_conf(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let image = server.capture(&golden, "golden")?;
    let disk = rack.new_disk("target", 128)?;
    let spec = MachineSpec::new("machine", 1).direct(&rack.paths.boot, "").disk(&disk, Bus::Virtio);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for_trouble("nothing is armed for it")?;
    disk.expect_untouched()?;
    server.arm("golden", &["--after", "poweroff", "--linger", "1"])?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    image.compare(&golden, &disk)
}

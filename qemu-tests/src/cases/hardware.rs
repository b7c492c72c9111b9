//! Hardware of real machines that the cloud kernel does not support.

use anyhow::{Result, ensure};

use crate::disk::Bus;
use crate::golden::Size;
use crate::machine::MachineSpec;
use crate::rack::Rack;
use crate::server::{Dhcp, ServerConfig};

pub fn generic_kernel(rack: &mut Rack) -> Result<()> {
    let boot = rack.paths.boot_generic.clone();
    ensure!(boot.join("vmlinuz").exists(), "{} is missing: `make image FLAVOUR=generic` makes it", boot.display());
    let golden = rack.golden(Size::Small)?;
    let config = ServerConfig { boot: Some(boot), ..ServerConfig::new(Dhcp::Server) };
    let server = rack.serve(config)?;
    let image = server.capture(&golden, "golden")?;
    server.arm("golden", &["--after", "poweroff", "--linger", "1"])?;
    let target = rack.new_disk("target", 128)?;
    let spec = MachineSpec::new("machine", 1).memory(1024).nic("e1000e").disk(&target, Bus::Ahci);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    ensure!(machine.log().text().contains("/dev/sd"), "the disk was not found behind AHCI");
    image.compare(&golden, &target)
}

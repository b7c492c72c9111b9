//! The rack's own parts.

use anyhow::Result;

use crate::disk::Bus;
use crate::foreign::Dnsmasq;
use crate::golden::Size;
use crate::machine::{Firmware, MachineSpec};
use crate::rack::Rack;

/// The golden disk starts in BIOS.
pub fn golden_bios(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Large)?;
    for bus in [Bus::Virtio, Bus::Nvme, Bus::Scsi] {
        rack.expect_clone_boots(&MachineSpec::new(&format!("bios-{bus}"), 1).disk(&golden, bus))?;
    }
    Ok(())
}

/// The golden disk starts in UEFI.
pub fn golden_uefi(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    for bus in [Bus::Virtio, Bus::Nvme, Bus::Scsi] {
        let spec = MachineSpec::new(&format!("uefi-{bus}"), 1).firmware(Firmware::Uefi).disk(&golden, bus);
        rack.expect_clone_boots(&spec)?;
    }
    Ok(())
}

/// x
pub fn direct(rack: &mut Rack) -> Result<()> {
    let disk = rack.new_disk("blank", 64)?;
    let boot = rack.paths.boot.clone();
    let mut machine = rack.power_on(&MachineSpec::new("m1", 1).direct(&boot, "a=b").disk(&disk, Bus::Virtio))?;
    machine.wait_for("EZIO: stage network")?;
    machine.set_link(false)?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    disk.expect_untouched()
}

/// x
pub fn pxe(rack: &mut Rack) -> Result<()> {
    let host = rack.network.host("10.77.0.2")?;
    let _dhcp = Dnsmasq::site_dhcp(&host)?;
    let disk = rack.new_disk("blank", 64)?;
    let mut machine = rack.power_on(&MachineSpec::new("m1", 1).disk(&disk, Bus::Virtio))?;
    machine.wait_for("Configuring")?;
    machine.wait_for(" ok")?;
    Ok(())
}

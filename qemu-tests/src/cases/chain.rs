//! From power-on through every combination of firmware and DHCP.

use anyhow::{Context, Result, ensure};

use crate::disk::{Bus, Disk};
use crate::foreign::Dnsmasq;
use crate::golden::{MARKER, Size};
use crate::golden_debian;
use crate::machine::{Firmware, MachineSpec};
use crate::network::Host;
use crate::rack::Rack;
use crate::server::{Dhcp, ServerConfig};

pub fn golden_disk_starts(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    rack.expect_clone_boots(&MachineSpec::new("bios", 1).disk(&golden, Bus::Virtio))?;
    rack.expect_clone_boots(&MachineSpec::new("uefi", 2).firmware(Firmware::Uefi).disk(&golden, Bus::Nvme))
}

pub fn proxy_dhcp_bios(rack: &mut Rack) -> Result<()> {
    beside_dnsmasq(rack, Firmware::Bios, Bus::Virtio, Dhcp::Proxy, Dnsmasq::site_dhcp)
}

pub fn proxy_dhcp_uefi(rack: &mut Rack) -> Result<()> {
    beside_dnsmasq(rack, Firmware::Uefi, Bus::Scsi, Dhcp::Proxy, Dnsmasq::site_dhcp)
}

pub fn leftover_file_bios(rack: &mut Rack) -> Result<()> {
    beside_dnsmasq(rack, Firmware::Bios, Bus::Virtio, Dhcp::Proxy, Dnsmasq::site_dhcp_with_leftover)
}

pub fn leftover_file_uefi(rack: &mut Rack) -> Result<()> {
    beside_dnsmasq(rack, Firmware::Uefi, Bus::Virtio, Dhcp::Proxy, Dnsmasq::site_dhcp_with_leftover)
}

pub fn one_file_name_bios(rack: &mut Rack) -> Result<()> {
    beside_dnsmasq(rack, Firmware::Bios, Bus::Virtio, Dhcp::Off, |host| Dnsmasq::router(host, "undionly.kpxe"))
}

pub fn one_file_name_uefi(rack: &mut Rack) -> Result<()> {
    beside_dnsmasq(rack, Firmware::Uefi, Bus::Virtio, Dhcp::Off, |host| Dnsmasq::router(host, "snponly.efi"))
}

/// The site's DHCP server knows nothing about booting, has old entries, or names one file of ours; our server gives out no
/// addresses.
fn beside_dnsmasq(
    rack: &mut Rack,
    firmware: Firmware,
    bus: Bus,
    ours: Dhcp,
    site_dhcp: fn(&Host) -> Result<Dnsmasq>,
) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let host = rack.network.host("10.77.0.2")?;
    let site = site_dhcp(&host)?;
    let mut server = rack.serve(ServerConfig::new(ours))?;
    let image = server.capture(&golden, "golden")?;
    server.arm("golden", &["--after", "poweroff", "--linger", "1"])?;
    let target = rack.new_disk("target", 128)?;
    let spec = MachineSpec::new("machine", 1).firmware(firmware).disk(&target, bus);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("EZIO: verified")?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    image.compare(&golden, &target)?;
    ensure!(site.log().count("DHCPACK(eth0)") >= 2, "the addresses did not come from dnsmasq");
    rack.expect_clone_boots(&spec)?;
    server.stop()
}

pub fn dhcp_server_bios(rack: &mut Rack) -> Result<()> {
    all_by_itself(rack, Firmware::Bios, Bus::Nvme)
}

pub fn dhcp_server_uefi(rack: &mut Rack) -> Result<()> {
    all_by_itself(rack, Firmware::Uefi, Bus::Virtio)
}

/// Power-on, imaging, restart, network boot again, local disk, all without any action by a person.
fn all_by_itself(rack: &mut Rack, firmware: Firmware, bus: Bus) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let mut server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let image = server.capture(&golden, "golden")?;
    server.arm("golden", &["--after", "reboot", "--linger", "1"])?;
    let target = rack.new_disk("target", 160)?;
    let spec = MachineSpec::new("machine", 1).firmware(firmware).disk(&target, bus).may_reboot();
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("EZIO: done, reboot")?;
    machine.wait_for(MARKER)?;
    machine.wait_off()?;
    ensure!(machine.log().count("EZIO: stage restore") == 1, "it was imaged more than once");
    image.compare(&golden, &target)?;
    server.stop()
}

/// From capture to the login prompt of the clone, with a typical Debian installation.
pub fn debian_installation(rack: &mut Rack) -> Result<()> {
    let golden = golden_debian::disk(&rack.paths)?;
    let server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let image = server.capture(&golden, "debian")?;
    server.arm("debian", &["--after", "poweroff", "--linger", "1"])?;
    let target = rack.new_disk("target", 1400)?;
    let spec = MachineSpec::new("machine", 1).memory(1024).firmware(Firmware::Uefi).disk(&target, Bus::Nvme);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("EZIO: verified")?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    let shown = server.ezio(&["image", "show", "debian"])?;
    for words in ["btrfs", "ext4", "swap", "vfat", "free in file systems"] {
        ensure!(shown.contains(words), "the image of a Debian does not show {words:?}:\n{shown}");
    }
    println!("{}", shown.lines().next().unwrap_or_default());
    image.compare(&golden, &target)?;
    let mut clone = rack.power_on(&spec.named("machine-clone").from_disk_only())?;
    clone.wait_for(golden_debian::MARKER)?;
    clone.wait_for(golden_debian::LOGIN)?;
    Ok(())
}

pub fn mbr_with_logical_partitions(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Mbr)?;
    let server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let image = server.capture(&golden, "mbr")?;
    server.arm("mbr", &["--after", "poweroff", "--linger", "1"])?;
    let target = rack.new_disk("target", 200)?;
    let spec = MachineSpec::new("machine", 1).disk(&target, Bus::Virtio);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("EZIO: verified")?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    image.compare(&golden, &target)?;
    rack.expect_clone_boots(&spec)
}

pub fn nothing_armed_bios(rack: &mut Rack) -> Result<()> {
    starts_own_disk(rack, Firmware::Bios)
}

/// Takes minutes of waiting: OVMF tries PXE and HTTP, over IPv4 and IPv6, before it tries the disk.
pub fn nothing_armed_uefi(rack: &mut Rack) -> Result<()> {
    starts_own_disk(rack, Firmware::Uefi)
}

/// A running server does no harm until something is armed.
fn starts_own_disk(rack: &mut Rack, firmware: Firmware) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let image = server.capture(&golden, "golden")?;
    let path = rack.disk_path("own");
    std::fs::copy(golden.path(), &path).context("copying the golden disk")?;
    let own = Disk::open(&path);
    let spec = MachineSpec::new("machine", 1).firmware(firmware).disk(&own, Bus::Virtio);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for(MARKER)?;
    ensure!(machine.log().count("EZIO: stage") == 0, "the RAM system was started");
    ensure!(server.log().count("is offered") > 0, "it did not ask the network at all");
    image.compare(&golden, &own)
}

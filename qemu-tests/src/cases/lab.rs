//! Shared beginnings of several cases.

use anyhow::{Result, ensure};

use crate::compare::Image;
use crate::disk::Disk;
use crate::machine::MachineSpec;
use crate::rack::Rack;
use crate::server::{Dhcp, Server, ServerConfig};

/// A server with the image of this disk armed for every machine; `more` is passed to `ezio arm`.
pub fn armed(rack: &Rack, golden: &Disk, more: &[&str]) -> Result<(Server, Image)> {
    armed_with(rack, golden, &[], more)
}

/// The same with options for `ezio capture`.
pub fn armed_with(rack: &Rack, golden: &Disk, capture: &[&str], more: &[&str]) -> Result<(Server, Image)> {
    let server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let image = server.capture_with(golden, "golden", capture)?;
    server.arm("golden", &[&["--after", "poweroff", "--linger", "1"], more].concat())?;
    Ok((server, image))
}

/// A machine whose RAM system is loaded by QEMU itself.
pub fn direct(rack: &Rack, name: &str, number: u8) -> MachineSpec {
    MachineSpec::new(name, number).direct(&rack.paths.boot, "ezio.server=10.77.0.1")
}

/// Fails unless firmware finds nothing to boot: both ends of the disk are empty.
pub fn expect_unbootable(disk: &Disk) -> Result<()> {
    const END: u64 = 1 << 20;
    let len = disk.len()?;
    for range in [0..END, len - END..len] {
        let at = disk.first_not_zero_in(range)?;
        ensure!(at.is_none(), "{} could boot: byte {} is not zero", disk.path().display(), at.unwrap_or(0));
    }
    Ok(())
}

/// A byte in the middle of the image's longest extent.
pub fn inside(image: &Image) -> u64 {
    let longest = image.layout.extents().iter().max_by_key(|extent| extent.len);
    longest.map_or(0, |extent| (extent.disk.0 + extent.len / 2) / 4096 * 4096)
}

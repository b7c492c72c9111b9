//! Several machines at once, and accidents that happen to one of them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use report::{Report, Stage};

use crate::compare::Image;
use crate::disk::{Bus, Disk};
use crate::foreign::Dnsmasq;
use crate::golden::Size;
use crate::machine::{Firmware, Machine, MachineSpec};
use crate::process::POLL;
use crate::rack::Rack;
use crate::server::{Dhcp, Server, ServerConfig};

/// At this rate, writing the large golden image leaves half a minute in the middle.
const SLOW: u64 = 8 << 20;
const TARGET_MIB: u64 = 500;

/// A server with the large golden image armed, the image, and the disk it came from.
fn armed(rack: &Rack) -> Result<(Server, Image, Disk)> {
    let golden = rack.golden(Size::Large)?;
    let server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let image = server.capture(&golden, "golden")?;
    server.arm("golden", &["--after", "poweroff", "--linger", "5"])?;
    Ok((server, image, golden))
}

fn spec(rack: &Rack, number: u8) -> Result<MachineSpec> {
    let target = rack.new_disk(&format!("machine-{number}"), TARGET_MIB)?;
    let spec = MachineSpec::new(&format!("machine-{number}"), number);
    Ok(spec.direct(&rack.paths.boot, "ezio.server=10.77.0.1").disk(&target, Bus::Virtio))
}

fn is_mid_way(report: &Report) -> bool {
    report.stage == Stage::Restore && (10..90).contains(&report.progress.percent())
}

fn expect_clone(rack: &Rack, image: &Image, golden: &Disk, machine: &mut Machine) -> Result<()> {
    machine.wait_for("EZIO: verified")?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    image.compare(golden, &Disk::open(&rack.disk_path(machine.name())))
}

pub fn late_machine(rack: &mut Rack) -> Result<()> {
    let (_server, image, golden) = armed(rack)?;
    let mut early = [spec(rack, 1)?, spec(rack, 2)?].map(|spec| rack.power_on(&spec));
    let power_on = Instant::now();
    for machine in &mut early {
        let machine = machine.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        machine.wait_for("EZIO: verified")?;
    }
    while power_on.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(POLL);
    }
    let late = spec(rack, 3)?;
    let mut machine = rack.power_on(&late)?;
    expect_clone(rack, &image, &golden, &mut machine)?;
    for machine in early {
        expect_clone(rack, &image, &golden, &mut machine?)?;
    }
    rack.expect_clone_boots(&late)
}

pub fn killed_machine(rack: &mut Rack) -> Result<()> {
    let (server, image, golden) = armed(rack)?;
    let doomed = spec(rack, 1)?.slow_writes(SLOW);
    let target = rack.new_disk("machine-3", TARGET_MIB)?;
    let uefi = MachineSpec::new("machine-3", 3).firmware(Firmware::Uefi).disk(&target, Bus::Nvme);
    let others = [spec(rack, 2)?.slow_writes(SLOW), uefi];
    let mut killed = rack.power_on(&doomed)?;
    let mut machines = Vec::new();
    for other in &others {
        machines.push(rack.power_on(other)?);
    }
    server.wait_for_report(&killed, "is mid-way", is_mid_way)?;
    killed.pull_plug();
    for machine in &mut machines {
        expect_clone(rack, &image, &golden, machine)?;
    }
    for other in &others {
        rack.expect_clone_boots(other)?;
    }
    let half = Disk::open(&rack.disk_path("machine-1"));
    ensure!(half.first_written()?.is_some(), "the killed machine had not written anything yet");
    ensure!(half.first_written_in(0..1 << 20)?.is_none(), "the half-written disk has a partition table");
    rack.fault("a machine loses its power", "mid-way", "its disk does not boot; the others finish")
}

pub fn server_killed(rack: &mut Rack) -> Result<()> {
    let (mut server, image, golden) = armed(rack)?;
    let specs = [spec(rack, 1)?.slow_writes(SLOW), spec(rack, 2)?.slow_writes(SLOW)];
    let mut machines = Vec::new();
    for spec in &specs {
        machines.push(rack.power_on(spec)?);
    }
    server.wait_for_report(&machines[0], "is mid-way", is_mid_way)?;
    server.kill();
    server.restart()?;
    for machine in &mut machines {
        expect_clone(rack, &image, &golden, machine)?;
        ensure!(server.report(machine.mac())?.is_some(), "the restarted server has not heard of {}", machine.name());
    }
    rack.fault("the server is killed and started again", "mid-way", "the machines continue without it and finish")
}

pub fn cable_pulled(rack: &mut Rack) -> Result<()> {
    let (server, image, golden) = armed(rack)?;
    let specs = [spec(rack, 1)?.slow_writes(SLOW), spec(rack, 2)?.slow_writes(SLOW)];
    let mut machines = Vec::new();
    for spec in &specs {
        machines.push(rack.power_on(spec)?);
    }
    server.wait_for_report(&machines[0], "is mid-way", is_mid_way)?;
    machines[0].set_link(false)?;
    rack.network.set_way(2, false)?;
    // The pause is long enough for connections to be missed, and short enough for TCP to keep them.
    let pulled = Instant::now();
    while pulled.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(POLL);
    }
    machines[0].set_link(true)?;
    rack.network.set_way(2, true)?;
    for machine in &mut machines {
        expect_clone(rack, &image, &golden, machine)?;
    }
    let what = "the machine continues by itself";
    rack.fault("a cable is out for 20 s", "mid-way; the network card notices", what)?;
    rack.fault("packets are lost for 20 s", "mid-way, behind a switch; the network card does not notice", what)
}

/// Seeder, tracker and report receiver are gone for good, but one machine has everything.
pub fn seeder_gone(rack: &mut Rack) -> Result<()> {
    let (mut server, image, golden) = armed(rack)?;
    let specs = [spec(rack, 1)?, spec(rack, 2)?.slow_writes(SLOW)];
    server.arm("golden", &["--mac", specs[0].mac(), "--after", "poweroff", "--linger", "600"])?;
    let mut first = rack.power_on(&specs[0])?;
    first.wait_for("EZIO: verified")?;
    // It continues to seed while the second machine starts and fetches what it needs.
    let mut second = rack.power_on(&specs[1])?;
    server.wait_for_report(&second, "is mid-way", is_mid_way)?;
    ensure!(!first.is_off()?, "the machine with every piece did not wait for the other");
    server.kill();
    expect_clone(rack, &image, &golden, &mut second)?;
    // It has proven its disk and would continue to wait for others.
    first.pull_plug();
    image.compare(&golden, &Disk::open(&rack.disk_path(first.name())))?;
    let what = "the machine continues with what the others have, and finishes";
    rack.fault(
        "server, seeder and tracker are gone and do not return",
        "mid-way, while one machine has every piece",
        what,
    )
}

/// The DHCP server is switched off while its addresses are in use.
pub fn dhcp_gone(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Large)?;
    let dnsmasq = Dnsmasq::dhcp_and_tftp(None)?;
    let server = rack.serve(ServerConfig::new(Dhcp::Off))?;
    let image = server.capture(&golden, "golden")?;
    server.arm("golden", &["--after", "poweroff", "--linger", "1"])?;
    let mut machine = rack.power_on(&spec(rack, 1)?.slow_writes(SLOW))?;
    server.wait_for_report(&machine, "is mid-way", is_mid_way)?;
    drop(dnsmasq);
    expect_clone(rack, &image, &golden, &mut machine)?;
    rack.fault("the DHCP server is switched off", "mid-way", "the machine keeps its address and finishes")
}

//! Images larger than memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::disk::{Bus, Disk};
use crate::golden::random_disk;
use crate::machine::{Machine, MachineSpec};
use crate::process::POLL;
use crate::rack::Rack;
use crate::server::{Dhcp, ServerConfig};

/// Larger than the memory of the machine that the promise is about.
const LARGE_MIB: u64 = 1200;
/// Larger than the memory of each machine in the search.
const SMALL_MIB: u64 = 520;
/// What the promise is about.
const PROMISED_MIB: u32 = 1024;
/// Tried at once, from small to large. The kernel alone needs 96.
const TRIED_MIB: [u32; 3] = [128, 192, 256];
/// What a machine says that will not finish.
const GIVEN_UP: [&str; 4] = ["EZIO: failed:", "Kernel panic", "Out of memory", "soft lockup"];
/// A machine with too little memory may stand still instead of saying so.
const SEARCH_DEADLINE: Duration = Duration::from_secs(400);

pub fn smallest_memory(rack: &mut Rack) -> Result<()> {
    let server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let large = random_disk(&rack.disk_path("large"), LARGE_MIB)?;
    let image = server.capture(&large, "large")?;
    server.arm("large", &["--after", "poweroff", "--linger", "1"])?;
    let (mut machine, target) = power_on(rack, PROMISED_MIB, LARGE_MIB, 1)?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    let seconds = machine.age().as_secs();
    image.compare(&large, &target)?;
    println!("{LARGE_MIB} MiB cloned by a machine with {PROMISED_MIB} MiB in {seconds} s");

    let small = random_disk(&rack.disk_path("small"), SMALL_MIB)?;
    let image = server.capture(&small, "small")?;
    server.arm("small", &["--after", "poweroff", "--linger", "1"])?;
    let mut machines = Vec::new();
    for (number, memory) in (2..).zip(TRIED_MIB) {
        let (machine, target) = power_on(rack, memory, SMALL_MIB, number)?;
        machines.push((memory, machine, target));
    }
    let start = Instant::now();
    let mut smallest = None;
    while !machines.is_empty() && start.elapsed() < SEARCH_DEADLINE {
        for (memory, mut machine, target) in std::mem::take(&mut machines) {
            let text = machine.log().text();
            if text.contains("EZIO: done, poweroff") && machine.is_off()? {
                image.compare(&small, &target).with_context(|| format!("with {memory} MiB"))?;
                smallest = Some(smallest.map_or(memory, |least: u32| least.min(memory)));
            } else if !GIVEN_UP.iter().any(|words| text.contains(words)) && !machine.is_off()? {
                machines.push((memory, machine, target));
            }
        }
        std::thread::sleep(POLL);
    }
    let smallest = smallest.context("none of the small machines could clone")?;
    println!("{SMALL_MIB} MiB cloned by a machine with {smallest} MiB, the smallest of {TRIED_MIB:?} that could");
    ensure!(smallest <= 256, "it worked in 256 MiB before");
    Ok(())
}

fn power_on(rack: &mut Rack, memory: u32, image_mib: u64, number: u8) -> Result<(Machine, Disk)> {
    let target = rack.new_disk(&format!("target-{memory}"), image_mib + 64)?;
    let spec = MachineSpec::new(&format!("machine-{memory}"), number).memory(memory);
    let spec = spec.direct(&rack.paths.boot, "ezio.server=10.77.0.1").disk(&target, Bus::Virtio);
    Ok((rack.power_on(&spec)?, target))
}

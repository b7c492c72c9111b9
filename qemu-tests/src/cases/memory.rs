//! Images larger than memory.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::compare::Image;
use crate::disk::{Bus, Disk};
use crate::golden::{Size, random_bytes_disk, random_disk};
use crate::machine::{DEADLINE, Firmware, Machine, MachineSpec, is_the_end};
use crate::process::{POLL, run};
use crate::rack::Rack;
use crate::server::{Dhcp, ServerConfig};

/// Size of an image larger than the memory of the machine in the promise.
const LARGE_MIB: u64 = 1200;
/// Size of an image larger than the memory of each machine in the search.
const SMALL_MIB: u64 = 520;
/// Memory of the machine in the promise.
const PROMISED_MIB: u32 = 1024;
/// Size of the disk whose image has very many places.
const SCATTERED_MIB: u64 = 330;
/// Memory sizes that are tried at the same time, ascending. The kernel alone needs 96.
const TRIED_MIB: [u32; 3] = [128, 192, 256];
/// Messages of a machine that will not finish, in addition to those of `/init`.
const GIVEN_UP: [&str; 3] = ["Out of memory", "soft lockup", "!!!! X64 Exception"];
/// A machine with too little memory may hang without a message. It counts as hung after this long without output on its
/// serial line, which gets a line every five seconds while `/init` restores.
const STILL: Duration = Duration::from_secs(400);

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
    let mut tried = Vec::new();
    for (number, memory) in (2..).zip(TRIED_MIB) {
        let (machine, target) = power_on(rack, memory, SMALL_MIB, number)?;
        tried.push(Tried::new(memory, machine, target));
    }
    let smallest = smallest_of(tried, &image, &small)?;
    let smallest = smallest.context("none of the small machines could clone")?;
    println!("{SMALL_MIB} MiB cloned by a machine with {smallest} MiB, the smallest of {TRIED_MIB:?} that could");
    ensure!(smallest <= 256, "it worked in 256 MiB before");
    Ok(())
}

/// A file system in very many pieces: its image has the maximum number of places, and the smallest machine can restore
/// it.
pub fn many_places(rack: &mut Rack) -> Result<()> {
    let server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let golden = scattered_fat(&rack.disk_path("scattered"), SCATTERED_MIB)?;
    let image = server.capture(&golden, "scattered")?;
    let places = image.places();
    ensure!((80_000..=100_000).contains(&places), "{places} places are not as many as there may be");
    server.arm("scattered", &["--after", "poweroff", "--linger", "1", "--target", "/dev/vda"])?;
    let memory = TRIED_MIB[0];
    let (mut machine, target) = power_on(rack, memory, SCATTERED_MIB, 1)?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    image.compare(&golden, &target)?;
    println!("{places} places restored by a machine with {memory} MiB in {} s", machine.age().as_secs());
    Ok(())
}

/// A FAT32 without a partition table, with clusters of one sector, of which every seventh is in use.
fn scattered_fat(path: &Path, mib: u64) -> Result<Disk> {
    let disk = random_bytes_disk(path, mib)?;
    run(Command::new("mkfs.vfat").args(["-F", "32", "-s", "1", "-f", "1"]).arg(path))?;
    let file = disk.file()?;
    let mut boot = [0; 512];
    file.read_exact_at(&mut boot, 0).context("reading the boot sector")?;
    let table_at = u64::from(u16::from_le_bytes([boot[14], boot[15]])) * 512;
    let sectors = u32::from_le_bytes([boot[36], boot[37], boot[38], boot[39]]);
    // The first two entries belong to the table itself, and the third is the root directory.
    let entry = |n: u32| if n.is_multiple_of(7) { 0x0fff_fff8u32 } else { 0 };
    let last = u32::try_from(mib * 2048)? - 2 * sectors;
    let entries: Vec<u8> = (3..last).flat_map(|n| entry(n).to_le_bytes()).collect();
    file.write_all_at(&entries, table_at + 12).context("writing the table")?;
    Ok(disk)
}

/// A machine that may or may not have enough memory.
struct Tried {
    memory: u32,
    machine: Machine,
    target: Disk,
    /// Length of its log at the last check, and when the log last changed.
    said: (usize, Instant),
}

impl Tried {
    fn new(memory: u32, machine: Machine, target: Disk) -> Tried {
        Tried { memory, machine, target, said: (0, Instant::now()) }
    }

    /// Whether the machine hangs. A machine that writes output without progress has the usual deadline.
    fn stands_still(&mut self, text: &str) -> bool {
        if self.said.0 != text.len() {
            self.said = (text.len(), Instant::now());
        }
        self.said.1.elapsed() > STILL || self.machine.age() > DEADLINE
    }
}

/// The smallest memory with which one of these machines became the image, in MiB.
fn smallest_of(mut tried: Vec<Tried>, image: &Image, golden: &Disk) -> Result<Option<u32>> {
    let mut smallest = None;
    while !tried.is_empty() {
        for mut one in std::mem::take(&mut tried) {
            // Ask before reading the log, so that the last lines are read before the machine counts as silent.
            let is_off = one.machine.is_off()?;
            let text = one.machine.log().text();
            let mut lines = text.split_inclusive('\n');
            let has_given_up = |line: &&str| is_the_end(line) || GIVEN_UP.iter().any(|words| line.contains(words));
            let why = if text.contains("EZIO: done, poweroff") && is_off {
                image.compare(golden, &one.target).with_context(|| format!("with {} MiB", one.memory))?;
                smallest = Some(smallest.map_or(one.memory, |least: u32| least.min(one.memory)));
                continue;
            } else if let Some(line) = lines.find(has_given_up) {
                line.trim()
            } else if is_off {
                "ended without a word"
            } else if one.stands_still(&text) {
                "stands still"
            } else {
                tried.push(one);
                continue;
            };
            println!("{} with {} MiB: {why}", one.machine.name(), one.memory);
        }
        std::thread::sleep(POLL);
    }
    Ok(smallest)
}

/// The whole boot from the firmware on, with the small golden image.
pub fn small_machines(rack: &mut Rack) -> Result<()> {
    let generic = rack.paths.boot_generic.clone();
    ensure!(generic.join("vmlinuz").exists(), "{} is missing: `make image FLAVOUR=generic`", generic.display());
    let golden = rack.golden(Size::Small)?;
    // OVMF itself hangs with the cloud kernel in 128 MiB, which takes minutes to be sure of.
    let cloud = [(Firmware::Bios, 1, [128, 192, 256]), (Firmware::Uefi, 4, [192, 256, 384])];
    let real = [(Firmware::Bios, 1, [256, 384, 512]), (Firmware::Uefi, 4, [256, 384, 512])];
    for (kernel, boot, promised, firmwares) in [("cloud", None, 256, cloud), ("generic", Some(generic), 512, real)] {
        let mut server = rack.serve(ServerConfig { boot, ..ServerConfig::new(Dhcp::Server) })?;
        if kernel == "cloud" {
            server.capture(&golden, "golden")?;
        }
        server.arm("golden", &["--after", "poweroff", "--linger", "1"])?;
        let image = server.image("golden")?;
        for (firmware, first, sizes) in firmwares {
            let mut tried = Vec::new();
            for (number, memory) in (first..).zip(sizes) {
                let name = format!("{kernel}-{firmware}-{memory}");
                let target = rack.new_disk(&name, 128)?;
                let spec = MachineSpec::new(&name, number).memory(memory).firmware(firmware);
                let machine = rack.power_on(&spec.disk(&target, Bus::Virtio))?;
                tried.push(Tried::new(memory, machine, target));
            }
            let least = smallest_of(tried, &image, &golden)?.context("none of them could clone")?;
            println!("{kernel} kernel, {firmware}: {least} MiB suffice, of {sizes:?}");
            ensure!(least <= promised, "the {kernel} kernel needs more than {promised} MiB by {firmware}");
            let place = format!("{kernel} kernel, {firmware}");
            rack.fault("little memory", &place, &format!("{least} MiB suffice, of {sizes:?}"))?;
        }
        server.stop()?;
    }
    Ok(())
}

fn power_on(rack: &mut Rack, memory: u32, image_mib: u64, number: u8) -> Result<(Machine, Disk)> {
    let target = rack.new_disk(&format!("target-{memory}"), image_mib + 64)?;
    let spec = MachineSpec::new(&format!("machine-{memory}"), number).memory(memory);
    let spec = spec.direct(&rack.paths.boot, "ezio.server=10.77.0.1").disk(&target, Bus::Virtio);
    Ok((rack.power_on(&spec)?, target))
}

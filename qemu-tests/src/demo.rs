//! The demo: the machines of a rack power on and become the image.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use report::{Report, Stage};

use crate::compare::Image;
use crate::demo_screen::{Screen, table};
use crate::disk::{Bus, Disk};
use crate::golden::{MARKER, Size};
use crate::machine::{DEADLINE, Firmware, Machine, MachineSpec};
use crate::paths::{Paths, check_host};
use crate::process::POLL;
use crate::rack::Rack;
use crate::runner::{fresh_folder, only_run, remove_disks};
use crate::sandbox;
use crate::server::{Dhcp, Server, ServerConfig};

/// The room: name, firmware, bus, and how many MiB the disk is larger than the source.
const ROOM: [(&str, Firmware, Bus, u64); 3] = [
    ("bios-virtio", Firmware::Bios, Bus::Virtio, 0),
    ("bios-nvme", Firmware::Bios, Bus::Nvme, 46),
    ("uefi-scsi", Firmware::Uefi, Bus::Scsi, 234),
];

/// Most copies of the image that the server may send to a room of any size: the machines have to supply each other.
const MAX_COPIES: f64 = 2.0;

/// The speed of the server's port: about as much as one emulated machine can receive, as in a room where all ports are
/// equal.
const SERVER_MEGABITS: u32 = 100;

/// One machine of the room, and its result.
pub struct Member {
    /// Its specification.
    pub spec: MachineSpec,
    pub firmware: Firmware,
    /// How the disk is attached.
    pub bus: Bus,
    pub target: Disk,
    /// Seconds from power-on until the first line of `/init`.
    pub boot_seconds: Option<f64>,
    /// Seconds from power-on until the disk was proven.
    pub total_seconds: Option<f64>,
    pub report: Option<Report>,
    /// Whether the disk equals the golden disk, byte for byte, and nothing else on it was written.
    pub verified: Result<()>,
    /// Whether the clone started from its own disk and found its files intact.
    pub booted: Result<()>,
}

/// Runs the demo in a sandbox and shows its output.
///
/// # Errors
/// If any check failed.
pub fn outside() -> Result<()> {
    let paths = Paths::new();
    check_host(&paths)?;
    let _lock = only_run(&paths, "demo")?;
    let folder = fresh_folder(&paths, "demo")?;
    let status = sandbox::command(&["inside", "demo"], &folder, &paths)?.status().context("starting the demo")?;
    ensure!(status.success(), "the demo failed; its logs are in {}", folder.display());
    remove_disks(&folder);
    Ok(())
}

/// The demo itself, inside the sandbox.
///
/// # Errors
/// If any check failed.
pub fn inside() -> Result<()> {
    let mut rack = Rack::new()?;
    play(&mut rack).inspect_err(|_| println!("\n{}", Rack::tails(40)))
}

fn play(rack: &mut Rack) -> Result<()> {
    let began = Instant::now();
    let golden = rack.golden(Size::Large)?;
    let mib = |bytes: u64| bytes >> 20;
    println!("golden disk    {} ({})", golden.path().display(), units::size(golden.len()?));
    let mut server = rack.serve(ServerConfig::new(Dhcp::Server))?;
    let capturing = Instant::now();
    let image = server.capture(&golden, "golden")?;
    let content_len = image.layout.content_len();
    println!(
        "captured       {} in {}, {}, in {:.1} s",
        units::size(content_len),
        units::count(image.layout.extents().len(), "extent"),
        units::count(image.meta.geometry.piece_count(), "piece"),
        capturing.elapsed().as_secs_f64()
    );
    server.arm("golden", &["--after", "poweroff", "--linger", "20"])?;

    rack.network.limit_server(SERVER_MEGABITS)?;
    let mut room = Vec::new();
    let mut machines = Vec::new();
    for (number, (name, firmware, bus, more_mib)) in (1..).zip(ROOM) {
        let target = rack.new_disk(name, mib(golden.len()?) + more_mib)?;
        let spec = MachineSpec::new(name, number).firmware(firmware).disk(&target, bus);
        machines.push(rack.power_on(&spec)?);
        let (verified, booted) = (Err(anyhow::anyhow!("not compared")), Err(anyhow::anyhow!("not started")));
        let (boot_seconds, total_seconds, report) = (None, None, None);
        room.push(Member { spec, firmware, bus, target, boot_seconds, total_seconds, report, verified, booted });
    }
    println!(
        "powered on     {} machines with blank disks; the server's port has {SERVER_MEGABITS} Mbit/s\n",
        room.len()
    );
    watch(&server, &mut room, &mut machines)?;
    drop(machines);

    println!("\ncomparing every extent of every disk with the golden disk, and starting every clone from its own disk");
    prove(rack, &golden, &image, &mut room);
    println!("\n{}", table(&room, content_len));
    let copies = server.seeded()? as f64 / content_len as f64;
    println!("the server uploaded the image {copies:.2} times for {} machines", room.len());
    println!("{} s in all", began.elapsed().as_secs());
    server.stop()?;
    for member in &room {
        let name = member.spec.name();
        member.verified.as_ref().map_err(|why| anyhow::anyhow!("{name}: {why:#}"))?;
        member.booted.as_ref().map_err(|why| anyhow::anyhow!("{name}: {why:#}"))?;
    }
    ensure!(
        copies < MAX_COPIES,
        "the server uploaded the image {copies:.2} times, which is not less than {MAX_COPIES}"
    );
    Ok(())
}

/// Shows the progress of every machine until all are off.
fn watch(server: &Server, room: &mut [Member], machines: &mut [Machine]) -> Result<()> {
    let mut screen = Screen::new();
    let start = Instant::now();
    loop {
        let mut off = 0;
        for (member, machine) in room.iter_mut().zip(machines.iter_mut()) {
            // Ask before reading the log, so that the last lines are read before the machine counts as silent.
            let is_off = machine.is_off()?;
            let said = machine.log().text();
            let seconds = machine.age().as_secs_f64();
            if said.contains("EZIO: stage network") {
                member.boot_seconds.get_or_insert(seconds);
            }
            if said.contains("EZIO: verified") {
                member.total_seconds.get_or_insert(seconds);
            }
            if let Some(report) = server.report(machine.mac())? {
                if report.stage == Stage::Failed {
                    bail!("{} failed: {}", machine.name(), report.error.unwrap_or_default());
                }
                member.report = Some(report);
            }
            ensure!(!is_off || said.contains("EZIO: done, poweroff"), "{} ended before it was done", machine.name());
            off += usize::from(is_off);
        }
        screen.show(room, start.elapsed(), off == room.len());
        if off == room.len() {
            return Ok(());
        }
        ensure!(start.elapsed() < DEADLINE, "the room is not done within {} s", DEADLINE.as_secs());
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Compares the disks, and starts all clones at the same time.
fn prove(rack: &mut Rack, golden: &Disk, image: &Image, room: &mut [Member]) {
    let mut clones = Vec::new();
    for member in room.iter() {
        let spec = member.spec.clone().named(&format!("{}-clone", member.spec.name())).from_disk_only();
        clones.push(rack.power_on(&spec));
    }
    for (member, clone) in room.iter_mut().zip(clones) {
        member.verified = image.compare(golden, &member.target);
        member.booted = clone.and_then(|mut clone| {
            clone.wait_for(MARKER)?;
            while !clone.is_off()? {
                std::thread::sleep(POLL);
            }
            Ok(())
        });
    }
}

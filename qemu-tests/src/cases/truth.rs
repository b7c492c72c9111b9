//! Disks that fail or lie, and a peer that sends wrong data: the machine reports it, and the others do not notice.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cases::lab::{armed, armed_with, direct, expect_unbootable, inside};
use crate::compare::Image;
use crate::disk::{Bus, Disk};
use crate::faults::quoted;
use crate::golden::Size;
use crate::log::Log;
use crate::machine::{Fault, Machine, MachineSpec};
use crate::nbd::{NbdDisk, Temper};
use crate::network::SERVER_IP;
use crate::process::{Process, ending};
use crate::rack::Rack;
use crate::server::{HTTP_PORT, Server};

/// A bad disk, and the expected report about it.
struct Bad {
    fault: &'static str,
    place: &'static str,
    words: Vec<String>,
    machine: Machine,
    /// `None` if the disk cannot be read.
    disk: Option<Disk>,
}

pub fn bad_disks(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let (server, image) = armed(rack, &golden, &[])?;
    let at = inside(&image);
    let eio = || "os error 5".to_owned();
    let flush = vec!["flushing".to_owned(), eio(), "disk offset".to_owned()];
    let full = vec!["flushing".to_owned(), "disk offset".to_owned()];
    let faults = [
        (Fault::Write(at), "EIO on a write", "one sector", flush),
        (Fault::Read(at), "EIO on the read-back", "one sector", vec!["reading back".into(), eio()]),
        (Fault::Full(at), "ENOSPC on a write", "one sector", full),
        (Fault::Flush, "EIO on a flush", "the third flush", vec!["flushing".into(), eio()]),
        (Fault::Hole, "writes dropped", "everywhere", vec!["does not hold what was written".into()]),
    ];
    let mut bad = Vec::new();
    for (number, (fault, what, place, words)) in (1..).zip(faults) {
        let disk = rack.new_disk(&format!("bad-{number}"), 128)?;
        let spec = direct(rack, &format!("bad-{number}"), number).disk(&disk, Bus::Virtio).faulty(fault);
        let disk = (fault != Fault::Hole).then_some(disk);
        bad.push(Bad { fault: what, place, words, machine: rack.power_on(&spec)?, disk });
    }
    let disk = rack.new_disk("liar", 128)?;
    let nbd = NbdDisk::start("liar.nbd", &disk, Temper::Lying(at..at + 512))?;
    let spec = direct(rack, "liar", 8).disk(&disk, Bus::Virtio).behind(&nbd);
    let words = vec!["does not hold what was written".to_owned(), "disk offset".to_owned()];
    let (fault, place) = ("writes dropped", "one sector");
    bad.push(Bad { fault, place, words, machine: rack.power_on(&spec)?, disk: Some(disk) });
    let well = rack.new_disk("well", 128)?;
    let mut healthy = rack.power_on(&direct(rack, "well", 9).disk(&well, Bus::Virtio))?;

    healthy.wait_for("EZIO: done, poweroff")?;
    healthy.wait_off()?;
    image.compare(&golden, &well)?;
    for one in &mut bad {
        expect_truth(rack, &server, one)?;
    }
    ensure!(nbd.bytes_lost() > 0, "no write was dropped");
    Ok(())
}

/// Device, serial number, offset, cause and advice are on the machine's screen and on the server, and the disk does not
/// boot.
fn expect_truth(rack: &Rack, server: &Server, bad: &mut Bad) -> Result<()> {
    let line = bad.machine.wait_for_failure()?;
    let report = server.wait_for_report(&bad.machine, "failed", |report| report.error.is_some())?;
    let told = report.error.unwrap_or_default();
    let serial = format!("serial DISK0-{}", &bad.machine.mac()[15..]);
    for word in bad.words.iter().chain(&["/dev/vda".to_owned(), serial, "replace it".to_owned()]) {
        ensure!(line.contains(word), "{}: the console does not say {word:?}: {line}", bad.machine.name());
        ensure!(told.contains(word), "{}: the report does not say {word:?}: {told}", bad.machine.name());
    }
    ensure!(bad.machine.log().count("EZIO: verified") == 0, "{} said that it is verified", bad.machine.name());
    bad.machine.pull_plug();
    bad.disk.as_ref().map_or(Ok(()), expect_unbootable)?;
    let happened = format!("the machine fails, its disk does not boot, the others finish: {}", quoted(&told));
    rack.fault(bad.fault, bad.place, &happened)
}

/// A peer on the LAN has every piece, many of them with one bit flipped.
pub fn bad_memory_of_a_peer(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let (server, image) = armed_with(rack, &golden, &["--uncompressed"], &[])?;
    // The limit makes the machine fetch from the peer.
    rack.network.limit_server(20)?;
    let host = rack.network.host("10.77.0.20")?;
    let _peer = bad_peer(rack, &server, &golden, &image, host.command("aria2c"))?;

    let disk = rack.new_disk("target", 128)?;
    let mut machine = rack.power_on(&direct(rack, "machine", 1).disk(&disk, Bus::Virtio))?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    ensure!(machine.log().count("wrong hash") > 0, "the bad peer was not asked for anything");
    image.compare(&golden, &disk)?;
    let what = "the machine finds every wrong piece by its hash, does not write it, drops the peer and finishes";
    rack.fault("a peer with bad memory", "one bit in every fourth piece it sends", what)
}

fn flip_a_bit(file: &std::fs::File, at: u64) -> Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).context("reading the content")?;
    file.write_all_at(&[byte[0] ^ 0x10], at).context("flipping a bit")
}

/// aria2, whose copy goes bad after it was checked: our own seeder would find that out before it gave anything of it away.
fn bad_peer(rack: &Rack, server: &Server, golden: &Disk, image: &Image, mut seed: Command) -> Result<Process> {
    let dir = rack.folder().join("disks/flipped");
    let root = dir.join(&image.meta.name);
    std::fs::create_dir_all(&root).context("creating the peer's directory")?;
    let disk = golden.file()?;
    let mut ends = Vec::new();
    for entry in &image.meta.files {
        let at = u64::from_str_radix(&entry.path[0], 16).context("a file's name")?;
        let mut bytes = vec![0; usize::try_from(entry.length).context("a small image")?];
        disk.read_exact_at(&mut bytes, at).context("reading the golden disk")?;
        std::fs::write(root.join(&entry.path[0]), bytes).context("writing the peer's copy")?;
        ends.push(ends.last().unwrap_or(&0) + entry.length);
    }
    seed.arg(format!("--dir={}", dir.display())).arg("--listen-port=6999").arg("--bt-exclude-tracker=*");
    seed.arg(format!("--bt-tracker=http://{SERVER_IP}:{HTTP_PORT}/announce"));
    seed.args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--seed-ratio=0.0"]);
    seed.args(["--check-integrity=true", "--seed-time=999"]);
    seed.arg(server.library().join("images/golden/image.torrent"));
    let log = Path::new("bad-peer.log");
    let mut peer = Process::start("bad-peer", seed, log)?;
    Log::new(log).wait_for(
        "the peer's copy was checked",
        |line| line.contains("Verification finished successfully"),
        Duration::from_secs(120),
        || Ok(peer.exited()?.map(|status| format!("aria2c ended ({})", ending(status)))),
    )?;
    for piece in image.meta.geometry.pieces().step_by(4) {
        let at = image.meta.geometry.piece_range(piece).start + 1000;
        let number = ends.partition_point(|&end| end <= at);
        let start = ends[number] - image.meta.files[number].length;
        let path = root.join(&image.meta.files[number].path[0]);
        let file = std::fs::File::options().read(true).write(true).open(&path).context("opening the peer's copy")?;
        flip_a_bit(&file, at - start)?;
    }
    Ok(peer)
}

/// The only copy of a piece is wrong: the machine can only report it.
pub fn damaged_on_the_server(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let (server, image) = armed_with(rack, &golden, &["--uncompressed"], &[])?;
    let content = server.library().join("images/golden/content");
    let file = std::fs::File::options().read(true).write(true).open(content).context("opening the content")?;
    let piece = image.meta.geometry.piece(3).context("an image of many pieces")?;
    flip_a_bit(&file, image.meta.geometry.piece_range(piece).start)?;

    let disk = rack.new_disk("target", 128)?;
    let mut machine = rack.power_on(&direct(rack, "machine", 1).disk(&disk, Bus::Virtio))?;
    machine.wait_for_trouble("`ezio image verify`")?;
    let said = |report: &report::Report| report.note.contains("has the missing pieces");
    let report = server.wait_for_report(&machine, "gets what is wrong", said)?;
    ensure!(report.stage == report::Stage::Restore, "it is in stage {}", report.stage);
    machine.pull_plug();
    expect_unbootable(&disk)?;
    let words = "the machine reports it every minute, on its screen and in `ezio status`, and keeps trying";
    rack.fault("a wrong bit in the server's copy", "one piece", words)
}

/// The cost of reading everything back, on a disk that is twice as fast as the link.
pub fn proof_costs_little(rack: &mut Rack) -> Result<()> {
    const MIB: u64 = 160;
    const LINK_MBIT: u32 = 40;
    let golden = crate::golden::random_disk(&rack.disk_path("golden"), MIB)?;
    let (server, image) = armed(rack, &golden, &[])?;
    rack.network.limit_server(LINK_MBIT)?;
    let mut seconds = Vec::new();
    for (number, (name, more)) in (1..).zip([("proven", &[][..]), ("trusted", &["--no-verify"][..])]) {
        server.arm("golden", &[&["--after", "poweroff", "--linger", "1"], more].concat())?;
        let disk = rack.new_disk(name, MIB + 64)?;
        let spec: MachineSpec = direct(rack, name, number).disk(&disk, Bus::Virtio);
        let mut machine = rack.power_on(&spec.slow_disk(u64::from(LINK_MBIT) * 2 * 1_000_000 / 8))?;
        machine.wait_for("EZIO: done, poweroff")?;
        machine.wait_off()?;
        image.compare(&golden, &disk)?;
        let report = server.wait_for_report(&machine, "is done", |report| report.stage == report::Stage::Done)?;
        let stages = [report::Stage::Restore, report::Stage::Verify, report::Stage::Finish];
        let times = report.times.iter().filter(|time| stages.contains(&time.stage));
        seconds.push(times.map(|time| time.seconds).sum::<f64>());
    }
    let [proven, trusted] = seconds[..] else { return Ok(()) };
    let share = (proven / trusted - 1.0) * 100.0;
    println!(
        "{MIB} MiB over {LINK_MBIT} Mbit/s to a disk twice as fast: {trusted:.1} s, {proven:.1} s with the proof ({share:+.1} %)"
    );
    Ok(())
}

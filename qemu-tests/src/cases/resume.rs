//! Power cuts, and images that have changed: correct data on the disk stays, the rest is fetched.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use report::{Report, Stage};

use crate::cases::lab::{armed, direct, expect_unbootable};
use crate::compare::Image;
use crate::disk::{Bus, Disk};
use crate::golden::random_disk;
use crate::nbd::{NbdDisk, Temper};
use crate::rack::Rack;

/// Size of the image's random data, in MiB.
const MIB: u64 = 96;
/// Bytes per second that the disk accepts, so that there is time to cut the power.
const SLOW: u64 = 10 << 20;
const CUTS: usize = 10;

/// The seed of the random numbers: SEED from the environment, otherwise a different one each time.
fn seed() -> Result<u64> {
    match std::env::var("SEED") {
        Ok(seed) => seed.parse().with_context(|| format!("SEED={seed} is not a number")),
        Err(_) => Ok(u64::from(std::process::id()) ^ std::time::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs())),
    }
}

/// Ten power cuts at random moments. Each of them also loses half of the writes that the disk was not asked to flush.
pub fn power_cuts(rack: &mut Rack) -> Result<()> {
    let golden = random_disk(&rack.disk_path("golden"), MIB)?;
    let (server, image) = armed(rack, &golden, &[])?;
    let disk = rack.new_disk("target", MIB + 64)?;
    let seed = seed()?;
    println!("seed {seed}: SEED={seed} makes the same cuts again");
    let mut random = seed | 1;
    let mut below = |limit: u64| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) % limit
    };
    // The moments are spread over the whole restore; the last two come when nearly every piece has arrived.
    let mut moments: Vec<u64> = (0..CUTS).map(|_| below(115)).collect();
    moments.sort_unstable();
    let nbd = NbdDisk::start("target.nbd", &disk, Temper::Forgetful(seed))?;
    let spec = direct(rack, "machine", 1).disk(&disk, Bus::Virtio).behind(&nbd).slow_writes(SLOW);
    let mut kept = Vec::new();
    let mut cuts = 0;
    let mut is_done = false;
    for &moment in &moments {
        let mut machine = rack.power_on(&spec)?;
        machine.wait_for("EZIO: stage disk")?;
        let is_there = |report: &Report| match report.stage {
            Stage::Restore => u64::from(report.progress.percent()) >= moment.min(99),
            stage => stage > Stage::Restore || moment < 5,
        };
        let report = server.wait_for_report(&machine, "is at the moment for a power cut", is_there)?;
        if report.stage > Stage::Verify {
            machine.wait_for("EZIO: done, poweroff")?;
            machine.wait_off()?;
            is_done = true;
        } else {
            machine.pull_plug();
        }
        nbd.wait_for_cut()?;
        // The report may be a second old. From there on, the table may be on the disk. The last report of this boot is
        // from before that, and it is all the server knows about the next boot until that sends a report.
        if report.stage > Stage::Verify || machine.log().count("EZIO: stage finish") > 0 {
            println!("too late for a cut at {moment} %: the machine had come to its last stage");
            break;
        }
        cuts += 1;
        kept.push(report.progress.percent());
        if report.progress.written > 0 {
            expect_unbootable(&disk)?;
        }
    }
    ensure!(cuts >= 5, "only {cuts} cuts came before the end");
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    nbd.wait_for_cut()?;
    image.compare(&golden, &disk)?;
    let report = server.wait_for_report(&machine, "is done", |report| report.stage == Stage::Done)?;
    // A machine that was done before knows it by its stamp, and looks at nothing.
    ensure!(is_done || report.kept > 0, "nothing was kept over {cuts} power cuts");
    println!(
        "{cuts} power cuts, at {kept:?} %; {} bytes of acknowledged writes lost; at last {}",
        nbd.bytes_lost(),
        report.note
    );
    let what = "until the end the disk does not boot; each time the machine continues with what is already right on the disk; at the \
                end every byte is right";
    rack.fault("ten power cuts, half of what was not flushed is lost", "random moments", what)
}

/// A power cut at half time costs only the data that was in transit.
pub fn resumed(rack: &mut Rack) -> Result<()> {
    let golden = random_disk(&rack.disk_path("golden"), MIB)?;
    let (server, image) = armed(rack, &golden, &[])?;
    // As in most rooms, the link is slower than the disk.
    rack.network.limit_server(60)?;
    let disk = rack.new_disk("target", MIB + 64)?;
    let spec = direct(rack, "machine", 1).disk(&disk, Bus::Virtio).slow_writes(SLOW);
    let mut machine = rack.power_on(&spec)?;
    let is_half = |report: &Report| report.stage == Stage::Restore && report.progress.percent() >= 50;
    let first = server.wait_for_report(&machine, "is half-way", is_half)?;
    machine.pull_plug();
    expect_unbootable(&disk)?;
    let lacking = lacking(&image, &disk)?;

    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    image.compare(&golden, &disk)?;
    let second = server.wait_for_report(&machine, "is done", |report| report.stage == Stage::Done)?;
    let total = image.meta.geometry.content_len();
    let twice = (first.progress.downloaded + second.progress.downloaded).saturating_sub(total);
    println!(
        "cut with {} of {total} bytes fetched; {lacking} were not on the disk; {} fetched afterwards, {twice} for the second time",
        first.progress.downloaded, second.progress.downloaded
    );
    ensure!(second.progress.downloaded <= lacking, "more was fetched than was lacking");
    ensure!(second.kept + lacking == total, "what was kept and what was lacking are not the whole");
    // Data in transit or in the page cache, which is limited to 32 MiB, is lost in any case.
    ensure!(twice <= 40 << 20, "more than what was in memory was fetched twice");
    rack.fault("power cut at half time", "mid-way", "the machine fetches only what was not on the disk yet")
}

/// Number of bytes of the image that are not on the disk.
fn lacking(image: &Image, disk: &Disk) -> Result<u64> {
    let file = disk.file()?;
    let geometry = image.meta.geometry;
    let mut lacking = 0;
    for piece in geometry.pieces() {
        let mut bytes = Vec::new();
        for part in image.layout.on_disk(geometry.piece_range(piece)).context("a piece of the image")? {
            let start = bytes.len();
            bytes.resize(start + usize::try_from(part.len)?, 0);
            file.read_exact_at(&mut bytes[start..], part.disk.0).context("reading the target")?;
        }
        if !image.meta.piece_is_right(piece, &bytes) {
            lacking += u64::from(geometry.len_of(piece));
        }
    }
    Ok(lacking)
}

/// The same disk again, once with the same image and once with a slightly changed one.
pub fn changed_image(rack: &mut Rack) -> Result<()> {
    const MIB: u64 = 192;
    let golden = random_disk(&rack.disk_path("golden"), MIB)?;
    let (server, image) = armed(rack, &golden, &[])?;
    // The link should be the bottleneck, not the emulated machine.
    rack.network.limit_server(100)?;
    let disk = rack.new_disk("target", MIB + 64)?;
    let spec = direct(rack, "machine", 1).disk(&disk, Bus::Virtio);
    let deploy = |rack: &mut Rack, name: &str| -> Result<(Report, f64)> {
        let mut machine = rack.power_on(&spec)?;
        machine.wait_for("EZIO: verified")?;
        machine.wait_for("EZIO: done, poweroff")?;
        machine.wait_off()?;
        let is_it = |report: &Report| report.stage == Stage::Done && report.image == name;
        let report = server.wait_for_report(&machine, "is done", is_it)?;
        let stages = [Stage::Restore, Stage::Verify, Stage::Finish];
        let seconds = report.times.iter().filter(|time| stages.contains(&time.stage)).map(|time| time.seconds).sum();
        Ok((report, seconds))
    };
    let (_, full) = deploy(rack, "golden")?;
    image.compare(&golden, &disk)?;

    server.arm("golden", &["--after", "poweroff", "--linger", "1"])?;
    let (again, unchanged) = deploy(rack, "golden")?;
    ensure!(
        (again.progress.downloaded, again.progress.written) == (0, 0),
        "something was fetched or written again: {again:?}"
    );
    image.compare(&golden, &disk)?;

    let geometry = image.meta.geometry;
    let pieces = u64::from(geometry.piece_count());
    let changed = pieces.div_ceil(50);
    let file = golden.file()?;
    for n in 0..changed {
        let piece = geometry.piece(u32::try_from(2 + n * (pieces - 4) / changed)?).context("one of them")?;
        let middle = geometry.piece_range(piece).start + 777;
        let place = image.layout.on_disk(middle..middle + 8)?.next().context("inside the image")?;
        file.write_all_at(b"CHANGED!", place.disk.0).context("changing the golden disk")?;
    }
    // A disk that is open for writing cannot be captured.
    drop(file);
    let second = server.capture(&golden, "second")?;
    server.arm("second", &["--after", "poweroff", "--linger", "1"])?;
    let (delta, seconds) = deploy(rack, "second")?;
    second.compare(&golden, &disk)?;
    let bytes = changed * u64::from(geometry.piece_len());
    println!(
        "{MIB} MiB over 100 Mbit/s: {full:.1} s; unchanged again {unchanged:.1} s, nothing fetched; {changed} of {pieces} pieces \
         changed: {seconds:.1} s, {} bytes fetched = {:.3} x what changed",
        delta.progress.downloaded,
        delta.progress.downloaded as f64 / bytes as f64
    );
    ensure!(
        delta.progress.downloaded <= bytes + bytes / 10,
        "{} bytes fetched for {bytes} changed",
        delta.progress.downloaded
    );
    ensure!(
        delta.progress.written <= bytes + bytes / 10,
        "{} bytes written for {bytes} changed",
        delta.progress.written
    );
    rack.fault(
        "an image of which 2 % changed",
        "over the old one",
        "the machine fetches the changed pieces, nothing else",
    )
}

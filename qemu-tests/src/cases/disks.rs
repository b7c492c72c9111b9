//! The choice of the disk: exactly one that fits, or a refusal that leaves every disk unchanged.

use anyhow::{Context, Result, ensure};

use crate::cases::lab::{self, direct};
use crate::compare::Image;
use crate::disk::{Bus, Disk};
use crate::golden::{Size, random_disk_4kn};
use crate::machine::MachineSpec;
use crate::rack::Rack;
use crate::server::Server;

pub fn no_disk(rack: &mut Rack) -> Result<()> {
    let server = armed(rack)?;
    let spec = direct(rack, "machine", 1);
    expect_refusal(rack, &server, &spec, &[], &["has no disk that the RAM system can see"])
}

pub fn two_disks(rack: &mut Rack) -> Result<()> {
    let server = armed(rack)?;
    let disks = [rack.new_disk("first", 128)?, rack.new_disk("second", 128)?];
    let with_disks = |spec: MachineSpec| spec.disk(&disks[0], Bus::Virtio).disk(&disks[1], Bus::Nvme);
    let spec = with_disks(direct(rack, "machine", 1));
    expect_refusal(rack, &server, &spec, &disks, &["2 disks match", "DISK0-01", "DISK1-01"])?;
    rack.fault("two disks that fit", "TARGET=auto", REFUSED)?;

    server.arm("golden", &["--target", "serial=DISK1-02", "--after", "poweroff", "--linger", "1"])?;
    let mut machine = rack.power_on(&with_disks(direct(rack, "told", 2)))?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    disks[0].expect_untouched()?;
    server.image("golden")?.compare(&rack.golden(Size::Small)?, &disks[1])
}

pub fn disk_too_small(rack: &mut Rack) -> Result<()> {
    let server = armed(rack)?;
    let disk = rack.new_disk("small", 64)?;
    let spec = direct(rack, "machine", 1).disk(&disk, Bus::Virtio);
    expect_refusal(rack, &server, &spec, &[disk], &["needs a disk of at least", "nothing was touched"])
}

pub fn other_sector_size(rack: &mut Rack) -> Result<()> {
    let server = armed(rack)?;
    let disk = rack.new_disk("4kn", 128)?;
    let spec = direct(rack, "machine", 1).disk(&disk, Bus::Nvme).sector_size(4096);
    expect_refusal(rack, &server, &spec, &[disk], &["512-byte sectors", "4096-byte sectors"])?;
    rack.fault("an image with 512-byte sectors", "a disk with 4096-byte sectors", REFUSED)?;

    let golden = random_disk_4kn(&rack.disk_path("golden-4kn"), 32)?;
    let image = server.capture(&golden, "golden-4kn")?;
    server.arm("golden-4kn", &["--after", "poweroff", "--linger", "1"])?;
    let target = rack.new_disk("target-4kn", 64)?;
    let spec = direct(rack, "machine-4kn", 2).disk(&target, Bus::Nvme).sector_size(4096);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    image.compare(&golden, &target)?;
    rack.fault("an image with 4096-byte sectors", "a larger disk with 4096-byte sectors", "restored and proven")
}

pub fn wrong_serial(rack: &mut Rack) -> Result<()> {
    let server = armed(rack)?;
    server.arm("golden", &["--target", "serial=DISK0-99"])?;
    let disk = rack.new_disk("disk", 128)?;
    let spec = direct(rack, "machine", 1).disk(&disk, Bus::Scsi);
    let words = ["DISK0-01", "DISK0-99", "nothing was touched", "/dev/sda"];
    expect_refusal(rack, &server, &spec, &[disk], &words)?;
    rack.fault("TARGET names another serial number", "serial=DISK0-99", REFUSED)
}

pub fn one_sector_short(rack: &mut Rack) -> Result<()> {
    let server = armed(rack)?;
    let needed = server.image("golden")?.layout.needed_len();
    let disk = Disk::blank(&rack.disk_path("short"), needed - 512)?;
    let spec = direct(rack, "machine", 1).disk(&disk, Bus::Virtio);
    let words = ["needs a disk of at least", "nothing was touched"];
    expect_refusal(rack, &server, &spec, &[disk], &words)?;
    rack.fault("a disk that is one sector too small", "its size", REFUSED)
}

/// The kernel finds a forgotten USB stick as the first disk.
pub fn usb_disk_first(rack: &mut Rack) -> Result<()> {
    let boot = rack.paths.boot_generic.clone();
    ensure!(boot.join("vmlinuz").exists(), "{} is missing: `make image FLAVOUR=generic` makes it", boot.display());
    let golden = rack.golden(Size::Small)?;
    let server = armed(rack)?;
    server.arm("golden", &["--after", "poweroff", "--linger", "1"])?;
    let disks = [rack.new_disk("stick", 128)?, rack.new_disk("fixed", 128)?];
    let with = |spec: MachineSpec| spec.memory(1024).direct(&boot, "ezio.server=10.77.0.1").disk(&disks[0], Bus::Usb);
    let spec = with(MachineSpec::new("alone", 1));
    expect_refusal(rack, &server, &spec, &disks, &["usb", "only taken if TARGET names it"])?;
    rack.fault("a USB disk alone", "TARGET=auto", REFUSED)?;
    let mut machine = rack.power_on(&with(MachineSpec::new("both", 2)).disk(&disks[1], Bus::Ahci))?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    disks[0].expect_untouched()?;
    server.image("golden")?.compare(&golden, &disks[1])?;
    rack.fault(
        "a USB disk beside a fixed one",
        "TARGET=auto",
        "the machine chooses the fixed one, the other is untouched",
    )
}

/// Machines report what they would do, and do nothing.
pub fn dry_run(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let server = armed(rack)?;
    server.arm("golden", &["--dry-run", "--after", "poweroff"])?;
    let disks = [rack.new_disk("fits", 128)?, rack.new_disk("small", 64)?];
    let old = rack.disk_path("old");
    std::fs::copy(golden.path(), &old).context("copying the golden disk")?;
    let old = Disk::open(&old);
    let mut fits = rack.power_on(&direct(rack, "fits", 1).disk(&disks[0], Bus::Virtio))?;
    let mut again = rack.power_on(&direct(rack, "again", 2).disk(&old, Bus::Nvme))?;
    let small = direct(rack, "small", 3).disk(&disks[1], Bus::Virtio);
    expect_refusal(rack, &server, &small, &disks[1..], &["needs a disk of at least", "nothing was touched"])?;
    for (machine, words) in
        [(&mut fits, ["none of it is there yet", "the network delivers"]), (&mut again, ["are already there", "FAT32"])]
    {
        machine.wait_for("EZIO: dry run, nothing was written")?;
        machine.wait_for("EZIO: done, poweroff")?;
        machine.wait_off()?;
        let report = server.wait_for_report(machine, "is done", |report| report.stage == report::Stage::Done)?;
        for word in words {
            ensure!(report.dry_run && report.note.contains(word), "the report does not say {word:?}: {report:?}");
        }
    }
    let table = server.status_table()?;
    ensure!(table.contains("2 ready (dry run)") && table.contains("0 done"), "{table}");
    disks[0].expect_untouched()?;
    Image::open(server.library(), "golden")?.compare(&golden, &old)
}

/// A server with the small golden image armed for every machine.
fn armed(rack: &Rack) -> Result<Server> {
    let golden = rack.golden(Size::Small)?;
    Ok(lab::armed(rack, &golden, &[])?.0)
}

/// The result of a refusal.
const REFUSED: &str = "the machine refuses; screen and server show every disk with the reason; the disk is unchanged";

/// Switches a machine on, expects these words on its console and in `ezio status`, and expects its disks unchanged.
fn expect_refusal(rack: &mut Rack, server: &Server, spec: &MachineSpec, disks: &[Disk], words: &[&str]) -> Result<()> {
    let mut machine = rack.power_on(spec)?;
    let said = machine.wait_for_failure()?;
    let report = server.wait_for_report(&machine, "failed", |report| report.error.is_some())?;
    let told = report.error.unwrap_or_default();
    let table = server.status_table()?;
    for word in words {
        ensure!(said.contains(word), "the console does not say {word:?}: {said}");
        ensure!(told.contains(word), "the report does not say {word:?}: {told}");
    }
    // The table wraps long reasons.
    let unwrapped = table.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(unwrapped.contains(words[0]), "`ezio status` does not say {:?}:\n{table}", words[0]);
    machine.pull_plug();
    disks.iter().try_for_each(Disk::expect_untouched)
}

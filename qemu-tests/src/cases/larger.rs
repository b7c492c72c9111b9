//! An image on a larger disk: the table is fitted to the disk, and a partition and its file system may grow.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cases::lab::{armed, direct};
use crate::disk::{Bus, Disk};
use crate::golden::Size;
use crate::process::run;
use crate::rack::Rack;

pub fn larger_disk(rack: &mut Rack) -> Result<()> {
    let golden = rack.golden(Size::Small)?;
    let (server, image) = armed(rack, &golden, &[])?;
    let disk = rack.new_disk("larger", 300)?;
    let spec = direct(rack, "larger", 1).disk(&disk, Bus::Virtio);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    image.compare(&golden, &disk)?;
    expect_good_table(&disk)?;
    let (used, allocated) = (image.layout.content_len(), disk.allocated()?);
    println!(
        "{used} bytes in the image; of a disk of 300 MiB that was full, {allocated} are left: the rest was discarded"
    );
    ensure!(allocated < used + (64 << 20), "unused space was not discarded");
    rack.expect_clone_boots(&spec)?;

    server.arm("golden", &["--after", "poweroff", "--linger", "1", "--grow", "last", "--new-ids", "--no-discard"])?;
    let grown = rack.new_disk("grown", 300)?;
    let spec = direct(rack, "grown", 2).disk(&grown, Bus::Nvme);
    let mut machine = rack.power_on(&spec)?;
    machine.wait_for("its ext4 now have")?;
    machine.wait_for("EZIO: done, poweroff")?;
    machine.wait_off()?;
    expect_good_table(&grown)?;
    ensure!(grown.allocated()? > 280 << 20, "space was discarded that was to be left alone");
    let id = |disk: &Disk| -> Result<String> {
        let text = run(Command::new("sgdisk").arg("-p").arg(disk.path()))?;
        text.lines()
            .find(|line| line.starts_with("Disk identifier"))
            .map(str::to_owned)
            .context("a disk without a GUID")
    };
    ensure!(id(&disk)? == id(&golden)? && id(&grown)? != id(&golden)?, "the disk GUIDs are not as wished");
    let (before, after) = (root_len(&golden)?, root_len(&grown)?);
    println!("the root file system has {before} bytes on the golden disk, {after} on the larger one");
    ensure!(after > 200 << 20, "the root file system has not grown");
    rack.expect_clone_boots(&spec)
}

fn expect_good_table(disk: &Disk) -> Result<()> {
    let text = run(Command::new("sgdisk").arg("-v").arg(disk.path()))?;
    ensure!(text.contains("No problems found"), "sgdisk finds fault with {}: {text}", disk.path().display());
    Ok(())
}

/// Length of the ext4 in the second partition, which has to be intact.
fn root_len(disk: &Disk) -> Result<u64> {
    let info = run(Command::new("sgdisk").args(["-i", "2"]).arg(disk.path()))?;
    let first =
        info.lines().find_map(|line| line.strip_prefix("First sector: ")?.split(' ').next()?.parse::<u64>().ok());
    let place =
        format!("{}?offset={}", disk.path().display(), first.context("a disk without a second partition")? * 512);
    run(Command::new("e2fsck").args(["-f", "-n", &place]))?;
    let text = run(Command::new("dumpe2fs").args(["-h", &place]))?;
    let number = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).context("dumpe2fs says less than it did")?;
        line.trim().parse().context("dumpe2fs says no number")
    };
    Ok(number("Block count:")? * number("Block size:")?)
}

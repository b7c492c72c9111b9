//! What only PID 1 does: the mounts at the start, and the one ending.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use report::Stage;

use order::After;

use crate::console::Console;
use crate::netdev;
use crate::reporter::Reporter;
use crate::stages::Outcome;

/// The last word to the server may take this long, and longer only until two attempts were in vain.
const LAST_REPORT: Duration = Duration::from_secs(10);

/// What a machine says before it restarts can be read for so long.
const READING_TIME: Duration = Duration::from_secs(15);

/// Mounts what the rest relies on. A mount that fails leaves a machine that says so later, where it can be read.
pub fn mount_everything() {
    let mounts = [
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID),
        ("proc", "/proc", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC),
        ("sysfs", "/sys", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC),
    ];
    for (kind, place, flags) in mounts {
        let _ = fs::create_dir_all(place);
        // EBUSY is a kernel that has mounted it already.
        let _ = mount(Some(kind), place, Some(kind), flags, None::<&str>);
    }
}

/// Keeps what waits to be written small, so that a machine with little memory keeps some, the last flush is short, and a
/// power cut loses little.
pub fn bound_dirty_memory() {
    for (key, bytes) in [("dirty_bytes", 32 << 20), ("dirty_background_bytes", 8 << 20)] {
        if let Err(cause) = fs::write(format!("/proc/sys/vm/{key}"), bytes.to_string()) {
            log::warn!("setting vm.{key}: {cause}");
        }
    }
}

/// SMBIOS serial number, or empty.
pub fn machine_serial() -> String {
    dmi("product_serial")
}

/// SMBIOS UUID, or empty.
pub fn machine_uuid() -> String {
    dmi("product_uuid")
}

/// Maker and model, for the first line on the screen.
pub fn machine_name() -> String {
    let name = format!("{} {}", dmi("sys_vendor"), dmi("product_name"));
    if name.trim().is_empty() { "an unnamed machine".to_owned() } else { name }
}

fn dmi(key: &str) -> String {
    let text = fs::read_to_string(format!("/sys/class/dmi/id/{key}")).unwrap_or_default();
    text.trim().to_owned()
}

/// A panic in PID 1 would take the kernel with it, and the reason off the screen: say it, and stand still.
pub fn survive_panics(console: &Console, reporter: &Reporter) {
    let (console, reporter) = (console.clone(), reporter.clone());
    std::panic::set_hook(Box::new(move |info| {
        let why = format!("internal error, please report it: {info}; switch the machine off and on to try again");
        fail(&why, &console, &reporter);
    }));
}

/// The one ending. On success the after-action; where the server took its order back, a restart; on failure the reason on
/// screen and server, until somebody comes. The disk of a failed machine has been left unable to boot by whoever wrote to it
/// last.
pub fn end(result: Result<Outcome>, console: &Console, reporter: &Reporter) -> ! {
    let after = match result {
        Ok(Outcome::Done(after)) => {
            reporter.enter(Stage::Done);
            reporter.settle(LAST_REPORT);
            console.done(after.as_str());
            after
        }
        Ok(Outcome::Stopped(why)) => {
            reporter.update(|report| report.error = Some(why.clone()));
            reporter.enter(Stage::Failed);
            console.stopped(&why);
            reporter.settle(LAST_REPORT);
            std::thread::sleep(READING_TIME);
            After::Reboot
        }
        Err(error) => fail(&format!("{error:#}"), console, reporter),
    };
    netdev::set_all_down();
    nix::unistd::sync();
    let mode = match after {
        After::Reboot => RebootMode::RB_AUTOBOOT,
        After::Poweroff => RebootMode::RB_POWER_OFF,
        After::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    let refused = reboot(mode);
    fail(&format!("the kernel refuses to {}: {refused:?}", after.as_str()), console, reporter)
}

fn fail(why: &str, console: &Console, reporter: &Reporter) -> ! {
    reporter.update(|report| report.error = Some(why.to_owned()));
    reporter.enter(Stage::Failed);
    console.failed(why);
    loop {
        // The reports go on from their own thread, so the server keeps showing this machine and why.
        std::thread::park();
    }
}

//! The session's namespaces: user, network and mounts, as root or as any user.

use std::os::unix::process::{CommandExt, parent_id};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::process::{find_program, sh};

/// Set in the environment of the process that runs inside; its value is the parent's process id.
const INSIDE: &str = "EZIO_BENCH_PARENT";
/// The session's own tmpfs, for images, the receivers' files, and the names of the network namespaces.
pub const SCRATCH: &str = "/run";

/// Whether this process is the one inside.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again with the same arguments in new namespaces, and returns its exit code.
///
/// # Errors
/// If the namespaces cannot be made.
pub fn run_inside() -> Result<ExitCode> {
    let unshare = find_program("unshare").context("`unshare` is missing: it comes with the package util-linux")?;
    let own = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(unshare);
    command.args(["-Urn", "--mount", "--map-root-user", "--"]).arg(own).args(std::env::args_os().skip(1));
    command.env(INSIDE, std::process::id().to_string()).stdin(Stdio::null());
    // SAFETY: the closure runs between fork and exec and makes one system call, prctl, that takes no pointers.
    unsafe {
        command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
    }
    let status = command.status().context("starting `unshare`")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Called first inside: binds this process's life to its parent's and mounts [`SCRATCH`].
///
/// # Errors
/// If the parent has ended already or the mount fails.
pub fn enter() -> Result<()> {
    let parent = std::env::var(INSIDE).context("not in a sandbox")?;
    // `unshare` changed credentials, which made the kernel forget the earlier request.
    set_pdeathsig(Signal::SIGKILL).context("asking to be killed with the parent")?;
    if parent != parent_id().to_string() {
        bail!("the process that started this one has ended");
    }
    sh(&format!("mount -t tmpfs -o size=90% tmpfs {SCRATCH}"))?;
    sh("ip link set lo up")?;
    Ok(())
}

/// Makes an empty directory in [`SCRATCH`]; earlier contents are deleted.
///
/// # Errors
/// If the tmpfs does not allow it.
pub fn fresh_dir(path: &Path) -> Result<()> {
    let making = || format!("making {}", path.display());
    if path.exists() {
        std::fs::remove_dir_all(path).with_context(making)?;
    }
    std::fs::create_dir_all(path).with_context(making)
}

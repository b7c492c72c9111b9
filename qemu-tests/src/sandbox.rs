//! A case's namespaces: user, network and mounts, as root or as any user.

use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::paths::Paths;
use crate::process::{die_with_parent, sh};

/// Set in the environment of a process that runs inside; its value is the parent's process id.
pub const INSIDE: &str = "EZIO_RACK_PARENT";

/// This program again with `args`, in new namespaces and in the directory `folder`, with the same `paths`.
///
/// # Errors
/// If this program does not know where it is.
pub fn command(args: &[&str], folder: &Path, paths: &Paths) -> Result<Command> {
    let own = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new("unshare");
    command.args(["-Urn", "--mount", "--map-root-user", "--"]).arg(own).args(args);
    // The usual directories of root, which an ordinary user's PATH lacks.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    command.envs(paths.environment()).env("PATH", path).current_dir(folder).env(INSIDE, std::process::id().to_string());
    die_with_parent(&mut command);
    Ok(command)
}

/// Called first inside: binds this process's life to its parent's, and makes `/run` private for `ip netns`.
///
/// # Errors
/// If the process is not in a sandbox, or the parent has ended already.
pub fn enter() -> Result<()> {
    let parent = std::env::var(INSIDE).context("not in a sandbox: this command is started by `rack test`")?;
    // `unshare` changed credentials, which made the kernel forget the earlier request.
    set_pdeathsig(Signal::SIGKILL).context("asking to be killed with the parent")?;
    if parent != parent_id().to_string() {
        bail!("the process that started this case has ended");
    }
    sh("mount -t tmpfs tmpfs /run")?;
    sh("ip link set lo up")?;
    Ok(())
}

//! File systems that are not fit to be copied as they are: hibernated or not shut down.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::partclone::find_program;

/// What ntfs-3g.probe(8) says of a Windows that hibernated (its fast start counts), and of one that crashed.
const HIBERNATED: i32 = 14;
const UNCLEAN: i32 = 15;

/// Whether the Windows on this NTFS was shut down; partclone does not look.
///
/// # Errors
/// If it was not, or the program that can tell is missing.
pub fn check_ntfs(device: &Path) -> anyhow::Result<()> {
    let Some(program) = find_program("ntfs-3g.probe") else {
        bail!(
            "ntfs-3g.probe is missing, which tells whether Windows was shut down: run `apt install ntfs-3g` (as root), \
             or go on without it with --at-own-risk"
        );
    };
    let output = Command::new(program).arg("--readwrite").arg(device).stdin(Stdio::null()).output();
    let output = output.context("running ntfs-3g.probe")?;
    match output.status.code() {
        Some(HIBERNATED) => bail!(
            "the Windows on it is hibernated, or was switched off with fast start: its clones would lose files. Start it, run \
             `shutdown /s /t 0` in it (or hold Shift while choosing Shut down), and capture again; or take it as it is with \
             --at-own-risk"
        ),
        Some(UNCLEAN) => bail!(
            "the Windows on it was not shut down: start it, let it check its disk, shut it down, and capture again; or take it \
             as it is with --at-own-risk"
        ),
        // Anything else is for partclone to judge.
        _ => Ok(()),
    }
}

/// What to say of a Linux that is hibernated: its memory is on the disk, and its file systems are in use.
pub const LINUX_HIBERNATED: &str = "the Linux on this disk is hibernated, so its file systems are in use: start it, shut it \
                                    down, and capture again; or take it as it is with --at-own-risk";

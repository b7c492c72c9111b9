//! The tools that race, each with its best settings for a LAN.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::image::{Image, Shape};
use crate::outcome::Misdeed;
use crate::process::{Process, find_program};
use crate::rack::Node;

const LT_PEER: &str = include_str!("../lt_peer.py");
/// The path of [`LT_PEER`] where it is run.
const LT_PEER_NAME: &str = "/run/lt_peer.py";
const HOSTILE: &str = include_str!("../hostile.py");
const HOSTILE_NAME: &str = "/run/hostile.py";
/// Printed by aria2's hook.
const ARIA2_COMPLETE: &str = "every piece is there";
/// First port of socat's seeders.
const SOCAT_PORT: usize = 7000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Tool {
    /// `ezio seed` and `ezio restore`.
    Ezio,
    /// aria2c.
    Aria2,
    /// libtorrent, tuned for a LAN.
    Libtorrent,
    /// The same with a super-seeding seeder.
    LibtorrentSuper,
    /// udp-sender and udp-receiver: multicast, without hashes.
    Udpcast,
    /// A plain copy for each receiver, without hashes.
    Socat,
}

/// The parameters of a run that a tool needs.
pub struct Setting<'a> {
    pub image: &'a Image,
    pub torrent: &'a Path,
    pub tracker: &'a str,
    pub ezio: &'a Path,
    /// How many receivers there will be.
    pub receivers: usize,
    /// Whether our receivers read everything back, as they do by default.
    pub proves: bool,
}

impl Tool {
    /// The name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Ezio => "ezio",
            Tool::Aria2 => "aria2",
            Tool::Libtorrent => "libtorrent",
            Tool::LibtorrentSuper => "libtorrent-super",
            Tool::Udpcast => "udpcast",
            Tool::Socat => "socat",
        }
    }

    /// A requirement of the tool that is not installed.
    pub fn missing(self, ezio: &Path) -> Option<String> {
        let lacks = |program: &str| find_program(program).is_none();
        match self {
            Tool::Ezio if !ezio.is_file() => Some(format!("{} is not built", ezio.display())),
            Tool::Aria2 if lacks("aria2c") => Some("package aria2 is not installed".into()),
            Tool::Libtorrent | Tool::LibtorrentSuper if python().is_none() => {
                Some("package python3-libtorrent is not installed".into())
            }
            Tool::Udpcast if lacks("udp-sender") || lacks("udp-receiver") => {
                Some("package udpcast is not installed".into())
            }
            Tool::Socat if lacks("socat") => Some("package socat is not installed".into()),
            _ => None,
        }
    }

    /// Whether its peers meet at the tracker.
    pub fn has_tracker(self) -> bool {
        !matches!(self, Tool::Udpcast | Tool::Socat)
    }

    /// Whether it is an interpreter that gets ready before the clock starts and then waits for a line.
    pub fn waits_for_go(self) -> bool {
        matches!(self, Tool::Libtorrent | Tool::LibtorrentSuper)
    }

    /// Whether it ends when it has everything, instead of continuing to serve.
    pub fn ends(self) -> bool {
        !self.has_tracker()
    }

    pub fn shape(self) -> Shape {
        match self {
            Tool::Ezio => Shape::Disk,
            Tool::Aria2 | Tool::Libtorrent | Tool::LibtorrentSuper => Shape::Files,
            Tool::Udpcast | Tool::Socat => Shape::Flat,
        }
    }

    /// The path below its directory to which a receiver writes.
    pub fn target(self, dir: &Path) -> PathBuf {
        if self.shape() == Shape::Files { dir.into() } else { dir.join("target") }
    }

    /// The seeder's programs.
    ///
    /// # Errors
    /// If one is not installed.
    pub fn seeders(self, setting: &Setting, node: &Node) -> Result<Vec<Command>> {
        let flat = setting.image.flat();
        let mut command = match self {
            Tool::Ezio => {
                let mut command = node.command(text(setting.ezio)?)?;
                command.arg("seed").arg(setting.torrent).arg(flat);
                command.args(["--as", "flat", "--tracker", setting.tracker]);
                command
            }
            Tool::Aria2 => {
                let mut command = aria2(node, &setting.image.files())?;
                command.args(["--bt-seed-unverified=true", "--check-integrity=false"]).arg(setting.torrent);
                command
            }
            Tool::Libtorrent => lt_peer(node, "seed", setting, &setting.image.files())?,
            Tool::LibtorrentSuper => lt_peer(node, "super", setting, &setting.image.files())?,
            Tool::Udpcast => {
                let mut command = node.command("udp-sender")?;
                command.args(["--interface", "eth0", "--nokbd", "--no-progress", "--full-duplex", "--min-receivers"]);
                command.arg(setting.receivers.to_string()).arg("--file").arg(flat);
                command
            }
            Tool::Socat => {
                let flat = flat.to_string_lossy().into_owned();
                let each = |receiver: usize| {
                    let mut command = node.command("socat")?;
                    command.args(["-b", "262144", "-u", &format!("OPEN:{flat},rdonly")]);
                    command.arg(format!("TCP-LISTEN:{},reuseaddr", SOCAT_PORT + receiver));
                    Ok(command)
                };
                return (0..setting.receivers).map(each).collect();
            }
        };
        command.current_dir("/");
        Ok(vec![command])
    }

    /// A receiver's program; `index` counts receivers from 0, `dir` is its empty directory.
    ///
    /// # Errors
    /// If it is not installed.
    pub fn receiver(self, setting: &Setting, seeder: &Node, node: &Node, index: usize, dir: &Path) -> Result<Command> {
        let target = self.target(dir);
        Ok(match self {
            Tool::Ezio => {
                let mut command = node.command(text(setting.ezio)?)?;
                command.arg("restore").arg(setting.torrent).arg(target);
                command.args(["--json", "--yes", "--linger", "86400", "--tracker", setting.tracker]);
                command.args((!setting.proves).then_some("--no-verify"));
                command
            }
            Tool::Aria2 => {
                let mut command = aria2(node, &target)?;
                let hook = dir.join("hook");
                std::fs::write(&hook, format!("#!/bin/sh\necho {ARIA2_COMPLETE}\n")).context("writing a hook")?;
                let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                std::fs::set_permissions(&hook, executable).context("making a hook executable")?;
                command.arg(format!("--on-bt-download-complete={}", hook.display())).arg(setting.torrent);
                command
            }
            Tool::Libtorrent | Tool::LibtorrentSuper => lt_peer(node, "fetch", setting, &target)?,
            Tool::Udpcast => {
                let mut command = node.command("udp-receiver")?;
                command.args(["--interface", "eth0", "--nokbd", "--no-progress", "--file"]).arg(target);
                command
            }
            Tool::Socat => {
                let mut command = node.command("socat")?;
                let from = format!("TCP:{}:{},retry=500,interval=0.02", seeder.ip, SOCAT_PORT + index);
                command.args(["-b", "262144", "-u", &from]).arg(format!("CREATE:{}", target.display()));
                command
            }
        })
    }

    /// When a receiver had every piece, written, and hash-checked as far as the tool does that.
    pub fn completed(self, process: &mut Process) -> Option<Instant> {
        match self {
            Tool::Ezio => process.printed(is_all_restored),
            Tool::Aria2 => process.printed(|line| line == ARIA2_COMPLETE),
            Tool::Libtorrent | Tool::LibtorrentSuper => process.printed(|line| line == "complete"),
            Tool::Udpcast | Tool::Socat => process.exited().filter(|&(_, is_well)| is_well).map(|(at, _)| at),
        }
    }

    /// When ours had also read everything back, which other tools do not do.
    pub fn proved(self, process: &Process) -> Option<Instant> {
        (self == Tool::Ezio).then(|| process.printed(is_verified))?
    }
}

/// Writes the additional files that tools need.
///
/// # Errors
/// If they cannot be written.
pub fn prepare() -> Result<()> {
    for (name, text) in [(LT_PEER_NAME, LT_PEER), (HOSTILE_NAME, HOSTILE)] {
        std::fs::write(name, text).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}

/// The program of a hostile peer.
///
/// # Errors
/// If there is no Python.
pub fn hostile(node: &Node, misdeed: Misdeed, setting: &Setting) -> Result<Command> {
    let mut command = node.command("python3")?;
    command.arg(HOSTILE_NAME).arg(misdeed.name()).arg(setting.torrent).arg(setting.tracker);
    Ok(command)
}

/// Whether a progress line of `ezio restore --json` says that every piece was checked and written.
fn is_all_restored(line: &str) -> bool {
    let Ok(progress) = serde_json::from_str::<serde_json::Value>(line) else { return false };
    let number = |key: &str| progress.get(key).and_then(serde_json::Value::as_u64);
    progress.get("stage").and_then(|stage| stage.as_str()) != Some("restore")
        || number("bytes_done").is_some() && number("bytes_done") == number("bytes_total")
}

/// Whether a line of `ezio restore --json` says that everything was read back.
fn is_verified(line: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(line).is_ok_and(|last| last.get("verified").is_some())
}

fn aria2(node: &Node, dir: &Path) -> Result<Command> {
    let mut command = node.command("aria2c")?;
    command.args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false"]);
    command.args(["--disable-ipv6=true", "--listen-port=6881", "--bt-tracker-interval=5", "--bt-max-peers=0"]);
    command.args(["--bt-request-peer-speed-limit=1024M", "--seed-ratio=0.0", "--follow-torrent=mem"]);
    command.args(["--file-allocation=none", "--disk-cache=64M", "--bt-max-open-files=400", "--allow-overwrite=true"]);
    command.args(["--summary-interval=0", "--show-console-readout=false", "--console-log-level=notice"]);
    command.arg("--dir").arg(dir);
    Ok(command)
}

fn lt_peer(node: &Node, role: &str, setting: &Setting, dir: &Path) -> Result<Command> {
    let python = python().context("package python3-libtorrent is not installed")?;
    let mut command = node.command(python)?;
    command.arg(LT_PEER_NAME).arg(role).arg(setting.torrent).arg(dir);
    Ok(command)
}

/// A Python with libtorrent: Debian's, even if another one comes first in the PATH.
fn python() -> Option<&'static str> {
    static FOUND: OnceLock<Option<&str>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        ["/usr/bin/python3", "python3"].into_iter().find(|python| {
            let import = Command::new(python).args(["-c", "import libtorrent"]).output();
            import.is_ok_and(|output| output.status.success())
        })
    })
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_are_understood() {
        assert!(!is_all_restored(r#"{"stage":"restore","bytes_done":5,"bytes_total":10}"#));
        assert!(is_all_restored(r#"{"stage":"restore","bytes_done":10,"bytes_total":10}"#));
        assert!(is_all_restored(r#"{"stage":"verify","bytes_done":3,"bytes_total":10}"#));
        assert!(!is_all_restored("[INFO] something else"));
        assert!(is_verified(r#"{"stage":"done","bytes_done":10,"bytes_total":10,"verified":"all"}"#));
        assert!(!is_verified(r#"{"stage":"verify","bytes_done":10,"bytes_total":10}"#));
        assert!(!is_verified("verified 10 B"));
    }
}

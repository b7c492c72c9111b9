//! The server that is measured.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use metainfo::Infohash;

use crate::load::client::{self, SERVER};
use crate::load::image::{self, IMAGE};
use crate::load::lan::{BRIDGE, Lan};
use crate::process::{Process, wait_until};

/// Addresses that the server gives out; no station has one of these.
pub const DHCP_RANGE: &str = "10.9.128.1-10.9.191.254";
/// How long the server may take to begin.
const START: Duration = Duration::from_secs(60);
/// Silence after which it has written everything; between two parts of much it pauses for two seconds.
const QUIET: Duration = Duration::from_secs(5);

/// What every measurement needs.
pub struct Bench {
    pub ezio: PathBuf,
    /// For libraries and logs.
    pub dir: PathBuf,
    pub lan: Lan,
    pub runs: usize,
}

/// A running `ezio serve`, with [`IMAGE`] for every machine.
pub struct Served {
    pub process: Process,
    pub infohash: Infohash,
}

impl Served {
    /// Starts it with a new library, and waits until it gives out the image.
    ///
    /// # Errors
    /// If it does not come to that; what it said is in its log.
    pub fn start(bench: &Bench, name: &str, arguments: &[&str]) -> Result<Served> {
        let library = bench.dir.join(format!("library-{name}"));
        let infohash = image::make_library(&library)?;
        let command = |words: &[&str]| {
            let mut command = Command::new(&bench.ezio);
            command.args(words).arg("--library").arg(&library);
            command
        };
        let armed = command(&["arm", IMAGE]).output().context("starting `ezio arm`")?;
        ensure!(armed.status.success(), "`ezio arm` failed: {}", String::from_utf8_lossy(&armed.stderr).trim());
        let mut serve = command(&["serve", "--interface", BRIDGE]);
        serve.arg("--boot-dir").arg(bench.dir.join("boot")).args(arguments);
        let log = bench.dir.join(format!("serve-{name}.log"));
        let mut process = Process::start("ezio serve", serve, &log)?;
        let what = format!("`ezio serve` begins (see {})", log.display());
        wait_until(&what, START, || {
            ensure!(process.exited().is_none(), "`ezio serve` has ended at its start: see {}", log.display());
            Ok(process.printed(|line| line.starts_with("armed ")).is_some())
        })?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("asking the server")?;
        wait_until("the server gives out the image", START, || {
            let script = runtime.block_on(client::script(SERVER, client::mac(0)));
            Ok(script.is_ok_and(|text| text.contains("gets image")))
        })?;
        Ok(Served { process, infohash })
    }

    /// Bytes that it has caused to be written to disks.
    ///
    /// # Errors
    /// If it has ended.
    pub fn written(&self) -> Result<u64> {
        let path = format!("/proc/{}/io", self.process.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let value = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
        value.and_then(|text| text.trim().parse().ok()).with_context(|| format!("{path} has no write_bytes"))
    }

    /// How many machines it remembers.
    ///
    /// # Errors
    /// If it does not say so.
    pub fn remembered(&self) -> Result<usize> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("asking the server")?;
        let status = runtime.block_on(client::body(SERVER, "/status.json")).context("fetching the status")?;
        let status: serde_json::Value = serde_json::from_slice(&status).context("reading the status")?;
        Ok(status["machines"].as_array().context("the status has no machines")?.len())
    }

    /// Waits until it has nothing more to write: no byte for [`QUIET`]. `false` if that does not come about in time.
    ///
    /// # Errors
    /// If it has ended.
    pub fn settle(&self, patience: Duration) -> Result<bool> {
        let end = Instant::now() + patience;
        let (mut last, mut since) = (self.written()?, Instant::now());
        while since.elapsed() < QUIET {
            if Instant::now() > end {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(100));
            let now = self.written()?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(true)
    }
}

//! Measures how busy the whole machine is: a run that fills the processors measures them, not the network.

use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Share of all processors' time from which on a run counts as CPU-bound.
const BOUND: f64 = 0.9;

/// A reading of the kernel's CPU times.
pub struct Busy {
    at: Instant,
    total: f64,
    idle: f64,
    steal: f64,
}

/// Use of all processors over a run, as shares of their time.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Use {
    /// Everything except idle time, including work of other programs.
    pub busy: f64,
    /// Time that the host of a virtual machine took for itself.
    pub steal: f64,
    /// Seconds of all processors in total.
    pub capacity_s: f64,
}

impl Busy {
    /// Reads the CPU times.
    ///
    /// # Errors
    /// If `/proc/stat` is not in Linux's format.
    pub fn now() -> Result<Busy> {
        let stat = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        // user nice system idle iowait irq softirq steal; the fields after these are already part of user.
        let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).flat_map(str::parse).collect();
        let [_, _, _, idle, iowait, _, _, steal] = ticks[..] else { anyhow::bail!("/proc/stat: too few columns") };
        Ok(Busy { at: Instant::now(), total: ticks.iter().sum(), idle: idle + iowait, steal })
    }

    /// The use since this reading.
    ///
    /// # Errors
    /// As for [`Busy::now`].
    pub fn until_now(&self) -> Result<Use> {
        let now = Busy::now()?;
        let total = (now.total - self.total).max(1.0);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        Ok(Use {
            busy: 1.0 - (now.idle - self.idle) / total,
            steal: (now.steal - self.steal) / total,
            capacity_s: now.at.duration_since(self.at).as_secs_f64() * cores,
        })
    }
}

impl Use {
    /// Whether the run was limited by the processors.
    pub fn is_cpu_bound(self) -> bool {
        self.busy > BOUND
    }
}

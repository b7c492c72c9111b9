//! Who uses the processors.

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::load::served::Served;
use crate::machine::Busy;

/// Who uses the processors.
pub struct Meter {
    busy: Busy,
    own: f64,
    server: f64,
}

impl Meter {
    /// Begins to measure.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn start(server: &mut Served) -> Result<Meter> {
        Ok(Meter { busy: Busy::now()?, own: own_cpu()?, server: server.process.cost().cpu_s })
    }

    /// What was used until now, as a cell of a table.
    ///
    /// # Errors
    /// As for [`Meter::start`].
    pub fn cell(&self, server: &mut Served) -> Result<String> {
        let used = self.busy.until_now()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let seconds = (used.capacity_s / cores).max(1e-3);
        let bound = if used.is_cpu_bound() { ", the limit" } else { "" };
        Ok(format!(
            "server {:.2}, machines {:.2}; {:.0} % busy{bound}",
            (server.process.cost().cpu_s - self.server) / seconds,
            (own_cpu()? - self.own) / seconds,
            used.busy * 100.0
        ))
    }
}

/// Seconds of processor time that this process has used.
fn own_cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("reading the own use of the processors")?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 * 1e-6)
}

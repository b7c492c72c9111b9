//! The next moment of that room: every machine fetches its loader.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

use crate::load::client::{self, Trouble};
use crate::load::image::{BIOS_LOADER, BOOT_FILES, UEFI_LOADER};
use crate::load::meter::Meter;
use crate::load::served::{Bench, Served};
use crate::load::table::{self, Table};

/// Machines, on so many cards.
const MACHINES: usize = 500;
const CARDS: usize = 10;
/// How long firmware tries, about.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn measure(bench: &Bench) -> Table {
    let what = format!(
        "{MACHINES} machines on {CARDS} cards fetch their loader in the same moment. Half are BIOS: `{BIOS_LOADER}`, blocks of \
         1456 bytes, one after the other. Half are UEFI: they ask for the length of `{UEFI_LOADER}`, end that with ERROR 8, and \
         fetch it with a window of four blocks of 1468 bytes."
    );
    let head = ["machines", "got all bytes", "refused", "too late or failed", "median s", "slowest s", "MiB/s", "CPU"];
    let mut table = Table::new("500 TFTP clients at once", what, &head);
    table.row(&MACHINES.to_string(), one(bench));
    table
}

fn one(bench: &Bench) -> Result<Vec<String>> {
    let mut served = Served::start(bench, "tftp", &[])?;
    let stations = (0..CARDS)
        .map(|card| {
            let addresses = (0..MACHINES / CARDS).map(|at| Ipv4Addr::from([10, 9, card as u8 + 1, at as u8 + 1]));
            bench.lan.station(addresses.collect())
        })
        .collect::<Result<Vec<_>>>()?;
    let meter = Meter::start(&mut served)?;
    let begun = Instant::now();
    let pending: Vec<_> = stations
        .iter()
        .map(|station| {
            let addresses = station.addresses.clone();
            station.begin(move || room(addresses, begun + PATIENCE))
        })
        .collect();
    let mut results = Vec::new();
    for pending in pending {
        results.extend(pending.wait()?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = meter.cell(&mut served)?;
    let times = table::sorted(results.iter().flatten().map(|(_, time)| time.as_secs_f64()).collect());
    let bytes: usize = results.iter().flatten().map(|(len, _)| len).sum();
    let refused = results.iter().filter(|result| matches!(result, Err(Trouble::Refused(_)))).count();
    let lost =
        results.iter().filter_map(|result| result.as_ref().err()).find(|why| !matches!(why, Trouble::Refused(_)));
    let count = results.len() - times.len() - refused;
    Ok(vec![
        times.len().to_string(),
        refused.to_string(),
        lost.map_or_else(|| count.to_string(), |why| format!("{count} ({why})")),
        format!("{:.2}", table::quantile(&times, 0.5)),
        format!("{:.2}", table::quantile(&times, 1.0)),
        format!("{:.0}", bytes as f64 / f64::from(1 << 20) / seconds),
        cpu,
    ])
}

type Loaded = Result<(usize, Duration), Trouble>;

async fn room(addresses: Vec<Ipv4Addr>, until: Instant) -> Vec<Loaded> {
    let machines: Vec<_> =
        addresses.into_iter().enumerate().map(|(at, from)| tokio::spawn(load(from, at % 2 == 1, until))).collect();
    let mut results = Vec::new();
    for machine in machines {
        let result = machine.await.context("a client has panicked");
        results.push(result.unwrap_or_else(|error| Err(Trouble::Failed(format!("{error:#}")))));
    }
    results
}

/// Fetches a loader; gives its length and how long that took.
async fn load(from: Ipv4Addr, is_uefi: bool, until: Instant) -> Loaded {
    let begun = Instant::now();
    let len = loader(from, is_uefi, until).await?;
    Ok((len, begun.elapsed()))
}

/// Fetches a loader, all of it; gives its length.
///
/// # Errors
/// Why it did not come.
pub async fn loader(from: Ipv4Addr, is_uefi: bool, until: Instant) -> Result<usize, Trouble> {
    let fetched = if is_uefi {
        client::tftp_probe(from, UEFI_LOADER, until).await?;
        client::tftp(from, UEFI_LOADER, 1468, 4, until).await?
    } else {
        client::tftp(from, BIOS_LOADER, 1456, 1, until).await?
    };
    let name = if is_uefi { UEFI_LOADER } else { BIOS_LOADER };
    if BOOT_FILES.iter().any(|&(known, len)| known == name && len != fetched.len) {
        return Err(Trouble::Failed(format!("{} bytes came of {name}", fetched.len)));
    }
    Ok(fetched.len)
}

//! Connections that nothing comes on any more.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::load::client::{self, Http};
use crate::load::lan::Station;
use crate::load::meter::Meter;
use crate::load::served::{Bench, Served};
use crate::load::table::{self, Table};

const CONNECTIONS: usize = 1000;
const ADDRESSES: usize = 20;
/// How often a newcomer fetches its script.
const NEWCOMERS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(30);

pub fn measure(bench: &Bench) -> Table {
    let what = format!(
        "One card keeps {CONNECTIONS} connections from {ADDRESSES} addresses open after a request on each. Another one connects \
         {NEWCOMERS} times, one after the other, and fetches its boot script."
    );
    let head = ["connections", "still open", "newcomer's median ms", "slowest ms", "server's peak MiB", "CPU"];
    let mut table = Table::new("1,000 idle connections", what, &head);
    match rows(bench) {
        Ok([without, with]) => {
            table.row("0", Ok(without));
            table.row(&CONNECTIONS.to_string(), Ok(with));
        }
        Err(error) => table.row(&CONNECTIONS.to_string(), Err(error)),
    }
    table
}

fn rows(bench: &Bench) -> Result<[Vec<String>; 2]> {
    let mut served = Served::start(bench, "idle", &[])?;
    let holder = bench.lan.station((0..ADDRESSES).map(|at| Ipv4Addr::from([10, 9, 1, at as u8 + 1])).collect())?;
    let newcomer = bench.lan.station(vec![[10, 9, 2, 1].into()])?;
    let without = one(&mut served, &newcomer, || Ok(0))?;
    let addresses = holder.addresses.clone();
    let held = holder.begin(move || hold(addresses)).wait()??;
    ensure!(held.len() == CONNECTIONS, "only {} connections were made", held.len());
    let with = one(&mut served, &newcomer, || {
        // Asked where their connections live.
        holder.begin(move || async move { held.iter().filter(|http| http.is_open()).count() }).wait()
    })?;
    Ok([without, with])
}

async fn hold(addresses: Vec<Ipv4Addr>) -> Result<Vec<Http>> {
    let mut held = Vec::new();
    for number in 0..CONNECTIONS {
        let mut http = Http::connect(addresses[number % addresses.len()]).await.context("connecting")?;
        let request = client::script_request(client::mac(100_000));
        http.ask_within(&request, PATIENCE).await.context("asking once")?;
        held.push(http);
    }
    Ok(held)
}

fn one(served: &mut Served, newcomer: &Station, open: impl FnOnce() -> Result<usize>) -> Result<Vec<String>> {
    let meter = Meter::start(served)?;
    let from = newcomer.addresses[0];
    let times = newcomer.begin(move || async move {
        let mut times = Vec::new();
        for number in 0..NEWCOMERS {
            let begun = Instant::now();
            let script = tokio::time::timeout(PATIENCE, client::script(from, client::mac(number + 1))).await;
            let script = script.context("no boot script in 30 s")?.context("fetching the boot script")?;
            ensure!(script.starts_with("#!ipxe"), "the boot script is {script:?}");
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    });
    let times = table::sorted(times.wait()??);
    let cpu = meter.cell(served)?;
    Ok(vec![
        open()?.to_string(),
        format!("{:.2}", table::quantile(&times, 0.5)),
        format!("{:.2}", table::quantile(&times, 1.0)),
        format!("{:.0}", served.process.cost().peak_rss as f64 / f64::from(1 << 20)),
        cpu,
    ])
}

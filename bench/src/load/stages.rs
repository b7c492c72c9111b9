//! A machine that changes its stage all the time: each change is to be on the disk before it is answered.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::load::client::{self, Http, Order};
use crate::load::meter::Meter;
use crate::load::served::{Bench, Served};
use crate::load::table::{self, Table};

/// Machines that the server remembers besides.
const FLEET: usize = 3500;
const LENGTH: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 32;
const GOAL_MB: f64 = 1.0;

pub fn measure(bench: &Bench) -> Table {
    let what = format!(
        "The server remembers {FLEET} machines. One connection reports another stage as soon as the report before is answered, for \
         {} s, with the token of its order. *Written* is what the kernel counts for the server's process; the goal is less than \
         {GOAL_MB:.0} MB/s.",
        LENGTH.as_secs()
    );
    let head = ["fleet", "reports answered", "slowest answer ms", "written MB/s", "goal", "CPU"];
    let mut table = Table::new("One machine that changes its stage all the time", what, &head);
    table.row(&FLEET.to_string(), one(bench));
    table
}

fn one(bench: &Bench) -> Result<Vec<String>> {
    let mut served = Served::start(bench, "stages", &[])?;
    let room = bench.lan.station((1..=20).map(|at| Ipv4Addr::from([10, 9, 1, at])).collect())?;
    let card = bench.lan.station(vec![[10, 9, 2, 1].into()])?;
    let addresses = room.addresses.clone();
    room.begin(move || fill(addresses)).wait()??;
    let known = served.remembered()?;
    ensure!(known >= FLEET, "the server remembers {known} machines of {FLEET}");
    ensure!(served.settle(Duration::from_secs(120))?, "the server still writes two minutes after its fleet was there");
    let from = card.addresses[0];
    let (meter, written, begun) = (Meter::start(&mut served)?, served.written()?, Instant::now());
    let times = card.begin(move || toggle(from)).wait()??;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = meter.cell(&mut served)?;
    let rate = (served.written()? - written) as f64 / seconds / 1e6;
    let times = table::sorted(times);
    Ok(vec![
        times.len().to_string(),
        format!("{:.0}", table::quantile(&times, 1.0)),
        format!("{rate:.2}"),
        if rate < GOAL_MB { "met".into() } else { "missed".into() },
        cpu,
    ])
}

/// Lets the server hear of [`FLEET`] machines.
async fn fill(addresses: Vec<Ipv4Addr>) -> Result<()> {
    let turn = Arc::new(Semaphore::new(AT_ONCE));
    let begun: Vec<_> = (0..FLEET)
        .map(|number| {
            let (turn, from) = (Arc::clone(&turn), addresses[number % addresses.len()]);
            tokio::spawn(async move {
                let _turn = turn.acquire().await.context("waiting for a turn")?;
                client::script(from, client::mac(number + 1)).await.context("fetching a boot script").map(drop)
            })
        })
        .collect();
    for machine in begun {
        machine.await.context("a machine of the measurement has panicked")??;
    }
    Ok(())
}

/// Changes the stage as fast as answers come; gives how long they took in milliseconds.
async fn toggle(from: Ipv4Addr) -> Result<Vec<f64>> {
    let end = Instant::now() + LENGTH;
    let order = Order::fetch(from, client::mac(1), end).await.context("fetching the order")?;
    let mut http = Http::connect(from).await.context("connecting")?;
    let mut times = Vec::new();
    while Instant::now() < end {
        let stage = ["fetch", "disk"][times.len() % 2];
        let begun = Instant::now();
        let answer = http.ask_within(&order.report(stage, times.len()), Duration::from_secs(20)).await;
        let status = answer.context("reporting")?.status;
        ensure!(status == 204, "a report is answered with {status}");
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

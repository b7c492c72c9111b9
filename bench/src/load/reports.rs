//! As many machines as the server remembers, all of them at work: each reports once a second.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use crate::load::client::{self, Http, Order};
use crate::load::lan::{Pending, Station};
use crate::load::meter::Meter;
use crate::load::served::{Bench, Served};
use crate::load::table::{self, Table};

const MACHINES: usize = 4096;
const CARDS: usize = 8;
/// Addresses of one card.
const ADDRESSES: usize = 32;
const OF_CARD: usize = MACHINES / CARDS;
/// How often each machine reports.
const SECONDS: usize = 15;
/// Orders that one card fetches at once.
const AT_ONCE: usize = 16;
/// An answer that takes longer did not come, as for the RAM system.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long all of them may need to enter a stage: these reports wait for the disk.
const FIRST: Duration = Duration::from_secs(120);

pub fn measure(bench: &Bench) -> Table {
    let what = format!(
        "{MACHINES} machines on {CARDS} cards, each with one keep-alive connection. First all of them enter the stage `restore` at \
         once; such a report is answered when it is on the disk, and the server writes at a limited rate. As the RAM system does, a \
         machine without an answer after {} s connects and reports again. Then each reports its \
         progress once a second for {SECONDS} s, evenly spread. An answer's time counts from the moment at which the report was \
         due. *Written* is what the kernel counts for the server's process.",
        PATIENCE.as_secs()
    );
    let head = ["what", "heard", "p50 ms", "p99 ms", "last ms", "server's peak MiB", "written kB/s", "CPU"];
    let mut table = Table::new("4,096 machines that report once a second", what, &head);
    match rows(bench) {
        Ok([entering, reporting]) => {
            table.row("all enter a stage", Ok(entering));
            table.row("once a second", Ok(reporting));
        }
        Err(error) => table.row("once a second", Err(error)),
    }
    table
}

/// A machine that is connected.
struct Machine {
    from: Ipv4Addr,
    order: Order,
    http: Http,
    number: usize,
}

fn rows(bench: &Bench) -> Result<[Vec<String>; 2]> {
    let mut served = Served::start(bench, "reports", &[])?;
    let stations = (0..CARDS)
        .map(|card| {
            let addresses = (0..ADDRESSES).map(|at| Ipv4Addr::from([10, 9, card as u8 + 1, at as u8 + 1]));
            bench.lan.station(addresses.collect())
        })
        .collect::<Result<Vec<_>>>()?;
    let mut rooms = Vec::new();
    let begun = at_all(&stations, |card, station| {
        let addresses = station.addresses.clone();
        station.begin(move || connect(card, addresses))
    });
    for machines in begun {
        rooms.push(machines.wait()??);
    }
    served.settle(Duration::from_secs(60))?;

    let mut rooms = rooms.into_iter();
    let phase = Phase::start(&mut served)?;
    let entering = at_all(&stations, |_, station| {
        let machines = rooms.next().unwrap_or_default();
        station.begin(move || enter(machines))
    });
    let (mut rooms, mut times, mut tries) = (Vec::new(), Vec::new(), None::<(usize, String)>);
    for pending in entering {
        let entered = pending.wait()?;
        times.extend(entered.times);
        rooms.push(entered.machines);
        if let Some(why) = entered.trouble {
            let before = tries.map_or(0, |(again, _)| again);
            tries = Some((before + entered.again, why));
        }
    }
    let mut entering = phase.cells(&mut served, times, MACHINES)?;
    if let Some((again, why)) = tries {
        entering[0] += &format!(", {again} of them not at the first try ({why})");
    }
    served.settle(Duration::from_secs(60))?;

    let mut rooms = rooms.into_iter();
    let phase = Phase::start(&mut served)?;
    let first = Instant::now() + Duration::from_millis(200);
    let reporting = at_all(&stations, |_, station| {
        let machines = rooms.next().unwrap_or_default();
        station.begin(move || report(machines, first))
    });
    let mut times = Vec::new();
    for pending in reporting {
        times.extend(pending.wait()?);
    }
    for second in 0..SECONDS {
        // Not in the table, but of use when its figures are bad: whether that was so all the time.
        let of_second = table::sorted(times.iter().filter(|(of, _)| *of == second).map(|(_, time)| *time).collect());
        println!("report {second}: {} heard, p99 {:.0} ms", of_second.len(), table::quantile(&of_second, 0.99) * 1e3);
    }
    let times = times.into_iter().map(|(_, time)| time).collect();
    Ok([entering, phase.cells(&mut served, times, MACHINES * SECONDS)?])
}

fn at_all<T>(stations: &[Station], mut begin: impl FnMut(usize, &Station) -> Pending<T>) -> Vec<Pending<T>> {
    stations.iter().enumerate().map(|(card, station)| begin(card, station)).collect()
}

struct Phase {
    meter: Meter,
    written: u64,
    begun: Instant,
}

impl Phase {
    fn start(served: &mut Served) -> Result<Phase> {
        Ok(Phase { meter: Meter::start(served)?, written: served.written()?, begun: Instant::now() })
    }

    fn cells(&self, served: &mut Served, times: Vec<f64>, of: usize) -> Result<Vec<String>> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let cpu = self.meter.cell(served)?;
        let written = (served.written()? - self.written) as f64;
        let times = table::sorted(times);
        let ms = |share| format!("{:.1}", table::quantile(&times, share) * 1e3);
        Ok(vec![
            format!("{} of {of}", times.len()),
            ms(0.5),
            ms(0.99),
            ms(1.0),
            format!("{:.0}", served.process.cost().peak_rss as f64 / f64::from(1 << 20)),
            format!("{:.0}", written / seconds / 1e3),
            cpu,
        ])
    }
}

async fn connect(card: usize, addresses: Vec<Ipv4Addr>) -> Result<Vec<Machine>> {
    let (turn, until) = (Arc::new(Semaphore::new(AT_ONCE)), Instant::now() + Duration::from_secs(120));
    let begun: Vec<_> = (0..OF_CARD)
        .map(|at| {
            let (turn, from, number) = (Arc::clone(&turn), addresses[at % addresses.len()], card * OF_CARD + at);
            tokio::spawn(async move {
                let _turn = turn.acquire().await.context("waiting for a turn")?;
                let order = Order::fetch(from, client::mac(number + 1), until).await.context("fetching an order")?;
                let http = Http::connect(from).await.context("connecting")?;
                anyhow::Ok(Machine { from, order, http, number })
            })
        })
        .collect();
    let mut machines = Vec::new();
    for machine in begun {
        machines.push(machine.await.context("a machine of the measurement has panicked")??);
    }
    ensure!(machines.len() == OF_CARD, "only {} machines have an order", machines.len());
    Ok(machines)
}

/// What came of machines that entered a stage.
#[derive(Default)]
struct Entered {
    machines: Vec<Machine>,
    /// How long answers took, in seconds.
    times: Vec<f64>,
    /// How many of them came to a later try, and what ended one of the tries before.
    again: usize,
    trouble: Option<String>,
}

/// Every machine enters a stage.
async fn enter(machines: Vec<Machine>) -> Entered {
    let due = Instant::now();
    let begun: Vec<_> = machines
        .into_iter()
        .map(|mut machine| {
            tokio::spawn(async move {
                let request = machine.order.report("restore", 0);
                let mut trouble = None;
                while due.elapsed() < FIRST {
                    match machine.http.ask_within(&request, PATIENCE).await {
                        Ok(answer) if answer.status == 204 => {
                            return (machine, Some(due.elapsed().as_secs_f64()), trouble);
                        }
                        Ok(answer) => {
                            trouble = Some(format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.start)));
                        }
                        Err(error) => trouble = Some(format!("after {:.0} s: {error}", due.elapsed().as_secs_f64())),
                    }
                    sleep(Duration::from_secs(1)).await;
                    // The answer to the try before may still come on the old one.
                    if let Ok(http) = Http::connect(machine.from).await {
                        machine.http = http;
                    }
                }
                (machine, None, trouble)
            })
        })
        .collect();
    let mut entered = Entered::default();
    for machine in begun {
        if let Ok((machine, time, trouble)) = machine.await {
            entered.machines.push(machine);
            entered.times.extend(time);
            entered.again += usize::from(trouble.is_some() && time.is_some());
            entered.trouble = trouble.or(entered.trouble);
        }
    }
    entered
}

/// Every machine reports once a second; gives which of its reports were answered, and how long that took in seconds.
async fn report(machines: Vec<Machine>, first: Instant) -> Vec<(usize, f64)> {
    let begun: Vec<_> = machines
        .into_iter()
        .map(|mut machine| {
            tokio::spawn(async move {
                let mut times = Vec::new();
                let first = first + Duration::from_secs(1) * machine.number as u32 / MACHINES as u32;
                for second in 0..SECONDS {
                    let due = first + Duration::from_secs(second as u64);
                    sleep_until(due).await;
                    let request = machine.order.report("restore", (second + 1) * 100_000_000);
                    match machine.http.ask_within(&request, PATIENCE).await {
                        Ok(answer) if answer.status == 204 => times.push((second, due.elapsed().as_secs_f64())),
                        Ok(_) => {}
                        // The connection has ended, and a machine would open another one; here the rest is missing.
                        Err(_) => break,
                    }
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for machine in begun {
        times.extend(machine.await.unwrap_or_default());
    }
    times
}

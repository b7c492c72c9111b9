//! A room that is switched on by one switch: every card asks for its boot server at the same moment.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::load::client::{self, Ask};
use crate::load::meter::Meter;
use crate::load::served::{Bench, DHCP_RANGE, Served};
use crate::load::table::{self, Table};

/// Cards that ask.
const CARDS: usize = 512;
/// Firmware asks again after this long (PXE 2.1 section 2.2.6.1): who has no answer then counts as lost.
const FIRST_TRY: Duration = Duration::from_secs(4);

struct Burst {
    /// From the first packet to the last.
    sending: Duration,
    /// From the last packet to each card's first answer.
    answers: Vec<Duration>,
}

pub fn measure(bench: &Bench) -> Table {
    let what = format!(
        "{CARDS} PXE cards broadcast one DISCOVER each. Times count from the last of them. Without an answer after {} s, \
         when firmware asks again, it is *lost*. In mode `server` the server looks for each address by ARP for 0.4 s before it \
         gives it out.",
        FIRST_TRY.as_secs()
    );
    let head = ["mode", "sent within ms", "answered", "median answer ms", "last answer ms", "lost", "CPU"];
    let mut table = Table::new("512 DISCOVERs at once", what, &head);
    for (mode, arguments) in
        [("server", &["--dhcp", "server", "--dhcp-range", DHCP_RANGE][..]), ("proxy", &["--dhcp", "proxy"])]
    {
        table.row(mode, one(bench, mode, arguments));
    }
    table
}

fn one(bench: &Bench, mode: &str, arguments: &[&str]) -> Result<Vec<String>> {
    let mut served = Served::start(bench, &format!("dhcp-{mode}"), arguments)?;
    let station = bench.lan.station(vec![[10, 9, 1, 1].into()])?;
    let meter = Meter::start(&mut served)?;
    let burst = station.begin(|| async { burst() }).wait()??;
    let cpu = meter.cell(&mut served)?;
    let answers = table::sorted(burst.answers.iter().map(|time| time.as_secs_f64() * 1e3).collect());
    Ok(vec![
        format!("{:.1}", burst.sending.as_secs_f64() * 1e3),
        answers.len().to_string(),
        format!("{:.0}", table::quantile(&answers, 0.5)),
        format!("{:.0}", table::quantile(&answers, 1.0)),
        (CARDS - answers.len()).to_string(),
        cpu,
    ])
}

fn burst() -> Result<Burst> {
    let socket = client::dhcp_socket().context("opening the port of DHCP clients")?;
    socket.set_read_timeout(Some(Duration::from_millis(50))).context("setting a time limit")?;
    let xid = |card: usize| 0x4c6f_0000 + card as u32;
    let packets: Vec<Vec<u8>> = (0..CARDS)
        .map(|card| client::dhcp_message(Ask::Discover, client::mac(card + 1), xid(card), card % 2 == 1, &[]))
        .collect();
    let reading = socket.try_clone().context("duplicating a socket")?;
    let reader = std::thread::spawn(move || {
        let (mut first, mut buf) = (HashMap::new(), [0; 2048]);
        let begun = Instant::now();
        while first.len() < CARDS && begun.elapsed() < FIRST_TRY + Duration::from_millis(500) {
            let Ok((len, _)) = reading.recv_from(&mut buf) else { continue };
            let now = Instant::now();
            let answered = buf[4..8].try_into().map(u32::from_be_bytes).ok().filter(|_| len > 240);
            let offered = answered.filter(|&number| client::dhcp_answer(&buf[..len], number).is_some());
            offered.map(|number| *first.entry(number).or_insert(now));
        }
        first
    });
    let begun = Instant::now();
    for packet in &packets {
        socket.send_to(packet, client::DHCP_TO).context("sending a DISCOVER")?;
    }
    let sent = Instant::now();
    let first = reader.join().ok().context("the reader of the answers has ended early")?;
    let answers = (0..CARDS).filter_map(|card| first.get(&xid(card))).map(|at| at.saturating_duration_since(sent));
    Ok(Burst { sending: sent - begun, answers: answers.filter(|time| *time <= FIRST_TRY).collect() })
}

//! Measures what a shaped link really carries, with one TCP connection of plain copying, which no tool can beat.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::rack::{Node, Rack};

/// Planned duration of a copy, in seconds.
const COPY_S: f64 = 2.5;
/// Number of copies: other work on the machine can only make a copy slower, so the fastest counts.
const COPIES: u64 = 6;
/// The share of the nominal rate that ends the copies early: headers take the rest.
const AS_GOOD_AS_IT_GETS: f64 = 0.955;
const PORT: u16 = 7;

/// Bytes per second from one machine to another, through ports of `mbit` Mbit/s.
///
/// # Errors
/// If less than nine tenths of the nominal rate arrive, because then the shaping does not work on this machine.
pub fn measure(mbit: f64, seed: u64) -> Result<f64> {
    let mut best: f64 = 0.0;
    let nominal = mbit * 1e6 / 8.0;
    for copy in 0..COPIES {
        if best / nominal > AS_GOOD_AS_IT_GETS {
            break;
        }
        let rack = Rack::new(2, Some(mbit), seed ^ (copy + 1))?;
        let len = (nominal * COPY_S) as usize;
        best = best.max(plain_copy(&rack.nodes[0], &rack.nodes[1], len)?);
    }
    ensure!(
        (0.9..=1.0).contains(&(best / nominal)),
        "a plain copy over ports of {mbit} Mbit/s runs at {:.1} Mbit/s: the shaping does not work on this machine, or \
         it is far too busy",
        best * 8.0 / 1e6
    );
    Ok(best)
}

fn plain_copy(from: &Node, to: &Node, len: usize) -> Result<f64> {
    std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let receiver = scope.spawn(move || -> Result<f64> {
            to.enter()?;
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listening")?;
            ready.send(()).context("the sender is gone")?;
            let (mut stream, _) = listener.accept().context("accepting")?;
            time_arrival(&mut stream, len)
        });
        let sender = scope.spawn(move || -> Result<()> {
            from.enter()?;
            is_ready.recv().context("the receiver is gone")?;
            let mut stream = TcpStream::connect((to.ip, PORT)).context("connecting")?;
            let chunk = vec![0x5a; 256 << 10];
            let mut left = len;
            while left > 0 {
                let now = left.min(chunk.len());
                stream.write_all(&chunk[..now]).context("sending")?;
                left -= now;
            }
            Ok(())
        });
        sender.join().expect("the sender does not panic")?;
        receiver.join().expect("the receiver does not panic")
    })
}

/// The rate between the first and the last byte.
fn time_arrival(stream: &mut TcpStream, len: usize) -> Result<f64> {
    stream.set_read_timeout(Some(Duration::from_secs(60))).context("setting a deadline")?;
    let mut buf = vec![0; 256 << 10];
    let mut start = None;
    let mut counted = 0;
    let mut got = 0;
    while got < len {
        let now = stream.read(&mut buf).context("receiving")?;
        ensure!(now > 0, "the sender stopped early");
        got += now;
        match start {
            None => start = Some(Instant::now()),
            Some(_) => counted += now,
        }
    }
    let took = start.context("nothing arrived")?.elapsed().as_secs_f64();
    Ok(counted as f64 / took)
}

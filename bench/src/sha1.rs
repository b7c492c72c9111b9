//! Measures SHA-1 on one core, by every way that this processor has.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use hashes::Backend;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::summary::Figure;

/// Processor time that each figure takes at least: the kernel may count it in steps of milliseconds.
const LEAST: Duration = Duration::from_millis(300);

/// What is to be measured, and how often.
#[derive(Args, Clone, Debug)]
pub struct Sha1Options {
    /// Length of a piece in KiB.
    #[arg(long, default_value_t = 1024)]
    piece_kib: usize,
    /// How often everything is run, in turns; medians are shown.
    #[arg(long, default_value_t = 3)]
    runs: u32,
}

/// Prints a table: bytes per second of processor time, so that what else runs here counts little.
///
/// # Errors
/// If the kernel does not say how much of the processor was used.
pub fn run(options: &Sha1Options) -> Result<ExitCode> {
    let counts = [1, 2, 3, 4, 5, 8, 16, 64];
    let pieces = vec![vec![0x5a; options.piece_kib << 10]; 64];
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let backends = Backend::available();
    let mut rates = vec![vec![Vec::new(); counts.len()]; backends.len()];
    for _ in 0..options.runs {
        for (backend, rates) in backends.iter().zip(&mut rates) {
            for (count, rates) in counts.iter().zip(rates) {
                rates.push(rate(*backend, &pieces[..*count])?);
            }
        }
    }
    println!("SHA-1 in GB per second of processor time, of pieces of {} KiB that are there at once", options.piece_kib);
    println!("chosen here: {}\n", Backend::chosen());
    println!("| pieces |{}", counts.map(|count| format!(" {count} |")).concat());
    println!("|---|{}", "---|".repeat(counts.len()));
    for (backend, rates) in backends.iter().zip(rates) {
        let cells = rates
            .into_iter()
            .filter_map(Figure::of)
            .map(|Figure { median, min, max }| format!(" {median:.2} ({min:.2}–{max:.2}) |"));
        println!("| {backend} |{}", cells.collect::<String>());
    }
    Ok(ExitCode::SUCCESS)
}

fn rate(backend: Backend, pieces: &[&[u8]]) -> Result<f64> {
    let started = used()?;
    let mut bytes = 0.0;
    loop {
        black_box(backend.digests(black_box(pieces)));
        bytes += pieces.iter().map(|piece| piece.len() as f64).sum::<f64>();
        let took = used()?.saturating_sub(started);
        if took >= LEAST {
            return Ok(bytes / took.as_secs_f64() / 1e9);
        }
    }
}

/// Processor time that this program has used.
fn used() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("asking for the processor time")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

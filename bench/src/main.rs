//! `bench`: one seeder and many receivers on shaped links, with our swarm and the tools that others use; captures; and what a server holds.

mod capture;
mod goodput;
mod image;
mod load;
mod machine;
mod outcome;
mod plot;
mod process;
mod race;
mod rack;
mod receiver;
mod sandbox;
mod session;
mod sha1;
mod summary;
mod tool;
mod tracker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::capture::CaptureOptions;
use crate::load::LoadOptions;
use crate::outcome::Case;
use crate::sha1::Sha1Options;
use crate::tool::Tool;

/// Races swarms over a rack of network namespaces. Needs no root, and leaves nothing behind but its results.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shaped, faults, hostile and raw.
    All(Options),
    /// One seeder and N receivers, every machine on a shaped port.
    Shaped(Options),
    /// Eight receivers: one late, one slow, one that dies.
    Faults(Options),
    /// Eight receivers, and five peers that lie, stall, flood, babble and boast.
    Hostile(Options),
    /// Unshaped, one to one and one to three.
    Raw(Options),
    /// A disk that becomes an image, beside partclone and beside reading, hashing and writing alone.
    Capture(CaptureOptions),
    /// What a server holds: many machines, and a hostile one, that ask `ezio serve` at once.
    Load(LoadOptions),
    /// SHA-1 of one piece and of several, on one core.
    Sha1(Sha1Options),
    /// Makes the tables and the plot again from results that are there.
    Report(Options),
}

/// What is to be measured, and how often.
#[derive(Args, Clone, Debug)]
struct Options {
    /// Only these tools; may be given several times.
    #[arg(long = "tool", value_enum)]
    tools: Vec<Tool>,
    /// Only these numbers of receivers; may be given several times.
    #[arg(long = "n")]
    receivers: Vec<usize>,
    /// How often everything is run; medians are shown.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Length of the image in MiB.
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Length of the image for the unshaped runs in MiB.
    #[arg(long, default_value_t = 1024)]
    raw_mib: u64,
    /// Length of a piece in KiB; if not given, what `ezio capture` chooses.
    #[arg(long)]
    piece_kib: Option<u32>,
    /// Speed of every port in Mbit/s; if not given, 100, and 50 for more than eight receivers.
    #[arg(long)]
    mbit: Option<f64>,
    /// Decides about content and addresses; the time if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Our program.
    #[arg(long, default_value = "target/release/ezio")]
    ezio: PathBuf,
    /// Where results and logs go.
    #[arg(long, default_value = "build/bench")]
    out: PathBuf,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let (cases, options): (&[Case], &Options) = match &cli.command {
        Command::Load(options) => {
            if !sandbox::is_inside() {
                return sandbox::run_inside();
            }
            sandbox::enter()?;
            return load::run(options);
        }
        Command::Report(options) => return session::report(&options.out).map(|()| ExitCode::SUCCESS),
        Command::Sha1(options) => return sha1::run(options),
        Command::Capture(options) => return capture::run(options),
        Command::All(options) => (&[Case::Shaped, Case::Faults, Case::Hostile, Case::Raw], options),
        Command::Shaped(options) => (&[Case::Shaped], options),
        Command::Faults(options) => (&[Case::Faults], options),
        Command::Hostile(options) => (&[Case::Hostile], options),
        Command::Raw(options) => (&[Case::Raw], options),
    };
    if !sandbox::is_inside() {
        return sandbox::run_inside();
    }
    sandbox::enter()?;
    session::run(cases, options)
}

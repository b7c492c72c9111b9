//! `rack`: the demo and the end-to-end cases, in virtual racks.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use nix::sys::signal::{SigHandler, Signal, signal};
use qemu_tests::cases::CASES;
use qemu_tests::{demo, runner};

/// Switches on rooms of virtual machines and proves that they become the image.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Captures a disk, serves it to three machines at once, compares and starts every clone, and prints a table.
    Demo,
    /// Runs the cases whose name contains FILTER, or all.
    Test {
        /// A part of the name.
        #[arg(default_value = "")]
        filter: String,
        /// How many cases at a time.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
    /// Lists the cases.
    List,
    /// Runs one case in the sandbox that `test` or `demo` made.
    #[command(hide = true)]
    Inside {
        /// The case, or `demo`.
        name: String,
    },
}

fn main() -> ExitCode {
    // If the reader of the output stops reading, this program ends, and everything it started ends with it.
    // SAFETY: no handler is installed; only the kernel's default is restored.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Print the chain on one line; a backtrace would only show a place in the rack's own code, which does not
            // help.
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the command; returns whether everything passed.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Demo => demo::outside().map(|()| true),
        Command::Test { filter, jobs } => runner::test(&filter, jobs),
        Command::List => {
            CASES.iter().for_each(|case| println!("{:36} {}", case.name, case.what));
            Ok(true)
        }
        Command::Inside { name } if name == "demo" => demo::inside().map(|()| true),
        Command::Inside { name } => runner::inside(&name).map(|()| true),
    }
}

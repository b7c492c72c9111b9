//! `ezio`: everything the room's server does, one subcommand each.

mod image_cmd;
mod library;
mod manifest;
mod restore_cmd;
mod seed_cmd;
mod source;

use clap::{Parser, Subcommand};

/// Images a room of machines over the network: captures disks, serves them, and shows how every machine is doing.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Log more: once for what each machine asks, twice for everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Image(image_cmd::ImageCommand),
    Restore(restore_cmd::RestoreCommand),
    Seed(seed_cmd::SeedCommand),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => log::LevelFilter::Info,
        1 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    };
    env_logger::Builder::new().filter_level(level).parse_default_env().init();
    match cli.command {
        Command::Image(command) => command.run(),
        Command::Restore(command) => command.run(),
        Command::Seed(command) => command.run(),
    }
}

//! `ezio`: everything the room's server does, one subcommand each.

// First, for its macros.
#[macro_use]
extern crate terminal;

mod commands;
mod room;
mod services;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use env_logger::fmt::{ConfigurableFormat, Formatter};
use log::Record;

/// Images a room of machines over the network: captures disks, serves them, and shows how every machine is doing.
#[derive(Parser)]
#[command(name = "ezio", version)]
struct Cli {
    /// Log more: once for what each machine asks, twice for everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Capture(commands::capture::CaptureCommand),
    Image(commands::image::ImageCommand),
    Serve(commands::serve::ServeCommand),
    Arm(commands::arm::ArmCommand),
    Disarm(commands::arm::DisarmCommand),
    Resume(commands::arm::ResumeCommand),
    Status(commands::status::StatusCommand),
    Seed(commands::seed::SeedCommand),
    Restore(commands::restore::RestoreCommand),
    Generate(commands::generate::GenerateCommand),
}

/// Lets freed pieces go back to the kernel. By itself glibc keeps them after the first one has been freed, and with
/// pieces of 16 MiB a receiver grew to 290 MiB instead of 120. musl does this anyway.
#[cfg(target_env = "gnu")]
fn give_memory_back() {
    /// Length in bytes from which memory has a mapping of its own, which ends when it is freed.
    const OWN_MAPPING: i32 = 1 << 20;
    // SAFETY: mallopt only sets a number in the allocator, and no other thread runs yet.
    let is_set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING) };
    if is_set != 1 {
        log::debug!("glibc keeps its own idea of which memory to give back");
    }
}

#[cfg(not(target_env = "gnu"))]
fn give_memory_back() {}

/// Whether it failed for want of a permission that root has.
fn is_for_root(error: &anyhow::Error) -> bool {
    let is_denied = |cause: &(dyn std::error::Error + 'static)| {
        let io =
            cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied);
        io || matches!(cause.downcast_ref(), Some(nix::errno::Errno::EACCES | nix::errno::Errno::EPERM))
    };
    !nix::unistd::geteuid().is_root() && error.chain().any(is_denied)
}

/// As `env_logger` does by itself, but without control characters: log lines quote what comes from the network.
fn write_log(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let text = record.args().to_string();
    let text = terminal::plain(&text);
    let line = format_args!("{text}");
    let record = Record::builder().metadata(record.metadata().clone()).args(line).build();
    ConfigurableFormat::default().format(out, &record)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => log::LevelFilter::Info,
        1 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    };
    env_logger::Builder::new().filter_level(level).parse_default_env().format(write_log).init();
    give_memory_back();
    let result = match cli.command {
        Command::Capture(command) => command.run(),
        Command::Image(command) => command.run(),
        Command::Serve(command) => command.run(),
        Command::Arm(command) => command.run(),
        Command::Disarm(command) => command.run(),
        Command::Resume(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Seed(command) => command.run(),
        Command::Restore(command) => command.run(),
        Command::Generate(command) => command.run(Cli::command()),
    };
    match result {
        Ok(()) if terminal::has_failed() => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, the cause chain printed once: what, where, what to do.
            let hint = if is_for_root(&error) { "; run it as root" } else { "" };
            complain!("ezio: {error:#}{hint}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_is_completed() {
        Cli::command().debug_assert();
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().to_str().expect("a path");
        let Command::Generate(generate) = Cli::parse_from(["ezio", "generate", path]).command else {
            panic!("another")
        };
        generate.run(Cli::command()).expect("written");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_else(|_| panic!("{name}"));
        let completions = ["ezio.bash", "_ezio", "ezio.fish"].map(|name| read(&format!("completions/{name}")));
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let page = read(&format!("man/ezio-{}.1", command.get_name()));
            for long in command.get_arguments().filter_map(|argument| argument.get_long()) {
                assert!(
                    page.contains(&long.replace('-', "\\-")),
                    "--{long} is not in the page of {}",
                    command.get_name()
                );
            }
            assert!(completions.iter().all(|text| text.contains(command.get_name())), "{}", command.get_name());
        }
        assert!(read("man/ezio-image-pull.1").contains("URL"));
    }
}

//! PID 1 of the RAM system: from power-on to a proven disk.
//!
//! mounts → drivers → link and lease → `ezio.conf` → torrent → disk → swarm → proof → after-action. Everything ends in
//! one place, [`pid1::end`]: it reports to server and screen, and reboots or waits.

mod boot_args;
mod confirm;
mod console;
mod disk;
mod dry_run;
mod fetch;
mod glyphs;
mod grow;
mod lease;
mod memory;
mod modules;
mod netdev;
mod orders;
mod pid1;
mod reporter;
mod stages;
mod target;

use console::Console;
use reporter::Reporter;

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is /init of the EZIO RAM system: it takes over a whole machine, so it runs as PID 1 only");
        std::process::exit(2);
    }
    pid1::mount_everything();
    let console = Console::open();
    let reporter = Reporter::new(pid1::machine_serial(), pid1::machine_uuid());
    pid1::survive_panics(&console, &reporter);
    log_to(&console);
    console.line(&format!("EZIO {} on {}", env!("CARGO_PKG_VERSION"), pid1::machine_name()));
    pid1::bound_dirty_memory();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(stages::run(&console, &reporter)));
    pid1::end(result, &console, &reporter)
}

/// Warnings of the libraries become lines on the screen.
fn log_to(console: &Console) {
    struct Lines(Console);

    impl log::Log for Lines {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Warn
        }

        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                let text = record.args().to_string();
                match record.level() {
                    log::Level::Error => self.0.line(&text),
                    _ => self.0.warning(&text),
                }
            }
        }

        fn flush(&self) {}
    }

    if log::set_boxed_logger(Box::new(Lines(console.clone()))).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

//! `ezio status`: the room as a table.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::commands::ask::{agent, fetch, url_of};
use crate::room::config::Settings;
use crate::room::place;
use crate::room::running::ServerNote;
use crate::room::table::table;
use library::Library;
use terminal::plain;

/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Shows every machine: stage, progress, speed, and what went wrong.
#[derive(Debug, Args)]
pub struct StatusCommand {
    /// Refresh every second.
    #[arg(long)]
    watch: bool,
    /// The server, such as 10.0.0.1, 10.0.0.1:8080 or a URL; by default the one on this machine.
    #[arg(long, value_name = "HOST")]
    server: Option<String>,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// The server's config file, to find its library.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's library directory [default: /var/lib/ezio].
    #[arg(long, value_name = "DIR")]
    library: Option<PathBuf>,
    /// Where the server keeps what it must not forget [default: where the last server did, else LIBRARY/state].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl StatusCommand {
    /// Shows it.
    ///
    /// # Errors
    /// If no server answers.
    pub fn run(self) -> anyhow::Result<()> {
        let url = match &self.server {
            Some(server) => url_of(server),
            None => {
                let flags =
                    Settings { library: self.library.clone(), state: self.state.clone(), ..Settings::default() };
                let settings = Settings::load(self.config.as_deref(), flags)?;
                let library = place::with_state(Library::at(settings.library()), settings.state);
                let found = ServerNote::find(&library);
                found.context("looking for the server; --server names one")?.url
            }
        };
        let agent = agent();
        loop {
            let text = match (fetch(&agent, &url), self.json) {
                (Ok(status), true) => serde_json::to_string(&status).context("writing JSON")? + "\n",
                (Ok(status), false) => table(&status),
                (Err(error), _) if self.watch => format!("{error:#}\n"),
                (Err(error), _) => return Err(error),
            };
            let is_terminal = std::io::stdout().is_terminal();
            let clear = if self.watch && is_terminal { "\x1b[H\x1b[J" } else { "" };
            let mut stdout = std::io::stdout().lock();
            match write!(stdout, "{clear}{}", plain(&text)).and_then(|()| stdout.flush()) {
                // Somebody who closes the pipe has seen enough.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(error).context("writing to standard output"),
                Ok(()) if !self.watch => return Ok(()),
                Ok(()) => {}
            }
            drop(stdout);
            std::thread::sleep(WATCH_EVERY);
        }
    }
}

//! `ezio generate`: man pages, shell completions and the config's table of keys, from the definitions of the help texts.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

use crate::room::config;

/// Writes man pages, shell completions and the table of the config's keys.
#[derive(Debug, Args)]
#[command(hide = true)]
pub struct GenerateCommand {
    /// The directory that gets `man/`, `completions/` and `config-keys.md`.
    dir: PathBuf,
}

impl GenerateCommand {
    /// Writes them for `command`, which is all of `ezio`.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn run(self, command: Command) -> anyhow::Result<()> {
        let [man, completions] = ["man", "completions"].map(|name| self.dir.join(name));
        for dir in [&man, &completions] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let keys = self.dir.join("config-keys.md");
        fs::write(&keys, config::document()).with_context(|| format!("writing {}", keys.display()))?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command.clone(), "ezio", &completions)
                .with_context(|| format!("writing to {}", completions.display()))?;
        }
        clap_mangen::generate_to(command, &man).with_context(|| format!("writing to {}", man.display()))
    }
}

//! `ezio image`: what the library holds.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::library::{DEFAULT_DIR, Library};

/// Lists, shows, checks, imports and removes images.
#[derive(Debug, Args)]
pub struct ImageCommand {
    /// The directory that holds the images.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR, global = true)]
    library: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Every image, with its size; damaged ones say why.
    List,
    /// Takes an image out of the library.
    Remove {
        /// Its name.
        name: String,
    },
}

impl ImageCommand {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, in words for the person at the terminal.
    pub fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::List => list(&Library::open(self.library)?),
            Action::Remove { name } => Library::open(self.library)?.remove(&name),
        }
    }
}

fn list(library: &Library) -> anyhow::Result<()> {
    for entry in library.images()? {
        match entry.image {
            Ok(image) => println!("{} {}", image.name, image.layout.content_len()),
            Err(error) => println!("{} damaged: {error:#}", entry.name),
        }
    }
    Ok(())
}

//! `ezio image import`: what other tools made of a disk becomes an image.

use std::path::{Path, PathBuf};

use anyhow::Context;
use capture::import::{ImportOptions, NewImage};
use capture::{Choices, parse_piece_len, parse_sector_size};
use clap::Args;
use library::describe::summary;
use library::{Library, check_name};
use terminal::stop_on_signals;

use crate::commands::compression::CompressionArgs;
use crate::room::needed::needed;

/// Makes an image of what another tool made of a disk or partition.
#[derive(Debug, Args)]
pub struct Import {
    /// A disk image (raw, qcow2, vmdk, vhdx, vhd, vdi, …), a Clonezilla image directory, a partclone image file, compressed or
    /// not, a directory that `partclone.<fs> -c -T` wrote (BT files and torrent.info), or an EZIO .torrent.
    source: PathBuf,
    /// Of a .torrent: the directory with its BT files (named by offset in hex), or one file with all its content.
    files: Option<PathBuf>,
    /// What to call the image.
    #[arg(long)]
    name: String,
    /// Of BT files: hash everything and compare it with torrent.info or the torrent.
    #[arg(long)]
    verify: bool,
    /// Replace the image of that name, if there is one, once the new one is complete.
    #[arg(long)]
    replace: bool,
    /// Of a disk image: copy every byte, used or not.
    #[arg(long)]
    whole: bool,
    /// Of a disk, Clonezilla or partclone image: take file systems that were not shut down, or are hibernated, as they are.
    #[arg(long)]
    at_own_risk: bool,
    /// Of a disk, Clonezilla or partclone image: leave out what lies outside of partitions.
    #[arg(long, conflicts_with = "whole")]
    partitions_only: bool,
    /// Of a disk image: sector size of the disk in bytes. It is found by looking, if this is not given.
    #[arg(long, value_name = "BYTES", value_parser = parse_sector_size)]
    sector_size: Option<u32>,
    /// Of a Clonezilla image with several disks: which one, such as sda.
    #[arg(long, value_name = "DISK")]
    disk: Option<String>,
    /// Of what is no BT files: leave blocks of zeros out of the image, and write them again when it is restored. Only EZIO
    /// knows how.
    #[arg(long)]
    skip_zeros: bool,
    /// Of what is no BT files: length of a piece, such as 4M: a power of two from 16K to 64M. Chosen by the size of the image
    /// if not given.
    #[arg(long, value_name = "LEN", value_parser = parse_piece_len)]
    piece_len: Option<u32>,
    #[command(flatten)]
    compression: CompressionArgs,
}

impl Import {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, in words for the person at the terminal. Nothing is left behind then.
    pub fn run(self, library: &Path) -> anyhow::Result<()> {
        check_name(&self.name)?;
        let stop = stop_on_signals()?;
        let importing = || format!("importing {}", self.source.display());
        let library = Library::create(library)?;
        let new = NewImage { library: &library, name: &self.name, replace: self.replace, guard: needed };
        let image = self.options().import(new, stop).with_context(importing)?;
        say!("imported {}", summary(&image));
        Ok(())
    }

    fn options(&self) -> ImportOptions {
        ImportOptions {
            source: self.source.clone(),
            files: self.files.clone(),
            verify: self.verify,
            choices: Choices {
                whole: self.whole,
                at_own_risk: self.at_own_risk,
                partitions_only: self.partitions_only,
                rescue: false,
                sector_size: self.sector_size,
            },
            disk: self.disk.clone(),
            skip_zeros: self.skip_zeros,
            piece_len: self.piece_len,
            compression: self.compression.compression(),
        }
    }
}

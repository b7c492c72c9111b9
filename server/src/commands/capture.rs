//! `ezio capture`: a disk becomes an image.

use std::path::PathBuf;

use capture::{CaptureOptions, Choices, Source, make_image, parse_piece_len, parse_sector_size};
use clap::Args;
use library::describe::summary;
use library::manifest::Origin;
use library::{DEFAULT_DIR, Library, check_name};
use terminal::stop_on_signals;

use crate::commands::compression::CompressionArgs;
use crate::room::needed::needed;

/// Makes an image of a disk: only the blocks in use, with its partition table and boot loader.
#[derive(Debug, Args)]
pub struct CaptureCommand {
    /// A disk such as /dev/sda, a single partition, or a raw disk image file; nothing on it may be mounted.
    source: PathBuf,
    /// The directory that holds the images; made if it is not there.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    library: PathBuf,
    /// What to call the image: A-Z a-z 0-9 . _ -
    #[arg(long)]
    name: String,
    /// Copy every byte of the source, used or not, whatever its partition table says.
    #[arg(long)]
    whole: bool,
    /// Take file systems that were not shut down or are hibernated, which are copied whole, and a source that a program writes to.
    #[arg(long)]
    at_own_risk: bool,
    /// Leave out what lies outside of partitions, such as what is left of deleted ones. Otherwise all of it that is not zeros is
    /// copied.
    #[arg(long, conflicts_with = "whole")]
    partitions_only: bool,
    /// Sector size of the disk in bytes. Of a disk image file it is found by looking, if this is not given.
    #[arg(long, value_name = "BYTES", value_parser = parse_sector_size)]
    sector_size: Option<u32>,
    /// Continue where the disk cannot be read: zeros are used instead, and the places are recorded.
    #[arg(long)]
    rescue: bool,
    /// Copy nothing: the image is seeded straight from SOURCE, which has to stay as it is. Only hashes are kept.
    #[arg(long, conflicts_with_all = ["rescue", "level", "uncompressed"])]
    live: bool,
    /// Leave blocks of zeros out of the image, and write them again when it is restored. Only EZIO knows how.
    #[arg(long)]
    skip_zeros: bool,
    /// Length of a piece, such as 4M: a power of two from 16K to 64M. Chosen by the size of the image if not given.
    #[arg(long, value_name = "LEN", value_parser = parse_piece_len)]
    piece_len: Option<u32>,
    /// Replace the image of that name, if there is one, once the new one is complete.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    compression: CompressionArgs,
    /// Pieces to work on at a time; two more than cores if not given. The image is the same with any number.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl CaptureCommand {
    /// Captures it.
    ///
    /// # Errors
    /// What went wrong, in words for the person at the terminal. Nothing is left behind then.
    pub fn run(self) -> anyhow::Result<()> {
        check_name(&self.name)?;
        let stop = stop_on_signals()?;
        let source = Source::open(&self.source)?;
        let library = Library::create(&self.library)?;
        let draft = library.draft(&self.name, self.replace, needed)?;
        let origin = Origin::now("capture", &self.source);
        let choices = Choices {
            whole: self.whole,
            at_own_risk: self.at_own_risk,
            partitions_only: self.partitions_only,
            rescue: self.rescue,
            sector_size: self.sector_size,
        };
        let (piece_len, threads, skip_zeros) = (self.piece_len, self.threads, self.skip_zeros);
        let compression = self.compression.compression();
        let options = CaptureOptions { choices, skip_zeros, live: self.live, piece_len, compression, threads, origin };
        let (image, rate) = make_image(&source, draft, options, stop)?;
        say!("captured {}, {}", summary(&image), units::rate(rate as u64));
        Ok(())
    }
}

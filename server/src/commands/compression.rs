//! How the content of an image is stored, as a person says it.

use capture::{Compression, parse_level};
use clap::Args;

/// How the content is stored in the library. What machines get is the same.
#[derive(Clone, Copy, Debug, Args)]
pub struct CompressionArgs {
    /// Compress at this level of zstd, from 1 (fast) to 19 (small). Without it, a level from 1 to 9 with which the cores keep up
    /// with the source.
    #[arg(long, value_name = "N", value_parser = parse_level, conflicts_with = "uncompressed")]
    pub level: Option<i32>,
    /// Store the content as it is.
    #[arg(long)]
    pub uncompressed: bool,
}

impl CompressionArgs {
    /// What was said.
    pub fn compression(self) -> Compression {
        match self.level {
            _ if self.uncompressed => Compression::None,
            Some(level) => Compression::Level(level),
            None => Compression::Adaptive,
        }
    }
}

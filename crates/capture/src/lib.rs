//! Capture: a disk becomes an image of its used blocks.
//!
//! Table → partitions → used blocks → extents → content, hashed on the way. Everything is written into a draft of the
//! library, so an interrupted capture leaves no listed image.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

// For its macros.
#[macro_use]
extern crate terminal;

mod child;
mod choices;
mod container;
mod decide;
mod health;
mod holders;
mod look;
mod made_up;
mod make;
mod pace;
mod partclone;
mod plan;
mod probe;
mod repack;
mod rescue;
mod source;
mod spared;
mod steady;
mod stored;
mod table;
mod torrent;
mod window;
mod zeros;

pub mod content;
pub mod import;
pub mod in_use;
pub mod pipeline;

pub use self::choices::{Choices, parse_piece_len, parse_sector_size};
pub use self::made_up::{DraftContent, made_up};
pub use self::make::{CaptureOptions, make_image};
pub use self::repack::repack;
pub use self::source::Source;
pub use self::spared::refuse_to_destroy;
pub use self::stored::{Compression, NewContent, parse_level};

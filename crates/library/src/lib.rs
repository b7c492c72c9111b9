//! The images this server holds: `LIBRARY/images/NAME/{image.torrent,manifest.json,content}`.
//!
//! An image appears and disappears by one rename, so every listed image is complete. Unfinished work lives under
//! `LIBRARY/tmp/`, held by a lock that dies with its process: what a killed capture left there is cleared by the next,
//! what a killed pull left there is continued ([`unfinished`]).
//!
//! Nothing here knows a server: what machines may need is asked through a [`Guard`].

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

pub mod content;
pub mod describe;
pub mod live;
pub mod manifest;
pub mod regular;
pub mod space;
pub mod torrent_file;
pub mod unfinished;

mod draft;
mod files;
mod image;
mod keeping;
mod library;
mod listed;

pub use self::draft::Draft;
pub use self::image::{Image, check_name};
pub use self::library::{DEFAULT_DIR, Guard, ImageEntry, Library, image_meant_by};
pub use self::listed::Listed;

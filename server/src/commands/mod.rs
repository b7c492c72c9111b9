//! One subcommand each.

pub mod arm;
pub mod capture;
pub mod generate;
pub mod image;
pub mod restore;
pub mod seed;
pub mod serve;
pub mod status;

mod ask;
mod compression;
mod lasts;
mod preview;

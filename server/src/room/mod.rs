//! What the server knows: its config, the orders, the machines, and what is shown of them.

pub mod book;
pub mod config;
pub mod fleet;
pub mod history;
pub mod identity;
pub mod leases;
pub mod needed;
pub mod never;
pub mod orders;
pub mod place;
pub mod reserve;
pub mod rivals;
pub mod running;
pub mod scope;
pub mod seeds;
pub mod state;
pub mod status;
pub mod stops;
pub mod table;
pub mod tidy;
pub mod tokens;
pub mod unsaved;

mod shared;

#[cfg(test)]
mod older;
#[cfg(test)]
mod sequences;

pub use self::shared::{Boot, Given, ReportError, Room, count};

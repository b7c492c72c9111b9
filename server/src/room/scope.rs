//! The recipients of an order.

use std::fmt;

use netboot::MacAddr;
use serde::{Deserialize, Serialize};

/// Whom an order is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Every machine that has no order of its own.
    All,
    /// A group of the config.
    Group(String),
    Machine(MacAddr),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::All => f.write_str("every machine"),
            Scope::Group(name) => write!(f, "group {name}"),
            Scope::Machine(mac) => mac.fmt(f),
        }
    }
}

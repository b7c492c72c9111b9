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

impl Scope {
    /// As it is written where it names something, such as `machine 52:54:00:00:00:01`.
    pub fn key(&self) -> String {
        match self {
            Scope::All => "all".into(),
            Scope::Group(name) => format!("group {name}"),
            Scope::Machine(mac) => format!("machine {mac}"),
        }
    }

    /// The scope of a key; `None` if it is none.
    pub fn of_key(key: &str) -> Option<Scope> {
        match key.split_once(' ') {
            None if key == "all" => Some(Scope::All),
            Some(("group", name)) => Some(Scope::Group(name.into())),
            Some(("machine", mac)) => mac.parse().ok().map(Scope::Machine),
            _ => None,
        }
    }
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

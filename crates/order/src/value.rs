//! Values of an order, and how they are written.

use std::fmt;
use std::str::FromStr;

use layout::parttable::adapt::{Grow, GrowError};
use serde::{Deserialize, Serialize};

use crate::target::{BadTarget, TargetRule};

/// What a machine does when its disk is written and proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum After {
    /// Restart into the new system.
    #[default]
    Reboot,
    /// Switch off.
    Poweroff,
    /// Stop and stay on, with the result on the screen.
    Halt,
}

impl After {
    /// All of them.
    pub const ALL: [After; 3] = [After::Reboot, After::Poweroff, After::Halt];

    /// As `ezio.conf` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            After::Reboot => "reboot",
            After::Poweroff => "poweroff",
            After::Halt => "halt",
        }
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for After {
    type Err = String;

    fn from_str(text: &str) -> Result<After, String> {
        let found = After::ALL.into_iter().find(|after| after.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not known: use reboot, poweroff or halt"))
    }
}

/// A value that a key cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Another word than those that there are.
    #[error("{key}={value} is not known: use {usable}")]
    Word {
        /// The key, as it was written.
        key: String,
        /// What it was set to.
        value: String,
        /// The words that there are.
        usable: &'static str,
    },
    /// No number, or one that is too large.
    #[error("{key}={value} is not a number of {unit}")]
    Number {
        /// The key, as it was written.
        key: String,
        /// What it was set to.
        value: String,
        /// What is counted.
        unit: &'static str,
    },
    /// A rule that does not say which disk.
    #[error("{key}={value}")]
    Target {
        /// The key, as it was written.
        key: String,
        /// What it was set to.
        value: String,
        /// Why it cannot be read.
        source: BadTarget,
    },
    /// No partition.
    #[error("{key}={value}")]
    Grow {
        /// The key, as it was written.
        key: String,
        /// What it was set to.
        value: String,
        /// Why it cannot be read.
        source: GrowError,
    },
    /// A token that is more than hex digits.
    #[error("{value:?} is no token: it is at most {max} hex digits")]
    Token {
        /// Its start.
        value: String,
        /// The longest one that can be.
        max: usize,
    },
    /// Magnet links have no list of files, so they do not say what belongs where on a disk.
    #[error("magnet links are not supported: name the torrent with TORRENT=path")]
    Magnet,
}

/// A type of values that a key of an order can have.
pub(crate) trait Value: Sized {
    /// Reads it; `key` is for the error.
    fn read(key: &str, text: &str) -> Result<Self, ValueError>;

    /// What [`Value::read`] reads.
    fn write(&self) -> String;
}

impl Value for bool {
    fn read(key: &str, text: &str) -> Result<bool, ValueError> {
        match text {
            "yes" | "1" => Ok(true),
            "no" | "0" => Ok(false),
            _ => Err(ValueError::Word { key: key.into(), value: text.into(), usable: "yes or no" }),
        }
    }

    fn write(&self) -> String {
        if *self { "yes".into() } else { "no".into() }
    }
}

/// Seconds.
impl Value for u32 {
    fn read(key: &str, text: &str) -> Result<u32, ValueError> {
        text.parse().map_err(|_| ValueError::Number { key: key.into(), value: text.into(), unit: "seconds" })
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Value for After {
    fn read(key: &str, text: &str) -> Result<After, ValueError> {
        let usable = "reboot, poweroff or halt";
        text.parse().map_err(|_| ValueError::Word { key: key.into(), value: text.into(), usable })
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Value for Grow {
    fn read(key: &str, text: &str) -> Result<Grow, ValueError> {
        text.parse().map_err(|source| ValueError::Grow { key: key.into(), value: text.into(), source })
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Value for TargetRule {
    fn read(key: &str, text: &str) -> Result<TargetRule, ValueError> {
        text.parse().map_err(|source| ValueError::Target { key: key.into(), value: text.into(), source })
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

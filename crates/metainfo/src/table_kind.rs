//! Which partition table a disk has.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which partition table a disk has; torrents and manifests write `gpt`, `mbr` or `none`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TableKind {
    /// GUID partition table.
    Gpt,
    /// The PC's master boot record, with logical partitions.
    Mbr,
    /// No table: at most one file system on the whole device.
    #[default]
    None,
}

/// An image's partition table that this version does not know. Such an image is refused, because the table decides what
/// a restore has to write last.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a partition table that this version knows (gpt, mbr, none): a newer EZIO made this image")]
pub struct UnknownTable {
    /// The name in the image.
    pub name: String,
}

impl TableKind {
    const ALL: [TableKind; 3] = [TableKind::Gpt, TableKind::Mbr, TableKind::None];

    /// The name in torrents and manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            TableKind::Gpt => "gpt",
            TableKind::Mbr => "mbr",
            TableKind::None => "none",
        }
    }
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl TryFrom<String> for TableKind {
    type Error = UnknownTable;

    fn try_from(name: String) -> Result<TableKind, UnknownTable> {
        TableKind::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or(UnknownTable { name })
    }
}

impl From<TableKind> for String {
    fn from(kind: TableKind) -> String {
        kind.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_as_it_is_written_and_no_other() {
        for kind in TableKind::ALL {
            assert_eq!(TableKind::try_from(String::from(kind)), Ok(kind));
        }
        for name in ["", "GPT", "apm", "dos"] {
            let error = TableKind::try_from(name.to_owned()).expect_err("unknown");
            assert!(error.to_string().contains(&format!("{name:?} is not a partition table")), "{error}");
        }
    }
}

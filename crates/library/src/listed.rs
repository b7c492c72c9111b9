//! How a server lists the images that others may copy.

use serde::{Deserialize, Serialize};

/// One line of `GET /images/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The image.
    pub name: String,
    /// Its infohash.
    pub infohash: String,
    /// Bytes in it.
    pub content_len: u64,
    /// Bytes of the disk it was taken from.
    pub disk_size: u64,
    /// Where its torrent is.
    pub torrent: String,
    /// Where its manifest is.
    pub manifest: String,
}

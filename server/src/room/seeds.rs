//! What our own seeders do.

use serde::{Deserialize, Serialize};

/// What is shown of one image that is armed or published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedStatus {
    pub image: String,
    /// Its infohash, if it could be loaded.
    pub infohash: String,
    /// Bytes in it.
    pub content_len: u64,
    /// Payload bytes we have sent since the server started or the image was armed, whichever is later.
    pub uploaded: u64,
    /// Machines we are connected to.
    pub peers: usize,
    /// Machines that announced and do not have everything yet.
    pub leechers: usize,
    /// Machines that announced and have everything.
    pub seeders: usize,
    /// Port we seed on, 0 if we do not.
    pub port: u16,
    /// What is wrong with it, in words.
    pub error: Option<String>,
}

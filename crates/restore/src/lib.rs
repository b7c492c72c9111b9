//! Image to disk, as `/init` and `ezio restore` do it.
//!
//! The order is the promise: check that the image fits; take away what could boot; write pieces, each hashed before it
//! is written; flush; read everything back from the medium and hash it again; only then write the sectors that make the
//! disk bootable; flush; read those back too.
//!
//! Invariants: no byte of an image reaches the disk before its piece's hash matched, and none of the deferred ranges
//! ([`layout::Layout::deferred`]) before everything else has been proven.

mod deferred;
mod proof;
mod run;
mod store;
mod swap;

pub use run::{Progress, RestoreError, Restored, restore};
pub use store::DiskStore;

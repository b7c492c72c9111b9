//! Image to disk, as `/init` and `ezio restore` do it.
//!
//! The order is the promise: check that the image fits; look at what the disk holds already; before the first write take
//! away what could boot; write pieces, each hashed before it is written, and zeros where the image has nothing else; at a
//! distance behind the writes flush, read back from the medium and hash again; only when everything is proven write the
//! sectors that make the disk bootable; flush; read those back too. If a deployment is given, a stamp on the disk says at last
//! that it is done, and is the first thing to go when the disk is written to again.
//!
//! Invariants: no byte of an image reaches the disk before its piece's hash matched, and none of the deferred ranges
//! ([`layout::Layout::deferred`]) before everything else has been proven.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

mod deferred;
mod discard;
mod finish;
mod ledger;
mod look;
mod permission;
mod proof;
mod read_back;
mod run;
mod stall;
mod stamp;
mod store;
mod swap;
mod write;
mod zeros;

pub use layout::parttable::adapt::{Grow, Grown, Wish};
pub use layout::parttable::stamp::Stamp;
pub use look::Sample;
pub use permission::Permission;
pub use run::{Lost, RestoreError, RestoreOptions, Restored, Update, restore, survey};
pub use stamp::{DueStamp, is_stamped};
pub use store::DiskStore;
pub use swap::{check_swap, swap_page};

//! A machine's order: typed, and as `ezio.conf`, the text that the server sends.
//!
//! One table of keys ([`KEYS`]) is used on both sides, so a mistake shows where the order is given. A server that is newer
//! than the machine may use keys that the machine does not know: they are kept apart and named. A key that it knows with a
//! value that it does not is an error, and so is an order of a newer format.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

mod conf;
mod keys;
mod mac;
mod nearest;
mod target;
mod value;

pub use layout::parttable::adapt::{Grow, GrowError};

pub use self::conf::{FORMAT, Order, OrderError, value_of};
pub use self::keys::{KEYS, Key, Options, Overrides, example};
pub use self::mac::{MacAddr, MacError};
pub use self::nearest::nearest;
pub use self::target::{BUSES, BadTarget, Bus, TargetRule, Term};
pub use self::value::{After, ValueError};

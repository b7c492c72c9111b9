//! What a command shows on a terminal, in a pipe or in a log, and how Ctrl-C reaches it.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

mod interrupt;
mod progress;
mod say;
mod throttle;

pub use self::interrupt::stop_on_signals;
pub use self::progress::Progress;
pub use self::say::{err, has_failed, out, plain};
pub use self::throttle::Throttle;

/// As `println!`. Whoever closes the pipe has seen enough; another failure is told once on standard error.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::out(format_args!($($text)*))
    };
}

/// As `eprintln!`. If that fails there is nobody left to tell.
#[macro_export]
macro_rules! complain {
    ($($text:tt)*) => {
        $crate::err(format_args!($($text)*))
    };
}

//! Output of a command to a terminal, a pipe or a log, and how Ctrl-C reaches it.

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
pub use self::say::{err, has_failed, is_plain, out, plain};
pub use self::throttle::Throttle;

/// Like `println!`. A closed pipe is no failure: its reader has seen enough. Any other failure is reported once on
/// standard error.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::out(format_args!($($text)*))
    };
}

/// Like `eprintln!`. A failure is ignored, because there is no other place to report it.
#[macro_export]
macro_rules! complain {
    ($($text:tt)*) => {
        $crate::err(format_args!($($text)*))
    };
}

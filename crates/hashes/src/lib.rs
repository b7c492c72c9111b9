//! SHA-1 of several messages at once.
//!
//! The steps of one SHA-1 depend on each other, so a processor without instructions for it waits most of the time. Several
//! messages do not depend on each other: each gets a lane of the vector registers, and all lanes take the same step
//! together. Where the processor has instructions for SHA-1, the `sha1` crate uses them, one message after the other.
//! [`Backend::chosen`] says which it is here.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

mod backend;
mod hasher;
mod plain;
mod rounds;
mod schedule;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use backend::Backend;
pub use hasher::Hasher;

/// A SHA-1.
pub type Digest = [u8; 20];

/// What SHA-1 works on at a time.
type Block = [u8; 64];

/// A hash in the making: FIPS 180-4's H0 to H4.
type State = [u32; 5];

/// The hash of one message.
pub fn digest(message: &[u8]) -> Digest {
    Backend::chosen().digest(message)
}

/// The hashes of messages, in their order. Their lengths need not be equal.
pub fn digests(messages: &[&[u8]]) -> Vec<Digest> {
    Backend::chosen().digests(messages)
}

/// How many of the messages that wait should be hashed together by one of `threads` that are about to: at least 1.
pub fn share(waiting: usize, threads: usize) -> usize {
    Backend::chosen().share(waiting, threads)
}

/// Whether one message alone is hashed by instructions for SHA-1.
pub fn is_one_fast() -> bool {
    Backend::chosen().is_one_fast()
}

//! The token of a machine's order, so that a client that only listens never learns it.
//!
//! On its way to the machine a token is *sealed* ([`sealed`]): the machine makes a key pair when it starts and asks for its
//! order with the public key, and only the private key opens the answer. From then on the machine never says its token
//! again. It *proves* that it has it ([`token::Proof`]): each report, and the last question before the first write, comes
//! with a code over what is said.
//!
//! What this does not do: the server cannot know whose key it is. Whoever asks first gets the token, and whoever sits
//! between the two can put in another key.
//!
//! Random bytes are arguments: this crate reads none.

#![warn(missing_docs, unreachable_pub)]
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]

pub mod hex;
pub mod sealed;
pub mod token;

pub use crate::sealed::{KeyPair, PublicKey, SealError, Sealed};
pub use crate::token::{About, Proof, Said, Token};

/// The HTTP header with the proof of a report; the code is over the body as it came.
pub const PROOF_HEADER: &str = "ezio-proof";

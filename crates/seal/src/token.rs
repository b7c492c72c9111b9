//! A token, and the proof that somebody has it.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use order::MacAddr;
use sha2::Sha256;

use crate::hex;

/// Bytes of a token's name and of its secret.
pub const NAME_LEN: usize = 8;
/// Bytes of a token's secret.
pub const SECRET_LEN: usize = 16;
/// Bytes of a token.
pub const TOKEN_LEN: usize = NAME_LEN + SECRET_LEN;
/// Bytes of a proof's code.
const CODE_LEN: usize = 32;
/// Bytes of a proof.
const PROOF_LEN: usize = NAME_LEN + CODE_LEN;

/// What an order's token binds together: a machine and a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About<'a> {
    /// The address by which the server knows the machine.
    pub mac: MacAddr,
    /// The deployment's id.
    pub deployment: &'a str,
}

impl About<'_> {
    /// Both as bytes. The address has a fixed length, so two different pairs never give the same bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.mac.0, self.deployment.as_bytes()].concat()
    }
}

/// What a machine proves: no proof of one counts for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// A report, as the bytes that are sent.
    Report(&'a [u8]),
    /// The last question before the first write.
    MayWrite,
}

/// A token: a name, by which the server computes the secret again, and the secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token {
    name: [u8; NAME_LEN],
    secret: [u8; SECRET_LEN],
}

impl Token {
    /// Of its parts.
    pub fn new(name: [u8; NAME_LEN], secret: [u8; SECRET_LEN]) -> Token {
        Token { name, secret }
    }

    /// A random number that is no secret.
    pub fn name(&self) -> [u8; NAME_LEN] {
        self.name
    }

    /// What only the machine and the server know.
    pub fn secret(&self) -> [u8; SECRET_LEN] {
        self.secret
    }

    /// Proves that something is said by whoever has this token.
    pub fn prove(&self, about: About<'_>, said: Said<'_>) -> Proof {
        Proof { name: self.name, code: self.mac(about, said).finalize().into_bytes().into() }
    }

    /// Whether a proof is one by this token, in a time that does not depend on where it differs.
    pub fn has_proven(&self, proof: &Proof, about: About<'_>, said: Said<'_>) -> bool {
        proof.name == self.name && self.mac(about, said).verify_slice(&proof.code).is_ok()
    }

    fn mac(&self, about: About<'_>, said: Said<'_>) -> Hmac<Sha256> {
        let mut code = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        let (label, body): (&[u8], &[u8]) = match said {
            Said::Report(body) => (b"ezio report 1", body),
            Said::MayWrite => (b"ezio confirm 1", b""),
        };
        let about = about.bytes();
        // Lengths in front, so that no two things that are said give the same bytes.
        for part in [label, &about, body] {
            code.update(&(part.len() as u64).to_be_bytes());
            code.update(part);
        }
        code
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::write(&[&self.name[..], &self.secret].concat()))
    }
}

/// Without the secret: a log is read by others.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}…)", hex::write(&self.name))
    }
}

impl FromStr for Token {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Token, NotHex> {
        let bytes = hex::read::<TOKEN_LEN>(text).ok_or(NotHex { what: "token", len: TOKEN_LEN })?;
        Ok(Token::from_bytes(bytes))
    }
}

impl Token {
    pub(crate) fn bytes(&self) -> [u8; TOKEN_LEN] {
        let mut bytes = [0; TOKEN_LEN];
        bytes[..NAME_LEN].copy_from_slice(&self.name);
        bytes[NAME_LEN..].copy_from_slice(&self.secret);
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; TOKEN_LEN]) -> Token {
        let (mut name, mut secret) = ([0; NAME_LEN], [0; SECRET_LEN]);
        name.copy_from_slice(&bytes[..NAME_LEN]);
        secret.copy_from_slice(&bytes[NAME_LEN..]);
        Token { name, secret }
    }
}

/// A token's name, and a code over what is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    name: [u8; NAME_LEN],
    code: [u8; CODE_LEN],
}

impl Proof {
    /// The token's name.
    pub fn name(&self) -> [u8; NAME_LEN] {
        self.name
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::write(&[&self.name[..], &self.code].concat()))
    }
}

impl FromStr for Proof {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Proof, NotHex> {
        let bytes = hex::read::<PROOF_LEN>(text).ok_or(NotHex { what: "proof", len: PROOF_LEN })?;
        let (mut name, mut code) = ([0; NAME_LEN], [0; CODE_LEN]);
        name.copy_from_slice(&bytes[..NAME_LEN]);
        code.copy_from_slice(&bytes[NAME_LEN..]);
        Ok(Proof { name, code })
    }
}

/// A text that is not so many bytes in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {what} is {} hex digits", 2 * len)]
pub struct NotHex {
    /// What it should be.
    pub what: &'static str,
    /// Its length in bytes.
    pub len: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const ABOUT: About<'_> = About { mac: MAC, deployment: "d1" };

    fn token() -> Token {
        Token::new([7; NAME_LEN], [9; SECRET_LEN])
    }

    #[test]
    fn texts_are_read_again() {
        assert_eq!(token().to_string().parse(), Ok(token()));
        let proof = token().prove(ABOUT, Said::MayWrite);
        assert_eq!(proof.to_string().parse(), Ok(proof));
        assert_eq!(proof.to_string().len(), 80);
        for bad in ["", "x", &"0".repeat(47), &"0".repeat(49), &"g".repeat(48)] {
            assert_eq!(bad.parse::<Token>().expect_err(bad).to_string(), "a token is 48 hex digits");
            assert!(bad.parse::<Proof>().is_err());
        }
    }

    #[test]
    fn a_proof_is_for_one_thing_that_is_said() {
        let said = Said::Report(b"{}");
        let proof = token().prove(ABOUT, said);
        assert!(token().has_proven(&proof, ABOUT, said));
        let other_mac = About { mac: MacAddr([2, 0, 0, 0, 0, 2]), ..ABOUT };
        let other_deployment = About { deployment: "d2", ..ABOUT };
        for about in [other_mac, other_deployment] {
            assert!(!token().has_proven(&proof, about, said), "{about:?}");
        }
        for other in [Said::MayWrite, Said::Report(b"{ }"), Said::Report(b"")] {
            assert!(!token().has_proven(&proof, ABOUT, other), "{other:?}");
        }
        let another = Token::new([7; NAME_LEN], [8; SECRET_LEN]);
        assert!(!another.has_proven(&proof, ABOUT, said));
        let renamed = Token::new([6; NAME_LEN], [9; SECRET_LEN]);
        assert!(!renamed.has_proven(&proof, ABOUT, said));
    }

    #[test]
    fn nobody_reads_the_secret_in_a_proof_or_a_log() {
        let secret = hex::write(&token().secret());
        assert!(token().to_string().contains(&secret));
        assert!(!token().prove(ABOUT, Said::MayWrite).to_string().contains(&secret));
        assert!(!format!("{:?}", token()).contains(&secret));
    }
}

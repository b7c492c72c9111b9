//! A token in an envelope that one private key opens.
//!
//! X25519 (RFC 7748) between a key pair that the server makes for this one answer and the machine's; HKDF-SHA-256 (RFC 5869)
//! over the shared secret, with both public keys as salt; ChaCha20-Poly1305 (RFC 8439) with the machine's address and the
//! deployment as associated data. The key is used once, so the nonce comes from the HKDF too.

use std::fmt;
use std::str::FromStr;

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce, Tag};
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::StaticSecret;

use crate::hex;
use crate::token::{About, NotHex, TOKEN_LEN, Token};

/// Bytes of a key, private or public.
pub const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
const NONCE_LEN: usize = 12;
/// Bytes of an envelope: the server's public key, the token, and the tag.
const SEALED_LEN: usize = KEY_LEN + TOKEN_LEN + TAG_LEN;
/// What the key is for.
const PURPOSE: &[u8] = b"ezio sealed token 1";

/// Why a token cannot be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A public key of a small group: the shared secret would be known to everybody.
    #[error("the key is one with which nothing is secret")]
    WeakKey,
    /// It was sealed to another key, for another machine or deployment, or changed on the way.
    #[error("it is sealed to another key, or for another machine or deployment, or was changed on the way")]
    NotForUs,
}

/// A machine's public key, as its request says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Whether something can be sealed to this key.
    ///
    /// # Errors
    /// [`SealError::WeakKey`].
    pub fn check(self) -> Result<(), SealError> {
        // A point of a small group gives the same with every private key.
        KeyPair::new([1; KEY_LEN]).cipher(self, self, self).map(|_| ())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::write(&self.0))
    }
}

impl FromStr for PublicKey {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<PublicKey, NotHex> {
        hex::read(text).map(PublicKey).ok_or(NotHex { what: "public key", len: KEY_LEN })
    }
}

/// A private key with its public one. It lives as long as the machine that made it runs.
#[derive(Clone)]
pub struct KeyPair {
    secret: StaticSecret,
    public: PublicKey,
}

impl KeyPair {
    /// Of random bytes.
    pub fn new(random: [u8; KEY_LEN]) -> KeyPair {
        let secret = StaticSecret::from(random);
        let public = PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes());
        KeyPair { secret, public }
    }

    /// What others may know.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Opens a token that was sealed to this key.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(&self, sealed: &Sealed, about: About<'_>) -> Result<Token, SealError> {
        let Sealed { from, body, tag } = sealed;
        let (cipher, nonce) = self.cipher(*from, *from, self.public)?;
        let mut body = *body;
        cipher
            .decrypt_inout_detached(&nonce, &about.bytes(), body.as_mut_slice().into(), &Tag::from(*tag))
            .map_err(|_| SealError::NotForUs)?;
        Ok(Token::from_bytes(body))
    }

    /// The cipher for one envelope, with the nonce.
    fn cipher(
        &self,
        other: PublicKey,
        server: PublicKey,
        machine: PublicKey,
    ) -> Result<(ChaCha20Poly1305, Nonce), SealError> {
        let shared = self.secret.diffie_hellman(&x25519_dalek::PublicKey::from(other.0));
        if !shared.was_contributory() {
            return Err(SealError::WeakKey);
        }
        let salt = [server.0, machine.0].concat();
        let mut derived = [0; KEY_LEN + NONCE_LEN];
        Hkdf::<Sha256>::new(Some(&salt), shared.as_bytes())
            .expand(PURPOSE, &mut derived)
            .expect("HKDF gives up to 8,160 bytes");
        let (mut key, mut nonce) = ([0; KEY_LEN], [0; NONCE_LEN]);
        key.copy_from_slice(&derived[..KEY_LEN]);
        nonce.copy_from_slice(&derived[KEY_LEN..]);
        Ok((ChaCha20Poly1305::new(&Key::from(key)), Nonce::from(nonce)))
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public)
    }
}

/// A token in its envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    from: PublicKey,
    body: [u8; TOKEN_LEN],
    tag: [u8; TAG_LEN],
}

impl Sealed {
    /// Seals a token to a key. The random bytes must be new ones for each envelope.
    ///
    /// # Errors
    /// [`SealError::WeakKey`].
    pub fn new(token: &Token, to: PublicKey, about: About<'_>, random: [u8; KEY_LEN]) -> Result<Sealed, SealError> {
        let own = KeyPair::new(random);
        let (cipher, nonce) = own.cipher(to, own.public, to)?;
        let mut body = token.bytes();
        let tag = cipher
            .encrypt_inout_detached(&nonce, &about.bytes(), body.as_mut_slice().into())
            .expect("a token is shorter than the cipher's limit");
        Ok(Sealed { from: own.public, body, tag: tag.into() })
    }
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::write(&[&self.from.0[..], &self.body, &self.tag].concat()))
    }
}

impl FromStr for Sealed {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Sealed, NotHex> {
        let bytes = hex::read::<SEALED_LEN>(text).ok_or(NotHex { what: "sealed token", len: SEALED_LEN })?;
        let (mut from, mut body, mut tag) = ([0; KEY_LEN], [0; TOKEN_LEN], [0; TAG_LEN]);
        from.copy_from_slice(&bytes[..KEY_LEN]);
        body.copy_from_slice(&bytes[KEY_LEN..KEY_LEN + TOKEN_LEN]);
        tag.copy_from_slice(&bytes[KEY_LEN + TOKEN_LEN..]);
        Ok(Sealed { from: PublicKey(from), body, tag })
    }
}

#[cfg(test)]
mod tests {
    use order::MacAddr;
    use proptest::prelude::*;

    use super::*;

    const ABOUT: About<'_> = About { mac: MacAddr([2, 0, 0, 0, 0, 1]), deployment: "d1" };

    fn token() -> Token {
        Token::new([7; 8], [9; 16])
    }

    #[test]
    fn only_the_key_it_was_sealed_to_opens_it_for_that_machine_and_deployment() {
        let machine = KeyPair::new([1; KEY_LEN]);
        let sealed = Sealed::new(&token(), machine.public(), ABOUT, [2; KEY_LEN]).expect("sealed");
        assert_eq!((machine.public().check(), machine.open(&sealed, ABOUT)), (Ok(()), Ok(token())));
        let other_mac = About { mac: MacAddr([2, 0, 0, 0, 0, 2]), ..ABOUT };
        for about in [other_mac, About { deployment: "d2", ..ABOUT }, About { deployment: "", ..ABOUT }] {
            assert_eq!(machine.open(&sealed, about), Err(SealError::NotForUs), "{about:?}");
        }
        assert_eq!(KeyPair::new([3; KEY_LEN]).open(&sealed, ABOUT), Err(SealError::NotForUs));
        let again = Sealed::new(&token(), machine.public(), ABOUT, [4; KEY_LEN]).expect("sealed");
        assert_ne!(again, sealed);
        assert_eq!(machine.open(&again, ABOUT), Ok(token()), "the answer to a repeated request works too");
    }

    #[test]
    fn a_key_without_a_secret_is_refused_on_both_sides() {
        let machine = KeyPair::new([1; KEY_LEN]);
        let mut one = [0; KEY_LEN];
        one[0] = 1;
        for weak in [[0; KEY_LEN], one].map(PublicKey) {
            assert_eq!(weak.check(), Err(SealError::WeakKey));
            assert_eq!(Sealed::new(&token(), weak, ABOUT, [2; KEY_LEN]), Err(SealError::WeakKey));
            let sealed = Sealed { from: weak, body: [0; TOKEN_LEN], tag: [0; TAG_LEN] };
            assert_eq!(machine.open(&sealed, ABOUT), Err(SealError::WeakKey));
        }
    }

    /// RFC 7748, section 6.1.
    #[test]
    fn the_keys_are_those_of_the_standard() {
        let private = hex::read("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb").expect("hex");
        let public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
        assert_eq!(KeyPair::new(private).public().to_string(), public);
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(machine: [u8; 32], server: [u8; 32], name: [u8; 8], secret: [u8; 16], deployment in ".{0,20}") {
            let about = About { deployment: &deployment, ..ABOUT };
            let token = Token::new(name, secret);
            let machine = KeyPair::new(machine);
            let sealed = Sealed::new(&token, machine.public(), about, server).expect("sealed");
            let read: Sealed = sealed.to_string().parse().expect("its own");
            prop_assert_eq!(machine.open(&read, about), Ok(token));
            prop_assert!(!sealed.to_string().contains(&hex::write(&secret)));
        }

        #[test]
        fn no_changed_bit_goes_unnoticed(at in 0..SEALED_LEN * 8) {
            let machine = KeyPair::new([1; KEY_LEN]);
            let sealed = Sealed::new(&token(), machine.public(), ABOUT, [2; KEY_LEN]).expect("sealed");
            let mut bytes: [u8; SEALED_LEN] = hex::read(&sealed.to_string()).expect("its own");
            bytes[at / 8] ^= 1 << (at % 8);
            let changed: Sealed = hex::write(&bytes).parse().expect("hex");
            prop_assert!(machine.open(&changed, ABOUT).is_err());
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,160}") {
            prop_assert!(text.parse::<Sealed>().is_err() || text.len() == 2 * SEALED_LEN);
            prop_assert!(text.parse::<PublicKey>().is_err() || text.len() == 2 * KEY_LEN);
        }
    }
}

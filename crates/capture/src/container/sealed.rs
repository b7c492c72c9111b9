//! Encrypted files.

use super::look::{Container, Look, Mark, mark};

const DECRYPT_PGP: &str = "decrypt it first (`gpg -d {} >disk.img`), and import disk.img";
const DECRYPT_AGE: &str = "decrypt it first (`age -d {} >disk.img`), and import disk.img";

const MARKS: &[Mark] = &[
    mark(
        0,
        b"Salted__",
        "a file that openssl encrypted",
        "decrypt it first (`openssl enc -d`), and import what comes out",
    ),
    mark(0, b"-----BEGIN PGP MESSAGE-----", "an OpenPGP message", DECRYPT_PGP),
    mark(0, b"age-encryption.org/v1\n", "a file that age encrypted", DECRYPT_AGE),
    mark(0, b"-----BEGIN AGE ENCRYPTED FILE-----", "a file that age encrypted", DECRYPT_AGE),
];

/// Finds the program that decrypts the file.
pub(super) fn find(look: &Look<'_>) -> Option<Container> {
    if is_openpgp(look) && !look.starts_like_a_disk() {
        return Some(look.is("an OpenPGP message", DECRYPT_PGP));
    }
    look.first_of(MARKS)
}

/// A packet with an encrypted session key (RFC 9580, section 5: tag 1 for a public key, 3 for a passphrase), directly
/// followed by another packet of an encrypted message.
fn is_openpgp(look: &Look<'_>) -> bool {
    let Some((tag, start, end)) = packet(look, 0) else { return false };
    let Some([version, second]) = look.bytes(start) else { return false };
    let is_key = match tag {
        1 => matches!(version, 3 | 6),
        // In version 4, an algorithm of the registry (section 9.3) follows.
        3 => version == 4 && (1..=13).contains(&second) || matches!(version, 5 | 6),
        _ => false,
    };
    is_key && matches!(packet_tag(look, end), Some(1 | 3 | 9 | 18 | 20))
}

/// The tag of the packet at a place.
fn packet_tag(look: &Look<'_>, at: usize) -> Option<u8> {
    match look.byte(at)? {
        head @ 0xc0.. => Some(head & 0x3f),
        head @ 0x80.. => Some(head >> 2 & 0xf),
        _ => None,
    }
}

/// Its tag, and where its body begins and ends. (RFC 9580, section 4.2)
fn packet(look: &Look<'_>, at: usize) -> Option<(u8, usize, usize)> {
    let head = look.byte(at)?;
    let tag = packet_tag(look, at)?;
    let one = || look.byte(at + 1).map(usize::from);
    let two = |at: usize| look.bytes(at).map(u16::from_be_bytes).map(usize::from);
    let (start, len) = match (head >= 0xc0, head & 3) {
        (true, _) => match one()? {
            len @ ..192 => (at + 2, len),
            high @ ..224 => (at + 3, ((high - 192) << 8) + usize::from(look.byte(at + 2)?) + 192),
            _ => return None,
        },
        (false, 0) => (at + 2, one()?),
        (false, 1) => (at + 3, two(at + 1)?),
        (false, _) => return None,
    };
    Some((tag, start, start + len))
}

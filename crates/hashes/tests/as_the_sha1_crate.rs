//! Every backend that this processor has gives the hashes that the `sha1` crate gives.

use hashes::{Backend, Digest, Hasher};
use proptest::collection::vec;
use proptest::prelude::*;
use sha1::Digest as _;

fn expected(messages: &[&[u8]]) -> Vec<Digest> {
    messages.iter().map(|message| sha1::Sha1::digest(message).into()).collect()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * at / 7 % 251) as u8).collect()
}

fn check(messages: &[&[u8]]) {
    let expected = expected(messages);
    for backend in Backend::available() {
        let lens = || messages.iter().map(|message| message.len()).collect::<Vec<_>>();
        assert!(backend.digests(messages) == expected, "{backend}: {:?}", lens());
    }
    assert!(hashes::digests(messages) == expected);
    for (message, digest) in messages.iter().zip(&expected) {
        assert_eq!(hashes::digest(message), *digest);
    }
}

#[test]
fn known_answers() {
    // FIPS 180-4's examples, and RFC 3174's.
    let million = vec![b'a'; 1_000_000];
    let two_blocks = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    let messages: [&[u8]; 5] = [b"abc", &million, b"", two_blocks, &b"01234567".repeat(80)];
    let answers = [
        "a9993e364706816aba3e25717850c26c9cd0d89d",
        "34aa973cd4c4daa4f61eeb2bdbad27316534016f",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "84983e441c3bd26ebaae4aa1f95129e5e54670f1",
        "dea356a2cddd90c7a7ecedc5ebb563934f460452",
    ];
    for backend in Backend::available() {
        let digests = backend.digests(&messages);
        let hex = |digest: &Digest| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(digests.iter().map(hex).collect::<Vec<_>>(), answers, "{backend}");
    }
}

#[test]
fn every_length_around_the_ends_of_blocks() {
    let bytes = bytes(700);
    // Ascending and descending, and each beside messages of other lengths.
    let all: Vec<&[u8]> = (0..300).flat_map(|len| [&bytes[len..2 * len], &bytes[1..300 - len]]).collect();
    check(&all);
    for len in [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129] {
        for count in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33] {
            check(&vec![&bytes[3..3 + len]; count]);
        }
    }
}

#[test]
fn no_message_and_large_ones() {
    check(&[]);
    let bytes = bytes(3 << 20);
    let pieces: Vec<&[u8]> = bytes.chunks((256 << 10) - 1).collect();
    check(&pieces);
    // One that is longer than all others together.
    let mut uneven = vec![&bytes[..]];
    uneven.extend(bytes.chunks(1000).take(40));
    check(&uneven);
}

proptest! {
    #[test]
    fn messages_of_any_lengths_at_any_address(cuts in vec((0..5000_usize, 0..64_usize), 0..40)) {
        let bytes = bytes(5064);
        let messages: Vec<&[u8]> = cuts.iter().map(|&(len, start)| &bytes[start..start + len]).collect();
        check(&messages);
    }

    #[test]
    fn parts_of_any_lengths(parts in vec(vec(0..400_usize, 0..12), 1..20)) {
        let bytes = bytes(400);
        let mut hashers = vec![Hasher::new(); parts.len()];
        let rounds = parts.iter().map(Vec::len).max().unwrap_or(0);
        for round in 0..rounds {
            let round = parts.iter().map(|lens| &bytes[..lens.get(round).copied().unwrap_or(0)]);
            Hasher::update_all(hashers.iter_mut().zip(round));
        }
        let whole: Vec<Vec<u8>> = parts.iter().map(|lens| lens.iter().flat_map(|&len| &bytes[..len]).copied().collect()).collect();
        let whole: Vec<&[u8]> = whole.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(Hasher::finish_all(hashers), expected(&whole));
    }
}

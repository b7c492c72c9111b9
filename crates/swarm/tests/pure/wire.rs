//! Tests of peer messages: against a second implementation, cut short, and hostile.

use librqbit_peer_protocol as theirs;
use metainfo::{Geometry, Infohash};
use proptest::prelude::*;
use swarm::bits::PieceSet;
use swarm::wire::{Handshake, Message, Request, WireError, decode, encode};

use crate::piece;

fn geometry() -> Geometry {
    Geometry::new(10 * 65536 + 100, 65536).expect("sane")
}

fn all_messages() -> Vec<Message<'static>> {
    let mut set = PieceSet::new(geometry());
    set.insert(piece(0));
    set.insert(piece(10));
    let request = Request { piece: piece(10), begin: 0, len: 100 };
    vec![
        Message::KeepAlive,
        Message::Choke,
        Message::Unchoke,
        Message::Interested,
        Message::NotInterested,
        Message::Have(piece(10)),
        Message::Bitfield(set),
        Message::Request(request),
        Message::Cancel(request),
        Message::Piece { piece: piece(3), begin: 16384, data: &[7; 16384] },
    ]
}

fn bytes_of(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out);
    out
}

#[test]
fn a_second_implementation_reads_and_writes_the_same_bytes() {
    for message in all_messages() {
        let bytes = bytes_of(&message);
        let (theirs, used) = theirs::Message::deserialize(&bytes, &[]).expect("they read it");
        assert_eq!(used, bytes.len(), "{message:?}");
        let mut again = vec![0; bytes.len() + 64];
        let len = theirs.serialize(&mut again, &Default::default).expect("they write it");
        assert_eq!(again[..len], bytes, "{message:?}");
    }
    let ours = Handshake {
        reserved: [0, 0, 0, 0, 0, 16, 0, 4],
        infohash: Infohash([5; 20]),
        peer_id: *b"-EZ0100-abcdefghijkl",
    };
    let (read, used) = theirs::Handshake::deserialize(&ours.encode()).expect("they read it");
    assert_eq!((used, read.info_hash.0, read.peer_id.0), (68, [5; 20], ours.peer_id));
    assert!(read.supports_extended());
    let mut again = [0; 68];
    assert_eq!(read.serialize_unchecked_len(&mut again), 68);
    assert_eq!(Handshake::decode(&again), Ok(ours));
}

#[test]
fn what_is_written_reads_back_and_no_part_of_it_does() {
    for message in all_messages() {
        let bytes = bytes_of(&message);
        assert_eq!(decode(&bytes, &geometry()), Ok(Some((message, bytes.len()))));
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end], &geometry()), Ok(None), "{end}");
        }
    }
}

#[test]
fn hostile_lengths_are_refused_before_anything_is_stored() {
    let check = |bytes: &[u8], expected: WireError| assert_eq!(decode(bytes, &geometry()), Err(expected), "{bytes:?}");
    check(&[0xff; 4], WireError::TooLong(u32::MAX));
    check(&[0, 1, 0, 1], WireError::TooLong(65537));
    check(&[0, 0, 0, 2, 0], WireError::Length { id: 0, len: 1 });
    check(&[0, 0, 0, 4, 4], WireError::Length { id: 4, len: 3 });
    check(&[0, 0, 0, 1, 5], WireError::Length { id: 5, len: 0 });
    check(&[0, 0, 0, 4, 5], WireError::Length { id: 5, len: 3 });
    check(&[0, 0, 0, 3, 5, 0, 0b0001_0000], WireError::Bitfield);
    check(&[0, 0, 0, 9, 7], WireError::Length { id: 7, len: 8 });
    check(&[0, 0, 0x40, 10, 7], WireError::Length { id: 7, len: 16393 });
    check(&[0, 2, 0, 0, 20], WireError::Length { id: 20, len: 131071 });
    check(&[0, 0, 0, 5, 4, 0, 0, 0, 11], WireError::Range { piece: 11, begin: 0, len: 0 });
    let ranges = [(11, 0, 1), (0, 65536, 1), (0, 65535, 2), (10, 0, 101), (0, 0, 0), (0, u32::MAX, 2), (0, 0, 131_073)];
    for (piece, begin, len) in ranges {
        for id in [6, 8] {
            let mut bytes = vec![0, 0, 0, 13, id];
            [piece, begin, len].iter().for_each(|word: &u32| bytes.extend(word.to_be_bytes()));
            check(&bytes, WireError::Range { piece, begin, len });
        }
    }
}

#[test]
fn what_we_do_not_speak_is_skipped() {
    let bytes = [0, 0, 0, 5, 20, 0, b'd', b'e', 1, 0, 0, 0, 1, 2];
    assert_eq!(decode(&bytes, &geometry()), Ok(Some((Message::Ignored(20), 9))));
    assert_eq!(decode(&bytes[9..], &geometry()), Ok(Some((Message::Interested, 5))));
}

#[test]
fn bitfields_of_any_piece_count_fit() {
    let geometry = Geometry::new(300_000 * 16384, 16384).expect("sane");
    let bytes = bytes_of(&Message::Bitfield(PieceSet::full(geometry)));
    let (message, used) = decode(&bytes, &geometry).expect("good").expect("whole");
    assert_eq!(used, bytes.len());
    assert!(matches!(message, Message::Bitfield(set) if set.is_full()));
}

#[test]
fn other_handshakes_are_refused() {
    let mut bytes = Handshake { reserved: [0; 8], infohash: Infohash([1; 20]), peer_id: [2; 20] }.encode();
    bytes[19] ^= 1;
    assert_eq!(Handshake::decode(&bytes), Err(WireError::Protocol));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode(&bytes, &geometry());
    }

    #[test]
    fn arbitrary_payloads_never_panic(id in 0u8..24, payload in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut bytes = u32::try_from(payload.len() + 1).unwrap().to_be_bytes().to_vec();
        bytes.push(id);
        bytes.extend(payload);
        if let Ok(Some((message, used))) = decode(&bytes, &geometry()) {
            prop_assert_eq!(used, bytes.len());
            if !matches!(message, Message::Ignored(_)) {
                prop_assert_eq!(bytes_of(&message), bytes);
            }
        }
    }
}

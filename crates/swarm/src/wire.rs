//! Peer messages (BEP 3) as bytes. Pure: nothing here reads, waits or allocates by a length that a peer claims.
//!
//! A message is a 4-byte big-endian length, then that many bytes: one of id, then the payload.
//!
//! ```text
//! choke 0 · unchoke 1 · interested 2 · not interested 3      nothing
//! have 4                                                      piece
//! bitfield 5                                                  one bit a piece
//! request 6 · cancel 8                                        piece, begin, length
//! piece 7                                                     piece, begin, data
//! reject 16 (BEP 6, to peers of our own kind only)            piece, begin, length
//! extended 20 (BEP 10)                                        one byte, anything
//! ```

use metainfo::{BLOCK_LEN, Geometry, Infohash, PieceIndex};

use crate::bits::{PieceSet, wire_len};

/// Length of a handshake in bytes.
pub const HANDSHAKE_LEN: usize = 68;
/// Longest block that a peer may request; stock clients request 16 KiB, a few request 32 KiB.
pub const MAX_REQUEST_LEN: u32 = 128 * 1024;
/// Longest message of a kind that is ignored (extensions, unknown ids): a LAN peer has no reason for longer ones.
const MAX_IGNORED_LEN: usize = 64 * 1024;
const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";

/// What broke the protocol. The connection is then closed, because after a wrong length no byte can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The first 20 bytes are not BitTorrent's.
    #[error("the handshake is not BitTorrent's")]
    Protocol,
    /// A length that no message of this torrent can have.
    #[error("a message of {0} bytes")]
    TooLong(u32),
    /// A length that does not fit the message's id.
    #[error("a message with id {id} of {len} bytes")]
    Length {
        /// Message id.
        id: u8,
        /// Bytes of payload.
        len: usize,
    },
    /// A piece, or a range in it, that the torrent does not have.
    #[error("piece {piece} from {begin}, {len} bytes, is not in this torrent")]
    Range {
        /// Piece number as received.
        piece: u32,
        /// Offset in the piece.
        begin: u32,
        /// Length in bytes.
        len: u32,
    },
    /// A bitfield of the wrong length or with spare bits set.
    #[error("a bitfield that does not fit the torrent")]
    Bitfield,
}

/// The message that opens a connection, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Extension bits.
    pub reserved: [u8; 8],
    /// Which torrent.
    pub infohash: Infohash,
    /// The random name that the sender chose.
    pub peer_id: [u8; 20],
}

impl Handshake {
    /// The handshake's bytes.
    pub fn encode(&self) -> [u8; HANDSHAKE_LEN] {
        let mut out = [0; HANDSHAKE_LEN];
        out[..20].copy_from_slice(PROTOCOL);
        out[20..28].copy_from_slice(&self.reserved);
        out[28..48].copy_from_slice(&self.infohash.0);
        out[48..].copy_from_slice(&self.peer_id);
        out
    }

    /// Reads a handshake.
    ///
    /// # Errors
    /// [`WireError::Protocol`] if the bytes are not a handshake.
    pub fn decode(bytes: &[u8; HANDSHAKE_LEN]) -> Result<Handshake, WireError> {
        if bytes[..20] != PROTOCOL[..] {
            return Err(WireError::Protocol);
        }
        let field = |at: usize| bytes[at..at + 20].try_into().expect("20 bytes");
        Ok(Handshake {
            reserved: bytes[20..28].try_into().expect("8 bytes"),
            infohash: Infohash(field(28)),
            peer_id: field(48),
        })
    }
}

/// A requested range of one piece, checked against the torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Which piece.
    pub piece: PieceIndex,
    /// Offset in it, in bytes.
    pub begin: u32,
    /// How many bytes, at most [`MAX_REQUEST_LEN`].
    pub len: u32,
}

impl Request {
    /// The request for block `block` of `piece`.
    pub fn block(geometry: &Geometry, piece: PieceIndex, block: u32) -> Request {
        Request { piece, begin: block * BLOCK_LEN, len: geometry.block_len(piece, block) }
    }
}

/// One message, checked against the torrent's geometry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// An empty message that keeps the connection open.
    KeepAlive,
    /// We may not make requests.
    Choke,
    /// We may make requests.
    Unchoke,
    /// The peer wants pieces of ours.
    Interested,
    /// The peer wants none of our pieces.
    NotInterested,
    /// The peer has received a piece.
    Have(PieceIndex),
    /// The peer's pieces.
    Bitfield(PieceSet),
    /// The peer requests a range.
    Request(Request),
    /// A range of a piece.
    Piece {
        /// Which piece.
        piece: PieceIndex,
        /// Offset in it, in bytes.
        begin: u32,
        /// The bytes.
        data: &'a [u8],
    },
    /// The peer no longer wants a range.
    Cancel(Request),
    /// The peer does not give us a range that we asked for, nor anything else of its piece.
    Reject(Request),
    /// Something we do not speak, by its id.
    Ignored(u8),
}

/// Takes one message from the front of `bytes`. Returns the message and its length, or `None` if it is not complete.
///
/// # Errors
/// [`WireError`] as soon as the available bytes show that no valid message can follow.
pub fn decode<'a>(bytes: &'a [u8], geometry: &Geometry) -> Result<Option<(Message<'a>, usize)>, WireError> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let announced = u32::from_be_bytes(*prefix);
    let len = usize::try_from(announced).map_err(|_| WireError::TooLong(announced))?;
    if len == 0 {
        return Ok(Some((Message::KeepAlive, 4)));
    }
    let Some(&id) = rest.first() else {
        let longest = (wire_len(geometry.piece_count()) + 1).max(MAX_IGNORED_LEN);
        return if len > longest { Err(WireError::TooLong(announced)) } else { Ok(None) };
    };
    let payload_len = len - 1;
    let fits = match id {
        0..=3 => payload_len == 0,
        4 => payload_len == 4,
        5 => payload_len == wire_len(geometry.piece_count()),
        6 | 8 | 16 => payload_len == 12,
        7 => (9..=8 + usize::try_from(BLOCK_LEN).expect("fits usize")).contains(&payload_len),
        _ => payload_len < MAX_IGNORED_LEN,
    };
    if !fits {
        return Err(WireError::Length { id, len: payload_len });
    }
    let Some(payload) = rest.get(1..len) else { return Ok(None) };
    let message = match id {
        0 => Message::Choke,
        1 => Message::Unchoke,
        2 => Message::Interested,
        3 => Message::NotInterested,
        4 => {
            let index = word(payload, 0);
            let piece = geometry.piece(index).ok_or(WireError::Range { piece: index, begin: 0, len: 0 })?;
            Message::Have(piece)
        }
        5 => Message::Bitfield(PieceSet::from_wire(payload, *geometry).ok_or(WireError::Bitfield)?),
        6 | 8 | 16 => {
            let request = range(geometry, word(payload, 0), word(payload, 4), word(payload, 8))?;
            match id {
                6 => Message::Request(request),
                8 => Message::Cancel(request),
                _ => Message::Reject(request),
            }
        }
        7 => {
            let data = &payload[8..];
            let data_len = u32::try_from(data.len()).expect("at most a block");
            let checked = range(geometry, word(payload, 0), word(payload, 4), data_len)?;
            Message::Piece { piece: checked.piece, begin: checked.begin, data }
        }
        _ => Message::Ignored(id),
    };
    Ok(Some((message, 4 + len)))
}

/// The big-endian word at `at`; the caller has checked the length.
fn word(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(payload[at..at + 4].try_into().expect("4 bytes"))
}

fn range(geometry: &Geometry, piece: u32, begin: u32, len: u32) -> Result<Request, WireError> {
    let error = WireError::Range { piece, begin, len };
    let index = geometry.piece(piece).ok_or(error)?;
    let end = begin.checked_add(len).ok_or(error)?;
    let is_inside = len > 0 && len <= MAX_REQUEST_LEN && end <= geometry.len_of(index);
    if is_inside { Ok(Request { piece: index, begin, len }) } else { Err(error) }
}

/// Appends a message to `out`.
pub fn encode(message: &Message<'_>, out: &mut Vec<u8>) {
    match message {
        Message::KeepAlive => out.extend_from_slice(&[0; 4]),
        Message::Choke => put(out, 0, &[]),
        Message::Unchoke => put(out, 1, &[]),
        Message::Interested => put(out, 2, &[]),
        Message::NotInterested => put(out, 3, &[]),
        Message::Have(piece) => put(out, 4, &piece.get().to_be_bytes()),
        Message::Bitfield(set) => put(out, 5, &set.to_wire()),
        Message::Request(request) => put(out, 6, &request_payload(request)),
        Message::Cancel(request) => put(out, 8, &request_payload(request)),
        Message::Piece { piece, begin, data } => {
            let len = u32::try_from(data.len()).expect("at most a request's length");
            out.extend_from_slice(&piece_header(*piece, *begin, len));
            out.extend_from_slice(data);
        }
        Message::Reject(request) => put(out, 16, &request_payload(request)),
        Message::Ignored(id) => put(out, *id, &[]),
    }
}

/// The bytes before the data of a piece message.
pub fn piece_header(piece: PieceIndex, begin: u32, len: u32) -> [u8; 13] {
    let mut out = [0; 13];
    out[..4].copy_from_slice(&(len + 9).to_be_bytes());
    out[4] = 7;
    out[5..9].copy_from_slice(&piece.get().to_be_bytes());
    out[9..].copy_from_slice(&begin.to_be_bytes());
    out
}

fn request_payload(request: &Request) -> [u8; 12] {
    let mut out = [0; 12];
    out[..4].copy_from_slice(&request.piece.get().to_be_bytes());
    out[4..8].copy_from_slice(&request.begin.to_be_bytes());
    out[8..].copy_from_slice(&request.len.to_be_bytes());
    out
}

fn put(out: &mut Vec<u8>, id: u8, payload: &[u8]) {
    let len = u32::try_from(payload.len() + 1).expect("a bitfield of 32-bit piece numbers at most");
    out.extend_from_slice(&len.to_be_bytes());
    out.push(id);
    out.extend_from_slice(payload);
}

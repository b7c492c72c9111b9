//! TFTP with blksize, tsize and windowsize (RFC 1350, 2347-2349, 7440): the client of the RAM system, and the server.

mod client;
mod server;

pub use client::{Fetch, FetchError, Step};
pub use server::{Answer, Content, MAX_WINDOWSIZE, ReadRequest, Refusal, RequestError, Sending, Transfer, refusal};

const RRQ: u16 = 1;
const WRQ: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;

const UNKNOWN_TID: u16 = 5;
const BAD_OPTIONS: u16 = 8;

/// Block size where no other is agreed on (RFC 1350).
const PLAIN_BLKSIZE: usize = 512;

fn ack(block: u16) -> Vec<u8> {
    [ACK.to_be_bytes(), block.to_be_bytes()].concat()
}

fn error(code: u16, text: &str) -> Vec<u8> {
    [&ERROR.to_be_bytes()[..], &code.to_be_bytes(), text.as_bytes(), &[0]].concat()
}

fn take_u16(packet: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = packet.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*number), rest))
}

/// Key and value pairs, each ended by a NUL; what is no text comes out as an empty key, which fits nothing.
fn options(body: &[u8]) -> Vec<(&str, &str)> {
    let mut texts: Vec<&[u8]> = body.split(|&byte| byte == 0).collect();
    if texts.last().is_some_and(|text| text.is_empty()) {
        texts.pop();
    }
    let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
    texts.chunks(2).map(|pair| (text(pair[0]), pair.get(1).map_or("", |value| text(value)))).collect()
}

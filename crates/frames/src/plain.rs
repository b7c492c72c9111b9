//! Frames that hold their content as it is: a valid zstd frame of raw blocks, whose bytes lie at a known place.

/// Longest block of a zstd frame, in bytes.
const BLOCK_LEN_MAX: u32 = 128 << 10;
/// The magic number, then: one segment, a length of four bytes, no checksum, no dictionary.
const START: [u8; 5] = [0x28, 0xb5, 0x2f, 0xfd, 0xa0];
/// That, and the length.
const HEAD_LEN: u32 = 9;
/// In front of each block.
const BLOCK_HEAD_LEN: u32 = 3;

/// What is before the content in a plain frame of a single block.
pub(crate) const PREFIX_LEN: u32 = HEAD_LEN + BLOCK_HEAD_LEN;

/// Length in bytes of a plain frame with so many bytes of content.
pub(crate) fn stored_len(raw_len: u32) -> u32 {
    HEAD_LEN + BLOCK_HEAD_LEN * raw_len.div_ceil(BLOCK_LEN_MAX) + raw_len
}

/// What a plain frame with so many bytes of content starts with, if it has a single block.
pub(crate) fn prefix(raw_len: u32) -> Option<[u8; PREFIX_LEN as usize]> {
    let mut prefix = [0; PREFIX_LEN as usize];
    let (head, block) = prefix.split_at_mut(HEAD_LEN as usize);
    head.copy_from_slice(&frame_head(raw_len));
    block.copy_from_slice(&block_head(raw_len, true));
    (1..=BLOCK_LEN_MAX).contains(&raw_len).then_some(prefix)
}

/// Appends a plain frame.
pub(crate) fn pack(raw: &[u8], raw_len: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&frame_head(raw_len));
    let mut blocks = raw.chunks(BLOCK_LEN_MAX as usize).peekable();
    let mut left = raw_len;
    while let Some(block) = blocks.next() {
        let len = left.min(BLOCK_LEN_MAX);
        out.extend_from_slice(&block_head(len, blocks.peek().is_none()));
        out.extend_from_slice(block);
        left -= len;
    }
}

fn frame_head(raw_len: u32) -> [u8; HEAD_LEN as usize] {
    let mut head = [0; HEAD_LEN as usize];
    let (start, len) = head.split_at_mut(START.len());
    start.copy_from_slice(&START);
    len.copy_from_slice(&raw_len.to_le_bytes());
    head
}

/// 24 bits: whether it is the last, its kind (0 is raw), its length.
fn block_head(len: u32, is_last: bool) -> [u8; BLOCK_HEAD_LEN as usize] {
    let [low, middle, high, _] = (len << 3 | u32::from(is_last)).to_le_bytes();
    [low, middle, high]
}

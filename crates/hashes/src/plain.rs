//! One message at a time, in plain code: for what is left over when too few lanes are in use.

use crate::rounds::define_compress_block;
use crate::{Block, State};

#[inline(always)]
fn add(left: u32, right: u32) -> u32 {
    left.wrapping_add(right)
}

#[inline(always)]
fn xor(left: u32, right: u32) -> u32 {
    left ^ right
}

#[inline(always)]
fn rotate_1(word: u32) -> u32 {
    word.rotate_left(1)
}

#[inline(always)]
fn rotate_5(word: u32) -> u32 {
    word.rotate_left(5)
}

#[inline(always)]
fn rotate_30(word: u32) -> u32 {
    word.rotate_left(30)
}

#[inline(always)]
fn choose(b: u32, c: u32, d: u32) -> u32 {
    d ^ (b & (c ^ d))
}

#[inline(always)]
fn parity(b: u32, c: u32, d: u32) -> u32 {
    b ^ c ^ d
}

#[inline(always)]
fn majority(b: u32, c: u32, d: u32) -> u32 {
    (b & c).wrapping_add(d & (b ^ c))
}

#[inline(always)]
fn splat(word: u32) -> u32 {
    word
}

define_compress_block!(u32);

/// Hashes blocks into a state.
pub(crate) fn compress(state: &mut State, blocks: &[Block]) {
    for block in blocks {
        let (bytes, _) = block.as_chunks::<4>();
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(bytes) {
            *word = u32::from_be_bytes(*bytes);
        }
        compress_block(state, words);
    }
}

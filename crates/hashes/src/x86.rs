//! Vector registers of x86-64: a message in each lane of 32 bits.

use std::arch::x86_64::*;

use crate::schedule::{Job, States, in_lanes};
use crate::{Block, State};

/// Does jobs in eight lanes, as [`in_lanes`] says.
///
/// # Panics
/// If the processor has no AVX2.
pub(crate) fn avx2(jobs: Vec<Job<'_>>, fewest: usize, single: impl Fn(&mut State, &[Block])) {
    assert!(is_x86_feature_detected!("avx2"));
    in_lanes(
        jobs,
        fewest,
        |states, blocks, count| {
            // SAFETY: the processor has AVX2, as was asserted above.
            unsafe { avx2::compress(states, blocks, count) }
        },
        single,
    );
}

/// Does jobs in sixteen lanes, as [`in_lanes`] says.
///
/// # Panics
/// If the processor has no AVX2 or no AVX-512.
pub(crate) fn avx512(jobs: Vec<Job<'_>>, fewest: usize, single: impl Fn(&mut State, &[Block])) {
    assert!(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avx512f"));
    in_lanes(
        jobs,
        fewest,
        |states, blocks, count| {
            // SAFETY: the processor has AVX2 and AVX-512F, as was asserted above.
            unsafe { avx512::compress(states, blocks, count) }
        },
        single,
    );
}

mod avx2 {
    use super::*;
    use crate::rounds::define_compress_block;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add(left: __m256i, right: __m256i) -> __m256i {
        _mm256_add_epi32(left, right)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn xor(left: __m256i, right: __m256i) -> __m256i {
        _mm256_xor_si256(left, right)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn rotate_1(words: __m256i) -> __m256i {
        _mm256_or_si256(_mm256_slli_epi32::<1>(words), _mm256_srli_epi32::<31>(words))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn rotate_5(words: __m256i) -> __m256i {
        _mm256_or_si256(_mm256_slli_epi32::<5>(words), _mm256_srli_epi32::<27>(words))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn rotate_30(words: __m256i) -> __m256i {
        _mm256_or_si256(_mm256_slli_epi32::<30>(words), _mm256_srli_epi32::<2>(words))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn choose(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
        xor(d, _mm256_and_si256(b, xor(c, d)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn parity(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
        xor(xor(b, c), d)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn majority(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
        _mm256_or_si256(_mm256_and_si256(b, c), _mm256_and_si256(d, _mm256_or_si256(b, c)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn splat(word: u32) -> __m256i {
        _mm256_set1_epi32(word.cast_signed())
    }

    define_compress_block!(__m256i, #[target_feature(enable = "avx2")]);

    #[target_feature(enable = "avx2")]
    pub(super) fn compress(states: &mut States<8>, blocks: &[&[Block]; 8], count: usize) {
        let mut state = states.each_ref().map(|words| load(words));
        for at in 0..count {
            compress_block(&mut state, words(&blocks.map(|lane| &lane[at])));
        }
        for (words, vector) in states.iter_mut().zip(state) {
            store(vector, words);
        }
    }

    /// The words of one block of each lane: a vector has the same word of all lanes.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn words(blocks: &[&Block; 8]) -> [__m256i; 16] {
        let [first, second] = [0, 1].map(|half| {
            transposed(blocks.map(|block| {
                let (halves, _) = block.as_chunks::<32>();
                load_big_endian(&halves[half])
            }))
        });
        std::array::from_fn(|word| if word < 8 { first[word] } else { second[word - 8] })
    }

    /// Of eight words of eight lanes: lanes by words.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transposed(lanes: [__m256i; 8]) -> [__m256i; 8] {
        let [a, b, c, d, e, f, g, h] = lanes;
        let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        let (ef_low, ef_high) = (_mm256_unpacklo_epi32(e, f), _mm256_unpackhi_epi32(e, f));
        let (gh_low, gh_high) = (_mm256_unpacklo_epi32(g, h), _mm256_unpackhi_epi32(g, h));
        // Each has two words, the second one four behind the first, of four lanes.
        let (abcd_0, abcd_1) = (_mm256_unpacklo_epi64(ab_low, cd_low), _mm256_unpackhi_epi64(ab_low, cd_low));
        let (abcd_2, abcd_3) = (_mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ab_high, cd_high));
        let (efgh_0, efgh_1) = (_mm256_unpacklo_epi64(ef_low, gh_low), _mm256_unpackhi_epi64(ef_low, gh_low));
        let (efgh_2, efgh_3) = (_mm256_unpacklo_epi64(ef_high, gh_high), _mm256_unpackhi_epi64(ef_high, gh_high));
        [
            _mm256_permute2x128_si256::<0x20>(abcd_0, efgh_0),
            _mm256_permute2x128_si256::<0x20>(abcd_1, efgh_1),
            _mm256_permute2x128_si256::<0x20>(abcd_2, efgh_2),
            _mm256_permute2x128_si256::<0x20>(abcd_3, efgh_3),
            _mm256_permute2x128_si256::<0x31>(abcd_0, efgh_0),
            _mm256_permute2x128_si256::<0x31>(abcd_1, efgh_1),
            _mm256_permute2x128_si256::<0x31>(abcd_2, efgh_2),
            _mm256_permute2x128_si256::<0x31>(abcd_3, efgh_3),
        ]
    }

    /// Eight words as they are in a message.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_big_endian(bytes: &[u8; 32]) -> __m256i {
        // SAFETY: 32 bytes are read, which `bytes` has; this load needs no alignment.
        let vector = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        // The four bytes of each word in reverse. The same places count for both halves of the vector.
        let reversed = _mm256_set_epi8(
            12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3,
        );
        _mm256_shuffle_epi8(vector, reversed)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(words: &[u32; 8]) -> __m256i {
        // SAFETY: 32 bytes are read, which `words` has; this load needs no alignment.
        unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(vector: __m256i, words: &mut [u32; 8]) {
        // SAFETY: 32 bytes are written, which `words` has; this store needs no alignment.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) };
    }
}

mod avx512 {
    use super::*;
    use crate::rounds::define_compress_block;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add(left: __m512i, right: __m512i) -> __m512i {
        _mm512_add_epi32(left, right)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn xor(left: __m512i, right: __m512i) -> __m512i {
        _mm512_xor_si512(left, right)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn rotate_1(words: __m512i) -> __m512i {
        _mm512_rol_epi32::<1>(words)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn rotate_5(words: __m512i) -> __m512i {
        _mm512_rol_epi32::<5>(words)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn rotate_30(words: __m512i) -> __m512i {
        _mm512_rol_epi32::<30>(words)
    }

    // The constant of a ternary operation is its truth table: bit 4b + 2c + d is the result.

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn choose(b: __m512i, c: __m512i, d: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32::<0b1100_1010>(b, c, d)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn parity(b: __m512i, c: __m512i, d: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32::<0b1001_0110>(b, c, d)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn majority(b: __m512i, c: __m512i, d: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32::<0b1110_1000>(b, c, d)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn splat(word: u32) -> __m512i {
        _mm512_set1_epi32(word.cast_signed())
    }

    define_compress_block!(__m512i, #[target_feature(enable = "avx512f")]);

    #[target_feature(enable = "avx2,avx512f")]
    pub(super) fn compress(states: &mut States<16>, blocks: &[&[Block]; 16], count: usize) {
        let mut state = states.each_ref().map(|words| load(words));
        for at in 0..count {
            let row = blocks.map(|lane| &lane[at]);
            let (halves, _) = row.as_chunks::<8>();
            let [first, second] = [0, 1].map(|half| avx2::words(&halves[half]));
            let words =
                std::array::from_fn(|word| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first[word]), second[word]));
            compress_block(&mut state, words);
        }
        for (words, vector) in states.iter_mut().zip(state) {
            store(vector, words);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(words: &[u32; 16]) -> __m512i {
        // SAFETY: 64 bytes are read, which `words` has; this load needs no alignment.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(vector: __m512i, words: &mut [u32; 16]) {
        // SAFETY: 64 bytes are written, which `words` has; this store needs no alignment.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) };
    }
}

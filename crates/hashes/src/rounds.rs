//! The 80 steps of SHA-1 on a block (FIPS 180-4, section 6.1.2), written once for words and for vectors of words.
//!
//! They are macros, because a function with a target feature is only inlined where that feature is on, and all steps have to
//! be unrolled for the words to stay in registers. Both use the functions `add`, `xor`, `rotate_1`, `rotate_5`, `rotate_30`,
//! `choose`, `parity`, `majority` and `splat` of the module they are used in.

/// Defines `fn compress_block(state: &mut [$word; 5], words: [$word; 16])`.
macro_rules! define_compress_block {
    ($word:ty $(, #[$feature:meta])?) => {
        $(#[$feature])?
        #[inline]
        fn compress_block(state: &mut [$word; 5], mut words: [$word; 16]) {
            let [h0, h1, h2, h3, h4] = *state;
            let mut working = (h0, h1, h2, h3, h4);
            $crate::rounds::steps!(working, words, choose, 0x5a82_7999:
                0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
            $crate::rounds::steps!(working, words, parity, 0x6ed9_eba1:
                20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39);
            $crate::rounds::steps!(working, words, majority, 0x8f1b_bcdc:
                40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59);
            $crate::rounds::steps!(working, words, parity, 0xca62_c1d6:
                60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79);
            let (a, b, c, d, e) = working;
            *state = [add(h0, a), add(h1, b), add(h2, c), add(h3, d), add(h4, e)];
        }
    };
}

/// Twenty steps that have function and constant in common.
macro_rules! steps {
    ($working:ident, $words:ident, $mix:ident, $constant:literal: $($step:literal)*) => {
        let constant = splat($constant);
        $(
            let (a, b, c, d, e) = $working;
            // The message schedule needs the last sixteen words: a new one takes the place of the oldest.
            if $step >= 16 {
                let recent = xor($words[($step + 13) & 15], $words[($step + 8) & 15]);
                let older = xor($words[($step + 2) & 15], $words[$step & 15]);
                $words[$step & 15] = rotate_1(xor(recent, older));
            }
            let known = add(add($words[$step & 15], constant), e);
            $working = (add(rotate_5(a), add($mix(b, c, d), known)), a, rotate_30(b), c, d);
        )*
    };
}

pub(crate) use {define_compress_block, steps};

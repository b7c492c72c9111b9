//! Sizes, rates and counts as people read them.
//!
//! Sizes have binary units, as in `lsblk` and `fdisk`: 1 KiB is 1024 bytes. A drive that is sold as 500 GB has 465.8
//! GiB.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

use std::fmt::Display;

/// Each unit is 1024 times the previous one; the last can express any `u64`.
const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A number of bytes, with one decimal from 1 KiB on.
pub fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return count(bytes, "byte");
    }
    let (mut unit, mut name) = (1024, UNITS[0]);
    for larger in &UNITS[1..] {
        // The last digit shown is a tenth, so 1023.95 KiB is shown as 1.0 MiB.
        if tenths(bytes, unit) < 10 * 1024 {
            break;
        }
        (unit, name) = (unit << 10, larger);
    }
    let tenths = tenths(bytes, unit);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// A number of bytes per second.
pub fn rate(bytes_per_s: u64) -> String {
    format!("{}/s", size(bytes_per_s))
}

/// A number of things; `one` is the singular of their name, and its plural ends with s.
pub fn count(number: impl Display, one: &str) -> String {
    match number.to_string() {
        number if number == "1" => format!("1 {one}"),
        number => format!("{number} {one}s"),
    }
}

fn tenths(bytes: u64, unit: u64) -> u128 {
    (u128::from(bytes) * 10 + u128::from(unit) / 2) / u128::from(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_partition_tools() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 53, "1023.9 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (200 << 20, "200.0 MiB"),
            (500_107_862_016, "465.8 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(rate(112 << 20), "112.0 MiB/s");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!([0u64, 1, 2].map(|number| count(number, "machine")), ["0 machines", "1 machine", "2 machines"]);
        assert_eq!((count(1usize, "piece"), count(3u32, "peer")), ("1 piece".into(), "3 peers".into()));
    }
}

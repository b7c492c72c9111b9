//! How long an order holds.

use std::fmt;
use std::str::FromStr;

/// Seconds, or `None` for an order without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lasts(pub Option<u64>);

/// Units and their seconds.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

impl FromStr for Lasts {
    type Err = String;

    fn from_str(text: &str) -> Result<Lasts, String> {
        if text == "forever" {
            return Ok(Lasts(None));
        }
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let unit = UNITS.into_iter().find(|(name, _)| unit.chars().eq([*name])).map(|(_, seconds)| seconds);
        let seconds =
            unit.and_then(|unit| number.parse::<u64>().ok()?.checked_mul(unit)).filter(|seconds| *seconds > 0);
        match seconds {
            Some(seconds) => Ok(Lasts(Some(seconds))),
            None => Err(format!("{text:?} is no time: use a number with d, h, m or s, such as 12h, or `forever`")),
        }
    }
}

impl fmt::Display for Lasts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(seconds) = self.0 else { return f.write_str("until it is disarmed") };
        let (unit, len) = UNITS.into_iter().find(|(_, len)| seconds % len == 0).unwrap_or(('s', 1));
        write!(f, "for {} {unit}", seconds / len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds, shown) in [
            ("7d", Some(604_800), "for 7 d"),
            ("12h", Some(43_200), "for 12 h"),
            ("48h", Some(172_800), "for 2 d"),
            ("90m", Some(5400), "for 90 m"),
            ("1s", Some(1), "for 1 s"),
            ("forever", None, "until it is disarmed"),
        ] {
            let lasts: Lasts = text.parse().expect(text);
            assert_eq!((lasts.0, lasts.to_string().as_str()), (seconds, shown));
        }
        for text in ["", "7", "d", "0d", "-1d", "7 d", "7days", "1w", "99999999999999999999d", "forever7d"] {
            let error = text.parse::<Lasts>().expect_err(text);
            assert!(error.contains("such as 12h"), "{error}");
        }
    }
}

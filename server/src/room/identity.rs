//! What a machine is, besides its network card: a dock lends one card to many laptops, and a machine can have several cards.

use serde::{Deserialize, Serialize};

/// SMBIOS system UUID and serial number (DMTF DSP0134, section 7.2), as far as they say anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 32 hex digits in lower case, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uuid: String,
    /// Or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub serial: String,
}

/// UUIDs that makers left on whole series of boards.
const COMMON_UUIDS: [&str; 6] = [
    "03000200040005000006000700080009",
    "00020003000400050006000700080009",
    "12345678123456781234567812345678",
    "123456781234123412341234567890ab",
    "ffffffffffffffffffffffff00000000",
    "00112233445566778899aabbccddeeff",
];
/// Words in serial numbers that nobody filled in.
const NO_SERIALS: [&str; 12] = [
    "filled",
    "default",
    "system",
    "serial",
    "none",
    "not ",
    "unknown",
    "invalid",
    "empty",
    "n/a",
    "0123456789",
    "123456789",
];
/// Different digits that a number of its own has at least.
const DIGITS_MIN: usize = 3;

impl Identity {
    /// From what firmware says; what is useless becomes empty.
    pub fn of(uuid: &str, serial: &str) -> Identity {
        Identity { uuid: useful_uuid(uuid).unwrap_or_default(), serial: useful_serial(serial).unwrap_or_default() }
    }

    /// Whether these are two machines for certain.
    pub fn contradicts(&self, other: &Identity) -> bool {
        let differ = |a: &str, b: &str| !a.is_empty() && !b.is_empty() && a != b;
        if self.uuid.is_empty() || other.uuid.is_empty() {
            return differ(&self.serial, &other.serial);
        }
        self.uuid != other.uuid
    }

    /// Whether these are one machine as far as can be known. Of a series with one UUID, serial numbers that differ say not.
    pub fn is_same(&self, other: &Identity) -> bool {
        !self.uuid.is_empty()
            && self.uuid == other.uuid
            && (self.serial.is_empty() || other.serial.is_empty() || self.serial == other.serial)
    }

    /// Takes over what the other one knows besides.
    pub fn learn(&mut self, other: &Identity) {
        for (own, more) in [(&mut self.uuid, &other.uuid), (&mut self.serial, &other.serial)] {
            if !more.is_empty() {
                own.clone_from(more);
            }
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.uuid.is_empty() && self.serial.is_empty()
    }
}

fn useful_uuid(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| *c != '-').collect::<String>().to_ascii_lowercase();
    let is_uuid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_uuid || !has_own_digits(&digits) {
        return None;
    }
    let swapped = swapped(&digits);
    let is_common = [&digits, &swapped].iter().any(|uuid| COMMON_UUIDS.contains(&uuid.as_str()));
    (!is_common).then(|| digits.min(swapped))
}

/// The same with the first three fields in the other byte order: SMBIOS before 2.6 did not say which one it is, and ROMs,
/// iPXE and Linux do not agree.
fn swapped(digits: &str) -> String {
    let field = |from: usize, to: usize| (from..to).step_by(2).rev().map(|at| &digits[at..at + 2]).collect::<String>();
    format!("{}{}{}{}", field(0, 8), field(8, 12), field(12, 16), &digits[16..])
}

fn useful_serial(text: &str) -> Option<String> {
    let text = text.trim();
    let lower = text.to_ascii_lowercase();
    let is_filler = NO_SERIALS.iter().any(|filler| lower.contains(filler));
    (text.len() >= 4 && text.len() <= 64 && !is_filler && has_own_digits(&lower)).then(|| text.to_owned())
}

fn has_own_digits(text: &str) -> bool {
    let mut digits: Vec<char> = text.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    digits.sort_unstable();
    digits.dedup();
    digits.len() >= DIGITS_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "4C4C4544-0043-3510-8051-B7C04F4D3232";
    const B: &str = "4c4c4544-0043-3510-8051-b7c04f4d3233";

    #[test]
    fn useless_numbers_say_nothing() {
        for uuid in [
            "",
            "x",
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009",
            "4C4C4544-0043-3510-8051-B7C04F4D323",
        ] {
            assert_eq!(Identity::of(uuid, "").uuid, "", "{uuid}");
        }
        for serial in [
            "",
            "0",
            "To be filled by O.E.M.",
            "System Serial Number",
            "Default string",
            "0000000",
            "None",
            "N/A",
            "xx",
        ] {
            assert_eq!(Identity::of("", serial).serial, "", "{serial}");
        }
        assert!(Identity::of("", " ").is_empty() && !Identity::of(A, "").is_empty());
    }

    #[test]
    fn machines_are_told_apart_by_what_they_both_say() {
        let of = Identity::of;
        assert_eq!(of(A, "5C3QM22").uuid, "44454c4c430010358051b7c04f4d3232");
        assert_eq!(of(A, ""), of("44454c4c-4300-1035-8051-b7c04f4d3232", ""), "in the other byte order");
        for (a, b, contradicts, is_same) in [
            (of(A, "5C3QM22"), of(A, "5C3QM22"), false, true),
            (of(A, ""), of(&A.to_lowercase(), "5C3QM22"), false, true),
            (of(A, ""), of(B, ""), true, false),
            (of(A, "5C3QM22"), of(A, "5C3QM23"), false, false),
            (of("", "5C3QM22"), of(A, "5C3QM23"), true, false),
            (of("", "5C3QM22"), of("", "5C3QM22"), false, false),
            (of("", ""), of(A, "5C3QM22"), false, false),
        ] {
            assert_eq!((a.contradicts(&b), b.contradicts(&a)), (contradicts, contradicts), "{a:?} {b:?}");
            assert_eq!((a.is_same(&b), b.is_same(&a)), (is_same, is_same), "{a:?} {b:?}");
        }
        let mut known = of(A, "");
        known.learn(&of("", "5C3QM22"));
        assert_eq!(known, of(A, "5C3QM22"));
    }
}

//! A check of bencode that runs before anything is decoded. No input makes it recurse, allocate or read out of bounds.
//!
//! `serde_bencode` does the typed decoding. It trusts lengths and nests as deep as the input says, so [`check`] runs
//! first. An infohash is taken over the bytes of `info` exactly as received, and [`dict_value`] finds those bytes.

use std::ops::Range;

/// How deep lists and dictionaries may nest: metainfo needs 5 (top, info, files, file, path).
pub const MAX_DEPTH: usize = 32;

/// Why bytes are not one bencoded value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    /// The value continues past the last byte.
    #[error("cut off at byte {0}")]
    Truncated(usize),
    /// A byte that cannot stand here.
    #[error("unexpected byte {1:#04x} at byte {0}")]
    Unexpected(usize, u8),
    /// An integer or length that is empty, has a leading zero, or does not fit into 64 bits.
    #[error("bad number at byte {0}")]
    BadNumber(usize),
    /// More than [`MAX_DEPTH`] lists and dictionaries inside each other.
    #[error("nested too deeply at byte {0}")]
    TooDeep(usize),
    /// Bytes after the end of the value.
    #[error("something follows the end at byte {0}")]
    Trailing(usize),
    /// A key that is in its dictionary already. Another client may take the other value.
    #[error("a key is there twice, the second time at byte {0}")]
    Duplicate(usize),
}

/// Checks that `bytes` are exactly one well-formed bencoded value (BEP 3).
///
/// # Errors
/// The first fault, with its offset in bytes.
pub fn check(bytes: &[u8]) -> Result<(), BencodeError> {
    let end = value_end(bytes, 0)?;
    if end == bytes.len() { Ok(()) } else { Err(BencodeError::Trailing(end)) }
}

/// The bytes of the value under `key` in the dictionary in `bytes`, or `None` if the key is missing.
///
/// # Errors
/// If `bytes` do not start with a well-formed dictionary, or the key is in it twice.
pub fn dict_value(bytes: &[u8], key: &[u8]) -> Result<Option<Range<usize>>, BencodeError> {
    match bytes.first() {
        Some(b'd') => {}
        Some(&other) => return Err(BencodeError::Unexpected(0, other)),
        None => return Err(BencodeError::Truncated(0)),
    }
    let (mut at, mut found) = (1, None);
    while *bytes.get(at).ok_or(BencodeError::Truncated(at))? != b'e' {
        let name = string_range(bytes, at)?;
        let value = name.end..value_end(bytes, name.end)?;
        let end = value.end;
        if &bytes[name] == key && found.replace(value).is_some() {
            return Err(BencodeError::Duplicate(at));
        }
        at = end;
    }
    Ok(found)
}

/// The offset just past the value that starts at `at`. It keeps an explicit stack, so input cannot exhaust the call
/// stack.
fn value_end(bytes: &[u8], mut at: usize) -> Result<usize, BencodeError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Open {
        List,
        Key,
        Value,
    }
    let mut open: [Open; MAX_DEPTH] = [Open::List; MAX_DEPTH];
    let mut depth = 0;
    loop {
        let byte = *bytes.get(at).ok_or(BencodeError::Truncated(at))?;
        let expects_key = depth > 0 && open[depth - 1] == Open::Key;
        match byte {
            b'e' if depth > 0 && open[depth - 1] != Open::Value => {
                depth -= 1;
                at += 1;
            }
            b'0'..=b'9' => at = string_range(bytes, at)?.end,
            b'i' if !expects_key => at = integer_end(bytes, at)?,
            b'l' | b'd' if !expects_key => {
                if depth == MAX_DEPTH {
                    return Err(BencodeError::TooDeep(at));
                }
                open[depth] = if byte == b'l' { Open::List } else { Open::Key };
                depth += 1;
                at += 1;
                continue;
            }
            _ => return Err(BencodeError::Unexpected(at, byte)),
        }
        // A value or key has just ended; in a dictionary, the other of the two comes next.
        match depth.checked_sub(1).map(|top| &mut open[top]) {
            None => return Ok(at),
            Some(top @ Open::Key) => *top = Open::Value,
            Some(top @ Open::Value) => *top = Open::Key,
            Some(Open::List) => {}
        }
    }
}

fn string_range(bytes: &[u8], at: usize) -> Result<Range<usize>, BencodeError> {
    let (len, colon) = number(bytes, at, b':')?;
    let start = colon + 1;
    let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len));
    match end {
        Some(end) if end <= bytes.len() => Ok(start..end),
        _ => Err(BencodeError::Truncated(bytes.len())),
    }
}

fn integer_end(bytes: &[u8], at: usize) -> Result<usize, BencodeError> {
    let digits = if bytes.get(at + 1) == Some(&b'-') { at + 2 } else { at + 1 };
    let (value, end) = number(bytes, digits, b'e')?;
    let fits = i64::try_from(value).is_ok() && !(value == 0 && digits == at + 2);
    if fits { Ok(end + 1) } else { Err(BencodeError::BadNumber(at)) }
}

/// A run of digits up to `terminator`: its value and the terminator's offset.
fn number(bytes: &[u8], at: usize, terminator: u8) -> Result<(u64, usize), BencodeError> {
    let mut value: u64 = 0;
    let mut end = at;
    loop {
        match *bytes.get(end).ok_or(BencodeError::Truncated(end))? {
            digit @ b'0'..=b'9' => {
                value = value
                    .checked_mul(10)
                    .and_then(|v| v.checked_add(u64::from(digit - b'0')))
                    .ok_or(BencodeError::BadNumber(at))?;
                end += 1;
            }
            byte if byte == terminator => break,
            byte => return Err(BencodeError::Unexpected(end, byte)),
        }
    }
    let has_leading_zero = end - at > 1 && bytes[at] == b'0';
    if end == at || has_leading_zero { Err(BencodeError::BadNumber(at)) } else { Ok((value, end)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn well_formed_values_pass() {
        for good in ["i0e", "i-7e", "0:", "4:spam", "le", "de", "d1:ai1e1:bl1:cdeee", "d1:ad1:bd1:cleeee"] {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
        }
    }

    #[test]
    fn malformed_values_say_where() {
        let t = |s: &str| check(s.as_bytes()).expect_err(s);
        assert_eq!(t(""), BencodeError::Truncated(0));
        assert_eq!(t("<html>"), BencodeError::Unexpected(0, b'<'));
        assert_eq!(t("ie"), BencodeError::BadNumber(1));
        assert_eq!(t("i-0e"), BencodeError::BadNumber(0));
        assert_eq!(t("i03e"), BencodeError::BadNumber(1));
        assert_eq!(t("i99999999999999999999e"), BencodeError::BadNumber(1));
        assert_eq!(t("5:spam"), BencodeError::Truncated(6));
        assert_eq!(t("99999999999999999999:a"), BencodeError::BadNumber(0));
        assert_eq!(t("18446744073709551615:a"), BencodeError::Truncated(22));
        assert_eq!(t("d1:ae"), BencodeError::Unexpected(4, b'e'));
        assert_eq!(t("di1e1:ae"), BencodeError::Unexpected(1, b'i'));
        assert_eq!(t("i1ei2e"), BencodeError::Trailing(3));
        assert_eq!(t("e"), BencodeError::Unexpected(0, b'e'));
        assert_eq!(t(&"l".repeat(100_000)), BencodeError::TooDeep(MAX_DEPTH));
    }

    #[test]
    fn dict_values_are_found_as_they_came() {
        let bytes = b"d8:announce3:url4:infod6:lengthi3ee1:zi1ee";
        let info = dict_value(bytes, b"info").unwrap().unwrap();
        assert_eq!(&bytes[info], b"d6:lengthi3ee");
        assert_eq!(dict_value(bytes, b"none"), Ok(None));
        assert_eq!(dict_value(b"le", b"info"), Err(BencodeError::Unexpected(0, b'l')));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = b"d8:announce3:url4:infod6:lengthi3e4:listl1:ai-4eeee";
        for end in 0..bytes.len() {
            assert!(check(&bytes[..end]).is_err(), "{end}");
        }
        assert_eq!(check(bytes), Ok(()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes);
            let _ = dict_value(&bytes, b"info");
        }

        #[test]
        fn bencode_alphabet_never_panics(text in "[ilde0-9:-]{0,60}") {
            let _ = check(text.as_bytes());
            let _ = dict_value(text.as_bytes(), b"");
        }
    }
}

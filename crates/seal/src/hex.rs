//! Bytes as hex digits: in names of files and in `ezio.conf`.

/// Two digits a byte, in lower case.
pub fn write(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Exactly so many bytes, of two hex digits each.
pub fn read<const LEN: usize>(text: &str) -> Option<[u8; LEN]> {
    if text.len() != 2 * LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; LEN];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(bytes: [u8; 9]) {
            proptest::prop_assert_eq!(read(&write(&bytes)), Some(bytes));
            proptest::prop_assert_eq!(read(&write(&bytes).to_uppercase()), Some(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,40}") {
            let read = read::<3>(&text);
            proptest::prop_assert!(read.is_none() || text.len() == 6);
        }
    }

    #[test]
    fn no_other_length_and_no_sign_is_read() {
        assert_eq!(read::<2>("00ff"), Some([0, 255]));
        for bad in ["", "00f", "00ff0", "+1+1", "é00", "0x00"] {
            assert_eq!(read::<2>(bad), None, "{bad}");
        }
    }
}

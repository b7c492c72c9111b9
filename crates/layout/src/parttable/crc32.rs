//! The checksum of a GPT: CRC-32 as UEFI 2.10 (section 5.3.2) and Ethernet use it.

/// The contribution of each byte, for the reversed polynomial 0xedb88320.
const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    // The same number as index and as value, because a constant cannot convert.
    let (mut index, mut value) = (0usize, 0u32);
    while index < table.len() {
        let mut crc = value;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
        value += 1;
    }
    table
}

/// The checksum of these parts, as if they were one.
pub(super) fn crc32(parts: &[&[u8]]) -> u32 {
    let add = |crc: u32, byte: &u8| crc >> 8 ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)];
    !parts.iter().copied().flatten().fold(!0, add)
}

#[cfg(test)]
mod tests {
    use super::crc32;

    #[test]
    fn known_checksums() {
        assert_eq!(crc32(&[]), 0);
        assert_eq!(crc32(&[b"123456789"]), 0xcbf4_3926);
        assert_eq!(crc32(&[b"1234", b"", b"56789"]), 0xcbf4_3926);
    }
}

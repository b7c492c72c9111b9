//! The head of partclone's image format, version 2 (partclone 0.3): the size of the file system, and how much of it is
//! in use.
//!
//! ```text
//!   0 "partclone-image\0"   16 version of partclone   30 "0002"   34 0xC0DE
//!  36 file system (16)   52 device size (u64)   60 blocks (u64)   68 used blocks, by superblock (u64)
//!  76 used blocks, by bitmap (u64)   84 block size (u32)   88 options   106 CRC32
//! ```

/// Length of the head in bytes.
pub(super) const LEN: usize = 110;
const MAGIC: &[u8] = b"partclone-image";

/// The fields that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Size of the file system in bytes.
    pub device_size: u64,
    /// Bytes in use, at most the size.
    pub used_len: u64,
}

/// Whether a stream with this start is partclone's, of any version.
pub(super) fn is_partclone(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

impl Head {
    /// Reads the head; `None` if it is of another version or makes no sense, which partclone reports.
    pub(super) fn parse(start: &[u8]) -> Option<Head> {
        let is_known = is_partclone(start) && start.len() >= LEN && &start[30..34] == b"0002";
        let number = |at: usize| start.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        if !is_known || start[34..36] != 0xC0DE_u16.to_le_bytes() {
            return None;
        }
        let block_size = u64::from(u32::from_le_bytes(start[84..88].try_into().ok()?));
        let device_size = number(52)?;
        // Either count may include blocks that are only reserved: for ext4, that of the superblock does. Take the
        // larger.
        let used = number(68)?.max(number(76)?);
        Some(Head { device_size, used_len: used.checked_mul(block_size)?.min(device_size) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A head that partclone 0.3.23 wrote for an ext4 of 100 MiB.
    const REAL: &str = "70617274636c6f6e652d696d61676500302e332e323300000000000000003030\
        3032dec0455854465300000000000000000000000000400600000000009001000000\
        0000312f000000000000312f00000000000000040000120000000200400020000400000400000101d15703eb";

    fn real() -> Vec<u8> {
        let digits: Vec<u8> = REAL.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
        digits.chunks(2).map(byte).collect()
    }

    #[test]
    fn a_real_head_is_read() {
        let head = Head::parse(&real()).expect("a head");
        assert_eq!(head, Head { device_size: 100 << 20, used_len: 12_081 << 10 });
        let mut other = real();
        other[33] = b'1';
        assert!(is_partclone(&other) && Head::parse(&other).is_none());
        for end in 0..LEN {
            assert!(Head::parse(&real()[..end]).is_none(), "{end}");
        }
        assert!(!is_partclone(b""));
    }

    proptest! {
        #[test]
        fn changed_heads_never_panic(at in 0usize..LEN, bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
            let mut head = real();
            for (place, byte) in head[at..].iter_mut().zip(bytes) {
                *place = byte;
            }
            if let Some(head) = Head::parse(&head) {
                prop_assert!(head.used_len <= head.device_size);
            }
        }
    }
}

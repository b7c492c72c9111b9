//! A buffer whose address suits O_DIRECT.

/// Address, offset and length of direct reads and writes are multiples of this unless the device's sectors are larger. 4096
/// satisfies every disk in use, whatever its logical sectors.
pub const ALIGN: usize = 4096;

/// Bytes that start at a multiple of [`ALIGN`].
#[derive(Debug)]
pub struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` bytes of zeros.
    pub fn new(len: usize) -> AlignedBuf {
        let bytes = vec![0; len + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN);
        AlignedBuf { bytes, start, len }
    }

    /// All bytes, for filling.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned() {
        for len in [0, 1, 512, 4096, 1 << 20] {
            let mut buf = AlignedBuf::new(len);
            assert_eq!(buf.as_slice().as_ptr().addr() % ALIGN, 0);
            assert_eq!(buf.as_mut_slice().len(), len);
        }
    }
}

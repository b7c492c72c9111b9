//! Checksums of rows, and of all rows of a kind.

use std::fmt;

use sha2::{Digest, Sha256};

/// The first 8 bytes of the SHA-256 of a row.
pub(crate) fn checksum(kind: &str, key: &str, body: &str) -> u64 {
    let mut hash = Sha256::new();
    for part in [kind, key, body] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// How many rows of a kind there are, and the sum of their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    count: u64,
    sum: u64,
}

impl Total {
    pub(crate) fn new(count: u64, sum: u64) -> Total {
        Total { count, sum }
    }

    pub(crate) fn of(kind: &str, rows: &[(String, String)]) -> Total {
        let mut total = Total::default();
        rows.iter().for_each(|(key, body)| total.add(checksum(kind, key, body)));
        total
    }

    pub(crate) fn add(&mut self, sum: u64) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(sum);
    }

    pub(crate) fn remove(&mut self, sum: Option<u64>) {
        if let Some(sum) = sum {
            self.count = self.count.wrapping_sub(1);
            self.sum = self.sum.wrapping_sub(sum);
        }
    }

    pub(crate) fn parts(self) -> (u64, u64) {
        (self.count, self.sum)
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} that were written", self.count)
    }
}

//! Disks of zeros with a table.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Size of a block, in bytes.
const BLOCK: u64 = 512;

/// A disk that holds zeros except in some blocks.
pub struct Disk {
    /// Length in bytes, a multiple of 512.
    pub len: u64,
    /// Bytes per sector.
    pub sector_size: u64,
    blocks: BTreeMap<u64, [u8; 512]>,
}

impl Disk {
    pub fn new(len: u64, sector_size: u64) -> Disk {
        Disk { len, sector_size, blocks: BTreeMap::new() }
    }

    /// Number of whole sectors.
    pub fn sectors(&self) -> u64 {
        self.len / self.sector_size
    }

    /// Writes `bytes` at byte `at`, except what is past the end of the disk.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        let (mut at, mut bytes) = (at, bytes);
        while at < self.len && !bytes.is_empty() {
            let within = usize::try_from(at % BLOCK).expect("small");
            let (now, later) = bytes.split_at(bytes.len().min(512 - within));
            // Bytes that were never written are zeros.
            if self.blocks.contains_key(&(at / BLOCK)) || now.iter().any(|&byte| byte != 0) {
                let block = self.blocks.entry(at / BLOCK).or_insert([0; 512]);
                block[within..within + now.len()].copy_from_slice(now);
            }
            at += u64::try_from(now.len()).expect("small");
            bytes = later;
        }
    }

    /// `len` bytes from `at` on, if the disk has them.
    pub fn bytes(&self, at: u64, len: u64) -> Option<Vec<u8>> {
        let end = at.checked_add(len).filter(|&end| end <= self.len)?;
        let mut bytes = Vec::new();
        let mut at = at;
        while at < end {
            let within = usize::try_from(at % BLOCK).expect("small");
            let count = usize::try_from(end - at).expect("small").min(512 - within);
            match self.blocks.get(&(at / BLOCK)) {
                Some(block) => bytes.extend_from_slice(&block[within..within + count]),
                None => bytes.resize(bytes.len() + count, 0),
            }
            at += u64::try_from(count).expect("small");
        }
        Some(bytes)
    }

    /// Offsets of bytes in blocks that were written, ascending.
    pub fn written(&self) -> Vec<u64> {
        self.blocks.keys().map(|block| block * BLOCK).collect()
    }

    pub fn write_to(&self, path: &Path) {
        let file = File::create(path).expect("temporary file");
        file.set_len(self.len).expect("sparse");
        for (block, bytes) in &self.blocks {
            file.write_all_at(bytes, block * BLOCK).expect("written");
        }
    }

    pub fn reader(&self) -> Reader<'_> {
        Reader { disk: self, at: 0 }
    }

    /// The written blocks as text, for finding out what is wrong.
    pub fn hex(&self) -> String {
        let mut text = String::new();
        for (block, bytes) in self.blocks.iter().filter(|(_, bytes)| bytes.iter().any(|&byte| byte != 0)).take(40) {
            for (line, bytes) in bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|&byte| byte != 0)) {
                let hex: String = bytes.iter().map(|byte| format!(" {byte:02x}")).collect();
                text.push_str(&format!("    {block:8} +{:03x}{hex}\n", line * 16));
            }
        }
        text
    }
}

/// Reads a disk from any offset.
pub struct Reader<'a> {
    disk: &'a Disk,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.disk.len.saturating_sub(self.at);
        let len = left.min(u64::try_from(buf.len()).expect("small"));
        let bytes = self.disk.bytes(self.at, len).unwrap_or_default();
        buf[..bytes.len()].copy_from_slice(&bytes);
        self.at += len;
        Ok(bytes.len())
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.disk.len.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

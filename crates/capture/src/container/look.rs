//! The start and the end of a file, and the marks that identify it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes read at the start.
const HEAD_LEN: u64 = 64 << 10;
/// Bytes read at the end: the longest trailer is Apple's, with 512 bytes.
const TAIL_LEN: u64 = 1024;

/// The kind of a file that is not a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    /// Its kind, with an article: `an OVA (a tar file)`.
    pub what: String,
    /// What to do with it, in the imperative.
    pub advice: String,
}

impl Container {
    pub(crate) fn new(what: impl Into<String>, advice: impl Into<String>) -> Container {
        Container { what: what.into(), advice: advice.into() }
    }

    /// Why the file at `path` is refused, in one sentence.
    pub(crate) fn refusal(&self, path: &Path) -> String {
        format!("{} is {}, not a disk: {}", path.display(), self.what, self.advice)
    }
}

/// A file, and the parts of it that were read.
pub(super) struct Look<'a> {
    pub path: &'a Path,
    file: &'a File,
    /// Length of the file in bytes.
    pub len: u64,
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
}

impl<'a> Look<'a> {
    pub(super) fn new(path: &'a Path, file: &'a File, len: u64) -> io::Result<Look<'a>> {
        let mut look = Look { path, file, len, head: Vec::new(), tail: Vec::new() };
        look.head = look.read(0, HEAD_LEN)?;
        look.tail = look.read(len.saturating_sub(TAIL_LEN), TAIL_LEN)?;
        Ok(look)
    }

    /// At most `len` bytes (64 KiB) from byte `at` on, fewer at the end of the file.
    pub(super) fn read(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let len = len.min(HEAD_LEN).min(self.len.saturating_sub(at));
        let mut buf = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        let mut filled = 0;
        while filled < buf.len() {
            let from = at.saturating_add(filled as u64);
            match self.file.read_at(&mut buf[filled..], from) {
                Ok(0) => break,
                Ok(len) => filled += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buf.truncate(filled);
        Ok(buf)
    }

    /// Whether the file has these bytes at this offset, which is in the head.
    pub(super) fn has(&self, at: usize, bytes: &[u8]) -> bool {
        self.head.get(at..).is_some_and(|rest| rest.starts_with(bytes))
    }

    /// The byte at an offset in the head.
    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.head.get(at).copied()
    }

    /// `N` bytes at an offset in the head.
    pub(super) fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.head.get(at..)?.first_chunk().copied()
    }

    /// Whether these bytes are anywhere in the head.
    pub(super) fn mentions(&self, bytes: &[u8]) -> bool {
        self.head.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Whether it has a boot sector (0x55 0xAA at its end) or a GPT header. If so, marks of a few bytes are chance.
    pub(super) fn starts_like_a_disk(&self) -> bool {
        self.has(510, b"\x55\xaa") || self.has(512, b"EFI PART") || self.has(4096, b"EFI PART")
    }

    /// The container, with the file's name in place of `{}` in the advice.
    pub(super) fn is(&self, what: &str, advice: &str) -> Container {
        Container::new(what, advice.replace("{}", &self.path.display().to_string()))
    }

    /// The first entry of the table whose mark is in the head.
    pub(super) fn first_of(&self, marks: &[Mark]) -> Option<Container> {
        let mark = marks.iter().find(|mark| self.has(mark.at, mark.bytes))?;
        Some(self.is(mark.what, mark.advice))
    }
}

/// A mark at a fixed place that is enough to recognise a format.
pub(super) struct Mark {
    at: usize,
    bytes: &'static [u8],
    what: &'static str,
    /// The advice; `{}` stands for the file.
    advice: &'static str,
}

pub(super) const fn mark(at: usize, bytes: &'static [u8], what: &'static str, advice: &'static str) -> Mark {
    Mark { at, bytes, what, advice }
}

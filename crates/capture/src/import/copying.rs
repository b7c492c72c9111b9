//! Copies existing content into a draft.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::ensure;
use library::Draft;
use library::manifest::Compressed;
use metainfo::{Geometry, PieceHash, PieceIndex};
use terminal::Progress;

use crate::pipeline::{Job, default_threads};
use crate::stored::{Compression, NewContent};

/// How existing content is copied.
#[derive(Clone, Copy)]
pub(super) struct HowToCopy<'a> {
    /// Hash everything and compare it.
    pub verify: bool,
    pub compression: Compression,
    pub stop: &'a AtomicBool,
}

/// Existing content that is copied into a draft.
pub(super) struct Copying<'a> {
    pub geometry: Geometry,
    /// The expected hash of each piece.
    pub hash_of: &'a dyn Fn(PieceIndex) -> PieceHash,
    /// Its source, for messages.
    pub from: &'a Path,
    pub how: HowToCopy<'a>,
}

impl Copying<'_> {
    /// Copies what `read` returns for a content offset and a buffer. Returns how it is stored, if not as it is.
    ///
    /// # Errors
    /// If reading or writing fails, or a piece has another hash.
    pub(super) fn run(
        self,
        draft: &Draft,
        read: impl Fn(u64, &mut [u8]) -> anyhow::Result<()> + Send + Sync,
    ) -> anyhow::Result<Option<Compressed>> {
        let Copying { geometry, hash_of, how: HowToCopy { verify, compression, stop }, .. } = self;
        let out = NewContent::create(draft, geometry, compression)?;
        let mut progress = Progress::new("importing", geometry.content_len());
        let job = Job { geometry, threads: default_threads(), out: Some(&out), stop, progress: &mut progress };
        let fill = |range: Range<u64>, buf: &mut [u8]| read(range.start, buf);
        if !verify {
            job.copy(fill)?;
            progress.finish();
            return out.finish();
        }
        let hashes = job.hash(fill)?;
        progress.finish();
        for piece in geometry.pieces() {
            let (is, should) = (hashes[piece.as_usize()], hash_of(piece));
            ensure!(
                is == should,
                "piece {piece} of {} hashes to {} and should to {}: it is damaged, copy it again",
                self.from.display(),
                hex(&is),
                hex(&should)
            );
        }
        out.finish()
    }
}

/// Lower-case hex.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

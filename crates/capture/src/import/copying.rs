//! Copies existing content into a draft.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::ensure;
use metainfo::{Geometry, PieceHash, PieceIndex};
use terminal::Progress;

use crate::content::Content;
use crate::pipeline::{Job, default_threads};

/// Existing content that is copied into a draft.
pub(super) struct Copying<'a> {
    pub geometry: Geometry,
    /// The expected hash of each piece, if that is to be checked.
    pub hash_of: Option<&'a dyn Fn(PieceIndex) -> PieceHash>,
    /// Its source, for messages.
    pub from: &'a Path,
    pub stop: &'a AtomicBool,
}

impl Copying<'_> {
    /// Copies what `read` returns for a content offset and a buffer.
    ///
    /// # Errors
    /// If reading or writing fails, or a piece has another hash.
    pub(super) fn run(
        self,
        content: &Path,
        read: impl Fn(u64, &mut [u8]) -> anyhow::Result<()> + Send + Sync,
    ) -> anyhow::Result<()> {
        let Copying { geometry, stop, .. } = self;
        let out = Content::create(content, geometry.content_len())?;
        let mut progress = Progress::new("importing", geometry.content_len());
        let job = Job { geometry, threads: default_threads(), out: Some(&out), stop, progress: &mut progress };
        let fill = |range: Range<u64>, buf: &mut [u8]| read(range.start, buf);
        let Some(hash_of) = self.hash_of else {
            job.copy(fill)?;
            progress.finish();
            return Ok(());
        };
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
        Ok(())
    }
}

/// Lower-case hex.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

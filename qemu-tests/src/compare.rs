//! Whether a disk became the image: every extent byte for byte, and nothing else changed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use layout::Layout;
use metainfo::Metainfo;

use crate::disk::Disk;

/// What the library knows about an image.
pub struct Image {
    /// Its torrent.
    pub meta: Metainfo,
    /// Where its content lives.
    pub layout: Layout,
}

impl Image {
    /// Reads an image's torrent from a library.
    ///
    /// # Errors
    /// If there is no such image, or it is not one.
    pub fn open(library: &Path, name: &str) -> Result<Image> {
        let path = library.join("images").join(name).join("image.torrent");
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let meta = Metainfo::parse(&bytes).with_context(|| format!("parsing {}", path.display()))?;
        let layout = Layout::new(&meta).context("reading the image's extents")?;
        Ok(Image { meta, layout })
    }

    /// Compares `target` with the disk the image was captured from, and what is between extents with nothing.
    ///
    /// # Errors
    /// The first byte that is not what it should be.
    pub fn compare(&self, golden: &Disk, target: &Disk) -> Result<()> {
        let (source, clone) = (golden.file()?, target.file()?);
        let mut ours = vec![0; 1 << 20];
        let mut theirs = ours.clone();
        let mut untouched_from = 0;
        for extent in self.layout.extents() {
            expect_untouched(target, untouched_from..extent.disk.0)?;
            untouched_from = extent.end();
            let mut at = extent.disk.0;
            while at < extent.end() {
                let len = usize::try_from((extent.end() - at).min(1 << 20))?;
                source.read_exact_at(&mut ours[..len], at).context("reading the golden disk")?;
                clone.read_exact_at(&mut theirs[..len], at).context("reading the clone")?;
                if let Some(i) = (0..len).find(|&i| ours[i] != theirs[i]) {
                    let name = target.path().display();
                    bail!("{name} differs from the golden disk at byte {} of the disk", at + i as u64);
                }
                at += len as u64;
            }
        }
        expect_untouched(target, untouched_from..target.len()?)
    }
}

fn expect_untouched(target: &Disk, range: std::ops::Range<u64>) -> Result<()> {
    match target.first_written_in(range)? {
        Some(at) => bail!("{} was written to outside of the image, at byte {at}", target.path().display()),
        None => Ok(()),
    }
}

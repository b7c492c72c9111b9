//! Checks whether a disk became the image: every extent byte for byte, and nothing else changed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use layout::parttable::TableKind;
use layout::parttable::adapt::{Wish, adapt};
use layout::parttable::stamp::{STAMP_LEN, Stamp};
use layout::{DiskOffset, Extent, Layout};
use metainfo::Metainfo;

use crate::disk::Disk;

/// Length of the part with the partition table and the boot code.
const HEAD: usize = 1 << 20;
/// Bytes compared at a time.
const STEP: usize = 1 << 20;

/// The library's data about an image.
pub struct Image {
    pub meta: Metainfo,
    /// Where its content lies on the disk.
    pub layout: Layout,
}

impl Image {
    /// Reads an image's torrent from a library.
    ///
    /// # Errors
    /// If there is no such image, or its torrent is not that of an image.
    pub fn open(library: &Path, name: &str) -> Result<Image> {
        let path = library.join("images").join(name).join("image.torrent");
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let meta = Metainfo::parse(&bytes).with_context(|| format!("parsing {}", path.display()))?;
        let layout = Layout::new(&meta).context("reading the image's extents")?;
        Ok(Image { meta, layout })
    }

    /// How many places on the disk the image has.
    pub fn places(&self) -> usize {
        self.layout.extents().len()
    }

    /// Compares `target` with the disk that the image was captured from, and checks that nothing was written between
    /// the extents.
    ///
    /// # Errors
    /// The first wrong byte.
    pub fn compare(&self, golden: &Disk, target: &Disk) -> Result<()> {
        let all = self.layout.extents();
        let (golden_len, target_len) = (golden.len()?, target.len()?);
        if golden_len == target_len || self.layout.table() != TableKind::Gpt {
            return compare_extents(all, golden, target);
        }
        // On a larger disk, the table differs, and there is no backup at the image's end.
        let mut head = vec![0; HEAD];
        golden.file()?.read_exact_at(&mut head, 0).context("reading the golden disk")?;
        let sector_size = self.layout.sector_size().context("a GPT counts in sectors")?;
        let fitted = adapt(&head, TableKind::Gpt, sector_size, golden_len, target_len, &Wish::default())
            .context("fitting the golden disk's table to the target")?;
        let (at, tail) = fitted.tail.context("a larger disk has its backup table elsewhere")?;
        for (at, wanted) in [(0, fitted.head), (at.0, tail)] {
            let mut found = vec![0; wanted.len()];
            target.file()?.read_exact_at(&mut found, at).context("reading the clone")?;
            ensure!(found == wanted, "{} has a table that does not fit it", target.path().display());
        }
        let stale = fitted.stale;
        let kept =
            |extent: &&Extent| extent.disk.0 >= HEAD as u64 && !stale.is_some_and(|stale| stale.contains(extent.disk));
        let mut extents: Vec<Extent> = all.iter().filter(kept).copied().collect();
        // The parts in the table's own extents have already been compared.
        let in_head = all.iter().filter(|extent| extent.disk.0 < HEAD as u64);
        extents.extend(in_head.filter_map(|extent| {
            let len = extent.end().0.checked_sub(HEAD as u64).filter(|&len| len > 0)?;
            Some(Extent { disk: DiskOffset(HEAD as u64), len })
        }));
        extents.sort_unstable_by_key(|extent| extent.disk);
        compare_between(&extents, golden, target, HEAD as u64..at.0)
    }
}

fn compare_extents(extents: &[Extent], golden: &Disk, target: &Disk) -> Result<()> {
    compare_between(extents, golden, target, 0..target.len()?)
}

fn compare_between(extents: &[Extent], golden: &Disk, target: &Disk, range: std::ops::Range<u64>) -> Result<()> {
    let (source, clone) = (golden.file()?, target.file()?);
    let mut ours = vec![0; STEP];
    let mut theirs = ours.clone();
    let mut untouched_from = range.start;
    for extent in extents {
        expect_untouched(target, untouched_from..extent.disk.0)?;
        untouched_from = extent.end().0;
        let mut at = extent.disk.0;
        while at < extent.end().0 {
            let len = usize::try_from((extent.end().0 - at).min(STEP as u64))?;
            source.read_exact_at(&mut ours[..len], at).context("reading the golden disk")?;
            clone.read_exact_at(&mut theirs[..len], at).context("reading the clone")?;
            if let Some(i) = (0..len).find(|&i| ours[i] != theirs[i]) {
                let name = target.path().display();
                bail!("{name} differs from the golden disk at byte {} of the disk", at + i as u64);
            }
            at += len as u64;
        }
    }
    expect_untouched(target, untouched_from..range.end)
}

/// Nothing but the stamp of a finished disk may be there.
fn expect_untouched(target: &Disk, mut range: std::ops::Range<u64>) -> Result<()> {
    while let Some(at) = target.first_written_in(range.clone())? {
        let sector = DiskOffset(at / 512 * 512);
        let mut record = [0; STAMP_LEN];
        target.file()?.read_exact_at(&mut record, sector.0).context("reading the clone")?;
        if Stamp::from_record(&record, sector, target.len()?).is_none() {
            bail!("{} was written to outside of the image, at byte {at}", target.path().display());
        }
        range.start = sector.0 + 512;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::random_bytes;

    #[test]
    fn one_flipped_byte_is_found_inside_and_outside_of_the_extents() {
        let path = |name: &str| std::env::temp_dir().join(format!("ezio-compare-{}-{name}", std::process::id()));
        let golden = Disk::blank(&path("golden"), 4 << 20).expect("a disk");
        let target = Disk::patterned(&path("target"), 5 << 20).expect("a larger disk");
        let extents = [(0, 4096), (1 << 20, 1_500_000)].map(|(at, len)| Extent { disk: DiskOffset(at), len });
        for extent in &extents {
            let bytes = random_bytes(7, usize::try_from(extent.len).expect("small"));
            for disk in [&golden, &target] {
                disk.file().expect("open").write_all_at(&bytes, extent.disk.0).expect("written");
            }
        }
        compare_extents(&extents, &golden, &target).expect("equal");
        let file = target.file().expect("open");
        for (at, words) in
            [(4095, "differs"), ((1 << 20) + 1_499_999, "differs"), (4096, "outside"), ((5 << 20) - 1, "outside")]
        {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("read");
            file.write_all_at(&[byte[0] ^ 1], at).expect("flipped");
            let error = compare_extents(&extents, &golden, &target).expect_err("one byte differs").to_string();
            assert!(error.contains(words) && error.contains(&format!("at byte {at}")), "{at}: {error}");
            file.write_all_at(&byte, at).expect("restored");
        }
        compare_extents(&extents, &golden, &target).expect("equal again");
        [golden, target].iter().for_each(|disk| std::fs::remove_file(disk.path()).expect("removed"));
    }
}

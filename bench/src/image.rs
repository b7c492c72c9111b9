//! The image that is distributed, and its comparison with the received data.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use metainfo::{FileEntry, Infohash, Metainfo, NewTorrent, PieceHash};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use sha1::{Digest, Sha1};

/// `info.name`, and so the directory that stock clients write to.
pub const NAME: &str = "sda1";
/// Number of extents, as in a used file system: more than the 300 with which the other figures were measured.
const EXTENTS: usize = 320;
/// Alignment of extents in bytes, like that of file system blocks.
const ALIGN: u64 = 4096;
/// Largest gap between extents, in units of [`ALIGN`].
const GAP_MAX: u64 = 64;
/// Bytes that are read and compared at a time. It is small, because a child's peak memory starts at its parent's.
const CHUNK: usize = 1 << 20;

/// Incompressible content in extents, as one flat file and as files named by their offsets.
pub struct Image {
    dir: PathBuf,
    /// Length of the content in bytes.
    pub len: u64,
    piece_len: u32,
    extents: Vec<Extent>,
    hashes: Vec<PieceHash>,
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    disk: u64,
    content: u64,
    len: u64,
}

/// The form in which a receiver wrote the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A sparse file, every byte at its offset on the disk.
    Disk,
    /// A directory with one file per extent, named by its offset.
    Files,
    /// The content in one file.
    Flat,
}

impl Image {
    /// Makes the content, `len` bytes, in `dir`.
    ///
    /// # Errors
    /// If it cannot be written, or is too short for its extents.
    pub fn make(dir: &Path, len: u64, piece_len: u32, seed: u64) -> Result<Image> {
        let mut rng = StdRng::seed_from_u64(seed);
        let extents = cut(len, &mut rng)?;
        std::fs::create_dir_all(dir.join("files").join(NAME)).context("making the image's directory")?;
        let mut image = Image { dir: dir.into(), len, piece_len, extents, hashes: Vec::new() };
        image.write_content(&mut rng).context("writing the image")?;
        Ok(image)
    }

    fn write_content(&mut self, rng: &mut StdRng) -> Result<()> {
        let mut flat = BufWriter::new(File::create(self.flat())?);
        let mut chunk = vec![0; CHUNK];
        let (mut hasher, mut in_piece) = (Sha1::new(), 0);
        let piece_len = usize::try_from(self.piece_len)?;
        for extent in &self.extents {
            let mut file = File::create(self.files().join(NAME).join(name_of(extent)))?;
            let mut left = usize::try_from(extent.len)?;
            while left > 0 {
                let now = left.min(CHUNK).min(piece_len - in_piece);
                let data = &mut chunk[..now];
                rng.fill_bytes(data);
                flat.write_all(data)?;
                file.write_all(data)?;
                hasher.update(&*data);
                left -= now;
                in_piece += now;
                if in_piece == piece_len {
                    self.hashes.push(std::mem::take(&mut hasher).finalize().into());
                    in_piece = 0;
                }
            }
        }
        if in_piece > 0 {
            self.hashes.push(hasher.finalize().into());
        }
        flat.flush()?;
        Ok(())
    }

    /// The content in one file.
    pub fn flat(&self) -> PathBuf {
        self.dir.join("flat")
    }

    /// The directory in which a stock client finds the torrent's files under the torrent's name.
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    /// Writes the torrent with the tracker's URL to `path`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_torrent(&self, announce: &str, path: &Path) -> Result<Infohash> {
        let bytes = NewTorrent {
            name: NAME.into(),
            announce: Some(announce.into()),
            piece_len: self.piece_len,
            files: self.extents.iter().map(|e| FileEntry { length: e.len, path: vec![name_of(e)] }).collect(),
            hashes: self.hashes.clone(),
            facts: None,
            // This lets stock clients exchange peers, which is their best case.
            private: false,
        }
        .to_bytes()
        .context("making the torrent")?;
        std::fs::write(path, &bytes).with_context(|| format!("writing {}", path.display()))?;
        Ok(Metainfo::parse(&bytes).context("reading the torrent")?.infohash)
    }

    /// Compares every byte that a receiver wrote to `path` with the content.
    ///
    /// # Errors
    /// The first place that differs.
    pub fn compare(&self, shape: Shape, path: &Path) -> Result<()> {
        let flat = File::open(self.flat()).context("opening the image")?;
        let mut theirs = Copy::open(shape, path);
        let (mut want, mut got) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut disk_end = 0;
        for extent in &self.extents {
            let (file, start) = theirs.place(extent)?;
            if shape == Shape::Disk {
                ensure_zeroes(file, disk_end..extent.disk, &mut got)?;
                disk_end = extent.disk + extent.len;
            }
            if shape == Shape::Files {
                let len = file.metadata().context("asking for a file's length")?.len();
                ensure!(len == extent.len, "extent {} has {len} bytes, not {}", name_of(extent), extent.len);
            }
            let mut done = 0;
            while done < extent.len {
                let now = usize::try_from(extent.len - done)?.min(CHUNK);
                let (want, got) = (&mut want[..now], &mut got[..now]);
                flat.read_exact_at(want, extent.content + done).context("reading the image")?;
                let at = start + done;
                file.read_exact_at(got, at).with_context(|| format!("reading {} at {at}", path.display()))?;
                if let Some(place) = want.iter().zip(&*got).position(|(a, b)| a != b) {
                    let content = extent.content + done + u64::try_from(place)?;
                    bail!("{} differs from the image at content offset {content}", path.display());
                }
                done += u64::try_from(now)?;
            }
        }
        if shape != Shape::Files {
            let len = path.metadata().context("asking for a file's length")?.len();
            let wanted = if shape == Shape::Flat { self.len } else { disk_end };
            ensure!(len == wanted, "{} has {len} bytes, not {wanted}", path.display());
        }
        Ok(())
    }

    /// Flips one bit of a copy at a random place, and makes sure that [`Image::compare`] notices.
    ///
    /// # Errors
    /// If it does not.
    pub fn compare_notices_a_flipped_bit(&self, shape: Shape, path: &Path, seed: u64) -> Result<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        let extent = self.extents[rng.random_range(0..self.extents.len())];
        let mut copy = Copy::open(shape, path);
        let (file, start) = copy.place(&extent)?;
        let at = start + rng.random_range(0..extent.len);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).context("reading the byte to flip")?;
        file.write_all_at(&[byte[0] ^ 1 << rng.random_range(0..8)], at).context("flipping a bit")?;
        ensure!(self.compare(shape, path).is_err(), "the comparison did not notice a flipped bit at {at}");
        file.write_all_at(&byte, at).context("flipping a bit back")
    }
}

/// A receiver's copy; the file in use is kept open.
struct Copy<'a> {
    shape: Shape,
    path: &'a Path,
    open: Option<File>,
}

impl Copy<'_> {
    fn open(shape: Shape, path: &Path) -> Copy<'_> {
        Copy { shape, path, open: None }
    }

    /// The file that holds an extent, and the extent's offset in it.
    fn place(&mut self, extent: &Extent) -> Result<(&File, u64)> {
        let (path, start) = match self.shape {
            Shape::Disk => (self.path.to_owned(), extent.disk),
            Shape::Flat => (self.path.to_owned(), extent.content),
            Shape::Files => (self.path.join(NAME).join(name_of(extent)), 0),
        };
        if self.open.is_none() || self.shape == Shape::Files {
            let file = File::options().read(true).write(true).open(&path);
            self.open = Some(file.with_context(|| format!("opening {}", path.display()))?);
        }
        Ok((self.open.as_ref().expect("opened above"), start))
    }
}

fn ensure_zeroes(file: &File, range: std::ops::Range<u64>, buf: &mut [u8]) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let now = usize::try_from(range.end - at)?.min(buf.len());
        file.read_exact_at(&mut buf[..now], at).context("reading between two extents")?;
        ensure!(buf[..now].iter().all(|&byte| byte == 0), "something was written outside the extents, near {at}");
        at += u64::try_from(now)?;
    }
    Ok(())
}

/// Random lengths and gaps; the lengths add up to `len`.
fn cut(len: u64, rng: &mut StdRng) -> Result<Vec<Extent>> {
    let blocks = len / ALIGN;
    ensure!(len.is_multiple_of(ALIGN) && blocks > 2 * EXTENTS as u64, "an image of {len} bytes is too small");
    let mut ends = std::collections::BTreeSet::from([blocks]);
    while ends.len() < EXTENTS {
        ends.insert(rng.random_range(1..blocks));
    }
    let (mut content, mut disk) = (0, 0);
    let mut extents = Vec::with_capacity(ends.len());
    for end in ends {
        disk += rng.random_range(1..=GAP_MAX) * ALIGN;
        let len = end * ALIGN - content;
        extents.push(Extent { disk, content, len });
        content += len;
        disk += len;
    }
    Ok(extents)
}

/// The name that partclone gives the file.
fn name_of(extent: &Extent) -> String {
    format!("{:032x}", extent.disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(image: &Image, shape: Shape, to: &Path) {
        let flat = std::fs::read(image.flat()).expect("just made");
        match shape {
            Shape::Flat => std::fs::write(to, flat).expect("room"),
            Shape::Files => {
                std::fs::create_dir_all(to.join(NAME)).expect("room");
                for extent in &image.extents {
                    let name = name_of(extent);
                    let from = image.files().join(NAME).join(&name);
                    std::fs::copy(from, to.join(NAME).join(name)).expect("just made");
                }
            }
            Shape::Disk => {
                let disk = File::create(to).expect("room");
                for extent in &image.extents {
                    let range = usize::try_from(extent.content).expect("small");
                    let data = &flat[range..range + usize::try_from(extent.len).expect("small")];
                    disk.write_all_at(data, extent.disk).expect("room");
                }
            }
        }
    }

    #[test]
    fn comparison_takes_what_is_right_and_notices_one_bit() {
        let dir = tempfile::tempdir().expect("a place");
        let image = Image::make(&dir.path().join("image"), 8 << 20, 1 << 18, 7).expect("room");
        for shape in [Shape::Disk, Shape::Files, Shape::Flat] {
            let to = dir.path().join(format!("{shape:?}"));
            copy(&image, shape, &to);
            image.compare(shape, &to).expect("the same");
            for seed in 0..20 {
                image.compare_notices_a_flipped_bit(shape, &to, seed).expect("noticed");
            }
            image.compare(shape, &to).expect("the same again");
        }
    }

    #[test]
    fn comparison_notices_what_is_missing_or_too_much() {
        let dir = tempfile::tempdir().expect("a place");
        let image = Image::make(&dir.path().join("image"), 8 << 20, 1 << 18, 8).expect("room");
        let to = dir.path().join("disk");
        copy(&image, Shape::Disk, &to);
        let disk = File::options().write(true).open(&to).expect("there");
        disk.write_all_at(&[1], 0).expect("room");
        assert!(image.compare(Shape::Disk, &to).is_err(), "a byte before the first extent");
        disk.write_all_at(&[0], 0).expect("room");
        disk.set_len(image.extents[EXTENTS - 1].disk).expect("room");
        assert!(image.compare(Shape::Disk, &to).is_err(), "cut off");

        let to = dir.path().join("files");
        copy(&image, Shape::Files, &to);
        std::fs::remove_file(to.join(NAME).join(name_of(&image.extents[3]))).expect("there");
        assert!(image.compare(Shape::Files, &to).is_err(), "a file is missing");
    }

    #[test]
    fn extents_are_many_aligned_and_add_up() {
        let extents = cut(256 << 20, &mut StdRng::seed_from_u64(1)).expect("large enough");
        assert!(extents.len() >= 300);
        assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), 256 << 20);
        assert!(extents.iter().all(|e| e.disk % ALIGN == 0 && e.len % ALIGN == 0 && e.len > 0));
        assert!(extents.windows(2).all(|pair| pair[0].disk + pair[0].len < pair[1].disk));
    }
}

//! One image: torrent, manifest and content, checked against each other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use layout::Layout;
use metainfo::{Metainfo, TORRENT_LEN_MAX};

use crate::manifest::Manifest;
use crate::regular::{open_own, read_own};

/// The file with the content as it is.
pub(crate) const CONTENT: &str = "content";
/// The file with the content compressed. Another name, so that nothing takes it for plain bytes.
pub(crate) const COMPRESSED: &str = "content.zst";
/// Longest image name: it becomes a directory, a TFTP path and a line on a screen.
const NAME_LEN_MAX: usize = 64;
/// Largest manifest read, in bytes.
const MANIFEST_LEN_MAX: u64 = 16 << 20;

/// An image that has been checked: torrent, manifest and the length of the content agree. Whether the source of a live
/// image is there shows when it is opened.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name in the library.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// The torrent, parsed.
    pub meta: Arc<Metainfo>,
    /// Where its content lives on a disk.
    pub layout: Layout,
    /// The torrent as it is handed out.
    pub torrent_bytes: Bytes,
    /// The rest of what is known.
    pub manifest: Manifest,
}

impl Image {
    /// The file that holds the content: every extent's bytes, in order, as they are or compressed. A live image has none.
    pub fn content_path(&self) -> PathBuf {
        self.dir.join(content_name(&self.manifest))
    }

    /// Length of that file in bytes; 0 for a live image.
    pub fn stored_len(&self) -> u64 {
        match (&self.manifest.live, &self.manifest.compressed) {
            (Some(_), _) => 0,
            (None, Some(compressed)) => compressed.stored_len,
            (None, None) => self.layout.content_len(),
        }
    }

    /// How many times longer the content is than the file that holds it; a live image has none.
    pub fn ratio(&self) -> Option<f64> {
        let stored_len = self.stored_len();
        (stored_len > 0).then(|| self.layout.content_len() as f64 / stored_len as f64)
    }
}

/// What the file with the content is called.
pub(crate) fn content_name(manifest: &Manifest) -> &'static str {
    if manifest.compressed.is_some() { COMPRESSED } else { CONTENT }
}

/// Whether `name` can be an image's.
///
/// # Errors
/// What names have to look like.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let is_good = (1..=NAME_LEN_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    ensure!(
        is_good,
        "{name:?} cannot be an image's name: use 1 to {NAME_LEN_MAX} of A-Z a-z 0-9 . _ - and no dot in front"
    );
    Ok(())
}

/// Reads and checks the image in a directory.
///
/// # Errors
/// If a file is missing or damaged, or they do not belong together.
pub(crate) fn load(name: &str, dir: PathBuf) -> anyhow::Result<Image> {
    let torrent_bytes = Bytes::from(read_own(&dir.join("image.torrent"), TORRENT_LEN_MAX)?);
    let meta = Metainfo::parse(&torrent_bytes).context("reading image.torrent")?;
    let layout = Layout::new(&meta).context("reading image.torrent")?;
    let manifest = read_own(&dir.join("manifest.json"), MANIFEST_LEN_MAX)?;
    let manifest = Manifest::parse(&manifest).context("reading manifest.json")?;
    if manifest.infohash != meta.infohash.to_string() {
        bail!("manifest.json belongs to infohash {}, image.torrent is {}", manifest.infohash, meta.infohash);
    }
    let image = Image { name: name.to_owned(), dir, meta: Arc::new(meta), layout, torrent_bytes, manifest };
    if image.manifest.live.is_none() {
        check_content(&image.content_path(), image.stored_len())?;
    }
    Ok(image)
}

fn check_content(content: &Path, wanted: u64) -> anyhow::Result<()> {
    let found = open_own(content).and_then(|file| Ok(file.metadata()?.len()));
    let found = found.with_context(|| format!("opening {}", content.display()))?;
    ensure!(
        found == wanted,
        "{} has {found} bytes instead of {wanted}: the image is damaged, so remove it and capture it again",
        content.display(),
    );
    Ok(())
}

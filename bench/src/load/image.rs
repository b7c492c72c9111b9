//! A library with one small image, and a boot directory; both made up.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use metainfo::{FileEntry, ImageFacts, Infohash, Metainfo, NewTorrent, TableKind};
use sha1::{Digest, Sha1};

/// Name of the image.
pub const IMAGE: &str = "golden";
/// Its content, in bytes.
pub const CONTENT_LEN: usize = 1 << 20;
const PIECE_LEN: usize = 256 << 10;
/// Names of boot files, and their lengths in bytes: about those of a real boot directory.
pub const BOOT_FILES: [(&str, usize); 4] =
    [(BIOS_LOADER, 72_000), (UEFI_LOADER, 280_000), ("vmlinuz", 8 << 20), ("initrd.img", 24 << 20)];
pub const BIOS_LOADER: &str = "undionly.kpxe";
pub const UEFI_LOADER: &str = "snponly.efi";

/// Makes `boot` in a directory.
///
/// # Errors
/// If it cannot be written.
pub fn make_boot_dir(dir: &Path) -> Result<()> {
    let dir = dir.join("boot");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    for (name, len) in BOOT_FILES {
        fs::write(dir.join(name), bytes(len)).with_context(|| format!("writing {name} in {}", dir.display()))?;
    }
    Ok(())
}

/// Makes a library with [`IMAGE`], and gives the image's infohash.
///
/// # Errors
/// If it cannot be written.
pub fn make_library(library: &Path) -> Result<Infohash> {
    let dir = library.join("images").join(IMAGE);
    let writing = || format!("making the image in {}", dir.display());
    fs::create_dir_all(&dir).with_context(writing)?;
    let (content, disk_size) = (bytes(CONTENT_LEN), 2u64 << 30);
    let torrent = NewTorrent {
        name: "root".into(),
        announce: None,
        piece_len: PIECE_LEN as u32,
        files: vec![FileEntry { length: CONTENT_LEN as u64, path: vec![format!("{:032x}", 0)] }],
        hashes: content.chunks(PIECE_LEN).map(|piece| Sha1::digest(piece).into()).collect(),
        facts: Some(ImageFacts {
            schema: 1,
            disk_size,
            sector_size: 512,
            table: TableKind::try_from("mbr".to_owned()).context("naming the kind of partition table")?,
            ..ImageFacts::default()
        }),
        private: true,
    };
    let torrent = torrent.to_bytes().context("making the torrent")?;
    let infohash = Metainfo::parse(&torrent).context("reading the torrent back")?.infohash;
    let manifest = serde_json::json!({
        "schema": 1, "disk_size": disk_size, "sector_size": 512, "table": "mbr", "partitions": [],
        "content_len": CONTENT_LEN, "infohash": infohash.to_string(), "extent_count": 1,
        "origin": { "at": 0, "how": "bench", "source": "bench" },
    });
    fs::write(dir.join("content"), &content).with_context(writing)?;
    fs::write(dir.join("image.torrent"), torrent).with_context(writing)?;
    fs::write(dir.join("manifest.json"), manifest.to_string()).with_context(writing)?;
    Ok(infohash)
}

/// Bytes that do not repeat soon.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
}

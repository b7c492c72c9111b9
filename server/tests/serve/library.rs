//! Images for the library, made by hand.

use std::fs;

use metainfo::{FileEntry, ImageFacts, Metainfo, NewTorrent};
use sha1::{Digest, Sha1};

use crate::lan::Lan;
use crate::process;

/// Length of a piece.
const PIECE_LEN: usize = 64 << 10;

/// Puts an image of a disk with `len` bytes of content there, and gives its content and its torrent.
pub fn add_image(lan: &Lan, name: &str, len: usize) -> (Vec<u8>, Metainfo) {
    add(lan, name, len, "mbr")
}

/// The same of a single partition.
pub fn add_partition_image(lan: &Lan, name: &str) {
    add(lan, name, 300_000, "none");
}

fn add(lan: &Lan, name: &str, len: usize, table: &str) -> (Vec<u8>, Metainfo) {
    let dir = process::library(lan).join("images").join(name);
    fs::create_dir_all(&dir).expect("made");
    let seed = name.bytes().fold(1usize, |seed, byte| seed * 31 + usize::from(byte));
    let content: Vec<u8> = (0..len).map(|index| (index.wrapping_mul(seed) >> 8) as u8).collect();
    let first = len / 2 / 512 * 512;
    let torrent = NewTorrent {
        name: "root".into(),
        announce: None,
        piece_len: PIECE_LEN as u32,
        files: vec![
            FileEntry { length: first as u64, path: vec![format!("{:032x}", 0)] },
            FileEntry { length: (len - first) as u64, path: vec![format!("{:032x}", 1 << 30)] },
        ],
        hashes: content.chunks(PIECE_LEN).map(|piece| Sha1::digest(piece).into()).collect(),
        facts: Some(ImageFacts {
            schema: 1,
            disk_size: 2 << 30,
            sector_size: 512,
            table: metainfo::TableKind::try_from(table.to_owned()).expect("a kind of table"),
            ..ImageFacts::default()
        }),
        private: true,
    };
    let torrent = torrent.to_bytes().expect("a sound torrent");
    let meta = Metainfo::parse(&torrent).expect("a sound torrent");
    let manifest = serde_json::json!({
        "schema": 1, "disk_size": 2u64 << 30, "sector_size": 512, "table": table, "partitions": [],
        "content_len": len, "infohash": meta.infohash.to_string(), "extent_count": 2,
        "origin": { "at": 0, "how": "test", "source": "test" },
    });
    fs::write(dir.join("content"), &content).expect("written");
    fs::write(dir.join("image.torrent"), torrent).expect("written");
    fs::write(dir.join("manifest.json"), manifest.to_string()).expect("written");
    (content, meta)
}

/// Cuts an image's content short, as a full disk would.
pub fn damage(lan: &Lan, name: &str) {
    let content = process::library(lan).join("images").join(name).join("content");
    fs::OpenOptions::new().write(true).open(content).and_then(|file| file.set_len(1000)).expect("cut");
}

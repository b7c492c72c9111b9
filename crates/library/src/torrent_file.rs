//! A `.torrent` with another announce URL, or none: `info` stays byte for byte what it was, and so does the infohash.

use std::ops::Range;

use anyhow::Context;
use bytes::Bytes;
use metainfo::bencode;

const TAIL: &[u8] = b"e";

/// The same torrent with only this announce URL; whatever else was outside `info` is left out.
///
/// # Errors
/// If it is not a torrent.
pub fn with_announce(torrent: &[u8], announce: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let (head, info) = head(torrent, announce)?;
    Ok([&head, &torrent[info], TAIL].concat())
}

/// The same in parts, without a copy of what is large.
///
/// # Errors
/// If it is not a torrent.
pub fn parts(torrent: &Bytes, announce: Option<&str>) -> anyhow::Result<[Bytes; 3]> {
    let (head, info) = head(torrent, announce)?;
    Ok([head.into(), torrent.slice(info), Bytes::from_static(TAIL)])
}

/// What comes before `info`, and where that is.
fn head(torrent: &[u8], announce: Option<&str>) -> anyhow::Result<(Vec<u8>, Range<usize>)> {
    let info = bencode::dict_value(torrent, b"info").context("reading the torrent")?;
    let info = info.context("not a torrent: it has no info dictionary")?;
    let announce = announce.map(|url| format!("8:announce{}:{url}", url.len())).unwrap_or_default();
    Ok((format!("d{announce}4:info").into_bytes(), info))
}

#[cfg(test)]
mod tests {
    use super::*;
    use metainfo::{FileEntry, Metainfo, NewTorrent};

    #[test]
    fn the_infohash_stays() {
        let torrent = NewTorrent {
            name: "root".into(),
            announce: Some("http://old/announce".into()),
            piece_len: 16384,
            files: vec![FileEntry { length: 5, path: vec!["0".into()] }],
            hashes: vec![[7; 20]],
            facts: None,
            private: true,
        };
        let bytes = torrent.to_bytes().expect("sane");
        let before = Metainfo::parse(&bytes).expect("own torrent");
        for announce in [Some("http://10.0.0.1:80/announce"), None] {
            let changed = with_announce(&bytes, announce).expect("a torrent");
            let after = Metainfo::parse(&changed).expect("still a torrent");
            assert_eq!(after.infohash, before.infohash);
            assert_eq!(after.announce.as_deref(), announce);
            assert!(after.private);
            assert_eq!(parts(&bytes.clone().into(), announce).expect("a torrent").concat(), changed);
        }
        assert!(with_announce(b"de", None).is_err());
        assert!(with_announce(b"<html>", None).is_err());
    }
}

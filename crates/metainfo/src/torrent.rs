//! The typed `.torrent` (BEP 3, version 1), with the image's facts inside `info`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha1::{Digest, Sha1};

use crate::bencode::{self, BencodeError};
use crate::geometry::{Geometry, MAX_PIECE_LEN, MIN_PIECE_LEN, PieceIndex};
use crate::table_kind::TableKind;
use crate::zeros::Zeros;

/// Largest torrent that is made, or accepted by machines, in bytes. 500,000 extents make 31 MB; the torrent has to fit
/// into a machine's memory.
pub const TORRENT_LEN_MAX: u64 = 128 << 20;

/// SHA-1 of one piece.
pub type PieceHash = [u8; 20];

/// SHA-1 over the bencoded `info` exactly as received: the torrent's identity on the wire (BEP 3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Infohash(pub [u8; 20]);

impl fmt::Display for Infohash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Infohash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Infohash {
    type Err = MetainfoError;

    /// Reads 40 hex digits.
    fn from_str(text: &str) -> Result<Infohash, MetainfoError> {
        let bytes = text.as_bytes();
        let mut hash = [0; 20];
        if bytes.len() != 40 || !bytes.iter().all(u8::is_ascii_hexdigit) {
            return Err(MetainfoError::Infohash);
        }
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).expect("hex digits are ASCII");
            *byte = u8::from_str_radix(pair, 16).expect("two hex digits");
        }
        Ok(Infohash(hash))
    }
}

/// One entry of `info.files`; for us an extent: the path is the offset on the disk in hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Length in bytes, never zero.
    pub length: u64,
    /// Path below the torrent's name, one component in an image.
    pub path: Vec<String>,
}

/// What `/init` has to know about an image that the list of files does not show. The key `ezio` in `info` holds it: the
/// infohash covers it, and stock clients ignore it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Version of this structure; 1.
    pub schema: u32,
    /// Size of the captured device in bytes.
    pub disk_size: u64,
    /// Its logical sector size in bytes.
    pub sector_size: u32,
    /// Its partition table; a device without one is usually a single partition.
    pub table: TableKind,
    /// `disk` for a whole disk without a partition table; empty if that is unknown, or if there is a table.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// Swap areas, which are recreated from a recipe instead of copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub swap: Vec<SwapFacts>,
    /// Stretches in use that hold zeros, which are recreated from a recipe instead of copied.
    #[serde(default, skip_serializing_if = "Zeros::is_empty")]
    pub zeros: Zeros,
}

/// Most swap areas of one image: as many as a GPT usually has entries.
const MAX_SWAPS: usize = 128;

/// A swap area, with enough data to recreate it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapFacts {
    /// Where it starts on the disk, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its page size in bytes.
    pub page_size: u32,
    /// Label, or empty.
    pub label: String,
    /// UUID in the usual form, or empty.
    pub uuid: String,
}

/// Why a torrent is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetainfoError {
    /// Not bencode at all: an HTML error page, a cut-off download.
    #[error("not a torrent: the bencode is broken")]
    Bencode(#[source] BencodeError),
    /// Bencode without the dictionary that makes a torrent.
    #[error("not a torrent: it has no info dictionary")]
    NoInfo,
    /// `info` is present but is not a dictionary.
    #[error("not a torrent: info is not a dictionary")]
    InfoKind,
    /// A torrent of BEP 52 only: it has hashes of files (SHA-256) but no `pieces`.
    #[error("this is a v2 torrent; EZIO reads v1 (and hybrid) torrents: make it again as one of these")]
    OnlyV2,
    /// A key of `info` is missing or of the wrong type.
    #[error("not a torrent: its info dictionary does not fit")]
    Shape(#[source] serde_bencode::Error),
    /// The piece length is not a power of two, or is out of bounds.
    #[error("piece length {0} is not a power of two from {MIN_PIECE_LEN} to {MAX_PIECE_LEN} bytes")]
    PieceLen(u64),
    /// `pieces` is not a whole number of SHA-1 hashes.
    #[error("the piece hashes are {0} bytes, not a multiple of 20")]
    PiecesLen(usize),
    /// There are more or fewer hashes than the lengths require.
    #[error("{hashes} piece hashes, but {content_len} bytes of content make {pieces} pieces")]
    PieceCount {
        /// Hashes present.
        hashes: usize,
        /// Pieces expected.
        pieces: u32,
        /// Sum of the files' lengths.
        content_len: u64,
    },
    /// A file is empty, the sum of the lengths overflows, or there is no file.
    #[error("file {0} of the torrent has an impossible length")]
    FileLen(usize),
    /// A single-file torrent, which names no disk offsets.
    #[error("this is a single-file torrent; an image has one file per extent, named by its offset on the disk")]
    SingleFile,
    /// More swap areas than a partition table holds.
    #[error("{0} swap areas; at most {MAX_SWAPS} are made")]
    Swaps(usize),
    /// Text that is not an infohash.
    #[error("an infohash is 40 hex digits")]
    Infohash,
}

/// A torrent that has been checked: lengths, hashes and geometry agree.
#[derive(Clone, Debug)]
pub struct Metainfo {
    /// `info.name`: a partition such as `sda1`, or `root`, or the image's name.
    pub name: String,
    /// SHA-1 of the `info` bytes.
    pub infohash: Infohash,
    /// Tracker URL; a hint only.
    pub announce: Option<String>,
    /// BEP 27.
    pub private: bool,
    /// Content length and piece length.
    pub geometry: Geometry,
    /// In content order.
    pub files: Vec<FileEntry>,
    /// Present in images made by `ezio capture`.
    pub facts: Option<ImageFacts>,
    hashes: Vec<u8>,
}

#[derive(Deserialize)]
struct RawInfo {
    name: String,
    #[serde(rename = "piece length")]
    piece_length: u64,
    pieces: ByteBuf,
    files: Option<Vec<FileEntry>>,
    #[serde(default)]
    private: u8,
    ezio: Option<ImageFacts>,
}

#[derive(Deserialize)]
struct RawTop {
    announce: Option<String>,
}

impl Metainfo {
    /// Parses and checks a `.torrent`.
    ///
    /// # Errors
    /// Anything that would make it unsafe to use later: broken bencode, missing keys, lengths and hashes that do not
    /// agree, zero lengths, sums past 64 bits. `layout` checks whether its files are extents of a disk.
    pub fn parse(bytes: &[u8]) -> Result<Metainfo, MetainfoError> {
        bencode::check(bytes).map_err(MetainfoError::Bencode)?;
        let info_bytes = info_bytes(bytes)?;
        let info: RawInfo = serde_bencode::from_bytes(info_bytes).map_err(MetainfoError::Shape)?;
        let top: RawTop = serde_bencode::from_bytes(bytes).map_err(MetainfoError::Shape)?;

        let files = info.files.ok_or(MetainfoError::SingleFile)?;
        let content_len = sum_of_lengths(&files)?;
        let piece_len = u32::try_from(info.piece_length).map_err(|_| MetainfoError::PieceLen(info.piece_length))?;
        let geometry = Geometry::new(content_len, piece_len).ok_or(MetainfoError::PieceLen(info.piece_length))?;
        let hashes = info.pieces.into_vec();
        if !hashes.len().is_multiple_of(20) {
            return Err(MetainfoError::PiecesLen(hashes.len()));
        }
        let pieces = geometry.piece_count();
        if u32::try_from(hashes.len() / 20) != Ok(pieces) {
            return Err(MetainfoError::PieceCount { hashes: hashes.len() / 20, pieces, content_len });
        }
        let swaps = info.ezio.as_ref().map_or(0, |facts| facts.swap.len());
        if swaps > MAX_SWAPS {
            return Err(MetainfoError::Swaps(swaps));
        }
        Ok(Metainfo {
            name: info.name,
            infohash: Infohash(Sha1::digest(info_bytes).into()),
            announce: top.announce,
            private: info.private == 1,
            geometry,
            files,
            facts: info.ezio,
            hashes,
        })
    }

    /// The hash that the piece's bytes must have.
    ///
    /// # Panics
    /// If the torrent has no such piece; a [`PieceIndex`] from the torrent's [`Geometry`] is always valid.
    pub fn piece_hash(&self, piece: PieceIndex) -> &PieceHash {
        let start = piece.as_usize() * 20;
        self.hashes[start..start + 20].try_into().expect("20 bytes")
    }

    /// Whether `data` matches this piece's hash in the torrent.
    pub fn piece_is_right(&self, piece: PieceIndex, data: &[u8]) -> bool {
        let hash: PieceHash = Sha1::digest(data).into();
        hash == *self.piece_hash(piece)
    }
}

/// The bytes of `info`: a dictionary that is not of version 2 only.
fn info_bytes(bytes: &[u8]) -> Result<&[u8], MetainfoError> {
    let is_dict = |value: &[u8]| value.first() == Some(&b'd');
    if !is_dict(bytes) {
        return Err(MetainfoError::NoInfo);
    }
    let range = bencode::dict_value(bytes, b"info").map_err(MetainfoError::Bencode)?.ok_or(MetainfoError::NoInfo)?;
    let info = &bytes[range];
    if !is_dict(info) {
        return Err(MetainfoError::InfoKind);
    }
    let has = |key: &[u8]| bencode::dict_value(info, key).map(|value| value.is_some()).map_err(MetainfoError::Bencode);
    // BEP 52: `meta version` and `file tree` are required; a hybrid torrent also has `pieces`.
    if !has(b"pieces")? && (has(b"meta version")? || has(b"file tree")?) {
        return Err(MetainfoError::OnlyV2);
    }
    Ok(info)
}

fn sum_of_lengths(files: &[FileEntry]) -> Result<u64, MetainfoError> {
    let mut sum: u64 = 0;
    for (index, file) in files.iter().enumerate() {
        if file.length == 0 {
            return Err(MetainfoError::FileLen(index));
        }
        sum = sum
            .checked_add(file.length)
            .filter(|&sum| i64::try_from(sum).is_ok())
            .ok_or(MetainfoError::FileLen(index))?;
    }
    if sum == 0 { Err(MetainfoError::FileLen(0)) } else { Ok(sum) }
}

/// The parts of a torrent that is about to be written.
#[derive(Clone, Debug)]
pub struct NewTorrent {
    /// `info.name`.
    pub name: String,
    /// Tracker URL, if one is known.
    pub announce: Option<String>,
    /// Piece length in bytes.
    pub piece_len: u32,
    /// Files in content order.
    pub files: Vec<FileEntry>,
    /// One hash per piece, in order.
    pub hashes: Vec<PieceHash>,
    /// The facts under the key `ezio` in `info`.
    pub facts: Option<ImageFacts>,
    /// BEP 27; images are private.
    pub private: bool,
}

#[derive(Serialize)]
struct RawNewInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    ezio: Option<ImageFacts>,
    files: Vec<FileEntry>,
    name: String,
    #[serde(rename = "piece length")]
    piece_length: u32,
    pieces: ByteBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    private: Option<u8>,
}

#[derive(Serialize)]
struct RawNewTop {
    #[serde(skip_serializing_if = "Option::is_none")]
    announce: Option<String>,
    #[serde(rename = "created by")]
    created_by: &'static str,
    info: RawNewInfo,
}

impl NewTorrent {
    /// The bencoded torrent. The same parts give the same bytes, so the same infohash.
    ///
    /// # Errors
    /// [`MetainfoError`] if [`Metainfo::parse`] would refuse the result.
    pub fn to_bytes(self) -> Result<Vec<u8>, MetainfoError> {
        let bytes = serde_bencode::to_bytes(&RawNewTop {
            announce: self.announce,
            created_by: concat!("ezio ", env!("CARGO_PKG_VERSION")),
            info: RawNewInfo {
                ezio: self.facts,
                files: self.files,
                name: self.name,
                piece_length: self.piece_len,
                pieces: ByteBuf::from(self.hashes.concat()),
                private: self.private.then_some(1),
            },
        })
        .map_err(MetainfoError::Shape)?;
        Metainfo::parse(&bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> NewTorrent {
        NewTorrent {
            name: "root".into(),
            announce: Some("http://10.0.0.1/announce".into()),
            piece_len: 16384,
            files: vec![
                FileEntry { length: 16384, path: vec!["00000000".into()] },
                FileEntry { length: 100, path: vec!["100000".into()] },
            ],
            hashes: vec![[1; 20], [2; 20]],
            facts: Some(ImageFacts {
                schema: 1,
                disk_size: 1 << 30,
                sector_size: 512,
                table: TableKind::Gpt,
                ..ImageFacts::default()
            }),
            private: true,
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let bytes = sample().to_bytes().expect("sane");
        let meta = Metainfo::parse(&bytes).expect("own torrent");
        assert_eq!(meta.name, "root");
        assert_eq!(meta.announce.as_deref(), Some("http://10.0.0.1/announce"));
        assert!(meta.private);
        assert_eq!(meta.geometry.piece_count(), 2);
        assert_eq!(meta.piece_hash(meta.geometry.piece(1).expect("the second of two")), &[2; 20]);
        assert_eq!(meta.facts, sample().facts);
        assert_eq!(bytes, sample().to_bytes().expect("sane"), "same parts, same bytes");
    }

    #[test]
    fn dictionaries_are_sorted_as_bep_3_asks() {
        let bytes = sample().to_bytes().expect("sane");
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<_> = ["4:ezio", "5:files", "4:name", "12:piece length", "6:pieces", "7:private"]
            .map(|key| text.find(key).expect(key))
            .into();
        assert!(places.is_sorted(), "{text}");
        assert!(text.find("9:disk_size") < text.find("6:schema"));
    }

    #[test]
    fn a_second_implementation_finds_the_same_infohash() {
        let bytes = sample().to_bytes().expect("sane");
        let theirs = librqbit_core::torrent_metainfo::torrent_from_bytes(&bytes).expect("librqbit reads it");
        assert_eq!(theirs.info_hash.0, Metainfo::parse(&bytes).expect("ours").infohash.0);
    }

    #[test]
    fn more_swap_areas_than_a_disk_has_are_refused() {
        let mut torrent = sample();
        torrent.facts.as_mut().expect("facts").swap = vec![SwapFacts::default(); MAX_SWAPS];
        assert!(torrent.clone().to_bytes().is_ok());
        torrent.facts.as_mut().expect("facts").swap.push(SwapFacts::default());
        // Every torrent that is written is parsed before it is returned.
        let refused = torrent.to_bytes().expect_err("too many");
        assert_eq!(refused.to_string(), "129 swap areas; at most 128 are made");
    }

    #[test]
    fn zeros_are_part_of_the_infohash_and_absent_if_there_are_none() {
        let plain = sample().to_bytes().expect("sane");
        assert!(!String::from_utf8_lossy(&plain).contains("zeros"));
        let mut torrent = sample();
        let range = 16 << 20..17 << 20;
        let zeros = Zeros::new(vec![range]).expect("sane");
        torrent.facts.as_mut().expect("facts").zeros = zeros.clone();
        let bytes = torrent.to_bytes().expect("sane");
        let meta = Metainfo::parse(&bytes).expect("own torrent");
        assert_eq!(meta.facts.expect("facts").zeros, zeros);
        assert_ne!(meta.infohash, Metainfo::parse(&plain).expect("own torrent").infohash);
        let at = bytes.windows(8).position(|window| window == b"5:zeros3").expect("the key");
        // A gap of 256 blocks takes two bytes, 16 blocks take one.
        assert_eq!(&bytes[at + 7..at + 12], b"3:\x80\x02\x10");
        let mut hostile = bytes.clone();
        hostile[at + 11] = 0;
        let error = Metainfo::parse(&hostile).expect_err("an empty range");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(cause.contains("range 0 of zeros cannot be"), "{cause}");
    }

    #[test]
    fn announce_does_not_change_the_infohash() {
        let moved = NewTorrent { announce: None, ..sample() };
        let infohash = |t: NewTorrent| Metainfo::parse(&t.to_bytes().expect("sane")).expect("sane").infohash;
        assert_eq!(infohash(moved), infohash(sample()));
    }

    #[test]
    fn hostile_torrents_are_refused() {
        let refused = |change: fn(&mut NewTorrent)| {
            let mut torrent = sample();
            change(&mut torrent);
            torrent.to_bytes().expect_err("hostile").to_string()
        };
        assert!(refused(|t| t.piece_len = 16385).contains("piece length 16385"));
        assert!(refused(|t| t.piece_len = 8192).contains("piece length 8192"));
        assert!(refused(|t| t.files[1].length = 0).contains("file 1"));
        assert!(refused(|t| t.files[1].length = 1 << 40).contains("2 piece hashes"));
        assert!(refused(|t| t.files.clear()).contains("file 0"));
        assert!(refused(|t| t.hashes.push([0; 20])).contains("3 piece hashes"));
        let overflowing = "d4:infod5:filesld6:lengthi9223372036854775807e4:pathl1:0eed6:lengthi9223372036854775807e\
                           4:pathl1:1eee4:name1:x12:piece lengthi16384e6:pieces0:ee";
        assert!(Metainfo::parse(overflowing.as_bytes()).is_err());
        let negative = "d4:infod5:filesld6:lengthi-5e4:pathl1:0eee4:name1:x12:piece lengthi16384e6:pieces0:ee";
        assert!(Metainfo::parse(negative.as_bytes()).is_err());
        assert!(matches!(Metainfo::parse(b"de"), Err(MetainfoError::NoInfo)));
        assert!(matches!(Metainfo::parse(b"<html>"), Err(MetainfoError::Bencode(_))));
        let single = "d4:infod6:lengthi5e4:name1:x12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee";
        assert!(matches!(Metainfo::parse(single.as_bytes()), Err(MetainfoError::SingleFile)));
    }

    #[test]
    fn torrents_of_version_2_are_named_and_hybrids_read() {
        let tree = "9:file treed1:xd0:d6:lengthi5e11:pieces root32:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaeee";
        let v2 = format!("d4:infod{tree}12:meta versioni2e4:name1:x12:piece lengthi16384ee12:piece layersdee");
        let error = Metainfo::parse(v2.as_bytes()).expect_err("no v1 hashes");
        assert!(matches!(error, MetainfoError::OnlyV2), "{error:?}");
        let words = error.to_string();
        assert!(words.contains("this is a v2 torrent; EZIO reads v1 (and hybrid) torrents"), "{words}");
        // One of the two keys is enough to recognise version 2.
        let damaged = format!("d4:infod{tree}4:name1:x12:piece lengthi16384eee");
        assert!(matches!(Metainfo::parse(damaged.as_bytes()), Err(MetainfoError::OnlyV2)));

        let v1 = "5:filesld6:lengthi5e4:pathl1:0eee";
        let hashes = "6:pieces20:aaaaaaaaaaaaaaaaaaaa";
        let rest = format!("12:meta versioni2e4:name1:x12:piece lengthi16384e{hashes}");
        let hybrid = format!("d4:infod{tree}{v1}{rest}e12:piece layersdee");
        let meta = Metainfo::parse(hybrid.as_bytes()).expect("a hybrid");
        assert_eq!((meta.geometry.content_len(), meta.geometry.piece_count()), (5, 1));
    }

    #[test]
    fn an_info_that_is_no_dictionary_is_called_so() {
        for info in ["5:hello", "i5e", "le", "l4:infoe"] {
            let error = Metainfo::parse(format!("d4:info{info}e").as_bytes()).expect_err(info);
            assert!(matches!(error, MetainfoError::InfoKind), "{info}: {error:?}");
            assert_eq!(error.to_string(), "not a torrent: info is not a dictionary", "{info}");
        }
        for other in ["le", "i1e", "4:info", "l4:infodee"] {
            let error = Metainfo::parse(other.as_bytes()).expect_err(other);
            assert!(matches!(error, MetainfoError::NoInfo), "{other}: {error:?}");
        }
        // It is neither version 1 nor version 2, so the error names what is missing.
        let error = Metainfo::parse(b"d4:infod4:name1:x12:piece lengthi16384eee").expect_err("no pieces");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(cause.contains("pieces"), "{cause}");
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = sample().to_bytes().expect("sane");
        for end in 0..bytes.len() {
            assert!(Metainfo::parse(&bytes[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn infohash_text_round_trips() {
        let hash: Infohash = "00112233445566778899aabbccddeeff00112233".parse().expect("40 digits");
        assert_eq!(hash.to_string(), "00112233445566778899aabbccddeeff00112233");
        for bad in ["", "00", "zz112233445566778899aabbccddeeff00112233", "éé112233445566778899aabbccddeeff001122"] {
            assert!(bad.parse::<Infohash>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn one_flipped_byte_never_panics(at in 0usize..300, byte in any::<u8>()) {
            let mut bytes = sample().to_bytes().expect("sane");
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Metainfo::parse(&bytes);
        }
    }
}

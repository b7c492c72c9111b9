//! A directory written by `partclone.<fs> -c -T` becomes an image of that partition.
//!
//! Such a directory holds one file per run of used blocks, named by its offset in hex and cut at partclone's buffer
//! size. Its `torrent.info` lists the runs too, and the SHA-1 of every 16 MiB of them.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use layout::{DiskOffset, Extent, Layout};
use metainfo::{Geometry, ImageFacts, Metainfo, PieceHash, PieceIndex, TableKind};

use super::copying::{Copying, HowToCopy};
use super::new_image::NewImage;
use crate::made_up::{DraftContent, identify};
use crate::torrent::torrent;
use library::Image;
use library::manifest::{Captured, Manifest, Origin, PartitionInfo, SCHEMA};
use library::regular;
use library::space::check_room;

/// Bytes that partclone hashes at a time; the file does not record this length.
const PIECE_LEN: u32 = 16 << 20;
/// Longest line of `torrent.info`, in bytes; real ones have 49.
const LINE_LEN_MAX: u64 = 256;
/// Sector size assumed for a partition, because the directory does not record it.
const SECTOR_SIZE: u32 = 512;

/// Imports `dir` as a new image.
///
/// # Errors
/// If the directory is incomplete, contradicts itself, or its bytes do not have the listed hashes.
pub(super) fn import(new: NewImage<'_>, dir: &Path, how: HowToCopy<'_>) -> anyhow::Result<Image> {
    let info_path = dir.join("torrent.info");
    let info = regular::open(&info_path).with_context(|| {
        format!("opening {}: give the directory that `partclone.<fs> -c -T -O` wrote", info_path.display())
    })?;
    let info = Info::parse(BufReader::new(info)).with_context(|| format!("reading {}", info_path.display()))?;
    let runs = Runs::open(dir, &info)?;
    let layout = Layout::of_extents(info.extents).with_context(|| format!("reading {}", info_path.display()))?;
    let content_len = layout.content_len();

    let draft = new.draft()?;
    check_room(new.library.dir(), content_len)?;
    let geometry = Geometry::new(content_len, PIECE_LEN).context("cutting the content into pieces")?;
    let hash_of = |piece: PieceIndex| info.hashes[piece.as_usize()];
    let copying = Copying { geometry, hash_of: &hash_of, from: dir, how };
    let compressed = copying.run(&draft, |at, buf| runs.read(at, buf))?;

    let facts = ImageFacts {
        schema: 1,
        disk_size: info.partition_len,
        sector_size: SECTOR_SIZE,
        table: TableKind::None,
        ..ImageFacts::default()
    };
    let torrent_bytes = torrent(&layout, PIECE_LEN, info.hashes, facts)?;
    let found = identify(DraftContent { draft: &draft, compressed }, &layout);
    let partition = PartitionInfo {
        length: info.partition_len,
        file_system: found.file_system,
        label: found.label,
        uuid: found.uuid,
        captured: Captured::UsedBlocks,
        captured_len: content_len,
        note: "imported from partclone".to_owned(),
        ..PartitionInfo::default()
    };
    let manifest = Manifest {
        schema: SCHEMA,
        disk_size: info.partition_len,
        sector_size: SECTOR_SIZE,
        table: TableKind::None,
        device: "partition".to_owned(),
        disk_id: String::new(),
        partitions: vec![partition],
        content_len,
        infohash: Metainfo::parse(&torrent_bytes).context("reading the new torrent")?.infohash.to_string(),
        extent_count: layout.extents().len() as u64,
        origin: Origin::now("import of a partclone BT directory", dir),
        ..Manifest::default()
    };
    draft.publish(&torrent_bytes, &manifest.stored(compressed))
}

/// The contents of `torrent.info`.
#[derive(Debug, PartialEq, Eq)]
struct Info {
    partition_len: u64,
    /// Ascending, disjoint, merged, inside the partition.
    extents: Vec<Extent>,
    hashes: Vec<PieceHash>,
}

impl Info {
    fn parse(mut text: impl BufRead) -> anyhow::Result<Info> {
        let (mut block_size, mut blocks_total, mut offset) = (None, None, None);
        let mut extents: Vec<Extent> = Vec::new();
        let mut hashes = Vec::new();
        let mut content_len: u64 = 0;
        let mut line = String::new();
        for number in 1.. {
            line.clear();
            if text.by_ref().take(LINE_LEN_MAX).read_line(&mut line)? == 0 {
                break;
            }
            let odd = || anyhow!("line {number} makes no sense: {:?}", line.trim_end());
            let Some((key, value)) = line.trim_end().split_once(": ") else {
                ensure!(line.trim().is_empty(), odd());
                continue;
            };
            match key {
                "block_size" => block_size = Some(value.parse::<u64>().map_err(|_| odd())?),
                "blocks_total" => blocks_total = Some(value.parse::<u64>().map_err(|_| odd())?),
                "offset" => offset = Some(hex_number(value).filter(|_| offset.is_none()).ok_or_else(odd)?),
                "length" => {
                    let run = offset.take().zip(hex_number(value)).ok_or_else(odd)?;
                    let end = run.0.checked_add(run.1).filter(|_| run.1 > 0).ok_or_else(odd)?;
                    push_coalesced(&mut extents, run.0..end).ok_or_else(odd)?;
                    content_len = content_len.checked_add(run.1).ok_or_else(odd)?;
                }
                "sha1" => hashes.push(value.parse::<metainfo::Infohash>().map_err(|_| odd())?.0),
                _ => return Err(odd()),
            }
        }
        let partition_len = block_size
            .zip(blocks_total)
            .and_then(|(size, count)| size.checked_mul(count))
            .context("it does not say block_size and blocks_total")?;
        ensure!(offset.is_none() && !extents.is_empty(), "it is cut off");
        let end = extents.last().map(Extent::end).unwrap_or_default().0;
        ensure!(end <= partition_len, "it has used blocks up to byte {end}, the partition has only {partition_len}");
        let pieces = content_len.div_ceil(u64::from(PIECE_LEN));
        ensure!(hashes.len() as u64 == pieces, "it has {} hashes for {pieces} pieces: it is cut off", hashes.len());
        Ok(Info { partition_len, extents, hashes })
    }
}

/// Adds a run that has to lie after all others.
fn push_coalesced(extents: &mut Vec<Extent>, run: Range<u64>) -> Option<()> {
    match extents.last_mut() {
        Some(last) if run.start < last.end().0 => return None,
        Some(last) if run.start == last.end().0 => last.len += run.end - run.start,
        _ => extents.push(Extent { disk: DiskOffset(run.start), len: run.end - run.start }),
    }
    Some(())
}

/// 1 to 32 hex digits that fit into 64 bits.
fn hex_number(text: &str) -> Option<u64> {
    let is_hex = (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u128::from_str_radix(text, 16).ok().and_then(|number| u64::try_from(number).ok()))?
}

/// The files of the directory, in content order.
struct Runs {
    files: Vec<RunFile>,
}

struct RunFile {
    path: PathBuf,
    /// Its offset in the content.
    content: u64,
    len: u64,
}

impl Runs {
    /// Lists the files and checks that together they are exactly the runs in `torrent.info`.
    fn open(dir: &Path, info: &Info) -> anyhow::Result<Runs> {
        let reading = || format!("reading {}", dir.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let name = entry.file_name();
            match name.to_str().and_then(hex_number) {
                Some(offset) => {
                    let len = entry.metadata().and_then(|found| regular::len(&found));
                    found.push((
                        offset,
                        len.with_context(|| format!("opening {}", entry.path().display()))?,
                        entry.path(),
                    ));
                }
                None if name == "torrent.info" => {}
                None => log::warn!("{} does not belong to a partclone image and is left out", entry.path().display()),
            }
        }
        found.sort_unstable();
        let (mut files, mut extents, mut content) = (Vec::with_capacity(found.len()), Vec::new(), 0);
        for (offset, len, path) in found {
            let run = offset.checked_add(len).filter(|_| len > 0).map(|end| offset..end);
            run.and_then(|run| push_coalesced(&mut extents, run))
                .with_context(|| format!("{} is empty or overlaps the file before it", path.display()))?;
            files.push(RunFile { path, content, len });
            content += len;
        }
        if extents != info.extents {
            let both = extents.iter().zip(&info.extents).find(|(is, should)| is != should);
            let place = both.map_or(content, |(is, should)| is.disk.0.min(should.disk.0));
            bail!(
                "the files in {} are not the runs that torrent.info lists (first difference near byte {place}): \
                 some are missing or cut off, copy the directory again",
                dir.display()
            );
        }
        Ok(Runs { files })
    }

    /// Fills `buf` with content from byte `at` on.
    fn read(&self, at: u64, buf: &mut [u8]) -> anyhow::Result<()> {
        let mut rest = buf;
        let mut at = at;
        let first = self.files.partition_point(|file| file.content + file.len <= at);
        for file in &self.files[first..] {
            if rest.is_empty() {
                break;
            }
            let skip = at - file.content;
            let len = usize::try_from(file.len - skip).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            regular::open(&file.path)
                .and_then(|open| open.read_exact_at(now, skip))
                .with_context(|| format!("reading {}", file.path.display()))?;
            at += u64::try_from(len)?;
            rest = later;
        }
        ensure!(rest.is_empty(), "the files end {} bytes early", rest.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "block_size: 4096\nblocks_total: 16\n\
        offset: 00000000000000000000000000000000\nlength: 00000000000000000000000000001000\n\
        offset: 00000000000000000000000000001000\nlength: 00000000000000000000000000001000\n\
        offset: 00000000000000000000000000004000\nlength: 00000000000000000000000000001000\n\
        sha1: 00112233445566778899aabbccddeeff00112233\n";

    fn parse(text: &str) -> anyhow::Result<Info> {
        Info::parse(text.as_bytes())
    }

    #[test]
    fn runs_that_touch_become_one_extent() {
        let info = parse(GOOD).expect("good");
        assert_eq!(info.partition_len, 65_536);
        let extents: Vec<_> = info.extents.iter().map(|extent| (extent.disk.0, extent.len)).collect();
        assert_eq!(extents, [(0, 8192), (16_384, 4096)]);
        assert_eq!(info.hashes[0][..2], [0x00, 0x11]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (from, to, why) in [
            ("blocks_total: 16", "blocks_total: 4", "partition has only"),
            ("blocks_total: 16\n", "", "does not say"),
            ("blocks_total: 16", "blocks_total: 99999999999999999999", "line 2"),
            ("block_size: 4096", "block_size: 9999999999999999999", "does not say"),
            ("sha1: 0", "sha1: g", "line 9"),
            ("sha1: 00112233445566778899aabbccddeeff00112233\n", "", "0 hashes for 1 pieces"),
            ("offset: 00000000000000000000000000004000", "offset: 0", "line 8"),
            ("offset: 00000000000000000000000000004000\n", "", "line 7"),
            ("length: 00000000000000000000000000001000\nsha1", "length: 0\nsha1", "line 8"),
            ("length: 00000000000000000000000000001000\nsha1", "length: ffffffffffffffff\nsha1", "line 8"),
            ("length: 00000000000000000000000000001000\nsha1", "length: ffffffffffffffffff\nsha1", "line 8"),
            ("length: 00000000000000000000000000001000\nsha1", "sha1", "cut off"),
            ("block_size", "rubbish", "line 1"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = parse(&GOOD.replace(from, to)).expect_err(to).to_string();
            assert!(error.contains(why), "{to}: {error}");
        }
        assert!(parse("").is_err());
    }

    proptest! {
        #[test]
        fn changed_lines_never_panic(at in 0usize..400, byte in 0u8..128, end in 0usize..400) {
            let mut text = GOOD.as_bytes().to_vec();
            let len = text.len();
            text[at % len] = byte;
            let _ = Info::parse(&text[..]);
            let _ = Info::parse(&text[..end.min(len)]);
        }
    }
}

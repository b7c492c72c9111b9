//! The manifest of an image whose torrent came without one.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use layout::Layout;
use library::Draft;
use library::content::ContentFile;
use library::manifest::{Captured, Compressed, Manifest, Origin, PartitionInfo, SCHEMA};
use metainfo::{ImageFacts, Metainfo, TableKind};

use crate::content::write_sparse;
use crate::probe::{Probe, probe};

/// Of compressed content, so much at either end of a file system is unpacked for `blkid`: it looks for superblocks in the first
/// MiB, and for what RAID and others have in the last.
const END_LEN: u64 = 16 << 20;

/// The finished content of a draft, and how it is stored.
#[derive(Clone, Copy, Debug)]
pub struct DraftContent<'a> {
    /// The draft.
    pub draft: &'a Draft,
    /// How its content is compressed; `None` if it is not.
    pub compressed: Option<Compressed>,
}

/// A manifest from the torrent's data; `how` and `source` say where the image comes from.
pub fn made_up(how: &str, meta: &Metainfo, layout: &Layout, content: DraftContent<'_>, source: &str) -> Manifest {
    let facts = meta.facts.clone().unwrap_or_else(|| ImageFacts {
        disk_size: layout.disk_size(),
        sector_size: 512,
        table: TableKind::None,
        ..ImageFacts::default()
    });
    let mut partitions = Vec::new();
    if facts.table == TableKind::None {
        let found = identify(content, layout);
        partitions.push(PartitionInfo {
            length: facts.disk_size,
            file_system: found.file_system,
            label: found.label,
            uuid: found.uuid,
            captured: Captured::UsedBlocks,
            captured_len: layout.content_len(),
            ..PartitionInfo::default()
        });
    }
    Manifest {
        schema: SCHEMA,
        disk_size: facts.disk_size,
        sector_size: facts.sector_size,
        table: facts.table,
        device: facts.device,
        disk_id: String::new(),
        partitions,
        content_len: layout.content_len(),
        infohash: meta.infohash.to_string(),
        extent_count: layout.extents().len() as u64,
        zeros_len: facts.zeros.len(),
        account: None,
        origin: Origin::now(how, Path::new(source)),
        ..Manifest::default()
    }
    .stored(content.compressed)
}

/// Identifies the file system in an image of a single partition, if its content shows it: the superblock is then in the
/// first extent, at the same place as on the partition. The result is empty if it cannot be identified.
pub(crate) fn identify(content: DraftContent<'_>, layout: &Layout) -> Probe {
    let Some(first) = layout.extents().first().filter(|first| first.disk.0 == 0) else { return Probe::default() };
    let found = match content.compressed {
        None => probe(&content.draft.content_path(), &(0..first.len)),
        Some(_) => probe_compressed(content.draft, layout.content_len(), first.len),
    };
    found.unwrap_or_default()
}

/// The same of compressed content: `blkid` gets a file with the ends of the file system, which goes with the draft's scratch.
fn probe_compressed(draft: &Draft, content_len: u64, len: u64) -> anyhow::Result<Probe> {
    let content = ContentFile::open_compressed(&draft.compressed_path(), content_len)?;
    let path = draft.scratch()?.join("ends");
    let ends = File::create_new(&path).and_then(|file| file.set_len(len).map(|()| file));
    let ends = ends.with_context(|| format!("making {}", path.display()))?;
    let mut buf = vec![0; 1 << 20];
    for range in [0..len.min(END_LEN), len.saturating_sub(END_LEN).max(END_LEN)..len] {
        let mut at = range.start;
        while at < range.end {
            let now = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(buf.len());
            content.read_exact_at(&mut buf[..now], at).context("reading the new content")?;
            write_sparse(&ends, &buf[..now], at).with_context(|| format!("writing {}", path.display()))?;
            at += now as u64;
        }
    }
    probe(&path, &(0..len))
}

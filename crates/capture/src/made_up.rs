//! The manifest of an image whose torrent came without one.

use std::path::Path;

use layout::Layout;
use library::manifest::{Captured, Manifest, Origin, PartitionInfo, SCHEMA};
use metainfo::{ImageFacts, Metainfo, TableKind};

use crate::probe::identify;

/// A manifest from the torrent's data; `how` and `source` say where the image comes from.
pub fn made_up(how: &str, meta: &Metainfo, layout: &Layout, content: &Path, source: &str) -> Manifest {
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
}

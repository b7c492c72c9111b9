//! The partition table of a source, and the sector size it counts in.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail};
use layout::parttable::{Partition, Table, TableError, TableKind, gpt_sector_sizes};

use crate::choices::Choices;
use crate::probe::probe;
use crate::source::Source;

/// The sector sizes of disks; an MBR does not record which one it uses.
const SECTOR_SIZES: [u32; 2] = [512, 4096];
/// Most partitions that are probed to find out whether a sector size makes sense.
const PARTITIONS_TRIED: usize = 16;
/// The advice if another sector size may help.
const NAME_IT: &str = "name the sector size of the disk with --sector-size 512 or --sector-size 4096";

/// Reads the table. If every byte is wanted, an unreadable table counts as none, with a warning.
///
/// # Errors
/// If the table cannot be trusted, or its sector size is unknown; the error says what to do.
pub(crate) fn read(source: &Source, choices: Choices) -> anyhow::Result<Table> {
    let found = sector_size(source, choices).and_then(|size| {
        let table = read_with(source, size);
        table.map_err(|error| {
            let hint = match error {
                TableError::NoGpt { .. } if choices.sector_size.is_none() => {
                    format!("repair it, or {NAME_IT}, or copy every byte with --whole")
                }
                _ => "or copy every byte, whatever the table says, with --whole".to_owned(),
            };
            anyhow::Error::new(error).context(format!("{hint}; what is wrong with it"))
        })
    });
    match found {
        Err(error) if choices.whole => {
            let sector_size = choices.sector_size.or(source.sector_size).unwrap_or(SECTOR_SIZES[0]);
            let warning = format!("its partition table is not read, every byte is copied as it is: {:#}", root(&error));
            Ok(Table {
                kind: TableKind::None,
                sector_size,
                disk_id: String::new(),
                partitions: Vec::new(),
                own: Vec::new(),
                warnings: vec![warning],
            })
        }
        found => found.with_context(|| format!("reading the partition table of {}", source.path.display())),
    }
}

/// The root cause.
fn root(error: &anyhow::Error) -> &dyn std::error::Error {
    match error.downcast_ref::<TableError>() {
        Some(error) => error,
        None => error.root_cause(),
    }
}

fn read_with(source: &Source, sector_size: u32) -> Result<Table, TableError> {
    let mut disk: &File = &source.file;
    Table::read(&mut disk, source.len, sector_size)
}

/// The sector size to read the table with. A disk has one. For a file, it is found by probing: by the place of its GPT
/// or, for an MBR, by the sector size with which partitions begin with file systems.
fn sector_size(source: &Source, choices: Choices) -> anyhow::Result<u32> {
    if let Some(named) = choices.sector_size {
        return Ok(named);
    }
    let mut disk: &File = &source.file;
    let with_gpt = gpt_sector_sizes(&mut disk, source.len)?;
    let usual = source.sector_size.unwrap_or(SECTOR_SIZES[0]);
    if source.sector_size.is_none() {
        let is_good = |size: &u32| read_with(source, *size).is_ok_and(|table| table.kind == TableKind::Gpt);
        let good: Vec<u32> = with_gpt.iter().copied().filter(is_good).collect();
        match good[..] {
            [only] => return Ok(only),
            [] if !with_gpt.is_empty() => return Ok(with_gpt[0]),
            [] => {}
            _ if choices.whole => return Ok(good[0]),
            _ => bail!("it has a GPT for sectors of {} and of {} bytes: {NAME_IT}", good[0], good[1]),
        }
    }
    if !read_with(source, usual).is_ok_and(|table| table.kind == TableKind::Mbr) || finds_something(source, usual)? {
        return Ok(usual);
    }
    let other = if usual == SECTOR_SIZES[0] { SECTOR_SIZES[1] } else { SECTOR_SIZES[0] };
    let other_fits = read_with(source, other).is_ok_and(|table| table.kind == TableKind::Mbr);
    if other_fits && finds_something(source, other)? {
        if source.sector_size.is_none() || choices.whole {
            return Ok(other);
        }
        bail!(
            "this disk has sectors of {usual} bytes, and its partitions begin where file systems are only with sectors of \
             {other}: {NAME_IT}, or copy every byte with --whole"
        );
    }
    // A disk has a known sector size, so its partitions just have unknown contents. A file has none.
    let has_partitions = read_with(source, usual).is_ok_and(|table| table.partitions.iter().any(|it| !it.is_extended));
    if source.sector_size.is_some() || choices.whole || !has_partitions {
        return Ok(usual);
    }
    bail!(
        "nothing known is in any of its partitions, neither with sectors of 512 bytes nor of 4096: {NAME_IT}, or copy every \
         byte with --whole"
    )
}

/// Whether any partition begins with known contents, with this sector size.
fn finds_something(source: &Source, sector_size: u32) -> anyhow::Result<bool> {
    let table = read_with(source, sector_size)?;
    for partition in table.partitions.iter().filter(|partition| !partition.is_extended).take(PARTITIONS_TRIED) {
        let place = partition.range();
        let found = match source.partition_file(place) {
            Some(path) => probe(path, &(0..partition.len))?,
            None if source.is_missing(place) => continue,
            None => probe(Path::new(&source.path), &place.bytes())?,
        };
        if !found.is_nothing() || has_disklabel(source, partition)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a BSD disklabel is in the partition's first or second sector; `blkid` alone does not report that. Source:
/// `sys/disklabel.h`, `DISKMAGIC`.
fn has_disklabel(source: &Source, partition: &Partition) -> anyhow::Result<bool> {
    const MAGIC: [u8; 4] = 0x8256_4557u32.to_le_bytes();
    let mut head = [0; 1024];
    if partition.len < 1024 {
        return Ok(false);
    }
    source.read_at(&mut head, partition.range().start)?;
    Ok([0, 64, 512].iter().any(|&at| head[at..].starts_with(&MAGIC)))
}

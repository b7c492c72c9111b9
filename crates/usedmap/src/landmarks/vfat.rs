//! FAT12, FAT16 and FAT32: finds the reserved sectors before the tables, and whether it was unmounted cleanly.
//!
//! ```text
//! boot sector: sector size u16 11 · sectors of a cluster u8 13 · reserved sectors u16 14 · tables u8 16 · root entries
//!              u16 17 · sectors u16 19 or u32 32 · sectors of a table u16 22 or, in FAT32, u32 36
//! ```
//!
//! Boot code, FAT32's sector of counts and its copy of the boot sector are in the reserved sectors. The counts may be
//! wrong, so they are not used. Source: Microsoft, "FAT: General Overview of On-Disk Format", 1.03.

use std::io::{Read, Seek};

use super::facts::{Landmarks, places};
use crate::used::UsedError;
use crate::volume::{Fields, Volume};

const ROOT_ENTRY_LEN: u64 = 32;
/// FAT16 has at least this many clusters.
const FAT16_CLUSTERS_MIN: u64 = 4085;
/// Bit of the second entry that a clean unmount sets.
const FAT16_CLEAN: u16 = 1 << 15;
const FAT32_CLEAN: u32 = 1 << 27;

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let bytes = volume.read(0, 512)?;
    let fields = Fields::little(&bytes);
    let [sector, reserved, root_entries] = [11, 14, 17].map(|at| u64::from(fields.u16(at)));
    let [per_cluster, tables] = [13, 16].map(|at: usize| u64::from(bytes[at]));
    let either = |short: usize, long: usize| match fields.u16(short) {
        0 => u64::from(fields.u32(long)),
        number => u64::from(number),
    };
    let (sectors, per_table) = (either(19, 32), either(22, 36));
    let is_fat32 = fields.u16(22) == 0;
    let data = reserved + tables * per_table + (root_entries * ROOT_ENTRY_LEN).div_ceil(sector.max(1));
    let is_good = (128..=4096).contains(&sector)
        && sector.is_power_of_two()
        && per_cluster.is_power_of_two()
        && [reserved, tables, per_table].iter().all(|number| *number > 0)
        && data < sectors;
    if !is_good {
        return Err(volume.damaged(format!(
            "{sectors} sectors of {sector} bytes, {per_cluster} in a cluster, {reserved} reserved, {tables} tables of \
             {per_table}"
        )));
    }
    let table = reserved * sector;
    let is_clean = if is_fat32 {
        Some(Fields::little(&volume.read(table + 4, 4)?).u32(0) & FAT32_CLEAN != 0)
    } else if (sectors - data) / per_cluster >= FAT16_CLUSTERS_MIN {
        Some(Fields::little(&volume.read(table + 2, 2)?).u16(0) & FAT16_CLEAN != 0)
    } else {
        None
    };
    let places = places(volume, table, None);
    Ok(Landmarks { len: Some(sectors * sector), places, is_clean, ..Landmarks::default() })
}

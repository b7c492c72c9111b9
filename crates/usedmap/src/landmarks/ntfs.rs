//! NTFS: finds the boot file at the start, and the copy of the boot sector after the last sector.
//!
//! ```text
//! boot sector: "NTFS    " at 3 · sector size u16 11 · sectors, without the copy, u64 40
//! ```
//!
//! Source: linux-ntfs documentation, `$Boot`.

use std::io::{Read, Seek};

use super::facts::{Landmarks, places};
use crate::used::UsedError;
use crate::volume::{Fields, Volume};

/// Length of `$Boot`, in bytes.
const BOOT_LEN: u64 = 8192;

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let bytes = volume.read(0, 512)?;
    let fields = Fields::little(&bytes);
    if &bytes[3..11] != b"NTFS    " {
        return Err(volume.damaged("it has no boot sector"));
    }
    let (sector, sectors) = (u64::from(fields.u16(11)), fields.u64(40));
    let is_good = (256..=4096).contains(&sector) && sector.is_power_of_two() && sectors > 0;
    let copy = sectors.checked_mul(sector).and_then(|start| Some(start..start.checked_add(sector)?));
    let Some(copy) = copy.filter(|_| is_good) else {
        return Err(volume.damaged(format!("{sectors} sectors of {sector} bytes")));
    };
    let len = Some(copy.end);
    // A tool that made it too long for its partition left out the copy.
    let copy = Some(copy).filter(|copy| copy.end <= volume.len());
    let places = places(volume, BOOT_LEN, copy);
    Ok(Landmarks { len, places, ..Landmarks::default() })
}

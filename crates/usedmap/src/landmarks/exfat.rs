//! exFAT: finds its two boot regions.
//!
//! ```text
//! main boot region and its backup, 12 sectors each · boot sector: "EXFAT   " at 3 · sectors u64 72 · sector 2^n u8 108
//! ```
//!
//! Source: Microsoft, "exFAT file system specification", section 3.

use std::io::{Read, Seek};

use super::facts::{Landmarks, places};
use crate::used::UsedError;
use crate::volume::{Fields, Volume};

const BOOT_REGIONS: u64 = 2 * 12;

pub(super) fn landmarks(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Landmarks, UsedError> {
    let bytes = volume.read(0, 512)?;
    let (sectors, shift) = (Fields::little(&bytes).u64(72), bytes[108]);
    if &bytes[3..11] != b"EXFAT   " {
        return Err(volume.damaged("it has no boot sector"));
    }
    let len = 1u64.checked_shl(shift.into()).and_then(|sector| sector.checked_mul(sectors));
    let Some(len) = len.filter(|_| (9..=12).contains(&shift) && sectors > BOOT_REGIONS) else {
        return Err(volume.damaged(format!("{sectors} sectors of 2^{shift} bytes")));
    };
    let places = places(volume, BOOT_REGIONS << shift, None);
    Ok(Landmarks { len: Some(len), places, ..Landmarks::default() })
}

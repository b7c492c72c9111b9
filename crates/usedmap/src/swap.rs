//! Swap space of Linux: only the page of its header is worth copying.
//!
//! ```text
//! header page of 4 to 64 KiB, as large as a page of the machine that made it; ends with "SWAPSPACE2" or "SWAP-SPACE"
//! version 1: 1024 bytes for a boot loader · version, last page, bad pages (u32 each) · UUID · name · list of bad pages
//! version 0: a bit for each page that may be used, from the first byte on
//! ```
//!
//! The byte order is the one in which the version is 1. For version 0, which no kernel since 2.5 accepts, only the
//! header is covered. A hibernated machine writes another signature, so its space does not count as swap space here.
//! Source: Linux, `include/linux/swap.h`, `union swap_header`.

use std::io::{Read, Seek};

use crate::ranges::Ranges;
use crate::used::{Used, UsedError};
use crate::volume::{Fields, Volume};

/// Sizes of a page, in bytes.
const PAGES: [u32; 5] = [4096, 8192, 16_384, 32_768, 65_536];
const SIGNATURE_LEN: usize = 10;
const VERSION_0: &[u8] = b"SWAP-SPACE";
const VERSION_1: &[u8] = b"SWAPSPACE2";
/// The place of the version 1 header, after the boot loader.
const HEADER: usize = 1024;
/// Where its list of bad pages starts, with four bytes each; the list ends at the signature.
const BAD_PAGES: usize = 1536;

/// The header pages with a signature, the smallest first.
fn header_pages(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Vec<(u32, Vec<u8>)>, UsedError> {
    let mut found = Vec::new();
    for page in PAGES {
        let Some(bytes) = volume.read_if_inside(0, page.into())? else { break };
        let signature = &bytes[bytes.len() - SIGNATURE_LEN..];
        if signature == VERSION_0 || signature == VERSION_1 {
            found.push((page, bytes));
        }
    }
    Ok(found)
}

pub(crate) fn detect(volume: &mut Volume<'_, impl Read + Seek>) -> Result<bool, UsedError> {
    Ok(!header_pages(volume)?.is_empty())
}

pub(crate) fn used(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Used, UsedError> {
    let found = header_pages(volume)?;
    let Some((_, largest)) = found.last() else {
        return Err(volume.damaged("it has no signature at the end of its first page"));
    };
    // A signature of another page size may be left from before. It ends the same header, which then means the same.
    let mut ranges = Ranges::new(volume.len());
    ranges.insert(0..largest.len() as u64);
    let mut first_error = None;
    for (page, bytes) in &found {
        match pages(bytes) {
            Ok(count) => {
                let spans = count.saturating_mul(u64::from(*page)).min(volume.len());
                let notes = volume.take_notes();
                return Ok(Used { ranges: ranges.finish(), spans, block_size: *page, is_clean: None, notes });
            }
            Err(what) => first_error = first_error.or(Some(what)),
        }
    }
    Err(volume.damaged(first_error.unwrap_or_default()))
}

/// How many pages a header covers, including itself, or which of its values makes no sense.
fn pages(header: &[u8]) -> Result<u64, String> {
    if header.ends_with(VERSION_0) {
        return Ok(1);
    }
    let orders = [false, true].map(|is_big_endian| Fields::new(header, is_big_endian));
    let Some(fields) = orders.into_iter().find(|fields| fields.u32(HEADER) == 1) else {
        return Err(format!("its header is of version {}", orders[0].u32(HEADER)));
    };
    let (last, bad) = (u64::from(fields.u32(HEADER + 4)), u64::from(fields.u32(HEADER + 8)));
    let bad_max = ((header.len() - SIGNATURE_LEN - BAD_PAGES) / 4) as u64;
    if last == 0 || bad >= last || bad > bad_max {
        return Err(format!("its last page is {last}, and {bad} are bad"));
    }
    Ok(last + 1)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use std::io::Cursor;

    use super::*;

    const LEN: u64 = 1 << 20;

    fn read(bytes: &[u8]) -> Result<Used, UsedError> {
        used(&mut Volume::new(&mut Cursor::new(bytes), bytes.len() as u64, "swap"))
    }

    /// A version 1 space with this page size, with its numbers in this byte order.
    fn space(page: usize, fields: [u32; 3], is_big_endian: bool) -> Vec<u8> {
        let mut bytes = vec![0xa5; LEN as usize];
        for (at, field) in (HEADER..).step_by(4).zip(fields) {
            let field = if is_big_endian { field.to_be_bytes() } else { field.to_le_bytes() };
            bytes[at..at + 4].copy_from_slice(&field);
        }
        bytes[page - SIGNATURE_LEN..page].copy_from_slice(VERSION_1);
        bytes
    }

    #[test]
    fn only_the_header_is_used() {
        for page in PAGES {
            for is_big_endian in [false, true] {
                let size = page as usize;
                let used = read(&space(size, [1, 9, 2], is_big_endian)).expect("a good header");
                assert_eq!((&used.ranges[..], used.block_size), (&[0..u64::from(page)][..], page));
                assert_eq!((used.spans, used.is_clean), (u64::from(page) * 10, None));
                let used = read(&space(size, [1, u32::MAX, 0], is_big_endian)).expect("a good header");
                assert_eq!((used.spans, used.len()), (LEN, page.into()), "it ends with the volume");
            }
        }
    }

    #[test]
    fn of_version_0_only_the_header_is_spoken_for() {
        let mut bytes = vec![0xff; LEN as usize];
        bytes[4086..4096].copy_from_slice(VERSION_0);
        let used = read(&bytes).expect("a good header");
        assert_eq!((used.ranges, used.spans), (vec![0..4096], 4096));
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        for fields in [[0, 9, 0], [2, 9, 0], [1, 0, 0], [1, 9, 9], [1, 9, u32::MAX], [1, 9000, 638]] {
            assert!(matches!(read(&space(4096, fields, false)), Err(UsedError::Damaged { .. })), "{fields:?}");
        }
        assert!(read(&space(4096, [1, 9000, 637], false)).is_ok(), "as many bad pages as there is room for");
        let good = space(4096, [1, 9, 0], false);
        for bytes in [&[][..], &good[..4095], &good[4096..], &space(4090, [1, 9, 0], false)] {
            assert!(matches!(read(bytes), Err(UsedError::Damaged { .. })), "{} bytes", bytes.len());
        }
        assert!(read(&good[..4096]).is_ok_and(|used| used.spans == 4096), "cut off behind its header");
    }

    #[test]
    fn what_is_left_of_another_signature_is_copied_too() {
        let mut bytes = space(4096, [1, 100, 0], false);
        bytes[65_526..65_536].copy_from_slice(VERSION_1);
        let used = read(&bytes).expect("a good header");
        assert_eq!((used.ranges, used.spans, used.block_size), (vec![0..65_536], 101 * 4096, 4096));
    }
}

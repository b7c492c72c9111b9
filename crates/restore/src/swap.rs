//! Swap areas: made again from their recipe, since their content is worth nothing.

use std::io;

use layout::{DiskOffset, Layout};
use metainfo::SwapFacts;

/// Where the header page of a swap area belongs on the disk, and its bytes: version 1 (`include/linux/swap.h`, `union
/// swap_header`): at byte 1024 the version, the last page and the count of bad pages, then UUID and label; the magic
/// `SWAPSPACE2` ends the page.
///
/// # Errors
/// A recipe that makes no sense.
pub fn swap_page(swap: &SwapFacts) -> Result<(DiskOffset, Vec<u8>), String> {
    Ok((DiskOffset(swap.offset), header_page(swap)?))
}

/// Checks a recipe before anything is written: it makes sense, lies on the device, and overwrites nothing of the image.
///
/// # Errors
/// What is wrong with it.
pub fn check_swap(swap: &SwapFacts, layout: &Layout, device_len: u64) -> io::Result<()> {
    header_page(swap).map_err(io::Error::other)?;
    let end = swap.offset.checked_add(swap.length).filter(|&end| end <= device_len);
    let end =
        end.ok_or_else(|| io::Error::other(format!("the swap area at {} does not lie on the disk", swap.offset)))?;
    let extents = layout.extents();
    let next = extents.partition_point(|extent| extent.end().0 <= swap.offset);
    if extents.get(next).is_some_and(|extent| extent.disk.0 < end) {
        return Err(io::Error::other(format!("the swap area at {} lies on top of the image's content", swap.offset)));
    }
    Ok(())
}

fn header_page(swap: &SwapFacts) -> Result<Vec<u8>, String> {
    let page_size = swap.page_size;
    if !(4096..=65536).contains(&page_size) || !page_size.is_power_of_two() {
        return Err(format!("the swap area at {} has pages of {page_size} bytes", swap.offset));
    }
    let pages = swap.length / u64::from(page_size);
    let last_page = pages.checked_sub(1).and_then(|last| u32::try_from(last).ok()).filter(|&last| last > 0);
    let last_page = last_page.ok_or_else(|| format!("a swap area of {} bytes cannot be made", swap.length))?;
    let mut page = vec![0; usize::try_from(page_size).expect("at most 65536")];
    page[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    page[1028..1032].copy_from_slice(&last_page.to_le_bytes());
    page[1036..1052].copy_from_slice(&uuid_bytes(&swap.uuid)?);
    let label = swap.label.as_bytes();
    let label = &label[..label.len().min(15)];
    page[1052..1052 + label.len()].copy_from_slice(label);
    let magic_at = page.len() - 10;
    page[magic_at..].copy_from_slice(b"SWAPSPACE2");
    Ok(page)
}

fn uuid_bytes(text: &str) -> Result<[u8; 16], String> {
    let digits: String = text.chars().filter(|&c| c != '-').collect();
    if digits.is_empty() {
        return Ok([0; 16]);
    }
    let value = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32);
    value.map(u128::to_be_bytes).ok_or_else(|| format!("{text:?} is not the UUID of a swap area"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> SwapFacts {
        SwapFacts {
            offset: 1 << 20,
            length: 8 << 20,
            page_size: 4096,
            label: "swap".into(),
            uuid: "6ba7b810-9dad-11d1-80b4-00c04fd430c8".into(),
        }
    }

    #[test]
    fn a_header_is_what_mkswap_writes() {
        let page = header_page(&recipe()).expect("sane");
        assert_eq!(page.len(), 4096);
        assert_eq!(&page[4086..], b"SWAPSPACE2");
        assert_eq!(page[1028..1032], 2047u32.to_le_bytes());
        assert_eq!(page[1036..1040], [0x6b, 0xa7, 0xb8, 0x10]);
        assert_eq!(&page[1052..1057], b"swap\0");
    }

    #[test]
    fn senseless_recipes_are_errors() {
        for change in [
            |swap: &mut SwapFacts| swap.page_size = 0,
            |swap: &mut SwapFacts| swap.page_size = 5000,
            |swap: &mut SwapFacts| swap.length = 4096,
            |swap: &mut SwapFacts| swap.length = u64::MAX,
            |swap: &mut SwapFacts| swap.uuid = "not a uuid".into(),
        ] {
            let mut swap = recipe();
            change(&mut swap);
            assert!(header_page(&swap).is_err(), "{swap:?}");
        }
    }
}

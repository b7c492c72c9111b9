//! Landmarks: what a file system records about itself, for checking and completing a map of its used blocks that
//! another program made.
//!
//! A program that maps used blocks may err: partclone 0.3.23 leaves out parts of btrfs's trees and their second copies.
//! No map includes the space before or after the blocks of a file system, and a map that broke off looks like that of
//! an empty volume. The landmarks are a few numbers from superblocks, so reading them takes no time; only for btrfs are
//! whole trees read.

mod apfs;
mod btrfs;
mod exfat;
mod ext;
mod f2fs;
mod facts;
mod hfsplus;
mod minix;
mod ntfs;
mod reiser4;
mod vfat;
mod xfs;

use std::io::{Read, Seek};

pub use self::facts::{Landmarks, Mirror};
use crate::used::UsedError;
use crate::volume::Volume;

/// The file systems with landmarks, named as in `blkid`.
const KINDS: [&str; 13] =
    ["apfs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfsplus", "minix", "ntfs", "reiser4", "vfat", "xfs"];

/// The landmarks of a file system, named as in `blkid`, on a volume of `len` bytes. An unknown name has none.
///
/// # Errors
/// If the volume cannot be read, makes no sense, or has a feature that is not known here. The caller then copies all of
/// it.
pub fn landmarks(file_system: &str, source: &mut (impl Read + Seek), len: u64) -> Result<Landmarks, UsedError> {
    let Some(kind) = KINDS.into_iter().find(|kind| *kind == file_system) else { return Ok(Landmarks::default()) };
    let mut volume = Volume::new(source, len, kind);
    match kind {
        "apfs" => apfs::landmarks(&mut volume),
        "btrfs" => btrfs::landmarks(&mut volume),
        "exfat" => exfat::landmarks(&mut volume),
        "ext2" | "ext3" | "ext4" => ext::landmarks(&mut volume),
        "f2fs" => f2fs::landmarks(&mut volume),
        "hfsplus" => hfsplus::landmarks(&mut volume),
        "minix" => minix::landmarks(&mut volume),
        "ntfs" => ntfs::landmarks(&mut volume),
        "reiser4" => reiser4::landmarks(&mut volume),
        "vfat" => vfat::landmarks(&mut volume),
        "xfs" => xfs::landmarks(&mut volume),
        _ => Ok(Landmarks::default()),
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use std::io::Cursor;
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;
    use crate::ranges::Ranges;

    fn two_mirrors() -> Landmarks {
        let mirrors = [vec![100, 300], vec![400, 600, 500]].map(|copies| Mirror { copies, len: 50 });
        Landmarks { places: vec![0..10, 320..330], mirrors: mirrors.into(), ..Landmarks::default() }
    }

    #[test]
    fn what_is_used_in_one_copy_is_used_in_all() {
        let complete = |ranges: &[Range<u64>]| two_mirrors().complete(ranges.to_vec());
        assert_eq!(complete(&[]), [0..10, 120..130, 320..330], "a place in a mirror");
        assert_eq!(complete(&[90..105]), [0..10, 90..105, 120..130, 300..305, 320..330], "in front of it is no mirror");
        assert_eq!(complete(&[340..360]), [0..10, 120..130, 140..150, 320..330, 340..360]);
        assert_eq!(complete(&[500..502]), [0..10, 120..130, 320..330, 400..402, 500..502, 600..602]);
        assert_eq!(complete(&[0..1000]), [0..1000]);
        let ends = Mirror { copies: vec![u64::MAX, 0], len: u64::MAX };
        let landmarks = Landmarks { mirrors: vec![ends], ..Landmarks::default() };
        assert_eq!(landmarks.complete(vec![5..6]), [5..6], "numbers that no volume has");
    }

    #[test]
    fn unknown_names_have_none() {
        for name in ["", "zfs", "swap", "jfs", "nilfs2", "reiserfs", "ufs", "LVM2_member"] {
            let found = landmarks(name, &mut Cursor::new([0xff; 100]), 100).expect("nothing is read");
            assert_eq!(found, Landmarks::default());
        }
    }

    proptest! {
        #[test]
        fn completing_twice_adds_nothing(parts in proptest::collection::vec((0u64..700, 1u64..30), 0..20)) {
            let mut ranges = Ranges::new(700);
            parts.iter().for_each(|&(start, len)| ranges.insert(start..start + len));
            let (ranges, landmarks) = (ranges.finish(), two_mirrors());
            let once = landmarks.complete(ranges.clone());
            let is_in = |all: &[Range<u64>], byte| all.iter().any(|range| range.contains(&byte));
            for byte in 0..700u64 {
                let of = landmarks.mirrors.iter().find_map(|mirror| {
                    let copy = mirror.copies.iter().find(|copy| (**copy..**copy + 50).contains(&byte))?;
                    Some(mirror.copies.iter().map(|other| other + byte - copy).collect::<Vec<_>>())
                });
                let mut same = of.unwrap_or_else(|| vec![byte]).into_iter();
                let wanted = same.any(|byte| is_in(&ranges, byte) || is_in(&landmarks.places, byte));
                prop_assert_eq!(is_in(&once, byte), wanted, "byte {}", byte);
            }
            prop_assert_eq!(landmarks.complete(once.clone()), once);
        }
    }
}

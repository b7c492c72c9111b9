//! The superblock.

use std::io::{Read, Seek};
use std::ops::Range;

use crate::used::UsedError;
use crate::volume::{Fields, Volume, crc32c};

pub(super) const SUPERBLOCK: u64 = 64 << 10;

pub(super) const SUPERBLOCK_LEN: u64 = 4096;

const MAGIC: &[u8] = b"_BHRfS_M";

/// In a superblock and in a node.
pub(super) const FSID: Range<usize> = 0x20..0x30;

/// Where the superblock has the nodes' file system id, if the id was changed later.
const METADATA_FSID: Range<usize> = 0x23b..0x24b;

const HAS_METADATA_FSID: u64 = 0x400;

/// Features that change nothing in the parts read here: all except zones, extent tree v2, stripe tree and remapping.
const FEATURES_KNOWN: u64 = 0x1_0fff;

const CSUM_IS_CRC32C: u16 = 0;

/// The important fields of a superblock.
pub(super) struct Superblock {
    pub(super) bytes: Vec<u8>,
    pub(super) node_size: u64,
    pub(super) device: u64,
    pub(super) device_len: u64,
    pub(super) used: u64,
}

impl Superblock {
    pub(super) fn read(volume: &mut Volume<'_, impl Read + Seek>) -> Result<Superblock, UsedError> {
        let bytes = volume.read(SUPERBLOCK, SUPERBLOCK_LEN)?;
        let fields = Fields::little(&bytes);
        if &bytes[0x40..0x48] != MAGIC || fields.u64(0x30) != SUPERBLOCK {
            return Err(volume.damaged("it has no superblock"));
        }
        let features = fields.u64(0xbc);
        if features & !FEATURES_KNOWN != 0 {
            return Err(volume.unsupported(format!("features {features:#x}")));
        }
        let node_size = u64::from(fields.u32(0x94));
        let (device, device_len, used) = (fields.u64(0xc9), fields.u64(0xd1), fields.u64(0x78));
        if !(4096..=65_536).contains(&node_size) || !node_size.is_power_of_two() || device_len <= SUPERBLOCK {
            return Err(volume.damaged(format!("nodes of {node_size} bytes on a device of {device_len}")));
        }
        let superblock = Superblock { bytes, node_size, device, device_len, used };
        if !superblock.is_sum_good(&superblock.bytes) {
            return Err(volume.damaged("its superblock fails its checksum"));
        }
        Ok(superblock)
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        Fields::little(&self.bytes)
    }

    /// Whether the checksum of a superblock or node matches, if its kind of checksum is known here.
    pub(super) fn is_sum_good(&self, block: &[u8]) -> bool {
        self.fields().u16(0xc4) != CSUM_IS_CRC32C || !crc32c(!0, &block[FSID.start..]) == Fields::little(block).u32(0)
    }

    /// The file system id in nodes.
    pub(super) fn fsid(&self) -> &[u8] {
        let is_changed = self.fields().u64(0xbc) & HAS_METADATA_FSID != 0;
        &self.bytes[if is_changed { METADATA_FSID } else { FSID }]
    }

    pub(super) fn has_log(&self) -> bool {
        self.fields().u64(0x60) != 0
    }
}

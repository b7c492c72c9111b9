//! Tests of the parts without I/O, over many inputs: wire, picker, super-seeding, tracker, announce replies.

mod owners;
mod picker;
mod super_seeding;
mod tracker;
mod wire;

use metainfo::{Geometry, PieceIndex};

/// The piece with this number, of a torrent that has more pieces.
fn piece(index: u32) -> PieceIndex {
    let geometry = Geometry::new(1 << 30, 16384).expect("sane");
    geometry.piece(index).expect("one of thousands")
}

//! Images and partitions in a line each, for people.

use crate::image::Image;
use crate::manifest::{Captured, PartitionInfo};

/// An image in one line: sizes, extents, pieces, infohash.
pub fn summary(image: &Image) -> String {
    let geometry = image.meta.geometry;
    let zeros = match image.manifest.zeros_len {
        0 => String::new(),
        len => format!(" ({} of zeros left out)", units::size(len)),
    };
    format!(
        "{}: {} in use{zeros} of {}, {}, {} of {}, infohash {}",
        image.name,
        units::size(image.layout.content_len()),
        units::size(image.manifest.disk_size),
        units::count(image.layout.extents().len(), "extent"),
        units::count(geometry.piece_count(), "piece"),
        units::size(u64::from(geometry.piece_len())),
        image.meta.infohash
    )
}

/// How an image's content is stored: its plain size, its size in the library, and how many times that is less.
pub fn stored(image: &Image) -> String {
    let plain = units::size(image.layout.content_len());
    match (&image.manifest.compressed, image.ratio()) {
        (Some(compressed), Some(ratio)) => format!(
            "{plain} stored compressed in {}, k {ratio:.1} (zstd, frames of {})",
            units::size(compressed.stored_len),
            units::size(u64::from(compressed.frame_len))
        ),
        (None, Some(_)) => format!("{plain} stored uncompressed"),
        (_, None) => format!("{plain} on the disk that was captured"),
    }
}

/// A partition in one line: where, what, and what became of it.
pub fn partition_line(partition: &PartitionInfo) -> String {
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    let how = match partition.captured {
        Captured::UsedBlocks => format!("{} in use", units::size(partition.captured_len)),
        Captured::Whole => "copied whole".to_owned(),
        Captured::Recipe => "made again from a recipe, not copied".to_owned(),
        Captured::Missing => "left out".to_owned(),
        Captured::Container => "holds the logical partitions".to_owned(),
    };
    let mut line = format!(
        "  {:>3}  at {:>11}  {:>11}  {:<22} {:<10} {how}",
        partition.number,
        units::size(partition.start),
        units::size(partition.length),
        or(&partition.type_name, &or(&partition.type_id, "-")),
        or(&partition.file_system, "-"),
    );
    for (name, value) in [("label", &partition.label), ("uuid", &partition.uuid), ("", &partition.note)] {
        if !value.is_empty() {
            line += &format!(", {name}{}{value}", if name.is_empty() { "" } else { " " });
        }
    }
    line
}

//! `ezio image list`: what there is, how large it is, and what it costs.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use library::unfinished::{Unfinished, len_on_disk};
use library::{Image, ImageEntry, Library};
use metainfo::TableKind;

/// What `--json` prints. Sizes are in bytes.
#[derive(Debug, Serialize)]
struct List {
    images: Vec<Row>,
    totals: Sizes,
    unfinished: Vec<Pull>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    #[serde(flatten)]
    about: About,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum About {
    Good(Box<Good>),
    Damaged { error: String, library_len: u64 },
}

#[derive(Debug, Serialize)]
struct Good {
    #[serde(flatten)]
    sizes: Sizes,
    table: TableKind,
    infohash: String,
    /// Seconds since 1970.
    made_at: u64,
    made_on: String,
    how: String,
    /// The disk that it is seeded from, if it has no content of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<String>,
    #[serde(skip)]
    made_at_text: String,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Sizes {
    /// What machines fetch and write.
    content_len: u64,
    /// The file that holds it, which may be compressed.
    stored_len: u64,
    /// How many times longer the content is than that file, to one digit; none if there is no such file.
    k: Option<f64>,
    /// What the image takes in the library: less where its content is zero.
    library_len: u64,
    /// The disk it was made of.
    disk_len: u64,
    /// Of that disk, what was not copied, in percent.
    saved_percent: f64,
}

#[derive(Debug, Serialize)]
struct Pull {
    source: String,
    infohash: String,
    len: u64,
    is_busy: bool,
}

impl Sizes {
    /// `in_files` is what of the content is in files of these lengths together, because a live image's is not.
    fn new(content_len: u64, in_files: u64, stored_len: u64, library_len: u64, disk_len: u64) -> Sizes {
        let k = (stored_len > 0).then(|| (10.0 * in_files as f64 / stored_len as f64).round() / 10.0);
        let copied = if disk_len == 0 { 1.0 } else { content_len as f64 / disk_len as f64 };
        let saved_percent = (1000.0 * (1.0 - copied.min(1.0))).round() / 10.0;
        Sizes { content_len, stored_len, k, library_len, disk_len, saved_percent }
    }

    fn of(image: &Image) -> Sizes {
        let content_len = image.layout.content_len();
        Sizes::new(content_len, content_len, image.stored_len(), taken(&image.dir), image.manifest.disk_size)
    }

    fn columns(&self) -> String {
        let [content, library, disk] = [self.content_len, self.library_len, self.disk_len].map(units::size);
        let k = self.k.map_or("-".to_owned(), |k| format!("{k:.1}"));
        format!("{content:>11}  {library:>11}  {k:>4}  {disk:>11}  {:>4.0} %", self.saved_percent)
    }
}

/// Prints it, as a table or as JSON.
///
/// # Errors
/// If the library cannot be read.
pub fn list(library: &Library, json: bool) -> anyhow::Result<()> {
    let rows: Vec<Row> = library.images()?.into_iter().map(|entry| row(library, entry)).collect();
    let list = List { totals: totals(&rows), images: rows, unfinished: unfinished(library)? };
    if json {
        say!("{}", serde_json::to_string_pretty(&list).context("writing JSON")?);
        return Ok(());
    }
    for pull in library.unfinished()? {
        say!("unfinished: {}; `ezio image pull` continues or discards it", unfinished_line(&pull));
    }
    if list.images.is_empty() {
        say!("no images in {} yet: `ezio capture` makes them", library.dir().display());
        return Ok(());
    }
    let width = list.images.iter().map(|row| row.name.len()).max().unwrap_or(0).max(5);
    say!(
        "{:<width$}  {:>11}  {:>11}  {:>4}  {:>11}  {:>6}  {:<5}  made",
        "name",
        "in use",
        "in library",
        "k",
        "disk",
        "saved",
        "table"
    );
    for row in &list.images {
        match &row.about {
            About::Good(good) => say!(
                "{:<width$}  {}  {:<5}  {} on {}{}",
                row.name,
                good.sizes.columns(),
                good.table,
                good.made_at_text,
                good.made_on,
                good.live.as_ref().map(|source| format!(", live from {source}")).unwrap_or_default()
            ),
            About::Damaged { error, .. } => say!("{:<width$}  damaged: {error}", row.name),
        }
    }
    if list.images.len() > 1 {
        say!("{:<width$}  {}", "total", list.totals.columns());
    }
    Ok(())
}

fn row(library: &Library, entry: ImageEntry) -> Row {
    let about = match entry.image {
        Ok(image) => About::Good(Box::new(Good {
            sizes: Sizes::of(&image),
            table: image.manifest.table,
            infohash: image.meta.infohash.to_string(),
            made_at: image.manifest.origin.at,
            made_on: image.manifest.origin.host.clone(),
            how: image.manifest.origin.how.clone(),
            live: image.manifest.live.as_ref().map(|live| live.source.clone()),
            made_at_text: image.manifest.origin.at_text(),
        })),
        Err(error) => {
            About::Damaged { error: format!("{error:#}"), library_len: taken(&library.image_dir(&entry.name)) }
        }
    };
    Row { name: entry.name, about }
}

/// An unfinished pull in one line.
pub fn unfinished_line(unfinished: &Unfinished) -> String {
    let busy = if unfinished.is_busy { ", in progress" } else { "" };
    format!("{} of {} (infohash {}){busy}", units::size(unfinished.len), unfinished.source, unfinished.infohash)
}

/// Of all images; a damaged one only takes room.
fn totals(rows: &[Row]) -> Sizes {
    let mut sum = Sizes::default();
    let mut in_files: u64 = 0;
    for row in rows {
        match &row.about {
            About::Good(good) => {
                sum.content_len = sum.content_len.saturating_add(good.sizes.content_len);
                if good.sizes.stored_len > 0 {
                    in_files = in_files.saturating_add(good.sizes.content_len);
                }
                sum.stored_len = sum.stored_len.saturating_add(good.sizes.stored_len);
                sum.disk_len = sum.disk_len.saturating_add(good.sizes.disk_len);
                sum.library_len = sum.library_len.saturating_add(good.sizes.library_len);
            }
            About::Damaged { library_len, .. } => sum.library_len = sum.library_len.saturating_add(*library_len),
        }
    }
    Sizes::new(sum.content_len, in_files, sum.stored_len, sum.library_len, sum.disk_len)
}

fn unfinished(library: &Library) -> anyhow::Result<Vec<Pull>> {
    let pull = |found: Unfinished| Pull {
        source: found.source,
        infohash: found.infohash,
        len: found.len,
        is_busy: found.is_busy,
    };
    Ok(library.unfinished()?.into_iter().map(pull).collect())
}

/// Bytes that the files of an image take on the library's disk. What cannot be looked at counts as nothing.
fn taken(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).filter(|file| file.is_file()).map(|file| len_on_disk(&file)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_a_share_of_the_disk() {
        for (content, disk, percent) in
            [(0, 100, 100.0), (25, 100, 75.0), (100, 100, 0.0), (200, 100, 0.0), (1, 0, 0.0), (1, 3, 66.7), (0, 0, 0.0)]
        {
            let sizes = Sizes::new(content, 0, 0, 0, disk);
            assert!((sizes.saved_percent - percent).abs() < 1e-9, "{content} of {disk}: {}", sizes.saved_percent);
        }
        let sizes = Sizes::new(3 << 30, 3 << 30, 2 << 30, 2 << 30, 12 << 30);
        assert_eq!(sizes.columns(), "    3.0 GiB      2.0 GiB   1.5     12.0 GiB    75 %");
        let live = Sizes::new(3 << 30, 3 << 30, 0, 1 << 10, 12 << 30);
        assert_eq!(live.columns(), "    3.0 GiB      1.0 KiB     -     12.0 GiB    75 %");
    }
}

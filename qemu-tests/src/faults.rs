//! The table of faults tried: every case notes its own, and a run after which every case has passed writes `docs/faults.md`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// Where a case keeps its notes, in its folder.
const NOTES: &str = "faults.tsv";
const HEAD: &str = "# Faults tried\n\nWritten by `make test`, from what happened in its virtual racks. Numbers that differ \
                    from run to run are left out (…).\n\n| fault | where | what happened |\n|---|---|---|\n";

/// Keeps a note in a case's folder.
///
/// # Errors
/// If the file cannot be written.
pub fn note(folder: &Path, fault: &str, place: &str, happened: &str) -> Result<()> {
    let path = folder.join(NOTES);
    let file = File::options().create(true).append(true).open(&path);
    let mut file = file.with_context(|| format!("opening {}", path.display()))?;
    let cells = [fault, place, happened].map(|cell| without_numbers(&cell.replace(['\n', '\t'], " ")));
    writeln!(file, "{}", cells.join("\t")).with_context(|| format!("writing {}", path.display()))
}

/// Writes the table of what these cases noted, in their order.
///
/// # Errors
/// If a note cannot be read or the table not be written.
pub fn write_table<'a>(folders: impl Iterator<Item = std::path::PathBuf> + 'a, to: &Path) -> Result<()> {
    let mut table = HEAD.to_owned();
    for folder in folders {
        let path = folder.join(NOTES);
        if !path.exists() {
            continue;
        }
        let notes = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for note in notes.lines() {
            table += &format!("| {} |\n", note.replace('|', "\\|").replace('\t', " | "));
        }
    }
    if fs::read_to_string(to).is_ok_and(|old| old == table) {
        return Ok(());
    }
    fs::write(to, table).with_context(|| format!("writing {}", to.display()))
}

/// Numbers of more than three digits, and pieces' numbers, are another in every run.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let len = from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
        out += before;
        let is_name = before.ends_with(|c: char| c.is_alphabetic() || c == '-');
        out += if len > 3 || (before.ends_with("piece ") && !is_name) { "…" } else { &from[..len] };
        rest = &from[len..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_same_every_time() {
        assert_eq!(
            without_numbers("piece 7, byte 4096 of /dev/vda2 (os error 5)"),
            "piece …, byte … of /dev/vda2 (os error 5)"
        );
        let dir = tempfile::tempdir().expect("a folder");
        note(dir.path(), "EIO | write", "byte 12345", "failed:\nwell said").expect("noted");
        let table = dir.path().join("faults.md");
        write_table([dir.path().to_owned(), dir.path().join("none")].into_iter(), &table).expect("written");
        let text = fs::read_to_string(&table).expect("there");
        assert!(text.ends_with("|---|---|---|\n| EIO \\| write | byte … | failed: well said |\n"), "{text}");
    }
}

//! The table of tried faults: every case notes its own. After a run in which every case has passed, all notes are
//! compared with `docs/faults.md`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The file for notes in a case's folder.
const NOTES: &str = "faults.tsv";
const HEAD: &str = "# Faults tried\n\nWhat happened in the virtual racks of `make test`, which compares it with this page; \
                    `make docs` writes it. A machine's own words are in quotes; their numbers differ from run to run (…). \
                    Faults of the server's own files: state-faults.md.\n\n\
                    | fault | where | what happened |\n|---|---|---|\n";

/// Writes a note into a case's folder.
///
/// # Errors
/// If the file cannot be written.
pub fn note(folder: &Path, fault: &str, place: &str, happened: &str) -> Result<()> {
    let path = folder.join(NOTES);
    let file = File::options().create(true).append(true).open(&path);
    let mut file = file.with_context(|| format!("opening {}", path.display()))?;
    let cells = [fault, place, happened].map(|cell| cell.replace(['\n', '\t'], " "));
    writeln!(file, "{}", cells.join("\t")).with_context(|| format!("writing {}", path.display()))
}

/// A machine's message, for a note: in quotes, without the numbers that differ from run to run.
pub fn quoted(words: &str) -> String {
    format!("“{}”", without_numbers(words))
}

/// Writes the table of the notes of these cases, in their order, and compares it with the page in the docs. The
/// machines' messages may differ: a failing disk may be noticed by a write or by the next flush.
///
/// # Errors
/// If a note cannot be read, the table cannot be written, or the page differs.
pub fn check_table(folders: impl Iterator<Item = std::path::PathBuf>, table: &Path, page: &Path) -> Result<()> {
    let mut text = HEAD.to_owned();
    for folder in folders {
        let path = folder.join(NOTES);
        if !path.exists() {
            continue;
        }
        let notes = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for note in notes.lines() {
            text += &format!("| {} |\n", note.replace('|', "\\|").replace('\t', " | "));
        }
    }
    fs::write(table, &text).with_context(|| format!("writing {}", table.display()))?;
    let before = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let (before, now) = (without_quotes(&before), without_quotes(&text));
    if before == now {
        return Ok(());
    }
    let lines = |text: &str, other: &str, sign: char| -> String {
        let differs = |line: &&str| !other.lines().any(|there| there == *line);
        text.lines().filter(differs).map(|line| format!("\n{sign} {line}")).collect()
    };
    bail!(
        "{} does not say what happened; if this run is right, `make docs` writes it:{}{}",
        page.display(),
        lines(&before, &now, '-'),
        lines(&now, &before, '+')
    )
}

fn without_quotes(text: &str) -> String {
    let mut out = String::new();
    for part in text.split('“') {
        out += part.split_once('”').map_or(part, |(_, after)| after);
    }
    out
}

/// Removes numbers of more than three digits, and piece numbers, because they differ in every run.
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
        let happened = format!("failed:\nwell, {}", quoted("piece 7 of 134217728 bytes"));
        note(dir.path(), "EIO | write", "4096-byte sectors", &happened).expect("noted");
        let (table, page) = (dir.path().join("table.md"), dir.path().join("faults.md"));
        let check = || check_table([dir.path().to_owned(), dir.path().join("none")].into_iter(), &table, &page);
        let row = |sector: u32, said: &str| {
            format!("{HEAD}| EIO \\| write | {sector}-byte sectors | failed: well, “{said}” |\n")
        };
        fs::write(&page, row(4096, "another word")).expect("written");
        check().expect("only a machine's words differ");
        assert_eq!(fs::read_to_string(&table).expect("there"), row(4096, "piece … of … bytes"));
        fs::write(&page, row(512, "piece … of … bytes")).expect("written");
        let text = check().expect_err("another fault").to_string();
        assert!(text.contains("make docs") && text.contains("\n- ") && text.contains("\n+ | EIO"), "{text}");
    }
}

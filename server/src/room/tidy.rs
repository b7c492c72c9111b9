//! What a report may contain: texts of bounded length, without what would garble a terminal or a page.

use report::{Report, Stage};
use terminal::is_plain;

/// Longest text taken over from a report, in bytes.
const MAX_TEXT: usize = 2000;
/// Longest reason for a failure, in bytes: a line for each of some forty disks.
const MAX_ERROR: usize = 8000;
/// Highest rate that is shown, in bytes per second: 100 times what the fastest network card carries.
const MAX_RATE: u64 = 10 << 40;
/// Most stage times in a report; there are nine stages.
const MAX_TIMES: usize = 32;
/// Most fields of a newer version in a report; each has [`MAX_TEXT`] bytes at most.
const MAX_MORE: usize = 4;

/// Cuts what is too long and takes out what would garble a terminal.
pub fn tidy(report: &mut Report) {
    let texts = [
        &mut report.deployment,
        &mut report.ip,
        &mut report.serial,
        &mut report.uuid,
        &mut report.image,
        &mut report.disk,
        &mut report.note,
    ];
    for text in texts {
        *text = tidied(text, MAX_TEXT, is_plain);
    }
    if let Some(error) = &mut report.error {
        // A refusal has a line for every disk.
        *error = tidied(error, MAX_ERROR, |c| is_plain(c) || c == '\n');
    }
    report.times.truncate(MAX_TIMES);
    let progress = &mut report.progress;
    progress.bytes_done = progress.bytes_done.min(progress.bytes_total);
    progress.rate_bytes_per_s = progress.rate_bytes_per_s.min(MAX_RATE);
    report.stage = named(report.stage);
    report.times.iter_mut().for_each(|time| time.stage = named(time.stage));
    let len = |value: &serde_json::Value| value.to_string().len();
    let fits = |key: &str, value: &serde_json::Value| key.len() + len(value) <= MAX_TEXT;
    let more = std::mem::take(&mut report.more).into_iter().filter(|(key, value)| fits(key, value));
    report.more = more.take(MAX_MORE).collect();
}

/// A stage without what must not be in its name.
fn named(stage: Stage) -> Stage {
    match stage {
        Stage::Unknown(name) => Stage::from(tidied(name.as_str(), MAX_TEXT, is_plain)),
        known => known,
    }
}

/// At most `max` bytes of a text, with spaces for what must not be in it.
fn tidied(text: &str, max: usize, is_fine: impl Fn(char) -> bool) -> String {
    text[..text.floor_char_boundary(max)].chars().map(|c| if is_fine(c) { c } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_and_have_nothing_that_garbles_a_terminal() {
        let mut report: Report = serde_json::from_str(r#"{"mac":"m","stage":"failed"}"#).expect("a report");
        report.error = Some("\x1b[2J\n€".repeat(5000));
        report.note = "é".repeat(5000);
        report.disk = "a\u{202e}b\u{2066}c\u{200b}d".into();
        report.progress.rate_bytes_per_s = u64::MAX;
        tidy(&mut report);
        let error = report.error.expect("kept");
        assert!(error.len() <= MAX_ERROR && !error.contains('\x1b') && error.starts_with(" [2J\n€"));
        assert_eq!(report.note.len(), MAX_TEXT);
        assert_eq!((report.disk.as_str(), report.progress.rate_bytes_per_s), ("a b c d", MAX_RATE));
    }
}

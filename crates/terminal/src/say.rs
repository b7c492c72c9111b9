//! Lines on standard output and standard error that never end the work: `println!` panics if its reader is gone.
//!
//! They contain text from outside: reports, torrents, manifests, answers of a tracker. Such text cannot move the
//! cursor, change colours or set the window title.

use std::borrow::Cow;
use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether standard output has failed before.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// The function behind [`crate::say!`].
pub fn out(line: Arguments<'_>) {
    let Err(error) = write_line(io::stdout().lock(), line) else { return };
    if error.kind() != io::ErrorKind::BrokenPipe && !HAS_FAILED.swap(true, Ordering::Relaxed) {
        crate::complain!("ezio: writing to standard output: {error}");
    }
}

/// Whether any output was lost. A closed pipe does not count.
pub fn has_failed() -> bool {
    HAS_FAILED.load(Ordering::Relaxed)
}

/// The function behind [`crate::complain!`].
pub fn err(line: Arguments<'_>) {
    let _ = write_line(io::stderr().lock(), line);
}

/// Writes a short line in one piece; otherwise lines of several processes would mix.
fn write_line(mut to: impl Write, line: Arguments<'_>) -> io::Result<()> {
    to.write_all(plain(&format!("{line}\n")).as_bytes())?;
    to.flush()
}

/// Whether a character is neither a control character, nor one that changes the direction or the place of others
/// (Unicode 16, sections 23.2 and 23.3).
pub fn is_plain(c: char) -> bool {
    let is_format = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !is_format
}

/// The text with spaces in place of characters that are not plain; only line ends stay.
pub fn plain(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| !is_plain(c) && c != '\n';
    if text.contains(is_bad) { text.replace(is_bad, " ").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_text_reaches_the_terminal() {
        let mut out = Vec::new();
        write_line(&mut out, format_args!("{}", "a\x1b[2Jb\r\u{9b}31m\t\nü\x07\u{202e}x\u{2066}")).expect("written");
        assert_eq!(String::from_utf8(out).expect("text"), "a [2Jb  31m \nü  x \n");
    }
}

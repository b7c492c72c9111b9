//! Asks partclone which blocks of a file system are in use, without copying anything.
//!
//! `partclone.<fs> -D` writes a ddrescue domain map (FORMATS: `0xPOS 0xSIZE STATUS`, `+` is used, `?` is free). It is
//! read strictly: a map that does not describe the partition from its first byte on, without holes, is an error, because
//! a block wrongly taken for free would be missing in every clone.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail, ensure};

use crate::capture::check_torrent_len;

/// Longest line of a map, in bytes; real ones have 40.
const LINE_LEN_MAX: u64 = 4096;
/// A file system whose last block is not whole may claim this much past the end of its partition, in bytes: the largest
/// cluster there is.
const OVERRUN_MAX: u64 = 2 << 20;
/// What lies behind a file system is kept whole up to this length, in bytes (NTFS and FAT keep a copy of their boot
/// sector there); of a longer tail, this much of its start and of its end.
const TAIL_LEN_MAX: u64 = 1 << 20;
/// How much of what partclone said is repeated in an error: the last lines that are no progress.
const MESSAGE_LINES: usize = 12;

/// What may be done about a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// This program knows its used blocks.
    Program(PathBuf),
    /// The program for it is missing, and Debian's package has it.
    Missing(&'static str),
    /// Nobody here knows it: copy it whole.
    Unknown,
}

/// Which program knows a file system that `blkid` calls `file_system`.
pub fn support(file_system: &str) -> Support {
    // The last column: whether Debian's package has it, so that its absence is worth an error.
    let (program, is_packaged) = match file_system {
        "ext2" => ("partclone.ext2", true),
        "ext3" => ("partclone.ext3", true),
        "ext4" => ("partclone.ext4", true),
        "vfat" => ("partclone.vfat", true),
        "exfat" => ("partclone.exfat", true),
        "ntfs" => ("partclone.ntfs", true),
        "xfs" => ("partclone.xfs", true),
        "btrfs" => ("partclone.btrfs", true),
        "f2fs" => ("partclone.f2fs", true),
        "hfsplus" => ("partclone.hfsplus", true),
        "apfs" => ("partclone.apfs", true),
        "minix" => ("partclone.minix", true),
        "reiser4" => ("partclone.reiser4", true),
        "reiserfs" => ("partclone.reiserfs", false),
        "jfs" => ("partclone.jfs", false),
        "nilfs2" => ("partclone.nilfs2", false),
        "ufs" => ("partclone.ufs", false),
        "VMFS" => ("partclone.vmfs", false),
        _ => return Support::Unknown,
    };
    match find_program(program) {
        Some(path) => Support::Program(path),
        None if is_packaged => Support::Missing(program),
        None => Support::Unknown,
    }
}

/// Why partclone cannot be asked about this version of a file system, as `blkid` calls both, that it knows by name.
pub fn blind_spot(file_system: &str, version: &str) -> Option<&'static str> {
    match (file_system, version) {
        // It reads entries of 12 bits as if they had 16 (issue 268), and so leaves out clusters in use.
        ("vfat", "FAT12") => Some("partclone does not know which clusters of FAT12 are in use"),
        // It looks for the maps where they are not, and gives up.
        ("minix", "3") => Some("partclone does not know which zones of Minix 3 are in use"),
        _ => None,
    }
}

/// Finds a program in `PATH`, and beside `/usr/bin` also where Debian keeps system tools, which an ordinary user's
/// `PATH` leaves out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    let system: &[&str] =
        if dirs.iter().any(|dir| dir == Path::new("/usr/bin")) { &["/usr/sbin", "/sbin"] } else { &[] };
    dirs.into_iter().chain(system.iter().map(PathBuf::from)).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The version of partclone, for the manifest.
pub fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("-v").stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.split_whitespace().find(|word| word.starts_with("v0.") || word.starts_with("0.")).map(str::to_owned)
}

/// The used byte ranges, on the disk, of the file system on `device`, which is bytes `place` of that disk.
///
/// `scratch` is a directory for the map and the log; both are gone afterwards. With `at_own_risk` a file system is taken
/// that was not unmounted cleanly.
///
/// # Errors
/// If partclone refuses, with what it said, or its map makes no sense.
pub fn used_ranges(
    program: &Path,
    device: &Path,
    place: &Range<u64>,
    scratch: &Path,
    at_own_risk: bool,
) -> anyhow::Result<Vec<Range<u64>>> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let files = tempfile::Builder::new().prefix("map.").tempdir_in(scratch).context("making room for the block map")?;
    let map = files.path().join("map");
    let log = files.path().join("log");
    let output = Command::new(program)
        .args(at_own_risk.then_some("--ignore_fschk"))
        .arg("-D")
        // Seconds between looks at the progress: without it, it sleeps for two when the map is already complete.
        .args(["-f", "0"])
        .arg("-s")
        .arg(device)
        .arg("-o")
        .arg(&map)
        .arg("-L")
        .arg(&log)
        .arg(format!("--offset_domain={}", place.start))
        .env("LC_ALL", "C")
        .env("TERM", "dumb")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    if !output.status.success() {
        let said = last_words(&[output.stdout, output.stderr].concat());
        bail!(
            "{name} refused the file system on {} ({}); if it was not shut down cleanly, start that system once and \
             shut it down, or check the file system (--at-own-risk copies it whole if nothing else helps); {name} said:\n{said}",
            device.display(),
            output.status
        );
    }
    let map = File::open(&map).with_context(|| format!("opening the block map that {name} should have written"))?;
    parse_map(BufReader::new(map), place, |count| check_torrent_len(count, 0))
        .with_context(|| format!("reading the block map of {name}"))
}

/// Reads a domain map for the bytes `place` of a disk: ranges ascending, inside `place`.
///
/// # Errors
/// If a line is none, the lines do not describe `place` from its start on without holes, or so many ranges are too many.
fn parse_map(
    mut map: impl BufRead,
    place: &Range<u64>,
    check_count: impl Fn(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Range<u64>>> {
    let mut used: Vec<Range<u64>> = Vec::new();
    let mut at = place.start;
    let mut has_position = false;
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        if map.by_ref().take(LINE_LEN_MAX).read_line(&mut line)? == 0 {
            break;
        }
        let damaged = || anyhow!("line {number} makes no sense: {:?}", line.trim_end().get(..80).unwrap_or(&line));
        let text = line.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        if !has_position {
            // Where ddrescue stands: position, status, perhaps a pass.
            ensure!(matches!(fields.len(), 2 | 3) && hex(fields[0]).is_some(), damaged());
            has_position = true;
            continue;
        }
        let [start, len, status] = fields[..] else { return Err(damaged()) };
        let (start, len) = hex(start).zip(hex(len)).ok_or_else(damaged)?;
        let end = start.checked_add(len).ok_or_else(damaged)?;
        ensure!(start == at && len > 0, "line {number} does not go on where the line before it ends, at {at:#x}");
        at = end;
        match status {
            "+" => {
                let has_room = end <= place.end.saturating_add(OVERRUN_MAX) && start < place.end;
                ensure!(has_room, "line {number} is past the end of the partition at {:#x}", place.end);
                used.push(start..end.min(place.end));
                // Before the next line: what a map is made of decides how long it is.
                check_count(used.len())?;
            }
            "?" => {}
            _ => return Err(damaged()),
        }
        ensure!(
            at <= place.end.saturating_add(OVERRUN_MAX),
            "the file system is longer than its partition, which ends at byte {:#x}: it was cut short, or the table is wrong",
            place.end
        );
    }
    ensure!(!used.is_empty(), "it names no used block");
    if at < place.end {
        let tail = at..place.end;
        if tail.end - tail.start <= 2 * TAIL_LEN_MAX {
            used.push(tail);
        } else {
            used.extend([tail.start..tail.start + TAIL_LEN_MAX, tail.end - TAIL_LEN_MAX..tail.end]);
        }
    }
    Ok(used)
}

fn hex(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// What a program said last, without the progress it painted.
pub fn last_words(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let is_message = |line: &&str| {
        let is_progress = ["Elapsed:", "current block:", "Total Time:"].iter().any(|word| line.contains(word));
        let is_chatter = ["Partclone v", "Starting to map", "Partclone fail"].iter().any(|word| line.starts_with(word));
        !line.is_empty() && !is_progress && !is_chatter && !line.contains('\x1b')
    };
    // What it says when it gives up stands on the same line as the chatter, and as the progress.
    let lines = text.split(['\n', '\r']).map(|line| {
        let line = line.split("Partclone fail").next().unwrap_or_default().trim();
        match line.rsplit_once("%").filter(|(_, said)| line.contains("Elapsed:") && !said.starts_with([',', ' '])) {
            Some((_, said)) if !said.is_empty() => said,
            _ => line,
        }
    });
    let messages: Vec<&str> = lines.clone().filter(is_message).collect();
    // Better everything than nothing.
    let lines = if messages.is_empty() { lines.filter(|line| !line.is_empty()).collect() } else { messages };
    let last: Vec<String> =
        lines[lines.len().saturating_sub(MESSAGE_LINES)..].iter().map(|line| format!("    {line}")).collect();
    last.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str =
        "# Domain logfile created by unset_name v0.3.23\n# current_pos  current_status\n0x00500000     ?\n";

    fn parse(lines: &str, place: Range<u64>) -> anyhow::Result<Vec<Range<u64>>> {
        parse_map(format!("{HEAD}{lines}").as_bytes(), &place, |_| Ok(()))
    }

    #[test]
    fn used_runs_come_out() {
        let used =
            parse("0x00100000  0x1000  +\n0x00101000  0x1000  ?\n# c\n0x00102000  0x1000  +\n", 0x100000..0x103000);
        assert_eq!(used.expect("good map"), [0x100000..0x101000, 0x102000..0x103000]);
    }

    #[test]
    fn what_lies_behind_the_file_system_is_kept() {
        let used = parse("0x0 0x1000 +\n0x1000 0x1000 ?\n", 0..0x2200).expect("good map");
        assert_eq!(used, [0..0x1000, 0x2000..0x2200]);
        let used = parse("0x0 0x1000 +\n", 0..16 << 20).expect("good map");
        assert_eq!(used, [0..0x1000, 0x1000..0x101000, 15 << 20..16 << 20]);
    }

    #[test]
    fn the_last_cluster_may_stick_out() {
        let used = parse("0x0 0x2000 +\n", 0..0x1800).expect("good map");
        assert_eq!((used.len(), used[0].clone()), (1, 0..0x1800));
        assert!(parse("0x0 0x2000 +\n0x2000 0x1000 +\n", 0..0x1800).is_err());
        assert!(parse("0x0 0x4000000 +\n", 0..0x1800).is_err());
    }

    #[test]
    fn maps_that_make_no_sense_are_refused() {
        for (lines, why) in [
            ("", "no used block"),
            ("0x0 0x1000 ?\n", "no used block"),
            ("0x1000 0x1000 +\n", "does not go on"),
            ("0x0 0x1000 +\n0x2000 0x1000 +\n", "does not go on"),
            ("0x0 0x1000 +\n0x0 0x1000 +\n", "does not go on"),
            ("0x0 0x0 +\n", "does not go on"),
            ("0x0 0x1000 *\n", "line 4 makes no sense"),
            ("0x0 0x1000\n", "line 4 makes no sense"),
            ("0 0x1000 +\n", "line 4 makes no sense"),
            ("0x 0x1000 +\n", "line 4 makes no sense"),
            ("0x+0 0x1000 +\n", "line 4 makes no sense"),
            ("0x0 0xffffffffffffffff +\n", "past the end"),
            ("0x0 0x1ffffffffffffffff +\n", "line 4 makes no sense"),
            ("0x0 0x1000 +\n0x1000 0xffffffffffffffff ?\n", "line 5 makes no sense"),
            ("0x0 0x1000 +\n0x1000 0x400000 ?\n", "longer than its partition"),
            ("<html>\n", "line 4 makes no sense"),
        ] {
            let error = parse(lines, 0..0x10000).expect_err(lines).to_string();
            assert!(error.contains(why), "{lines}: {error}");
        }
        let any = |_| Ok(());
        assert!(parse_map(&b""[..], &(0..10), any).is_err());
        assert!(parse_map(&b"\xff\xfe"[..], &(0..10), any).is_err());
        let endless = vec![b'0'; 100_000];
        assert!(parse_map(&endless[..], &(0..10), any).is_err());
    }

    /// A map without an end: every other sector is in use.
    struct Endless {
        text: std::io::Cursor<Vec<u8>>,
        at: u64,
    }

    impl Read for Endless {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if self.text.position() == self.text.get_ref().len() as u64 {
                self.text = std::io::Cursor::new(
                    format!("{:#x} 0x200 +\n{:#x} 0x200 ?\n", self.at, self.at + 512).into_bytes(),
                );
                self.at += 1024;
            }
            self.text.read(buf)
        }
    }

    #[test]
    fn an_endless_map_is_given_up() {
        let map = || BufReader::new(Endless { text: std::io::Cursor::new(HEAD.into()), at: 0 });
        let few = |count| if count > 1000 { Err(anyhow!("{count} are too many")) } else { Ok(()) };
        let error = parse_map(map(), &(0..u64::MAX), few).expect_err("too many").to_string();
        assert_eq!(error, "1001 are too many");
        // As many as fit a torrent, whatever their lengths.
        let error = parse_map(map(), &(0..u64::MAX), |count| check_torrent_len(count, 0)).expect_err("too many");
        let error = error.to_string();
        assert!(error.contains("lie in 1677722 places or more") && error.contains("--whole"), "{error}");
    }

    #[test]
    fn progress_is_no_message() {
        let said = b"Partclone v0.3.23 http://partclone.org\nElapsed: 1\rext: FS was not cleanly unmounted\n\n";
        assert_eq!(last_words(said), "    ext: FS was not cleanly unmounted");
        let said = b"Partclone v0.3.23\nminixclone.c: seek failedPartclone fail, please check log !\n";
        assert_eq!(last_words(said), "    minixclone.c: seek failed");
        let said = b"Elapsed: 00:00:01, Completed:   1.00%extfsclone.c: bitmap error at 0 group.\n";
        assert_eq!(last_words(said), "    extfsclone.c: bitmap error at 0 group.");
        assert_eq!(last_words(b"Elapsed: 1, bitmap count error\n"), "    Elapsed: 1, bitmap count error");
    }

    proptest! {
        #[test]
        fn any_map_gives_ranges_inside_the_partition_or_an_error(
            lines in proptest::collection::vec("(0x[0-9a-f]{1,5} 0x[0-9a-f]{1,5} [+?*])|\\PC{0,20}", 0..6),
            start in 0u64..5000,
            len in 1u64..5000,
        ) {
            let place = start..start + len;
            if let Ok(used) = parse(&lines.join("\n"), place.clone()) {
                prop_assert!(used.iter().all(|range| place.start <= range.start && range.end <= place.end));
                prop_assert!(used.windows(2).all(|pair| pair[0].end <= pair[1].start));
            }
        }
    }
}

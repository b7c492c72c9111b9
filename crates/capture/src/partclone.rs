//! Asks partclone which blocks of a file system are in use, without copying anything.
//!
//! `partclone.<fs> -D` writes a ddrescue domain map (FORMATS: `0xPOS 0xSIZE STATUS`, `+` is used, `?` is free). It is
//! read strictly: a map must describe the partition from its first byte on, without holes. A block wrongly taken for
//! free would be missing in every clone.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow, bail, ensure};
use usedmap::Ranges;

use crate::child;

/// Longest line of a map, in bytes; real ones have 40.
const LINE_LEN_MAX: u64 = 4096;
/// A file system whose last block is incomplete may claim this much past the end of its partition, in bytes: the
/// largest cluster that exists.
const OVERRUN_MAX: u64 = 2 << 20;
/// Most runs of used blocks that are kept of a map; beyond this, the smallest holes between them count as used.
const RANGES_MAX: usize = 1 << 20;
/// How many lines of partclone's output an error repeats: the last ones that are not progress.
const MESSAGE_LINES: usize = 12;

/// How many of these lines a note repeats.
const REFUSAL_LINES: usize = 2;

/// How a file system can be handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    /// This program knows its used blocks.
    Program(PathBuf),
    /// The program for it is missing, but Debian's package has it.
    Missing(&'static str),
    /// No program knows it, so it is copied whole.
    Unknown,
}

/// The program that knows the file system `blkid` calls `file_system`.
pub(crate) fn support(file_system: &str) -> Support {
    // The last column says whether Debian's package has it, so that its absence is worth an error.
    let (program, is_packaged) = match file_system {
        "ext2" => ("partclone.ext2", true),
        "ext3" => ("partclone.ext3", true),
        "ext4" => ("partclone.ext4", true),
        "vfat" => ("partclone.vfat", true),
        "exfat" => ("partclone.exfat", true),
        "ntfs" => ("partclone.ntfs", true),
        "xfs" => ("partclone.xfs", true),
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

/// Why partclone cannot be asked about this version of a file system although it knows the name. Both are as `blkid`
/// reports them.
pub(crate) fn blind_spot(file_system: &str, version: &str) -> Option<&'static str> {
    match (file_system, version) {
        // Partclone reads entries of 12 bits as if they had 16 (issue 268), and so leaves out used clusters.
        ("vfat", "FAT12") => Some("partclone does not know which clusters of FAT12 are in use"),
        // Partclone looks for the maps in the wrong place, and gives up.
        ("minix", "3") => Some("partclone does not know which zones of Minix 3 are in use"),
        _ => None,
    }
}

/// Finds a program in `PATH`, in `/usr/bin`, and where Debian keeps system tools, which an ordinary user's `PATH`
/// leaves out.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    let system: &[&str] =
        if dirs.iter().any(|dir| dir == Path::new("/usr/bin")) { &["/usr/sbin", "/sbin"] } else { &[] };
    dirs.into_iter().chain(system.iter().map(PathBuf::from)).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The version of partclone, for the manifest.
pub(crate) fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("-v").stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.split_whitespace().find(|word| word.starts_with("v0.") || word.starts_with("0.")).map(str::to_owned)
}

/// Which bytes of a file system are in use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UsedMap {
    /// Byte ranges from the start of the file system: ascending, disjoint, not past `spans`.
    pub ranges: Vec<Range<u64>>,
    /// Bytes from its start that the map covers, at most those of the volume.
    pub spans: u64,
}

/// Why there is no map: partclone's message, or the fault of its map, in one line.
#[derive(Debug)]
pub(crate) struct Refusal(pub String);

/// The map of the file system on `device`, which has `len` bytes.
///
/// `scratch` is a directory for the map and the log; both are deleted afterwards. With `at_own_risk`, a file system
/// that was not unmounted cleanly is accepted.
///
/// # Errors
/// If partclone cannot be run, or `stop` is set. A refusal of the file system is a result, not an error.
pub(crate) fn used_map(
    program: &Path,
    device: &Path,
    len: u64,
    scratch: &Path,
    at_own_risk: bool,
    stop: &AtomicBool,
) -> anyhow::Result<Result<UsedMap, Refusal>> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let files = tempfile::Builder::new().prefix("map.").tempdir_in(scratch).context("making room for the block map")?;
    let map = files.path().join("map");
    let mut command = Command::new(program);
    command
        .args(at_own_risk.then_some("--ignore_fschk"))
        .arg("-D")
        // Seconds between progress updates: without this, partclone sleeps for two seconds after the map is complete.
        .args(["-f", "0"])
        .arg("-s")
        .arg(device)
        .arg("-o")
        .arg(&map)
        .arg("-L")
        .arg(files.path().join("log"))
        .env("LC_ALL", "C")
        .env("TERM", "dumb");
    let what = format!("{name} is finding the blocks in use on {}", device.display());
    let (status, output) = child::run(&mut command, stop, &what)?;
    if !status.success() {
        let said = last_words(&output);
        // The last line says only that partclone gives up.
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !matches!(*line, "" | "Aborting.")).collect();
        let said = lines[lines.len().saturating_sub(REFUSAL_LINES)..].join(" ");
        return Ok(Err(Refusal(if said.is_empty() { status.to_string() } else { said })));
    }
    let map = File::open(&map).with_context(|| format!("opening the block map that {name} should have written"))?;
    let parsed = parse_map(BufReader::new(map), len, stop);
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(parsed.map_err(|error| Refusal(format!("its map makes no sense: {error:#}"))))
}

/// Reads a domain map of a volume of `len` bytes. If it has millions of runs, the smallest holes count as used.
///
/// # Errors
/// If a line is malformed, or the lines do not describe the volume from its first byte on without holes.
fn parse_map(mut map: impl BufRead, len: u64, stop: &AtomicBool) -> anyhow::Result<UsedMap> {
    let mut used = Ranges::with_limit(len, RANGES_MAX);
    let mut is_used = false;
    let mut at = 0;
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
            // Ddrescue's current position, its status, and perhaps a pass.
            ensure!(matches!(fields.len(), 2 | 3) && hex(fields[0]).is_some(), damaged());
            has_position = true;
            continue;
        }
        let [start, run, status] = fields[..] else { return Err(damaged()) };
        let (start, run) = hex(start).zip(hex(run)).ok_or_else(damaged)?;
        let end = start.checked_add(run).ok_or_else(damaged)?;
        ensure!(start == at && run > 0, "line {number} does not continue where the line before it ends, at {at:#x}");
        ensure!(!stop.load(Ordering::Relaxed), "interrupted");
        at = end;
        match status {
            "+" => {
                ensure!(start < len, "line {number} is past the end of the volume at {len:#x}");
                used.insert(start..end);
                is_used = true;
            }
            "?" => {}
            _ => return Err(damaged()),
        }
        ensure!(at <= len.saturating_add(OVERRUN_MAX), "it is longer than the volume, which ends at byte {len:#x}");
    }
    ensure!(is_used, "it names no used block");
    Ok(UsedMap { ranges: used.finish(), spans: at.min(len) })
}

fn hex(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// A program's last messages, without the progress it printed.
pub(crate) fn last_words(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let is_message = |line: &&str| {
        let is_progress = ["Elapsed:", "current block:", "Total Time:"].iter().any(|word| line.contains(word));
        let is_chatter = ["Partclone v", "Starting to map", "Partclone fail"].iter().any(|word| line.starts_with(word));
        !line.is_empty() && !is_progress && !is_chatter && !line.contains('\x1b')
    };
    // Partclone's last message is on the same line as its chatter and its progress.
    let lines = text.split(['\n', '\r']).map(|line| {
        let line = line.split("Partclone fail").next().unwrap_or_default().trim();
        match line.rsplit_once("%").filter(|(_, said)| line.contains("Elapsed:") && !said.starts_with([',', ' '])) {
            Some((_, said)) if !said.is_empty() => said,
            _ => line,
        }
    });
    let messages: Vec<&str> = lines.clone().filter(is_message).collect();
    // If no message is left, everything is shown.
    let lines = if messages.is_empty() { lines.filter(|line| !line.is_empty()).collect() } else { messages };
    let last: Vec<String> =
        lines[lines.len().saturating_sub(MESSAGE_LINES)..].iter().map(|line| format!("    {line}")).collect();
    last.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    const HEAD: &str =
        "# Domain logfile created by unset_name v0.3.23\n# current_pos  current_status\n0x00500000     ?\n";

    fn parse(lines: &str, len: u64) -> anyhow::Result<UsedMap> {
        parse_map(format!("{HEAD}{lines}").as_bytes(), len, &AtomicBool::new(false))
    }

    #[test]
    fn used_runs_come_out() {
        let used = parse("0x0  0x1000  +\n0x1000  0x1000  ?\n# c\n0x2000  0x1000  +\n0x3000 0x1000 ?\n", 0x9000);
        assert_eq!(used.expect("good map"), UsedMap { ranges: vec![0..0x1000, 0x2000..0x3000], spans: 0x4000 });
    }

    #[test]
    fn the_last_cluster_may_stick_out() {
        let used = parse("0x0 0x2000 +\n", 0x1800).expect("good map");
        assert_eq!((used.ranges.len(), used.ranges[0].clone(), used.spans), (1, 0..0x1800, 0x1800));
        assert!(parse("0x0 0x2000 +\n0x2000 0x1000 +\n", 0x1800).is_err());
        assert!(parse("0x0 0x4000000 +\n", 0x1800).is_err());
    }

    #[test]
    fn maps_that_make_no_sense_are_refused() {
        for (lines, why) in [
            ("", "no used block"),
            ("0x0 0x1000 ?\n", "no used block"),
            ("0x1000 0x1000 +\n", "does not continue"),
            ("0x0 0x1000 +\n0x2000 0x1000 +\n", "does not continue"),
            ("0x0 0x1000 +\n0x0 0x1000 +\n", "does not continue"),
            ("0x0 0x0 +\n", "does not continue"),
            ("0x0 0x1000 *\n", "line 4 makes no sense"),
            ("0x0 0x1000\n", "line 4 makes no sense"),
            ("0 0x1000 +\n", "line 4 makes no sense"),
            ("0x 0x1000 +\n", "line 4 makes no sense"),
            ("0x+0 0x1000 +\n", "line 4 makes no sense"),
            ("0x0 0xffffffffffffffff +\n", "longer than the volume"),
            ("0x0 0x1ffffffffffffffff +\n", "line 4 makes no sense"),
            ("0x0 0x1000 +\n0x1000 0xffffffffffffffff ?\n", "line 5 makes no sense"),
            ("0x0 0x1000 +\n0x1000 0x400000 ?\n", "longer than the volume"),
            ("<html>\n", "line 4 makes no sense"),
        ] {
            let error = parse(lines, 0x10000).expect_err(lines).to_string();
            assert!(error.contains(why), "{lines}: {error}");
        }
        let any = |map: &[u8]| parse_map(map, 10, &AtomicBool::new(false));
        assert!(any(b"").is_err());
        assert!(any(b"\xff\xfe").is_err());
        assert!(any(&[b'0'; 100_000]).is_err());
    }

    /// A map without an end, in which every other sector is used.
    struct Endless {
        text: std::io::Cursor<Vec<u8>>,
        at: u64,
        stop: Arc<AtomicBool>,
    }

    impl Read for Endless {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if self.text.position() == self.text.get_ref().len() as u64 {
                self.text = std::io::Cursor::new(
                    format!("{:#x} 0x200 +\n{:#x} 0x200 ?\n", self.at, self.at + 512).into_bytes(),
                );
                self.at += 1024;
            }
            self.stop.fetch_or(self.at > 1 << 20, Ordering::Relaxed);
            self.text.read(buf)
        }
    }

    #[test]
    fn an_endless_map_ends_with_the_volume_or_when_told_to() {
        let stop = Arc::new(AtomicBool::new(false));
        let text = std::io::Cursor::new(HEAD.into());
        let map = BufReader::new(Endless { text, at: 0, stop: Arc::clone(&stop) });
        assert_eq!(parse_map(map, u64::MAX, &stop).expect_err("stopped").to_string(), "interrupted");
        let text = std::io::Cursor::new(HEAD.into());
        let map = BufReader::new(Endless { text, at: 0, stop });
        let error = parse_map(map, 8 << 20, &AtomicBool::new(false)).expect_err("too long").to_string();
        assert!(error.contains("past the end of the volume"), "{error}");
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
        fn any_map_gives_ranges_inside_the_volume_or_an_error(
            lines in proptest::collection::vec("(0x[0-9a-f]{1,5} 0x[0-9a-f]{1,5} [+?*])|\\PC{0,20}", 0..6),
            len in 1u64..5000,
        ) {
            if let Ok(used) = parse(&lines.join("\n"), len) {
                prop_assert!(used.spans <= len && used.ranges.iter().all(|range| range.end <= used.spans));
                prop_assert!(used.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}

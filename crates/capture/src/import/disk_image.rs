//! Disk images of virtual machines: raw ones are captured directly; `qemu-img` first converts others to raw.
//!
//! The raw file is sparse, lies in the draft, and is deleted when the image is listed or abandoned. Until then the
//! library's disk has to hold the data twice. `qemu-img` gets the format that the file's signature shows and never
//! guesses. A file that refers to files elsewhere (a backing file, a data file) is refused: an image from another
//! person could otherwise make any file of this server part of its content.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::vhdx;
use crate::child::{Running, said};
use crate::container::disk_format;
use crate::partclone::{find_program, last_words};
use library::Draft;
use library::space::check_room;
use terminal::Progress;

/// Longest line of `qemu-img map`, in bytes; real ones have 120.
const LINE_LEN_MAX: u64 = 4096;
/// Longest output of `qemu-img info`, in bytes: split VMDKs of terabytes list several thousand files.
const INFO_LEN_MAX: u64 = 4 << 20;

/// The kind of a disk image, named as in `qemu-img`; `None` (raw) if no known signature is found.
///
/// # Errors
/// If it cannot be read.
pub(super) fn format_of(path: &Path) -> anyhow::Result<Option<&'static str>> {
    let (head, foot) = ends(path)?;
    Ok(disk_format(&head, &foot))
}

/// The first and the last 512 bytes.
fn ends(path: &Path) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let reading = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut head = Vec::new();
    (&mut file).take(512).read_to_end(&mut head).with_context(reading)?;
    let mut foot = Vec::new();
    let len = file.seek(SeekFrom::End(0)).with_context(reading)?;
    file.seek(SeekFrom::Start(len.saturating_sub(512))).with_context(reading)?;
    file.take(512).read_to_end(&mut foot).with_context(reading)?;
    Ok((head, foot))
}

/// Length that a VDI must have according to its header: where its blocks begin, how many there are, and their size.
/// (VirtualBox, `VDIHEADER1`.)
fn vdi_len(head: &[u8; 512]) -> u64 {
    let field = |at: usize| u64::from(u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes")));
    let (data, block_len, allocated) = (field(0x158), field(0x178), field(0x184));
    data.saturating_add(block_len.saturating_mul(allocated))
}

/// Whether this footer of a VHD belongs to a differencing disk: its other blocks are in another file, and qemu-img
/// reads them as zeros. (Virtual Hard Disk Image Format Specification: "Disk Type" at byte 60, 4 is a differencing
/// disk.)
fn is_differencing_vhd(footer: &[u8]) -> bool {
    footer.starts_with(b"conectix") && footer.get(60..64) == Some(&4_u32.to_be_bytes())
}

/// The relevant parts of the output of `qemu-img info`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Info {
    virtual_size: u64,
    encrypted: bool,
    backing_filename: Option<String>,
    format_specific: Specific,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Specific {
    data: SpecificData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct SpecificData {
    /// In QCOW2.
    data_file: Option<String>,
    /// In VMDK.
    extents: Vec<ExtentFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ExtentFile {
    filename: String,
}

/// One line of `qemu-img map`.
#[derive(Debug, Deserialize)]
struct Mapped {
    length: u64,
    zero: bool,
    data: bool,
}

/// Converts `path`, which has this `format`, to a raw disk in the draft's scratch directory; returns its file.
///
/// # Errors
/// If `qemu-img` is missing or fails, the file refers to files elsewhere, or there is no room.
pub(super) fn convert(path: &Path, format: &str, draft: &Draft, stop: &AtomicBool) -> anyhow::Result<PathBuf> {
    let program = find_program("qemu-img").with_context(|| {
        format!("looking for qemu-img, which reads {format}: run `apt install qemu-utils` (as root)")
    })?;
    // qemu-img takes text before a colon for a protocol, but not in an absolute path.
    let path = fs::canonicalize(path).with_context(|| format!("opening {}", path.display()))?;
    let qemu = Qemu { program, path, format };
    qemu.refuse_differences()?;
    let info = qemu.info(stop)?;
    qemu.refuse_other_files(&info)?;
    qemu.refuse_damage(stop)?;
    let data_len = qemu.data_len(stop)?;
    check_room(draft.library_dir(), data_len)
        .with_context(|| format!("making room for the raw disk that {} is turned into", qemu.path.display()))?;
    say!(
        "converting {} ({format}): {} of data on a disk of {}; this temporarily takes twice the space",
        qemu.path.display(),
        units::size(data_len),
        units::size(info.virtual_size)
    );
    let scratch = draft.scratch()?;
    let raw = scratch.join("disk.raw");
    qemu.convert(&raw, &scratch, data_len, stop)?;
    Ok(raw)
}

struct Qemu<'a> {
    program: PathBuf,
    path: PathBuf,
    format: &'a str,
}

impl Qemu<'_> {
    fn command(&self, action: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(action).args(["-f", self.format]).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn info(&self, stop: &AtomicBool) -> anyhow::Result<Info> {
        let mut said = Vec::new();
        self.read(self.command("info").arg("--output=json").arg(&self.path), stop, |out| {
            out.take(INFO_LEN_MAX).read_to_end(&mut said).map(|_| ()).context("reading what it says")
        })?;
        serde_json::from_slice(&said).with_context(|| format!("understanding `qemu-img info {}`", self.path.display()))
    }

    /// In a differencing VHD, qemu-img reads the missing blocks as zeros. For such a VHDX, it only says that it cannot
    /// open it.
    fn refuse_differences(&self) -> anyhow::Result<()> {
        let shown = self.path.display();
        let reading = || format!("reading {shown}");
        let is_part = match self.format {
            "vpc" => {
                let (head, foot) = ends(&self.path)?;
                is_differencing_vhd(&head) || is_differencing_vhd(&foot)
            }
            "vhdx" => File::open(&self.path).and_then(|file| vhdx::has_parent(&file)).with_context(reading)?,
            _ => false,
        };
        ensure!(
            !is_part,
            "{shown} is only a part, the differences from another disk (a checkpoint): merge both where it was made, \
             and import the result"
        );
        Ok(())
    }

    /// Everything has to be in this file, or beside it if the format normally splits disks.
    fn refuse_other_files(&self, info: &Info) -> anyhow::Result<()> {
        let shown = self.path.display();
        ensure!(!info.encrypted, "{shown} is encrypted: decrypt it with qemu-img convert first");
        let specific = &info.format_specific.data;
        if let Some(other) = info.backing_filename.as_ref().or(specific.data_file.as_ref()) {
            bail!(
                "{shown} is only a part: the rest is in {other:?}; if that file may be read, make one image of both \
                 with `qemu-img convert -O qcow2 {shown} whole.qcow2`, and import that"
            );
        }
        let dir = self.path.parent();
        for extent in &specific.extents {
            let file = dir.unwrap_or(Path::new("/")).join(&extent.filename);
            let file = fs::canonicalize(&file).with_context(|| format!("looking for {}", file.display()))?;
            ensure!(
                file.parent() == dir && file.is_file(),
                "{shown} takes its data from {}: only files beside it are read",
                file.display()
            );
        }
        Ok(())
    }

    /// In a file that was cut short, the data past its end reads as zeros, and a conversion succeeds.
    fn refuse_damage(&self, stop: &AtomicBool) -> anyhow::Result<()> {
        let shown = self.path.display();
        if self.format == "vdi" {
            let mut head = [0; 512];
            let mut file = File::open(&self.path).with_context(|| format!("opening {shown}"))?;
            file.read_exact(&mut head).with_context(|| format!("reading {shown}"))?;
            let len = file.metadata().with_context(|| format!("measuring {shown}"))?.len();
            let needed = vdi_len(&head);
            ensure!(
                len >= needed,
                "{shown} has {len} bytes, and its header claims {needed}: it was cut short, copy it again"
            );
        }
        let complaints = tempfile::tempfile().context("making room for what qemu-img says")?;
        let stderr = complaints.try_clone().context("making room for what qemu-img says")?;
        let stdout = complaints.try_clone().context("making room for what qemu-img says")?;
        let mut command = self.command("check");
        let child = command.arg(&self.path).stdout(stdout).stderr(stderr).spawn().context("running qemu-img")?;
        let status = Running(child).wait(stop, || ())?;
        // qemu-img(1): 2 means damage, 3 only unused space, 63 a format without a check.
        if !matches!(status.code(), Some(0 | 3 | 63)) {
            let words = said(&complaints).map(|said| last_words(&said)).unwrap_or_default();
            bail!("{shown} is damaged or was cut short: copy it again; `qemu-img check` said:\n{words}");
        }
        Ok(())
    }

    /// How many bytes are not known to be zero.
    fn data_len(&self, stop: &AtomicBool) -> anyhow::Result<u64> {
        let mut len: u64 = 0;
        self.read(self.command("map").arg("--output=json").arg(&self.path), stop, |out| {
            let mut lines = BufReader::new(out);
            let mut line = String::new();
            while lines.by_ref().take(LINE_LEN_MAX).read_line(&mut line)? > 0 {
                let text = line.trim().trim_start_matches('[').trim_end_matches([',', ']']);
                if !text.is_empty() {
                    let mapped: Mapped = serde_json::from_str(text).context("understanding `qemu-img map`")?;
                    len = len.saturating_add(if mapped.data && !mapped.zero { mapped.length } else { 0 });
                }
                line.clear();
            }
            Ok(())
        })?;
        Ok(len)
    }

    /// Runs it and lets `take` read its output; its error messages are short.
    fn read(
        &self,
        command: &mut Command,
        stop: &AtomicBool,
        take: impl FnOnce(&mut dyn Read) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let complaints = tempfile::tempfile().context("making room for what qemu-img says")?;
        let stderr = complaints.try_clone().context("making room for what qemu-img says")?;
        let child = command.stdout(Stdio::piped()).stderr(stderr).spawn().context("running qemu-img")?;
        let mut running = Running(child);
        let mut out = running.0.stdout.take().context("reading from qemu-img")?;
        let taken = take(&mut out);
        drop(out);
        let status = running.wait(stop, || ())?;
        // This signal kills it when its output is no longer read, and the reader's error is the reason then.
        if status.signal() != Some(libc::SIGPIPE) {
            self.check(status.success(), &complaints)?;
        }
        taken
    }

    fn check(&self, is_good: bool, complaints: &File) -> anyhow::Result<()> {
        let words = || said(complaints).map(|said| last_words(&said)).unwrap_or_default();
        ensure!(is_good, "qemu-img could not read {} as {}; it said:\n{}", self.path.display(), self.format, words());
        Ok(())
    }

    fn convert(&self, raw: &Path, scratch: &Path, data_len: u64, stop: &AtomicBool) -> anyhow::Result<()> {
        let complaints = tempfile::tempfile_in(scratch).context("making room for what qemu-img says")?;
        let stderr = complaints.try_clone().context("making room for what qemu-img says")?;
        let mut command = self.command("convert");
        command.args(["-p", "-O", "raw"]).arg(&self.path).arg(raw);
        let child = command.stdout(Stdio::piped()).stderr(stderr).spawn().context("running qemu-img")?;
        let mut running = Running(child);
        let out = running.0.stdout.take().context("reading from qemu-img")?;
        let mut progress = Progress::new("converting", data_len);
        let permyriad = AtomicU64::new(0);
        let status = thread::scope(|scope| {
            // The thread ends with the program, which is killed if the wait ends early.
            scope.spawn(|| read_percent(out, &permyriad));
            let mut shown = 0;
            let waited = running.wait(stop, || {
                let done = u128::from(data_len) * u128::from(permyriad.load(Ordering::Relaxed)) / 10_000;
                let done = u64::try_from(done).unwrap_or(data_len);
                progress.advance(done.saturating_sub(shown));
                shown = shown.max(done);
            });
            drop(running);
            waited
        })?;
        progress.finish();
        self.check(status.success(), &complaints)
    }
}

/// Reads `(12.34/100%)`, printed again and again, as hundredths of a percent.
fn read_percent(out: impl Read, permyriad: &AtomicU64) {
    let mut out = BufReader::new(out);
    let mut text = Vec::new();
    while out.by_ref().take(LINE_LEN_MAX).read_until(b'\r', &mut text).is_ok_and(|len| len > 0) {
        if let Some(done) = parse_percent(&String::from_utf8_lossy(&text)) {
            permyriad.store(done, Ordering::Relaxed);
        }
        text.clear();
    }
}

fn parse_percent(text: &str) -> Option<u64> {
    let number = text.trim().strip_prefix('(')?.split('/').next()?;
    let (whole, hundredths) = number.split_once('.')?;
    let done = whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(hundredths.parse().ok()?)?;
    (done <= 10_000).then_some(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_signatures() {
        let mut vdi = vec![0; 512];
        vdi[0x40..0x44].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        for (head, foot, format) in [
            (&b"QFI\xfb\0\0\0\x03"[..], &b""[..], Some("qcow2")),
            (b"QFI\xfb\0\0\0\x01", b"", Some("qcow")),
            (b"KDMV\x01", b"", Some("vmdk")),
            (b"# Disk DescriptorFile\n", b"", Some("vmdk")),
            (b"vhdxfile", b"", Some("vhdx")),
            (b"conectix", b"", Some("vpc")),
            (b"\0\0\0", b"conectix", Some("vpc")),
            (&vdi, b"", Some("vdi")),
            (b"", b"", None),
            (b"QFI", b"con", None),
        ] {
            assert_eq!(disk_format(head, foot), format, "{head:?}");
        }
    }

    #[test]
    fn progress_is_read_and_rubbish_is_not() {
        for (text, done) in
            [("    (0.00/100%)\r", Some(0)), ("(41.67/100%)", Some(4167)), ("(100.00/100%)", Some(10_000))]
        {
            assert_eq!(parse_percent(text), done);
        }
        for text in ["", "(", "(1/100%)", "(1000.00/100%)", "(99999999999999999999.1/", "(1.99999999999999999999/"] {
            assert_eq!(parse_percent(text), None, "{text}");
        }
    }
}

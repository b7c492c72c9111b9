//! Who has a disk, partition or disk image open for writing: what changes while it is read makes no image that boots.
//!
//! What the kernel itself writes to is not seen here: `in_use` finds mounts, swap, RAID and device mapper.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, Metadata};
use std::iter;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::stat::makedev;

use crate::in_use::{self, Device};

/// So many are named in an error; the rest is counted.
const NAMED_MAX: usize = 5;

/// A process that has it open for longer is one that means to write.
const LETS_GO: Duration = Duration::from_secs(1);

/// Somebody who can write to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Writer {
    /// The process; `None` for a loop device, which is the kernel's.
    pub pid: Option<u32>,
    /// What the process calls itself (`/proc/PID/comm`), or the name of the loop device.
    pub name: String,
}

impl Display for Writer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{} (process {pid})", self.name),
            None => write!(f, "the loop device /dev/{}", self.name),
        }
    }
}

/// Fails if somebody other than this process can write to the block device or file.
///
/// # Errors
/// Who, and what to do. Also if that cannot be found out.
pub(crate) fn refuse_writers(path: &Path) -> anyhow::Result<()> {
    let found = lasting_writers(path)?;
    if found.is_empty() {
        return Ok(());
    }
    let hint = if found.iter().any(|writer| writer.pid.is_none()) {
        "stop that (`losetup --detach` for a loop device)"
    } else {
        "stop that program"
    };
    bail!(
        "{} is open for writing in {}: an image of what changes while it is read may not boot; {hint}, or capture an LVM \
         snapshot (`lvcreate --snapshot`), and try again; or take it as it is with --at-own-risk",
        path.display(),
        named(&found)
    )
}

/// Fails if another process has the block device or file open for writing: what two write to is neither's.
///
/// # Errors
/// Which, and what to do. Also if that cannot be found out.
pub(crate) fn refuse_other_processes(path: &Path) -> anyhow::Result<()> {
    let mut found = lasting_writers(path)?;
    found.retain(|writer| writer.pid.is_some());
    if found.is_empty() {
        return Ok(());
    }
    bail!(
        "{} is open for writing in {} (a virtual machine, or a copy that runs?): stop that program and try again",
        path.display(),
        named(&found)
    )
}

/// As [`writers`], without processes that let go of it at once. Between fork and exec, a program that another one starts has all
/// that is open there, although it will never know of it.
fn lasting_writers(path: &Path) -> anyhow::Result<Vec<Writer>> {
    let deadline = Instant::now() + LETS_GO;
    loop {
        let found = writers(path)?;
        if found.iter().all(|writer| writer.pid.is_none()) || Instant::now() >= deadline {
            return Ok(found);
        }
        thread::sleep(LETS_GO / 20);
    }
}

fn named(writers: &[Writer]) -> String {
    let mut named: Vec<String> = writers.iter().take(NAMED_MAX).map(Writer::to_string).collect();
    if writers.len() > NAMED_MAX {
        named.push(format!("{} more", writers.len() - NAMED_MAX));
    }
    named.join(", ")
}

/// The processes, without this one, and the loop devices that have the block device or file open for writing: it, the
/// disk it is on, its partitions, what it is a loop device over, or a loop device over any of them. A process counts as well
/// if it only has a shared mapping left. What may not be looked into (another user's process) is skipped.
///
/// # Errors
/// If there is no such path, or no list of processes or of the device's partitions.
pub(crate) fn writers(path: &Path) -> anyhow::Result<Vec<Writer>> {
    let meant = Meant::of(path)?;
    let loops = meant.loops.iter().map(|name| Writer { pid: None, name: name.clone() });
    let mut found: Vec<Writer> = loops.collect();
    for entry in fs::read_dir("/proc").context("listing processes in /proc")? {
        let entry = entry.context("listing processes in /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let dir = entry.path();
        if pid != std::process::id() && (has_open(&dir, &meant) || has_mapped(&dir, &meant)) {
            found.push(Writer { pid: Some(pid), name: name_of(&dir) });
        }
    }
    found.sort_unstable_by_key(|writer| writer.pid);
    Ok(found)
}

/// The devices and files whose bytes are the ones in question, or have some of them.
pub(crate) struct Meant {
    pub(crate) devices: Vec<Device>,
    /// Device and inode number each.
    pub(crate) files: Vec<(u64, u64)>,
    /// Names of the loop devices over them that can be written to.
    loops: Vec<String>,
}

impl Meant {
    pub(crate) fn of(path: &Path) -> anyhow::Result<Meant> {
        let looking = || format!("looking at {}", path.display());
        let found = fs::metadata(path).with_context(looking)?;
        let mut meant = Meant { devices: Vec::new(), files: Vec::new(), loops: Vec::new() };
        for lower in iter::successors(Some(found), in_use::under).take(in_use::LOOPS_DEEP) {
            if lower.file_type().is_block_device() {
                meant.add_family(&in_use::sysfs_of(&lower).with_context(looking)?)?;
            } else {
                meant.files.push((lower.dev(), lower.ino()));
            }
        }
        meant.add_loops();
        Ok(meant)
    }

    /// What changes if the block device or file is written to: it, its partitions, and what it is a loop device over.
    pub(crate) fn written_with(path: &Path) -> anyhow::Result<Meant> {
        let looking = || format!("looking at {}", path.display());
        let found = fs::metadata(path).with_context(looking)?;
        let mut meant = Meant { devices: Vec::new(), files: Vec::new(), loops: Vec::new() };
        for lower in iter::successors(Some(found), in_use::under).take(in_use::LOOPS_DEEP) {
            if lower.file_type().is_block_device() {
                in_use::add(&mut meant.devices, in_use::devices_of(&in_use::sysfs_of(&lower).with_context(looking)?)?);
            } else {
                meant.files.push((lower.dev(), lower.ino()));
            }
        }
        Ok(meant)
    }

    /// Whether one of them is among the others.
    pub(crate) fn meets(&self, other: &Meant) -> bool {
        let has = |device: &Device| other.devices.iter().any(|known| known.number == device.number);
        self.devices.iter().any(has) || self.files.iter().any(|file| other.files.contains(file))
    }

    /// A device, its partitions, and the disk that it is a partition of.
    fn add_family(&mut self, sysfs: &Path) -> anyhow::Result<()> {
        in_use::add(&mut self.devices, in_use::devices_of(sysfs)?);
        if let (true, Some(disk)) = (sysfs.join("partition").exists(), sysfs.parent()) {
            let disks = in_use::devices_of(disk)?.into_iter().filter(|device| device.sysfs == disk);
            in_use::add(&mut self.devices, disks.collect());
        }
        Ok(())
    }

    /// The loop devices over what is there, and over those, and so on.
    fn add_loops(&mut self) {
        let own = self.devices.len();
        let files = self.files.clone();
        self.add_loops_over(|backing| files.contains(&(backing.dev(), backing.ino())));
        let mut seen = 0;
        while let Some(number) = self.devices.get(seen).map(|device| device.number) {
            self.add_loops_over(|backing| backing.file_type().is_block_device() && backing.rdev() == number);
            seen += 1;
        }
        let loops = self.devices[own..].iter().filter(|device| device.sysfs.join("loop").exists());
        self.loops = loops.map(|device| device.name.clone()).collect();
    }

    /// One that is known already, the source perhaps, brings no more of its partitions.
    fn add_loops_over(&mut self, is_meant: impl Fn(&Metadata) -> bool) {
        let is_known = |device: &Device| self.devices.iter().any(|known| device.sysfs.starts_with(&known.sysfs));
        let over = in_use::loops_over(is_meant).into_iter();
        let new = over.filter(|device| !is_known(device) && is_writable(device)).collect();
        in_use::add(&mut self.devices, new);
    }

    fn has(&self, found: &Metadata) -> bool {
        if found.file_type().is_block_device() {
            self.devices.iter().any(|device| device.number == found.rdev())
        } else {
            self.files.contains(&(found.dev(), found.ino()))
        }
    }

    /// False if this inode number rules it out, which spares a look at a file that may be on a server that is gone.
    fn may_have(&self, inode: u64) -> bool {
        !self.devices.is_empty() || self.files.iter().any(|file| file.1 == inode)
    }
}

fn is_writable(device: &Device) -> bool {
    fs::read_to_string(device.sysfs.join("ro")).is_ok_and(|text| text.trim() == "0")
}

/// Whether the process of this directory in `/proc` has one of them open for writing.
fn has_open(process: &Path, meant: &Meant) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fdinfo")) else { return false };
    descriptors.flatten().any(|entry| {
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        is_for_writing(&info)
            && field(&info, "ino:").and_then(|text| text.parse().ok()).is_none_or(|inode| meant.may_have(inode))
            && fs::metadata(process.join("fd").join(entry.file_name())).is_ok_and(|found| meant.has(&found))
    })
}

/// Whether `/proc/PID/fdinfo/N` (proc_pid_fdinfo(5)) is of a descriptor that can be written to.
fn is_for_writing(info: &str) -> bool {
    let flags = field(info, "flags:").and_then(|text| libc::c_int::from_str_radix(text, 8).ok());
    flags.is_some_and(|flags| matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR))
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Whether the process has a shared mapping of one of them that it can write to; the descriptor may be closed.
fn has_mapped(process: &Path, meant: &Meant) -> bool {
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    maps.lines().filter_map(Mapping::parse).filter(|mapping| meant.may_have(mapping.inode)).any(|mapping| {
        match fs::metadata(process.join("map_files").join(&mapping.name)) {
            Ok(found) => meant.has(&found),
            // Only root may follow these links.
            Err(_) => meant.files.contains(&(mapping.device, mapping.inode)),
        }
    })
}

/// A line of `/proc/PID/maps` (proc_pid_maps(5)) of a file that is mapped shared and writable.
struct Mapping {
    /// What it is called in `/proc/PID/map_files`.
    name: String,
    device: u64,
    inode: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Mapping> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let mode = fields.next()?.as_bytes();
        if (mode.get(1), mode.get(3)) != (Some(&b'w'), Some(&b's')) {
            return None;
        }
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let device = makedev(u64::from_str_radix(major, 16).ok()?, u64::from_str_radix(minor, 16).ok()?);
        let inode = fields.next()?.parse().ok()?;
        // `maps` pads addresses with zeros, `map_files` does not.
        let bare = |address: &str| u64::from_str_radix(address, 16).ok().map(|address| format!("{address:x}"));
        (inode != 0).then_some(Mapping { name: format!("{}-{}", bare(start)?, bare(end)?), device, inode })
    }
}

/// What a process calls itself: anything, so nothing that moves the cursor.
fn name_of(process: &Path) -> String {
    let name = fs::read(process.join("comm")).unwrap_or_default();
    let name: String =
        String::from_utf8_lossy(&name).trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if name.is_empty() { "a program".to_owned() } else { name }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    /// Much longer than a process takes to start, even on a slow, shared machine.
    const DEADLINE: Duration = Duration::from_secs(60);

    /// A loop device that is detached when this goes.
    pub(crate) struct Loop(PathBuf);

    impl Loop {
        pub(crate) fn over(lower: &Path, options: &[&str]) -> Loop {
            let tried = Command::new("losetup").args(["--find", "--show"]).args(options).arg(lower).output();
            let output = tried.expect("losetup is there (apt install util-linux)");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "no loop devices here, which root on a machine of its own has: {said}");
            Loop(PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim()))
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        /// The node of its first or second partition, which a kernel without MBRs has to be told about.
        pub(crate) fn partition(&self, number: u32) -> PathBuf {
            let node = PathBuf::from(format!("{}p{number}", self.0.display()));
            if !node.exists() {
                let [number, start] = [number, number * 2048].map(|number| number.to_string());
                let status = Command::new("addpart").arg(&self.0).args([&number, &start, "2048"]).status();
                assert!(status.expect("addpart is there (apt install util-linux)").success(), "no partition {number}");
            }
            assert!(node.exists(), "{} is not there: is /dev a devtmpfs?", node.display());
            node
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
        }
    }

    /// A file of 8 MiB with an MBR of two partitions: bytes 1 MiB to 2 MiB, and 2 MiB to 3 MiB.
    pub(crate) fn disk(dir: &Path) -> PathBuf {
        let mut bytes = vec![0_u8; 8 << 20];
        for (entry, start) in [(446, 2048_u32), (462, 4096)] {
            bytes[entry + 4] = 0x83;
            bytes[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
            bytes[entry + 12..entry + 16].copy_from_slice(&2048_u32.to_le_bytes());
        }
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        let path = dir.join("disk");
        fs::write(&path, bytes).expect("written");
        path
    }

    #[test]
    fn who_lets_go_at_once_is_no_writer() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 3<>\"$1\"; echo open; exec 1>&-; sleep 0.2", "sh"]).arg(&path).stdout(Stdio::piped());
        let mut child = shell.spawn().expect("a shell");
        let mut said = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut said).expect("said");
        assert_eq!(said, "open\n");
        refuse_writers(&path).expect("it has let go");
        refuse_other_processes(&path).expect("it has let go");
        child.wait().expect("it ends");
    }

    /// A shell that has the file open until it is dropped.
    struct Holder(Child);

    impl Holder {
        fn new(path: &Path, how: &str) -> Holder {
            let script = format!("exec 3{how}\"$1\"; echo open; read line");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script, "sh"]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = shell.spawn().expect("a shell");
            let mut said = String::new();
            let out = child.stdout.take().expect("piped");
            BufReader::new(out).read_line(&mut said).expect("said");
            assert_eq!(said, "open\n", "the shell could not open {}", path.display());
            Holder(child)
        }

        fn writer(&self) -> Writer {
            Writer { pid: Some(self.0.id()), name: "sh".to_owned() }
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    fn found(path: &Path) -> Vec<Writer> {
        writers(path).expect("looked up")
    }

    /// Waits until it has these writers and no others: a process that another test starts has all that is open here until
    /// it runs its program.
    fn expect(path: &Path, writers: &[Writer]) {
        let started = Instant::now();
        while found(path) != writers && started.elapsed() < DEADLINE {
            thread::yield_now();
        }
        assert_eq!(found(path), writers, "{}", path.display());
    }

    #[test]
    fn a_process_that_can_write_to_a_file_is_named_and_one_that_reads_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let [path, other] = ["disk", "other"].map(|name| dir.path().join(name));
        fs::write(&path, b"bytes").expect("written");
        fs::write(&other, b"bytes").expect("written");
        let own = OpenOptions::new().write(true).open(&path).expect("a file");
        assert!(found(&path).iter().all(|writer| writer.pid != Some(std::process::id())));
        drop(own);
        let _elsewhere = Holder::new(&other, "<>");
        let reader = Holder::new(&path, "<");
        expect(&path, &[]);
        refuse_writers(&path).expect("no program writes");
        for how in ["<>", ">>"] {
            let writer = Holder::new(&path, how);
            expect(&path, &[writer.writer()]);
            let link = dir.path().join("link");
            fs::hard_link(&path, &link).expect("linked");
            expect(&link, &[writer.writer()]);
            fs::remove_file(link).expect("removed");
            let said = refuse_writers(&path).expect_err("a program writes").to_string();
            let named = format!("{} is open for writing in sh (process {}): ", path.display(), writer.0.id());
            assert!(said.starts_with(&named), "{said}");
            for part in ["stop that program", "lvcreate --snapshot", "--at-own-risk"] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
        drop(reader);
        expect(&path, &[]);
        assert!(writers(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn many_are_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        fs::write(&path, b"bytes").expect("written");
        let writers: Vec<Holder> = (0..NAMED_MAX + 2).map(|_| Holder::new(&path, "<>")).collect();
        let said = refuse_writers(&path).expect_err("a program writes").to_string();
        assert_eq!(said.matches("(process ").count(), NAMED_MAX, "{said}");
        assert!(said.contains(", 2 more: "), "{said}");
        assert_eq!(found(&path).len(), writers.len());
    }

    #[test]
    fn disks_and_partitions_have_the_same_writers() {
        let dir = tempfile::tempdir().expect("a directory");
        let lower = disk(dir.path());
        let device = Loop::over(&lower, &["--partscan"]);
        let [first, second] = [1, 2].map(|number| device.partition(number));
        let nodes = [device.path(), &first, &second];
        let reader = Holder::new(&first, "<");
        nodes.iter().for_each(|node| expect(node, &[]));
        let writer = Holder::new(&first, "<>");
        nodes[..2].iter().for_each(|node| expect(node, &[writer.writer()]));
        expect(&second, &[]);
        drop((writer, reader));
        // The disk, and what is under the loop device.
        for disk in [device.path(), &lower] {
            let writer = Holder::new(disk, "<>");
            nodes.iter().for_each(|node| expect(node, &[writer.writer()]));
        }
    }

    #[test]
    fn loop_devices_that_can_be_written_to_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let lower = disk(dir.path());
        let reader = Loop::over(&lower, &["--read-only"]);
        expect(&lower, &[]);
        drop(reader);
        let device = Loop::over(&lower, &[]);
        let name = |device: &Loop| device.path().file_name().expect("a name").to_string_lossy().into_owned();
        let kernel = |device: &Loop| Writer { pid: None, name: name(device) };
        expect(&lower, &[kernel(&device)]);
        // It is not its own.
        expect(device.path(), &[]);
        let upper = Loop::over(device.path(), &[]);
        expect(device.path(), &[kernel(&upper)]);
        let writer = Holder::new(upper.path(), "<>");
        assert!(found(&lower).contains(&writer.writer()));
        expect(device.path(), &[kernel(&upper), writer.writer()]);
        let said = refuse_writers(device.path()).expect_err("it can be written to").to_string();
        assert!(said.contains(&format!("in the loop device {}, sh", upper.path().display())), "{said}");
        assert!(said.contains("losetup --detach"), "{said}");
    }

    /// This process is looked at as if it were another.
    #[test]
    fn a_shared_mapping_outlives_its_descriptor() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        let own = Path::new("/proc/self");
        let meant = Meant::of(&path).expect("a file");
        for (protection, sharing, is_writer) in [
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, true),
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE, false),
            (libc::PROT_READ, libc::MAP_SHARED, false),
        ] {
            let file = OpenOptions::new().read(true).write(true).open(&path).expect("a file");
            assert!(has_open(own, &meant));
            let address = map(&file, protection, sharing);
            drop(file);
            assert!(!has_open(own, &meant));
            assert_eq!(has_mapped(own, &meant), is_writer, "{protection} {sharing}");
            // SAFETY: exactly what was mapped, to which nothing points.
            assert_eq!(unsafe { libc::munmap(address, 4096) }, 0);
        }
        assert!(!has_mapped(own, &meant));
    }

    fn map(file: &File, protection: libc::c_int, sharing: libc::c_int) -> *mut libc::c_void {
        // SAFETY: the kernel chooses where, so nothing else is there; the file is open and longer than 4096 bytes.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, sharing, file.as_raw_fd(), 0) };
        assert_ne!(address, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        address
    }

    #[test]
    fn flags_and_mappings_parse() {
        let info = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t25\nino:\t17\n");
        for (flags, is_writer) in [("0100000", false), ("0100001", true), ("02100002", true), ("010000000", false)] {
            assert_eq!(is_for_writing(&info(flags)), is_writer, "{flags}");
        }
        assert_eq!(field(&info("0"), "ino:"), Some("17"));
        assert!(!is_for_writing("") && !is_for_writing("flags:\tx") && !is_for_writing("flags:\t-1"));
        let line = "00400000-7f00aa001000 rw-s 00000000 fd:10 131 /a b (deleted)";
        let mapping = Mapping::parse(line).expect("good line");
        assert_eq!((mapping.name.as_str(), mapping.inode), ("400000-7f00aa001000", 131));
        assert_eq!(mapping.device, makedev(0xfd, 0x10));
        for other in ["rw-p 00000000 fd:10 131 /a", "r--s 00000000 fd:10 131 /a", "rw-s 00000000 00:00 0", "rw", ""] {
            assert!(Mapping::parse(&format!("400000-500000 {other}")).is_none(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_line_of_proc_is_too_odd(text in "[0-9a-f:rwps \\-\\t]{0,60}") {
            let _ = (is_for_writing(&format!("flags:{text}")), Mapping::parse(&text));
        }
    }
}

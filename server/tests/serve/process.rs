//! The server's process, and its other commands.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lan::{Lan, Station};

/// How long anything may take; the machine is slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running `ezio serve`.
pub struct Server {
    child: Child,
    log: PathBuf,
}

/// A command of the binary under test, with the library of this test.
pub fn ezio(lan: &Lan, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ezio"));
    command.args(arguments).arg("--library").arg(library(lan)).env("RUST_BACKTRACE", "0");
    command.output().expect("ezio starts")
}

/// The same, and it has to succeed; gives what it says.
pub fn ezio_ok(lan: &Lan, arguments: &[&str]) -> String {
    let out = ezio(lan, arguments);
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The same, and it has to fail; gives what it complains about.
pub fn ezio_fails(lan: &Lan, arguments: &[&str]) -> String {
    let out = ezio(lan, arguments);
    assert!(!out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The token of a machine's order.
pub fn token(client: &Station, mac: &str) -> String {
    let conf = client.tftp(&format!("ezio.conf/01-{}", mac.replace(':', "-"))).expect("an order");
    conf.lines().find_map(|line| line.strip_prefix("TOKEN=")).expect("a token").to_owned()
}

/// Where the images of this test are.
pub fn library(lan: &Lan) -> PathBuf {
    lan.dir.path().join("library")
}

/// A boot directory with recognisable contents: names, and their lengths in bytes.
pub fn boot_dir(lan: &Lan) -> PathBuf {
    let dir = lan.dir.path().join("boot");
    fs::create_dir_all(&dir).expect("made");
    for (name, len) in [("undionly.kpxe", 70_000), ("snponly.efi", 300_001), ("vmlinuz", 2 << 20), ("initrd.img", 0)] {
        let bytes: Vec<u8> = (0..len).map(|index: usize| (index * 7 + index / 251) as u8).collect();
        fs::write(dir.join(name), bytes).expect("written");
    }
    // More blocks of 512 bytes than a block number has values.
    let large: Vec<u8> = (0..35_000_000u32).map(|index| (index * 7 + index / 251) as u8).collect();
    fs::write(dir.join("initrd.img"), large).expect("written");
    dir
}

impl Server {
    /// Starts it and waits until it serves.
    pub fn start(lan: &Lan, arguments: &[&str]) -> Server {
        let mut server = Server::spawn(lan, arguments);
        server.wait_for_log("armed    ");
        server
    }

    fn spawn(lan: &Lan, arguments: &[&str]) -> Server {
        let log = lan.dir.path().join(format!("serve-{}.log", fs::read_dir(lan.dir.path()).map_or(0, Iterator::count)));
        let file = File::create(&log).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezio"));
        command.args(["serve", "-v"]).args(arguments);
        if !arguments.contains(&"--boot-dir") {
            command.arg("--boot-dir").arg(boot_dir(lan));
        }
        command.arg("--library").arg(library(lan)).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        command.stdout(file.try_clone().expect("a log")).stderr(file);
        Server { child: command.spawn().expect("ezio starts"), log }
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    /// Memory it has, in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// Waits until it has said this.
    pub fn wait_for_log(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            if let Some(status) = self.child.try_wait().expect("it can be watched") {
                panic!("the server ended with {status} before it said {text:?}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "the server never said {text:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as systemd does, and gives its exit code.
    pub fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.child.wait().expect("it ends").code()
    }

    /// Ends it as a power cut does.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("it ends");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a process id")), signal).expect("it runs");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !test() {
        assert!(Instant::now() < deadline, "it never came about: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A file with this text in the test's directory.
pub fn file(lan: &Lan, name: &str, text: &str) -> String {
    let path: &Path = lan.dir.path();
    let path = path.join(name);
    fs::write(&path, text).expect("written");
    path.to_str().expect("a plain path").to_owned()
}

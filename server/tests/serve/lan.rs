//! A small network: a bridge with the server's address, and stations in separate namespaces.
//!
//! Each test runs again as a child under `unshare -Urn`, where it may do as it likes without being root. A station is
//! a thread in a separate network namespace; everything that it opens or starts is there.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// Where the server is, on the bridge `br0`.
pub const SERVER: &str = "10.9.0.1";
/// curl's exit code for TFTP error 1.
pub const NOT_FOUND: i32 = 68;
/// And for TFTP error 7.
pub const NO_SUCH_USER: i32 = 74;
/// Says that we are inside already.
const INSIDE: &str = "EZIO_TEST_IN_NAMESPACE";

type Job = Box<dyn FnOnce() + Send>;

/// The network of one test, and a directory for its files.
pub struct Lan {
    pub dir: TempDir,
}

/// A machine on the network.
pub struct Station {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// Runs `case` inside a namespace of its own.
///
/// `name` is the test's full path, by which the child finds it; `tools` are the foreign programs it needs.
pub fn in_namespace(name: &str, tools: &[&str], case: impl FnOnce(Lan)) {
    if std::env::var_os(INSIDE).is_some() {
        let dir = tempfile::tempdir().expect("a directory");
        run("ip", &["link", "set", "lo", "up"]);
        // Without an address of its own a bridge takes its ports' lowest, and changes it when another station joins.
        let address = ["address", "52:54:00:77:ff:01"];
        run("ip", &[&["link", "add", "br0"], &address[..], &["type", "bridge", "forward_delay", "0"]].concat());
        run("ip", &["addr", "add", &format!("{SERVER}/24"), "dev", "br0"]);
        run("ip", &["link", "set", "br0", "up"]);
        return case(Lan { dir });
    }
    let here = |tool: &&&str| {
        Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().is_ok_and(|out| out.status.success())
    };
    let missing: Vec<_> = ["unshare", "ip"].iter().chain(tools).filter(|tool| !here(tool)).collect();
    assert!(missing.is_empty(), "{missing:?} not installed: `make setup` does that");
    let probe = Command::new("unshare").args(["-Urn", "true"]).output().expect("unshare starts");
    assert!(probe.status.success(), "no namespaces here: {}", String::from_utf8_lossy(&probe.stderr));
    let exe = std::env::current_exe().expect("our own path");
    let mut child = Command::new("unshare");
    child.args(["-Urn", "--kill-child"]).arg(exe).args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let out = child.env(INSIDE, "1").env("RUST_BACKTRACE", "0").output().expect("unshare starts");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{name} was not found: {text}");
}

impl Lan {
    /// A machine with this address (10.9.0.N), or without one for 0. `number` has to be its own.
    pub fn station(&self, number: u8, with_address: bool) -> Station {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace for the station");
            ready.send(nix::unistd::gettid()).expect("the test waits");
            queue.into_iter().for_each(|job| job());
        });
        let tid = is_ready.recv().expect("the station is there").to_string();
        let (here, there) = (format!("s{number}"), format!("c{number}"));
        run("ip", &["link", "add", &here, "type", "veth", "peer", "name", &there]);
        run("ip", &["link", "set", &here, "master", "br0", "up"]);
        run("ip", &["link", "set", &there, "netns", &tid, "name", "eth0"]);
        let station = Station { jobs: Some(jobs), thread: Some(thread) };
        station.run("ip", &["link", "set", "lo", "up"]);
        station.run("ip", &["link", "set", "eth0", "address", &format!("52:54:00:77:00:{number:02x}"), "up"]);
        if with_address {
            station.run("ip", &["addr", "add", &format!("10.9.0.{number}/24"), "dev", "eth0"]);
        } else {
            // Something to send broadcasts with; DHCP decides about the address.
            station.run("ip", &["route", "add", "default", "dev", "eth0"]);
        }
        station
    }
}

impl Station {
    /// Does something there and gives back what came of it.
    pub fn run_in<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (result, is_done) = mpsc::channel();
        let job = move || {
            let _ = result.send(catch_unwind(AssertUnwindSafe(job)));
        };
        self.jobs.as_ref().expect("it is open").send(Box::new(job)).expect("the station works");
        match is_done.recv().expect("the station works") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Runs a program there to its end.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        let (program, arguments) = (program.to_owned(), owned(arguments));
        self.run_in(move || Command::new(&program).args(&arguments).output().expect("the program starts"))
    }

    /// The same, and it has to succeed; gives its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        checked(program, arguments, self.output(program, arguments))
    }

    /// What curl fetches from a path of the server; fails unless the server is content.
    pub fn get(&self, path: &str) -> String {
        self.run("curl", &["-sSf", "--max-time", "60", &format!("http://{SERVER}{path}")])
    }

    /// The HTTP status and the body of an answer.
    pub fn ask(&self, path: &str, more: &[&str]) -> (u16, String) {
        let url = format!("http://{SERVER}{path}");
        let mut arguments = vec!["-sS", "--max-time", "60", "--path-as-is", "-w", "\n%{http_code}", &url];
        arguments.extend(more);
        let text = self.run("curl", &arguments);
        let (body, status) = text.rsplit_once('\n').expect("a status");
        (status.parse().expect("a number"), body.to_owned())
    }

    /// Fetches a file with curl's TFTP; `Err` is curl's exit code, [`NOT_FOUND`] for TFTP error 1.
    pub fn tftp(&self, name: &str) -> Result<String, i32> {
        let out = self.output("curl", &["-sS", "--max-time", "60", &format!("tftp://{SERVER}/{name}")]);
        match out.status.code() {
            Some(0) => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
            code => Err(code.unwrap_or(-1)),
        }
    }

    /// The server's status.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/status.json")).expect("JSON")
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a program beside the server; it has to succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    checked(program, arguments, Command::new(program).args(arguments).output().expect("the program starts"))
}

fn checked(program: &str, arguments: &[&str], out: Output) -> String {
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {}: {error}", arguments.join(" "));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

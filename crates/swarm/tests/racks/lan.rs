//! A small network in a namespace: a bridge with the seeder's address, and stations in separate namespaces.
//!
//! Each test runs again as a child under `unshare -Urn`, where it may do as it likes without being root. A station is a
//! thread in a separate network namespace; every socket that is opened in it is there.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};

/// Where the seeder is, on the bridge `br0`.
pub const SEEDER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// Says that we are inside already.
const INSIDE: &str = "EZIO_TEST_IN_NAMESPACE";

/// Runs `case` inside a separate namespace. `name` is the test's full path, by which the child finds it.
pub fn in_namespace(name: &str, case: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run("ip link set lo up");
        run("ip link add br0 address 52:54:00:77:ff:01 type bridge forward_delay 0 mcast_snooping 0");
        run(&format!("ip addr add {SEEDER}/16 dev br0"));
        run("ip link set br0 gso_max_size 16384 up");
        run("ip route replace 10.9.0.0/16 dev br0 src 10.9.0.1 congctl cubic");
        return case();
    }
    let exe = std::env::current_exe().expect("our own path");
    let mut child = Command::new("unshare");
    child.args(["-Urn", "--kill-child"]).arg(exe).args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let out =
        child.env(INSIDE, "1").env("RUST_BACKTRACE", "0").output().expect("unshare starts: `make setup` installs it");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{name} was not found: {text}");
    text.lines().filter(|line| line.contains(": ")).for_each(|line| println!("{line}"));
}

/// Limits what the seeder sends, over all its links.
pub fn shape(mbit: u32) {
    run(&format!("tc qdisc replace dev br0 root tbf rate {mbit}mbit burst 64kb limit 1mb"));
}

/// Starts a machine with one card and these addresses (10.9.N.M), on which `job` runs.
pub fn station<T: Send + 'static>(
    number: u8,
    addresses: &[Ipv4Addr],
    job: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let (ready, is_ready) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace for the station");
        ready.send(nix::unistd::gettid()).expect("the test waits");
        may_go.recv().expect("the cable is there");
        job()
    });
    let tid = is_ready.recv().expect("the station is there");
    run(&format!("ip link add s{number} type veth peer name c{number}"));
    run(&format!("ip link set s{number} master br0 up"));
    run(&format!("ip link set c{number} netns {tid} name eth0"));
    let mut inside =
        vec!["ip link set lo up".to_owned(), format!("ip link set eth0 address 52:54:00:77:00:{number:02x} up")];
    inside.extend(addresses.iter().map(|address| format!("ip addr add {address}/16 dev eth0")));
    inside.iter().for_each(|command| run(&format!("nsenter -t {tid} -n {command}")));
    go.send(()).expect("the station waits");
    thread
}

/// Pulls a station's cable.
pub fn unplug(number: u8) {
    run(&format!("ip link set s{number} down"));
}

fn run(command: &str) {
    let out = Command::new("sh").args(["-c", command]).output().expect("sh starts");
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
}

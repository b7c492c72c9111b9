//! A rack: machines as network namespaces on the ports of one bridge, each port shaped both ways.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::process::{find_program, sh};

/// Bytes that may be sent at once. With half of this, goodput is 5 % lower.
const BURST: &str = "64kb";
/// A port's queue in bytes, about that of a switch.
const QUEUE: &str = "1mb";
/// Largest packet passed to a shaped link: larger ones would be bursts compared to [`BURST`].
const GSO_MAX: u32 = 16384;

/// One bridge and its machines. It is dismantled when dropped.
pub struct Rack {
    name: String,
    /// The machines; the seeder is the first.
    pub nodes: Vec<Node>,
    /// The bridge's address, on an unshaped port: the tracker is there.
    pub hub: Ipv4Addr,
}

pub struct Node {
    netns: String,
    handle: File,
    /// The bridge's end of its cable.
    port: String,
    pub ip: Ipv4Addr,
    mbit: Option<f64>,
}

impl Rack {
    /// Builds `count` machines with ports of `mbit` Mbit/s, or unshaped ones. `seed` determines the addresses: BEP 40
    /// ranks peers by them, so each run should have different ones.
    ///
    /// # Errors
    /// If the kernel refuses any of it.
    pub fn new(count: usize, mbit: Option<f64>, seed: u64) -> Result<Rack> {
        let mut rng = StdRng::seed_from_u64(seed);
        let name = format!("b{:06x}", rng.random_range(0..1 << 24));
        let net: u8 = rng.random_range(1..250);
        let hub = Ipv4Addr::new(10, net, 0, 1);
        sh(&format!("ip link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"))?;
        let mut rack = Rack { name: name.clone(), nodes: Vec::new(), hub };
        sh(&format!("ip addr add {hub}/16 brd + dev {name}"))?;
        sh(&format!("ip link set {name} up"))?;
        while rack.nodes.len() < count {
            let ip = Ipv4Addr::new(10, net, rng.random_range(1..255), rng.random_range(1..255));
            if rack.nodes.iter().all(|node| node.ip != ip) {
                let node = Node::new(&name, rack.nodes.len(), ip, mbit)?;
                rack.nodes.push(node);
            }
        }
        Ok(rack)
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        // Anything that cannot be removed disappears with the session's namespace.
        for node in &self.nodes {
            let _ = sh(&format!("ip link del {}", node.port));
            let _ = sh(&format!("ip netns del {}", node.netns));
        }
        let _ = sh(&format!("ip link del {}", self.name));
    }
}

impl Node {
    fn new(bridge: &str, index: usize, ip: Ipv4Addr, mbit: Option<f64>) -> Result<Node> {
        let netns = format!("{bridge}n{index}");
        let port = format!("{bridge}p{index}");
        sh(&format!("ip netns add {netns}"))?;
        let handle = File::open(format!("/run/netns/{netns}")).context("opening a network namespace")?;
        sh(&format!("ip link add {port} type veth peer name eth0 netns {netns}"))?;
        if mbit.is_some() {
            sh(&format!("ip link set {port} gso_max_size {GSO_MAX}"))?;
            sh(&format!("ip -n {netns} link set eth0 gso_max_size {GSO_MAX}"))?;
        }
        sh(&format!("ip link set {port} master {bridge} up"))?;
        sh(&format!("ip -n {netns} link set lo up"))?;
        // udpcast needs a broadcast address.
        sh(&format!("ip -n {netns} addr add {ip}/16 brd + dev eth0"))?;
        sh(&format!("ip -n {netns} link set eth0 up"))?;
        // Set the congestion control whatever the kernel prefers: a common one, and the same for every machine.
        let octets = ip.octets();
        let net = format!("{}.{}.0.0/16", octets[0], octets[1]);
        sh(&format!("ip -n {netns} route replace {net} dev eth0 src {ip} congctl cubic"))?;
        // Without a route, multicast and the broadcast address would be unreachable.
        sh(&format!("ip -n {netns} route add 224.0.0.0/4 dev eth0 src {ip}"))?;
        let mut node = Node { netns, handle, port, ip, mbit: None };
        if let Some(mbit) = mbit {
            node.shape(mbit)?;
        }
        Ok(node)
    }

    /// Sets the speed of its port, both ways.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn shape(&mut self, mbit: f64) -> Result<()> {
        let how = format!("root tbf rate {}kbit burst {BURST} limit {QUEUE}", mbit * 1000.0);
        sh(&format!("tc qdisc replace dev {} {how}", self.port))?;
        sh(&format!("tc -n {} qdisc replace dev eth0 {how}", self.netns))?;
        self.mbit = Some(mbit);
        Ok(())
    }

    /// Pulls the plug: the other machines get nothing more, not even a closing message.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn unplug(&self) -> Result<()> {
        sh(&format!("ip link set {} down", self.port)).map(drop)
    }

    /// The command that runs `program` on this machine.
    ///
    /// # Errors
    /// If it is not installed.
    pub fn command(&self, program: &str) -> Result<Command> {
        let path = find_program(program).with_context(|| format!("`{program}` is not installed"))?;
        let mut command = Command::new(path);
        let fd = self.handle.as_raw_fd();
        // SAFETY: the closure runs between fork and exec and makes one system call. The descriptor is `self.handle`'s;
        // the caller starts the command while the rack exists.
        unsafe {
            command.pre_exec(move || Ok(setns(BorrowedFd::borrow_raw(fd), CloneFlags::CLONE_NEWNET)?));
        }
        Ok(command)
    }

    /// Moves the calling thread to this machine.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        setns(&self.handle, CloneFlags::CLONE_NEWNET).context("moving a thread to a machine")
    }

    /// Bytes that this machine has sent and received, counted at the bridge.
    ///
    /// # Errors
    /// If its port is gone.
    pub fn traffic(&self) -> Result<Traffic> {
        let table = std::fs::read_to_string("/proc/self/net/dev").context("reading the counters")?;
        let wanted = format!("{}:", self.port);
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix(&wanted));
        let fields: Vec<u64> =
            line.with_context(|| format!("no port {}", self.port))?.split_whitespace().flat_map(str::parse).collect();
        // The bytes that the bridge's end received are those that the machine sent; field 0 is received bytes, field 8
        // sent bytes.
        let field = |index: usize| fields.get(index).copied().context("a short line of counters");
        Ok(Traffic { sent: field(0)?, received: field(8)? })
    }
}

/// Bytes on a machine's cable, headers included as far as the kernel counts them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// From the machine.
    pub sent: u64,
    /// To the machine.
    pub received: u64,
}

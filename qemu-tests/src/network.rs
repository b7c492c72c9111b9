//! One LAN: a bridge with the server's address, a tap for every machine, and hosts of other people.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::sh;
use crate::{pcap, ra};

/// The bridge, and the interface on which the server serves.
pub const BRIDGE: &str = "br0";
pub const SERVER_IP: &str = "10.77.0.1";
/// The server's hardware address; machines' end in their number.
const SERVER_MAC: &str = "52:54:00:77:ff:01";
/// The network in CIDR notation.
const SERVER_CIDR: &str = "10.77.0.1/24";

/// The LAN of one case. It ends with the namespace, so there is nothing to undo.
pub struct Network {
    taps: u32,
    hosts: u32,
}

impl Network {
    /// Makes the bridge and starts recording what matters on it into `net.pcap`.
    ///
    /// # Errors
    /// If the kernel refuses any of it, e.g. because this is not a namespace of our own.
    pub fn new() -> Result<Network> {
        // With an address of its own: else it takes its ports' lowest, and machines that know the server by the old one
        // lose it for up to a minute when another one is switched on.
        let options = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0";
        sh(&format!("ip link add {BRIDGE} address {SERVER_MAC} {options}"))?;
        // Without it the link-local address is useless for the first second.
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{BRIDGE}/accept_dad"), "0")?;
        sh(&format!("ip addr add {SERVER_CIDR} dev {BRIDGE}"))?;
        sh(&format!("ip link set {BRIDGE} up"))?;
        ra::answer_solicitations(BRIDGE)?;
        pcap::record(BRIDGE, Path::new("net.pcap"))?;
        Ok(Network { taps: 0, hosts: 0 })
    }

    /// Limits what the server sends, in megabits a second; what machines send each other stays as fast as they are.
    ///
    /// An emulated machine moves a tenth of what a real one does, so beside it a server without a limit has an uplink
    /// that no real server has.
    ///
    /// # Errors
    /// If the kernel has no token bucket filter.
    pub fn limit_server(&self, megabits: u32) -> Result<()> {
        // Packets larger than the bucket would never leave.
        sh(&format!("ip link set {BRIDGE} gso_max_size 16384"))?;
        sh(&format!("tc qdisc add dev {BRIDGE} root tbf rate {megabits}mbit burst 64kb limit 1mb")).map(drop)
    }

    /// A new tap on the bridge, by name.
    ///
    /// # Errors
    /// If it cannot be made, e.g. because `/dev/net/tun` may not be opened.
    pub fn tap(&mut self) -> Result<String> {
        self.taps += 1;
        let name = format!("tap{}", self.taps);
        sh(&format!("ip tuntap add dev {name} mode tap"))?;
        sh(&format!("ip link set {name} master {BRIDGE} up"))?;
        Ok(name)
    }

    /// Breaks or mends the way of a machine's packets somewhere behind its own cable, so that its card notices nothing; the
    /// machine is the `number`th that was switched on.
    ///
    /// # Errors
    /// If there is no such machine.
    pub fn set_way(&self, number: u32, up: bool) -> Result<()> {
        sh(&format!("ip link set tap{number} {}", if up { "up" } else { "down" })).map(drop)
    }

    /// A host of somebody else on the same LAN, in a namespace of its own: a program in front of which this is put.
    ///
    /// # Errors
    /// If the namespace cannot be made.
    pub fn host(&mut self, ip: &str) -> Result<Host> {
        self.hosts += 1;
        let name = format!("host{}", self.hosts);
        sh(&format!("ip netns add {name}"))?;
        sh(&format!("ip link add v{name} type veth peer name eth0 netns {name}"))?;
        sh(&format!("ip link set v{name} master {BRIDGE} up"))?;
        sh(&format!("ip -n {name} link set lo up"))?;
        sh(&format!("ip -n {name} addr add {ip}/24 dev eth0"))?;
        sh(&format!("ip -n {name} link set eth0 up"))?;
        Ok(Host { netns: name })
    }
}

/// A host in a namespace of its own.
pub struct Host {
    netns: String,
}

impl Host {
    /// The command that runs `program` on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns, program]);
        command
    }
}

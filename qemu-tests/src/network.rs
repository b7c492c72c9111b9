//! One LAN: a bridge with the server's address, a tap for every machine, and other hosts.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::sh;
use crate::{pcap, ra};

/// The bridge, and the interface on which the server serves.
pub const BRIDGE: &str = "br0";
pub const SERVER_IP: &str = "10.77.0.1";
/// The server's hardware address; the addresses of machines end in their number.
const SERVER_MAC: &str = "52:54:00:77:ff:01";
/// The network in CIDR notation.
const SERVER_CIDR: &str = "10.77.0.1/24";

/// The LAN of one case. It ends with the namespace, so no cleanup is needed.
pub struct Network {
    taps: u32,
    hosts: u32,
}

impl Network {
    /// Makes the bridge and starts recording its important packets into `net.pcap`.
    ///
    /// # Errors
    /// If the kernel refuses any of it, e.g. because this is not a separate namespace.
    pub fn new() -> Result<Network> {
        // The bridge needs a fixed address. Otherwise it takes the lowest address of its ports, and machines that know
        // the server by the old address lose it for up to a minute when another machine is switched on.
        let options = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0";
        sh(&format!("ip link add {BRIDGE} address {SERVER_MAC} {options}"))?;
        // Otherwise the link-local address is unusable for the first second.
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{BRIDGE}/accept_dad"), "0")?;
        sh(&format!("ip addr add {SERVER_CIDR} dev {BRIDGE}"))?;
        sh(&format!("ip link set {BRIDGE} up"))?;
        ra::answer_solicitations(BRIDGE)?;
        pcap::record(BRIDGE, Path::new("net.pcap"))?;
        Ok(Network { taps: 0, hosts: 0 })
    }

    /// Limits the server's sending rate, in megabits per second; traffic between machines is not limited.
    ///
    /// An emulated machine is ten times slower than a real one. Compared to it, a server without a limit would have a
    /// faster uplink than any real server.
    ///
    /// # Errors
    /// If the kernel has no token bucket filter.
    pub fn limit_server(&self, megabits: u32) -> Result<()> {
        // Packets larger than the bucket would never be sent.
        sh(&format!("ip link set {BRIDGE} gso_max_size 16384"))?;
        sh(&format!("tc qdisc add dev {BRIDGE} root tbf rate {megabits}mbit burst 64kb limit 1mb")).map(drop)
    }

    /// Makes a new tap on the bridge; returns its name.
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

    /// Breaks or repairs the path of a machine's packets somewhere beyond its own cable, so that its network card
    /// notices nothing. The machine is the `number`th that was switched on.
    ///
    /// # Errors
    /// If there is no such machine.
    pub fn set_way(&self, number: u32, up: bool) -> Result<()> {
        sh(&format!("ip link set tap{number} {}", if up { "up" } else { "down" })).map(drop)
    }

    /// Another host on the same LAN, in a separate namespace. Its command is a prefix for a program.
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

/// A host in a separate namespace.
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

//! Servers of a site: dnsmasq as its DHCP server, or as everything that `/init` needs if our server is not being
//! tested.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::log::Log;
use crate::network::{BRIDGE, Host, SERVER_IP};
use crate::process::{Process, ending};

pub struct Dnsmasq {
    _process: Process,
    log: Log,
}

impl Dnsmasq {
    /// A site's DHCP server on a separate host: leases only, as an appliance gives them.
    ///
    /// # Errors
    /// If it does not start.
    pub fn site_dhcp(host: &Host) -> Result<Dnsmasq> {
        let mut command = host.command("dnsmasq");
        command.args(["--interface=eth0", "--dhcp-range=10.77.0.100,10.77.0.199,255.255.255.0,1h"]);
        start(command, "site-dhcp")
    }

    /// The same, but it still names the boot file of an earlier server that is gone.
    ///
    /// # Errors
    /// If it does not start.
    pub fn site_dhcp_with_leftover(host: &Host) -> Result<Dnsmasq> {
        let mut command = host.command("dnsmasq");
        command.args(["--interface=eth0", "--dhcp-range=10.77.0.100,10.77.0.199,255.255.255.0,1h"]);
        command.arg("--dhcp-boot=old/pxelinux.0,,10.77.0.2");
        start(command, "site-dhcp")
    }

    /// A router's DHCP, which names one boot file on our server for every machine, also for iPXE.
    ///
    /// # Errors
    /// If it does not start.
    pub fn router(host: &Host, file: &str) -> Result<Dnsmasq> {
        let mut command = host.command("dnsmasq");
        command.args(["--interface=eth0", "--dhcp-range=10.77.0.100,10.77.0.199,255.255.255.0,1h"]);
        command.arg(format!("--dhcp-boot={file},,{SERVER_IP}"));
        start(command, "site-dhcp")
    }

    /// DHCP at the server's own address, naming itself as the TFTP server; `tftp_root` is an absolute path.
    ///
    /// # Errors
    /// If it does not start.
    pub fn dhcp_and_tftp(tftp_root: Option<&Path>) -> Result<Dnsmasq> {
        let mut command = Command::new("dnsmasq");
        command.arg(format!("--interface={BRIDGE}"));
        command.args(["--dhcp-range=10.77.0.100,10.77.0.199,255.255.255.0,1h", "--dhcp-boot=none"]);
        if let Some(root) = tftp_root {
            command.arg("--enable-tftp").arg(format!("--tftp-root={}", root.display()));
        }
        start(command, "dnsmasq")
    }

    pub fn log(&self) -> &Log {
        &self.log
    }
}

fn start(mut command: Command, name: &str) -> Result<Dnsmasq> {
    // In a user namespace there is no other user to change to, and there are no groups to drop.
    command.args(["-C", "/dev/null", "--no-daemon", "--user=", "--group=", "--port=0", "--bind-interfaces"]);
    command.args(["--no-ping", "--log-dhcp", "--no-hosts", "--no-resolv", "--pid-file="]);
    command.arg(format!("--dhcp-leasefile={name}.leases"));
    let path = format!("{name}.log");
    let mut process = Process::start(name, command, Path::new(&path))?;
    let log = Log::new(Path::new(&path));
    log.wait_for(
        "sockets bound",
        |line| line.contains("sockets bound"),
        Duration::from_secs(60),
        || Ok(process.exited()?.map(|status| format!("dnsmasq ended ({})", ending(status)))),
    )?;
    Ok(Dnsmasq { _process: process, log })
}

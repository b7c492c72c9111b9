//! `ezio serve` on the rack's LAN, and the other subcommands.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use report::Report;
use serde_json::Value;

use crate::compare::Image;
use crate::disk::Disk;
use crate::log::Log;
use crate::machine::{DEADLINE, KERNEL_ARGS, Machine};
use crate::network::{BRIDGE, SERVER_IP};
use crate::paths::Paths;
use crate::process::{POLL, Process, ending, run};

/// The port of its HTTP service.
pub const HTTP_PORT: u16 = 8080;

/// The server that gives out addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dhcp {
    /// Our server, with leases.
    Server,
    /// Another server; ours only adds where to boot from.
    Proxy,
    /// Only another server.
    Off,
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Its role in DHCP.
    pub dhcp: Dhcp,
    /// Whether it serves TFTP.
    pub tftp: bool,
    /// Kernel and initramfs; `None` for the usual ones.
    pub boot: Option<PathBuf>,
}

impl ServerConfig {
    /// Everything enabled, in this DHCP mode.
    pub fn new(dhcp: Dhcp) -> ServerConfig {
        ServerConfig { dhcp, tftp: true, boot: None }
    }

    /// HTTP only, for cases in which other servers answer DHCP and TFTP.
    pub fn reports_only() -> ServerConfig {
        ServerConfig { dhcp: Dhcp::Off, tftp: false, boot: None }
    }

    fn to_toml(&self, library: &Path, boot: &Path) -> String {
        let mode = match self.dhcp {
            Dhcp::Server => "server",
            Dhcp::Proxy => "proxy",
            Dhcp::Off => "off",
        };
        let boot = self.boot.as_deref().unwrap_or(boot);
        format!(
            "library = {library:?}\nboot_dir = {boot:?}\ninterface = \"{BRIDGE}\"\naddress = \"{SERVER_IP}\"\n\
             dhcp = \"{mode}\"\ndhcp_range = \"10.77.0.50-10.77.0.99\"\ntftp = {}\nhttp_port = {HTTP_PORT}\n\
             kernel_args = \"{KERNEL_ARGS}\"\n",
            self.tftp
        )
    }
}

/// A running server with its own library.
pub struct Server {
    ezio: PathBuf,
    library: PathBuf,
    config: PathBuf,
    process: Process,
}

impl Server {
    /// Starts it in `folder` and waits until it answers.
    ///
    /// # Errors
    /// If it ends, or does not answer.
    pub fn start(paths: &Paths, folder: &Path, config: ServerConfig) -> Result<Server> {
        let library = folder.join("library");
        let path = folder.join("ezio.toml");
        fs::create_dir_all(&library).context("creating the library")?;
        fs::write(&path, config.to_toml(&library, &paths.boot)).context("writing the server's config")?;
        let process = spawn(&paths.ezio, &path)?;
        let mut server = Server { ezio: paths.ezio.clone(), library, config: path, process };
        server.wait_until_up()?;
        Ok(server)
    }

    pub fn library(&self) -> &Path {
        &self.library
    }

    pub fn log(&self) -> Log {
        Log::new(self.process.log())
    }

    /// Captures a disk into the library.
    ///
    /// # Errors
    /// If `ezio capture` fails.
    pub fn capture(&self, disk: &Disk, name: &str) -> Result<Image> {
        self.capture_with(disk, name, &[])
    }

    /// The same with more options.
    ///
    /// # Errors
    /// If `ezio capture` fails.
    pub fn capture_with(&self, disk: &Disk, name: &str, more: &[&str]) -> Result<Image> {
        self.ezio(&[&["capture", &disk.path().to_string_lossy(), "--name", name], more].concat())?;
        Image::open(&self.library, name)
    }

    /// An image that is in the library.
    ///
    /// # Errors
    /// If it is not.
    pub fn image(&self, name: &str) -> Result<Image> {
        Image::open(&self.library, name)
    }

    /// Arms an image, also for machines that have it; `more` is passed to `ezio arm`.
    ///
    /// # Errors
    /// If it is refused.
    pub fn arm(&self, name: &str, more: &[&str]) -> Result<()> {
        self.ezio(&[&["arm", name, "--again"], more].concat()).map(drop)
    }

    /// Runs a subcommand on the same library.
    ///
    /// # Errors
    /// If it fails; the error contains its output.
    pub fn ezio(&self, words: &[&str]) -> Result<String> {
        run(Command::new(&self.ezio).args(words).arg("--library").arg(&self.library))
    }

    /// The output of `ezio status`, once the server answers it in time.
    ///
    /// # Errors
    /// If it fails.
    pub fn status_table(&self) -> Result<String> {
        let start = Instant::now();
        loop {
            match self.ezio(&["status"]) {
                // It waits only a few seconds, which is right for a person but too short for a host that stalls now and
                // then.
                Err(error) if error.to_string().contains("timeout") && start.elapsed() < DEADLINE => {
                    std::thread::sleep(POLL);
                }
                result => return result,
            }
        }
    }

    /// The server's knowledge about its room.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&http_get("/status.json")?).context("parsing status.json")
    }

    /// Payload bytes that have left the server.
    ///
    /// # Errors
    /// If the server does not answer.
    pub fn seeded(&self) -> Result<u64> {
        let status = self.status()?;
        let images = status["images"].as_array().context("status.json has no images")?;
        Ok(images.iter().filter_map(|image| image["uploaded"].as_u64()).sum())
    }

    /// A machine's last report, if there is one.
    ///
    /// # Errors
    /// If the server does not answer.
    pub fn report(&self, mac: &str) -> Result<Option<Report>> {
        Ok(reports(&self.status()?).into_iter().find(|report| report.mac == mac))
    }

    /// Waits until a machine's last report is as wished.
    ///
    /// # Errors
    /// If no such report comes within the usual deadline.
    pub fn wait_for_report(&self, machine: &Machine, what: &str, wish: impl Fn(&Report) -> bool) -> Result<Report> {
        let start = Instant::now();
        loop {
            let last = self.report(machine.mac())?;
            match last {
                Some(report) if wish(&report) => return Ok(report),
                last if start.elapsed() > DEADLINE => {
                    bail!("{}: the server was not told that it {what}; the last report is {last:?}", machine.name())
                }
                _ => std::thread::sleep(POLL),
            }
        }
    }

    /// Sends SIGKILL; to the server, this is like a power cut.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after [`Server::kill`], with the same library and config.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.ezio, &self.config)?;
        self.wait_until_up()
    }

    /// Sends SIGTERM, and expects a clean end.
    ///
    /// # Errors
    /// If it does not end, or fails.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.stop(Duration::from_secs(60))?;
        ensure!(status.success(), "the server ended with {} after SIGTERM", ending(status));
        Ok(())
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.exited()? {
                bail!("the server ended ({}):\n{}", ending(status), self.log().tail(20));
            }
            match self.status() {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > Duration::from_secs(120) => {
                    return Err(error.context("the server does not answer on its HTTP port"));
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }
}

fn spawn(ezio: &Path, config: &Path) -> Result<Process> {
    let mut command = Command::new(ezio);
    command.args(["-v", "serve", "--config"]).arg(config);
    Process::start("server", command, Path::new("server.log"))
}

/// The last report of every machine in status.json.
pub fn reports(status: &Value) -> Vec<Report> {
    let machines = status["machines"].as_array().into_iter().flatten();
    machines.filter_map(|machine| serde_json::from_value(machine["report"].clone()).ok()).collect()
}

/// GET over a separate connection, which the server closes.
fn http_get(path: &str) -> Result<String> {
    let address = std::net::SocketAddr::new(SERVER_IP.parse()?, HTTP_PORT);
    let mut stream =
        TcpStream::connect_timeout(&address, Duration::from_secs(30)).context("connecting to the server")?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).context("limiting the wait for an answer")?;
    // With version 1.0, the body comes in one piece and ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {SERVER_IP}\r\n\r\n").context("asking the server")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the server's answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {}", head.lines().next().unwrap_or(""));
    Ok(body.to_string())
}

//! The server's bridge, and stations on its ports: each one a thread in a separate network namespace, with a card and
//! as many addresses as it needs.

use std::future::Future;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::load::client::SERVER;
use crate::process::{POLL, find_program, sh};

/// Its name.
pub const BRIDGE: &str = "br0";
/// How long a card may need until packets pass.
const PLUGGED: Duration = Duration::from_secs(60);

type Job = Box<dyn FnOnce(&Runtime) + Send>;

/// The bridge.
pub struct Lan {
    stations: AtomicUsize,
}

/// One card.
pub struct Station {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Its addresses.
    pub addresses: Vec<Ipv4Addr>,
}

/// What a station was asked to do.
pub struct Pending<T>(mpsc::Receiver<T>);

impl<T> Pending<T> {
    /// Waits for what comes of it.
    ///
    /// # Errors
    /// If the station's thread has panicked.
    pub fn wait(self) -> Result<T> {
        self.0.recv().context("a station of the measurement has ended early")
    }
}

impl Lan {
    /// Makes the bridge in this namespace.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new() -> Result<Lan> {
        // A bridge without its own address takes its ports' lowest, and changes it with them.
        sh(&format!(
            "ip link add {BRIDGE} address 52:54:00:09:00:01 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ))?;
        sh(&format!("ip addr add {SERVER}/16 brd + dev {BRIDGE}"))?;
        sh(&format!("ip link set {BRIDGE} up"))?;
        Ok(Lan { stations: AtomicUsize::new(0) })
    }

    /// Limits what the server sends to Mbit/s, as its card and cable do.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn shape(&self, mbit: u32) -> Result<()> {
        sh(&format!("tc qdisc replace dev {BRIDGE} root tbf rate {mbit}mbit burst 256kb limit 4mb")).map(drop)
    }

    /// Ends what [`Lan::shape`] did.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn unshape(&self) -> Result<()> {
        sh(&format!("tc qdisc del dev {BRIDGE} root")).map(drop)
    }

    /// A card with these addresses.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn station(&self, addresses: Vec<Ipv4Addr>) -> Result<Station> {
        let number = self.stations.fetch_add(1, Ordering::Relaxed);
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || work(&ready, queue));
        let tid = is_ready.recv().context("a station has ended early")??;
        let (here, there) = (format!("s{number}"), format!("c{number}"));
        sh(&format!("ip link add {here} type veth peer name {there}"))?;
        sh(&format!("ip link set {here} master {BRIDGE} up"))?;
        // Only the server hears its broadcasts: forty machines that hear each other's would fill this kernel's queue, which is
        // one for all of them, and lose packets that no switch loses.
        sh(&format!("ip link set {here} type bridge_slave isolated on"))?;
        sh(&format!("ip link set {there} netns {tid} name eth0"))?;
        let mut batch = "link set lo up\nlink set eth0 up\n".to_owned();
        addresses.iter().for_each(|address| batch += &format!("addr add {address}/16 brd + dev eth0\n"));
        let station = Station { jobs: Some(jobs), thread: Some(thread), addresses };
        station.begin(move || async move { ip_batch(&batch) }).wait()??;
        station.begin(reach).wait()??;
        Ok(station)
    }
}

/// What a station's thread does.
fn work(ready: &mpsc::Sender<Result<i32>>, queue: mpsc::Receiver<Job>) {
    let begun = unshare(CloneFlags::CLONE_NEWNET).context("making a station's namespace").and_then(|()| {
        // On this thread alone, because the namespace is this thread's.
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a station")
    });
    let runtime = match begun {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    if ready.send(Ok(nix::unistd::gettid().as_raw())).is_ok() {
        queue.into_iter().for_each(|job| job(&runtime));
    }
    // What is left, such as connections that nothing asks about any more, ends here.
    runtime.shutdown_background();
}

/// Waits until packets pass: the kernel opens a bridge's port up to a second after its cable is plugged in.
async fn reach() -> Result<()> {
    let end = Instant::now() + PLUGGED;
    while Instant::now() < end {
        match timeout(Duration::from_millis(100), TcpStream::connect((SERVER, 80))).await {
            Ok(Ok(_)) => return Ok(()),
            // The server does not run yet, but its computer is there.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
            _ => tokio::time::sleep(POLL).await,
        }
    }
    bail!("a station does not reach {SERVER} over the bridge {BRIDGE}")
}

fn ip_batch(lines: &str) -> Result<()> {
    let program = find_program("ip").context("`ip` is not installed")?;
    let mut child = Command::new(program).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("starting ip")?;
    child.stdin.take().context("no standard input")?.write_all(lines.as_bytes()).context("telling ip")?;
    ensure!(child.wait().context("waiting for ip")?.success(), "`ip -batch` failed with: {lines}");
    Ok(())
}

impl Station {
    /// Has something done there. What is done at several stations is done at the same time.
    pub fn begin<F, O, T>(&self, job: F) -> Pending<T>
    where
        F: FnOnce() -> O + Send + 'static,
        O: Future<Output = T>,
        T: Send + 'static,
    {
        let (result, is_done) = mpsc::channel();
        let job: Job = Box::new(move |runtime| drop(result.send(runtime.block_on(job()))));
        // A thread that has ended shows in `wait`.
        self.jobs.as_ref().map(|jobs| jobs.send(job));
        Pending(is_done)
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        drop(self.jobs.take());
        self.thread.take().map(JoinHandle::join);
    }
}

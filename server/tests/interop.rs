//! A captured image between `ezio` and stock BitTorrent clients, both ways, and partclone's BT files. Loopback only.

mod common;

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use layout::Layout;
use metainfo::Metainfo;
use socket2::Socket;

use crate::common::{free_port, wait_for};

const EZIO: &str = env!("CARGO_BIN_EXE_ezio");

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A library with one image of an ext4 file system, and the file it was captured from.
struct Captured {
    dir: tempfile::TempDir,
    source: PathBuf,
    ports: RefCell<Vec<Socket>>,
}

impl Captured {
    fn new() -> Captured {
        let dir = tempfile::tempdir().expect("temporary directory");
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).expect("new");
        for (index, len) in [3_000_000usize, 70_000, 1, 4096, 9_000_000].into_iter().enumerate() {
            let mut bytes = vec![0; len];
            File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).expect("random bytes");
            fs::write(tree.join(format!("file-{index}")), bytes).expect("new");
        }
        let source = dir.path().join("source.img");
        File::create(&source).and_then(|file| file.set_len(48 << 20)).expect("new");
        succeed(Command::new("/sbin/mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).arg(&source));
        let captured = Captured { dir, source, ports: RefCell::default() };
        let mut capture = captured.ezio(&["capture"]);
        succeed(capture.arg(&captured.source).args(["--name", "golden", "--piece-len", "262144"]));
        captured
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ezio(&self, command: &[&str]) -> Command {
        let mut ezio = Command::new(EZIO);
        ezio.args(command).arg("--library").arg(self.path("library"));
        ezio
    }

    /// A port for a program of this test.
    fn port(&self) -> u16 {
        let (port, socket) = free_port();
        self.ports.borrow_mut().push(socket);
        port
    }

    fn torrent(&self) -> PathBuf {
        self.path("library/images/golden/image.torrent")
    }

    fn meta(&self) -> Metainfo {
        Metainfo::parse(&fs::read(self.torrent()).expect("captured")).expect("our own torrent")
    }

    /// The content, cut into the torrent's files.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        // Taken from the source: the library has it compressed.
        let source = fs::read(&self.source).expect("source");
        let mut content = Vec::new();
        for extent in Layout::new(&self.meta()).expect("our own").extents() {
            let range = [extent.disk.0, extent.end().0].map(|at| usize::try_from(at).expect("small"));
            content.extend_from_slice(&source[range[0]..range[1]]);
        }
        assert!(self.path("library/images/golden/content.zst").exists(), "captured");
        let mut rest = content.as_slice();
        let mut files = Vec::new();
        for entry in self.meta().files {
            let (now, later) = rest.split_at(usize::try_from(entry.length).expect("small"));
            files.push((entry.path[0].clone(), now.to_vec()));
            rest = later;
        }
        files
    }

    /// The content as BitTorrent clients keep it: a directory with a file for each extent.
    fn bt_files(&self) -> PathBuf {
        let dir = self.path("seed");
        let inner = dir.join(self.meta().name);
        fs::create_dir_all(&inner).expect("new");
        for (name, bytes) in self.files() {
            fs::write(inner.join(name), bytes).expect("new");
        }
        dir
    }

    fn check_files(&self, dir: &Path) {
        let inner = dir.join(self.meta().name);
        for (name, wanted) in self.files() {
            let found = fs::read(inner.join(&name)).expect("downloaded");
            assert!(found == wanted, "{name} differs");
        }
    }

    /// Serves the image over loopback; with it the URL of the tracker.
    fn serve(&self) -> (Running, String) {
        let boot = self.path("boot");
        fs::create_dir_all(&boot).expect("new");
        for name in ["vmlinuz", "initrd.img", "undionly.kpxe", "snponly.efi"] {
            fs::write(boot.join(name), "not booted here").expect("new");
        }
        let mut serve = self.ezio(&["serve"]);
        serve.args(["--dhcp", "off", "--tftp", "false", "--address", "127.0.0.1", "--http-port"]);
        serve.arg(self.port().to_string());
        serve.arg("--boot-dir").arg(boot).stdout(Stdio::piped());
        let mut serving = Running(serve.spawn().expect("our own binary"));
        let lines = BufReader::new(serving.0.stdout.take().expect("piped")).lines();
        let url = lines.map_while(Result::ok).find_map(|line| {
            let start = line.find("http://127.0.0.1:")?;
            line[start..].split('/').nth(2).map(|host| format!("http://{host}/announce"))
        });
        let url = url.expect("the summary names the address of HTTP");
        succeed(self.ezio(&["arm"]).args(["golden", "--target", "/dev/sda1"]));
        // A client that announces before the tracker knows the image may not ask again for a minute.
        wait_for("the server to seed the image", || {
            let status = succeed(self.ezio(&["status"]).arg("--json"));
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
            status["images"][0]["port"].as_u64().is_some_and(|port| port > 0)
        });
        (serving, url)
    }

    fn restore(&self, from: &[&str]) -> PathBuf {
        let target = self.path("restored.img");
        let output = succeed(Command::new(EZIO).arg("restore").arg(self.torrent()).arg(&target).args(from));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.lines().last().is_some_and(|line| line.starts_with("verified ")), "{text}");
        target
    }

    /// Every extent of the target equals the source's.
    fn check_restored(&self, meta: &Metainfo, target: &Path) {
        let (source, target) = (fs::read(&self.source).expect("source"), fs::read(target).expect("restored"));
        for extent in Layout::new(meta).expect("our own").extents() {
            let start = usize::try_from(extent.disk.0).expect("small");
            let range = start..usize::try_from(extent.end().0).expect("small");
            assert!(source[range.clone()] == target[range], "extent at {} differs", extent.disk);
        }
    }
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|cause| panic!("{command:?}: {cause}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Fails unless a foreign program is there.
fn need(program: &[&str]) {
    let probe = Command::new(program[0]).args(&program[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(probe.is_ok_and(|status| status.success()), "{program:?} does not run here; `make setup` installs it");
}

fn listens(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

const ARIA2: [&str; 6] = [
    "--enable-dht=false",
    "--bt-enable-lpd=false",
    "--enable-peer-exchange=false",
    "--no-conf",
    "--file-allocation=none",
    "--allow-overwrite=true",
];

#[test]
fn a_partition_is_not_put_over_a_disk_with_partitions_unnoticed() {
    let captured = Captured::new();
    let target = captured.path("disk.img");
    let mut disk = vec![0; 64 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    // A Linux partition of 100,000 sectors, from the first MiB on.
    disk[446 + 4] = 0x83;
    disk[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    disk[446 + 12..446 + 16].copy_from_slice(&100_000u32.to_le_bytes());
    fs::write(&target, &disk).expect("written");
    let restore = |target: &Path| {
        let mut restore = Command::new(EZIO);
        restore.arg("restore").arg(captured.torrent()).arg(target).args(["--peer", "127.0.0.1:1"]).stdin(Stdio::null());
        let output = restore.output().expect("our own binary");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = restore(&target);
    assert!(error.contains("has a partition table (MBR), and the image is one partition"), "{error}");
    assert!(error.contains("give --yes if that is meant"), "{error}");
    assert!(fs::read(&target).expect("there") == disk, "untouched");
    fs::write(&target, vec![1; 64 << 20]).expect("written");
    let error = restore(&target);
    assert!(error.contains("give --yes") && !error.contains("partition table"), "{error}");
}

#[test]
fn aria2_downloads_from_our_seeder() {
    need(&["aria2c", "--version"]);
    let captured = Captured::new();
    let (_serving, tracker) = captured.serve();
    let dir = captured.path("download");
    let mut aria2 = Command::new("aria2c");
    aria2.args(ARIA2).args(["--seed-time=0", &format!("--bt-tracker={tracker}")]);
    aria2.arg(format!("--listen-port={}", captured.port())).arg("--dir").arg(&dir).arg(captured.torrent());
    succeed(&mut aria2);
    captured.check_files(&dir);
}

#[test]
fn we_restore_from_aria2() {
    need(&["aria2c", "--version"]);
    let captured = Captured::new();
    let port = captured.port();
    let mut aria2 = Command::new("aria2c");
    aria2.args(ARIA2).args(["--seed-ratio=0.0", "--check-integrity=true", &format!("--listen-port={port}")]);
    aria2.arg("--dir").arg(captured.bt_files()).arg(captured.torrent()).stdout(Stdio::null());
    let _seeding = Running(aria2.spawn().expect("aria2c runs"));
    wait_for("aria2 to listen", || listens(port));
    let target = captured.restore(&["--peer", &format!("127.0.0.1:{port}")]);
    captured.check_restored(&captured.meta(), &target);
}

/// Debian's Python sees Debian's libtorrent, whatever other Python comes first on PATH.
const PYTHON: &str = "/usr/bin/python3";

const LIBTORRENT: &str = r#"
import libtorrent, sys, time
torrent, directory, port, tracker = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]
session = libtorrent.session({"listen_interfaces": "127.0.0.1:" + port, "enable_dht": False, "enable_lsd": False,
    "enable_upnp": False, "enable_natpmp": False, "allow_multiple_connections_per_ip": True})
handle = session.add_torrent({"ti": libtorrent.torrent_info(torrent), "save_path": directory})
if tracker:
    handle.add_tracker({"url": tracker})
    while not handle.status().is_seeding:
        time.sleep(0.05)
else:
    handle.force_recheck()
    while True:
        time.sleep(1)
"#;

fn libtorrent(captured: &Captured, dir: &Path, port: u16, tracker: &str) -> Command {
    let mut python = Command::new(PYTHON);
    python.args(["-c", LIBTORRENT]).arg(captured.torrent()).arg(dir).args([&port.to_string(), tracker]);
    python
}

#[test]
fn libtorrent_downloads_from_our_seeder() {
    need(&[PYTHON, "-c", "import libtorrent"]);
    let captured = Captured::new();
    let (_serving, tracker) = captured.serve();
    let dir = captured.path("download");
    fs::create_dir(&dir).expect("new");
    succeed(&mut libtorrent(&captured, &dir, captured.port(), &tracker));
    captured.check_files(&dir);
}

#[test]
fn we_restore_from_libtorrent() {
    need(&[PYTHON, "-c", "import libtorrent"]);
    let captured = Captured::new();
    let port = captured.port();
    let files = captured.bt_files();
    let _seeding = Running(libtorrent(&captured, &files, port, "").spawn().expect("python3 runs"));
    wait_for("libtorrent to listen", || listens(port));
    let target = captured.restore(&["--peer", &format!("127.0.0.1:{port}")]);
    captured.check_restored(&captured.meta(), &target);
}

#[test]
fn partclones_bt_files_are_restored_to_a_partition() {
    let partclone = "/usr/sbin/partclone.ext4";
    need(&[partclone, "-v"]);
    let captured = Captured::new();
    let files = captured.path("btfiles");
    let mut clone = Command::new(partclone);
    clone.args(["-c", "-T", "-s"]).arg(&captured.source).arg("-O").arg(&files).arg("-L").arg(captured.path("log"));
    succeed(&mut clone);
    succeed(captured.ezio(&["image", "import"]).args(["--name", "bt"]).arg(&files));

    // The hashes come from torrent.info alone; the bytes come from partclone's own files.
    let torrent = captured.path("library/images/bt/image.torrent");
    let meta = Metainfo::parse(&fs::read(&torrent).expect("imported")).expect("our own torrent");
    let port = captured.port();
    let listen = format!("127.0.0.1:{port}");
    let mut seed = Command::new(EZIO);
    seed.arg("seed").arg(&torrent).arg(&files).args(["--as", "btfiles", "--listen", &listen]).stdout(Stdio::null());
    let mut seeding = Running(seed.spawn().expect("our own binary"));
    wait_for("ezio seed to listen", || {
        assert!(seeding.0.try_wait().expect("our own child").is_none(), "ezio seed ended");
        listens(port)
    });
    let target = captured.path("partition.img");
    succeed(Command::new(EZIO).arg("restore").arg(&torrent).arg(&target).args(["--peer", &listen]));
    assert!(meta.geometry.content_len() > 12_000_000, "the files are in it");
    captured.check_restored(&meta, &target);
}

//! `ezio image pull` from an `ezio serve` that publishes, and librqbit as a foreign seeder. Loopback only.

mod common;

use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use library::content::FlatContent;
use librqbit::{AddTorrent, AddTorrentOptions, ListenerOptions, Session, SessionOptions};
use metainfo::{FileEntry, ImageFacts, Metainfo, NewTorrent};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use socket2::Socket;
use swarm::Storage as _;

use crate::common::{free_port, wait_for};

const EZIO: &str = env!("CARGO_BIN_EXE_ezio");
const MIB: usize = 1 << 20;

/// How a torrent may be cut and its files named.
#[derive(Debug, Clone, Copy)]
struct Cut {
    piece_len: usize,
    name_digits: usize,
}

const SMALL: Cut = Cut { piece_len: 256 << 10, name_digits: 32 };
const CUTS: [Cut; 4] = [
    SMALL,
    Cut { piece_len: 256 << 10, name_digits: 16 },
    Cut { piece_len: 4 << 20, name_digits: 16 },
    Cut { piece_len: 16 << 20, name_digits: 32 },
];

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two sites: `there` has one image, `here` has none.
struct Sites {
    dir: tempfile::TempDir,
    content: Vec<u8>,
    meta: Metainfo,
    http_port: u16,
    _http: Socket,
}

impl Sites {
    /// An image of `len` random bytes in extents of odd lengths.
    fn new(len: usize) -> Sites {
        Sites::cut(len, SMALL)
    }

    fn cut(len: usize, cut: Cut) -> Sites {
        let dir = tempfile::tempdir().expect("a directory");
        let mut content = vec![0; len];
        File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut content)).expect("random bytes");
        let (mut files, mut left, mut disk) = (Vec::new(), len, 0);
        for sectors in (1..).map(|index| (index * 37) % 911 + 1) {
            let here = left.min(sectors * 512);
            files.push(FileEntry {
                length: here as u64,
                path: vec![format!("{disk:0digits$x}", digits = cut.name_digits)],
            });
            left -= here;
            disk += 2 * here.next_multiple_of(512);
            if left == 0 {
                break;
            }
        }
        let facts = ImageFacts {
            schema: 1,
            disk_size: 1 << 30,
            sector_size: 512,
            table: metainfo::TableKind::None,
            ..ImageFacts::default()
        };
        let extent_count = files.len();
        let torrent = NewTorrent {
            name: "root".into(),
            announce: None,
            piece_len: cut.piece_len as u32,
            files,
            hashes: content.chunks(cut.piece_len).map(|piece| Sha1::digest(piece).into()).collect(),
            facts: Some(facts),
            private: true,
        };
        let torrent = torrent.to_bytes().expect("a sound torrent");
        let meta = Metainfo::parse(&torrent).expect("a sound torrent");
        let manifest = json!({
            "schema": 1, "disk_size": 1 << 30, "sector_size": 512, "table": "none", "partitions": [],
            "content_len": len, "infohash": meta.infohash.to_string(),
            "extent_count": extent_count, "origin": { "at": 7, "how": "capture", "source": "/dev/there" },
        });
        let image = dir.path().join("there/images/golden");
        fs::create_dir_all(&image).expect("made");
        fs::write(image.join("content"), &content).expect("written");
        fs::write(image.join("image.torrent"), torrent).expect("written");
        fs::write(image.join("manifest.json"), manifest.to_string()).expect("written");
        let (http_port, http) = free_port();
        Sites { dir, content, meta, http_port, _http: http }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.http_port)
    }

    /// Serves `there`, and waits until it answers.
    fn serve(&self, arguments: &[&str]) -> Running {
        let boot = self.path("boot");
        fs::create_dir_all(&boot).expect("made");
        for name in ["vmlinuz", "initrd.img", "undionly.kpxe", "snponly.efi"] {
            fs::write(boot.join(name), "not booted here").expect("written");
        }
        let mut serve = Command::new(EZIO);
        serve.args(["serve", "--dhcp", "off", "--tftp", "false", "--address", "127.0.0.1", "--http-port"]);
        serve.arg(self.http_port.to_string()).args(arguments).stdout(Stdio::null());
        serve.arg("--boot-dir").arg(boot).arg("--library").arg(self.path("there"));
        let mut serving = Running(serve.spawn().expect("our own binary"));
        wait_for("the server", || {
            assert!(serving.0.try_wait().expect("our own child").is_none(), "ezio serve ended");
            std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.http_port)).is_ok()
        });
        serving
    }

    /// What the server says of its one image, once it seeds it.
    fn seeding(&self) -> Value {
        let mut image = Value::Null;
        wait_for("the image to be seeded", || {
            let status = Command::new(EZIO).args(["status", "--json", "--library"]).arg(self.path("there")).output();
            let status: Value = serde_json::from_slice(&status.expect("runs").stdout).unwrap_or_default();
            image = status["images"][0].clone();
            image["port"].as_u64().is_some_and(|port| port > 0)
        });
        image
    }

    /// Bytes that the server has sent of its one image, once they are more than `before` and nobody is left to send to.
    fn sent(&self, before: u64) -> u64 {
        let mut sent = 0;
        wait_for("the server to be left alone", || {
            let image = self.seeding();
            sent = image["uploaded"].as_u64().expect("a number");
            sent > before && image["peers"] == 0
        });
        sent
    }

    fn image(&self, arguments: &[&str]) -> Command {
        let mut ezio = Command::new(EZIO);
        ezio.arg("image").args(arguments).arg("--library").arg(self.path("here"));
        ezio
    }

    /// The bytes of the pull that is under way.
    fn pulled_len(&self) -> u64 {
        let content = self.path(&format!("here/tmp/pull-{}/content", self.meta.infohash));
        // Pieces come in any order: between them are holes.
        content.metadata().map_or(0, |content| content.blocks() * 512)
    }

    /// The image `name` here is the one there.
    fn check(&self, name: &str) -> Value {
        let dir = self.path("here/images").join(name);
        let geometry = self.meta.geometry;
        let content = FlatContent::open(&dir.join("content.zst"), geometry).expect("pulled and compressed");
        let mut bytes = vec![0; self.content.len()];
        content.read(geometry.piece(0).expect("not empty"), 0, &mut bytes).expect("whole");
        assert!(bytes == self.content, "another content");
        let torrent = fs::read(dir.join("image.torrent")).expect("pulled");
        let meta = Metainfo::parse(&torrent).expect("a torrent");
        assert_eq!((meta.infohash, meta.announce), (self.meta.infohash, None));
        assert!(succeed(&mut self.image(&["verify", name])).contains("is good"));
        assert!(!dir.join("source").exists() && self.pulled_len() == 0, "nothing is left over");
        serde_json::from_slice(&fs::read(dir.join("manifest.json")).expect("pulled")).expect("JSON")
    }
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let text = said(&output);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

fn fail(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let text = said(&output);
    assert!(!output.status.success(), "{command:?}: {text}");
    text
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_pulled_image_is_the_one_there() {
    let sites = Sites::new(5 * MIB + 777);
    let _serving = sites.serve(&["--publish", "true"]);
    let text = succeed(&mut sites.image(&["pull", &sites.url("images/golden.torrent")]));
    assert!(text.contains("pulled golden: "), "{text}");
    let manifest = sites.check("golden");
    assert_eq!(manifest["origin"]["source"], "/dev/there", "the manifest came along");

    let taken = fail(&mut sites.image(&["pull", &sites.url("images/golden.torrent")]));
    assert!(taken.contains("already is an image named \"golden\"") && taken.contains("--replace"), "{taken}");
    succeed(&mut sites.image(&["pull", &sites.url("images/golden.torrent"), "--name", "silver"]));
    sites.check("silver");
    succeed(&mut sites.image(&["pull", &sites.url("images/golden.torrent"), "--replace"]));
    sites.check("golden");
}

#[test]
fn what_is_pulled_is_never_live() {
    let sites = Sites::new(MIB);
    let _serving = sites.serve(&["--publish", "true"]);
    let peer = format!("127.0.0.1:{}", sites.seeding()["port"]);
    let image = sites.path("there/images/golden");
    let torrent = sites.path("gold.torrent");
    fs::copy(image.join("image.torrent"), &torrent).expect("copied");
    let text = fs::read(image.join("manifest.json")).expect("there");
    let mut manifest: Value = serde_json::from_slice(&text).expect("JSON");
    manifest["live"] = json!({ "source": "/dev/sda" });
    fs::write(sites.path("gold.json"), manifest.to_string()).expect("written");
    succeed(&mut sites.image(&["pull", torrent.to_str().expect("plain"), "--peer", &peer]));
    assert!(sites.check("gold").get("live").is_none(), "no disk of ours is given away because another site says so");
}

/// librqbit, which pulls, from our seeder.
#[test]
fn librqbit_takes_every_piece_length() {
    for cut in CUTS {
        println!("{cut:?}");
        let sites = Sites::cut(2 * cut.piece_len + MIB + 777, cut);
        let _serving = sites.serve(&["--publish", "true"]);
        succeed(&mut sites.image(&["pull", &sites.url("images/golden.torrent")]));
        sites.check("golden");
    }
}

/// Pulls slowly until at least that much is there, and kills it.
fn pull_until(sites: &Sites, len: usize) -> String {
    let url = sites.url("images/golden.torrent");
    let mut pull = sites.image(&["pull", &url, "--down", "1048576"]);
    let mut pulling = Running(pull.stdout(Stdio::null()).spawn().expect("our own binary"));
    wait_for("a part of it", || {
        assert!(pulling.0.try_wait().expect("our own child").is_none(), "the pull ended");
        sites.pulled_len() >= len as u64
    });
    url
}

#[test]
fn a_killed_pull_can_be_discarded() {
    let sites = Sites::new(24 * MIB);
    let _serving = sites.serve(&["--publish", "true"]);
    let url = pull_until(&sites, 2 * MIB);
    let text = succeed(&mut sites.image(&["pull", "--discard", &url]));
    assert!(text.contains("deleted ") && sites.pulled_len() == 0, "{text}");
    assert!(succeed(&mut sites.image(&["pull", "--discard"])).contains("no unfinished pulls"));
}

#[test]
fn what_is_unfinished_is_listed_where_nothing_can_be_written_and_for_the_owner_alone() {
    assert!(nix::unistd::geteuid().is_root(), "only root can be somebody else: run the tests as root");
    let sites = Sites::new(24 * MIB);
    let _serving = sites.serve(&["--publish", "true"]);
    let url = sites.url("images/golden.torrent");
    // A minute and a half in all, of which two commands take a moment.
    let mut pull = sites.image(&["pull", &url, "--down", "262144"]);
    let mut pulling = Running(pull.stdout(Stdio::null()).spawn().expect("our own binary"));
    wait_for("a part of it", || sites.pulled_len() > 0);

    // Nobody in particular, who may go where the program and the library are.
    let ezio = sites.path("ezio");
    fs::copy(EZIO, &ezio).expect("copied");
    fs::set_permissions(sites.dir.path(), Permissions::from_mode(0o755)).expect("ours");
    let library = sites.path("here");
    let refused_nobody = || {
        let mut list = Command::new("setpriv");
        list.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        list.arg(&ezio).args(["image", "list", "--library"]).arg(&library);
        let output = list.output().expect("it runs");
        let text = said(&output);
        assert!(!output.status.success() && text.contains("for its owner alone") && text.contains("sudo"), "{text}");
    };
    let read_only = || {
        let script = "mount --bind $1 $1 && mount -o remount,ro,bind $1 && $0 image list --library $1";
        succeed(Command::new("unshare").args(["-m", "sh", "-c", script]).arg(EZIO).arg(&library))
    };
    refused_nobody();
    let listed = read_only();
    assert!(listed.contains("unfinished: ") && listed.contains(&url) && listed.contains("in progress"), "{listed}");
    pulling.0.kill().and_then(|()| pulling.0.wait()).expect("its end");
    let listed = read_only();
    assert!(listed.contains("unfinished: ") && !listed.contains("in progress"), "{listed}");
}

#[test]
fn a_killed_pull_goes_on_where_it_was() {
    // So much more than what is waited for that the pull is not over before it is killed.
    let sites = Sites::new(48 * MIB);
    let _serving = sites.serve(&["--publish", "true"]);
    let url = pull_until(&sites, 12 * MIB);

    // Other work in the library clears what is dead, but not this.
    fail(&mut sites.image(&["remove", "nothing"]));
    let listed = succeed(&mut sites.image(&["list"]));
    assert!(listed.contains("unfinished: ") && listed.contains(&url), "{listed}");
    let before = sites.sent(0);
    let text = succeed(&mut sites.image(&["pull", &url]));
    assert!(text.contains("are already here"), "{text}");
    sites.check("golden");
    let again = sites.sent(before) - before;
    assert!(again < 42 * MIB as u64, "{again} bytes were sent again");
}

#[test]
fn a_pull_outlives_a_restart_of_the_other_server() {
    let sites = Sites::new(16 * MIB);
    let serving = sites.serve(&["--publish", "true"]);
    let mut pull = sites.image(&["pull", &sites.url("images/golden.torrent"), "--down", "2097152"]);
    let mut pulling = Running(pull.stdout(Stdio::null()).spawn().expect("our own binary"));
    wait_for("a part of it", || sites.pulled_len() >= 4 * MIB as u64);
    drop(serving);
    let _serving = sites.serve(&["--publish", "true"]);
    wait_for("the rest of it", || match pulling.0.try_wait().expect("our own child") {
        Some(status) => {
            assert!(status.success(), "{status}");
            true
        }
        None => false,
    });
    sites.check("golden");
}

#[test]
fn mistakes_are_said_in_words() {
    let sites = Sites::new(MIB);
    let nobody = fail(&mut sites.image(&["pull", &sites.url("images/golden.torrent")]));
    assert!(nobody.contains("no answer") && nobody.contains("ezio serve"), "{nobody}");

    let serving = sites.serve(&[]);
    let closed = fail(&mut sites.image(&["pull", &sites.url("images/golden.torrent")]));
    assert!(closed.contains("publish = true") && closed.contains("404"), "{closed}");
    drop(serving);

    let _serving = sites.serve(&["--publish", "true"]);
    let port = sites.seeding()["port"].as_u64().expect("a number");
    let unknown = fail(&mut sites.image(&["pull", &sites.url("images/lead.torrent")]));
    assert!(unknown.contains("no image \"lead\"") && unknown.contains("golden"), "{unknown}");
    let not_one = fail(&mut sites.image(&["pull", &sites.url("images/golden.json"), "--name", "x"]));
    assert!(not_one.contains("not a torrent"), "{not_one}");
    for (arguments, why) in [
        (["pull", "https://example.org/x.torrent"], "only http://"),
        (["pull", "/nonexistent/x.torrent"], "no file"),
        (["pull", "http://127.0.0.1/"], "--name"),
    ] {
        let text = fail(&mut sites.image(&arguments));
        assert!(text.contains(why), "{text}");
    }
    assert!(!sites.path("here/images").exists(), "nothing was begun");

    // A torrent from the library names no tracker.
    let torrent = sites.path("there/images/golden/image.torrent");
    let torrent = torrent.to_str().expect("plain");
    let alone = fail(&mut sites.image(&["pull", torrent, "--name", "x"]));
    assert!(alone.contains("--peer"), "{alone}");
    let (silent, _not_listening) = free_port();
    let silent = format!("127.0.0.1:{silent}");
    let gone = fail(&mut sites.image(&["pull", torrent, "--name", "x", "--peer", &silent, "--patience", "1"]));
    assert!(gone.contains("nothing came") && gone.contains(&silent) && gone.contains("no peer connected"), "{gone}");
    let peer = format!("127.0.0.1:{port}");
    let text = succeed(&mut sites.image(&["pull", torrent, "--name", "x", "--peer", &peer]));
    assert!(text.contains("the manifest is made from"), "{text}");
    assert_eq!(sites.check("x")["disk_size"], 1 << 30);
}

#[test]
fn a_manifest_that_does_not_fit_is_refused() {
    let sites = Sites::new(MIB);
    let _serving = sites.serve(&["--publish", "true"]);
    let peer = format!("127.0.0.1:{}", sites.seeding()["port"]);
    let image = sites.path("there/images/golden");
    let torrent = sites.path("gold.torrent");
    fs::copy(image.join("image.torrent"), &torrent).expect("copied");
    let torrent = torrent.to_str().expect("plain");
    let right: Value = serde_json::from_slice(&fs::read(image.join("manifest.json")).expect("there")).expect("JSON");
    let pull = |change: &dyn Fn(&mut Value)| {
        let mut manifest = right.clone();
        change(&mut manifest);
        fs::write(sites.path("gold.json"), manifest.to_string()).expect("written");
        sites.image(&["pull", torrent, "--peer", &peer])
    };
    let newer = fail(&mut pull(&|manifest| manifest["schema"] = 9.into()));
    assert!(newer.contains("schema is 9"), "{newer}");
    let longer = fail(&mut pull(&|manifest| manifest["content_len"] = 9.into()));
    assert!(longer.contains("content_len 9"), "{longer}");
    let other = fail(&mut pull(&|manifest| manifest["infohash"] = "00".into()));
    assert!(other.contains("infohash 00"), "{other}");

    succeed(&mut pull(&|_| {}));
    sites.check("gold");
}

/// librqbit as it comes, seeding from a directory of files; with it where it listens.
async fn librqbit_seeds(dir: &Path, torrent: Vec<u8>) -> (std::sync::Arc<Session>, SocketAddr) {
    let listen_addr = (Ipv4Addr::LOCALHOST, 0).into();
    let options = SessionOptions {
        dht: None,
        disable_local_service_discovery: true,
        listen: Some(ListenerOptions { listen_addr, ipv4_only: true, ..ListenerOptions::default() }),
        ..SessionOptions::default()
    };
    let session = Session::new_with_opts(dir.into(), options).await.expect("a session");
    let options = AddTorrentOptions { overwrite: true, ..AddTorrentOptions::default() };
    let added = session.add_torrent(AddTorrent::from_bytes(torrent), Some(options)).await.expect("added");
    added.into_handle().expect("a torrent").wait_until_completed().await.expect("checked");
    let addr = session.listen_addr().expect("it listens");
    (session, addr)
}

#[test]
fn we_restore_from_librqbit() {
    for cut in CUTS {
        println!("{cut:?}");
        restore_from_librqbit(&Sites::cut(2 * cut.piece_len + MIB + 5, cut));
    }
}

fn restore_from_librqbit(sites: &Sites) {
    let dir = sites.path("files/root");
    fs::create_dir_all(&dir).expect("made");
    let (mut at, mut disk) = (0, vec![0; 1 << 27]);
    for entry in &sites.meta.files {
        let bytes = &sites.content[at..at + entry.length as usize];
        fs::write(dir.join(&entry.path[0]), bytes).expect("written");
        let start = usize::from_str_radix(&entry.path[0], 16).expect("an offset");
        disk[start..start + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    }
    let torrent = sites.path("there/images/golden/image.torrent");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let bytes = fs::read(&torrent).expect("there");
    let (_session, peer) = runtime.block_on(librqbit_seeds(&sites.path("files"), bytes));
    let target = sites.path("disk.img");
    let mut restore = Command::new(EZIO);
    restore.arg("restore").arg(&torrent).arg(&target).args(["--peer", &peer.to_string()]);
    let text = succeed(&mut restore);
    assert!(text.lines().any(|line| line.starts_with("verified ")), "{text}");
    let mut restored = vec![0; disk.len()];
    File::open(&target).and_then(|mut file| file.read_exact(&mut restored)).expect("restored");
    assert!(restored == disk, "every byte at its place");
}

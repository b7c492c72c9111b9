//! Running programs, making disks, putting images back.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use layout::Layout;
use library::content::FlatContent;
use metainfo::Metainfo;
use swarm::Storage;
use tempfile::TempDir;

/// `PATH` for every program of the tests.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Fails unless all of these programs are here; says which is not.
pub fn need(programs: &[&str]) {
    let is_here = |name: &&str| PATH.split(':').any(|dir| Path::new(dir).join(name).is_file());
    let missing: Vec<_> = programs.iter().filter(|name| !is_here(name)).collect();
    assert!(missing.is_empty(), "{missing:?} not installed: `make setup` does that");
}

/// A command with a known environment.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE").env("PATH", PATH).env("LC_ALL", "C");
    command
}

/// Runs a program that has to succeed, and returns what it printed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = command(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn text(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A directory with a library in it.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    pub fn library(&self) -> PathBuf {
        self.path("library")
    }

    pub fn image(&self, name: &str) -> PathBuf {
        self.library().join("images").join(name)
    }

    /// A sparse file.
    pub fn blank(&self, name: &str, mib: u64) -> String {
        File::create(self.path(name)).and_then(|file| file.set_len(mib << 20)).expect("a file");
        self.text(name)
    }

    /// `ezio ARGS --library …`, not yet run.
    pub fn ezio(&self, args: &[&str]) -> Command {
        let mut ezio = command(env!("CARGO_BIN_EXE_ezio"));
        ezio.args(args).arg("--library").arg(self.library());
        ezio
    }

    /// Runs it; it has to succeed.
    pub fn ezio_ok(&self, args: &[&str]) -> String {
        let output = self.ezio(args).output().expect("ezio runs");
        assert!(output.status.success(), "ezio {args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs it; it has to fail, and says why on standard error.
    pub fn ezio_refuses(&self, args: &[&str]) -> String {
        let output = self.ezio(args).output().expect("ezio runs");
        assert!(!output.status.success(), "ezio {args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn meta(&self, name: &str) -> Metainfo {
        Metainfo::parse(&fs::read(self.image(name).join("image.torrent")).expect("the torrent"))
            .expect("a good torrent")
    }

    /// The file with its content, compressed or not.
    pub fn stored(&self, name: &str) -> PathBuf {
        let compressed = self.image(name).join("content.zst");
        if compressed.exists() { compressed } else { self.image(name).join("content") }
    }

    /// Its plain content.
    pub fn content(&self, name: &str) -> Vec<u8> {
        let geometry = self.meta(name).geometry;
        let content = FlatContent::open(&self.stored(name), geometry).expect("the content");
        let mut bytes = vec![0; usize::try_from(geometry.content_len()).expect("small")];
        content.read(geometry.piece(0).expect("not empty"), 0, &mut bytes).expect("whole");
        bytes
    }

    /// Names in the list, damaged ones too.
    pub fn listed(&self) -> Vec<String> {
        match fs::read_dir(self.library().join("images")) {
            Ok(entries) => {
                entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
            }
            Err(_) => Vec::new(),
        }
    }

    /// What unfinished captures left.
    pub fn unfinished(&self) -> usize {
        fs::read_dir(self.library().join("tmp/work")).map_or(0, Iterator::count)
    }

    /// Puts the image's extents into a file of junk and checks that they are the source's; returns its name.
    pub fn restore(&self, image: &str, source: &str) -> String {
        let len = fs::metadata(source).expect("the source").len();
        let target = self.text("restored");
        let restored = File::create(&target).expect("the target");
        let mut junk = Junk(0x2545_f491_4f6c_dd1d);
        let mut buf = vec![0; 1 << 20];
        for at in (0..len).step_by(buf.len()) {
            junk.fill(&mut buf);
            let part = usize::try_from(len - at).expect("small").min(buf.len());
            restored.write_all_at(&buf[..part], at).expect("write junk");
        }
        let layout = Layout::new(&self.meta(image)).expect("extents");
        let geometry = self.meta(image).geometry;
        let content = FlatContent::open(&self.stored(image), geometry).expect("the content");
        let source = File::open(source).expect("the source");
        for part in layout.on_disk(0..layout.content_len()).expect("all of it") {
            let mut bytes = vec![0; usize::try_from(part.len).expect("small")];
            let piece = geometry.piece_at(part.content.0).expect("inside");
            let skip = u32::try_from(part.content.0 - geometry.piece_range(piece).start).expect("inside a piece");
            content.read(piece, skip, &mut bytes).expect("content");
            let mut original = vec![0; bytes.len()];
            source.read_exact_at(&mut original, part.disk.0).expect("source");
            assert!(bytes == original, "extent at {:#x} is not the source's", part.disk.0);
            restored.write_all_at(&bytes, part.disk.0).expect("write");
        }
        for range in layout.zeros() {
            let len = usize::try_from(range.len()).expect("small");
            let mut original = vec![1; len];
            source.read_exact_at(&mut original, range.start.0).expect("source");
            assert!(original.iter().all(|&byte| byte == 0), "zeros at {:#x} are none in the source", range.start.0);
            restored.write_all_at(&vec![0; len], range.start.0).expect("write");
        }
        target
    }

    /// Restores the image with `ezio restore` from `ezio seed`, which reads from `seeds_from`, into a file of junk.
    pub fn deploy(&self, image: &str, seeds_from: &[&str], target_len: u64) -> String {
        let target = self.text("deployed");
        let mut junk = vec![0; usize::try_from(target_len).expect("small")];
        Junk(99).fill(&mut junk);
        fs::write(&target, junk).expect("write junk");
        let torrent = self.image(image).join("image.torrent");
        let mut seed = command(env!("CARGO_BIN_EXE_ezio"));
        seed.arg("seed").arg(&torrent).args(seeds_from).args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
        let mut seed = Running(seed.spawn().expect("ezio runs"));
        let lines = BufReader::new(seed.0.stdout.take().expect("piped")).lines();
        let address = lines.map_while(Result::ok).find_map(|line| Some(line.rsplit_once(" on ")?.1.to_owned()));
        let address = address.expect("it says where it seeds");
        let mut restore = command(env!("CARGO_BIN_EXE_ezio"));
        restore.arg("restore").arg(&torrent).args([&target, "--yes", "--peer", &address]);
        let output = restore.output().expect("ezio runs");
        assert!(output.status.success(), "ezio restore: {}", text(&output));
        target
    }

    /// Puts an image into a file.
    pub fn ezio_restore(&self, image: &str, target: &str) {
        self.ezio_restore_says(image, &[target]);
    }

    /// The same with more arguments; returns what it printed.
    pub fn ezio_restore_says(&self, image: &str, args: &[&str]) -> String {
        let output = self.ezio(&["restore", image, "--yes"]).args(args).output().expect("ezio runs");
        assert!(output.status.success(), "ezio restore: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Checks that a disk has every byte of the image that another one has.
    pub fn check_used(&self, image: &str, disk: &str, other: &str) {
        let layout = Layout::new(&self.meta(image)).expect("extents");
        let [disk, other] = [disk, other].map(|path| File::open(path).expect("a disk"));
        for extent in layout.extents() {
            let bytes = [&disk, &other].map(|disk| {
                let mut bytes = vec![0; usize::try_from(extent.len).expect("small")];
                disk.read_exact_at(&mut bytes, extent.disk.0).expect("inside the disk");
                bytes
            });
            assert!(bytes[0] == bytes[1], "{} bytes at {:#x} differ", extent.len, extent.disk.0);
        }
    }

    /// How many pages of 4 KiB hold data in the source and are something else on the disk that the image gives back, and how
    /// many hold data. Free blocks of the source have to be zeros for this.
    pub fn lost(&self, image: &str, source: &str) -> (usize, usize) {
        let raw = self.text("exported");
        let _ = fs::remove_file(&raw);
        self.ezio_ok(&["image", "export", image, "--raw", &raw]);
        let [source, raw] = [source, raw.as_str()].map(|path| fs::read(path).expect("read"));
        assert_eq!(source.len(), raw.len());
        let pages = source.chunks(4096).zip(raw.chunks(4096));
        let data: Vec<_> = pages.filter(|(page, _)| page.iter().any(|&byte| byte != 0)).collect();
        (data.iter().filter(|(page, back)| page != back).count(), data.len())
    }

    /// A file of so many bytes that look random.
    pub fn junk(&self, name: &str, len: usize, seed: u64) -> String {
        let mut bytes = vec![0; len];
        Junk(seed).fill(&mut bytes);
        fs::write(self.path(name), &bytes).expect("write");
        self.text(name)
    }

    /// Divides a disk as a script for sfdisk says.
    pub fn sfdisk(&self, disk: &str, script: &str) {
        fs::write(self.path("sfdisk.script"), script).expect("write");
        run("sh", &["-c", &format!("sfdisk -q --no-reread {disk} < {}", self.text("sfdisk.script"))]);
    }

    /// Copies bytes out of a disk into a file of their own.
    pub fn cut(&self, disk: &str, start: u64, len: u64, name: &str) -> String {
        let mut bytes = vec![0; usize::try_from(len).expect("small")];
        File::open(disk).expect("disk").read_exact_at(&mut bytes, start).expect("inside the disk");
        fs::write(self.path(name), bytes).expect("write");
        self.text(name)
    }

    /// Puts a file into a disk.
    pub fn paste(&self, file: &str, disk: &str, start: u64) {
        let bytes = fs::read(file).expect("file");
        let disk = File::options().write(true).open(disk).expect("disk");
        disk.write_all_at(&bytes, start).expect("write");
    }

    /// A directory of files worth comparing: large, small, many, empty, nested.
    pub fn files(&self, name: &str) -> String {
        let dir = self.path(name);
        fs::create_dir_all(dir.join("many/deep")).expect("directories");
        let mut junk = Junk(77);
        let mut big = vec![0; 9_000_001];
        junk.fill(&mut big);
        fs::write(dir.join("big"), &big).expect("write");
        fs::write(dir.join("empty"), "").expect("write");
        for i in 0..200 {
            fs::write(dir.join(format!("many/deep/{i}")), format!("{i}").repeat(i)).expect("write");
        }
        self.text(name)
    }

    /// An ext4 file system with those files.
    pub fn ext4(&self, name: &str, mib: u64, files: &str) -> String {
        let image = self.blank(name, mib);
        run("mkfs.ext4", &["-q", "-F", "-L", "root", "-d", files, &image]);
        image
    }

    /// Checks a restored ext4 file system: sound, and every file equal.
    pub fn check_ext4(&self, image: &str, files: &str) {
        run("e2fsck", &["-fn", image]);
        let out = self.path("dumped");
        let _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).expect("a directory");
        run("debugfs", &["-R", &format!("rdump / {}", out.display()), image]);
        let _ = fs::remove_dir(out.join("lost+found"));
        run("diff", &["-r", files, &self.text("dumped")]);
    }
}

/// A process that ends with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes that look random and are the same in every run (xorshift64).
pub struct Junk(pub u64);

impl Junk {
    pub fn fill(&mut self, buf: &mut [u8]) {
        for bytes in buf.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.copy_from_slice(&self.0.to_le_bytes()[..bytes.len()]);
        }
    }
}

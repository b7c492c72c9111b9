//! A small virtual machine with Debian's kernel, which mounts file systems that this machine's kernel cannot mount. For
//! tests only.
//!
//! It needs programs of Debian (qemu-system-x86, busybox-static, cpio, kmod) and Debian's generic kernel. The kernel
//! comes from the cache of `make image FLAVOUR=generic` if that ran, otherwise from `apt-get download`. It needs no
//! root and no KVM, and has no network.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

/// How long one run may take: it is emulated, on a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_secs(1800);
/// Debian's package that depends on the kernel.
const KERNEL_PACKAGE: &str = "linux-image-amd64";
/// Modules that every machine loads before those that its test asks for.
const DISK_MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// Configuration for lvm without udev and without a list of devices.
pub const LVM: &str = r#"
mkdir -p /etc/lvm /run/lock/lvm /run/lvm
cat >/etc/lvm/lvm.conf <<'CONF'
devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" use_devicesfile = 0 }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
CONF
lvm() { /bin/lvm "$@" >/tmp/said 2>&1 || { cat /tmp/said; failed lvm "$@"; }; }
"#;

/// A command for the script that pauses it, and then drops everything cached from earlier reads.
pub const WAIT: &str = "echo VM-WAIT; read answer; echo 3 >/proc/sys/vm/drop_caches\n";

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
for module in $(cat /modules/order); do insmod /modules/$module || echo "FAILED insmod $module"; done
failed() { echo "FAILED $*"; dmesg | tail -n 20; echo VM-DONE; sync; poweroff -f; }
tries=0
until [ -b /dev/vda ]; do tries=$((tries + 1)); [ $tries -lt 100 ] || failed no disk; sleep 0.1; done
. /script
echo VM-DONE
poweroff -f
"#;

/// Finds a program, also where Debian keeps system tools. A missing program fails the test.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = dirs.map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: run scripts/setup"))
}

/// Runs a program to its end and returns its output.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said
}

/// Moves the superblock of UFS2 to where newfs would have written it. makefs writes it where that of UFS1 is, and
/// records that place in it. BSD looks there too, but Linux does not. With these options, unused inodes lie at the new
/// place.
///
/// # Panics
/// If the place is not free.
pub fn move_superblock(volume: &Path, is_big_endian: bool) {
    let mut bytes = fs::read(volume).expect("the volume");
    // An inode has 256 bytes and starts with its mode and count of links.
    let is_unused = bytes[65_536..65_536 + 8192].chunks(256).all(|inode| inode[..4] == [0; 4]);
    assert!(is_unused, "inodes that are in use");
    bytes.copy_within(8192..16_384, 65_536);
    bytes[8192..16_384].fill(0);
    let place: u64 = 65_536;
    let place = if is_big_endian { place.to_be_bytes() } else { place.to_le_bytes() };
    bytes[65_536 + 1000..65_536 + 1008].copy_from_slice(&place);
    fs::write(volume, bytes).expect("the volume");
}

/// `make clean` removes this directory; downloads stay in it until then.
const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../build");

/// Directory with `boot/vmlinuz-*` and `lib/modules/*` of Debian's generic kernel.
fn kernel() -> &'static Path {
    static KERNEL: OnceLock<PathBuf> = OnceLock::new();
    KERNEL.get_or_init(|| {
        let cache = Path::new(BUILD).join("cache/unpacked");
        let is_generic = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("linux-image-") && name.contains("-amd64_") && !name.contains("cloud")
        };
        let cached = fs::read_dir(cache).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        if let Some(dir) = cached.filter(|path| is_generic(path) && path.join("boot").is_dir()).max() {
            return dir;
        }
        let dir = Path::new(BUILD).join("testvm");
        let unpacked = dir.join("unpacked");
        if !unpacked.join("boot").is_dir() {
            let depends = run(Command::new(program("apt-cache")).args(["depends", "--important", KERNEL_PACKAGE]));
            let package =
                depends.split_whitespace().find(|word| word.starts_with("linux-image-") && *word != KERNEL_PACKAGE);
            let package = package.unwrap_or_else(|| panic!("{KERNEL_PACKAGE} names no kernel: {depends}"));
            fs::create_dir_all(&dir).expect("a directory for the kernel");
            let fresh = tempfile::tempdir_in(&dir).expect("a directory for the kernel");
            run(Command::new(program("apt-get")).args(["download", "-qq", package]).current_dir(fresh.path()));
            let deb = fs::read_dir(fresh.path()).expect("downloaded").next().expect("a package").expect("its name");
            let contents = fresh.path().join("unpacked");
            run(Command::new(program("dpkg-deb")).arg("-x").arg(deb.path()).arg(&contents));
            // If another process was faster, its copy is kept.
            fs::rename(contents, &unpacked)
                .or_else(|error| if unpacked.is_dir() { Ok(()) } else { Err(error) })
                .expect("kept");
        }
        unpacked
    })
}

/// Path of every module file of the kernel, by module name.
fn module_files() -> &'static BTreeMap<String, PathBuf> {
    static FILES: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    FILES.get_or_init(|| {
        let mut files = BTreeMap::new();
        let mut dirs = vec![kernel().join("lib/modules")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).expect("the kernel's modules").map(|entry| entry.expect("a module")) {
                let path = entry.path();
                if entry.file_type().expect("its type").is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|end| end == "ko") {
                    files.insert(path.file_stem().expect("a name").to_string_lossy().replace('-', "_"), path);
                }
            }
        }
        files
    })
}

/// Adds a module after the modules it depends on; a module without a file is built in.
fn add_module(name: &str, order: &mut Vec<PathBuf>) {
    let Some(file) = module_files().get(&name.replace('-', "_")) else { return };
    if order.contains(file) {
        return;
    }
    let depends = run(Command::new(program("modinfo")).args(["-F", "depends"]).arg(file));
    for dependency in depends.trim().split(',').filter(|name| !name.is_empty()) {
        add_module(dependency, order);
    }
    order.push(file.clone());
}

/// A machine that is switched off however its test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine that does not run yet.
pub struct Vm<'a> {
    /// Directory for its initramfs.
    pub work: &'a Path,
    /// Modules that it loads.
    pub modules: &'a [&'a str],
    /// Programs of this machine that it gets as well, with their libraries.
    pub programs: &'a [&'a str],
    /// Its disks, from `/dev/vda` on.
    pub disks: &'a [&'a Path],
}

impl Vm<'_> {
    /// Boots, runs the script in busybox's shell, powers off, and returns the lines it printed. A line that starts with
    /// `FAILED` fails the test.
    pub fn run(&self, script: &str) -> Vec<String> {
        self.run_with(script, |_| {})
    }

    /// The same, but at each [`WAIT`] the script pauses until `meanwhile` returns. `meanwhile` gets the lines so far
    /// and may use the disks, which the machine does not use then.
    pub fn run_with(&self, script: &str, mut meanwhile: impl FnMut(&[String])) -> Vec<String> {
        let initrd = self.initrd(script);
        let vmlinuz =
            fs::read_dir(kernel().join("boot")).expect("the kernel").filter_map(|entry| Some(entry.ok()?.path()));
        let vmlinuz = vmlinuz.into_iter().find(|path| path.to_string_lossy().contains("vmlinuz-")).expect("vmlinuz");
        let mut qemu = Command::new(program("qemu-system-x86_64"));
        qemu.args(["-accel", "tcg", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"]);
        qemu.arg("-kernel").arg(vmlinuz).arg("-initrd").arg(&initrd);
        qemu.args(["-append", "console=ttyS0 quiet loglevel=1 panic=-1 no_timer_check"]);
        for (number, disk) in self.disks.iter().enumerate() {
            qemu.arg("-drive").arg(format!("if=none,id=disk{number},format=raw,cache=unsafe,file={}", disk.display()));
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive=disk{number}"));
        }
        let mut running = Running(qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("qemu starts"));
        let child = &mut running.0;
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut input = child.stdin.take().expect("piped");
        let (sender, lines_in) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    break;
                }
            }
        });
        let started = Instant::now();
        let mut waited = Duration::ZERO;
        let mut lines: Vec<String> = Vec::new();
        let is_done = loop {
            match lines_in.recv_timeout((DEADLINE + waited).saturating_sub(started.elapsed())) {
                Ok(line) if line == "VM-WAIT" => {
                    let asked = Instant::now();
                    meanwhile(&lines);
                    waited += asked.elapsed();
                    input.write_all(b"go\n").expect("the machine listens");
                }
                Ok(line) => lines.push(line),
                Err(_) => break lines.iter().any(|line| line == "VM-DONE"),
            }
        };
        let is_in_time = started.elapsed() < DEADLINE + waited;
        // After its last line there is no more output; if it hangs, the output shows why.
        drop(running);
        reader.join().expect("the reader ends with the output");
        let said = lines.join("\n");
        println!("the machine ran for {:?}", started.elapsed());
        assert!(is_done && is_in_time, "the machine did not finish in {DEADLINE:?}; it said:\n{said}");
        assert!(!lines.iter().any(|line| line.starts_with("FAILED")), "the machine said:\n{said}");
        lines
    }

    fn initrd(&self, script: &str) -> PathBuf {
        let tree = tempfile::tempdir_in(self.work).expect("a directory for the initramfs");
        for dir in ["bin", "modules", "proc", "sys", "dev", "tmp", "mnt", "etc", "run"] {
            fs::create_dir(tree.path().join(dir)).expect("a directory of the initramfs");
        }
        fs::copy(program("busybox"), tree.path().join("bin/busybox")).expect("busybox");
        let mut modules = Vec::new();
        DISK_MODULES.iter().chain(self.modules).for_each(|name| add_module(name, &mut modules));
        let mut order = String::new();
        for module in &modules {
            let name = module.file_name().expect("a name").to_string_lossy();
            fs::copy(module, tree.path().join("modules").join(&*name)).expect("a module");
            order += &format!("{name}\n");
        }
        fs::write(tree.path().join("modules/order"), order).expect("the order of modules");
        for name in self.programs {
            let file = program(name);
            for library in
                run(Command::new(program("ldd")).arg(&file)).split_whitespace().filter(|word| word.starts_with('/'))
            {
                let to = tree.path().join(&library[1..]);
                fs::create_dir_all(to.parent().expect("a directory")).expect("a directory for a library");
                fs::copy(library, to).expect("a library");
            }
            fs::copy(&file, tree.path().join("bin").join(name)).expect("a program");
        }
        fs::write(tree.path().join("script"), script).expect("the script");
        let init = tree.path().join("init");
        fs::write(&init, INIT).expect("init");
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).expect("its mode");
        let initrd = self.work.join("initrd.img");
        let mut pack = Command::new("sh");
        pack.arg("-c").arg("find . | cpio -o -H newc -R 0:0 --quiet").current_dir(tree.path()).stdin(Stdio::null());
        let packed = pack.output().expect("cpio starts");
        assert!(packed.status.success(), "cpio: {}", String::from_utf8_lossy(&packed.stderr));
        File::create(&initrd).and_then(|mut file| file.write_all(&packed.stdout)).expect("the initramfs");
        initrd
    }
}

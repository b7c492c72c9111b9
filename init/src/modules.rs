//! Coldplug without udev: every device names its driver (`modalias`), `modules.alias` says which module that is.
//!
//! The kernel is asked for its devices once, and listened to afterwards: a bus driver finds new devices, which have
//! their own drivers.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

/// The module tree's indexes, parsed once.
#[derive(Debug, Default)]
pub struct Index {
    dir: PathBuf,
    /// Patterns by the bus they start with (`pci`, `usb`, …), in the file's order.
    aliases: HashMap<String, Vec<(String, String)>>,
    /// Module name → its file and the files it needs, as `modules.dep` lists them.
    files: HashMap<String, (String, Vec<String>)>,
    /// Module name → modules to load before and after it, where there are such.
    soft: HashMap<String, (Vec<String>, Vec<String>)>,
}

impl Index {
    /// Reads `modules.{dep,alias,softdep}` below `dir` (`/lib/modules/VERSION`). What is missing counts as empty.
    pub fn read(dir: &Path) -> Index {
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        Index::parse(dir, &text("modules.dep"), &text("modules.alias"), &text("modules.softdep"))
    }

    fn parse(dir: &Path, dep: &str, alias: &str, softdep: &str) -> Index {
        let mut index = Index { dir: dir.to_owned(), ..Index::default() };
        for line in dep.lines() {
            let Some((file, needs)) = line.split_once(':') else { continue };
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            index.files.insert(module_name(file), (file.to_owned(), needs));
        }
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next()) {
                let bus = pattern.split(':').next().unwrap_or_default();
                index.aliases.entry(bus.to_owned()).or_default().push((pattern.to_owned(), module.replace('-', "_")));
            }
        }
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(module) = words.next() else { continue };
            let (before, after) = index.soft.entry(module.replace('-', "_")).or_default();
            let mut list = None;
            for word in words {
                match (word, list) {
                    ("pre:", _) => list = Some(false),
                    ("post:", _) => list = Some(true),
                    (name, Some(true)) => after.push(name.replace('-', "_")),
                    (name, Some(false)) => before.push(name.replace('-', "_")),
                    _ => {}
                }
            }
        }
        index
    }

    /// The modules that drive a device with this `modalias`.
    pub fn matching(&self, modalias: &str) -> Vec<&str> {
        let bus = modalias.split(':').next().unwrap_or_default();
        let patterns = self.aliases.get(bus).map(Vec::as_slice).unwrap_or_default();
        let hits = patterns.iter().filter(|(pattern, _)| glob_matches(pattern.as_bytes(), modalias.as_bytes()));
        hits.map(|(_, module)| module.as_str()).collect()
    }

    /// The files to load for a module, in order: what it needs, itself, what should follow. Empty if it is not there
    /// (built in, or left out of the image).
    pub fn load_order(&self, module: &str) -> Vec<&str> {
        let mut order = Vec::new();
        self.add_to(&mut order, module, 0);
        order
    }

    fn add_to<'a>(&'a self, order: &mut Vec<&'a str>, module: &str, depth: usize) {
        /// Soft dependencies may form a ring; real chains are three or four long.
        const MAX_DEPTH: usize = 8;
        let Some((file, needs)) = self.files.get(module).filter(|_| depth < MAX_DEPTH) else { return };
        let none = (Vec::new(), Vec::new());
        let (before, after) = self.soft.get(module).unwrap_or(&none);
        before.iter().for_each(|name| self.add_to(order, name, depth + 1));
        // modules.dep lists the nearest need first, so the farthest has to be loaded first.
        for file in needs.iter().rev().chain([file]) {
            if !order.contains(&file.as_str()) {
                order.push(file);
            }
        }
        after.iter().for_each(|name| self.add_to(order, name, depth + 1));
    }
}

fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split('.').next().unwrap_or(base).replace('-', "_")
}

/// `fnmatch` with `*`, `?` and `[…]`, as `modules.alias` uses them; no recursion, so no pattern can blow it up.
fn glob_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let (matched, next) = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some(b'?') => (true, p + 1),
            Some(b'[') => class_matches(pattern, p, text[t]),
            Some(&byte) => (byte == text[t], p + 1),
            None => (false, p),
        };
        if matched {
            (p, t) = (next, t + 1);
        } else if let Some((star_p, star_t)) = star {
            // Let the last star take one byte more.
            star = Some((star_p, star_t + 1));
            (p, t) = (star_p + 1, star_t + 1);
        } else {
            return false;
        }
    }
    pattern[p.min(pattern.len())..].iter().all(|&byte| byte == b'*')
}

/// Whether the class that starts at `at` has the byte in it, and the index just past the class.
fn class_matches(pattern: &[u8], at: usize, byte: u8) -> (bool, usize) {
    let Some(len) = pattern[at + 1..].iter().position(|&b| b == b']') else {
        return (pattern[at] == byte, at + 1);
    };
    let class = &pattern[at + 1..at + 1 + len];
    let mut hit = false;
    let mut i = 0;
    while i < class.len() {
        if i + 2 < class.len() && class[i + 1] == b'-' {
            hit |= (class[i]..=class[i + 2]).contains(&byte);
            i += 3;
        } else {
            hit |= class[i] == byte;
            i += 1;
        }
    }
    (hit, at + 2 + len)
}

/// Loads drivers as devices appear.
#[derive(Clone)]
pub struct Coldplug {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    index: Index,
    loaded: HashSet<String>,
    seen: HashSet<String>,
    last_event: Instant,
    failures: Vec<String>,
}

impl Coldplug {
    /// Loads a driver for every device there is, and from now on for every one that appears.
    pub fn start(index: Index) -> Coldplug {
        let shared = Shared {
            index,
            loaded: HashSet::new(),
            seen: HashSet::new(),
            last_event: Instant::now(),
            failures: Vec::new(),
        };
        let coldplug = Coldplug { shared: Arc::new(Mutex::new(shared)) };
        let listener = coldplug.clone();
        // Listening starts before looking, so that no device falls between the two.
        match event_socket() {
            Ok(socket) => drop(std::thread::spawn(move || listener.listen(&socket))),
            Err(cause) => log::warn!("devices that appear later get no driver: {cause}"),
        }
        coldplug.look_again();
        // Disk drivers have aliases of their own only on buses that announce them; this one costs nothing if unused.
        coldplug.load("sd_mod");
        coldplug
    }

    /// Goes through every device there is, also those that had no driver before: an event may have been lost, or a driver
    /// may have failed only because another was missing.
    pub fn look_again(&self) {
        self.lock().seen.clear();
        let mut modaliases = Vec::new();
        collect_modaliases(Path::new("/sys/devices"), 0, &mut modaliases);
        modaliases.iter().for_each(|modalias| self.handle(modalias));
    }

    /// How long ago the last device appeared: disks are only counted once the machine is quiet.
    pub fn quiet_for(&self) -> Duration {
        self.lock().last_event.elapsed()
    }

    /// Modules that would not load, with the reason.
    pub fn failures(&self) -> Vec<String> {
        self.lock().failures.clone()
    }

    fn listen(&self, events: &std::os::fd::OwnedFd) {
        use std::os::fd::AsRawFd;
        let mut buf = [0; 8192];
        loop {
            match recv(events.as_raw_fd(), &mut buf, nix::sys::socket::MsgFlags::empty()) {
                Ok(len) => {
                    self.lock().last_event = Instant::now();
                    if let Some(modalias) = modalias_of(&buf[..len]) {
                        self.handle(modalias);
                    }
                }
                Err(nix::errno::Errno::EINTR) => {}
                // More events than the socket holds: some are lost.
                Err(nix::errno::Errno::ENOBUFS) => self.look_again(),
                Err(cause) => {
                    log::warn!("listening for devices: {cause}");
                    return;
                }
            }
        }
    }

    fn handle(&self, modalias: &str) {
        let modules: Vec<String> = {
            let mut shared = self.lock();
            if !shared.seen.insert(modalias.to_owned()) {
                return;
            }
            shared.index.matching(modalias).into_iter().map(str::to_owned).collect()
        };
        modules.iter().for_each(|module| self.load(module));
    }

    /// Loads a module and what it needs; nothing if it is built in or left out of the image.
    pub fn load(&self, module: &str) {
        // Locked throughout: what the other thread is still loading would pass for loaded, and ours would miss its symbols.
        let mut shared = self.lock();
        let order = shared.index.load_order(module);
        let files: Vec<PathBuf> = order.into_iter().map(|file| shared.index.dir.join(file)).collect();
        for file in files {
            let name = file.to_string_lossy().into_owned();
            if shared.loaded.contains(&name) {
                continue;
            }
            match load_file(&file) {
                Ok(()) => drop(shared.loaded.insert(name)),
                Err(cause) => {
                    let failure = format!("{}: {cause}", module_name(&name));
                    if !shared.failures.contains(&failure) {
                        shared.failures.push(failure);
                    }
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load_file(file: &Path) -> std::io::Result<()> {
    let file = File::open(file)?;
    match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
        // Already there: built in, or loaded as somebody else's need.
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}

fn event_socket() -> nix::Result<std::os::fd::OwnedFd> {
    use std::os::fd::AsRawFd;
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let events = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    // Group 1 is the kernel's own events.
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    Ok(events)
}

/// The `MODALIAS` of an `add` event: NUL-separated `KEY=value` after the header.
fn modalias_of(event: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(event).ok()?;
    let mut parts = text.split('\0');
    parts.next().filter(|header| header.starts_with("add@"))?;
    parts.find_map(|part| part.strip_prefix("MODALIAS="))
}

fn collect_modaliases(dir: &Path, depth: usize, found: &mut Vec<String>) {
    /// sysfs is a tree of real directories (links are not followed); none is this deep.
    const MAX_DEPTH: usize = 32;
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < MAX_DEPTH {
            collect_modaliases(&entry.path(), depth + 1, found);
        } else if entry.file_name() == "modalias" {
            found.extend(fs::read_to_string(entry.path()).ok().map(|text| text.trim().to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index::parse(
            Path::new("/m"),
            "kernel/a/virtio_net.ko: kernel/a/net_failover.ko kernel/a/failover.ko\nkernel/a/net_failover.ko: \
             kernel/a/failover.ko\nkernel/a/failover.ko:\nkernel/b/r8169.ko: kernel/b/libphy.ko\nkernel/b/libphy.ko:\n\
             kernel/b/realtek.ko: kernel/b/libphy.ko\nkernel/c/crc32c-intel.ko:\n",
            "# comment\nalias virtio:d00000001v* virtio_net\nalias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169\n\
             alias scsi:t-0x0[0-4]* sd_mod\n",
            "softdep r8169 pre: realtek\nsoftdep libcrc32c post: crc32c-intel\n",
        )
    }

    #[test]
    fn devices_find_their_drivers() {
        let index = index();
        assert_eq!(index.matching("virtio:d00000001v00001AF4"), ["virtio_net"]);
        assert_eq!(index.matching("pci:v000010ECd00008168sv00001043sd00008554bc02sc00i00"), ["r8169"]);
        assert_eq!(index.matching("scsi:t-0x00"), ["sd_mod"]);
        assert_eq!(index.matching("scsi:t-0x05"), Vec::<&str>::new());
        assert_eq!(index.matching(""), Vec::<&str>::new());
    }

    #[test]
    fn needs_are_loaded_first() {
        let index = index();
        let order = index.load_order("virtio_net");
        assert_eq!(order, ["kernel/a/failover.ko", "kernel/a/net_failover.ko", "kernel/a/virtio_net.ko"]);
        assert_eq!(index.load_order("r8169"), ["kernel/b/libphy.ko", "kernel/b/realtek.ko", "kernel/b/r8169.ko"]);
        assert_eq!(index.load_order("crc32c_intel"), ["kernel/c/crc32c-intel.ko"]);
        assert_eq!(index.load_order("ext4"), Vec::<&str>::new());
    }

    #[test]
    fn globs_match_as_fnmatch_does() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*b*c", "aXXbYYbZc", true),
            ("a*b*c", "aXXbYYbZ", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[0-4]", "3", true),
            ("[0-4]", "5", false),
            ("[abc", "[abc", true),
            ("x[0-9a-f]*", "xf00", true),
            ("[]", "a", false),
        ] {
            assert_eq!(glob_matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn events_name_their_device() {
        let event = b"add@/devices/x\0ACTION=add\0MODALIAS=scsi:t-0x00\0SEQNUM=9\0";
        assert_eq!(modalias_of(event), Some("scsi:t-0x00"));
        assert_eq!(modalias_of(b"remove@/devices/x\0MODALIAS=scsi:t-0x00\0"), None);
        assert_eq!(modalias_of(b"\xff\xfe"), None);
    }
}

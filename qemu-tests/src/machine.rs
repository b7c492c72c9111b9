//! One virtual machine: its parts, and its output on the serial line.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::disk::{Bus, Disk};
use crate::log::Log;
use crate::nbd::NbdDisk;
use crate::network::Network;
use crate::process::{Process, ending};

/// How long a machine may take for one task. Firmware, kernel and network run in software emulation on a machine that
/// is busy with others, so a wait that fails has another reason than slowness.
pub const DEADLINE: Duration = Duration::from_secs(1800);

/// Arguments for every kernel in a rack. Without `no_timer_check`, a kernel panics if its first timer tick comes late
/// because the host was busy.
pub const KERNEL_ARGS: &str = "console=ttyS0 quiet no_timer_check";

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// The firmware that starts the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, with iPXE in the network card's ROM.
    Bios,
    /// OVMF, with its own PXE and no iPXE in the network card.
    Uefi,
}

impl std::fmt::Display for Firmware {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Firmware::Bios => "BIOS",
            Firmware::Uefi => "UEFI",
        })
    }
}

/// The fault of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Writes that touch the sector at this byte fail with EIO.
    Write(u64),
    /// Reads that touch the sector at this byte fail with EIO.
    Read(u64),
    /// Flushes fail with EIO from the third on.
    Flush,
    /// It has less space than it claims: writes that touch the sector at this byte fail with ENOSPC.
    Full(u64),
    /// It accepts every write and stores none; it reads as zeros.
    Hole,
}

/// How QEMU accesses the bytes of a disk.
#[derive(Clone)]
enum Access {
    /// Directly in the file and without flushes: the host's page cache survives the machine, even a killed one.
    File,
    /// The same, with flushes and a fault.
    Faulty(Fault),
    /// Over NBD from this socket.
    Nbd(PathBuf),
}

#[derive(Clone)]
struct Attached {
    disk: Disk,
    bus: Bus,
    serial: String,
    sector_size: u32,
    access: Access,
    write_bytes_per_s: Option<u64>,
    bytes_per_s: Option<u64>,
}

#[derive(Clone)]
struct DirectBoot {
    dir: PathBuf,
    append: String,
}

/// A machine before it is switched on.
#[derive(Clone)]
pub struct MachineSpec {
    name: String,
    firmware: Firmware,
    memory_mib: u32,
    nic: String,
    mac: String,
    identity: Option<String>,
    disks: Vec<Attached>,
    direct: Option<DirectBoot>,
    snapshot: bool,
    may_reboot: bool,
}

impl MachineSpec {
    /// A machine named `name`. `number` is its place in the rack and determines its network address.
    pub fn new(name: &str, number: u8) -> MachineSpec {
        MachineSpec {
            name: name.into(),
            firmware: Firmware::Bios,
            memory_mib: 512,
            nic: "virtio-net-pci".into(),
            mac: format!("52:54:00:77:00:{number:02x}"),
            identity: Some(format!("SN-{number}")),
            disks: Vec::new(),
            direct: None,
            snapshot: false,
            may_reboot: false,
        }
    }

    pub fn firmware(mut self, firmware: Firmware) -> MachineSpec {
        self.firmware = firmware;
        self
    }

    /// Sets the memory in MiB.
    pub fn memory(mut self, mib: u32) -> MachineSpec {
        self.memory_mib = mib;
        self
    }

    /// Chooses QEMU's model of the network card.
    pub fn nic(mut self, model: &str) -> MachineSpec {
        self.nic = model.into();
        self
    }

    /// Adds a disk with 512-byte sectors.
    pub fn disk(mut self, disk: &Disk, bus: Bus) -> MachineSpec {
        let serial = format!("DISK{}-{}", self.disks.len(), &self.mac[15..]);
        let disk = disk.clone();
        self.disks.push(Attached {
            disk,
            bus,
            serial,
            sector_size: 512,
            access: Access::File,
            write_bytes_per_s: None,
            bytes_per_s: None,
        });
        self
    }

    fn last_disk(mut self, change: impl FnOnce(&mut Attached)) -> MachineSpec {
        if let Some(disk) = self.disks.last_mut() {
            change(disk);
        }
        self
    }

    /// Changes the serial number of the last added disk.
    pub fn serial(self, serial: &str) -> MachineSpec {
        self.last_disk(|disk| disk.serial = serial.into())
    }

    /// Gives the last added disk a fault.
    pub fn faulty(self, fault: Fault) -> MachineSpec {
        self.last_disk(|disk| disk.access = Access::Faulty(fault))
    }

    /// Connects the last added disk through an [`crate::nbd::NbdDisk`].
    pub fn behind(self, nbd: &NbdDisk) -> MachineSpec {
        self.last_disk(|disk| disk.access = Access::Nbd(nbd.socket().to_owned()))
    }

    /// Slows the last added disk, reads and writes together.
    pub fn slow_disk(self, bytes_per_s: u64) -> MachineSpec {
        self.last_disk(|disk| disk.bytes_per_s = Some(bytes_per_s))
    }

    /// Changes the sector size of the last added disk, in bytes.
    pub fn sector_size(self, bytes: u32) -> MachineSpec {
        self.last_disk(|disk| disk.sector_size = bytes)
    }

    /// Slows writes to the last added disk, so that there is time to act in the middle.
    pub fn slow_writes(self, bytes_per_s: u64) -> MachineSpec {
        self.last_disk(|disk| disk.write_bytes_per_s = Some(bytes_per_s))
    }

    /// Skips the firmware's network boot: QEMU itself loads kernel and initramfs of a boot directory.
    ///
    /// `more` is added to the kernel's command line.
    pub fn direct(mut self, boot_dir: &Path, more: &str) -> MachineSpec {
        let append = format!("{KERNEL_ARGS} BOOTIF=01-{} {more}", self.mac.replace(':', "-"));
        self.direct = Some(DirectBoot { dir: boot_dir.into(), append });
        self
    }

    /// Starts only from the disk, without a network, and writes nothing to it.
    pub fn from_disk_only(mut self) -> MachineSpec {
        self.snapshot = true;
        self.direct = None;
        self.may_reboot = false;
        for disk in &mut self.disks {
            (disk.access, disk.write_bytes_per_s, disk.bytes_per_s) = (Access::File, None, None);
        }
        self
    }

    /// Lets the machine start again after a reset; otherwise a reset ends it.
    pub fn may_reboot(mut self) -> MachineSpec {
        self.may_reboot = true;
        self
    }

    /// Changes its name, which its logs have too.
    pub fn named(mut self, name: &str) -> MachineSpec {
        self.name = name.into();
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of its network card.
    pub fn mac(&self) -> &str {
        &self.mac
    }

    /// Switches it on.
    ///
    /// # Errors
    /// If the tap cannot be made or QEMU does not start.
    pub fn start(&self, network: &mut Network) -> Result<Machine> {
        let mut command = Command::new("nice");
        command.args(["-n", "5", "qemu-system-x86_64", "-name", &self.name]);
        // KVM is not used even if it is available: on some machines, guests hang with it.
        command.args(["-accel", "tcg", "-display", "none", "-vga", "none", "-monitor", "none", "-nodefaults"]);
        command.args(["-smp", "1", "-m", &self.memory_mib.to_string()]);
        let log = Log::new(Path::new(&format!("{}.serial.log", self.name)));
        let log = self.fresh(log);
        command.arg("-serial").arg(format!("file:{}", log.path().display()));
        let qmp = PathBuf::from(format!("{}.qmp", self.name));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        if !self.may_reboot {
            command.arg("-no-reboot");
        }
        if let Some(serial) = &self.identity {
            command.arg("-smbios").arg(format!("type=1,serial={serial}"));
        }
        self.add_firmware(&mut command)?;
        self.add_disks(&mut command)?;
        if !self.snapshot {
            self.add_nic(&mut command, &network.tap()?);
        }
        let process = Process::start(&self.name, command, Path::new(&format!("{}.qemu.log", self.name)))?;
        Ok(Machine { name: self.name.clone(), mac: self.mac.clone(), process, log, qmp, started: Instant::now() })
    }

    /// A log that does not exist yet, for a machine that is switched on for the second time.
    fn fresh(&self, first: Log) -> Log {
        let later = (2..).map(|n| Log::new(Path::new(&format!("{}.{n}.serial.log", self.name))));
        std::iter::once(first).chain(later).find(|log| !log.path().exists()).expect("there are enough numbers")
    }

    fn add_firmware(&self, command: &mut Command) -> Result<()> {
        if let Some(direct) = &self.direct {
            command.args(["-machine", "pc,graphics=off"]);
            command.arg("-kernel").arg(direct.dir.join("vmlinuz"));
            command.arg("-initrd").arg(direct.dir.join("initrd.img"));
            command.args(["-append", &direct.append]);
            return Ok(());
        }
        match self.firmware {
            Firmware::Bios => {
                command.args(["-machine", "pc,graphics=off"]);
            }
            Firmware::Uefi => {
                // Every start gets a fresh copy, because OVMF keeps boot entries there.
                let vars = format!("{}.vars.fd", self.name);
                std::fs::copy(OVMF_VARS, &vars).with_context(|| format!("copying {OVMF_VARS}"))?;
                command.args(["-machine", "q35,graphics=off"]);
                command.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={OVMF_CODE}"));
                command.arg("-drive").arg(format!("if=pflash,format=raw,file={vars}"));
                // There is no DHCPv6 here to wait for.
                command.args(["-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no"]);
            }
        }
        Ok(())
    }

    fn add_nic(&self, command: &mut Command, tap: &str) {
        command.arg("-netdev").arg(format!("tap,id=n0,ifname={tap},script=no,downscript=no"));
        let mut device = format!("{},netdev=n0,id=nic0,mac={}", self.nic, self.mac);
        device += match (&self.direct, self.firmware) {
            (Some(_), _) => ",romfile=",
            // Without the ROM, OVMF uses its own PXE, as a real board does.
            (None, Firmware::Uefi) => ",romfile=,bootindex=0",
            (None, Firmware::Bios) => ",bootindex=0",
        };
        command.args(["-device", &device]);
    }

    fn add_disks(&self, command: &mut Command) -> Result<()> {
        if self.snapshot {
            command.arg("-snapshot");
        }
        for (n, attached) in self.disks.iter().enumerate() {
            let Attached { bus, serial, sector_size, .. } = attached;
            command.args(attached.drive(&format!("d{n}"))?);
            let facts = format!("drive=d{n},serial={serial},bootindex={}", n + 1);
            let sectors = format!("logical_block_size={sector_size},physical_block_size={sector_size}");
            let devices = match bus {
                // The guest gets the error of a full disk, too; by default, QEMU would stop it and wait for space.
                Bus::Virtio => vec![format!("virtio-blk-pci,{facts},{sectors},werror=report")],
                Bus::Nvme => vec![format!("nvme,{facts},{sectors}")],
                Bus::Scsi => {
                    vec![format!("virtio-scsi-pci,id=s{n}"), format!("scsi-hd,bus=s{n}.0,{facts},{sectors}")]
                }
                Bus::Ahci => vec![format!("ich9-ahci,id=s{n}"), format!("ide-hd,bus=s{n}.0,{facts}")],
                Bus::Usb => vec![format!("qemu-xhci,id=s{n}"), format!("usb-storage,bus=s{n}.0,{facts}")],
            };
            for device in devices {
                command.args(["-device", &device]);
            }
        }
        if self.firmware == Firmware::Uefi {
            // Since 2024, OVMF starts no network without a source of randomness. It comes last, so that no disk changes
            // its place.
            command.args(["-device", "virtio-rng-pci"]);
        }
        Ok(())
    }
}

impl Attached {
    /// QEMU's arguments that make this disk's bytes the node `id`.
    fn drive(&self, id: &str) -> Result<[String; 2]> {
        let path = self.disk.path().display();
        let mut drive = match &self.access {
            Access::Faulty(fault) => {
                let node = fault.node(id, &self.disk)?;
                return Ok(["-blockdev".into(), node.to_string()]);
            }
            // Discarded ranges become holes in the file.
            Access::File => format!("if=none,id={id},format=raw,cache=unsafe,discard=unmap,file={path}"),
            Access::Nbd(socket) => {
                let server = format!("file.driver=nbd,file.server.type=unix,file.server.path={}", socket.display());
                format!("if=none,id={id},format=raw,cache=writeback,{server}")
            }
        };
        let limits = [("bps-write", self.write_bytes_per_s), ("bps-total", self.bytes_per_s)];
        for (name, rate) in limits.into_iter().filter_map(|(name, rate)| Some((name, rate?))) {
            drive += &format!(",throttling.{name}={rate}");
        }
        Ok(["-drive".into(), drive])
    }
}

impl Fault {
    /// QEMU's block node for it. Events come from the layer above `blkdebug`, so one is needed.
    fn node(self, id: &str, disk: &Disk) -> Result<Value> {
        let always = |kind: &str, at: u64| json!([{ "event": "none", "iotype": kind, "sector": at / 512, "errno": 5 }]);
        let mut bad = json!({ "driver": "blkdebug", "image": { "driver": "file", "filename": disk.path() } });
        bad["inject-error"] = match self {
            Fault::Hole => {
                let len = disk.len()?;
                return Ok(json!({ "driver": "null-co", "node-name": id, "size": len, "read-zeroes": true }));
            }
            Fault::Write(at) => always("write", at),
            Fault::Full(at) => json!([{ "event": "none", "iotype": "write", "sector": at / 512, "errno": 28 }]),
            Fault::Read(at) => always("read", at),
            Fault::Flush => {
                let next = |state: u32| json!({ "event": "flush_to_disk", "state": state, "new_state": state + 1 });
                bad["set-state"] = json!([next(1), next(2)]);
                json!([{ "event": "flush_to_disk", "state": 3, "iotype": "flush", "errno": 5 }])
            }
        };
        Ok(json!({ "driver": "raw", "node-name": id, "file": bad }))
    }
}

/// A machine that is switched on. Dropping it pulls the plug.
pub struct Machine {
    name: String,
    mac: String,
    process: Process,
    log: Log,
    qmp: PathBuf,
    started: Instant,
}

impl Machine {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of its network card.
    pub fn mac(&self) -> &str {
        &self.mac
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// How long ago it was switched on.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether it is off, by itself or not.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn is_off(&mut self) -> Result<bool> {
        Ok(self.process.exited()?.is_some())
    }

    /// Waits for words on the serial line and returns the line that contains them.
    ///
    /// # Errors
    /// If they do not come, the machine ends, or `/init` reports a failure.
    pub fn wait_for(&mut self, words: &str) -> Result<String> {
        let line = self.wait_until(words, |line| line.contains(words) || is_the_end(line))?;
        if !line.contains(words) {
            let said = self.whole_failure(line);
            bail!("{}: waiting for {words:?}, it said: {said}", self.log.path().display());
        }
        Ok(line)
    }

    /// Waits for words on the serial line, whatever else is printed there.
    ///
    /// # Errors
    /// If they do not come, or the machine ends.
    pub fn wait_for_trouble(&mut self, words: &str) -> Result<String> {
        self.wait_until(words, |line| line.contains(words))
    }

    /// Waits until `/init` reports that it failed for good, and returns all lines of the reason.
    ///
    /// # Errors
    /// If it does not fail, or ends in another way.
    pub fn wait_for_failure(&mut self) -> Result<String> {
        let line = self.wait_until(FAILED, |line| line.contains("EZIO: verified") || is_the_end(line))?;
        ensure!(line.contains(FAILED), "{}: expected a refusal, it said: {line}", self.log.path().display());
        Ok(self.whole_failure(line))
    }

    /// All lines of the failure that starts with `line`; any other line is returned unchanged.
    fn whole_failure(&mut self, line: String) -> String {
        // A machine that dies in the middle prints nothing more.
        if !line.contains(FAILED) || self.wait_until(STOPPED, |line| line.contains(STOPPED)).is_err() {
            return line;
        }
        let text = self.log.text();
        text.split_inclusive('\n').filter(|line| is_the_end(line)).map(str::trim).collect::<Vec<_>>().join("\n")
    }

    /// Waits until it has switched itself off, with a success status of QEMU.
    ///
    /// # Errors
    /// If it has not done so within the usual deadline.
    pub fn wait_off(&mut self) -> Result<()> {
        let status = self.process.wait(DEADLINE)?;
        match status.success() {
            true => Ok(()),
            false => bail!("{}: QEMU ended with {}", self.name, ending(status)),
        }
    }

    pub fn pull_plug(&mut self) {
        self.process.kill();
    }

    /// Pulls or plugs the network cable; the guest sees the carrier change.
    ///
    /// # Errors
    /// If the machine is gone.
    pub fn set_link(&self, up: bool) -> Result<()> {
        crate::qmp::execute(&self.qmp, "set_link", &json!({ "name": "nic0", "up": up })).map(drop)
    }

    fn wait_until(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> Result<String> {
        let process = &mut self.process;
        self.log.wait_for(what, is_it, DEADLINE, || {
            Ok(process.exited()?.map(|status| format!("the machine ended ({})", ending(status))))
        })
    }
}

/// Whether this line, which has its `\n`, means that success is impossible. A fault that `/init` keeps trying to
/// overcome does not; only the end of the line shows that, so an incomplete line does not count either.
pub(crate) fn is_the_end(line: &str) -> bool {
    let is_failure = line.contains(FAILED) && !line.trim_end().ends_with("trying again");
    line.ends_with('\n') && (line.contains("Kernel panic") || is_failure)
}

/// The start of each line in which `/init` reports why it gave up.
const FAILED: &str = "EZIO: failed:";
/// The start of the line after these.
const STOPPED: &str = "EZIO: stopped";

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(text: &str, what: &str, is_it: impl Fn(&str) -> bool) -> Result<String> {
        let file = tempfile::NamedTempFile::new().context("a log")?;
        std::fs::write(file.path(), text).context("writing the log")?;
        Log::new(file.path()).wait_for(what, is_it, Duration::ZERO, || Ok(None))
    }

    #[test]
    fn trouble_that_passes_and_half_a_line_are_not_the_end() {
        let trouble = "[    5.0] EZIO: failed: no DHCP answer; trying again\r\n";
        for end in 0..=trouble.len() {
            assert!(wait(&trouble[..end], "an end", is_the_end).is_err(), "{:?}", &trouble[..end]);
        }
        for (text, wanted) in [
            ("EZIO: failed: no disk", None),
            ("EZIO: failed: no disk\r\n", Some("EZIO: failed: no disk")),
            ("EZIO: failed: no DHCP answer; trying again\nEZIO: failed: no disk\n", Some("EZIO: failed: no disk")),
            ("Kernel panic - not sync", None),
            ("Kernel panic - not syncing\r\n", Some("Kernel panic - not syncing")),
        ] {
            assert_eq!(wait(text, "an end", is_the_end).ok().as_deref(), wanted, "{text:?}");
        }
    }

    #[test]
    fn a_prompt_needs_no_end_of_its_line() {
        let prompt = wait("Debian 12\r\n\r\nclone login: ", "login:", |line| line.contains("login:"));
        assert_eq!(prompt.expect("it is there"), "clone login:");
    }
}

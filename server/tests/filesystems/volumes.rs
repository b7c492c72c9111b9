//! The volumes: how each is made, filled and checked.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use testvm::{move_superblock, program, run};

/// A row of the table.
pub struct Volume {
    /// What people call it.
    pub name: &'static str,
    /// As `blkid` calls it.
    pub probed: &'static str,
    pub mib: u64,
    pub make: Make,
    pub life: Life,
    pub fsck: Fsck,
}

/// How a volume comes about.
pub enum Make {
    /// A program, given the volume as its last argument.
    Mkfs(&'static [&'static str]),
    /// A function, given the volume, which is an empty file of its size, and a directory of files.
    With(fn(&Path, &Path)),
}

/// What the virtual machine does with it.
pub enum Life {
    /// Mounts it as this type with these options, fills it with these kinds of links; reads it again later.
    Filled(&'static str, &'static str, &'static str),
    /// Mounts it, and only reads: it came with files.
    Read(&'static str, &'static str),
    /// These scripts, of which $device is the disk: the first fills it, both say what is in it.
    Script(&'static str, &'static str),
    /// Nothing: Linux does not know it. Its own checker and the captured bytes have to do.
    None,
}

/// How a restored volume is judged by its own tools.
pub enum Fsck {
    /// A program, given the volume as its last argument, and what it has to say.
    Tool(&'static [&'static str], &'static str),
    /// As a program, and then Btrfs's scrub, which reads every copy of everything.
    AndScrub(&'static [&'static str], &'static str),
    /// The second script did it, with this.
    InScript(&'static str),
    /// Debian has nothing.
    None,
}

use Fsck::{AndScrub, InScript, Tool};
use Life::{Filled, Read, Script};
use Make::{Mkfs, With};

const E2FSCK: Fsck = Tool(&["e2fsck", "-f", "-n"], "");
const FSCK_FAT: Fsck = Tool(&["fsck.fat", "-n"], "");
const NAMES: &str = "iocharset=utf8";

/// All of them; at most 26, for `/dev/vda` to `/dev/vdz`.
pub const VOLUMES: &[Volume] = &[
    Volume {
        name: "ext2",
        probed: "ext2",
        mib: 64,
        make: Mkfs(&["mkfs.ext2", "-q", "-F"]),
        life: Filled("ext2", "rw", "hard symbolic"),
        fsck: E2FSCK,
    },
    Volume {
        name: "ext3",
        probed: "ext3",
        mib: 64,
        make: Mkfs(&["mkfs.ext3", "-q", "-F"]),
        life: Filled("ext3", "rw", "hard symbolic"),
        fsck: E2FSCK,
    },
    Volume {
        name: "ext4",
        probed: "ext4",
        mib: 64,
        make: Mkfs(&["mkfs.ext4", "-q", "-F"]),
        life: Filled("ext4", "rw", "hard symbolic"),
        fsck: E2FSCK,
    },
    Volume {
        name: "XFS",
        probed: "xfs",
        mib: 320,
        make: Mkfs(&["mkfs.xfs", "-q", "-f"]),
        life: Filled("xfs", "rw", "hard symbolic"),
        fsck: Tool(&["xfs_repair", "-n", "-f"], ""),
    },
    Volume {
        name: "Btrfs",
        probed: "btrfs",
        mib: 256,
        make: Mkfs(&["mkfs.btrfs", "-q", "-f"]),
        life: Filled("btrfs", "rw", "hard symbolic"),
        fsck: AndScrub(&["btrfs", "check", "--readonly"], "no error found"),
    },
    Volume {
        name: "F2FS",
        probed: "f2fs",
        mib: 100,
        make: Mkfs(&["mkfs.f2fs", "-q", "-f"]),
        life: Filled("f2fs", "rw", "hard symbolic"),
        fsck: Tool(&["fsck.f2fs", "-f", "--dry-run"], "[Ok..]"),
    },
    Volume {
        name: "NTFS",
        probed: "ntfs",
        mib: 64,
        make: Mkfs(&["mkfs.ntfs", "-q", "-F", "-f"]),
        life: Filled("ntfs-3g", "rw", "hard symbolic"),
        fsck: Tool(&["ntfsresize", "--info", "--force"], "Collecting resizing constraints"),
    },
    Volume {
        name: "FAT12",
        probed: "vfat",
        mib: 40,
        make: Mkfs(&["mkfs.fat", "-F", "12", "-s", "32"]),
        life: Filled("vfat", NAMES, ""),
        fsck: FSCK_FAT,
    },
    Volume {
        name: "FAT16",
        probed: "vfat",
        mib: 64,
        make: Mkfs(&["mkfs.fat", "-F", "16"]),
        life: Filled("vfat", NAMES, ""),
        fsck: FSCK_FAT,
    },
    Volume {
        name: "FAT32",
        probed: "vfat",
        mib: 64,
        make: Mkfs(&["mkfs.fat", "-F", "32", "-s", "1"]),
        life: Filled("vfat", NAMES, ""),
        fsck: FSCK_FAT,
    },
    Volume {
        name: "exFAT",
        probed: "exfat",
        mib: 64,
        make: Mkfs(&["mkfs.exfat"]),
        life: Filled("exfat", NAMES, ""),
        fsck: Tool(&["fsck.exfat", "-n"], "clean"),
    },
    Volume {
        name: "HFS+",
        probed: "hfsplus",
        mib: 48,
        make: With(hfsplus),
        // It is made as a medium that is only read.
        life: Read("hfsplus", "ro"),
        fsck: Fsck::None,
    },
    Volume {
        name: "Minix 2",
        probed: "minix",
        mib: 60,
        make: Mkfs(&["mkfs.minix", "-2"]),
        life: Filled("minix", "rw", "hard symbolic"),
        fsck: Tool(&["fsck.minix", "-f"], ""),
    },
    Volume {
        name: "Minix 3",
        probed: "minix",
        mib: 60,
        make: Mkfs(&["mkfs.minix", "-3"]),
        life: Filled("minix", "rw", "hard symbolic"),
        fsck: Tool(&["fsck.minix", "-f"], ""),
    },
    Volume {
        name: "JFS",
        probed: "jfs",
        mib: 64,
        make: Mkfs(&["mkfs.jfs", "-q"]),
        life: Filled("jfs", "rw", "hard symbolic"),
        fsck: Tool(&["jfs_fsck", "-n", "-f", "-v"], "is clean"),
    },
    Volume {
        name: "NILFS2",
        probed: "nilfs2",
        mib: 160,
        make: Mkfs(&["mkfs.nilfs2", "-q"]),
        life: Filled("nilfs2", "rw", "hard symbolic"),
        fsck: Fsck::None,
    },
    Volume {
        name: "ReiserFS",
        probed: "reiserfs",
        mib: 100,
        make: Mkfs(&["mkfs.reiserfs", "-q", "-ff"]),
        life: Filled("reiserfs", "rw", "hard symbolic"),
        fsck: Tool(&["reiserfsck", "--check", "--yes", "-q"], "No corruptions found"),
    },
    Volume {
        name: "Reiser4",
        probed: "reiser4",
        mib: 64,
        make: Mkfs(&["mkfs.reiser4", "-y", "-f"]),
        life: Life::None,
        fsck: Tool(&["fsck.reiser4", "--check", "-y"], "FS is consistent"),
    },
    Volume {
        name: "UFS1",
        probed: "ufs",
        mib: 64,
        make: With(ufs1),
        life: Read("ufs", "ro,ufstype=44bsd"),
        fsck: Fsck::None,
    },
    Volume {
        name: "UFS2",
        probed: "ufs",
        mib: 64,
        make: With(ufs2),
        life: Read("ufs", "ro,ufstype=ufs2"),
        fsck: Fsck::None,
    },
    Volume {
        name: "LVM2, ext2 in it",
        probed: "LVM2_member",
        mib: 96,
        make: With(|_, _| {}),
        life: Script(
            "lvm pvcreate $device
            lvm vgcreate -s 1M vg $device
            lvm lvcreate -y -Wn -L 20M -n one vg
            lvm lvcreate -y -Wn -L 12M -n two vg
            lvm lvcreate -y -Wn -L 8M -n three vg
            lvm lvremove -y vg/two
            lvm lvextend -L +20M vg/one
            mkfs.ext2 -q /dev/vg/one || failed mkfs
            volume ext2 rw /dev/vg/one; fill 'hard symbolic'; sums; leave
            cp /tmp/pool /dev/vg/three
            echo SUM $(sha1sum </dev/vg/three)
            lvm vgchange -an vg",
            "lvm vgck vg
            lvm vgchange -ay vg
            volume ext2 ro /dev/vg/one; sums; leave
            echo SUM $(sha1sum </dev/vg/three)
            lvm vgchange -an vg",
        ),
        fsck: InScript("vgck"),
    },
    Volume {
        name: "LUKS2, ext2 in it",
        probed: "crypto_LUKS",
        mib: 64,
        make: With(luks),
        life: Script(
            "open_luks $device
            mkfs.ext2 -q /dev/mapper/luks || failed mkfs
            volume ext2 rw /dev/mapper/luks; fill 'hard symbolic'; sums; leave; close_luks",
            "open_luks $device; volume ext2 ro /dev/mapper/luks; sums; leave; close_luks",
        ),
        fsck: InScript("opened with its passphrase"),
    },
    Volume {
        name: "Linux swap",
        probed: "swap",
        mib: 32,
        make: With(swap),
        life: Script("", "swapon ${device}1 || failed swapon; swapoff ${device}1"),
        fsck: InScript("swapon"),
    },
    Volume {
        name: "UDF, for any that nothing here knows",
        probed: "udf",
        mib: 64,
        make: Mkfs(&["mkudffs", "-b", "512"]),
        life: Filled("udf", "rw", "hard symbolic"),
        fsck: Fsck::None,
    },
    Volume {
        name: "bytes without a file system",
        probed: "",
        mib: 16,
        make: With(junk),
        life: Script("echo SUM $(sha1sum <${device}1)", "echo SUM $(sha1sum <${device}1)"),
        fsck: Fsck::None,
    },
];

/// Fills a file with bytes that look random.
pub fn scribble(path: &Path, len: u64) {
    let mut random = SmallRng::seed_from_u64(len);
    let mut buffer = vec![0; 1 << 20];
    let mut file = File::create(path).expect("a file");
    let mut left = len;
    while left > 0 {
        random.fill_bytes(&mut buffer);
        let count = left.min(1 << 20);
        file.write_all(&buffer[..usize::try_from(count).expect("at most a MiB")]).expect("random bytes");
        left -= count;
    }
}

/// So many bytes that look random; the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Mounts a Btrfs and lets it read every copy of everything.
pub fn scrub(volume: &Path) {
    let mount = volume.with_extension("mount");
    fs::create_dir(&mount).expect("a directory");
    // The mount ends with the shell's namespace, and the loop device with the mount.
    let script = "mount -o loop,ro \"$1\" \"$2\" && btrfs scrub start -B -r \"$2\"";
    let said = run(Command::new(program("unshare")).args(["-m", "sh", "-c", script, "sh"]).arg(volume).arg(&mount));
    assert!(said.contains("no errors found"), "{said}");
    fs::remove_dir(mount).expect("removed");
}

/// Files for the volumes that are made with theirs.
pub fn make_tree(tree: &Path) {
    for number in 0..60u64 {
        let parent = tree.join(format!("dir{}", number % 7));
        fs::create_dir_all(&parent).expect("a directory");
        scribble(&parent.join(format!("file{number}")), number * number * 997 % 300_000);
    }
    scribble(&tree.join("big"), 9 << 20);
    symlink("dir1/file1", tree.join("pointer")).expect("a link");
}

fn makefs(volume: &Path, tree: &Path, options: &str) {
    run(Command::new(program("makefs"))
        .args(["-t", "ffs", "-s", "64m", "-B", "le", "-o", options])
        .arg(volume)
        .arg(tree));
}

fn ufs1(volume: &Path, tree: &Path) {
    makefs(volume, tree, "version=1,bsize=16384,fsize=2048");
}

fn ufs2(volume: &Path, tree: &Path) {
    makefs(volume, tree, "version=2,bsize=8192,fsize=1024,density=8192");
    move_superblock(volume, false);
}

/// Debian 12 has no mkfs for it, but xorriso puts one into its hybrid media, behind what its table calls Apple_HFS.
fn hfsplus(volume: &Path, tree: &Path) {
    let dir = volume.with_extension("hfsplus");
    fs::create_dir(&dir).expect("a directory");
    run(Command::new("cp").arg("-a").arg(tree).arg(dir.join("tree")));
    let medium = dir.join("medium.iso");
    let mut xorriso = Command::new(program("xorriso"));
    run(xorriso.args(["-as", "mkisofs", "-quiet", "-hfsplus", "-o"]).arg(&medium).arg(dir.join("tree")));
    let bytes = fs::read(&medium).expect("the medium");
    let entry = bytes[..8192].chunks(512).find(|entry| entry[48..].starts_with(b"Apple_HFS\0")).expect("its entry");
    let (start, len) = (number_at(entry, 8) * 512, number_at(entry, 12) * 512);
    fs::write(volume, grow_hfsplus(&bytes[start..start + len])).expect("the volume");
    fs::remove_dir_all(dir).expect("removed");
}

/// The number of four bytes at this place, as Macs write it.
fn number_at(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes")).try_into().expect("it fits")
}

/// Makes the volume, all of whose blocks are in use, as large as its allocation file allows (TN1150, "Volume Header",
/// "Allocation File").
fn grow_hfsplus(volume: &[u8]) -> Vec<u8> {
    const HEADER: usize = 1024;
    const TOTAL_BLOCKS: usize = HEADER + 44;
    const FREE_BLOCKS: usize = HEADER + 48;
    /// Of the allocation file: the lower half of its length, and its first block.
    const MAP_LEN: usize = HEADER + 112 + 4;
    const MAP_BLOCK: usize = HEADER + 112 + 16;

    let block_len = number_at(volume, HEADER + 40);
    let before = number_at(volume, TOTAL_BLOCKS);
    let map_len = number_at(volume, MAP_LEN).next_multiple_of(block_len);
    let after = map_len * 8;
    let mut grown = volume[..before * block_len].to_vec();
    grown.resize(after * block_len, 0);
    // The last block has a copy of the header.
    let map = number_at(volume, MAP_BLOCK) * block_len;
    for block in before - 1..after {
        grown[map + block / 8] &= !(0x80 >> (block % 8));
    }
    grown[map + (after - 1) / 8] |= 0x80 >> ((after - 1) % 8);
    for (place, number) in [(TOTAL_BLOCKS, after), (FREE_BLOCKS, after - before), (MAP_LEN, map_len)] {
        grown[place..place + 4].copy_from_slice(&u32::try_from(number).expect("small").to_be_bytes());
    }
    let copy = grown.len() - 1024;
    grown.copy_within(HEADER..HEADER + 512, copy);
    grown
}

fn luks(volume: &Path, _: &Path) {
    let mut format = Command::new(program("cryptsetup"));
    format.args(["luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    let mut running = format.arg(volume).arg("-").stdin(Stdio::piped()).spawn().expect("cryptsetup");
    running.stdin.take().expect("piped").write_all(b"secret").expect("the passphrase");
    assert!(running.wait().expect("it ends").success());
}

/// Where the only partition of a disk starts, in bytes.
const PARTITION_START: u64 = 1 << 20;

/// A disk with one partition, in a table and of a type as sfdisk names them, that holds this.
fn partition(disk: &Path, table: &str, kind: &str, content: &Path) {
    let mut sfdisk = Command::new(program("sfdisk"));
    let mut running = sfdisk.arg("-q").arg(disk).stdin(Stdio::piped()).spawn().expect("sfdisk");
    let script = format!("label: {table}\nstart=2048,size={},type={kind}\n", partition_len(disk) / 512);
    running.stdin.take().expect("piped").write_all(script.as_bytes()).expect("the script");
    assert!(running.wait().expect("it ends").success());
    let bytes = fs::read(content).expect("the content");
    File::options()
        .write(true)
        .open(disk)
        .and_then(|file| file.write_all_at(&bytes, PARTITION_START))
        .expect("written");
    fs::remove_file(content).expect("removed");
}

/// Up to the last MiB, where a GPT has its copy.
fn partition_len(disk: &Path) -> u64 {
    fs::metadata(disk).expect("the disk").len() - 2 * PARTITION_START
}

fn swap(disk: &Path, _: &Path) {
    let area = disk.with_extension("swap");
    File::create(&area).and_then(|file| file.set_len(partition_len(disk))).expect("an area");
    run(Command::new(program("mkswap")).args(["-q", "-L", "swappy"]).arg(&area));
    partition(disk, "dos", "82", &area);
}

fn junk(disk: &Path, _: &Path) {
    let bytes = disk.with_extension("junk");
    scribble(&bytes, partition_len(disk));
    partition(disk, "gpt", "linux", &bytes);
}

//! Volumes of the real mkfs, filled by the real file system in a virtual machine: the captured bytes of one must make a
//! complete volume again, on a disk full of other bytes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use testvm::{LVM, Vm, WAIT, move_superblock, program, run};
use usedmap::{Kind, Used, detect, used};

const MIB: u64 = 1 << 20;

/// Fills the file system mounted on /mnt: small, large, sparse, interleaved and deleted files, then new ones in the
/// holes; prints the space used.
const FILL: &str = r#"
head -c 12582912 /dev/urandom >/tmp/pool
piece() { dd if=/tmp/pool bs=1k skip=$1 count=$2 2>/dev/null; }
cd /mnt
mkdir small large deep deep/er deep/er/still
for i in $(seq 1 100); do piece $((i * 7)) $((i % 23)) >small/file$i; done
for i in 1 2 3 4 5; do piece $((i * 1500)) $((i * 450)) >large/file$i; done
for i in $(seq 1 30); do
    piece $((i * 11)) 12 >>deep/one
    piece $((i * 13)) 20 >>deep/er/two
    echo $i >>deep/er/still/log
done
cat /tmp/pool >gone || failed no room
sync
i=2
while [ $i -le 100 ]; do rm small/file$i; i=$((i + 2)); done
rm gone large/file3 deep/one
sync
for i in $(seq 1 30); do piece $((i * 100)) $((i + 40)) >deep/new$i; done
cat /tmp/pool >large/pool
dd if=/tmp/pool of=sparse bs=1k count=9 seek=30000 conv=notrunc 2>/dev/null
ln -s small/file1 link
ln large/file1 hard
rm small/file?5 small/file1?3 deep/new*7 large/file4
for i in $(seq 1 120); do : >"small/a rather long name of an empty file, number $i"; done
cd /
sync
"#;

/// Prints a checksum of each file, and one of the names, sizes and kinds of all files.
const SUMS: &str = r#"
cd /mnt
find . -type f -exec sha1sum {} + | sed 's/^/SUM /'
find . -exec stat -c '%n %s %f %h' {} + | sort | sha1sum | sed 's/^/TREE /'
echo DF $(df -k /mnt | tail -1)
cd /
"#;

/// A file of this size without content.
fn empty_file(path: &Path, len: u64) {
    File::create(path).and_then(|file| file.set_len(len)).expect("an empty volume");
}

/// The used bytes of the volume in this file.
fn map(path: &Path, kind: Kind) -> Used {
    let mut file = File::open(path).expect("the volume");
    let len = file.metadata().expect("its length").len();
    assert_eq!(detect(&mut file, len).expect("readable"), Some(kind), "{}", path.display());
    let used = used(kind, &mut file, len).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(used.ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "ascending and coalesced");
    assert!(used.ranges.iter().all(|range| range.start < range.end && range.end <= len), "inside");
    // The space after each of these volumes is shorter than a group, segment or extent.
    assert!(used.spans <= len && len - used.spans < 8 * MIB, "{} of {len}", used.spans);
    used
}

/// Writes the ranges of one volume over random bytes.
fn clone(from: &Path, ranges: &[Range<u64>], to: &Path) {
    let mut random = SmallRng::seed_from_u64(1);
    let mut source = File::open(from).expect("the volume");
    let len = source.metadata().expect("its length").len();
    let mut target = File::create(to).expect("the clone");
    let mut buffer = vec![0; 1 << 20];
    let mut left = len;
    while left > 0 {
        let count = left.min(MIB);
        random.fill_bytes(&mut buffer);
        target.write_all(&buffer[..usize::try_from(count).expect("at most a MiB")]).expect("random bytes");
        left -= count;
    }
    copy_ranges(&mut source, ranges, &mut target);
}

fn copy_ranges(source: &mut File, ranges: &[Range<u64>], target: &mut File) {
    for range in ranges {
        source.seek(SeekFrom::Start(range.start)).expect("inside");
        target.seek(SeekFrom::Start(range.start)).expect("inside");
        std::io::copy(&mut (&*source).take(range.end - range.start), target).expect("a range");
    }
}

/// For a volume made in an empty file: everything written there is used; `unchecked` bytes at the end may be anything.
fn assert_covered(path: &Path, used: &Used, unchecked: usize) {
    let mut bytes = fs::read(path).expect("the volume");
    let end = bytes.len() - unchecked;
    bytes[end..].fill(0);
    let ends = [0].into_iter().chain(used.ranges.iter().map(|range| usize::try_from(range.end).expect("small")));
    let starts = used.ranges.iter().map(|range| usize::try_from(range.start).expect("small")).chain([bytes.len()]);
    for (start, end) in ends.zip(starts) {
        let written = bytes[start..end].iter().position(|byte| *byte != 0);
        assert_eq!(written.map(|at| start + at), None, "a byte of {} that is not free", path.display());
    }
}

/// The output of SUMS: the sums in order, and the file system's count of used bytes.
fn sums(lines: &[String]) -> (Vec<String>, u64) {
    let mut sums: Vec<String> =
        lines.iter().filter(|line| line.starts_with("SUM ") || line.starts_with("TREE ")).cloned().collect();
    sums.sort();
    let df = lines.iter().find_map(|line| line.strip_prefix("DF ")).expect("df said something");
    let used_kib: u64 = df.split_whitespace().nth(2).and_then(|word| word.parse().ok()).expect("a number of KiB");
    (sums, used_kib * 1024)
}

/// A directory for one test, with room for volumes.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// One file system through all steps: fill, map, clone, check, compare.
struct Case<'a> {
    kind: Kind,
    /// Its name for mount.
    mount_type: &'a str,
    modules: &'a [&'a str],
    len: u64,
    /// Most bytes that are always copied although the file system does not count them as used.
    surplus: u64,
}

impl Case<'_> {
    fn check(&self, mkfs: &mut Command, fsck: impl Fn(&Path)) {
        let dir = scratch();
        let [golden, mounted, cloned] = ["golden", "mounted", "cloned"].map(|name| dir.path().join(name));
        empty_file(&golden, self.len);
        empty_file(&mounted, self.len);
        run(mkfs.arg(&golden));
        let fresh = map(&golden, self.kind);
        assert_eq!(fresh.notes, [""; 0], "a fresh volume");
        assert_covered(&golden, &fresh, 0);

        empty_file(&cloned, self.len);
        let disks = [&golden, &mounted, &cloned].map(PathBuf::as_path);
        let vm = Vm { work: dir.path(), modules: self.modules, programs: &[], disks: &disks };
        let script = format!(
            "mount -t {0} /dev/vda /mnt || failed mount\n{FILL}{SUMS}cat /dev/vda >/dev/vdb\n\
             umount /mnt || failed umount\nsync\n{WAIT}\
             echo CLONED\nmount -t {0} -o ro /dev/vdc /mnt || failed mount of the clone\n{SUMS}umount /mnt\n",
            self.mount_type
        );
        let lines = vm.run_with(&script, |lines| {
            let (wanted, df) = sums(lines);
            assert!(wanted.len() > 120, "{wanted:?}");
            let used = map(&golden, self.kind);
            println!(
                "{}: {} bytes, {} used in {} ranges, df says {df}, fresh {}",
                self.mount_type,
                self.len,
                used.len(),
                used.ranges.len(),
                fresh.len()
            );
            assert_eq!((used.is_clean, &used.notes[..]), (Some(true), &[][..]));
            assert!(used.len() <= df + self.surplus, "{} bytes are more than {df} and {}", used.len(), self.surplus);
            let unclean = map(&mounted, self.kind);
            assert_eq!((unclean.is_clean, unclean.len()), (Some(false), self.len), "copied while it was mounted");
            clone(&golden, &used.ranges, &cloned);
            fsck(&cloned);
        });
        let parts: Vec<&[String]> = lines.split(|line| line == "CLONED").collect();
        let [before, after] = parts[..] else { panic!("one clone: {lines:?}") };
        assert_eq!(sums(before).0, sums(after).0);
    }
}

fn jfs_fsck(volume: &Path) {
    let said = run(Command::new(program("jfs_fsck")).args(["-n", "-f", "-v"]).arg(volume));
    assert!(said.contains("is clean"), "{said}");
}

#[test]
fn jfs_survives() {
    let case = Case { kind: Kind::Jfs, mount_type: "jfs", modules: &["jfs"], len: 96 * MIB, surplus: 4 * MIB };
    case.check(Command::new(program("mkfs.jfs")).arg("-q"), jfs_fsck);
}

fn reiserfsck(volume: &Path) {
    let said = run(Command::new(program("reiserfsck")).args(["--check", "--yes", "-q"]).arg(volume));
    assert!(said.contains("No corruptions found"), "{said}");
}

#[test]
fn reiserfs_survives() {
    let case =
        Case { kind: Kind::Reiserfs, mount_type: "reiserfs", modules: &["reiserfs"], len: 120 * MIB, surplus: 2 * MIB };
    case.check(Command::new(program("mkfs.reiserfs")).args(["-q", "-ff"]), reiserfsck);
}

/// Debian's kernel does not mount the volumes that its mkfs makes with these options, so they stay fresh, and only its
/// fsck judges them.
#[test]
fn rare_reiserfs_survives() {
    for options in [["--format", "3.5"], ["-b", "1024"], ["-b", "2048"], ["-s", "513"]] {
        let dir = scratch();
        let [golden, cloned] = ["golden", "cloned"].map(|name| dir.path().join(name));
        // There is more than one bitmap, and the last is not complete.
        empty_file(&golden, 200 * MIB + 4096 * 3 + 512);
        run(Command::new(program("mkfs.reiserfs")).args(["-q", "-ff"]).args(options).arg(&golden));
        let used = map(&golden, Kind::Reiserfs);
        println!("{options:?}: {} used, {} ranges, {:?}", used.len(), used.ranges.len(), used.notes);
        assert_eq!((used.is_clean, &used.notes[..]), (Some(true), &[][..]), "{options:?}");
        assert_covered(&golden, &used, 0);
        assert!(used.len() < 40 * MIB, "{options:?}: {} bytes", used.len());
        clone(&golden, &used.ranges, &cloned);
        reiserfsck(&cloned);
    }
}

#[test]
fn nilfs2_survives() {
    // The second has so many segments that its segment file needs a tree.
    for options in [&[][..], &["-b", "1024", "-B", "128"]] {
        let case =
            Case { kind: Kind::Nilfs2, mount_type: "nilfs2", modules: &["nilfs2"], len: 144 * MIB, surplus: 16 * MIB };
        // NILFS2 has no fsck, so reading every file again has to do.
        case.check(Command::new(program("mkfs.nilfs2")).arg("-q").args(options), |_| {});
    }
}

/// Fresh volumes, so large that their maps need all of their levels; their files are mostly holes.
#[test]
fn large_volumes_survive() {
    type Fsck = fn(&Path);
    let all: [(Kind, &str, &[&str], Fsck); 3] = [
        (Kind::Jfs, "mkfs.jfs", &["-q"], jfs_fsck),
        (Kind::Reiserfs, "mkfs.reiserfs", &["-q", "-ff"], reiserfsck),
        (Kind::Nilfs2, "mkfs.nilfs2", &["-q"], |_| {}),
    ];
    // More than twice the space that 1024 maps of JFS cover.
    let len = 70 << 30;
    for (kind, mkfs, options, fsck) in all {
        let dir = scratch();
        let [golden, cloned] = ["golden", "cloned"].map(|name| dir.path().join(name));
        // The last blocks are not complete.
        empty_file(&golden, len + 4096 * 77 + 512);
        run(Command::new(program(mkfs)).args(options).arg(&golden));
        let used = map(&golden, kind);
        println!("{kind:?} of {len} bytes: {} used, {} ranges", used.len(), used.ranges.len());
        assert_eq!((used.is_clean, &used.notes[..]), (Some(true), &[][..]), "{kind:?}");
        assert!(used.len() < 400 * MIB, "{kind:?}: {} bytes", used.len());
        empty_file(&cloned, len + 4096 * 77 + 512);
        let mut target = File::options().write(true).open(&cloned).expect("the clone");
        copy_ranges(&mut File::open(&golden).expect("the volume"), &used.ranges, &mut target);
        assert_eq!(map(&cloned, kind), used);
        fsck(&cloned);
    }
}

/// Linux only reads UFS, so makefs fills the volumes; Debian 12 has no fsck for it.
#[test]
fn ufs_survives() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    let mut random = SmallRng::seed_from_u64(2);
    for (name, len) in (0..60).map(|number| (number, (number * number * 997) % 300_000)).chain([(60, 9 << 20)]) {
        let mut bytes = vec![0; len];
        random.fill_bytes(&mut bytes);
        let parent = tree.join(format!("dir{}", name % 7));
        fs::create_dir_all(&parent).expect("a directory");
        fs::write(parent.join(format!("file{name}")), bytes).expect("a file");
    }
    std::os::unix::fs::symlink("dir1/file1", tree.join("link")).expect("a link");
    // Byte order, options, and the type under which Linux mounts it, if it does.
    let variants = [
        ("le", "version=1,bsize=16384,fsize=2048", Some("44bsd")),
        ("be", "version=1,bsize=8192,fsize=1024", Some("44bsd")),
        ("le", "version=2,bsize=8192,fsize=1024,density=8192", Some("ufs2")),
        ("be", "version=2,bsize=8192,fsize=1024,density=8192", Some("ufs2")),
        ("le", "version=2,bsize=32768,fsize=4096", None),
        ("be", "version=2,bsize=65536,fsize=8192", None),
        ("le", "version=1,bsize=4096,fsize=512", None),
    ];
    let golden: Vec<PathBuf> = (0..variants.len()).map(|number| dir.path().join(format!("golden{number}"))).collect();
    let cloned: Vec<PathBuf> = (0..variants.len()).map(|number| dir.path().join(format!("cloned{number}"))).collect();
    for ((order, options, mount_type), (golden, cloned)) in variants.iter().zip(golden.iter().zip(&cloned)) {
        let mut makefs = Command::new(program("makefs"));
        makefs.args(["-t", "ffs", "-s", "64m", "-B", order, "-o", options]);
        run(makefs.arg(golden).arg(&tree));
        let used = map(golden, Kind::Ufs);
        println!("{order} {options}: {} used, {} ranges, {:?}", used.len(), used.ranges.len(), used.notes);
        assert_eq!((used.is_clean, &used.notes[..]), (Some(true), &[][..]), "{order} {options}");
        assert!(used.len() < 48 * MIB, "{order} {options}: {} bytes", used.len());
        // makefs ends its file with leftover bytes from its memory.
        assert_covered(golden, &used, 65_536);
        if *mount_type == Some("ufs2") {
            move_superblock(golden, *order == "be");
        }
        let used = map(golden, Kind::Ufs);
        assert_eq!(used.notes, [""; 0], "{order} {options}");
        if mount_type.is_some() {
            clone(golden, &used.ranges, cloned);
        }
    }
    let mounted: Vec<(usize, &str)> =
        variants.iter().enumerate().filter_map(|(number, (_, _, mount_type))| Some((number, (*mount_type)?))).collect();
    let mut disks: Vec<&Path> = Vec::new();
    let mut script = String::new();
    for (disk, (number, mount_type)) in ('a'..).zip(mounted.iter().chain(&mounted)) {
        disks.push(if disks.len() < mounted.len() { &golden[*number] } else { &cloned[*number] });
        script += &format!(
            "mount -t ufs -o ro,ufstype={mount_type} /dev/vd{disk} /mnt || failed mount {disk}\n\
             echo VOLUME\n{SUMS}umount /mnt\n"
        );
    }
    let vm = Vm { work: dir.path(), modules: &["ufs"], programs: &[], disks: &disks };
    let lines = vm.run(&script);
    let volumes: Vec<_> = lines.split(|line| line == "VOLUME").skip(1).map(sums).collect();
    assert_eq!(volumes.len(), 2 * mounted.len());
    let sum = run(Command::new("sha1sum").arg(tree.join("dir4/file60")));
    let sum = sum.split_whitespace().next().expect("a sum");
    for ((golden, cloned), (number, _)) in volumes.iter().zip(&volumes[mounted.len()..]).zip(&mounted) {
        let (order, options, _) = variants[*number];
        println!("{order} {options}: df says {}", golden.1);
        assert_eq!(golden.0.len(), 62, "{order} {options}");
        assert!(golden.0.contains(&format!("SUM {sum}  ./dir4/file60")), "{:?}", golden.0);
        assert_eq!(golden, cloned, "{order} {options}");
    }
}

/// A used space keeps its name, its UUID and its boot loader, but no swapped data.
#[test]
fn swap_survives() {
    let dir = scratch();
    let [golden, cloned] = ["golden", "cloned"].map(|name| dir.path().join(name));
    let names: [&[u8]; 5] = [b"", b"swap", "Größe".as_bytes(), b"Gr\xf6\xdfe", b"fifteen bytes !"];
    let pages = [(4096u32, false), (4096, true), (65_536, false), (16_384, true), (8192, false)];
    let mut random = SmallRng::seed_from_u64(3);
    for (name, (page, is_big_endian)) in names.iter().flat_map(|name| pages.map(|page| (name, page))) {
        // The last page is not complete.
        let len = 8 * MIB + 512 * 77;
        empty_file(&golden, len);
        let mut mkswap = Command::new(program("mkswap"));
        run(mkswap.args(["-q", "--pagesize", &page.to_string(), "-L"]).arg(OsStr::from_bytes(name)).arg(&golden));
        let mut bytes = fs::read(&golden).expect("the space");
        random.fill_bytes(&mut bytes[..1024]);
        if is_big_endian {
            // The form that mkswap writes on such a machine; Debian's cannot write it for another machine.
            bytes[1024..1036].chunks_mut(4).for_each(<[u8]>::reverse);
        }
        random.fill_bytes(&mut bytes[usize::try_from(page).expect("small")..]);
        fs::write(&golden, &bytes).expect("the space");
        let used = map(&golden, Kind::Swap);
        let page_len = u64::from(page);
        assert_eq!((used.ranges.len(), used.ranges[0].clone()), (1, 0..page_len));
        assert_eq!(used.spans, len / page_len * page_len);
        assert_eq!((used.block_size, used.is_clean, used.notes.len()), (page, None, 0));
        clone(&golden, &used.ranges, &cloned);
        let probe = |path: &Path| {
            let said = run(Command::new(program("blkid")).args(["-p", "-o", "export"]).arg(path));
            said.lines().filter(|line| !line.starts_with("DEVNAME=")).map(str::to_owned).collect::<Vec<_>>()
        };
        let said = probe(&golden);
        assert!(said.contains(&"TYPE=swap".to_owned()), "{said:?}");
        assert_eq!(said, probe(&cloned));
        assert_eq!(fs::read(&cloned).expect("the clone")[..1024], bytes[..1024]);
    }
}

/// The last sectors make no extent.
const LVM_LEN: u64 = 64 * MIB + 512 * 77;

const LVM_SUMS: &str = r#"
for volume in one three four; do echo SUM $(sha1sum </dev/vg/$volume) $volume; done
"#;

#[test]
fn lvm2_survives() {
    let dir = scratch();
    let [golden, snapshot, cloned] = ["golden", "snapshot", "cloned"].map(|name| dir.path().join(name));
    empty_file(&golden, LVM_LEN);
    empty_file(&snapshot, LVM_LEN);
    let modules = ["dm_mod", "dm_snapshot"];
    let vm = Vm { work: dir.path(), modules: &modules, programs: &["lvm"], disks: &[&golden, &snapshot] };
    let script = format!(
        "{LVM}
        lvm pvcreate --metadatacopies 2 /dev/vda
        lvm vgcreate -s 1M vg /dev/vda
        lvm lvcreate -y -Wn -L 6M -n one vg
        lvm lvcreate -y -Wn -L 12M -n two vg
        lvm lvcreate -y -Wn -L 9M -n three vg
        lvm lvextend -L +5M vg/one
        lvm lvremove -y vg/two
        lvm lvcreate -y -Wn -L 4M -n four vg
        for volume in one three four; do
            dd if=/dev/urandom of=/dev/vg/$volume bs=1M 2>/dev/null
        done
        sync
        {LVM_SUMS}
        lvm lvcreate -y -s -L 4M -n before vg/one
        sync
        cat /dev/vda >/dev/vdb
        lvm lvremove -y vg/before
        lvm vgchange -an vg
        sync
        "
    );
    let sums = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter(|line| line.starts_with("SUM ") || line.starts_with("USED ")).collect()
    };
    let wanted = sums(vm.run(&script));
    assert_eq!(wanted.len(), 3, "{wanted:?}");

    let used = map(&golden, Kind::Lvm2);
    println!("LVM2: {LVM_LEN} bytes, {} used in {} ranges", used.len(), used.ranges.len());
    assert_eq!((used.is_clean, used.block_size, &used.notes[..]), (None, 1 << 20, &[][..]));
    // 6 + 5 + 9 + 4 MiB, and the space before and after the extents.
    assert!((24 * MIB..28 * MIB).contains(&used.len()), "{}", used.len());
    assert!(used.ranges.len() > 2, "{:?}", used.ranges);

    let mut file = File::open(&snapshot).expect("the copy");
    let error = usedmap::used(Kind::Lvm2, &mut file, LVM_LEN).expect_err("it has a snapshot").to_string();
    assert!(error.contains("snapshot"), "{error}");

    clone(&golden, &used.ranges, &cloned);
    let vm = Vm { disks: &[&cloned], ..vm };
    let script = format!("{LVM}lvm vgck vg\nlvm pvck /dev/vda\nlvm vgchange -ay vg\n{LVM_SUMS}lvm vgchange -an vg\n");
    assert_eq!(sums(vm.run(&script)), wanted);
}

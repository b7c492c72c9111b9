//! Clonezilla image directories, made here as Clonezilla makes them, become the disk they came from.

use std::fs;
use std::os::unix::fs::symlink;

use crate::tools::{Junk, Place, need, run};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
const GPT_TOOLS: [&str; 13] = [
    "mkfs.ext4",
    "mkfs.vfat",
    "mkswap",
    "sgdisk",
    "sfdisk",
    "partclone.ext4",
    "partclone.vfat",
    "partclone.restore",
    "gzip",
    "zstd",
    "e2fsck",
    "debugfs",
    "split",
];
const SWAP_UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// A disk and the directory that Clonezilla makes of it.
struct Image<'a> {
    place: &'a Place,
    disk: String,
    /// Its size in MiB.
    mib: u64,
    dir: String,
}

impl<'a> Image<'a> {
    fn new(place: &'a Place, mib: u64) -> Image<'a> {
        fs::create_dir(place.path("img")).expect("a directory");
        Image { place, disk: place.blank("disk.img", mib), mib, dir: place.text("img") }
    }

    fn sh(&self, script: &str) {
        run("bash", &["-e", "-o", "pipefail", "-c", script]);
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.place.path("img").join(name), text).expect("write");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.place.path("img").join(name)).expect("remove");
    }

    /// `dd`, as in ocs-functions: in sectors of 512 bytes, and past the end if it must be.
    fn dd(&self, name: &str, skip: u64, count: u64) {
        self.sh(&format!("dd if={} of={}/{name} bs=512 skip={skip} count={count} status=none", self.disk, self.dir));
    }

    /// What is kept of the table of sda.
    fn keep_table(&self, is_gpt: bool, first_partition: u64) {
        let sectors = self.mib * MIB / SECTOR;
        self.dd("sda-mbr", 0, 1);
        self.dd("sda-hidden-data-after-mbr", 1, first_partition - 1);
        if is_gpt {
            self.dd("sda-gpt-1st", 0, 34);
            self.dd("sda-gpt-2nd", sectors - 32, 33);
            self.sh(&format!("sgdisk -b {}/sda-gpt.gdisk {}", self.dir, self.disk));
        }
        self.sh(&format!("sfdisk -d {0} | sed s,{0},/dev/sda, >{1}/sda-pt.sf", self.disk, self.dir));
        let kind = if is_gpt { "gpt" } else { "msdos" };
        self.write(
            "sda-pt.parted",
            format!(
                "Model: ATA QEMU HARDDISK (scsi)\nDisk /dev/sda: {sectors}s\nSector size (logical/physical): \
                 512B/512B\nPartition Table: {kind}\nDisk Flags: \n\nNumber  Start  End  Size  File system  Name  Flags\n"
            ),
        );
        self.write("sda-chs.sf", "cylinders=64\nheads=255\nsectors=63\n");
        self.write("blkdev.list", "KNAME NAME SIZE TYPE FSTYPE MOUNTPOINT MODEL\nsda sda 200M disk\n");
        self.write("Info-packages.txt", "Image was saved by these Clonezilla-related packages:\n");
    }

    /// A partition as partclone and the rest of a shell pipe keep it.
    fn keep(&self, part: &str, file_system: &str, first: u64, sectors: u64, pipe: &str) {
        let bytes = self.place.cut(&self.disk, first * SECTOR, sectors * SECTOR, part);
        let log = self.place.text("log");
        let save = match file_system {
            "dd" => format!("cat {bytes}"),
            _ => format!("partclone.{file_system} -c -s {bytes} -o - -L {log} 2>/dev/null"),
        };
        self.sh(&format!("cd {}; {save} | {pipe}", self.dir));
    }

    fn import(&self, options: &[&str]) -> String {
        self.place.ezio_ok(&[&["image", "import", self.dir.as_str()], options].concat())
    }

    fn refused(&self) -> String {
        let said = self.place.ezio_refuses(&["image", "import", &self.dir, "--name", "x"]);
        assert_eq!(self.place.unfinished(), 0, "{said}");
        said
    }
}

/// ESP, ext4, swap, and a partition nobody knows, on GPT.
fn gpt_image(place: &Place) -> (Image<'_>, String) {
    let files = place.files("files");
    let image = Image::new(place, 200);
    let root = place.ext4("root.img", 120, &files);
    let esp = place.blank("esp.img", 40);
    run("mkfs.vfat", &["-F", "32", "-n", "EFI", &esp]);
    let swap = place.blank("swap.img", 10);
    run("mkswap", &["-q", "-L", "swappy", "-U", SWAP_UUID, &swap]);
    let mut junk = vec![0; 2 << 20];
    Junk(5).fill(&mut junk);
    fs::write(place.path("junk"), &junk).expect("write");
    let table =
        ["-n", "1:2048:+40M", "-t", "1:ef00", "-c", "1:boot", "-n", "2:0:+120M", "-n", "3:0:+10M", "-t", "3:8200"];
    run("sgdisk", &[&table[..], &["-n", "4:0:+2M", "-t", "4:0c01", "-A", "4:set:63", &image.disk]].concat());
    let starts = [1, 41, 161, 171];
    for (file, mib) in [&esp, &root, &swap, &place.text("junk")].into_iter().zip(starts) {
        place.paste(file, &image.disk, mib * MIB);
    }
    let mut boot = [0; 400];
    Junk(6).fill(&mut boot);
    fs::write(place.path("boot"), boot).expect("write");
    place.paste(&place.text("boot"), &image.disk, 60 * SECTOR);

    image.keep_table(true, 2048);
    let sectors = |mib: u64| mib * MIB / SECTOR;
    image.keep("sda1", "vfat", 2048, sectors(40), "gzip -1 | split -a 2 -b 4K - sda1.vfat-ptcl-img.gz.");
    image.keep("sda2", "ext4", sectors(41), sectors(120), "zstd -q -1 | split -a 2 -b 1M - sda2.ext4-ptcl-img.zst.");
    image.keep("sda4", "dd", sectors(171), sectors(2), "gzip -1 >sda4.dd-ptcl-img.gz");
    image.write("swappt-sda3.info", format!("UUID=\"{SWAP_UUID}\"\nLABEL=\"swappy\"\n"));
    image.write("disk", "sda\n");
    image.write("parts", "sda1 sda2 sda3 sda4\n");
    (image, files)
}

#[test]
fn a_clonezilla_disk_becomes_the_image_that_capture_makes() {
    need(&GPT_TOOLS);
    let place = Place::new();
    let (image, files) = gpt_image(&place);
    let said = image.import(&["--name", "imported"]);
    assert!(said.contains("putting sda together") && said.contains("ext4") && said.contains("label swappy"), "{said}");
    let shown = place.ezio_ok(&["image", "show", "imported"]);
    assert!(shown.contains("import of a Clonezilla image of ") && shown.contains("img (sda)"), "{shown}");

    place.ezio_ok(&["capture", &image.disk, "--name", "captured"]);
    assert_eq!(place.meta("imported").infohash, place.meta("captured").infohash, "nothing was lost on the way");
    assert_eq!(fs::read_dir(place.image("imported")).expect("read").count(), 3, "nothing but the image is left");
    assert_eq!(place.unfinished(), 0);

    let restored = place.text("restored.img");
    place.ezio_restore("imported", &restored);
    place.check_used("captured", &restored, &image.disk);
    let print = |disk: &str| run("sgdisk", &["-p", disk]).replace(disk, "disk");
    assert_eq!(print(&restored), print(&image.disk));
    assert!(run("sgdisk", &["-v", &restored]).contains("No problems found"));
    place.check_ext4(&place.cut(&restored, 41 * MIB, 120 * MIB, "root.back"), &files);
}

#[test]
fn damaged_and_strange_clonezilla_images_are_refused() {
    need(&GPT_TOOLS);
    let place = Place::new();
    let (image, _) = gpt_image(&place);
    let path = |name: &str| place.path("img").join(name);

    let said = place.ezio_refuses(&["image", "import", &image.dir, "--name", "x", "--whole"]);
    assert!(said.contains("--whole goes with a disk image only"), "{said}");
    let said = place.ezio_refuses(&["image", "import", &image.disk, "--name", "x", "--disk", "sda"]);
    assert!(said.contains("--disk goes with a Clonezilla image only"), "{said}");
    image.write("ecryptfs.info", "");
    assert!(image.refused().contains("is encrypted"));
    image.remove("ecryptfs.info");

    let second = path("sda2.ext4-ptcl-img.zst.ab");
    fs::rename(&second, place.path("kept")).expect("moved");
    assert!(image.refused().contains(".ab is missing"));
    fs::rename(place.path("kept"), &second).expect("moved");

    let last = fs::read_dir(place.path("img")).expect("read").map(|entry| entry.expect("entry").path());
    let last = last.filter(|path| path.to_string_lossy().contains("sda2.ext4")).max().expect("files");
    let bytes = fs::read(&last).expect("read");
    fs::remove_file(&last).expect("remove");
    let said = image.refused();
    assert!(said.contains("unpacking sda2") && said.contains("damaged or incomplete"), "{said}");
    fs::write(&last, &bytes).expect("write");

    let first = path("sda2.ext4-ptcl-img.zst.aa");
    let good = fs::read(&first).expect("read");
    let mut bytes = good.clone();
    bytes[500_000..500_100].fill(7);
    fs::write(&first, &bytes).expect("write");
    assert!(image.refused().contains("unpacking sda2"));
    bytes[..4].copy_from_slice(b"<htm");
    fs::write(&first, &bytes).expect("write");
    assert!(image.refused().contains("does not start as .zst files do"));
    fs::write(&first, &good).expect("write");

    image.write("sda2.ext4-ptcl-img.gz.aa", "left over");
    assert!(image.refused().contains("more than once"));
    image.remove("sda2.ext4-ptcl-img.gz.aa");

    // A partition's bytes without anything around them that would tell that some are missing.
    fs::rename(path("sda4.dd-ptcl-img.gz"), place.path("kept")).expect("moved");
    assert!(image.refused().contains("lists sda4 and does not have it"));
    image.write("sda4.dd-ptcl-img", vec![1; 1 << 20]);
    let said = image.refused();
    assert!(said.contains("unpacking sda4") && said.contains("1048576 of 2097152"), "{said}");
    image.write("sda4.dd-ptcl-img", vec![1; 3 << 20]);
    assert!(image.refused().contains("do not belong together"));
    image.remove("sda4.dd-ptcl-img");
    let bytes = place.text("sda2");
    image.sh(&format!(
        "cd {}; partclone.ext4 -c -s {bytes} -o - -L {} 2>/dev/null >sda4.ext4-ptcl-img",
        image.dir,
        place.text("log")
    ));
    assert!(image.refused().contains("the partition has 2097152"));
    image.remove("sda4.ext4-ptcl-img");
    image.write("sda4.ntfs-img.aa", "");
    assert!(image.refused().contains("ntfs made it"));
    image.remove("sda4.ntfs-img.aa");
    fs::rename(place.path("kept"), path("sda4.dd-ptcl-img.gz")).expect("moved");

    image.write("parts", "sda1 sda2 sda3 sda4 sda9\n");
    assert!(image.refused().contains("lists sda9"));
    image.write("parts", "sda1 vg-root\n");
    assert!(image.refused().contains("logical volumes"));
    image.write("parts", "../../etc/passwd\n");
    assert!(image.refused().contains("does not list names"));
    image.write("parts", "sda1 sda2 sda3 sda4 sdb1\n");
    image.write("disk", "sda sdb\n");
    assert!(image.refused().contains("--disk"));
    image.write("sda-gpt-1st", vec![0; 17_408]);
    let said = place.ezio_refuses(&["image", "import", &image.dir, "--name", "x", "--disk", "sda"]);
    assert!(said.contains("sda-gpt-1st is damaged"), "{said}");
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));
}

#[test]
fn a_clonezilla_disk_with_logical_partitions_comes_back() {
    need(&GPT_TOOLS);
    need(&["lz4", "xz", "bzip2"]);
    let place = Place::new();
    let files = place.files("files");
    let image = Image::new(&place, 160);
    let script = "label: dos\nlabel-id: 0xc0ffee00\nstart=2048,size=81920,type=83,bootable\nstart=83968,type=5\n\
                  start=86016,size=122880,type=83\nstart=210944,size=20480,type=82\nstart=233472,size=4096,type=da\n";
    fs::write(place.path("script"), script).expect("write");
    image.sh(&format!("sfdisk -q {} < {}", image.disk, place.text("script")));
    let swap = place.blank("swap.img", 10);
    run("mkswap", &["-q", "-U", SWAP_UUID, &swap]);
    let mut junk = vec![0; 2 << 20];
    Junk(5).fill(&mut junk);
    fs::write(place.path("junk"), &junk).expect("write");
    fs::write(place.path("boot"), &junk[..400]).expect("write");
    let first = place.ext4("first.img", 40, &files);
    let logical = place.ext4("logical.img", 60, &files);
    for (file, sector) in [(&first, 2048), (&logical, 86_016), (&swap, 210_944), (&place.text("junk"), 233_472)] {
        place.paste(file, &image.disk, sector * SECTOR);
    }
    place.paste(&place.text("boot"), &image.disk, 0);
    place.paste(&place.text("boot"), &image.disk, 1024);
    image.keep_table(false, 2048);
    image.keep("sda1", "ext4", 2048, 81_920, "xz -0 | split -a 2 -b 3M - sda1.ext4-ptcl-img.xz.");
    image.keep("sda5", "ext4", 86_016, 122_880, "lz4 -q | split -a 2 -b 5M - sda5.ext4-ptcl-img.lz4.");
    // How it was called until 2018, compressed without saying so.
    image.keep("sda7", "dd", 233_472, 4096, "bzip2 | split -a 2 -b 1M - sda7.dd-img.");
    image.write("swappt-sda6.info", format!("UUID=\"{SWAP_UUID}\"\nLABEL=\"\"\n"));
    image.write("disk", "sda\n");
    image.write("parts", "sda1 sda5 sda6 sda7\n");

    image.import(&["--name", "mbr"]);
    let restored = place.text("restored.img");
    place.ezio_restore("mbr", &restored);
    place.ezio_ok(&["capture", &image.disk, "--name", "captured"]);
    place.check_used("captured", &restored, &image.disk);
    let dump = |disk: &str| run("sfdisk", &["-d", disk]).replace(disk, "disk");
    assert_eq!(dump(&restored), dump(&image.disk), "every link of the chain is there");
    for (sector, mib) in [(2048, 40), (86_016, 60)] {
        place.check_ext4(&place.cut(&restored, sector * SECTOR, mib * MIB, "part.back"), &files);
    }

    // Without the size of the disk, and with the dump of an older sfdisk.
    image.remove("sda-pt.parted");
    let sf = fs::read_to_string(place.path("img/sda-pt.sf")).expect("read");
    let (_, partitions) = sf.split_once("\n\n").expect("a header");
    image.write("sda-pt.sf", format!("unit: sectors\n\n{}", partitions.replace("type=", "Id=")));
    image.import(&["--name", "old"]);
    let shown = place.ezio_ok(&["image", "show", "old"]);
    place.check_used("old", &restored, &image.disk);
    assert!(shown.contains("table mbr c0ffee00"), "{shown}");
}

#[test]
fn what_saveparts_saves_is_imported_and_nothing_else() {
    need(&GPT_TOOLS);
    let place = Place::new();
    let (image, files) = gpt_image(&place);
    image.remove("disk");
    image.write("parts", "sda2\n");
    for entry in fs::read_dir(place.path("img")).expect("read") {
        let path = entry.expect("entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if ["sda1.", "sda4.", "swappt-"].iter().any(|start| name.starts_with(start)) {
            fs::remove_file(path).expect("remove");
        }
    }
    let output = place.ezio(&["image", "import", &image.dir, "--name", "part"]).output().expect("ezio runs");
    let said = crate::tools::text(&output);
    assert!(output.status.success(), "{said}");
    for lost in ["sda1 is not in", "sda3 is not in", "sda4 is not in", "left out, not in the source"] {
        assert!(said.contains(lost), "{lost}: {said}");
    }
    let restored = place.restore("part", &image.disk);
    assert!(run("sgdisk", &["-v", &restored]).contains("No problems found"));
    place.check_ext4(&place.cut(&restored, 41 * MIB, 120 * MIB, "root.back"), &files);
    assert!(place.meta("part").geometry.content_len() < 60 * MIB);

    // One partition and no table: the image of a partition.
    for name in ["sda-mbr", "sda-hidden-data-after-mbr", "sda-gpt-1st", "sda-gpt-2nd", "sda-pt.sf", "sda-pt.parted"] {
        image.remove(name);
    }
    image.import(&["--name", "bare"]);
    assert_eq!(place.meta("bare").facts.expect("facts").table.as_str(), "none");
    let bare = place.text("bare.img");
    place.ezio_restore("bare", &bare);
    place.check_ext4(&bare, &files);
    assert_eq!(place.unfinished(), 0);
}

/// Whoever gives an image away does not choose which files and disks of this server are in it.
#[test]
fn links_in_a_clonezilla_directory_are_refused() {
    let place = Place::new();
    let image = Image::new(&place, 2);
    let secret = image.disk.clone();
    let link = |to: &str, name: &str| symlink(to, place.path("img").join(name)).expect("a link");
    let is_refused = |name: &str| {
        let said = image.refused();
        assert!(said.contains(name) && said.contains("only regular files are read"), "{name}: {said}");
        image.remove(name);
    };
    image.write("parts", "sda\n");
    link(&secret, "sda.dd-img");
    is_refused("sda.dd-img");
    image.write("sda.dd-img.aa", vec![1; 1 << 20]);
    link(&secret, "sda.dd-img.ab");
    is_refused("sda.dd-img.ab");
    image.remove("sda.dd-img.aa");

    image.write("parts", "sda1\n");
    image.write("disk", "sda\n");
    link("/dev/zero", "sda-mbr");
    image.write("sda-pt.parted", "Disk /dev/sda: 131072s\n");
    is_refused("sda-mbr");
    image.write("sda-mbr", vec![0; 512]);
    link("/dev/zero", "sda-hidden-data-after-mbr");
    is_refused("sda-hidden-data-after-mbr");
    image.remove("parts");
    link("/dev/zero", "parts");
    is_refused("parts");
    assert_eq!(place.listed().len(), 0);
}

#[test]
fn a_partclone_file_becomes_the_image_that_capture_makes() {
    need(&[
        "mkfs.ext4",
        "partclone.ext4",
        "partclone.restore",
        "gzip",
        "zstd",
        "xz",
        "bzip2",
        "lz4",
        "e2fsck",
        "debugfs",
    ]);
    let place = Place::new();
    let files = place.files("files");
    let source = place.ext4("fs.img", 90, &files);
    place.ezio_ok(&["capture", &source, "--name", "captured"]);
    let file = place.text("root.pcl");
    run("partclone.ext4", &["-c", "-s", &source, "-o", &file, "-L", &place.text("log")]);
    for (name, pack) in [("plain", "cat"), ("gz", "gzip -1"), ("zst", "zstd -q -1"), ("xz", "xz -0"), ("lz4", "lz4 -q")]
    {
        let packed = place.text(&format!("root.{name}"));
        run("sh", &["-c", &format!("{pack} <{file} >{packed}")]);
        place.ezio_ok(&["image", "import", &packed, "--name", name]);
        assert_eq!(place.meta(name).infohash, place.meta("captured").infohash, "{name}");
        assert_eq!(fs::read_dir(place.image(name)).expect("read").count(), 3, "nothing but the image is left");
        let said = place.ezio_refuses(&["image", "import", &packed, "--name", "x", "--whole"]);
        assert!(said.contains("is a partclone image") && said.contains("leave --whole out"), "{said}");
    }
    assert!(place.ezio_ok(&["image", "show", "gz"]).contains("import of a partclone image of "));
    place.check_ext4(&place.restore("zst", &source), &files);

    let cut = place.text("cut");
    run("sh", &["-c", &format!("gzip -1 <{file} | head -c 1000000 >{cut}")]);
    let said = place.ezio_refuses(&["image", "import", &cut, "--name", "x"]);
    assert!(said.contains("unpacking cut") && said.contains("copy them again"), "{said}");
    // Compressed disks are no disks, whatever is said of them.
    for pack in ["gzip -1", "zstd -q -1", "xz -0", "lz4 -q", "bzip2 -1"] {
        let packed = place.text("disk.packed");
        run("sh", &["-c", &format!("{pack} <{source} >{packed}")]);
        let program = pack.split(' ').next().expect("a word");
        for more in [&[][..], &["--whole"]] {
            let said = place.ezio_refuses(&[&["image", "import", &packed, "--name", "x"], more].concat());
            assert!(said.contains("disk.packed is compressed") && said.contains("unpack it first"), "{said}");
            assert!(said.contains(&format!("`{program} -dc`")), "{said}");
        }
    }
    assert_eq!((place.listed().len(), place.unfinished()), (6, 0));
}

#[test]
fn a_directory_of_clonezilla_images_is_told_from_one() {
    let place = Place::new();
    fs::create_dir_all(place.path("partimag/empty")).expect("directories");
    let home = place.text("partimag");
    let refused = || place.ezio_refuses(&["image", "import", &home, "--name", "x"]);
    let said = refused();
    assert!(said.contains("neither a Clonezilla image") && said.contains("torrent.info"), "{said}");
    assert!(!said.contains("give one of"), "{said}");
    for number in 1..=6 {
        let dir = place.path(&format!("partimag/lab-{number}"));
        fs::create_dir(&dir).expect("a directory");
        fs::write(dir.join("parts"), "sda1\n").expect("write");
    }
    let said = refused();
    assert!(said.contains("give one of the Clonezilla images in it: ") && said.contains("/lab-5, …"), "{said}");
    assert!(!said.contains("lab-6") && !said.contains("empty"), "{said}");
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));
}

#[test]
fn an_ntfs_keeps_its_second_boot_sector() {
    need(&["mkntfs", "partclone.ntfs", "partclone.restore", "gzip"]);
    let place = Place::new();
    let image = Image::new(&place, 60);
    run("mkntfs", &["-q", "-F", &image.disk]);
    image.keep("sda3", "ntfs", 0, 60 * MIB / SECTOR, "gzip -1 >sda3.ntfs-ptcl-img.gz.aa");
    image.write("parts", "sda3\n");
    image.import(&["--name", "imported"]);
    place.ezio_ok(&["capture", &image.disk, "--name", "captured"]);
    assert_eq!(place.meta("imported").infohash, place.meta("captured").infohash);
}

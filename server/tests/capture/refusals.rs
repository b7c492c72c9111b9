//! What is refused, interrupted or damaged, and the messages that people get.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use crate::tools::{Junk, Place, command, need, run, text};

/// Much longer than anything here takes, even on a slow, shared machine.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn names_and_sources_that_cannot_be_are_refused() {
    let place = Place::new();
    let junk = place.blank("junk.img", 2);
    let missing = place.text("missing");
    assert!(place.ezio_refuses(&["capture", &missing, "--name", "x"]).contains("opening the source"));
    assert!(place.ezio_refuses(&["capture", "/dev/null", "--name", "x"]).contains("neither a block device"));
    assert!(place.ezio_refuses(&["capture", &junk, "--name", "../x"]).contains("cannot be an image's name"));
    assert!(place.ezio_refuses(&["capture", &junk, "--name", ".x"]).contains("cannot be an image's name"));
    let empty = place.blank("empty.img", 0);
    assert!(place.ezio_refuses(&["capture", &empty, "--name", "x"]).contains("no bytes"));
    need(&["blkid"]);
    assert!(place.ezio_refuses(&["capture", &junk, "--name", "x"]).contains("--whole"));
    place.ezio_ok(&["capture", &junk, "--name", "x", "--whole"]);
    assert!(place.ezio_refuses(&["capture", &junk, "--name", "x", "--whole"]).contains("already is an image"));
    assert!(place.ezio_refuses(&["image", "show", "nothing"]).contains("there is no image"));
    assert!(Place::new().ezio_refuses(&["image", "list"]).contains("there is no library"));
    assert_eq!(place.unfinished(), 0);
}

#[test]
fn an_armed_image_is_not_replaced() {
    need(&["blkid"]);
    let place = Place::new();
    let [old, new] = [("old.img", 2), ("new.img", 3)].map(|(name, mib)| place.blank(name, mib));
    place.ezio_ok(&["capture", &old, "--name", "room", "--whole"]);
    let infohash = place.meta("room").infohash;
    place.ezio_ok(&["arm", "room", "--mac", "52:54:00:12:34:56", "--target", "/dev/vda"]);
    for command in [&["capture", &new][..], &["image", "import", &new]] {
        let said = place.ezio_refuses(&[command, &["--name", "room", "--whole", "--replace"]].concat());
        assert!(said.contains("\"room\" is armed") && said.contains("ezio disarm"), "{said}");
        assert!(said.contains("another name"), "{said}");
    }
    assert!(place.ezio_refuses(&["image", "remove", "room"]).contains("ezio disarm"));
    assert_eq!((place.meta("room").infohash, place.unfinished()), (infohash, 0));
    place.ezio_ok(&["disarm"]);
    place.ezio_ok(&["capture", &new, "--name", "room", "--whole", "--replace"]);
    assert_ne!(place.meta("room").infohash, infohash);
}

#[test]
fn missing_tools_are_named_with_their_package() {
    need(&["mkfs.ext4", "blkid"]);
    let place = Place::new();
    let image = place.blank("fs.img", 20);
    run("mkfs.ext4", &["-q", "-F", &image]);
    let refused = |path: &str| {
        let output = place.ezio(&["capture", &image, "--name", "x"]).env("PATH", path).output().expect("ezio runs");
        assert!(!output.status.success());
        text(&output)
    };
    assert!(refused("").contains("apt install util-linux"));
    let bin = place.path("bin");
    fs::create_dir(&bin).expect("a directory");
    symlink("/usr/sbin/blkid", bin.join("blkid")).expect("a link");
    let said = refused(bin.to_str().expect("UTF-8"));
    assert!(said.contains("partclone.ext4 is missing") && said.contains("apt install partclone"), "{said}");
    assert!(said.contains("--whole"), "{said}");
    assert_eq!(place.listed().len(), 0);
}

#[test]
fn a_fat_that_was_not_unmounted_is_refused() {
    need(&["mkfs.vfat", "partclone.vfat"]);
    let place = Place::new();
    let image = place.blank("fs.img", 60);
    run("mkfs.vfat", &["-F", "32", &image]);
    // The second entry of the table has a bit that says that it was unmounted.
    fs::write(place.path("entry"), [0xff, 0xff, 0xff, 0x07]).expect("write");
    place.paste(&place.text("entry"), &image, 32 * 512 + 4);
    let said = place.ezio_refuses(&["capture", &image, "--name", "x"]);
    assert!(
        said.contains("FAT file system on it was not unmounted cleanly") && said.contains("--at-own-risk"),
        "{said}"
    );
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));
    place.ezio_ok(&["capture", &image, "--name", "x", "--at-own-risk"]);
}

#[test]
fn what_is_hibernated_or_not_shut_down_is_taken_only_when_told_to() {
    need(&["mkntfs", "ntfscp", "ntfs-3g.probe", "partclone.ntfs", "mkfs.ext4", "partclone.ext4", "debugfs", "mkswap"]);
    let place = Place::new();
    let windows = place.blank("windows.img", 30);
    run("mkntfs", &["-F", "-q", &windows]);
    fs::write(place.path("file"), "a file of Windows").expect("write");
    run("ntfscp", &[&windows, &place.text("file"), "file.txt"]);
    let mut marker = b"hibr".to_vec();
    marker.resize(8192, 0);
    fs::write(place.path("hiberfil"), marker).expect("write");
    run("ntfscp", &[&windows, &place.text("hiberfil"), "hiberfil.sys"]);
    for more in [&[][..], &["--whole"]] {
        let said = place.ezio_refuses(&[&["capture", &windows, "--name", "windows"], more].concat());
        assert!(
            said.contains("hibernated") && said.contains("shutdown /s") && said.contains("--at-own-risk"),
            "{said}"
        );
    }
    place.ezio_ok(&["capture", &windows, "--name", "windows", "--at-own-risk"]);
    let restored = place.restore("windows", &windows);
    assert_eq!(run("ntfscat", &[&restored, "file.txt"]), "a file of Windows");

    let linux = place.blank("linux.img", 30);
    run("mkswap", &[&linux]);
    fs::write(place.path("mark"), b"S1SUSPEND\0").expect("write");
    place.paste(&place.text("mark"), &linux, 4096 - 10);
    let said = place.ezio_refuses(&["capture", &linux, "--name", "linux"]);
    assert!(said.contains("hibernated") && said.contains("--at-own-risk"), "{said}");

    let dirty = place.blank("dirty.img", 20);
    run("mkfs.ext4", &["-q", "-F", &dirty]);
    run("debugfs", &["-w", "-R", "set_super_value state 0", &dirty]);
    assert!(place.ezio_refuses(&["capture", &dirty, "--name", "dirty"]).contains("--at-own-risk"));
    place.ezio_ok(&["capture", &dirty, "--name", "dirty", "--at-own-risk"]);
    assert_eq!((place.listed().len(), place.unfinished()), (2, 0));
}

/// What was synced before the power went is in the journal, and in no map of used blocks.
#[test]
fn a_power_cut_is_noticed() {
    need(&[
        "mkfs.ext4",
        "mkfs.xfs",
        "mkfs.btrfs",
        "xfs_logprint",
        "partclone.xfs",
        "partclone.btrfs",
        "mount",
        "unshare",
    ]);
    let place = Place::new();
    fs::create_dir(place.path("mnt")).expect("a directory");
    for (mkfs, flags) in [("mkfs.ext4", &["-q", "-F"][..]), ("mkfs.xfs", &["-q"]), ("mkfs.btrfs", &["-q"])] {
        let name = mkfs.trim_start_matches("mkfs.");
        let image = place.blank(&format!("{name}.img"), 320);
        run(mkfs, &[flags, &[&image]].concat());
        place.ezio_ok(&["capture", &image, "--name", "clean", "--replace"]);
        let cut = place.text(&format!("{name}.cut"));
        let mount = place.text("mnt");
        let script = format!(
            "set -e; mount -o loop {image} {mount}; for i in 1 2 3; do head -c 300000 /dev/urandom > {mount}/$i; \
             sync {mount}/$i; done; cp --sparse=always {image} {cut}; umount {mount}"
        );
        let output = command("unshare").args(["-m", "sh", "-c", &script]).output().expect("unshare runs");
        assert!(output.status.success(), "mounting a {name}: {}", text(&output));
        place.ezio_ok(&["capture", &image, "--name", "clean", "--replace"]);
        let said = place.ezio_refuses(&["capture", &cut, "--name", name]);
        assert!(said.contains("not unmounted cleanly") && said.contains("--at-own-risk"), "{said}");
        let said = place.ezio_ok(&["capture", &cut, "--name", name, "--at-own-risk"]);
        assert!(said.contains("copied whole"), "{said}");
        assert!(place.content(name) == fs::read(&cut).expect("read"), "{name}: every byte");
    }
}

#[test]
fn what_partclone_cannot_know_is_copied_whole() {
    need(&["mkfs.ext4", "mkfs.btrfs", "partclone.ext4", "partclone.btrfs"]);
    let place = Place::new();
    let [one, two] = ["one.img", "two.img"].map(|name| place.blank(name, 160));
    run("mkfs.btrfs", &["-q", "-d", "raid0", "-m", "raid1", &one, &two]);
    let said = place.ezio_ok(&["capture", &one, "--name", "member"]);
    assert!(said.contains("copied whole") && said.contains("several devices"), "{said}");
    assert!(place.content("member") == fs::read(&one).expect("read"));

    let xfs = place.blank("xfs.img", 400);
    run("mkfs.xfs", &["-q", &xfs]);
    fs::File::options().write(true).open(&xfs).and_then(|file| file.set_len(380 << 20)).expect("cut");
    let said = place.ezio_refuses(&["capture", &xfs, "--name", "xfs"]);
    assert!(said.contains("400.0 MiB") && said.contains("380.0 MiB") && said.contains("cut short"), "{said}");
    for option in ["--whole", "--at-own-risk"] {
        assert!(said.contains(option), "{said}");
        place.ezio_ok(&["capture", &xfs, "--name", "xfs", "--replace", option]);
        assert!(place.content("xfs") == fs::read(&xfs).expect("read"), "{option}: every byte");
    }
}

#[test]
fn a_damaged_table_says_what_to_run() {
    need(&["sgdisk"]);
    let place = Place::new();
    let disk = place.blank("disk.img", 20);
    run("sgdisk", &["-n", "1:2048:0", &disk]);
    // A byte of the header's checksum, whatever it is.
    let byte = fs::read(&disk).expect("read")[530];
    fs::write(place.path("x"), [!byte]).expect("write");
    place.paste(&place.text("x"), &disk, 530);
    assert!(place.ezio_refuses(&["capture", &disk, "--name", "x"]).contains("sgdisk -e"));
    run("sgdisk", &["-e", &disk]);
    place.ezio_ok(&["capture", &disk, "--name", "x"]);
}

/// What a shell says that runs `then` with `setup` done in a mount namespace of its own; mounts end with the shell.
fn in_namespace(setup: &str, then: &str) -> Output {
    assert!(nix::unistd::geteuid().is_root(), "only root can mount: run the tests as root");
    need(&["mkfs.ext4", "mount", "losetup", "unshare"]);
    let script = format!("{{ {setup}; }} || exit 77; {then}");
    let output = command("unshare").args(["-m", "sh", "-c", &script]).output().expect("unshare runs");
    assert!(output.status.code() != Some(77), "no loop mounts here: {}", text(&output));
    output
}

#[test]
fn a_mounted_source_is_refused() {
    let place = Place::new();
    let image = place.blank("fs.img", 20);
    run("mkfs.ext4", &["-q", "-F", &image]);
    fs::create_dir(place.path("mnt")).expect("a directory");
    // The loop device goes with the mount.
    let mount = format!("mount -o loop,ro {image} {}", place.text("mnt"));
    let ezio = env!("CARGO_BIN_EXE_ezio");
    let library = place.library();
    for source in [image.as_str(), "$(findmnt -no SOURCE $(pwd)/mnt)"] {
        let then =
            format!("cd {}/..; {ezio} capture {source} --library {} --name x", place.text("mnt"), library.display());
        let output = in_namespace(&mount, &then);
        assert!(text(&output).contains("is mounted on"), "{source}: {}", text(&output));
        assert!(!output.status.success());
    }
    assert_eq!(place.listed().len(), 0);
}

/// A restore to `target` of an image that is larger than everything here; it would never find its peer.
fn restore_to(place: &Place, target: &str) -> String {
    if place.listed().is_empty() {
        let source = place.blank("large.img", 40);
        place.ezio_ok(&["capture", &source, "--name", "large", "--whole"]);
    }
    let torrent = place.image("large").join("image.torrent");
    format!("timeout 60 {} restore {} {target} --yes --peer 127.0.0.1:1", env!("CARGO_BIN_EXE_ezio"), torrent.display())
}

#[test]
fn a_mounted_target_is_not_touched() {
    need(&["blkid"]);
    let place = Place::new();
    let target = place.blank("fs.img", 20);
    run("mkfs.ext4", &["-q", "-F", &target]);
    fs::create_dir(place.path("mnt")).expect("a directory");
    let before = fs::read(&target).expect("the target");
    let mount = format!("mount -o loop,ro {target} {}", place.text("mnt"));
    let output = in_namespace(&mount, &restore_to(&place, &target));
    let said = text(&output);
    assert!(said.contains("is mounted on") && said.contains("was not touched"), "{said}");
    assert!(!output.status.success());

    // Mounted where the restore does not see it, until somebody writes to `end`.
    let [ready, end] = ["ready", "end"].map(|name| place.text(name));
    run("mkfifo", &[&ready, &end]);
    let inner = format!("{mount}; echo $? >{ready}; read line <{end}");
    let there = format!("unshare -m sh -c '{inner}' & read status <{ready} && [ $status = 0 ]");
    let then = format!("{}; result=$?; echo >{end}; wait; exit $result", restore_to(&place, &target));
    let output = in_namespace(&there, &then);
    assert!(text(&output).contains("in use by the kernel"), "{}", text(&output));
    assert!(!output.status.success());
    assert!(fs::read(&target).expect("the target") == before, "{target} was written to");
}

/// A file system in a file, mounted through one loop device, while another one, under or beside that, is `$free`: no command may
/// take it.
fn refuse_free_loop(setup: &str, commands: impl FnOnce(&Place, &str) -> Vec<String>) -> Place {
    need(&["blkid"]);
    let place = Place::new();
    let image = place.blank("fs.img", 20);
    run("mkfs.ext4", &["-q", "-F", &image]);
    fs::create_dir(place.path("mnt")).expect("a directory");
    let before = fs::read(&image).expect("the image");
    let setup = setup.replace("IMAGE", &image).replace("MNT", &place.text("mnt"));
    for then in commands(&place, &image) {
        let output = in_namespace(&setup, &then);
        assert!(text(&output).contains("is mounted on"), "{then}: {}", text(&output));
        assert!(!output.status.success(), "{then}");
    }
    assert!(fs::read(&image).expect("the image") == before, "{image} was written to");
    place
}

#[test]
fn a_loop_device_under_a_mounted_one_is_refused() {
    let setup = "trap 'umount MNT; losetup -d $over; losetup -d $free' EXIT; free=$(losetup -f --show IMAGE) && \
                 over=$(losetup -f --show $free) && mount -o ro $over MNT";
    let place = refuse_free_loop(setup, |place, image| {
        let ezio = env!("CARGO_BIN_EXE_ezio");
        let capture = format!("{ezio} capture $free --library {} --name x --whole", place.library().display());
        vec![capture, restore_to(place, "$free"), restore_to(place, image)]
    });
    assert_eq!(place.listed(), ["large"]);
}

#[test]
fn a_loop_device_beside_a_mounted_one_is_refused() {
    let setup = "trap 'umount MNT; losetup -d $used; losetup -d $free' EXIT; used=$(losetup -f --show IMAGE) && \
                 free=$(losetup -f --show IMAGE) && mount -o ro $used MNT";
    refuse_free_loop(setup, |place, _| vec![restore_to(place, "$free")]);
}

/// A capture that takes seconds, stopped in the middle of its content.
fn capture_in_progress(place: &Place, name: &str) -> Child {
    let source = place.blank("large.img", 4096);
    let mut child = place
        .ezio(&["capture", &source, "--name", name, "--whole", "--threads", "1", "--uncompressed"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("ezio runs");
    let content = place.library().join("tmp/work").join(name).join("content");
    let started = Instant::now();
    while !content.exists() {
        assert!(started.elapsed() < DEADLINE, "the capture never started");
        assert!(child.try_wait().expect("its state").is_none(), "the capture ended too soon");
        std::thread::yield_now();
    }
    child
}

/// Waits until a file has something in it, while the program runs.
pub fn wait_for(file: &Path, child: &mut Child) -> String {
    let started = Instant::now();
    loop {
        let found = fs::read_to_string(file).unwrap_or_default();
        if !found.is_empty() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "{} never came", file.display());
        assert!(child.try_wait().expect("its state").is_none(), "the program ended too soon");
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_capture_leaves_nothing_listed() {
    need(&["blkid"]);
    let place = Place::new();
    let small = place.blank("small.img", 1);
    let mut child = capture_in_progress(&place, "killed");
    let busy = place.ezio_refuses(&["capture", &small, "--name", "killed", "--whole"]);
    assert!(busy.contains("another process is making"), "{busy}");
    child.kill().expect("kill -9");
    child.wait().expect("its end");
    assert_eq!(place.listed().len(), 0);
    assert!(place.ezio_ok(&["image", "list"]).contains("no images"));
    assert_eq!(place.unfinished(), 1, "it was in the middle");
    place.ezio_ok(&["capture", &small, "--name", "other", "--whole"]);
    assert_eq!((place.listed(), place.unfinished()), (vec!["other".to_owned()], 0), "the next one clears it away");
}

#[test]
fn a_terminated_capture_tidies_up_itself() {
    need(&["blkid"]);
    let place = Place::new();
    let mut child = capture_in_progress(&place, "stopped");
    run("sh", &["-c", &format!("kill -TERM {}", child.id())]);
    assert!(!child.wait().expect("its end").success());
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));
}

#[test]
fn damaged_images_are_listed_with_the_reason_beside_the_good_ones() {
    need(&["blkid"]);
    let place = Place::new();
    let source = place.text("source.img");
    let mut bytes = vec![0; 3 << 20];
    Junk(9).fill(&mut bytes);
    fs::write(&source, &bytes).expect("write");
    let names = ["good", "short", "no-torrent", "newer", "mixed", "flipped"];
    for name in names {
        place.ezio_ok(&["capture", &source, "--name", name, "--whole", "--uncompressed"]);
    }
    fs::write(place.image("short").join("content"), "x").expect("write");
    fs::remove_file(place.image("no-torrent").join("image.torrent")).expect("remove");
    fs::write(place.image("newer").join("manifest.json"), r#"{"schema": 99}"#).expect("write");
    place.ezio_ok(&["capture", &source, "--name", "mixed", "--whole", "--replace", "--piece-len", "64K"]);
    fs::copy(place.image("good").join("image.torrent"), place.image("mixed").join("image.torrent")).expect("copy");
    fs::write(place.library().join("images/stray"), "a file").expect("write");
    bytes[2_500_000] ^= 1;
    fs::write(place.image("flipped").join("content"), &bytes).expect("write");

    let list = place.ezio_ok(&["image", "list"]);
    let line =
        |name: &str| list.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {list}"));
    assert!(!line("good").contains("damaged") && !line("flipped").contains("damaged"), "{list}");
    assert!(line("short").contains("has 1 bytes instead of 3145728"), "{list}");
    assert!(line("no-torrent").contains("image.torrent"), "{list}");
    assert!(line("newer").contains("schema is 99"), "{list}");
    assert!(line("mixed").contains("belongs to infohash"), "{list}");
    assert!(line("stray").contains("damaged"), "{list}");

    place.ezio_ok(&["image", "verify", "good"]);
    let output = place.ezio(&["image", "verify", "flipped"]).output().expect("ezio runs");
    let said = text(&output);
    assert!(!output.status.success());
    assert!(said.contains("piece 9 is bad") && said.contains("262144 bytes at 0x240000"), "{said}");
    for name in names {
        place.ezio_ok(&["image", "remove", name]);
    }
    assert_eq!(place.listed(), ["stray"]);
}

#[test]
fn nobody_has_to_read_what_is_said() {
    need(&["blkid"]);
    let place = Place::new();
    let source = place.blank("source.img", 2);
    let full = || Stdio::from(File::options().write(true).open("/dev/full").expect("Linux has it"));
    // The other end is dropped at once.
    let closed = || Stdio::from(std::io::pipe().expect("a pipe").1);
    let commands = |name| {
        [
            vec!["capture", &source, "--name", name, "--whole"],
            vec!["image", "list"],
            vec!["image", "list", "--json"],
            vec!["image", "show", name],
        ]
    };
    for args in commands("closed") {
        let output = place.ezio(&args).stdout(closed()).stderr(Stdio::piped()).output().expect("ezio runs");
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {}", text(&output));
    }
    for args in commands("full") {
        let output = place.ezio(&args).stdout(full()).stderr(Stdio::piped()).output().expect("ezio runs");
        let said = text(&output);
        assert!(!output.status.success() && said.matches("standard output").count() == 1, "{args:?}: {said}");
    }
    for args in commands("both") {
        let status = place.ezio(&args).stdout(full()).stderr(full()).status().expect("ezio runs");
        assert_eq!(status.code(), Some(1), "{args:?}");
        let status = place.ezio(&args).stdout(closed()).stderr(closed()).status().expect("ezio runs");
        // There is an image of that name now, and nobody to tell.
        assert_eq!(status.code(), Some(i32::from(args[0] == "capture")), "{args:?}");
    }
    assert_eq!((place.listed().len(), place.unfinished()), (3, 0));
}

#[test]
fn an_image_of_the_library_is_restored_by_its_name() {
    need(&["blkid"]);
    let place = Place::new();
    let source = place.blank("source.img", 5);
    File::options().write(true).open(&source).and_then(|file| file.write_all_at(&[7; 1000], 3 << 20)).expect("write");
    place.ezio_ok(&["capture", &source, "--name", "golden", "--whole", "--uncompressed"]);
    let torrent = place.image("golden").join("image.torrent").display().to_string();
    for what in ["golden", &torrent] {
        let target = place.text("target.img");
        place.ezio_ok(&["restore", what, &target]);
        assert!(fs::read(&target).expect("the target") == fs::read(&source).expect("the source"), "{what}");
        fs::remove_file(&target).expect("gone");
    }
    let refused = place.ezio_refuses(&["restore", "silver", &place.text("target.img")]);
    assert!(refused.contains("no torrent silver") && refused.contains("there is no image"), "{refused}");

    // Nobody else has what is damaged here, so it is not waited for.
    let content = File::options().write(true).open(place.image("golden").join("content")).expect("the content");
    content.write_all_at(&[1], 4 << 20).expect("write");
    let target = place.text("target.img");
    let refused = place.ezio_refuses(&["restore", "golden", &target]);
    assert!(refused.contains("its hash is wrong") && refused.contains("is not complete"), "{refused}");
}

#[test]
fn a_restore_for_programs_says_nothing_but_json() {
    need(&["blkid"]);
    let place = Place::new();
    let source = place.blank("source.img", 2);
    place.ezio_ok(&["capture", &source, "--name", "x", "--whole"]);
    let target = place.text("target.img");
    for (more, verified) in [(&[][..], "all"), (&["--no-verify", "--no-keep"], "table")] {
        let said = place.ezio_restore_says("x", &[&[target.as_str(), "--json"], more].concat());
        let lines: Vec<serde_json::Value> =
            said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
        let (last, earlier) = lines.split_last().expect("lines");
        assert!(earlier.iter().all(|line| line.get("verified").is_none()), "{said}");
        let len = 2 << 20;
        assert_eq!((&last["stage"], &last["verified"]), (&"done".into(), &verified.into()), "{said}");
        assert_eq!((&last["bytes_done"], &last["written"]), (&len.into(), &len.into()), "{said}");
        assert_eq!(last["target"], target, "{said}");
    }
}

#[test]
fn a_file_with_something_in_it_is_not_overwritten_unasked() {
    need(&["blkid"]);
    let place = Place::new();
    let junk = place.blank("junk.img", 2);
    place.ezio_ok(&["capture", &junk, "--name", "x", "--whole"]);
    fs::write(place.path("precious"), "precious").expect("write");
    let mut restore = command(env!("CARGO_BIN_EXE_ezio"));
    restore.arg("restore").arg(place.image("x").join("image.torrent")).arg(place.path("precious"));
    let output = restore.args(["--peer", "127.0.0.1:9"]).stdin(Stdio::null()).output().expect("ezio runs");
    assert!(!output.status.success() && text(&output).contains("--yes"), "{}", text(&output));
    assert_eq!(fs::read(place.path("precious")).expect("read"), b"precious");
}

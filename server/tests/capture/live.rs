//! Images without content, seeded from the disk they were captured from.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::tools::{Junk, Place, Running, command, need, run};

const MIB: u64 = 1 << 20;
/// Much longer than anything here takes, even on a slow, shared machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A GPT disk image of 32 MiB with junk and zeros in its partition.
fn disk(place: &Place) -> String {
    let disk = place.blank("disk.img", 32);
    run("sgdisk", &["-n", "1:2048:0", &disk]);
    let mut junk = vec![0; 5 << 20];
    Junk(8).fill(&mut junk);
    fs::write(place.path("junk"), &junk).expect("write");
    place.paste(&place.text("junk"), &disk, 3 * MIB);
    disk
}

#[test]
fn a_live_image_is_seeded_from_its_source() {
    need(&["sgdisk", "blkid"]);
    let place = Place::new();
    let disk = disk(&place);
    place.ezio_ok(&["capture", &disk, "--name", "copied"]);
    place.ezio_ok(&["capture", &disk, "--name", "live", "--live"]);
    assert!(!place.image("live").join("content").exists(), "nothing is copied");
    assert_eq!(place.meta("live").infohash, place.meta("copied").infohash, "the same torrent");

    let list = place.ezio_ok(&["image", "list"]);
    let line = list.lines().find(|line| line.starts_with("live")).expect("it is listed");
    assert!(line.ends_with(&format!("live from {disk}")), "{list}");
    assert_eq!(list.matches("live from").count(), 1, "{list}");
    assert!(place.ezio_ok(&["image", "show", "live"]).contains(&format!("it is read from {disk}")));
    assert!(place.ezio_ok(&["image", "verify", "live"]).contains("live is good"));

    // Without a source, and with the one that it was captured from.
    for seeds_from in [&[][..], &[disk.as_str()]] {
        let deployed = place.deploy("live", seeds_from, 32 * MIB);
        assert!(fs::read(&deployed).expect("read") == fs::read(&disk).expect("read"), "every byte of the disk");
    }
    place.ezio_ok(&["capture", &disk, "--name", "lean", "--live", "--skip-zeros"]);
    assert!(place.meta("lean").geometry.content_len() < 8 * MIB);
    let deployed = place.deploy("lean", &[], 32 * MIB);
    assert!(fs::read(&deployed).expect("read") == fs::read(&disk).expect("read"), "every byte of the disk");
    place.ezio_ok(&["image", "export", "lean", "--raw", &place.text("exported")]);
    assert!(fs::read(place.path("exported")).expect("read") == fs::read(&disk).expect("read"), "zeros and all");
    place.ezio_ok(&["image", "remove", "live"]);
    assert!(fs::exists(&disk).expect("a path"), "the source is nobody's to delete");
}

#[test]
fn a_source_that_is_gone_or_another_is_refused_in_words() {
    need(&["sgdisk", "blkid"]);
    let place = Place::new();
    let disk = disk(&place);
    let said = place.ezio_refuses(&["capture", &disk, "--name", "live", "--live", "--rescue"]);
    assert!(said.contains("cannot be used with"), "{said}");
    place.ezio_ok(&["capture", &disk, "--name", "live", "--live"]);
    let torrent = place.image("live").join("image.torrent");
    let seed = || {
        let output = command(env!("CARGO_BIN_EXE_ezio")).arg("seed").arg(&torrent).output().expect("ezio runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };

    // Of an earlier version, or of another machine whose disk has moved here with its library.
    let manifest = place.image("live").join("manifest.json");
    let own = fs::read_to_string(&manifest).expect("read");
    fs::write(&manifest, own.replacen("\"host\": \"", "\"host\": \"0", 1)).expect("written");
    assert!(place.ezio_refuses(&["image", "verify", "live"]).contains("`ezio image adopt` compares it"));
    let said = place.ezio_ok(&["image", "adopt", "live"]);
    assert!(said.contains("is good") && said.contains("adopted live"), "{said}");
    place.ezio_ok(&["image", "verify", "live"]);
    assert_eq!(fs::read_to_string(&manifest).expect("read"), own);

    // Changed: it can be seeded, since only whoever receives a piece can tell; verify names what is wrong.
    place.paste(&place.text("junk"), &disk, 10 * MIB);
    let said = place.ezio_refuses(&["image", "verify", "live"]);
    assert!(said.contains("has a source that has changed") && said.contains("capture it again"), "{said}");

    // A manifest of another machine, or one that names another file of this one.
    let secret = place.blank("secret.img", 32);
    for forged in [own.replace(&disk, &secret), own.replace("\"host\": \"", "\"host\": \"0")] {
        assert_ne!(forged, own);
        fs::write(&manifest, forged).expect("written");
        let said = seed();
        assert!(said.contains("not captured on this machine") && said.contains("ezio image adopt"), "{said}");
    }
    fs::write(&manifest, own).expect("written");

    fs::File::options().write(true).open(&disk).and_then(|file| file.set_len(31 << 20)).expect("cut");
    let said = seed();
    assert!(said.contains("has 32505856 bytes, it had 33554432 when it was captured"), "{said}");
    fs::remove_file(&disk).expect("removed");
    let gone = format!("cannot open {disk}, the source of this live image: attach the disk again");
    assert!(seed().contains(&gone));
    assert!(place.ezio_refuses(&["image", "verify", "live"]).contains(&gone));
    assert!(place.ezio_ok(&["image", "list"]).contains("live from"), "it is still known");
    let stray = place.text("stray.torrent");
    fs::copy(&torrent, &stray).expect("copied");
    let output = command(env!("CARGO_BIN_EXE_ezio")).args(["seed", &stray]).output().expect("ezio runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("say where its bytes are"));
}

#[test]
fn the_server_seeds_a_live_image_once_its_source_is_there() {
    need(&["sgdisk", "blkid"]);
    let place = Place::new();
    let disk = disk(&place);
    place.ezio_ok(&["capture", &disk, "--name", "live", "--live"]);
    fs::rename(&disk, place.path("unplugged")).expect("moved");
    let boot = place.path("boot");
    fs::create_dir(&boot).expect("a directory");
    for name in ["vmlinuz", "initrd.img", "undionly.kpxe", "snponly.efi"] {
        fs::write(boot.join(name), "not booted here").expect("write");
    }
    // Bound and not listening: nobody else is given it, and the server, which asks for it, is let in.
    let http = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    http.set_reuse_address(true).expect("shared");
    http.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
    let port = http.local_addr().ok().and_then(|addr| addr.as_socket()).expect("where it is bound").port();
    let mut serve = place.ezio(&["serve", "--dhcp", "off", "--tftp", "false", "--address", "127.0.0.1"]);
    serve.args(["--http-port", &port.to_string()]).arg("--boot-dir").arg(&boot);
    serve.stdout(Stdio::null()).stderr(Stdio::null());
    let _serve = Running(serve.spawn().expect("ezio runs"));
    let status = |wanted: &dyn Fn(&Value) -> bool| {
        let started = Instant::now();
        loop {
            let output = place.ezio(&["status", "--json"]).output().expect("ezio runs");
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if wanted(&status) {
                return status;
            }
            assert!(started.elapsed() < DEADLINE, "it never came about: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    status(&|status| status.is_object());
    place.ezio_ok(&["arm", "live"]);
    let shown = status(&|status| status["images"][0]["error"].is_string());
    let error = shown["images"][0]["error"].as_str().expect("words").to_owned();
    assert!(error.contains("the source of this live image: attach the disk again"), "{error}");

    fs::rename(place.path("unplugged"), &disk).expect("moved back");
    let shown = status(&|status| status["images"][0]["port"].as_u64().is_some_and(|port| port > 0));
    assert!(shown["images"][0]["error"].is_null(), "{shown}");
    let target = place.text("restored");
    let torrent = place.image("live").join("image.torrent");
    let tracker = format!("http://127.0.0.1:{port}/announce");
    let mut restore = command(env!("CARGO_BIN_EXE_ezio"));
    let output =
        restore.arg("restore").arg(torrent).args([&target, "--tracker", &tracker]).output().expect("ezio runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(&target).expect("read") == fs::read(&disk).expect("read"), "every byte of the disk");
}

#[test]
fn nothing_is_written_over_a_library_or_the_source_of_a_live_image() {
    need(&["sgdisk", "blkid", "losetup"]);
    let place = Place::new();
    let disk = disk(&place);
    place.ezio_ok(&["capture", &disk, "--name", "copied"]);
    place.ezio_ok(&["capture", &disk, "--name", "live", "--live"]);
    let before = fs::read(&disk).expect("read");
    let refuses = |args: &[&str], why: &str| {
        let said = place.ezio_refuses(args);
        assert!(said.contains(why) && (said.contains("was not touched") || said.contains("was not written")), "{said}");
    };
    let (link, content) = (place.text("link.img"), place.stored("copied"));
    fs::hard_link(&disk, &link).expect("linked");
    let found = run("losetup", &["--find", "--show", "--partscan", &disk]);
    let over = found.trim();
    let checks = || {
        let partition = format!("{over}p1");
        let is_there = fs::exists(&partition).expect("a path");
        for target in [disk.as_str(), &link, over, &partition].into_iter().take(if is_there { 4 } else { 3 }) {
            refuses(&["restore", "copied", target, "--yes"], "the live image \"live\" is read");
        }
    };
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(checks));
    run("losetup", &["--detach", over]);
    checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));

    let inside = [content.clone(), place.library().join("state/new.img"), place.library().join("new.img")];
    for target in inside.iter().map(|path| path.to_str().expect("UTF-8")) {
        refuses(&["restore", "copied", target, "--yes"], "belongs to the library");
        refuses(&["image", "export", "copied", "--raw", target, "--force"], "belongs to the library");
        refuses(&["image", "export", "copied", "--torrent", target, "--force"], "belongs to the library");
    }
    refuses(&["image", "export", "copied", "--raw", &link, "--force"], "the live image \"live\" is read");

    let used = place.blank("used.img", 32);
    let mut writer = command("sh");
    writer
        .args(["-c", "exec 3>>\"$1\"; echo open; read line", "sh", &used])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut writer = Running(writer.spawn().expect("a shell"));
    let mut line = String::new();
    let out = writer.0.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("it is open");
    refuses(&["restore", "copied", &used, "--yes"], "is open for writing in sh");
    drop(writer);
    place.ezio_restore("copied", &used);
    assert!(fs::read(&disk).expect("read") == before, "not one byte of the source");
    for name in ["copied", "live"] {
        assert!(place.ezio_ok(&["image", "verify", name]).contains("is good"));
    }
}

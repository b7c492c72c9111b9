//! Every file in which the server keeps its state, with every fault that it can have: docs/state-faults.md.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::lan::{Lan, Station, in_namespace};
use crate::library::add_image;
use crate::process::{Server, boot_dir, ezio, ezio_ok, library, token};

const DONE: &str = "52:54:00:77:00:01";
const HELD: &str = "52:54:00:77:00:02";
const WAITING: &str = "52:54:00:77:00:03";

const HEAD: &str = "# Faults of the server's own disk\n\n\
    What the server does when a file of its state (`LIBRARY/state`) has a fault, or the disk below it. Before each fault an image is\n\
    armed for every machine, one machine is done, one is held back, and one waits; after it the server is started again. No row may\n\
    image the first two. The test `state_faults` makes this page and compares it: `EZIO_WRITE_DOCS=1` writes it.\n\n\
    | file | fault | the server | machine that is done | machine held back | machine that waits |\n|---|---|---|---|---|---|\n";

/// A fault of a file.
const FAULTS: [&str; 5] =
    ["gone", "cut to half", "empty", "one bit flipped", "cannot be read (EIO, by a link to itself)"];

fn inflict(path: &Path, fault: &str) {
    let bytes = fs::read(path).unwrap_or_default();
    match fault {
        "gone" => fs::remove_file(path).expect("removed"),
        "cut to half" => fs::write(path, &bytes[..bytes.len() / 2]).expect("written"),
        "empty" => fs::write(path, "").expect("written"),
        "one bit flipped" => {
            // In the record of a machine if it is there, else in the middle of the text.
            let needle = b"\"done\"";
            let found = bytes.windows(needle.len()).position(|window| window == needle);
            let text = bytes.iter().rposition(|byte| byte.is_ascii_alphanumeric()).unwrap_or(0);
            let at = found.map_or(text, |found| found + 1);
            let file = OpenOptions::new().write(true).open(path).expect("opens");
            file.write_all_at(&[bytes.get(at).copied().unwrap_or(0) ^ 4], at as u64).expect("written");
        }
        _ => {
            fs::remove_file(path).expect("removed");
            symlink(path.file_name().expect("a name"), path).expect("linked");
        }
    }
}

/// Armed, with a machine that is done, one that is held back, and one that waits; the server has ended.
fn prepare(lan: &Lan, client: &Station) {
    let state = library(lan).join("state");
    let _ = fs::remove_dir_all(&state);
    fs::create_dir_all(&state).expect("made");
    ezio_ok(lan, &["arm", "debian"]);
    ezio_ok(lan, &["disarm", "--mac", HELD]);
    let server = Server::start(lan, &[]);
    let token = token(client, DONE);
    let status: serde_json::Value = serde_json::from_str(&ezio_ok(lan, &["status", "--json"])).expect("JSON");
    let deployment = status["armed"][0]["deployment"].as_str().expect("an id").to_owned();
    let report = format!(r#"{{"mac":"{DONE}","stage":"done","deployment":"{deployment}","token":"{token}"}}"#);
    assert_eq!(client.ask("/report", &["-d", &report]).0, 204);
    assert_eq!(server.terminate(), Some(0));
}

/// What a machine would boot.
fn boots(client: &Station, mac: &str) -> String {
    let script = client.get(&format!("/boot.ipxe?mac={mac}"));
    let line = script.lines().find(|line| line.starts_with("echo EZIO")).unwrap_or_default().to_owned();
    match line.split_once("own disk: ") {
        Some((_, why)) => format!("its own disk: {why}"),
        None if line.contains("gets image") => "the image".into(),
        None => line,
    }
}

fn row(lan: &Lan, client: &Station, file: &str, fault: &str, table: &mut String) {
    let boot = boot_dir(lan);
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Server::start(lan, &[])));
    let Ok(server) = started else {
        let out = ezio(lan, &["serve", "--boot-dir", boot.to_str().expect("a path")]);
        let said = String::from_utf8_lossy(&out.stderr).replace(&library(lan).display().to_string(), "LIBRARY");
        let said = said.lines().filter(|line| !line.starts_with('[')).collect::<Vec<_>>().join(" ");
        let said = said.trim().trim_start_matches("ezio: ");
        writeln!(table, "| `{file}` | {fault} | does not start: “{said}” | - | - | - |").expect("a string");
        return;
    };
    let [done, held, waiting] = [DONE, HELD, WAITING].map(|mac| boots(client, mac));
    assert!(done.starts_with("its own disk"), "{file} {fault}: a machine that is done boots {done}");
    assert!(held.starts_with("its own disk"), "{file} {fault}: a machine that is held back boots {held}");
    let status: serde_json::Value = serde_json::from_str(&ezio_ok(lan, &["status", "--json"])).expect("JSON");
    let is_suspended = status["suspended"].is_string();
    if is_suspended {
        assert!(ezio_ok(lan, &["status"]).contains("ezio resume"), "it says what to do");
    }
    let is_armed =
        status["armed"].as_array().is_some_and(|orders| orders.iter().any(|order| order["image"].is_string()));
    let says = match (is_suspended, is_armed) {
        (true, _) => "suspends the orders until `ezio resume`, and says why",
        (false, false) => "takes every order back, and says why in its log",
        (false, true) => "serves as before",
    };
    assert!(is_suspended || is_armed || server.log().contains("everything is stopped"), "{}", server.log());
    writeln!(table, "| `{file}` | {fault} | {says} | {done} | {held} | {waiting} |").expect("a string");
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn no_fault_of_the_state_images_a_machine_that_must_not_be() {
    in_namespace("state_faults::no_fault_of_the_state_images_a_machine_that_must_not_be", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        let state = library(&lan).join("state");
        let mut table = HEAD.to_owned();
        for file in ["room.sqlite", "room.witness", "stops", "obeyed", "reserve", "serve.json", "serve.lock"] {
            for fault in FAULTS {
                prepare(&lan, &client);
                let path = state.join(file);
                if !path.exists() {
                    // It is there only while a server runs: one that was killed leaves it.
                    fs::write(&path, "{\"url\":\"http://10.9.0.1\",\"pid\":1}\n").expect("written");
                }
                inflict(&path, fault);
                row(&lan, &client, file, fault, &mut table);
                let _ = fs::remove_file(&path);
            }
        }
        // The disk itself.
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
        prepare(&lan, &client);
        let copy = lan.dir.path().join("copy");
        assert!(Command::new("cp").arg("-a").arg(&state).arg(&copy).status().expect("cp").success());
        mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).expect("mounted");
        assert!(Command::new("cp").arg("-a").arg(copy.join(".")).arg(&state).status().expect("cp").success());
        let fill = format!("cat /dev/zero >{}", state.join("fill").display());
        assert!(!Command::new("sh").args(["-c", &fill]).output().expect("sh").status.success(), "the disk is full");
        row(&lan, &client, "(all)", "no space left (ENOSPC)", &mut table);
        fs::remove_file(state.join("fill")).expect("removed");
        mount(Some(&state), &state, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bound");
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_BIND;
        mount(None::<&str>, &state, None::<&str>, flags, None::<&str>).expect("read-only");
        row(&lan, &client, "(all)", "read-only (EROFS)", &mut table);

        let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/state-faults.md");
        if std::env::var_os("EZIO_WRITE_DOCS").is_some() {
            fs::write(&page, &table).expect("written");
        }
        let known = fs::read_to_string(&page).unwrap_or_default();
        assert_eq!(known, table, "docs/state-faults.md is not what was seen");
    });
}

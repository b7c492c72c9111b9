//! What the server remembers is lost, or cannot be written: nothing is imaged again, nothing is acknowledged that is not
//! kept, and what must stop stops.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

use crate::lan::{Lan, NO_SUCH_USER, Station, in_namespace};
use crate::library::add_image;
use crate::mistakes::serve_fails;
use crate::process::{Server, boot_dir, eventually, ezio, ezio_fails, ezio_ok, file, library, token};

const MAC: &str = "52:54:00:77:00:01";
const OTHER: &str = "52:54:00:77:00:02";
const CONF: &str = "ezio.conf/01-52-54-00-77-00-01";

fn script(client: &Station) -> String {
    client.get(&format!("/boot.ipxe?mac={MAC}"))
}

fn gets_image(client: &Station) -> bool {
    script(client).contains("gets image")
}

fn deployment(lan: &Lan) -> String {
    let status: serde_json::Value = serde_json::from_str(&ezio_ok(lan, &["status", "--json"])).expect("JSON");
    status["armed"][0]["deployment"].as_str().expect("an id").to_owned()
}

/// One machine that is armed and reports that it is done; the status of the answer.
fn report_done(lan: &Lan, client: &Station, token: &str) -> u16 {
    let deployment = deployment(lan);
    let report =
        format!(r#"{{"mac":"{MAC}","stage":"done","deployment":"{deployment}","image":"debian","token":"{token}"}}"#);
    client.ask("/report", &["-d", &report]).0
}

fn database(lan: &Lan) -> PathBuf {
    library(lan).join("state/room.sqlite")
}

/// Puts everything that was written into the one file, as the last process that closes it does.
fn only_file(path: &Path) -> Vec<u8> {
    for suffix in ["-wal", "-shm"] {
        let beside = PathBuf::from(format!("{}{suffix}", path.display()));
        assert!(!beside.exists() || fs::metadata(&beside).is_ok_and(|facts| facts.len() == 0), "{beside:?}");
    }
    fs::read(path).expect("a database")
}

#[test]
fn a_lost_store_images_no_machine_again_before_a_person_says_so() {
    in_namespace("state::a_lost_store_images_no_machine_again_before_a_person_says_so", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        let path = database(&lan);
        let flip = |needle: &[u8]| {
            let bytes = only_file(&path);
            let found = bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
            let found: Vec<usize> = found.map(|(at, _)| at).collect();
            assert!(!found.is_empty(), "{}", String::from_utf8_lossy(needle));
            let file = OpenOptions::new().write(true).open(&path).expect("opens");
            // Pages that are free have old copies.
            found.iter().for_each(|at| file.write_all_at(&[bytes[*at] ^ 4], *at as u64).expect("written"));
        };
        let yesterday = lan.dir.path().join("yesterday");
        let lose: [(&str, &dyn Fn()); 8] = [
            ("gone", &|| fs::remove_file(&path).expect("removed")),
            ("cut", &|| {
                let bytes = only_file(&path);
                fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
            }),
            ("empty", &|| fs::write(&path, "").expect("written")),
            ("garbage", &|| fs::write(&path, [0x5a; 40_000]).expect("written")),
            ("a flipped bit in the record of a machine", &|| flip(b"\"stage\":\"done\"")),
            ("a flipped bit in an order", &|| flip(b"debian\",\"deployment")),
            ("of before it was done", &|| {
                fs::copy(&yesterday, &path).expect("copied");
            }),
            ("without its witness", &|| {
                fs::write(library(&lan).join("state/room.witness"), "x").expect("written");
            }),
        ];
        for (name, lose) in lose {
            ezio_ok(&lan, &["arm", "debian"]);
            fs::copy(&path, &yesterday).expect("copied");
            let server = Server::start(&lan, &[]);
            eventually("armed", || gets_image(&client));
            let token = token(&client, MAC);
            assert_eq!(report_done(&lan, &client, &token), 204, "{name}");
            assert!(script(&client).contains("it has its image"), "{name}");
            assert_eq!(client.tftp(CONF), Err(NO_SUCH_USER), "{name}: it is done, whichever way it asks");
            assert_eq!(server.terminate(), Some(0));
            lose();
            let server = Server::start(&lan, &[]);
            assert!(!gets_image(&client), "{name}: {}", script(&client));
            assert!(client.tftp(CONF).is_err(), "{name}");
            let status = ezio_ok(&lan, &["status"]);
            assert!(status.contains("SUSPENDED") && status.contains("ezio resume"), "{name}: {status}");
            assert!(server.log().contains("ezio resume"), "{name}: {}", server.log());
            // It stays so, also when the server starts again with the store that it has begun since, and with new orders:
            // machines that were held back are not any more.
            assert_eq!(server.terminate(), Some(0));
            let server = Server::start(&lan, &[]);
            let said = ezio_ok(&lan, &["arm", "debian"]);
            assert!(said.contains("SUSPENDED, no machine gets an order"), "{name}: {said}");
            assert!(script(&client).contains("has lost its record"), "{name}: {}", script(&client));
            assert_eq!(client.tftp(CONF), Err(NO_SUCH_USER), "{name}");
            let said = ezio_ok(&lan, &["resume"]);
            assert!(said.contains("resumed, although") && said.contains("debian"), "{name}: {said}");
            ezio_ok(&lan, &["arm", "debian", "--again"]);
            assert!(gets_image(&client), "{name}: a person said so");
            ezio_ok(&lan, &["disarm"]);
            assert_eq!(server.terminate(), Some(0));
        }
    });
}

#[test]
fn a_store_that_cannot_be_read_is_neither_guessed_at_nor_written_over() {
    in_namespace("state::a_store_that_cannot_be_read_is_neither_guessed_at_nor_written_over", &[], |lan| {
        add_image(&lan, "debian", 300_000);
        ezio_ok(&lan, &["arm", "debian"]);
        // A link to itself fails as a bad sector does: not because of what is in the file.
        let path = database(&lan);
        fs::remove_file(&path).expect("removed");
        symlink(&path, &path).expect("linked");
        let error = serve_fails(&lan, &[]);
        assert!(error.contains("reading what the server remembers") && error.contains("room.sqlite"), "{error}");
        for arguments in [&["arm", "debian"][..], &["resume"]] {
            let error = ezio_fails(&lan, arguments);
            assert!(error.contains("room.sqlite"), "{arguments:?}: {error}");
            assert!(fs::symlink_metadata(&path).expect("there").is_symlink(), "{arguments:?}");
        }
        let out = ezio(&lan, &["disarm"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "what stops everything needs to read nothing: {said}");
        assert!(said.contains("is stopped beside them"), "{said}");
    });
}

#[test]
fn the_database_under_a_running_server_is_watched() {
    in_namespace("state::the_database_under_a_running_server_is_watched", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "debian"]);
        let _server = Server::start(&lan, &[]);
        eventually("armed", || gets_image(&client));
        let token = token(&client, MAC);
        let path = database(&lan);
        let aside = lan.dir.path().join("aside");
        fs::rename(&path, &aside).expect("renamed");
        assert!(!gets_image(&client), "it would not see a `disarm` any more");
        assert!(ezio_ok(&lan, &["status"]).contains("was removed or replaced while the server runs"));
        assert_eq!(report_done(&lan, &client, &token), 503, "it would be lost");
        fs::rename(&aside, &path).expect("renamed");
        let other = format!("/boot.ipxe?mac={OTHER}");
        eventually("armed again", || client.get(&other).contains("gets image"));
        eventually("kept", || report_done(&lan, &client, &token) == 204);
        eventually("no more trouble", || !ezio_ok(&lan, &["status"]).contains("TROUBLE"));
    });
}

/// Mounts a small file system over a directory of this test, with what is in it.
fn mount_small(dir: &Path, options: &str) {
    let before = tempfile::tempdir().expect("a directory");
    let copy = |from: &Path, to: &Path| {
        let out = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).output().expect("cp");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    copy(dir, before.path());
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options)).expect("mounted");
    copy(before.path(), dir);
}

#[test]
fn on_a_full_or_read_only_disk_nothing_is_acknowledged_and_everything_can_be_stopped() {
    let name = "state::on_a_full_or_read_only_disk_nothing_is_acknowledged_and_everything_can_be_stopped";
    in_namespace(name, &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        let library = library(&lan);
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
        mount_small(&library, "size=4m");
        ezio_ok(&lan, &["arm", "debian"]);
        let server = Server::start(&lan, &[]);
        eventually("armed", || gets_image(&client));
        let id = deployment(&lan);
        let tokens: Vec<String> =
            (1..=30u8).map(|last| token(&client, &format!("52:54:00:77:01:{last:02x}"))).collect();

        // Full: writes past what is there fail.
        let fill = library.join("fill");
        let zeros =
            std::process::Command::new("sh").arg("-c").arg(format!("cat /dev/zero >{}", fill.display())).output();
        assert!(!zeros.expect("sh").status.success(), "the disk is full");
        let mut answers = Vec::new();
        for (last, token) in (1..=30u8).zip(&tokens) {
            let report = format!(
                r#"{{"mac":"52:54:00:77:01:{last:02x}","stage":"done","deployment":"{id}","token":"{token}","error":"{}"}}"#,
                "x".repeat(7500)
            );
            answers.push((last, client.ask("/report", &["-d", &report]).0));
        }
        assert!(answers.iter().any(|(_, status)| *status == 503), "{answers:?}");
        assert!(ezio_ok(&lan, &["status"]).contains("TROUBLE: what machines report cannot be kept"));
        let said = ezio_ok(&lan, &["disarm", "--mac", MAC]);
        assert!(said.contains("disarmed"), "{said}");
        assert!(!gets_image(&client), "the server has obeyed");
        assert!(client.get(&format!("/boot.ipxe?mac={OTHER}")).contains("gets image"), "only that machine");

        // As after a power cut, with the disk still full: whatever the server does, it images no machine that must not be.
        server.kill();
        fs::remove_file(&fill).expect("removed");
        let server = Server::start(&lan, &[]);
        assert!(!gets_image(&client), "held back: {}", script(&client));
        let lost: Vec<u8> = answers
            .iter()
            .filter(|(last, status)| {
                *status == 204
                    && client.get(&format!("/boot.ipxe?mac=52:54:00:77:01:{last:02x}")).contains("gets image")
            })
            .map(|(last, _)| *last)
            .collect();
        assert!(lost.is_empty(), "acknowledged and not kept: {lost:?}");

        // Read-only.
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        ezio_ok(&lan, &["resume", "--mac", MAC]);
        eventually("armed", || gets_image(&client));
        // What is open for writing keeps a file system writable; bound over itself, it is read-only for all who open anew.
        mount(Some(&library), &library, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bound");
        mount(None::<&str>, &library, None::<&str>, flags | MsFlags::MS_BIND, None::<&str>).expect("read-only");
        let out = ezio(&lan, &["disarm"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        assert!(said.contains("holds until this host restarts"), "{said}");
        assert!(!gets_image(&client));
        assert!(client.get(&format!("/boot.ipxe?mac={OTHER}")).contains("boots from its own disk"));
        assert_eq!(server.terminate(), Some(0));
    });
}

#[test]
fn disarm_succeeds_only_once_the_server_has_obeyed() {
    in_namespace("state::disarm_succeeds_only_once_the_server_has_obeyed", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "debian"]);
        // Without HTTP it says on disk what it obeys.
        let server = Server::start(&lan, &["--http", "false"]);
        assert!(client.tftp(CONF).is_ok());
        ezio_ok(&lan, &["disarm"]);
        assert!(client.tftp(CONF).is_err());
        ezio_ok(&lan, &["arm", "debian"]);
        assert!(client.tftp(CONF).is_ok());
        server.signal(Signal::SIGSTOP);
        let error = ezio_fails(&lan, &["disarm"]);
        assert!(error.contains("has not confirmed it") && error.contains("kill -9"), "{error}");
        server.signal(Signal::SIGCONT);
        assert!(client.tftp(CONF).is_err(), "it reads what is written before it answers");
        assert_eq!(server.terminate(), Some(0));
    });
}

/// Posts a report over a connection of its own; whether it was acknowledged.
fn post(report: &str) -> bool {
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((crate::lan::SERVER, 80))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let head = format!(
            "POST /report HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            report.len()
        );
        stream.write_all(&[head.as_bytes(), report.as_bytes()].concat())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    exchange().is_ok_and(|answer| answer.starts_with("HTTP/1.1 204"))
}

/// `EZIO_KILLS` sets how often.
#[test]
fn killed_at_any_moment_it_forgets_nothing_that_it_acknowledged() {
    in_namespace("state::killed_at_any_moment_it_forgets_nothing_that_it_acknowledged", &["curl"], |lan| {
        const CLIENTS: u8 = 6;
        let kills: u32 = std::env::var("EZIO_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "debian"]);
        let mut server = Server::start(&lan, &[]);
        let deployment = deployment(&lan);
        let machines: Vec<(String, String)> = (0..CLIENTS)
            .map(|number| format!("52:54:00:77:02:{number:02x}"))
            .map(|mac| (token(&client, &mac), mac))
            .map(|(token, mac)| (mac, token))
            .collect();
        let mut acknowledged = vec![0u32; usize::from(CLIENTS)];
        for kill in 0..kills {
            // Each time another stage, so that each report is one that has to be kept.
            let stage = format!("step-{kill}");
            let last = kill + 1 == kills;
            let reports: Vec<String> = machines
                .iter()
                .map(|(mac, token)| {
                    let stage = if last { "done" } else { stage.as_str() };
                    format!(r#"{{"mac":"{mac}","stage":"{stage}","deployment":"{deployment}","token":"{token}","kept":{kill}}}"#)
                })
                .collect();
            let taken = std::thread::scope(|scope| {
                let posting = scope.spawn(|| {
                    client.run_in(move || {
                        let threads: Vec<_> = reports.into_iter().map(|report| move || post(&report)).collect();
                        threads.into_iter().map(|post| post()).collect::<Vec<bool>>()
                    })
                });
                std::thread::sleep(Duration::from_micros(u64::from(rand::random::<u16>())));
                if !last {
                    server.signal(Signal::SIGKILL);
                }
                posting.join().expect("no panic")
            });
            if !last {
                server.kill();
                server = Server::start(&lan, &[]);
            }
            let status: serde_json::Value = serde_json::from_str(&ezio_ok(&lan, &["status", "--json"])).expect("JSON");
            for (number, is_taken) in taken.into_iter().enumerate().filter(|(_, is_taken)| *is_taken) {
                acknowledged[number] += u32::from(is_taken);
                let mac = &machines[number].0;
                let rows = status["machines"].as_array().expect("a list");
                let row = rows.iter().find(|row| row["mac"] == mac.as_str()).expect("it is known");
                assert_eq!(row["report"]["kept"], kill, "{mac}: acknowledged before kill {kill}, and forgotten");
            }
        }
        println!("{kills} kills, {} reports acknowledged, none lost", acknowledged.iter().sum::<u32>());
        for (mac, _) in &machines {
            assert!(client.get(&format!("/boot.ipxe?mac={mac}")).contains("it has its image"));
        }
        assert_eq!(server.terminate(), Some(0));
    });
}

/// Fills the file system of a directory; gives the file that does.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("fill");
    let out = std::process::Command::new("sh").args(["-c", &format!("cat /dev/zero >>{}", path.display())]).output();
    assert!(!out.expect("sh").status.success(), "the disk is full");
    path
}

fn read_only(dir: &Path) {
    mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bound");
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_BIND;
    mount(None::<&str>, dir, None::<&str>, flags, None::<&str>).expect("read-only");
}

#[test]
fn a_library_on_a_read_only_medium_is_served_and_steered_with_its_state_elsewhere() {
    let name = "state::a_library_on_a_read_only_medium_is_served_and_steered_with_its_state_elsewhere";
    in_namespace(name, &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
        // As it may be on a medium: images and nothing else.
        for dir in ["state", "tmp"] {
            let _ = fs::remove_dir_all(library(&lan).join(dir));
        }
        read_only(&library(&lan));
        let boot = boot_dir(&lan);
        let boot = boot.to_str().expect("a path");
        let refusal = ezio_fails(&lan, &["serve", "--boot-dir", boot]);
        assert!(refusal.contains("read-only") && refusal.contains("--state DIR"), "{refusal}");

        let state = lan.dir.path().join("elsewhere");
        let state = state.to_str().expect("a path");
        // Before there is a server, only a flag says where.
        ezio_ok(&lan, &["arm", "debian", "--state", state]);
        let server = Server::start(&lan, &["--state", state]);
        eventually("armed", || gets_image(&client));
        let second = ezio_fails(&lan, &["serve", "--boot-dir", boot, "--state", &format!("{state}-2")]);
        assert!(second.contains("runs on the library") && second.contains("with its state elsewhere"), "{second}");
        let token = token(&client, MAC);
        assert_eq!(report_done(&lan, &client, &token), 204);
        // The other commands find it without being told.
        ezio_ok(&lan, &["disarm", "--mac", OTHER]);
        let other = format!("/boot.ipxe?mac={OTHER}");
        assert!(!client.get(&other).contains("gets image"), "held back");
        ezio_ok(&lan, &["resume", "--mac", OTHER]);
        assert!(client.get(&other).contains("gets image"));
        assert!(ezio_ok(&lan, &["arm", "debian", "--preview"]).contains("nothing was changed"));
        assert_eq!(server.terminate(), Some(0));

        let server = Server::start(&lan, &["--state", state]);
        assert!(!gets_image(&client) && client.get(&other).contains("gets image"), "nothing is forgotten");
        ezio_ok(&lan, &["disarm"]);
        assert!(!client.get(&other).contains("gets image"));
        assert_eq!(server.terminate(), Some(0));
        assert!(!library(&lan).join("state").exists());
    });
}

#[test]
fn a_server_with_its_state_elsewhere_keeps_the_images_that_machines_need() {
    let name = "state::a_server_with_its_state_elsewhere_keeps_the_images_that_machines_need";
    in_namespace(name, &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
        let state = lan.dir.path().join("elsewhere");
        let config = file(&lan, "ezio.toml", &format!("state = {:?}\n", state.to_str().expect("a path")));
        let server = Server::start(&lan, &["--config", &config]);
        ezio_ok(&lan, &["arm", "debian"]);
        assert!(ezio_fails(&lan, &["image", "remove", "debian"]).contains("is armed"));
        assert_eq!(server.terminate(), Some(0));
        assert!(ezio_fails(&lan, &["image", "remove", "debian"]).contains("is armed"), "also while it does not run");
        // With the notes gone, nothing is called done that the server does not obey.
        let server = Server::start(&lan, &["--config", &config]);
        let note = library(&lan).join("state-is-in");
        fs::remove_dir_all("/run/ezio").expect("there");
        let kept = fs::read(&note).expect("there");
        for cut in [&kept[..3], &[]] {
            fs::write(&note, cut).expect("written");
            let said = ezio_fails(&lan, &["disarm"]);
            assert!(said.contains("does not obey this") && said.contains("--state"), "{said}");
        }
        ezio_ok(&lan, &["disarm", "--state", state.to_str().expect("a path")]);
        assert_eq!(server.terminate(), Some(0));
        fs::write(&note, kept).expect("written");
        // A server that is told nothing has its state in the library, and so have the commands after it.
        let _server = Server::start(&lan, &[]);
        ezio_ok(&lan, &["image", "remove", "debian"]);
    });
}

#[test]
fn a_start_on_a_full_disk_serves_and_acknowledges_nothing_that_it_cannot_keep() {
    let name = "state::a_start_on_a_full_disk_serves_and_acknowledges_nothing_that_it_cannot_keep";
    in_namespace(name, &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
        let state = library(&lan).join("state");
        fs::create_dir_all(&state).expect("made");
        mount_small(&state, "size=4m");
        ezio_ok(&lan, &["arm", "debian"]);
        assert_eq!(Server::start(&lan, &[]).terminate(), Some(0));
        let full = fill(&state);
        let server = Server::start(&lan, &[]);
        assert!(server.log().contains("is on a full disk: its reserve is used"), "{}", server.log());
        assert!(gets_image(&client));
        let said = ezio_ok(&lan, &["status"]);
        assert!(said.contains("TROUBLE: the disk of ") && said.contains("full"), "{said}");
        let token = token(&client, MAC);
        // Others take what the reserve has left.
        fill(&state);
        assert_eq!(report_done(&lan, &client, &token), 503, "it would be lost");
        let other = format!("/boot.ipxe?mac={OTHER}");
        assert!(client.get(&other).contains("gets image"), "others are served");
        ezio_ok(&lan, &["disarm"]);
        assert!(!client.get(&other).contains("gets image"), "stopping needs no space");
        server.kill();
        // The reserve is gone now, and so is what the killed server had open.
        fs::remove_file(state.join("room.sqlite-shm")).expect("removed");
        fill(&state);
        let boot = boot_dir(&lan);
        let refusal = ezio_fails(&lan, &["serve", "--boot-dir", boot.to_str().expect("a path")]);
        let flat = refusal.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            flat.contains("is full, so that what the server remembers cannot be opened: free 1 MiB there"),
            "{refusal}"
        );
        fs::remove_file(full).expect("removed");
        let server = Server::start(&lan, &[]);
        assert!(!client.get(&other).contains("gets image"), "what was stopped stays stopped");
        assert!(!ezio_ok(&lan, &["status"]).contains("TROUBLE"), "the reserve is whole again");
        assert_eq!(server.terminate(), Some(0));
    });
}

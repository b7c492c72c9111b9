//! What the server remembers is lost, or cannot be written: nothing is imaged again, and nothing is acknowledged that is not kept.

use std::fs;

use crate::lan::{Lan, NO_SUCH_USER, Station, in_namespace};
use crate::library::add_image;
use crate::mistakes::serve_fails;
use crate::process::{Server, eventually, ezio, ezio_fails, ezio_ok, library};

const MAC: &str = "52:54:00:77:00:01";
const OTHER: &str = "52:54:00:77:00:02";
const CONF: &str = "ezio.conf/01-52-54-00-77-00-01";

fn script(client: &Station) -> String {
    client.get(&format!("/boot.ipxe?mac={MAC}"))
}

/// One machine that is armed and reports that it is done; the status of the answer.
fn report_done(lan: &Lan, client: &Station) -> u16 {
    let armed = fs::read_to_string(library(lan).join("state/armed.json")).expect("armed");
    let armed: serde_json::Value = serde_json::from_str(&armed).expect("JSON");
    let deployment = armed["orders"][0]["deployment"].as_str().expect("an id");
    let report = format!(r#"{{"mac":"{MAC}","stage":"done","deployment":"{deployment}","image":"debian"}}"#);
    client.ask("/report", &["-d", &report]).0
}

#[test]
fn a_lost_history_images_nobody_again_before_a_person_says_so() {
    in_namespace("state::a_lost_history_images_nobody_again_before_a_person_says_so", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        let fleet = library(&lan).join("state/fleet.json");
        let lose: [(&str, &dyn Fn()); 4] = [
            ("gone", &|| fs::remove_file(&fleet).expect("removed")),
            ("cut", &|| {
                let bytes = fs::read(&fleet).expect("read");
                fs::write(&fleet, &bytes[..bytes.len() / 2]).expect("written");
            }),
            ("empty", &|| fs::write(&fleet, "").expect("written")),
            ("not to be read", &|| {
                fs::remove_file(&fleet).expect("removed");
                fs::create_dir(&fleet).expect("made");
            }),
        ];
        for (name, lose) in lose {
            ezio_ok(&lan, &["arm", "debian"]);
            let server = Server::start(&lan, &[]);
            eventually("armed", || script(&client).contains("gets image"));
            assert_eq!(report_done(&lan, &client), 204, "{name}");
            assert!(script(&client).contains("it has its image"), "{name}");
            assert_eq!(client.tftp(CONF), Err(NO_SUCH_USER), "{name}: it is done, whichever way it asks");
            assert_eq!(server.terminate(), Some(0));
            lose();
            let server = Server::start(&lan, &[]);
            let said = script(&client);
            assert!(said.contains("has lost its record") && !said.contains("gets image"), "{name}: {said}");
            assert_eq!(client.tftp(CONF), Err(NO_SUCH_USER), "{name}");
            let status = ezio_ok(&lan, &["status"]);
            assert!(status.contains("SUSPENDED") && status.contains("ezio resume"), "{name}: {status}");
            assert!(server.log().contains("the record of finished machines is lost"), "{name}");
            // It stays so, also when the server starts again with the record that it has begun since.
            assert_eq!(server.terminate(), Some(0));
            let server = Server::start(&lan, &[]);
            assert!(script(&client).contains("has lost its record"), "{name}");
            let said = ezio_ok(&lan, &["resume"]);
            assert!(said.contains("resumed, although") && said.contains("debian"), "{name}: {said}");
            assert!(script(&client).contains("gets image"), "{name}: a person said so");
            ezio_ok(&lan, &["disarm"]);
            assert_eq!(server.terminate(), Some(0));
        }
        // Nothing armed, nothing to suspend.
        fs::remove_file(&fleet).expect("removed");
        let _server = Server::start(&lan, &[]);
        assert!(!ezio_ok(&lan, &["status"]).contains("SUSPENDED"));
        ezio_ok(&lan, &["arm", "debian"]);
        eventually("armed", || script(&client).contains("gets image"));
    });
}

#[test]
fn a_report_that_cannot_be_kept_is_not_acknowledged() {
    in_namespace("state::a_report_that_cannot_be_kept_is_not_acknowledged", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "debian"]);
        let _server = Server::start(&lan, &[]);
        eventually("armed", || script(&client).contains("gets image"));
        // A directory in the file's place: nothing can be renamed over it.
        let fleet = library(&lan).join("state/fleet.json");
        fs::remove_file(&fleet).expect("removed");
        fs::create_dir(&fleet).expect("made");
        assert_eq!(report_done(&lan, &client), 503);
        let status = ezio_ok(&lan, &["status"]);
        assert!(status.contains("TROUBLE: what machines report cannot be kept"), "{status}");
        fs::remove_dir(&fleet).expect("removed");
        eventually("kept", || report_done(&lan, &client) == 204);
        assert!(fs::read_to_string(&fleet).expect("kept").contains(MAC));
        eventually("no more trouble", || !ezio_ok(&lan, &["status"]).contains("TROUBLE"));
    });
}

#[test]
fn arming_says_what_is_suspended_and_a_new_order_for_everybody_ends_it() {
    in_namespace("state::arming_says_what_is_suspended_and_a_new_order_for_everybody_ends_it", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "debian"]);
        fs::remove_file(library(&lan).join("state/fleet.json")).expect("removed");
        let _server = Server::start(&lan, &[]);
        let said = ezio_ok(&lan, &["arm", "debian", "--mac", OTHER]);
        assert!(said.contains("SUSPENDED, no machine gets an order yet") && said.contains("ezio resume"), "{said}");
        assert!(script(&client).contains("has lost its record"));
        let said = ezio_ok(&lan, &["arm", "debian"]);
        assert!(!said.contains("SUSPENDED"), "{said}");
        assert!(script(&client).contains("gets image"), "no machine can be done with an order of this moment");
    });
}

#[test]
fn orders_that_cannot_be_read_are_neither_guessed_at_nor_written_over() {
    in_namespace("state::orders_that_cannot_be_read_are_neither_guessed_at_nor_written_over", &[], |lan| {
        add_image(&lan, "debian", 300_000);
        ezio_ok(&lan, &["arm", "debian"]);
        // A link to itself fails as a bad sector does: not because of what is in the file.
        let armed = library(&lan).join("state/armed.json");
        fs::remove_file(&armed).expect("removed");
        std::os::unix::fs::symlink(&armed, &armed).expect("linked");
        let error = serve_fails(&lan, &[]);
        assert!(error.contains("reading what is armed") && error.contains("armed.json"), "{error}");
        for arguments in [&["arm", "debian"][..], &["disarm", "--mac", MAC], &["resume"]] {
            let error = ezio_fails(&lan, arguments);
            assert!(error.contains("reading what is armed"), "{arguments:?}: {error}");
            assert!(fs::symlink_metadata(&armed).expect("there").is_symlink(), "{arguments:?}");
        }
        let out = ezio(&lan, &["disarm"]);
        assert!(out.status.success(), "what stops everything needs to read nothing");
        assert!(String::from_utf8_lossy(&out.stderr).contains("is deleted unread"));
        let _server = Server::start(&lan, &[]);
        assert!(ezio_ok(&lan, &["status"]).contains("nothing is armed"));
    });
}

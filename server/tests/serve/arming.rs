//! What arming changes, for whom, and that it survives.

use crate::lan::{Lan, NO_SUCH_USER, NOT_FOUND, SERVER, Station, in_namespace};
use crate::library::add_image;
use crate::packets::{self, file_of};
use crate::process::{Server, eventually, ezio_fails, ezio_ok, file};

const ONE: &str = "52:54:00:77:00:01";
const TWO: &str = "52:54:00:77:00:02";

fn script(client: &Station, mac: &str) -> String {
    client.get(&format!("/boot.ipxe?mac={mac}"))
}

fn boots_locally(client: &Station, mac: &str) -> bool {
    let script = script(client, mac);
    assert!(script.starts_with("#!ipxe\n"), "{script}");
    assert_ne!(script.contains("sanboot --no-describe --drive 0x80"), script.contains("kernel http"), "{script}");
    script.contains("sanboot")
}

fn conf(client: &Station, name: &str) -> Option<String> {
    match client.tftp(name) {
        Ok(text) => Some(text),
        Err(error) => {
            assert_eq!(error, NOT_FOUND, "TFTP error 1 for {name}");
            None
        }
    }
}

fn report(client: &Station, mac: &str, stage: &str, deployment: &str) {
    let json = format!(r#"{{"mac":"{mac}","stage":"{stage}","deployment":"{deployment}"}}"#);
    assert_eq!(client.ask("/report", &["-d", &json]).0, 204);
}

fn deployment(conf: &str) -> String {
    conf.lines().find_map(|line| line.strip_prefix("DEPLOYMENT=")).expect("a deployment").to_owned()
}

fn config(lan: &Lan) -> String {
    let text = format!(
        "kernel_args = \"console=ttyS0\"\nlinger = 7\n[groups.lab]\nmachines = [\"{TWO}\"]\nafter = \"halt\"\n"
    );
    file(lan, "ezio.toml", &text)
}

#[test]
fn arming_and_disarming_change_the_answers() {
    in_namespace("arming::arming_and_disarming_change_the_answers", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        add_image(&lan, "other", 200_000);
        let server = Server::start(&lan, &["--config", &config(&lan)]);
        let client = lan.station(9, true);
        let machine = lan.station(1, false);
        let offers =
            |name: &'static str, count| machine.run_in(move || packets::ask(&packets::firmware(name, 1), count));

        assert!(offers("ipxe-bios", 0).is_empty(), "nothing is armed, so the proxy is silent");
        assert!(boots_locally(&client, ONE));
        assert_eq!(conf(&client, "ezio.conf"), None);
        assert_eq!(conf(&client, "torrents/debian.torrent"), None);

        let said = ezio_ok(&lan, &["arm", "debian"]);
        assert!(said.contains("armed debian for every machine"), "{said}");
        eventually("the server notices", || !boots_locally(&client, ONE));
        let offer = &offers("ipxe-bios", 1)[0];
        assert_eq!(file_of(offer), format!("http://{SERVER}/boot.ipxe?mac=52-54-00-77-00-01"));
        assert!(offer.yiaddr().is_unspecified());
        assert_eq!(file_of(&offers("ovmf-pxe", 1)[0]), "snponly.efi");
        assert_eq!(file_of(&offers("rom-bios", 1)[0]), "undionly.kpxe");
        assert!(offers("dhclient", 0).is_empty(), "an installed system is none of the proxy's business");
        let text = script(&client, ONE);
        let kernel = format!(
            "kernel http://{SERVER}/boot/vmlinuz initrd=initrd.img ezio.server={SERVER} \
             BOOTIF=01-52-54-00-77-00-01 console=ttyS0 || kernel tftp://{SERVER}/vmlinuz"
        );
        assert!(text.contains(&kernel), "{text}");
        let general = conf(&client, "ezio.conf/default").expect("armed");
        assert_eq!(conf(&client, "ezio.conf").as_ref(), Some(&general));
        for line in [
            "TORRENT=torrents/debian.torrent",
            "IMAGE=debian",
            "TARGET=auto",
            "AFTER=reboot",
            "LINGER=7",
            &format!("TRACKER=http://{SERVER}/announce"),
            &format!("REPORT=http://{SERVER}/report"),
        ] {
            assert!(general.lines().any(|found| found == line), "{line} is not in {general}");
        }
        assert!(client.tftp("torrents/debian.torrent").is_ok());
        assert_eq!(conf(&client, "torrents/other.torrent"), None, "not armed");
        assert_eq!(conf(&client, "ezio.conf/01-52-54-00-77-00-01").as_ref(), Some(&general), "nothing of its own");
        let group = conf(&client, "ezio.conf/01-52-54-00-77-00-02").expect("its group halts");
        assert!(group.contains("AFTER=halt\n"), "{group}");

        ezio_ok(&lan, &["arm", "other", "--group", "lab", "--target", "serial=X", "--linger", "0"]);
        eventually("the group has its image", || script(&client, TWO).contains("gets image other"));
        assert!(script(&client, ONE).contains("gets image debian"));
        let group = conf(&client, "ezio.conf/01-52-54-00-77-00-02").expect("armed");
        assert!(group.contains("TARGET=serial=X\n") && group.contains("LINGER=0\n"), "{group}");

        ezio_ok(&lan, &["disarm", "--mac", ONE]);
        eventually("one machine is held back", || boots_locally(&client, ONE));
        // It asks for its own name first, as every machine does, is told that there is nothing for it, and would not find
        // everybody's if it went on.
        let held = lan.station(8, true);
        assert_eq!(held.tftp("ezio.conf/01-52-54-00-77-00-01"), Err(NO_SUCH_USER));
        assert_eq!(conf(&held, "ezio.conf/default"), None);
        assert_eq!(conf(&held, "ezio.conf"), None);

        ezio_ok(&lan, &["disarm"]);
        eventually("nobody is armed", || boots_locally(&client, TWO));
        assert!(offers("ipxe-bios", 0).is_empty());
        assert_eq!(conf(&client, "ezio.conf/default"), None);
        assert_eq!(server.terminate(), Some(0));
    });
}

#[test]
fn an_image_that_the_config_names_stays_while_the_room_is_armed() {
    in_namespace("arming::an_image_that_the_config_names_stays_while_the_room_is_armed", &[], |lan| {
        for name in ["debian", "lab", "other"] {
            add_image(&lan, name, 300_000);
        }
        let config = file(&lan, "ezio.toml", &format!("[groups.lab]\nmachines = [\"{TWO}\"]\nimage = \"lab\"\n"));
        let server = Server::start(&lan, &["--config", &config]);
        ezio_ok(&lan, &["arm", "debian", "--mac", ONE]);
        ezio_ok(&lan, &["image", "remove", "other"]);
        ezio_ok(&lan, &["arm", "debian"]);
        let said = ezio_fails(&lan, &["image", "remove", "lab"]);
        assert!(said.contains("the config of the running server") && said.contains("ezio disarm"), "{said}");
        let disk = file(&lan, "disk.img", &"x".repeat(4096));
        let said = ezio_fails(&lan, &["capture", &disk, "--name", "lab", "--whole", "--replace"]);
        assert!(said.contains("the config of the running server") && said.contains("another name"), "{said}");
        ezio_ok(&lan, &["disarm"]);
        ezio_ok(&lan, &["image", "remove", "lab"]);
        assert_eq!(server.terminate(), Some(0));
    });
}

#[test]
fn a_machine_can_be_left_out_for_good() {
    in_namespace("arming::a_machine_can_be_left_out_for_good", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let said = ezio_ok(&lan, &["disarm", "--mac", ONE]);
        assert!(said.contains("held back from later orders") && said.contains("never = true"), "{said}");
        // Rehearsal, and the real run: it stays held back, with nothing armed at the time as well.
        for arguments in [&["arm", "debian", "--dry-run"][..], &["arm", "debian"], &["disarm"], &["arm", "debian"]] {
            let said = ezio_ok(&lan, arguments);
            let is_held = said.contains(&format!("still held back: {ONE}; `ezio resume --mac {ONE}` ends that"));
            assert!(is_held || arguments == ["disarm"], "{said}");
        }
        {
            let _server = Server::start(&lan, &[]);
            let client = lan.station(7, true);
            assert!(boots_locally(&client, ONE) && !boots_locally(&client, TWO));
            let said = ezio_ok(&lan, &["resume", "--mac", ONE]);
            assert!(said.contains(&format!("no longer held back: {ONE}")), "{said}");
            assert!(!boots_locally(&client, ONE));
            assert!(ezio_ok(&lan, &["resume", "--mac", ONE]).contains("was not held back"));
        }
        let said = ezio_ok(&lan, &["arm", "debian"]);
        assert!(!said.contains("held back"), "{said}");

        let config = file(
            &lan,
            "never.toml",
            &format!("[machines.\"{ONE}\"]\nnever = true\n[machines.\"{TWO}\"]\nname = \"pc2\"\n"),
        );
        let _server = Server::start(&lan, &["--config", &config]);
        let client = lan.station(9, true);
        let table = ezio_ok(&lan, &["status"]);
        assert!(table.contains(&format!("{TWO} pc2          not seen yet, boots the imaging system")), "{table}");
        assert!(table.contains("1 waiting") && !table.contains(&format!("\n{ONE}")), "{table}");
        assert!(boots_locally(&client, ONE) && !boots_locally(&client, TWO));
        let held = lan.station(8, true);
        assert_eq!(held.tftp("ezio.conf/01-52-54-00-77-00-01"), Err(NO_SUCH_USER));
        ezio_ok(&lan, &["disarm", "--mac", ONE]);
        let said = ezio_ok(&lan, &["arm", "debian"]);
        assert!(said.contains(&format!("left out (`never = true` in the config): {ONE}")), "{said}");
        assert!(!said.contains("still held back"), "{said}");
        let error = crate::process::ezio_fails(&lan, &["arm", "debian", "--mac", ONE]);
        assert!(error.contains("nothing was armed") && error.contains("never = true"), "{error}");
    });
}

#[test]
fn a_second_start_after_a_kill_serves_as_before() {
    in_namespace("arming::a_second_start_after_a_kill_serves_as_before", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let server = Server::start(&lan, &[]);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "debian"]);
        eventually("armed", || !boots_locally(&client, ONE));
        let before = conf(&client, "ezio.conf").expect("armed");
        report(&client, ONE, "restore", &deployment(&before));
        assert!(!boots_locally(&client, ONE), "a machine that was interrupted goes on");
        report(&client, ONE, "done", &deployment(&before));
        assert!(boots_locally(&client, ONE), "a machine that is done boots what it got");
        report(&client, ONE, "done", "x");
        assert!(boots_locally(&client, ONE), "somebody else's word does not get it imaged again");
        server.kill();

        let server = Server::start(&lan, &[]);
        assert_eq!(conf(&client, "ezio.conf"), Some(before), "the same deployment");
        assert!(boots_locally(&client, ONE), "still done");
        assert!(!boots_locally(&client, TWO), "still to do");
        let table = ezio_ok(&lan, &["status"]);
        assert!(table.contains(ONE) && table.contains("done"), "{table}");

        let said = ezio_ok(&lan, &["arm", "debian"]);
        assert!(said.contains(&format!("1 machine will keep debian (--again images again): {ONE}")), "{said}");
        assert!(boots_locally(&client, ONE), "arming again does not make it undone");
        let said = ezio_ok(&lan, &["arm", "debian", "--again", "--preview"]);
        assert!(
            said.contains("will get debian again, which is on the disk") && said.contains("nothing was changed"),
            "{said}"
        );
        assert!(boots_locally(&client, ONE));
        ezio_ok(&lan, &["arm", "debian", "--again"]);
        eventually("a new deployment counts anew", || !boots_locally(&client, ONE));
        let table = ezio_ok(&lan, &["status"]);
        assert!(table.contains("waiting (last time: done)") && table.contains(": 0 done,"), "{table}");
        assert!(table.contains("2 waiting"), "{table}");
        let anew = deployment(&conf(&client, "ezio.conf").expect("armed"));
        report(&client, ONE, "done", &anew);
        let table = ezio_ok(&lan, &["status"]);
        assert!(table.contains(": 1 done,") && !table.contains("last time"), "{table}");
        server.kill();
        let error = ezio_fails(&lan, &["status"]);
        assert!(error.contains("no `ezio serve` is running"), "a note left behind is not believed: {error}");
    });
}

#[test]
fn status_shows_the_room_to_people_and_programs() {
    in_namespace("arming::status_shows_the_room_to_people_and_programs", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let _server = Server::start(&lan, &["--silent-after", "0"]);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "debian"]);
        let id = deployment(&conf(&client, "ezio.conf").expect("armed"));
        let json = format!(
            r#"{{"mac":"{ONE}","stage":"restore","deployment":"{id}","ip":"10.9.0.77","serial":"SN-42","image":"debian",
                "bytes_done":150000,"bytes_total":300000,"rate_bytes_per_s":50000}}"#
        );
        assert_eq!(client.ask("/report", &["-d", &json]).0, 204);
        let json = format!(r#"{{"mac":"{TWO}","stage":"failed","error":"no disk fits:\u001b[2J two match"}}"#);
        assert_eq!(client.ask("/report", &["-d", &json]).0, 204);
        ezio_ok(&lan, &["disarm", "--mac", "52:54:00:77:00:03"]);
        let table = ezio_ok(&lan, &["status"]);
        assert!(table.contains("armed: debian for every machine since 20"), "{table}");
        let flat = table.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(" UTC, each once, target auto, WRITES DISKS armed:"), "{table}");
        assert!(
            table.contains("armed: held back, also from later orders, until `ezio resume`: 52:54:00:77:00:03"),
            "{table}"
        );
        for text in ["SN-42", "10.9.0.77", "restore", "50", "3 s", "no disk fits: [2J two match"] {
            assert!(table.contains(text), "{text:?} is not in\n{table}");
        }
        assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
        eventually("silence shows", || ezio_ok(&lan, &["status"]).contains("silent for"));
        let status = client.status();
        assert_eq!(status["machines"][0]["report"]["serial"], "SN-42");
        assert_eq!(status["machines"][0]["boot"], "image");
        assert!(ezio_ok(&lan, &["status", "--json"]).contains("\"machines\""));
        let page = client.run("curl", &["-sSf", "-H", "Accept: text/html", &format!("http://{SERVER}/")]);
        assert!(page.contains("<pre>") && page.contains("SN-42"), "{page}");
        assert_eq!(status["machines"].as_array().expect("a list").len(), 2);
    });
}

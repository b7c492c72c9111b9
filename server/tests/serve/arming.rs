//! What arming changes, for whom, and that it survives.

use crate::lan::{Lan, NO_SUCH_USER, NOT_FOUND, SERVER, Station, in_namespace};
use crate::library::add_image;
use crate::packets::{self, file_of};
use crate::process::{Server, eventually, ezio_fails, ezio_ok, file, token};

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

/// With the token of the machine's order, as far as it has one.
fn report(client: &Station, mac: &str, stage: &str, deployment: &str) {
    let token = client.tftp(&format!("ezio.conf/01-{}", mac.replace(':', "-"))).map(|conf| value(&conf, "TOKEN"));
    report_with(client, mac, stage, deployment, &token.unwrap_or_default());
}

fn report_with(client: &Station, mac: &str, stage: &str, deployment: &str, token: &str) {
    let json = format!(r#"{{"mac":"{mac}","stage":"{stage}","deployment":"{deployment}","token":"{token}"}}"#);
    assert_eq!(client.ask("/report", &["-d", &json]).0, 204);
}

fn deployment(conf: &str) -> String {
    value(conf, "DEPLOYMENT")
}

fn value(conf: &str, key: &str) -> String {
    conf.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).expect(key).to_owned()
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
        let url = file_of(offer);
        assert!(url.starts_with(&format!("http://{SERVER}/boot.ipxe?mac=52-54-00-77-00-01")), "{url}");
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
        let own = conf(&client, "ezio.conf/01-52-54-00-77-00-01").expect("armed");
        let is_proof = |line: &&str| line.starts_with("TOKEN=") || *line == "CONFIRM=yes";
        assert_eq!(own.lines().filter(is_proof).count(), 2, "{own}");
        let without: Vec<&str> = own.lines().filter(|line| !is_proof(line)).collect();
        assert_eq!(
            without,
            general.lines().filter(|line| *line != "CONFIRM=no").collect::<Vec<_>>(),
            "nothing of its own"
        );
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
        report_with(&client, ONE, "done", &deployment(&before), "");
        assert!(!boots_locally(&client, ONE), "it was said without the machine's token");
        let said = ezio_ok(&lan, &["status"]);
        assert!(
            said.contains("10.9.0.9 says \"done\" in its name, without its token") && said.contains(": 0 done"),
            "{said}"
        );
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
            r#"{{"mac":"{ONE}","stage":"restore","deployment":"{id}","token":"{}","ip":"10.9.0.77","serial":"SN-42","image":"debian",
                "bytes_done":150000,"bytes_total":300000,"rate_bytes_per_s":50000}}"#,
            token(&client, ONE)
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

#[test]
fn one_machine_has_one_token_and_is_asked_before_it_writes() {
    in_namespace("arming::one_machine_has_one_token_and_is_asked_before_it_writes", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let _server = Server::start(&lan, &[]);
        let (client, other) = (lan.station(9, true), lan.station(8, true));
        ezio_ok(&lan, &["arm", "debian"]);
        let name = "ezio.conf/01-52-54-00-77-00-01";
        let order = conf(&client, name).expect("armed");
        let (id, token) = (deployment(&order), value(&order, "TOKEN"));
        assert_eq!(value(&conf(&client, name).expect("armed"), "TOKEN"), token, "it asked again");
        // Another one that calls itself by its address, while it is there.
        assert_eq!(other.tftp(name), Err(NO_SUCH_USER));
        let said = ezio_ok(&lan, &["status"]);
        let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            flat.contains(&format!("TROUBLE: two machines say that they are {ONE}: 10.9.0.9 is being imaged")),
            "{said}"
        );
        // Before the first write.
        let confirm = |token: &str| format!("confirm/01-52-54-00-77-00-01/{id}/{token}");
        assert_eq!(client.tftp(&confirm(&token)).expect("go on"), "yes\n");
        let forged = format!("{:0>48}", 5);
        for bad in [confirm(&forged), confirm(""), format!("confirm/01-52-54-00-77-00-02/{id}/{token}")] {
            assert_eq!(client.tftp(&bad), Err(NO_SUCH_USER), "{bad}");
        }
        for nonsense in ["confirm", "confirm/", "confirm/x/y/z", &format!("{}/x", confirm(&token))] {
            assert!(client.tftp(nonsense).is_err(), "{nonsense}");
        }
        ezio_ok(&lan, &["disarm", "--mac", ONE]);
        assert_eq!(client.tftp(&confirm(&token)), Err(NO_SUCH_USER), "disarmed before it began");
        ezio_ok(&lan, &["arm", "debian", "--mac", ONE, "--again"]);
        assert_eq!(client.tftp(&confirm(&token)), Err(NO_SUCH_USER), "armed anew");
        report_with(&client, ONE, "done", &id, &token);
        assert!(!boots_locally(&client, ONE), "done with what is not its order any more");
    });
}

#[test]
fn a_dock_and_a_second_card_are_seen_through() {
    in_namespace("arming::a_dock_and_a_second_card_are_seen_through", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let config = file(&lan, "ezio.toml", &format!("[machines.\"{TWO}\"]\nnever = true\n"));
        let _server = Server::start(&lan, &["--config", &config]);
        let client = lan.station(9, true);
        ezio_ok(&lan, &["arm", "debian"]);
        let id = deployment(&conf(&client, "ezio.conf").expect("armed"));
        let boot = |mac: &str, last: u8| {
            client.get(&format!("/boot.ipxe?mac={mac}&uuid=4c4c4544-0043-3510-8051-b7c04f4d32{last:02x}"))
        };
        assert!(boot(ONE, 1).contains("gets image"));
        report(&client, ONE, "done", &id);
        assert!(boot(ONE, 1).contains("it has its image"));
        assert!(boot(ONE, 2).contains("gets image"), "another laptop in the same dock");
        assert!(conf(&client, "ezio.conf/01-52-54-00-77-00-01").is_some());
        // In the other byte order, as a ROM may say it.
        let other_order = client.get(&format!("/boot.ipxe?mac={ONE}&uuid=44454c4c-4300-1035-8051-b7c04f4d3201"));
        assert!(other_order.contains("it has its image"), "{other_order}");
        // A machine that is never imaged, by its second card; and one that is held back.
        assert!(boot(TWO, 7).contains("boots from its own disk"));
        assert!(boot("52:54:00:77:00:a7", 7).contains("by its other network card"));
        boot("52:54:00:77:00:08", 8);
        ezio_ok(&lan, &["disarm", "--mac", "52:54:00:77:00:08"]);
        assert!(boot("52:54:00:77:00:a8", 8).contains("by its other network card"));
        assert!(boot("52:54:00:77:00:a9", 9).contains("gets image"));
    });
}

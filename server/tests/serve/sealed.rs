//! Orders whose token only the machine that asked can read.

use order::MacAddr;
use seal::{About, KeyPair, PROOF_HEADER, Said, Sealed, Token};

use crate::lan::{NO_SUCH_USER, NOT_FOUND, Station, in_namespace};
use crate::library::add_image;
use crate::process::{Server, ezio_ok};

const ONE: &str = "52:54:00:77:00:01";
const NAME: &str = "ezio.conf/01-52-54-00-77-00-01";

fn mac() -> MacAddr {
    ONE.parse().expect("a MAC address")
}

fn value<'a>(conf: &'a str, key: &str) -> Option<&'a str> {
    conf.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// What `/init` does: asks with its key, and opens what comes.
fn order(client: &Station, key: &KeyPair) -> (String, Token) {
    let conf = client.tftp(&format!("{NAME}/{}", key.public())).expect("an order");
    let deployment = value(&conf, "DEPLOYMENT").expect("an id").to_owned();
    let sealed: Sealed = value(&conf, "SEALED_TOKEN").expect("sealed").parse().expect("an envelope");
    let token = key.open(&sealed, About { mac: mac(), deployment: &deployment }).expect("for this key");
    let heard = conf.contains(&token.to_string()) || value(&conf, "TOKEN").is_some();
    assert!(!heard && value(&conf, "CONFIRM") == Some("yes"), "{conf}");
    (deployment, token)
}

fn report(client: &Station, body: &str, proof: &str) {
    let header = format!("{PROOF_HEADER}: {proof}");
    assert_eq!(client.ask("/report", &["-H", &header, "-d", body]).0, 204);
}

fn stage(client: &Station) -> (bool, String, u64) {
    let machine = &client.status()["machines"][0];
    let stage = machine["report"]["stage"].as_str().unwrap_or_default().to_owned();
    (machine["proven"] == true, stage, machine["report"]["peers"].as_u64().unwrap_or_default())
}

fn has_its_image(client: &Station) -> bool {
    client.get(&format!("/boot.ipxe?mac={ONE}")).contains("it has its image")
}

#[test]
fn a_client_that_only_listens_can_report_nothing() {
    in_namespace("sealed::a_client_that_only_listens_can_report_nothing", &["curl"], |lan| {
        add_image(&lan, "debian", 300_000);
        let server = Server::start(&lan, &[]);
        let (client, other) = (lan.station(9, true), lan.station(8, true));
        let key = KeyPair::new([1; 32]);
        let sealed_name = format!("{NAME}/{}", key.public());
        assert_eq!(client.tftp(&sealed_name), Err(NO_SUCH_USER), "nothing is armed, and no other name is asked for");
        ezio_ok(&lan, &["arm", "debian"]);
        let (deployment, token) = order(&client, &key);
        assert_eq!(order(&client, &key), (deployment.clone(), token), "the answer was lost, and it asks again");
        // The rules of the plain name hold for this one.
        assert_eq!(other.tftp(&sealed_name), Err(NO_SUCH_USER));
        assert_eq!(other.tftp(NAME), Err(NO_SUCH_USER));
        assert!(ezio_ok(&lan, &["status"]).contains("two machines say that they are"));
        for bad in
            [format!("{NAME}/"), format!("{NAME}/00"), format!("{NAME}/{}x", key.public()), format!("{sealed_name}/x")]
        {
            assert_eq!(client.tftp(&bad), Err(NOT_FOUND), "{bad}");
        }
        assert_eq!(
            client.tftp(&format!("{NAME}/{}", "0".repeat(64))),
            Err(NO_SUCH_USER),
            "nothing is secret with this key"
        );

        let about = About { mac: mac(), deployment: &deployment };
        let body = |stage: &str, count: u64| {
            format!(
                r#"{{"mac":"{ONE}","stage":"{stage}","deployment":"{deployment}","count":{count},"peers":{count}}}"#
            )
        };
        let prove = |body: &str| token.prove(about, Said::Report(body.as_bytes())).to_string();
        // The last question, which a listener may ask again and cannot make another one of.
        let may_write = token.prove(about, Said::MayWrite).to_string();
        let confirm = |proof: &str| format!("confirm/01-52-54-00-77-00-01/{deployment}/{proof}");
        assert_eq!(client.tftp(&confirm(&may_write)).expect("go on"), "yes\n");
        let first = body("restore", 1);
        assert_eq!(client.tftp(&confirm(&prove(&first))), Err(NO_SUCH_USER), "the proof of a report");
        // Everything that was said so far is known to the listener.
        report(&client, &first, &prove(&first));
        assert_eq!(stage(&client), (true, "restore".into(), 1));
        for proof in [may_write.clone(), prove(&first), String::new(), "0".repeat(80)] {
            report(&client, &body("done", 2), &proof);
            assert!(!has_its_image(&client), "{proof}");
        }
        report(&client, &first, &prove(&first));
        let second = body("restore", 2);
        report(&client, &second, &prove(&second));
        assert_eq!(stage(&client), (true, "restore".into(), 2));
        report(&client, &first, &prove(&first));
        assert_eq!(stage(&client).2, 2, "an old report does not count again");

        // A server that was restarted knows its tokens.
        assert_eq!(server.terminate(), Some(0));
        let _server = Server::start(&lan, &[]);
        assert_eq!(client.tftp(&confirm(&may_write)).expect("go on"), "yes\n");
        let done = body("done", 3);
        report(&client, &done, &prove(&done));
        assert!(has_its_image(&client));
        assert_eq!(client.tftp(&sealed_name), Err(NO_SUCH_USER), "it is done");
        assert_eq!(client.tftp(&confirm(&may_write)), Err(NO_SUCH_USER), "it is done");
    });
}

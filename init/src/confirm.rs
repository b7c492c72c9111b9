//! The last question before the first write: whether the server still means this machine (`CONFIRM=yes`).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netboot::MacAddr;
use order::Order;
use restore::Permission;
use seal::{About, Said, Token};
use tokio::runtime::Handle;

use crate::fetch::{self, Answer};

/// Pause between two tries.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How often an asking thread looks whether anybody still waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why there is no answer yet, for screen and server.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<Mutex<Option<String>>>);

impl Waiting {
    /// Words, while the server does not answer.
    pub fn trouble(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, trouble: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// The file that says whether this machine may write: `confirm/01-MAC/DEPLOYMENT`, and behind it the token if there is one,
/// or the proof of a token that came sealed.
///
/// # Errors
/// If the deployment is missing, or cannot be part of a file's name.
pub fn name(mac: MacAddr, order: &Order, sealed: Option<&Token>) -> Result<String> {
    let Order { deployment, token, .. } = order;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    ensure!(
        !deployment.is_empty()
            && !deployment.starts_with('.')
            && deployment.len() <= 128
            && deployment.bytes().all(is_plain),
        "the order says CONFIRM=yes, and its DEPLOYMENT {deployment:?} cannot be asked about: use letters, digits, `_` and `-`"
    );
    let name = format!("confirm/{}/{deployment}", mac.bootif());
    Ok(match sealed {
        Some(token) => format!("{name}/{}", token.prove(About { mac, deployment }, Said::MayWrite)),
        None if token.is_empty() => name,
        None => format!("{name}/{token}"),
    })
}

/// Asks the TFTP server for the file until it answers. What keeps it from answering is in `waiting`. Called from threads that
/// may block, within the runtime's life.
pub fn by_tftp(server: SocketAddr, name: String, waiting: Waiting) -> Permission {
    let runtime = Handle::current();
    Permission::new(move |is_over| {
        until_answered(|| runtime.block_on(fetch::confirm(server, &name)), &waiting, is_over)
    })
}

fn until_answered(ask: impl Fn() -> Answer, waiting: &Waiting, is_over: &dyn Fn() -> bool) -> Result<(), String> {
    loop {
        let answer = ask();
        waiting.set(None);
        match answer {
            Answer::Yes => return Ok(()),
            Answer::No(said) => return Err(said),
            Answer::NotYet(trouble) => waiting.set(Some(trouble)),
        }
        let asked = Instant::now();
        while asked.elapsed() < ASK_EVERY {
            if is_over() {
                return Err("the restore ended before the server answered".to_owned());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::UdpSocket;

    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);

    fn order(deployment: &str, token: &str) -> Order {
        Order { deployment: deployment.to_owned(), token: token.to_owned(), ..Order::default() }
    }

    #[test]
    fn the_name_says_who_asks_about_what() {
        let sealed: Token = "07".repeat(24).parse().expect("a token");
        let proof = name(MAC, &order("7f", ""), Some(&sealed)).expect("plain");
        let proof = proof.strip_prefix("confirm/01-52-54-00-77-00-01/7f/").expect("the same in front").to_owned();
        assert!(!proof.contains(&"07".repeat(16)), "the token is never said");
        let about = About { mac: MAC, deployment: "7f" };
        assert!(sealed.has_proven(&proof.parse().expect("a proof"), about, Said::MayWrite));
        let name = |deployment: &str, token: &str| name(MAC, &order(deployment, token), None);
        assert_eq!(name("7f", "").expect("plain"), "confirm/01-52-54-00-77-00-01/7f");
        assert_eq!(name("7f", "5eed").expect("plain"), "confirm/01-52-54-00-77-00-01/7f/5eed");
        for bad in ["", "a/b", "..", ".", "a b", "a\0b", "ü", &"x".repeat(129)] {
            let error = name(bad, "").expect_err(bad).to_string();
            assert!(error.contains("CONFIRM=yes"), "{error}");
        }
    }

    #[test]
    fn silence_is_no_answer() {
        let waiting = Waiting::default();
        let left = Cell::new(1);
        let ask = || {
            left.set(left.get() - 1);
            if left.get() < 0 { Answer::Yes } else { Answer::NotYet("silent".to_owned()) }
        };
        let is_shown = Cell::new(false);
        let is_over = || {
            is_shown.set(waiting.trouble().as_deref() == Some("silent"));
            false
        };
        assert_eq!(until_answered(ask, &waiting, &is_over), Ok(()));
        assert!(is_shown.get() && waiting.trouble().is_none());
        let silent = || Answer::NotYet(String::new());
        assert!(until_answered(silent, &waiting, &|| true).is_err(), "ends when nobody waits");
        assert_eq!(
            until_answered(|| Answer::No("disarmed".to_owned()), &waiting, &|| false),
            Err("disarmed".to_owned())
        );
    }

    /// Answers one request with a packet; gives the address, and the name that was asked for.
    fn server(packet: Vec<u8>) -> (SocketAddr, std::thread::JoinHandle<String>) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let at = socket.local_addr().expect("bound");
        let asked = std::thread::spawn(move || {
            let mut buf = [0; 600];
            let (len, from) = socket.recv_from(&mut buf).expect("a request");
            socket.send_to(&packet, from).expect("sent");
            let name = buf[2..len].split(|&byte| byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(name).into_owned()
        });
        (at, asked)
    }

    async fn answered(packet: &[u8]) -> (Answer, String) {
        let (at, asked) = server(packet.to_vec());
        let answer = fetch::confirm(at, "confirm/x/7").await;
        (answer, asked.join().expect("asked"))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_servers_word_counts() {
        let (answer, name) = answered(b"\0\x03\0\x01yes, go on\n").await;
        assert!(matches!(answer, Answer::Yes), "{answer:?}");
        assert_eq!(name, "confirm/x/7");
        let (answer, _) = answered(b"\0\x05\0\x07disarmed at 12:01\0").await;
        assert!(matches!(&answer, Answer::No(said) if said == "disarmed at 12:01"), "{answer:?}");
        let (answer, _) = answered(b"\0\x05\0\x01\0").await;
        assert!(matches!(&answer, Answer::No(said) if said == "no reason given"), "{answer:?}");
        for text in ["no", "", "Yes", "<html>yes"] {
            let (answer, _) = answered(&[b"\0\x03\0\x01", text.as_bytes()].concat()).await;
            assert!(matches!(answer, Answer::No(_)), "{text}: {answer:?}");
        }
        // Ours is at its limit: it says nothing about this machine.
        let (answer, _) = answered(b"\0\x05\0\x03busy\0").await;
        assert!(matches!(answer, Answer::NotYet(_)), "{answer:?}");
    }
}

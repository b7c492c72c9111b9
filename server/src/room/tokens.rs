//! Tokens: what proves that a report comes from the machine that got the order, and that no second one calls itself by its
//! address meanwhile.
//!
//! A token belongs to a MAC address, a deployment and one request for an order. It is the request's random number and an
//! HMAC-SHA-256 (RFC 2104) over all three with a key that only the server has. So the server needs no memory to know its
//! own tokens again, also after a restart.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use hmac::{Hmac, KeyInit, Mac};
use netboot::MacAddr;
use sha2::Sha256;
use store::Store;

/// The row with the key.
const KIND: &str = "secret";
const KEY: &str = "tokens";
/// Bytes of the key, of a token's random number, and of its code.
const KEY_LEN: usize = 32;
const NONCE_LEN: usize = 8;
const CODE_LEN: usize = 16;
/// A machine with a token is there as long as it was heard of within this time. It reports each second; one that was reset
/// needs longer than this to ask again.
const ALIVE: Duration = Duration::from_secs(12);
/// Machines remembered at most.
const REMEMBERED: usize = 4096;

/// Makes tokens, and knows them again.
#[derive(Debug)]
pub struct Tokens {
    key: [u8; KEY_LEN],
    holders: HashMap<MacAddr, Holder>,
}

/// Who has the token of a machine.
#[derive(Clone, Debug)]
struct Holder {
    client: IpAddr,
    token: String,
    deployment: String,
    heard: Instant,
}

/// What becomes of a request for an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issue {
    Token(String),
    /// Another client has one, and is there.
    Taken(IpAddr),
}

impl Tokens {
    /// With the key of a store, which gets one if it has none.
    ///
    /// # Errors
    /// If the store or the kernel's random numbers cannot be read.
    pub fn open(store: &mut Store) -> anyhow::Result<Tokens> {
        let known = store.rows(KIND)?.into_iter().find(|(name, _)| name == KEY);
        let key = match known.and_then(|(_, text)| bytes_of(&text)) {
            Some(key) => key,
            None => {
                let key = random::<KEY_LEN>()?;
                store.change(|change| change.put(KIND, KEY, &hex(&key)))?;
                key
            }
        };
        Ok(Tokens { key, holders: HashMap::new() })
    }

    /// A token for the client that asks for a machine's order.
    ///
    /// # Errors
    /// If the kernel's random numbers cannot be read.
    pub fn issue(&mut self, mac: MacAddr, deployment: &str, client: IpAddr, now: Instant) -> anyhow::Result<Issue> {
        if let Some(holder) = self.holders.get(&mac) {
            let is_alive = now.saturating_duration_since(holder.heard) < ALIVE;
            if holder.client != client && is_alive {
                return Ok(Issue::Taken(holder.client));
            }
            // The same request again, or the same machine after a reset.
            if holder.client == client && is_alive && holder.deployment == deployment {
                return Ok(Issue::Token(holder.token.clone()));
            }
        }
        let nonce = random::<NONCE_LEN>()?;
        let token = self.token(mac, deployment, &nonce);
        if self.holders.len() >= REMEMBERED {
            self.holders.retain(|_, holder| now.saturating_duration_since(holder.heard) < ALIVE);
        }
        if self.holders.len() < REMEMBERED || self.holders.contains_key(&mac) {
            let holder = Holder { client, token: token.clone(), deployment: deployment.to_owned(), heard: now };
            self.holders.insert(mac, holder);
        }
        Ok(Issue::Token(token))
    }

    /// Whether a token is one of ours for this machine and deployment. If so, its machine is there.
    pub fn check(&mut self, mac: MacAddr, deployment: &str, token: &str, client: IpAddr, now: Instant) -> bool {
        let nonce = token.get(..2 * NONCE_LEN).and_then(bytes_of::<NONCE_LEN>);
        let code = token.get(2 * NONCE_LEN..).and_then(bytes_of::<CODE_LEN>);
        let (Some(nonce), Some(code)) = (nonce, code) else { return false };
        let is_ours = self.mac(mac, deployment, &nonce).verify_truncated_left(&code).is_ok();
        if is_ours {
            match self.holders.get_mut(&mac) {
                Some(holder) if holder.token == token => holder.heard = now,
                // Issued before this server was started, or to the machine's boot before this one.
                _ => {}
            }
            let len = self.holders.len();
            self.holders.entry(mac).or_insert_with(|| {
                log::trace!("{mac} has a token of an earlier start, with {len} others");
                Holder { client, token: token.to_owned(), deployment: deployment.to_owned(), heard: now }
            });
        }
        is_ours
    }

    fn token(&self, mac: MacAddr, deployment: &str, nonce: &[u8; NONCE_LEN]) -> String {
        let code = self.mac(mac, deployment, nonce).finalize().into_bytes();
        format!("{}{}", hex(nonce), hex(&code[..CODE_LEN]))
    }

    fn mac(&self, mac: MacAddr, deployment: &str, nonce: &[u8; NONCE_LEN]) -> Hmac<Sha256> {
        let mut code = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        code.update(&mac.0);
        code.update(nonce);
        code.update(deployment.as_bytes());
        code
    }
}

fn random<const LEN: usize>() -> anyhow::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("reading /dev/urandom")?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Exactly so many bytes, of two hex digits each.
fn bytes_of<const LEN: usize>(text: &str) -> Option<[u8; LEN]> {
    if text.len() != 2 * LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; LEN];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn tokens(dir: &std::path::Path) -> Tokens {
        Tokens::open(&mut Store::open(dir, |_| Ok(())).expect("opens")).expect("a key")
    }

    fn token(issue: Issue) -> String {
        match issue {
            Issue::Token(token) => token,
            Issue::Taken(client) => panic!("taken by {client}"),
        }
    }

    #[test]
    fn a_token_is_for_one_machine_and_deployment_and_survives_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut tokens = tokens(dir.path());
        let now = Instant::now();
        let text = token(tokens.issue(A, "d1", ip(1), now).expect("issued"));
        assert_eq!(text.len(), 2 * (NONCE_LEN + CODE_LEN));
        for mut tokens in [tokens, self::tokens(dir.path())] {
            assert!(tokens.check(A, "d1", &text, ip(1), now));
            assert!(!tokens.check(B, "d1", &text, ip(1), now) && !tokens.check(A, "d2", &text, ip(1), now));
            let mut other = text.clone();
            other.replace_range(5..6, if &text[5..6] == "0" { "1" } else { "0" });
            for bad in ["", "x", &text[1..], &other, &format!("{text}0"), "é".repeat(24).as_str()] {
                assert!(!tokens.check(A, "d1", bad, ip(1), now), "{bad}");
            }
        }
        let elsewhere = tempfile::tempdir().expect("a directory");
        assert!(!self::tokens(elsewhere.path()).check(A, "d1", &text, ip(1), now), "another server's");
    }

    #[test]
    fn a_second_asker_gets_no_token_while_the_first_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut tokens = tokens(dir.path());
        let start = Instant::now();
        let first = token(tokens.issue(A, "d1", ip(1), start).expect("issued"));
        assert_eq!(tokens.issue(A, "d1", ip(1), start).expect("issued"), Issue::Token(first.clone()), "asked twice");
        let later = start + ALIVE / 2;
        assert_eq!(tokens.issue(A, "d1", ip(9), later).expect("answered"), Issue::Taken(ip(1)));
        assert!(tokens.check(A, "d1", &first, ip(1), later));
        let much_later = later + ALIVE / 2;
        assert_eq!(tokens.issue(A, "d1", ip(9), much_later).expect("answered"), Issue::Taken(ip(1)), "it has reported");
        let silent = later + ALIVE;
        assert_ne!(
            token(tokens.issue(A, "d1", ip(9), silent).expect("issued")),
            first,
            "it may have got another address"
        );
        assert!(tokens.check(A, "d1", &first, ip(1), silent), "its last words still count");
        assert_ne!(token(tokens.issue(A, "d2", ip(9), silent).expect("issued")), first, "armed anew");
    }
}

//! Tokens: what proves that a report comes from the machine that got the order, and that no second one calls itself by its
//! address meanwhile.
//!
//! A token belongs to a MAC address, a deployment and one request for an order. It is the request's random number and an
//! HMAC-SHA-256 (RFC 2104) over all three with a key that only the server has. So the server needs no memory to know its
//! own tokens again, also after a restart.
//!
//! A machine that asks with a public key gets its token sealed to it, and afterwards proves that it has it instead of saying
//! it (`seal`). One that asks without a key says it in each report, for everybody to hear.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use hmac::{Hmac, KeyInit, Mac};
use netboot::MacAddr;
use seal::token::{NAME_LEN, SECRET_LEN};
use seal::{About, Proof, PublicKey, Said, SealError, Sealed, Token, hex};
use sha2::Sha256;
use store::Store;

/// The row with the key.
const KIND: &str = "secret";
const KEY: &str = "tokens";
/// Bytes of the key.
const KEY_LEN: usize = 32;
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
    token: Token,
    deployment: String,
    /// What it asked with.
    key: Option<PublicKey>,
    /// The number of its last report, of those that it proved.
    count: u64,
    heard: Instant,
}

/// Who asks for an order.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    pub client: IpAddr,
    /// To which its token is to be sealed.
    pub key: Option<PublicKey>,
}

/// What becomes of a request for an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issue {
    Token(Token),
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
        let key = match known.and_then(|(_, text)| hex::read(&text)) {
            Some(key) => key,
            None => {
                let key = random::<KEY_LEN>()?;
                store.change(|change| change.put(KIND, KEY, &hex::write(&key)))?;
                key
            }
        };
        Ok(Tokens { key, holders: HashMap::new() })
    }

    /// A token for the client that asks for a machine's order.
    ///
    /// # Errors
    /// If the kernel's random numbers cannot be read.
    pub fn issue(&mut self, about: About<'_>, asker: Asker, now: Instant) -> anyhow::Result<Issue> {
        let About { mac, deployment } = about;
        let Asker { client, key } = asker;
        if let Some(holder) = self.holders.get(&mac) {
            let is_alive = now.saturating_duration_since(holder.heard) < ALIVE;
            if holder.client != client && is_alive {
                return Ok(Issue::Taken(holder.client));
            }
            // The same request again. One with another key is of another start of the machine, or not from it at all: a token
            // that was sealed is never given to another key, or in plain text.
            if holder.client == client && is_alive && holder.deployment == deployment && holder.key == key {
                return Ok(Issue::Token(holder.token));
            }
        }
        let token = self.token(about, random()?);
        if self.holders.len() >= REMEMBERED {
            self.holders.retain(|_, holder| now.saturating_duration_since(holder.heard) < ALIVE);
        }
        if self.holders.len() < REMEMBERED || self.holders.contains_key(&mac) {
            let holder = Holder { client, token, deployment: deployment.to_owned(), key, count: 0, heard: now };
            self.holders.insert(mac, holder);
        }
        Ok(Issue::Token(token))
    }

    /// Seals a token to a key, differently each time.
    ///
    /// # Errors
    /// If the key is a bad one, or the kernel's random numbers cannot be read.
    pub fn seal(token: &Token, to: PublicKey, about: About<'_>) -> anyhow::Result<Result<Sealed, SealError>> {
        Ok(Sealed::new(token, to, about, random()?))
    }

    /// Whether a token that was said is one of ours for this machine and deployment. If so, its machine is there.
    pub fn check(&mut self, about: About<'_>, token: &str, client: IpAddr, now: Instant) -> bool {
        let Ok(said) = token.parse::<Token>() else { return false };
        let ours = self.code(about, &said.name());
        let is_ours = ours.verify_truncated_left(&said.secret()).is_ok();
        if is_ours {
            self.heard(about, said, client, now);
        }
        is_ours
    }

    /// Whether a proof is by a token of ours for this machine and deployment. If so, its machine is there. A report that has
    /// a number proves nothing a second time.
    pub fn check_proof(
        &mut self,
        about: About<'_>,
        proof: &Proof,
        said: Said<'_>,
        count: Option<u64>,
        client: IpAddr,
        now: Instant,
    ) -> bool {
        let token = self.token(about, proof.name());
        if !token.has_proven(proof, about, said) {
            return false;
        }
        let last = self.holders.get(&about.mac).filter(|holder| holder.token == token).map(|holder| holder.count);
        if let Some((count, last)) = count.zip(last)
            && count <= last
        {
            return false;
        }
        self.heard(about, token, client, now);
        if let Some(holder) = self.holders.get_mut(&about.mac).filter(|holder| holder.token == token) {
            holder.count = count.unwrap_or(holder.count);
        }
        true
    }

    /// A machine has shown that it has a token.
    fn heard(&mut self, about: About<'_>, token: Token, client: IpAddr, now: Instant) {
        let About { mac, deployment } = about;
        match self.holders.get_mut(&mac) {
            Some(holder) if holder.token == token => holder.heard = now,
            // Issued before this server was started, or to the machine's boot before this one.
            _ => {}
        }
        let len = self.holders.len();
        self.holders.entry(mac).or_insert_with(|| {
            log::trace!("{mac} has a token of an earlier start, with {len} others");
            Holder { client, token, deployment: deployment.to_owned(), key: None, count: 0, heard: now }
        });
    }

    fn token(&self, about: About<'_>, name: [u8; NAME_LEN]) -> Token {
        let code = self.code(about, &name).finalize().into_bytes();
        let mut secret = [0; SECRET_LEN];
        secret.copy_from_slice(&code[..SECRET_LEN]);
        Token::new(name, secret)
    }

    fn code(&self, about: About<'_>, name: &[u8; NAME_LEN]) -> Hmac<Sha256> {
        let mut code = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        code.update(&about.mac.0);
        code.update(name);
        code.update(about.deployment.as_bytes());
        code
    }
}

fn random<const LEN: usize>() -> anyhow::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("reading /dev/urandom")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use seal::KeyPair;

    use super::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn tokens(dir: &std::path::Path) -> Tokens {
        Tokens::open(&mut Store::open(dir, |_| Ok(())).expect("opens")).expect("a key")
    }

    fn about(mac: MacAddr, deployment: &str) -> About<'_> {
        About { mac, deployment }
    }

    fn plain(last: u8) -> Asker {
        Asker { client: ip(last), key: None }
    }

    fn with_key(last: u8, key: u8) -> (Asker, KeyPair) {
        let pair = KeyPair::new([key; 32]);
        (Asker { client: ip(last), key: Some(pair.public()) }, pair)
    }

    fn token(issue: Issue) -> Token {
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
        let text = token(tokens.issue(about(A, "d1"), plain(1), now).expect("issued")).to_string();
        assert_eq!(text.len(), 48);
        for mut tokens in [tokens, self::tokens(dir.path())] {
            assert!(tokens.check(about(A, "d1"), &text, ip(1), now));
            assert!(
                !tokens.check(about(B, "d1"), &text, ip(1), now) && !tokens.check(about(A, "d2"), &text, ip(1), now)
            );
            let mut other = text.clone();
            other.replace_range(5..6, if &text[5..6] == "0" { "1" } else { "0" });
            for bad in ["", "x", &text[1..], &other, &format!("{text}0"), "é".repeat(24).as_str()] {
                assert!(!tokens.check(about(A, "d1"), bad, ip(1), now), "{bad}");
            }
        }
        let elsewhere = tempfile::tempdir().expect("a directory");
        assert!(!self::tokens(elsewhere.path()).check(about(A, "d1"), &text, ip(1), now), "another server's");
    }

    #[test]
    fn a_second_asker_gets_no_token_while_the_first_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut tokens = tokens(dir.path());
        let start = Instant::now();
        let first = token(tokens.issue(about(A, "d1"), plain(1), start).expect("issued"));
        assert_eq!(tokens.issue(about(A, "d1"), plain(1), start).expect("issued"), Issue::Token(first), "asked twice");
        let later = start + ALIVE / 2;
        assert_eq!(tokens.issue(about(A, "d1"), plain(9), later).expect("answered"), Issue::Taken(ip(1)));
        assert!(tokens.check(about(A, "d1"), &first.to_string(), ip(1), later));
        let much_later = later + ALIVE / 2;
        assert_eq!(
            tokens.issue(about(A, "d1"), plain(9), much_later).expect("answered"),
            Issue::Taken(ip(1)),
            "it has reported"
        );
        let silent = later + ALIVE;
        assert_ne!(
            token(tokens.issue(about(A, "d1"), plain(9), silent).expect("issued")),
            first,
            "it may have got another address"
        );
        assert!(tokens.check(about(A, "d1"), &first.to_string(), ip(1), silent), "its last words still count");
        assert_ne!(token(tokens.issue(about(A, "d2"), plain(9), silent).expect("issued")), first, "armed anew");
    }

    #[test]
    fn a_sealed_token_is_for_one_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut tokens = tokens(dir.path());
        let now = Instant::now();
        let (asker, pair) = with_key(1, 1);
        let first = token(tokens.issue(about(A, "d1"), asker, now).expect("issued"));
        assert_eq!(token(tokens.issue(about(A, "d1"), asker, now).expect("issued")), first, "asked twice");
        let seal = || Tokens::seal(&first, pair.public(), about(A, "d1")).expect("random").expect("a good key");
        let (once, twice) = (seal(), seal());
        assert_ne!(once, twice);
        for sealed in [once, twice] {
            assert_eq!(pair.open(&sealed, about(A, "d1")), Ok(first));
        }
        // From the same address, which others can put in front of their packets.
        let (other, _) = with_key(1, 2);
        for asker in [plain(1), other] {
            assert_ne!(token(tokens.issue(about(A, "d1"), asker, now).expect("issued")), first, "{asker:?}");
        }
        let (elsewhere, _) = with_key(9, 1);
        assert_eq!(tokens.issue(about(A, "d1"), elsewhere, now).expect("answered"), Issue::Taken(ip(1)));
    }

    #[test]
    fn a_proof_counts_once_and_survives_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut tokens = tokens(dir.path());
        let now = Instant::now();
        let (asker, _) = with_key(1, 1);
        let token = token(tokens.issue(about(A, "d1"), asker, now).expect("issued"));
        let said = Said::Report(b"{}");
        let proof = token.prove(about(A, "d1"), said);
        for mut tokens in [tokens, self::tokens(dir.path())] {
            let mut check = |about, said, count| tokens.check_proof(about, &proof, said, count, ip(1), now);
            assert!(!check(about(B, "d1"), said, Some(1)) && !check(about(A, "d2"), said, Some(1)));
            assert!(
                !check(about(A, "d1"), Said::Report(b"{} "), Some(1)) && !check(about(A, "d1"), Said::MayWrite, None)
            );
            assert!(check(about(A, "d1"), said, Some(1)));
            assert!(!check(about(A, "d1"), said, Some(1)), "somebody sends it again");
            assert!(check(about(A, "d1"), said, Some(3)) && !check(about(A, "d1"), said, Some(2)));
            let may_write = token.prove(about(A, "d1"), Said::MayWrite);
            for _ in 0..2 {
                let is_proven = tokens.check_proof(about(A, "d1"), &may_write, Said::MayWrite, None, ip(1), now);
                assert!(is_proven, "the answer may have been lost");
            }
            assert!(matches!(tokens.issue(about(A, "d1"), plain(9), now), Ok(Issue::Taken(_))), "it is there");
        }
        let elsewhere = tempfile::tempdir().expect("a directory");
        let mut other = self::tokens(elsewhere.path());
        assert!(!other.check_proof(about(A, "d1"), &proof, said, Some(9), ip(1), now), "another server's");
    }
}

//! What this machine is to do: asked for until the server has an answer that makes sense.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use metainfo::Metainfo;
use netboot::MacAddr;
use order::{Order, value_of};
use seal::{About, KeyPair, Sealed, Token};

use crate::boot_args::BootArgs;
use crate::confirm;
use crate::console::Console;
use crate::fetch::{self, Obstacle, TFTP_PORT};
use crate::memory;
use crate::reporter::Reporter;

/// Pause between two tries.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The same trouble is shown again after this long.
pub const REPEAT_TROUBLE: Duration = Duration::from_secs(60);

/// Whom this machine asks, and as whom.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    pub server: Ipv4Addr,
    /// The address by which the server knows this machine.
    pub mac: MacAddr,
    /// What the kernel command line says, which overrides the server's word.
    pub args: &'a BootArgs,
    /// To which the token of the order is sealed; made when this machine started.
    pub key: &'a KeyPair,
}

/// What there is to do.
pub struct Given {
    pub order: Order,
    /// What was in the order's `SEALED_TOKEN`.
    pub token: Option<Token>,
    pub meta: Metainfo,
}

impl Asking<'_> {
    /// Asks until there is an order and its torrent.
    ///
    /// # Errors
    /// What will not pass: an order or a torrent that makes no sense, or does not fit into memory.
    pub async fn until_answered(self, console: &Console, reporter: &Reporter) -> Result<Given> {
        let mut shown: Option<(String, Instant)> = None;
        loop {
            let trouble = match self.once(reporter).await {
                Ok(answer) => return Ok(answer),
                Err(Obstacle::Lasting(error)) => return Err(error),
                Err(Obstacle::Passing(error)) => format!("{error:#}"),
            };
            if shown.as_ref().is_none_or(|(last, at)| *last != trouble || at.elapsed() > REPEAT_TROUBLE) {
                console.trouble(&trouble);
                shown = Some((trouble, Instant::now()));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn once(self, reporter: &Reporter) -> Result<Given, Obstacle> {
        let at = (self.server, TFTP_PORT).into();
        let (conf, name) = fetch::conf(at, self.mac, self.key.public()).await?;
        let (order, token) = self.read(&conf, &name, reporter).map_err(Obstacle::Lasting)?;
        let torrent = fetch::torrent(self.server, &order.torrent).await?;
        memory::check_torrent(&torrent).map_err(Obstacle::Lasting)?;
        let meta =
            Metainfo::parse(&torrent).with_context(|| format!("refusing {} from {}", order.torrent, self.server));
        Ok(Given { order, token, meta: meta.map_err(Obstacle::Lasting)? })
    }

    fn read(self, conf: &[u8], name: &str, reporter: &Reporter) -> Result<(Order, Option<Token>)> {
        // Before anything can be wrong with it, or only the screen would know.
        let text = String::from_utf8_lossy(conf);
        let value = |key: &str| value_of(&text, &self.args.overrides, key);
        let sealed = value("SEALED_TOKEN").filter(|sealed| !sealed.is_empty());
        let opened = sealed.map(|sealed| self.open(&sealed, &value("DEPLOYMENT").unwrap_or_default())).transpose();
        reporter.prove_with(opened.as_ref().ok().copied().flatten());
        if let Some(url) = value("REPORT") {
            reporter.update(|report| {
                report.deployment = value("DEPLOYMENT").unwrap_or_default();
                report.image = value("IMAGE").unwrap_or_default();
                report.token = value("TOKEN").unwrap_or_default();
            });
            reporter.set_url(url);
        }
        let text = str::from_utf8(conf).with_context(|| format!("{name} on {} is not text", self.server))?;
        let order = Order::parse(text, &self.args.overrides);
        let order = order.with_context(|| format!("reading {name} from {}", self.server))?;
        for key in order.unknown_in_words() {
            log::warn!("{name}: the key {key} is unknown and is ignored");
        }
        let token = opened.with_context(|| {
            format!(
                "{name} from {} has a SEALED_TOKEN that this machine cannot open, so nothing is written; restart this \
                 machine to ask again, and if that does not help, look for another server on this network",
                self.server
            )
        })?;
        if order.options.confirm {
            confirm::name(self.mac, &order, token.as_ref())?;
        }
        reporter.update(|report| report.dry_run = order.options.dry_run);
        Ok((order, token))
    }

    fn open(self, sealed: &str, deployment: &str) -> Result<Token> {
        let sealed: Sealed = sealed.parse()?;
        Ok(self.key.open(&sealed, About { mac: self.mac, deployment })?)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};
    use std::thread::JoinHandle;

    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);
    const PLAIN: &str = "ezio.conf/01-52-54-00-77-00-01";

    /// A TFTP server that answers so many requests: with the text for a name, or with an error. Gives the names asked for.
    fn server(
        requests: usize,
        answer: impl Fn(&str) -> Result<String, u8> + Send + 'static,
    ) -> (SocketAddr, JoinHandle<Vec<String>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let at = socket.local_addr().expect("bound");
        let asked = std::thread::spawn(move || {
            let mut names = Vec::new();
            while names.len() < requests {
                let mut buf = [0; 600];
                let (len, from) = socket.recv_from(&mut buf).expect("a packet");
                if buf[1] != 1 {
                    continue;
                }
                let name = buf[2..len].split(|&byte| byte == 0).next().unwrap_or_default();
                let name = String::from_utf8_lossy(name).into_owned();
                let packet = match answer(&name) {
                    Ok(text) => [&[0, 3, 0, 1], text.as_bytes()].concat(),
                    Err(code) => [&[0, 5, 0, code][..], b"no\0"].concat(),
                };
                socket.send_to(&packet, from).expect("sent");
                names.push(name);
            }
            names
        });
        (at, asked)
    }

    fn read(key: &KeyPair, conf: &str) -> Result<(Order, Option<Token>)> {
        let args = BootArgs::default();
        let asking = Asking { server: Ipv4Addr::LOCALHOST, mac: MAC, args: &args, key };
        asking.read(conf.as_bytes(), "ezio.conf/x", &Reporter::new(String::new(), String::new()))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_order_is_asked_for_with_the_key_and_of_an_older_server_without() {
        let key = KeyPair::new([1; 32]);
        let with_key = format!("{PLAIN}/{}", key.public());
        let (at, asked) = server(1, |_| Ok("TORRENT=sealed".to_owned()));
        let Ok((conf, name)) = fetch::conf(at, MAC, key.public()).await else { panic!("no order") };
        assert_eq!((&*conf, &name), (&b"TORRENT=sealed"[..], &with_key));
        assert_eq!(asked.join().expect("asked"), std::slice::from_ref(&with_key));
        // An older server of ours; and those for which the plain name is a file, not a directory.
        for code in 0..=2 {
            let known = move |name: &str| if name == PLAIN { Ok("TORRENT=plain".to_owned()) } else { Err(code) };
            let (at, asked) = server(2, known);
            let Ok((conf, name)) = fetch::conf(at, MAC, key.public()).await else { panic!("no order") };
            assert_eq!((&*conf, &*name), (&b"TORRENT=plain"[..], PLAIN), "code {code}");
            assert_eq!(asked.join().expect("asked"), [&with_key, PLAIN]);
        }
        // One that knows the name and has no order for this machine is not asked by another name.
        let (at, asked) = server(1, |_| Err(7));
        assert!(matches!(fetch::conf(at, MAC, key.public()).await, Err(Obstacle::Passing(_))));
        assert_eq!(asked.join().expect("asked"), [with_key]);
    }

    #[test]
    fn a_sealed_token_is_opened_or_nothing_is_done() {
        let key = KeyPair::new([1; 32]);
        let token = Token::new([7; 8], [9; 16]);
        let seal = |mac, deployment, to: &KeyPair| {
            Sealed::new(&token, to.public(), About { mac, deployment }, [2; 32]).expect("a good key").to_string()
        };
        let conf = |sealed: &str| format!("TORRENT=x\nDEPLOYMENT=7\nCONFIRM=yes\nSEALED_TOKEN={sealed}\n");
        let (order, opened) = read(&key, &conf(&seal(MAC, "7", &key))).expect("for us");
        assert_eq!((opened, order.token.as_str()), (Some(token), ""));
        assert_eq!(read(&key, "TORRENT=x\nTOKEN=5eed").expect("plain").1, None);
        let other_mac = MacAddr([0x52, 0x54, 0, 0x77, 0, 2]);
        let other_key = KeyPair::new([3; 32]);
        let right = seal(MAC, "7", &key);
        for bad in [seal(other_mac, "7", &key), seal(MAC, "8", &key), seal(MAC, "7", &other_key), right[2..].to_owned()]
        {
            let error = format!("{:#}", read(&key, &conf(&bad)).expect_err(&bad));
            assert!(error.contains("SEALED_TOKEN that this machine cannot open, so nothing is written"), "{error}");
        }
    }
}

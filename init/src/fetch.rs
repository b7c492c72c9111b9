//! Files by TFTP: `ezio.conf` under its three names, and the torrent.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context as _, Result};
use netboot::MacAddr;
use netboot::tftp::{Fetch, FetchError, Step};
use tokio::net::UdpSocket;

const TFTP_PORT: u16 = 69;
/// RFC 1350's code for "disk full or allocation exceeded", by which our server says that it has too much to do.
const BUSY: u16 = 3;
/// RFC 1350's code for "no such user".
const NO_SUCH_USER: u16 = 7;
/// A configuration is some lines.
const MAX_CONF_LEN: usize = 64 * 1024;

/// The text of `ezio.conf` for this machine, and the name it was found under.
///
/// # Errors
/// If the server has none of the three names, or does not answer.
pub async fn conf(server: Ipv4Addr, mac: MacAddr) -> Result<(String, String)> {
    let names = [format!("ezio.conf/{}", mac.bootif()), "ezio.conf/default".to_owned(), "ezio.conf".to_owned()];
    for name in names {
        match fetch(server, &name, MAX_CONF_LEN).await? {
            Ok(bytes) => {
                let text = String::from_utf8(bytes).with_context(|| format!("{name} on {server} is not text"))?;
                return Ok((text, name));
            }
            // Servers differ in how they say "no such file": error 1, or 2 or 0 where `ezio.conf` is a file and no
            // directory.
            Err(FetchError::Refused { code: 0..=2, .. }) => {}
            // Ours knows this machine and has no order for it: everybody's is not for it either.
            Err(FetchError::Refused { code: NO_SUCH_USER, .. }) => break,
            Err(error) => return Err(error).context("fetching ezio.conf"),
        }
    }
    anyhow::bail!(
        "{server} has no ezio.conf for {mac}: nothing is armed for this machine; run `ezio arm IMAGE` on the server"
    )
}

/// The torrent's bytes.
///
/// # Errors
/// If it is not there, or the server does not answer.
pub async fn torrent(server: Ipv4Addr, path: &str) -> Result<Vec<u8>> {
    fetch(server, path, usize::try_from(metainfo::TORRENT_LEN_MAX).expect("fits"))
        .await?
        .context("fetching the torrent that ezio.conf names")
}

/// One transfer. The outer error is this machine's, the inner one the server's.
async fn fetch(server: Ipv4Addr, name: &str, max_len: usize) -> Result<Result<Vec<u8>, FetchError>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.context("opening a UDP port for TFTP")?;
    let to = SocketAddr::from((server, TFTP_PORT));
    let mut fetch = Fetch::new(to, name, max_len, Instant::now());
    let mut buf = vec![0; 65536];
    loop {
        match fetch.poll(Instant::now()) {
            Step::Send { to, packet } => {
                // A packet that cannot be sent now (route just gone) is sent again like one that was lost.
                let _ = socket.send_to(&packet, to).await;
            }
            Step::Wait { until } => {
                if let Ok(Ok((len, from))) = tokio::time::timeout_at(until.into(), socket.recv_from(&mut buf)).await {
                    fetch.receive(from, &buf[..len], Instant::now());
                }
            }
            Step::Done(bytes) => return Ok(Ok(bytes)),
            // The words that come with the code are about disks.
            Step::Failed(FetchError::Refused { code: BUSY, .. }) => {
                anyhow::bail!("{server} is busy with other machines; asking for {name} again")
            }
            Step::Failed(error) => return Ok(Err(error)),
        }
    }
}

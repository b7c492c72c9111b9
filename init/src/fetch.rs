//! Files by TFTP: `ezio.conf` under its four names, the torrent, and the last question.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use netboot::MacAddr;
use netboot::tftp::{Fetch, FetchError, Step};
use seal::PublicKey;
use tokio::net::UdpSocket;

/// Where a TFTP server listens (RFC 1350, section 4).
pub const TFTP_PORT: u16 = 69;
/// RFC 1350's code for "disk full or allocation exceeded", by which our server says that it has too much to do.
const BUSY: u16 = 3;
/// RFC 1350's code for "no such user".
const NO_SUCH_USER: u16 = 7;
/// RFC 1350's codes by which servers say that a file does not exist: 1, or 2 or 0 where `ezio.conf` is a file and no
/// directory.
const NO_SUCH_FILE: std::ops::RangeInclusive<u16> = 0..=2;
/// A configuration is some lines.
const MAX_CONF_LEN: usize = 64 * 1024;

/// So much of an answer that is no answer is shown, in characters.
const SHOWN_LEN: usize = 80;

/// What a server says to the last question before the first write.
#[derive(Debug)]
pub enum Answer {
    /// Go on.
    Yes,
    /// Leave the disk as it is; why, in words.
    No(String),
    /// There is no answer; why, in words.
    NotYet(String),
}

/// What keeps a machine from its order.
#[derive(Debug)]
pub enum Obstacle {
    /// It may pass: the server is silent or busy, or has no order yet.
    Passing(anyhow::Error),
    /// It will not pass: what the server sent makes no sense, or does not fit this machine.
    Lasting(anyhow::Error),
}

/// Why a file did not come by TFTP.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error("opening a UDP port for TFTP")]
    Socket(#[source] io::Error),
    /// The text that comes with the code is about disks.
    #[error("{server} is busy with other machines; asking for {name} again")]
    Busy { server: IpAddr, name: String },
    #[error(transparent)]
    Server(FetchError),
}

/// The bytes of `ezio.conf` for this machine, and the name it was found under. The first name carries the key to which the
/// order's token is to be sealed; a server that knows no such name says so, and gives the token in plain text.
///
/// # Errors
/// If the server has none of the four names, or does not answer.
pub async fn conf(at: SocketAddr, mac: MacAddr, key: PublicKey) -> Result<(Vec<u8>, String), Obstacle> {
    let server = at.ip();
    let own = format!("ezio.conf/{}", mac.bootif());
    let names = [format!("{own}/{key}"), own, "ezio.conf/default".to_owned(), "ezio.conf".to_owned()];
    for name in names {
        match transfer(at, &name, MAX_CONF_LEN).await {
            Ok(bytes) => return Ok((bytes, name)),
            Err(TransferError::Server(FetchError::Refused { code, .. })) if NO_SUCH_FILE.contains(&code) => {}
            // Ours knows this machine and has no order for it: everybody's is not for it either. It says why.
            Err(TransferError::Server(FetchError::Refused { code: NO_SUCH_USER, text, .. })) => {
                return Err(Obstacle::Passing(anyhow!(
                    "{server} has no order for {mac}: {text}; `ezio status` on the server shows what is armed"
                )));
            }
            Err(error) => return Err(Obstacle::Passing(anyhow!(error).context("fetching ezio.conf"))),
        }
    }
    Err(Obstacle::Passing(anyhow!(
        "{server} has no ezio.conf for {mac}: nothing is armed for this machine; run `ezio arm IMAGE` on the server"
    )))
}

/// The torrent's bytes.
///
/// # Errors
/// If it is not there, or the server does not answer.
pub async fn torrent(server: Ipv4Addr, path: &str) -> Result<Vec<u8>, Obstacle> {
    let most = usize::try_from(metainfo::TORRENT_LEN_MAX).expect("fits");
    let bytes = transfer((server, TFTP_PORT).into(), path, most).await;
    bytes.context("fetching the torrent that ezio.conf names").map_err(Obstacle::Passing)
}

/// Asks whether this machine may write, by the file of that name.
pub async fn confirm(server: SocketAddr, name: &str) -> Answer {
    let at = server.ip();
    match transfer(server, name, MAX_CONF_LEN).await {
        Ok(bytes) if bytes.starts_with(b"yes") => Answer::Yes,
        Ok(bytes) => {
            let text: String = String::from_utf8_lossy(&bytes).chars().take(SHOWN_LEN).collect();
            Answer::No(format!("{at} has {text:?} in {name}, which is no yes"))
        }
        Err(TransferError::Server(FetchError::Refused { text, .. })) => Answer::No(text),
        Err(error) => {
            let error = anyhow!(error).context("asking whether to write to the disk");
            Answer::NotYet(format!("{error:#}; nothing is written before there is an answer"))
        }
    }
}

async fn transfer(to: SocketAddr, name: &str, max_len: usize) -> Result<Vec<u8>, TransferError> {
    let server = to.ip();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.map_err(TransferError::Socket)?;
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
            Step::Done(bytes) => return Ok(bytes),
            Step::Failed(FetchError::Refused { code: BUSY, .. }) => {
                return Err(TransferError::Busy { server, name: name.to_owned() });
            }
            Step::Failed(error) => return Err(TransferError::Server(error)),
        }
    }
}

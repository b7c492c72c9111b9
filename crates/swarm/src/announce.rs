//! Announcing to trackers and learning about peers (BEP 3, BEP 23).
//!
//! In a room that has just been switched on, machines have to find each other: they announce every few seconds in the
//! first minute, and retry failed announces after 0.3 to 5 seconds, without end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use metainfo::{Infohash, bencode};
use serde::Deserialize;
use serde_bytes::ByteBuf;

/// A tracker's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// When it expects the next announce.
    pub interval: Option<Duration>,
    /// Where other peers listen.
    pub peers: Vec<SocketAddr>,
}

/// Why an announce failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// No connection, no answer, no 200.
    #[error("the tracker cannot be reached")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not a tracker's reply.
    #[error("the tracker's reply is not bencode")]
    Bencode(#[source] bencode::BencodeError),
    /// The tracker refuses us.
    #[error("the tracker refuses: {0}")]
    Refused(String),
    /// The reply has no peers, or peers in an unknown form.
    #[error("the tracker's reply has no list of peers")]
    Shape,
}

#[derive(Deserialize)]
struct DictPeer {
    ip: String,
    port: u16,
}

/// Reads a reply. The peers are in the compact form, in a list of dictionaries, or in both for IPv6.
///
/// # Errors
/// [`AnnounceError::Refused`] if the tracker refused, otherwise the fault in the bytes.
pub fn parse_reply(bytes: &[u8]) -> Result<Reply, AnnounceError> {
    bencode::check(bytes).map_err(AnnounceError::Bencode)?;
    let value = |key: &str| -> Result<Option<&[u8]>, AnnounceError> {
        let range = bencode::dict_value(bytes, key.as_bytes()).map_err(AnnounceError::Bencode)?;
        Ok(range.map(|range| &bytes[range]))
    };
    let string = |raw: &[u8]| serde_bencode::from_bytes::<ByteBuf>(raw).map(ByteBuf::into_vec).ok();
    if let Some(reason) = value("failure reason")? {
        let reason = string(reason).unwrap_or_default();
        return Err(AnnounceError::Refused(String::from_utf8_lossy(&reason).chars().take(200).collect()));
    }
    let interval = value("interval")?.and_then(|raw| serde_bencode::from_bytes::<u64>(raw).ok());
    let mut peers = Vec::new();
    let (four, six) = (value("peers")?, value("peers6")?);
    if four.is_none() && six.is_none() {
        return Err(AnnounceError::Shape);
    }
    match four {
        Some(raw) if raw.first() == Some(&b'l') => {
            let list: Vec<DictPeer> = serde_bencode::from_bytes(raw).map_err(|_| AnnounceError::Shape)?;
            let addrs = list.iter().filter_map(|peer| Some(SocketAddr::new(peer.ip.parse().ok()?, peer.port)));
            peers.extend(addrs);
        }
        Some(raw) => {
            let compact = string(raw).filter(|bytes| bytes.len() % 6 == 0).ok_or(AnnounceError::Shape)?;
            peers.extend(compact.chunks_exact(6).map(|entry| {
                let ip: [u8; 4] = entry[..4].try_into().expect("4 bytes");
                SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), u16::from_be_bytes([entry[4], entry[5]]))
            }));
        }
        None => {}
    }
    if let Some(raw) = six {
        let compact = string(raw).filter(|bytes| bytes.len() % 18 == 0).ok_or(AnnounceError::Shape)?;
        peers.extend(compact.chunks_exact(18).map(|entry| {
            let ip: [u8; 16] = entry[..16].try_into().expect("16 bytes");
            SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)), u16::from_be_bytes([entry[16], entry[17]]))
        }));
    }
    peers.retain(|addr| addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast());
    Ok(Reply { interval: interval.map(Duration::from_secs), peers })
}

/// The progress that one announce reports.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Payload bytes sent.
    pub uploaded: u64,
    /// Payload bytes received.
    pub downloaded: u64,
    /// Bytes still missing.
    pub left: u64,
}

/// The URL of one announce.
pub fn url(
    tracker: &str,
    infohash: Infohash,
    peer_id: &[u8; 20],
    port: u16,
    progress: Progress,
    event: Option<&str>,
) -> String {
    let Progress { uploaded, downloaded, left } = progress;
    let mut url = tracker.to_owned();
    url.push(if tracker.contains('?') { '&' } else { '?' });
    url.push_str("info_hash=");
    push_encoded(&mut url, &infohash.0);
    url.push_str("&peer_id=");
    push_encoded(&mut url, peer_id);
    url.push_str(&format!("&port={port}&uploaded={uploaded}&downloaded={downloaded}&left={left}&compact=1&numwant=80"));
    if let Some(event) = event {
        url.push_str("&event=");
        url.push_str(event);
    }
    url
}

fn push_encoded(url: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
}

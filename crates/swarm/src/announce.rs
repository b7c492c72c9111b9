//! Telling trackers about us and hearing about others (BEP 3, BEP 23).
//!
//! A room that has just been switched on has to find itself: announces come every few seconds in the first minute,
//! failed ones are tried again in 0.3 to 5 seconds, for ever.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metainfo::{Infohash, bencode};
use serde::Deserialize;
use serde_bytes::ByteBuf;

use crate::engine::Shared;

/// Longest time one announce may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest goodbye: a machine that wants to reboot does not wait for a dead server.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between announces in the first minute, whatever the tracker says, and least and most later on.
const INTERVAL_YOUNG: Duration = Duration::from_secs(5);
const INTERVAL_LIMITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
const YOUNG: Duration = Duration::from_secs(60);
/// Between attempts that fail.
const RETRY: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(5));
/// Longest reply read: thousands of peers.
const MAX_REPLY: u64 = 1 << 20;

/// What a tracker answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// When it wants to hear from us again.
    pub interval: Option<Duration>,
    /// Where others listen.
    pub peers: Vec<SocketAddr>,
}

/// Why an announce failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// No connection, no answer, no 200.
    #[error("the tracker cannot be reached: {0}")]
    Http(String),
    /// Something that is no tracker's reply.
    #[error("the tracker's reply is not bencode")]
    Bencode(#[source] bencode::BencodeError),
    /// The tracker will not have us.
    #[error("the tracker refuses: {0}")]
    Refused(String),
    /// A reply without peers, or with peers of an unknown shape.
    #[error("the tracker's reply has no list of peers")]
    Shape,
}

#[derive(Deserialize)]
struct DictPeer {
    ip: String,
    port: u16,
}

/// Reads a reply, with peers in the compact form, as a list of dictionaries, or both for IPv6.
///
/// # Errors
/// [`AnnounceError::Refused`] if the tracker said no, else whatever is wrong with the bytes.
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

/// What is told with one announce.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Payload bytes sent.
    pub uploaded: u64,
    /// Payload bytes received.
    pub downloaded: u64,
    /// Bytes still lacking.
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

/// Announces to one tracker until the swarm ends; then says goodbye.
pub(crate) async fn run(shared: Arc<Shared>, tracker: String) {
    let started = Instant::now();
    let mut told_started = false;
    let mut told_completed = shared.is_complete();
    let mut retry = RETRY.0;
    let mut ending = shared.ending();
    let mut completion = shared.completion();
    loop {
        let completes = told_started && !told_completed && shared.is_complete();
        let event = if !told_started {
            Some("started")
        } else if completes {
            Some("completed")
        } else {
            None
        };
        let wait = tokio::select! {
            _ = ending.wait_for(|ended| *ended) => break,
            result = once(&shared, &tracker, event, TIMEOUT) => match result {
                Ok(reply) => {
                    told_started = true;
                    told_completed |= completes;
                    retry = RETRY.0;
                    shared.heard(&reply.peers);
                    if started.elapsed() < YOUNG {
                        INTERVAL_YOUNG
                    } else {
                        reply.interval.unwrap_or(YOUNG).clamp(INTERVAL_LIMITS.0, INTERVAL_LIMITS.1)
                    }
                }
                Err(error) => {
                    log::debug!("{tracker}: {error}");
                    shared.set_tracker_error(format!("{tracker}: {error}"));
                    let wait = retry;
                    retry = (retry * 2).min(RETRY.1);
                    wait
                }
            },
        };
        tokio::select! {
            _ = ending.wait_for(|ended| *ended) => break,
            () = tokio::time::sleep(wait) => {}
            _ = completion.wait_for(|outcome| outcome.is_some()), if told_started && !told_completed && !shared.is_complete() => {}
        }
        if shared.has_failed() {
            break;
        }
    }
    if told_started {
        let _ = once(&shared, &tracker, Some("stopped"), GOODBYE_TIMEOUT).await;
    }
}

async fn once(
    shared: &Arc<Shared>,
    tracker: &str,
    event: Option<&'static str>,
    timeout: Duration,
) -> Result<Reply, AnnounceError> {
    let url = shared.announce_url(tracker, event);
    let get = move || -> Result<Vec<u8>, AnnounceError> {
        let http = |error: ureq::Error| AnnounceError::Http(error.to_string());
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(timeout)).proxy(None).build().into();
        let mut reply = agent.get(&url).call().map_err(http)?;
        reply.body_mut().with_config().limit(MAX_REPLY).read_to_vec().map_err(http)
    };
    let bytes = tokio::task::spawn_blocking(get).await.map_err(|error| AnnounceError::Http(error.to_string()))??;
    parse_reply(&bytes)
}

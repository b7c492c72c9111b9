//! The content by librqbit: one torrent, in order, into the flat file, with nothing that announces us elsewhere.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use librqbit::limits::LimitsConfig;
use librqbit::{AddTorrent, AddTorrentOptions, ManagedTorrent, Session, SessionOptions, TorrentStatsState};
use metainfo::Metainfo;

use super::storage::{Content, FlatStorage};
use terminal::Progress;

/// How often we look how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Pause between announces: a server that was restarted seeds on another port.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(15);
/// Silence after which we say that we are waiting.
const SAY_AFTER: Duration = Duration::from_secs(15);
/// How long its tasks get to end.
const GOODBYE: Duration = Duration::from_secs(2);

/// One download.
pub struct Download<'a> {
    /// The torrent, parsed by us.
    pub meta: &'a Metainfo,
    /// The torrent, with the one tracker to ask, if any.
    pub torrent: Vec<u8>,
    /// Where it goes.
    pub content: Arc<Content>,
    /// Peers that are known without a tracker.
    pub peers: Vec<SocketAddr>,
    /// The tracker in `torrent`, for messages.
    pub tracker: Option<String>,
    /// Most bytes a second.
    pub down: Option<NonZeroU32>,
    /// Longest silence.
    pub patience: Duration,
    /// Set from outside to give up.
    pub stop: &'a AtomicBool,
}

impl Download<'_> {
    /// Runs until every piece is there and right; gives the bytes that came over the network.
    ///
    /// # Errors
    /// A disk that does not take it, nobody who sends it, or being told to stop. What came stays.
    pub fn run(self) -> anyhow::Result<u64> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting up")?;
        let result = runtime.block_on(self.fetch());
        runtime.shutdown_timeout(GOODBYE);
        result
    }

    async fn fetch(self) -> anyhow::Result<u64> {
        let options = SessionOptions {
            dht: None,
            listen: None,
            persistence: None,
            disable_local_service_discovery: true,
            ipv4_only: self.peers.iter().all(SocketAddr::is_ipv4),
            ..SessionOptions::default()
        };
        // Nothing is written to this folder: the storage is ours.
        let session = Session::new_with_opts("/nonexistent".into(), options).await.context("starting the client")?;
        let options = AddTorrentOptions {
            overwrite: true,
            output_folder: Some("/nonexistent".to_owned()),
            force_tracker_interval: Some(ANNOUNCE_EVERY),
            initial_peers: Some(self.peers.clone()),
            ratelimits: LimitsConfig { download_bps: self.down, upload_bps: None },
            storage_factory: Some(FlatStorage::factory(self.content.clone())),
            ..AddTorrentOptions::default()
        };
        let add = AddTorrent::from_bytes(self.torrent.clone());
        let added = session.add_torrent(add, Some(options)).await.context("handing the torrent to the client")?;
        let torrent = added.into_handle().context("handing the torrent to the client")?;
        ensure!(torrent.info_hash().0 == self.meta.infohash.0, "the client reads another infohash than we do");
        let result = self.watch(&torrent).await;
        session.cancellation_token().cancel();
        result
    }

    async fn watch(&self, torrent: &ManagedTorrent) -> anyhow::Result<u64> {
        let total = self.meta.geometry.content_len();
        let mut checking: Option<(Progress, u64)> = None;
        let mut pulling: Option<(Progress, u64)> = None;
        let mut fetched = 0;
        let mut moved = Instant::now();
        let mut said = false;
        loop {
            ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
            if let Some(error) = self.content.take_failure() {
                return Err(anyhow!(error).context("writing the content: is the disk full?"));
            }
            let stats = torrent.stats();
            match stats.state {
                TorrentStatsState::Error => {
                    bail!("the client gave up: {}", stats.error.as_deref().unwrap_or("it does not say why"))
                }
                TorrentStatsState::Initializing { .. } | TorrentStatsState::Paused => {
                    let (progress, done) = checking.get_or_insert_with(|| (Progress::new("checking", total), 0));
                    progress.advance(stats.progress_bytes.saturating_sub(*done));
                    *done = stats.progress_bytes.max(*done);
                    moved = Instant::now();
                }
                TorrentStatsState::Live => {
                    if let Some((progress, _)) = checking.take() {
                        progress.finish();
                    }
                    let snapshot = stats.live.map(|live| live.snapshot).unwrap_or_default();
                    let (progress, done) = pulling.get_or_insert_with(|| {
                        // Some may have come between the check and this look at it.
                        let had = stats.progress_bytes.saturating_sub(snapshot.downloaded_and_checked_bytes);
                        if had > 0 {
                            say!("{} of {} are already here and correct", units::size(had), units::size(total));
                        }
                        moved = Instant::now();
                        (Progress::new("pulling", total.saturating_sub(had)), had)
                    });
                    progress.advance(stats.progress_bytes.saturating_sub(*done));
                    *done = stats.progress_bytes.max(*done);
                    if snapshot.fetched_bytes > fetched {
                        fetched = snapshot.fetched_bytes;
                        moved = Instant::now();
                        said = false;
                    }
                    if stats.finished {
                        break;
                    }
                    let silence = moved.elapsed();
                    if silence >= self.patience {
                        bail!("nothing came for {} s: {}", self.patience.as_secs(), self.who(snapshot.peer_stats.live));
                    }
                    if silence >= SAY_AFTER && !said {
                        said = true;
                        log::warn!(
                            "no data has arrived for {} s: {}",
                            silence.as_secs(),
                            self.who(snapshot.peer_stats.live)
                        );
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        if let Some((progress, _)) = pulling {
            progress.finish();
        }
        Ok(fetched)
    }

    /// Who was asked, and whom we are connected to.
    fn who(&self, connected: u32) -> String {
        let mut asked: Vec<String> = self.tracker.iter().map(|url| format!("the tracker {url}")).collect();
        asked.extend(self.peers.iter().map(|peer| format!("the peer {peer}")));
        let asked = asked.join(" and ");
        match connected {
            0 => format!(
                "asked {asked}, but no peer connected; is the other server on, and are its ports open to this machine?"
            ),
            count => format!("asked {asked}, connected to {count} that have nothing for us"),
        }
    }
}

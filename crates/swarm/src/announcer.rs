//! Announces as long as a swarm lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::announce::{AnnounceError, Reply, parse_reply};
use crate::engine::Shared;

/// Longest time one announce may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for the last announce: a machine that is about to reboot does not wait for a dead server.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of announces in the first minute, whatever the tracker says, and its bounds later on.
const INTERVAL_YOUNG: Duration = Duration::from_secs(5);
const INTERVAL_LIMITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
const YOUNG: Duration = Duration::from_secs(60);
/// Pause between failed attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(5));
/// Longest reply that is read, in bytes: thousands of peers.
const MAX_REPLY: u64 = 1 << 20;

/// Announces to one tracker until the swarm ends, then announces that it stopped.
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
                    let words = format!("{tracker}: {}", in_words(&error));
                    log::debug!("{words}");
                    shared.set_tracker_error(words);
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
        let http = |error: ureq::Error| AnnounceError::Http(error.into());
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(timeout)).proxy(None).build().into();
        let mut reply = agent.get(&url).call().map_err(http)?;
        reply.body_mut().with_config().limit(MAX_REPLY).read_to_vec().map_err(http)
    };
    let bytes = tokio::task::spawn_blocking(get).await.map_err(|error| AnnounceError::Http(error.into()))??;
    parse_reply(&bytes)
}

/// An error with its causes, in one line.
fn in_words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_announce_names_its_cause() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = AnnounceError::Http(refused.into());
        assert_eq!(in_words(&error), "the tracker cannot be reached: connection refused");
        assert_eq!(in_words(&AnnounceError::Shape), "the tracker's reply has no list of peers");
    }
}

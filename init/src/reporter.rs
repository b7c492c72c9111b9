//! Reporting to the server: the newest state each second, from a separate thread, so that no other work waits for it.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use report::{Progress, Report, Stage, StageTime};
use seal::{About, PROOF_HEADER, Proof, Said, Token};

/// Progress goes out this often, and a finished or failed machine goes on saying so.
const EVERY: Duration = Duration::from_secs(1);
const POST_TIMEOUT: Duration = Duration::from_secs(3);

/// What this machine says of itself. Cheap to clone; all clones are the same machine.
#[derive(Clone)]
pub struct Reporter {
    state: Arc<Mutex<State>>,
    wake: SyncSender<()>,
}

struct State {
    report: Report,
    /// The token of an order in which it came sealed: it proves each report, and is never said.
    token: Option<Token>,
    stage_started: Instant,
    url: Option<String>,
    is_sent: bool,
    /// Attempts since the stage began that did not arrive.
    failures: u32,
}

impl Reporter {
    /// Starts with an empty report in stage [`Stage::Network`]; nothing is sent before there is a URL.
    pub fn new(serial: String, uuid: String) -> Reporter {
        let report = Report {
            mac: String::new(),
            deployment: String::new(),
            token: String::new(),
            count: 0,
            ip: String::new(),
            serial,
            uuid,
            image: String::new(),
            stage: Stage::Network,
            progress: Progress::default(),
            kept: 0,
            disk: String::new(),
            dry_run: false,
            note: String::new(),
            error: None,
            times: Vec::new(),
            more: BTreeMap::new(),
        };
        let state =
            State { report, token: None, stage_started: Instant::now(), url: None, is_sent: false, failures: 0 };
        let state = Arc::new(Mutex::new(state));
        let (wake, woken) = sync_channel(1);
        let sender = Arc::clone(&state);
        std::thread::spawn(move || send_forever(&sender, &woken));
        Reporter { state, wake }
    }

    /// Where to report, from now on.
    pub fn set_url(&self, url: String) {
        lock(&self.state).url = Some(url);
        self.send_now();
    }

    /// Proves every report with this token, from now on.
    pub fn prove_with(&self, token: Option<Token>) {
        lock(&self.state).token = token;
    }

    /// Changes what the next report says.
    pub fn update(&self, change: impl FnOnce(&mut Report)) {
        let mut state = lock(&self.state);
        change(&mut state.report);
        state.is_sent = false;
    }

    /// Enters a stage: the one before gets its time.
    pub fn enter(&self, stage: Stage) {
        let mut state = lock(&self.state);
        if state.report.stage == stage {
            return;
        }
        let done = StageTime { stage: state.report.stage, seconds: state.stage_started.elapsed().as_secs_f64() };
        state.report.times.push(done);
        state.report.stage = stage;
        let progress = &mut state.report.progress;
        progress.bytes_done = if stage.is_verified() { progress.bytes_total } else { 0 };
        progress.rate_bytes_per_s = 0;
        state.stage_started = Instant::now();
        state.is_sent = false;
        state.failures = 0;
        drop(state);
        self.send_now();
    }

    /// What the machine last said.
    pub fn report(&self) -> Report {
        lock(&self.state).report.clone()
    }

    /// Waits until the newest report has arrived, or `limit` is over and two attempts were in vain: time alone may have
    /// passed while the machine stood still.
    pub fn settle(&self, limit: Duration) {
        let started = Instant::now();
        loop {
            let state = lock(&self.state);
            let is_vain = started.elapsed() >= limit && state.failures >= 2;
            if state.is_sent || state.url.is_none() || is_vain {
                return;
            }
            drop(state);
            self.send_now();
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn send_now(&self) {
        // A wake-up that is still pending is as good as another one.
        let _ = self.wake.try_send(());
    }
}

fn send_forever(state: &Mutex<State>, woken: &Receiver<()>) {
    let config = ureq::Agent::config_builder().timeout_global(Some(POST_TIMEOUT)).build();
    let agent = ureq::Agent::new_with_config(config);
    let mut count = 0;
    while woken.recv_timeout(EVERY) != Err(RecvTimeoutError::Disconnected) {
        let (url, report, token) = {
            let state = lock(state);
            (state.url.clone(), state.report.clone(), state.token)
        };
        let Some(url) = url else { continue };
        count += 1;
        let Some((body, proof)) = proven(&report, token.as_ref(), count) else { continue };
        let mut post = agent.post(&url).content_type("application/json");
        if let Some(proof) = proof {
            post = post.header(PROOF_HEADER, proof.to_string());
        }
        match post.send(&body) {
            Ok(_) => {
                let mut state = lock(state);
                state.is_sent = state.report == report;
            }
            // The server may be restarting; the next second brings the next report.
            Err(cause) => {
                log::debug!("reporting to {url}: {cause}");
                let mut state = lock(state);
                state.failures += u32::from(state.report.stage == report.stage);
            }
        }
    }
}

/// The report as it is sent, with its number and the proof of it if there is a token.
fn proven(report: &Report, token: Option<&Token>, count: u64) -> Option<(String, Option<Proof>)> {
    let Some(token) = token else { return serde_json::to_string(report).ok().map(|body| (body, None)) };
    let body = serde_json::to_string(&Report { token: String::new(), count, ..report.clone() }).ok()?;
    let mac = report.mac.parse().ok()?;
    let proof = token.prove(About { mac, deployment: &report.deployment }, Said::Report(body.as_bytes()));
    Some((body, Some(proof)))
}

/// A report is plain data; a thread that died while holding it cannot have broken it.
fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_token_proves_what_is_said_and_is_never_said() {
        let json = r#"{"mac":"52:54:00:77:00:01","stage":"done","deployment":"7","token":"5eed"}"#;
        let report: Report = serde_json::from_str(json).expect("a report");
        let (body, proof) = proven(&report, None, 1).expect("JSON");
        assert!(proof.is_none() && body.contains("\"token\":\"5eed\""), "to an older server: {body}");
        let token = Token::new([7; 8], [9; 16]);
        let (body, proof) = proven(&report, Some(&token), 3).expect("JSON");
        let (proof, about) =
            (proof.expect("a proof"), About { mac: report.mac.parse().expect("a MAC"), deployment: "7" });
        assert!(token.has_proven(&proof, about, Said::Report(body.as_bytes())));
        assert!(body.contains("\"count\":3") && !body.contains("token") && !body.contains("0909"), "{body}");
        assert!(proven(&Report { mac: String::new(), ..report }, Some(&token), 1).is_none());
    }
}

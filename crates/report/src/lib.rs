//! What a machine reports to the server, once a second, as JSON by HTTP POST. Types only.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::cast_lossless, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest name of a stage that is kept, in bytes; longer names are cut.
const STAGE_LEN_MAX: usize = 24;

/// Where a machine is on its way from power-on to the new system, in the order it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Stage {
    /// Loading drivers and waiting for a link and a lease.
    Network,
    /// Fetching `ezio.conf` and the torrent.
    Fetch,
    /// Choosing the disk and checking that the image fits.
    Disk,
    /// Writing verified pieces while in the swarm.
    Restore,
    /// Reading everything back from the medium and hashing it again.
    Verify,
    /// Writing the partition table and flushing.
    Finish,
    /// Verified; still seeding to others before the after-action.
    Seeding,
    /// Done: about to reboot, power off or halt.
    Done,
    /// Ended without success; `error` says why.
    Failed,
    /// A stage of a newer machine, by its name.
    Unknown(StageName),
}

/// The name of a stage that this version does not know, cut to 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageName {
    bytes: [u8; STAGE_LEN_MAX],
    len: u8,
}

impl StageName {
    fn new(name: &str) -> StageName {
        let mut end = name.len().min(STAGE_LEN_MAX);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; STAGE_LEN_MAX];
        bytes[..end].copy_from_slice(&name.as_bytes()[..end]);
        StageName { bytes, len: u8::try_from(end).unwrap_or_default() }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Debug for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl From<String> for Stage {
    fn from(name: String) -> Stage {
        let known = Stage::ALL.into_iter().find(|stage| stage.as_str() == name);
        known.unwrap_or_else(|| Stage::Unknown(StageName::new(&name)))
    }
}

impl From<Stage> for String {
    fn from(stage: Stage) -> String {
        stage.as_str().to_owned()
    }
}

impl Stage {
    /// The stages that this version knows, in the order in which they happen.
    pub const ALL: [Stage; 9] = [
        Stage::Network,
        Stage::Fetch,
        Stage::Disk,
        Stage::Restore,
        Stage::Verify,
        Stage::Finish,
        Stage::Seeding,
        Stage::Done,
        Stage::Failed,
    ];

    /// Its name, in reports and tables.
    pub fn as_str(&self) -> &str {
        match self {
            Stage::Network => "network",
            Stage::Fetch => "fetch",
            Stage::Disk => "disk",
            Stage::Restore => "restore",
            Stage::Verify => "verify",
            Stage::Finish => "finish",
            Stage::Seeding => "seeding",
            Stage::Done => "done",
            Stage::Failed => "failed",
            Stage::Unknown(name) => name.as_str(),
        }
    }

    /// Whether the machine is finished with this deployment.
    pub fn is_final(self) -> bool {
        matches!(self, Stage::Done | Stage::Failed)
    }

    /// Whether the disk was written and proven.
    pub fn is_verified(self) -> bool {
        matches!(self, Stage::Seeding | Stage::Done)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How long one stage took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// Which stage.
    pub stage: Stage,
    /// Seconds of wall time spent in it, until now if it is the current one.
    pub seconds: f64,
}

/// How far a machine is in its stage, and what it has moved since the restore began. The restore, the report and the
/// table that people read share this type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Bytes of content done in this stage.
    pub bytes_done: u64,
    /// Bytes of content in all, or zero before it is known.
    pub bytes_total: u64,
    /// Rate in this stage over the last seconds, bytes per second.
    pub rate_bytes_per_s: u64,
    /// Payload bytes taken from the swarm.
    pub downloaded: u64,
    /// Payload bytes given to the swarm.
    pub uploaded: u64,
    /// Bytes of content written to the disk.
    pub written: u64,
    /// Connected peers.
    pub peers: u32,
}

impl Progress {
    /// Seconds until this stage ends at the current rate; `None` if nothing moves.
    pub fn eta_seconds(&self) -> Option<u64> {
        let left = self.bytes_total.saturating_sub(self.bytes_done);
        left.checked_div(self.rate_bytes_per_s)
    }

    /// Share of this stage that is done, 0 to 100.
    pub fn percent(&self) -> u8 {
        let done = u128::from(self.bytes_done) * 100;
        let percent = done.checked_div(u128::from(self.bytes_total)).unwrap_or(0);
        u8::try_from(percent.min(100)).expect("at most 100")
    }
}

/// One report. Every field except `mac` and `stage` may be missing, so that an older machine can talk to a newer
/// server. Unknown stages and fields are kept as received, so that a newer machine can talk to an older server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The network card's address, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// The deployment of this report, as `ezio.conf` named it (`DEPLOYMENT`).
    #[serde(default)]
    pub deployment: String,
    /// What proves that it is this machine's own word, as `ezio.conf` gave it (`TOKEN`); empty for none. Between the two alone:
    /// it is shown to nobody else.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// Counts the reports of one start of the machine, from 1, so that one that is sent again by somebody else is noticed; zero
    /// from a machine that does not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub count: u64,
    /// IPv4 address, or empty before there is one.
    #[serde(default)]
    pub ip: String,
    /// SMBIOS system serial number, or empty.
    #[serde(default)]
    pub serial: String,
    /// SMBIOS system UUID, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uuid: String,
    /// The image's name, or empty before it is known.
    #[serde(default)]
    pub image: String,
    /// The current stage.
    pub stage: Stage,
    /// How far the stage is.
    #[serde(flatten)]
    pub progress: Progress,
    /// Bytes of content that were on the disk already.
    #[serde(default)]
    pub kept: u64,
    /// The chosen disk as text: name, model, serial, size.
    #[serde(default)]
    pub disk: String,
    /// Whether this machine only reports what it would do.
    #[serde(default)]
    pub dry_run: bool,
    /// Anything else to report, as text: what was kept, what a dry run found, what could not be done.
    #[serde(default)]
    pub note: String,
    /// Why it failed, as text with the cause chain; `None` unless failed.
    #[serde(default)]
    pub error: Option<String>,
    /// Stages so far, in order.
    #[serde(default)]
    pub times: Vec<StageTime>,
    /// Fields of a newer machine that this version does not know.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_two_fields_is_enough() {
        let report: Report = serde_json::from_str(r#"{"mac":"52:54:00:77:00:01","stage":"network"}"#).expect("short");
        assert_eq!(report.stage, Stage::Network);
        assert_eq!(report.progress, Progress::default());
        assert_eq!(report.progress.eta_seconds(), None);
        assert_eq!(report.progress.percent(), 0);
    }

    #[test]
    fn what_a_newer_machine_says_is_kept_as_it_came() {
        let text = r#"{"mac":"m","stage":"defragment","peers":3,"temperature":41,"times":[{"stage":"defragment","seconds":1.5}]}"#;
        let report: Report = serde_json::from_str(text).expect("newer");
        assert_eq!(report.stage.to_string(), "defragment");
        assert!(!report.stage.is_final() && !report.stage.is_verified());
        assert_eq!(report.progress.peers, 3);
        assert_eq!(report.more.keys().collect::<Vec<_>>(), ["temperature"]);
        assert_eq!(report.more["temperature"], 41);
        let again = serde_json::to_value(&report).expect("plain data");
        assert_eq!((again["stage"].as_str(), again["temperature"].as_u64()), (Some("defragment"), Some(41)));
        assert_eq!(again["times"][0]["stage"], "defragment");
        let long = "ä".repeat(100);
        let stage = Stage::from(long.clone());
        assert_eq!(stage.to_string(), long[..24]);
        for stage in Stage::ALL {
            assert_eq!(Stage::from(stage.to_string()), stage);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_json_is_read_or_refused(stage in "(?s).{0,60}", key in "[a-z_]{1,12}", value in "(?s).{0,40}") {
            let json = serde_json::json!({ "mac": value, "stage": stage, key: value });
            if let Ok(report) = serde_json::from_value::<Report>(json) {
                let again: Report = serde_json::from_str(&serde_json::to_string(&report).expect("JSON")).expect("its own");
                proptest::prop_assert_eq!(again, report);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = serde_json::from_slice::<Report>(&bytes);
        }
    }

    #[test]
    fn progress_is_a_share_of_the_total() {
        let (bytes_done, bytes_total) = (u64::MAX / 2, u64::MAX);
        let progress = Progress { bytes_done, bytes_total, rate_bytes_per_s: u64::MAX / 2, ..Progress::default() };
        assert_eq!(progress.percent(), 49);
        assert_eq!(progress.eta_seconds(), Some(1));
    }
}

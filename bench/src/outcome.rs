//! The result of a run, and the figures computed from it.

use serde::{Deserialize, Serialize};

use crate::machine::Use;
use crate::tool::Tool;

const GIB: f64 = (1u64 << 30) as f64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// Every receiver has its own shaped port, and all start together.
    Shaped,
    /// Eight receivers: one joins at half time, one has a tenth of the speed, and one loses its cable and dies at half
    /// time.
    Faults,
    /// Eight receivers, and one peer for each [`Misdeed`].
    Hostile,
    /// Unshaped: the limit is the processors.
    Raw,
}

/// The action of a hostile peer; `hostile.py` has the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Misdeed {
    /// Answers with wrong bytes.
    Lies,
    /// Accepts requests but answers none.
    Stalls,
    /// Requests everything again and again, and reads nothing.
    Floods,
    /// Sends noise.
    Garbage,
    /// Claims to have everything, and hangs up at the first request.
    Claims,
}

impl Misdeed {
    pub const ALL: [Misdeed; 5] = [Misdeed::Lies, Misdeed::Stalls, Misdeed::Floods, Misdeed::Garbage, Misdeed::Claims];

    /// Its name in `hostile.py`.
    pub fn name(self) -> &'static str {
        match self {
            Misdeed::Lies => "lies",
            Misdeed::Stalls => "stalls",
            Misdeed::Floods => "floods",
            Misdeed::Garbage => "garbage",
            Misdeed::Claims => "claims",
        }
    }
}

/// What happens to a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    Healthy,
    /// Starts at half time.
    Late,
    /// Has a tenth of the speed; the run does not wait for it.
    Slow,
    /// Loses its cable and dies at half time.
    Killed,
    /// It is not a receiver but a peer that disturbs the others.
    Hostile(Misdeed),
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Race {
    pub case: Case,
    pub tool: Tool,
    pub receivers: usize,
    /// Speed of every port in Mbit/s; `None` is unshaped.
    pub mbit: Option<f64>,
    /// The rate of a plain copy through such a port, in bytes per second.
    pub goodput: Option<f64>,
    /// Number of the run, from 1.
    pub run: u32,
    pub seed: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub race: Race,
    /// Length of the image in bytes.
    pub image_len: u64,
    /// The tracker's address; the machines' addresses have the same first two bytes.
    pub network: String,
    /// Length of the image divided by goodput, in seconds.
    pub bound_s: Option<f64>,
    pub peers: Vec<Peer>,
    /// Bytes on the seeder's cable, from the start to the last receiver's end.
    pub seeder_sent: u64,
    /// The seeder's processor time in the same period.
    pub seeder_cpu_s: f64,
    /// Peak memory of a seeder process, in bytes.
    pub seeder_rss: u64,
    /// The use of the machine's processors in the same period.
    pub busy: Use,
    /// Why the run does not count.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// What happened to it.
    pub fate: Fate,
    /// When it was started; all times are in seconds since the start of the run.
    pub started_s: Option<f64>,
    /// When it had everything, checked and written.
    pub completed_s: Option<f64>,
    /// When it had also read everything back; only ours does that.
    pub proved_s: Option<f64>,
    /// Bytes to it on its cable.
    pub received: u64,
    /// Bytes from it on its cable.
    pub sent: u64,
    /// Processor time up to the last receiver's end.
    pub cpu_s: f64,
    /// Its peak memory, in bytes.
    pub peak_rss: u64,
}

impl Case {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Case::Shaped => "shaped",
            Case::Faults => "faults",
            Case::Hostile => "hostile",
            Case::Raw => "raw",
        }
    }

    /// The fate of each receiver.
    pub fn fates(self, receivers: usize) -> Vec<Fate> {
        let mut fates = vec![Fate::Healthy; receivers];
        if self == Case::Faults {
            let end = receivers.saturating_sub(3);
            fates.truncate(end);
            fates.extend([Fate::Late, Fate::Slow, Fate::Killed]);
        }
        if self == Case::Hostile {
            fates.truncate(receivers.saturating_sub(Misdeed::ALL.len()));
            fates.extend(Misdeed::ALL.map(Fate::Hostile));
        }
        fates
    }
}

impl Outcome {
    /// When the last healthy receiver had everything, in seconds.
    pub fn last_s(&self) -> Option<f64> {
        self.healthy().last().copied()
    }

    /// Times of the healthy receivers, ascending.
    fn healthy(&self) -> Vec<f64> {
        let healthy = self.peers.iter().filter(|peer| peer.fate == Fate::Healthy);
        let mut ends: Vec<f64> = healthy.filter_map(|peer| peer.completed_s).collect();
        ends.sort_by(f64::total_cmp);
        ends
    }

    /// The last healthy receiver's time over the bound: 1.00 is the physical limit.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.last_s()? / self.bound_s?)
    }

    /// The same, up to the end of reading back.
    pub fn proved_ratio(&self) -> Option<f64> {
        let healthy = self.peers.iter().filter(|peer| peer.fate == Fate::Healthy);
        let last = healthy.filter_map(|peer| peer.proved_s).max_by(f64::total_cmp)?;
        Some(last / self.bound_s?)
    }

    /// The late receiver's time since its start over the bound.
    pub fn late_ratio(&self) -> Option<f64> {
        let late = self.peers.iter().find(|peer| peer.fate == Fate::Late)?;
        Some((late.completed_s? - late.started_s?) / self.bound_s?)
    }

    /// The last over the median of the healthy receivers.
    pub fn spread(&self) -> Option<f64> {
        let ends = self.healthy();
        Some(ends.last()? / median(&ends)?)
    }

    /// Copies of the image that left the seeder.
    pub fn copies(&self) -> f64 {
        self.seeder_sent as f64 / self.image_len as f64
    }

    /// Bytes that finished receivers got in excess of the image, as a share of it. This includes all headers,
    /// acknowledgements and protocol messages. The value is the mean.
    pub fn waste(&self) -> Option<f64> {
        let received: Vec<f64> = self.finished().map(|peer| peer.received as f64).collect();
        let mean = received.iter().sum::<f64>() / received.len() as f64;
        (!received.is_empty()).then(|| mean / self.image_len as f64 - 1.0)
    }

    /// Content per receiver in bytes per second, until the last one has finished.
    pub fn rate(&self) -> Option<f64> {
        Some(self.image_len as f64 / self.last_s()?)
    }

    /// Processor seconds of the seeder per GiB sent.
    pub fn seeder_cpu_per_gib(&self) -> f64 {
        self.seeder_cpu_s / (self.seeder_sent as f64 / GIB)
    }

    /// Mean processor seconds of a finished receiver per GiB of the image.
    pub fn receiver_cpu_per_gib(&self) -> Option<f64> {
        let cpu: Vec<f64> = self.finished().map(|peer| peer.cpu_s).collect();
        let mean = cpu.iter().sum::<f64>() / cpu.len() as f64;
        (!cpu.is_empty()).then(|| mean / (self.image_len as f64 / GIB))
    }

    /// The tool's share of all processors' time; the kernel counts only a part of its network work for a process.
    pub fn own_share(&self) -> f64 {
        let receivers: f64 = self.peers.iter().map(|peer| peer.cpu_s).sum();
        (receivers + self.seeder_cpu_s) / self.busy.capacity_s
    }

    /// Peak memory of a receiver, in bytes.
    pub fn peak_rss(&self) -> u64 {
        let receivers = self.peers.iter().filter(|peer| !matches!(peer.fate, Fate::Hostile(_)));
        receivers.map(|peer| peer.peak_rss).max().unwrap_or(0)
    }

    fn finished(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.completed_s.is_some())
    }
}

/// The middle of ascending values, or the mean of the two in the middle.
pub fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        _ if sorted.is_empty() => None,
        0 => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_few() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
    }

    #[test]
    fn faults_leave_five_of_eight_healthy() {
        let fates = Case::Faults.fates(8);
        assert_eq!(fates.len(), 8);
        assert_eq!(fates.iter().filter(|&&fate| fate == Fate::Healthy).count(), 5);
    }
}

//! One run: a tool, a rack, the clock, and the proof that every receiver has the image.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::machine::Busy;
use crate::outcome::{Case, Fate, Outcome, Peer};
use crate::process::{Cost, POLL, Process, wait_until};
use crate::rack::{Rack, Traffic};
use crate::sandbox::{SCRATCH, fresh_dir};
use crate::tool::{Setting, Tool};
use crate::tracker;

/// Something that takes a second may take this long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this many times the bound a run counts as never finished.
const HOPELESS: f64 = 10.0;
/// How long processes get to end by themselves.
const GOODBYE: Duration = Duration::from_secs(8);

/// What is to be run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Race {
    /// Which case.
    pub case: Case,
    /// Which tool.
    pub tool: Tool,
    /// How many receivers.
    pub receivers: usize,
    /// Speed of every port in Mbit/s; `None` is unshaped.
    pub mbit: Option<f64>,
    /// What a plain copy gets out of such a port, in bytes per second.
    pub goodput: Option<f64>,
    /// Number of the run, from 1.
    pub run: u32,
    /// Decides about addresses.
    pub seed: u64,
}

struct Receiver {
    process: Option<Process>,
    fate: Fate,
    dir: PathBuf,
    /// When it was told to start.
    started: Option<Instant>,
    completed: Option<Instant>,
    proved: Option<Instant>,
    cost_before: Cost,
    cost: Cost,
    traffic: Traffic,
}

impl Race {
    /// Lowest time in seconds in which any tool can fill a receiver.
    fn bound(&self, image: &Image) -> Option<f64> {
        Some(image.len as f64 / self.goodput?)
    }

    /// Runs it.
    ///
    /// # Errors
    /// If a receiver fails, has wrong bytes, or is not done in time.
    pub fn run(&self, image: &Image, ezio: &Path, logs: &Path) -> Result<Outcome> {
        let mut rack = Rack::new(self.receivers + 1, self.mbit, self.seed)?;
        let fates = self.case.fates(self.receivers);
        for (node, fate) in rack.nodes[1..].iter_mut().zip(&fates) {
            if let (Fate::Slow, Some(mbit)) = (fate, self.mbit) {
                node.shape(mbit / 10.0)?;
            }
        }
        let work = Path::new(SCRATCH).join("work");
        fresh_dir(&work)?;
        let torrent = work.join("image.torrent");
        let infohash = image.write_torrent(&format!("http://{}:6969/announce", rack.hub), &torrent)?;
        let tracker = tracker::Server::open(rack.hub, infohash)?;
        let url = tracker.url();
        let proves = self.case != Case::Raw;
        let setting = Setting { image, torrent: &torrent, tracker: &url, ezio, receivers: self.receivers, proves };

        let mut seeders = Vec::new();
        let start_seeders = |seeders: &mut Vec<Process>| -> Result<()> {
            for (index, command) in self.tool.seeders(&setting, &rack.nodes[0])?.into_iter().enumerate() {
                let mut process = Process::start("the seeder", command, &logs.join(format!("seeder{index}.log")))?;
                if self.tool.waits_for_go() {
                    process.say("go")?;
                }
                seeders.push(process);
            }
            Ok(())
        };
        // What ends by itself is started together: nobody has anything to prepare.
        if self.tool.has_tracker() {
            start_seeders(&mut seeders)?;
            wait_until("the seeder's first announce", PATIENCE, || {
                if seeders[0].exited().is_some() {
                    bail!("the seeder ended, see {}", seeders[0].log());
                }
                Ok(tracker.peers() > 0)
            })?;
        }
        let mut receivers = Vec::new();
        for (index, fate) in fates.into_iter().enumerate() {
            let dir = work.join(format!("receiver{}", index + 1));
            fresh_dir(&dir)?;
            let (none, zero) = (None, Cost::default());
            let mut receiver = Receiver {
                process: None,
                fate,
                dir,
                started: none,
                completed: none,
                proved: none,
                cost_before: zero,
                cost: zero,
                traffic: Traffic::default(),
            };
            if self.tool.waits_for_go() {
                receiver.launch(self, &setting, &rack, index, logs)?;
            }
            receivers.push(receiver);
        }
        for process in receivers.iter_mut().filter_map(|receiver| receiver.process.as_mut()) {
            wait_until("a receiver's getting ready", PATIENCE, || {
                Ok(process.printed(|line| line == "ready").is_some())
            })?;
        }
        for receiver in &mut receivers {
            receiver.cost_before = receiver.process.as_mut().map(Process::cost).unwrap_or_default();
        }
        let cost_of = |seeders: &mut [Process]| -> f64 { seeders.iter_mut().map(|p| p.cost().cpu_s).sum() };
        let seeder_before = cost_of(&mut seeders);
        let sent_before = rack.nodes[0].traffic()?.sent;
        let busy = Busy::now()?;
        let start = Instant::now();
        for (index, receiver) in receivers.iter_mut().enumerate() {
            if receiver.fate != Fate::Late {
                receiver.go(self, &setting, &rack, index, logs)?;
            }
        }
        if !self.tool.has_tracker() {
            start_seeders(&mut seeders)?;
        }

        let bound = self.bound(image);
        let half_time = Duration::from_secs_f64(bound.unwrap_or(0.0) / 2.0);
        let hopeless = PATIENCE + Duration::from_secs_f64(bound.unwrap_or(30.0) * HOPELESS);
        let mut is_half_time_over = false;
        while !receivers.iter().all(Receiver::is_done) {
            std::thread::sleep(POLL);
            if !is_half_time_over && start.elapsed() >= half_time {
                is_half_time_over = true;
                for (index, receiver) in receivers.iter_mut().enumerate() {
                    match receiver.fate {
                        Fate::Late => receiver.go(self, &setting, &rack, index, logs)?,
                        Fate::Killed => {
                            rack.nodes[index + 1].unplug()?;
                            receiver.process.iter_mut().for_each(Process::kill);
                        }
                        Fate::Healthy | Fate::Slow => {}
                    }
                }
            }
            for (index, receiver) in receivers.iter_mut().enumerate() {
                receiver.look(self.tool, index)?;
            }
            if seeders.iter_mut().any(|seeder| seeder.exited().is_some_and(|(_, is_well)| !is_well)) {
                bail!("the seeder ended, see {}", seeders[0].log());
            }
            if start.elapsed() > hopeless {
                let done = receivers.iter().filter(|receiver| receiver.completed.is_some()).count();
                bail!("not finished after {} s: {done} receivers were", hopeless.as_secs());
            }
        }
        let busy = busy.until_now()?;
        let seeder_cpu_s = cost_of(&mut seeders) - seeder_before;
        let seeder_rss = seeders.iter_mut().map(|process| process.cost().peak_rss).max().unwrap_or(0);
        let sent = rack.nodes[0].traffic()?.sent - sent_before;
        for (receiver, node) in receivers.iter_mut().zip(&rack.nodes[1..]) {
            receiver.traffic = node.traffic()?;
            receiver.cost = receiver.process.as_mut().map(Process::cost).unwrap_or_default();
        }
        if self.tool == Tool::Ezio {
            self.wait_for_proofs(&mut receivers)?;
        }
        end(seeders.iter_mut().chain(receivers.iter_mut().filter_map(|receiver| receiver.process.as_mut())));

        for (index, receiver) in receivers.iter().enumerate().filter(|(_, receiver)| receiver.completed.is_some()) {
            let target = self.tool.target(&receiver.dir);
            image.compare(self.tool.shape(), &target).with_context(|| format!("receiver {} is wrong", index + 1))?;
        }
        let first = receivers.iter().find(|receiver| receiver.completed.is_some()).context("nobody finished")?;
        image.compare_notices_a_flipped_bit(self.tool.shape(), &self.tool.target(&first.dir), self.seed)?;

        let since = |from: Instant| move |to: Instant| to.duration_since(from).as_secs_f64();
        let peers = receivers.iter().map(|receiver| Peer {
            fate: receiver.fate,
            started_s: receiver.started.map(since(start)),
            completed_s: receiver.completed.map(since(start)),
            proved_s: receiver.proved.map(since(start)),
            received: receiver.traffic.received,
            sent: receiver.traffic.sent,
            cpu_s: receiver.cost.cpu_s - receiver.cost_before.cpu_s,
            peak_rss: receiver.cost.peak_rss,
        });
        let outcome = Outcome {
            race: self.clone(),
            image_len: image.len,
            network: rack.hub.to_string(),
            bound_s: bound,
            peers: peers.collect(),
            seeder_sent: sent,
            seeder_cpu_s,
            seeder_rss,
            busy,
            error: None,
        };
        drop(receivers);
        drop(seeders);
        // Makes room for the next run.
        fresh_dir(&work)?;
        Ok(outcome)
    }

    fn wait_for_proofs(&self, receivers: &mut [Receiver]) -> Result<()> {
        wait_until("reading back", PATIENCE * 2, || {
            let mut is_all_proved = true;
            for (index, receiver) in receivers.iter_mut().enumerate() {
                receiver.look(self.tool, index)?;
                let process = receiver.process.as_ref().filter(|_| receiver.completed.is_some());
                receiver.proved = process.and_then(|process| self.tool.proved(process));
                is_all_proved &= receiver.completed.is_none() || receiver.proved.is_some();
            }
            Ok(is_all_proved)
        })
    }
}

impl Receiver {
    fn launch(&mut self, race: &Race, setting: &Setting, rack: &Rack, index: usize, logs: &Path) -> Result<()> {
        let command = race.tool.receiver(setting, &rack.nodes[0], &rack.nodes[index + 1], index, &self.dir)?;
        let name = format!("receiver {}", index + 1);
        let log = logs.join(format!("receiver{:02}.log", index + 1));
        self.process = Some(Process::start(&name, command, &log)?);
        Ok(())
    }

    fn go(&mut self, race: &Race, setting: &Setting, rack: &Rack, index: usize, logs: &Path) -> Result<()> {
        self.started = Some(Instant::now());
        match &mut self.process {
            Some(process) => process.say("go"),
            None => self.launch(race, setting, rack, index, logs),
        }
    }

    /// Takes note if it has finished.
    fn look(&mut self, tool: Tool, index: usize) -> Result<()> {
        let Some(process) = self.process.as_mut().filter(|_| self.fate != Fate::Killed) else { return Ok(()) };
        if self.completed.is_none() {
            self.completed = tool.completed(process);
        }
        if let Some((_, is_well)) = process.exited() {
            ensure!(is_well && tool.ends(), "receiver {} ended early, see {}", index + 1, process.log());
        }
        Ok(())
    }

    /// Whether the run need not wait for it.
    fn is_done(&self) -> bool {
        self.completed.is_some() || matches!(self.fate, Fate::Slow | Fate::Killed)
    }
}

fn end<'a>(processes: impl Iterator<Item = &'a mut Process>) {
    let mut processes: Vec<_> = processes.collect();
    processes.iter_mut().for_each(|process| process.terminate());
    let all_ended = || Ok(processes.iter_mut().all(|process| process.exited().is_some()));
    if wait_until("ending", GOODBYE, all_ended).is_err() {
        processes.iter_mut().for_each(|process| process.kill());
    }
}

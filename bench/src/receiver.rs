//! One receiver during a run.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::outcome::{Fate, Peer};
use crate::process::{Cost, Process};
use crate::rack::{Node, Rack, Traffic};
use crate::sandbox::fresh_dir;
use crate::tool::{self, Setting, Tool};

/// A machine's program, and the times of its progress.
pub struct Receiver {
    tool: Tool,
    /// Counted from 0; its machine is number `index + 1` of the rack, after the seeder's.
    index: usize,
    /// What happens to it.
    pub fate: Fate,
    dir: PathBuf,
    process: Option<Process>,
    started: Option<Instant>,
    completed: Option<Instant>,
    proved: Option<Instant>,
    cost_before: Cost,
    cost: Cost,
    traffic: Traffic,
}

impl Receiver {
    /// A receiver with an empty directory below `work`, without a running program.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn new(tool: Tool, index: usize, fate: Fate, work: &Path) -> Result<Receiver> {
        let dir = work.join(format!("receiver{}", index + 1));
        fresh_dir(&dir)?;
        Ok(Receiver {
            tool,
            index,
            fate,
            dir,
            process: None,
            started: None,
            completed: None,
            proved: None,
            cost_before: Cost::default(),
            cost: Cost::default(),
            traffic: Traffic::default(),
        })
    }

    /// Starts its program; a program that waits for a start line gets ready.
    ///
    /// # Errors
    /// If it does not start.
    pub fn launch(&mut self, setting: &Setting, rack: &Rack, logs: &Path) -> Result<()> {
        let command = match self.fate {
            Fate::Hostile(misdeed) => tool::hostile(self.node(rack), misdeed, setting)?,
            _ => self.tool.receiver(setting, &rack.nodes[0], self.node(rack), self.index, &self.dir)?,
        };
        let log = logs.join(format!("receiver{:02}.log", self.index + 1));
        self.process = Some(Process::start(&format!("receiver {}", self.index + 1), command, &log)?);
        Ok(())
    }

    /// Whether it has reported that it is ready, if it has to.
    pub fn is_ready(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.printed(|line| line == "ready").is_some())
    }

    /// Starts its clock; the cost of getting ready does not count.
    ///
    /// # Errors
    /// If it does not start.
    pub fn go(&mut self, setting: &Setting, rack: &Rack, logs: &Path) -> Result<()> {
        self.started = Some(Instant::now());
        match &mut self.process {
            Some(process) => {
                self.cost_before = process.cost();
                process.say("go")
            }
            None => self.launch(setting, rack, logs),
        }
    }

    /// Its machine loses its cable and its power.
    ///
    /// # Errors
    /// If the cable cannot be removed.
    pub fn die(&mut self, rack: &Rack) -> Result<()> {
        self.node(rack).unplug()?;
        self.process.iter_mut().for_each(Process::kill);
        Ok(())
    }

    /// Records the time if it has finished.
    ///
    /// # Errors
    /// If it has failed.
    pub fn look(&mut self) -> Result<()> {
        let is_watched = self.fate != Fate::Killed;
        let Some(process) = self.process.as_mut().filter(|_| is_watched) else { return Ok(()) };
        if self.completed.is_none() {
            self.completed = self.tool.completed(process);
        }
        if self.proved.is_none() {
            self.proved = self.tool.proved(process);
        }
        if let Some((_, is_well)) = process.exited() {
            let is_as_it_should = is_well && self.tool.ends();
            ensure!(is_as_it_should, "receiver {} ended early, see {}", self.index + 1, process.log());
        }
        Ok(())
    }

    /// Whether the run need not wait for it.
    pub fn is_done(&self) -> bool {
        self.is_complete() || matches!(self.fate, Fate::Slow | Fate::Killed | Fate::Hostile(_))
    }

    /// Whether it has everything.
    pub fn is_complete(&self) -> bool {
        self.completed.is_some()
    }

    /// Whether it has also finished reading back, if it does that.
    pub fn is_proved(&self) -> bool {
        !self.is_complete() || self.tool != Tool::Ezio || self.proved.is_some()
    }

    /// Reads processor time and the cable's counters.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn read_meters(&mut self, rack: &Rack) -> Result<()> {
        self.traffic = self.node(rack).traffic()?;
        self.cost = self.process.as_mut().map(Process::cost).unwrap_or_default();
        Ok(())
    }

    /// Reads peak memory once more, because it may have risen since.
    pub fn read_peak_rss(&mut self) {
        let peak_rss = self.process.as_mut().map_or(0, |process| process.cost().peak_rss);
        self.cost.peak_rss = self.cost.peak_rss.max(peak_rss);
    }

    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    pub fn target(&self) -> PathBuf {
        self.tool.target(&self.dir)
    }

    /// Its data for the outcome, with times since `start`.
    pub fn account(&self, start: Instant) -> Peer {
        let since = |at: Instant| at.duration_since(start).as_secs_f64();
        Peer {
            fate: self.fate,
            started_s: self.started.map(since),
            completed_s: self.completed.map(since),
            proved_s: self.proved.map(since),
            received: self.traffic.received,
            sent: self.traffic.sent,
            cpu_s: self.cost.cpu_s - self.cost_before.cpu_s,
            peak_rss: self.cost.peak_rss,
        }
    }

    fn node<'a>(&self, rack: &'a Rack) -> &'a Node {
        &rack.nodes[self.index + 1]
    }
}

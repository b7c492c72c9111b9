//! One run: a tool, a rack, the clock, and the proof that every receiver has the image.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::image::Image;
use crate::machine::Busy;
use crate::outcome::{Case, Fate, Outcome, Race};
use crate::process::{POLL, Process, wait_until};
use crate::rack::Rack;
use crate::receiver::Receiver;
use crate::sandbox::{SCRATCH, fresh_dir};
use crate::tool::Setting;
use crate::tracker::{self, Server};

/// A task of about a second may take this long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A run that takes more than this many times the bound, plus [`PATIENCE`], counts as never finished.
const HOPELESS: f64 = 10.0;
/// Replaces the bound in that limit for an unshaped run, in seconds.
const UNSHAPED_S: f64 = 30.0;
/// How long processes may take to end by themselves.
const GOODBYE: Duration = Duration::from_secs(8);

/// A run in progress. Its processes end before the rack that they run in.
struct Running<'a> {
    race: &'a Race,
    setting: Setting<'a>,
    logs: &'a Path,
    seeders: Vec<Process>,
    receivers: Vec<Receiver>,
    rack: Rack,
}

impl Race {
    /// The minimum time in seconds in which any tool can supply a receiver.
    fn bound_s(&self, image: &Image) -> Option<f64> {
        Some(image.len as f64 / self.goodput?)
    }

    /// Runs the race.
    ///
    /// # Errors
    /// If a receiver fails, has wrong bytes, or does not finish in time.
    pub fn run(&self, image: &Image, ezio: &Path, logs: &Path) -> Result<Outcome> {
        let rack = self.build_rack()?;
        let work = Path::new(SCRATCH).join("work");
        fresh_dir(&work)?;
        let torrent = work.join("image.torrent");
        let url = tracker::url(rack.hub);
        let tracker = Server::open(rack.hub, image.write_torrent(&url, &torrent)?)?;
        let setting = Setting {
            image,
            torrent: &torrent,
            tracker: &url,
            ezio,
            receivers: self.receivers,
            // Other tools do not read back, and without shaping it would be a good part of the work.
            proves: self.case != Case::Raw,
        };
        let fates = self.case.fates(self.receivers).into_iter().enumerate();
        let receivers = fates.map(|(index, fate)| Receiver::new(self.tool, index, fate, &work));
        let receivers = receivers.collect::<Result<_>>()?;
        let mut running = Running { race: self, setting, logs, seeders: Vec::new(), receivers, rack };
        running.get_ready(&tracker)?;
        let outcome = running.measure()?;
        running.end();
        running.compare()?;
        drop(running);
        // This makes room for the next run.
        fresh_dir(&work)?;
        Ok(outcome)
    }

    fn build_rack(&self) -> Result<Rack> {
        let mut rack = Rack::new(self.receivers + 1, self.mbit, self.seed)?;
        let fates = self.case.fates(self.receivers);
        for (node, fate) in rack.nodes[1..].iter_mut().zip(&fates) {
            if let (Fate::Slow, Some(mbit)) = (fate, self.mbit) {
                node.shape(mbit / 10.0)?;
            }
        }
        Ok(rack)
    }
}

impl Running<'_> {
    /// Starts everything that takes time and is not measured.
    fn get_ready(&mut self, tracker: &Server) -> Result<()> {
        let tool = self.race.tool;
        if tool.has_tracker() {
            self.start_seeders()?;
            wait_until("the seeder's first announce", PATIENCE, || {
                self.look_at_seeders()?;
                Ok(tracker.peers() > 0)
            })?;
        }
        if tool.waits_for_go() {
            for receiver in &mut self.receivers {
                receiver.launch(&self.setting, &self.rack, self.logs)?;
            }
            wait_until("the receivers' getting ready", PATIENCE, || Ok(self.receivers.iter().all(Receiver::is_ready)))?;
        }
        Ok(())
    }

    fn start_seeders(&mut self) -> Result<()> {
        let commands = self.race.tool.seeders(&self.setting, &self.rack.nodes[0])?;
        for (index, command) in commands.into_iter().enumerate() {
            let mut process = Process::start("the seeder", command, &self.logs.join(format!("seeder{index}.log")))?;
            if self.race.tool.waits_for_go() {
                process.say("go")?;
            }
            self.seeders.push(process);
        }
        Ok(())
    }

    /// Measures from the start until the last receiver that counts has finished and read everything back.
    fn measure(&mut self) -> Result<Outcome> {
        let bound_s = self.race.bound_s(self.setting.image);
        let cpu_before = self.seeders_cpu_s();
        let sent_before = self.rack.nodes[0].traffic()?.sent;
        let busy = Busy::now()?;
        let start = Instant::now();
        self.go(|fate| fate != Fate::Late)?;
        if !self.race.tool.has_tracker() {
            // Such tools have nothing to prepare, so all programs start together.
            self.start_seeders()?;
        }
        self.wait_for_the_last(start, bound_s)?;
        let busy = busy.until_now()?;
        let seeder_cpu_s = self.seeders_cpu_s() - cpu_before;
        let seeder_sent = self.rack.nodes[0].traffic()?.sent - sent_before;
        for receiver in &mut self.receivers {
            receiver.read_meters(&self.rack)?;
        }
        wait_until("the receivers' reading back", PATIENCE, || {
            self.receivers.iter_mut().try_for_each(Receiver::look)?;
            Ok(self.receivers.iter().all(Receiver::is_proved))
        })?;
        self.receivers.iter_mut().for_each(Receiver::read_peak_rss);
        Ok(Outcome {
            race: self.race.clone(),
            image_len: self.setting.image.len,
            network: self.rack.hub.to_string(),
            bound_s,
            peers: self.receivers.iter().map(|receiver| receiver.account(start)).collect(),
            seeder_sent,
            seeder_cpu_s,
            seeder_rss: self.seeders.iter_mut().map(|seeder| seeder.cost().peak_rss).max().unwrap_or(0),
            busy,
            error: None,
        })
    }

    fn wait_for_the_last(&mut self, start: Instant, bound_s: Option<f64>) -> Result<()> {
        let half_time = Duration::from_secs_f64(bound_s.unwrap_or_default() / 2.0);
        let hopeless = PATIENCE + Duration::from_secs_f64(bound_s.unwrap_or(UNSHAPED_S) * HOPELESS);
        let mut is_second_half = false;
        while !self.receivers.iter().all(Receiver::is_done) {
            std::thread::sleep(POLL);
            if !is_second_half && start.elapsed() >= half_time {
                is_second_half = true;
                for receiver in self.receivers.iter_mut().filter(|receiver| receiver.fate == Fate::Killed) {
                    receiver.die(&self.rack)?;
                }
                self.go(|fate| fate == Fate::Late)?;
            }
            self.receivers.iter_mut().try_for_each(Receiver::look)?;
            self.look_at_seeders()?;
            if start.elapsed() > hopeless {
                let done = self.receivers.iter().filter(|receiver| receiver.is_complete()).count();
                bail!("not finished after {} s: {done} receivers were", hopeless.as_secs());
            }
        }
        Ok(())
    }

    fn go(&mut self, whom: impl Fn(Fate) -> bool) -> Result<()> {
        let receivers = self.receivers.iter_mut().filter(|receiver| whom(receiver.fate));
        for receiver in receivers {
            receiver.go(&self.setting, &self.rack, self.logs)?;
        }
        Ok(())
    }

    fn look_at_seeders(&mut self) -> Result<()> {
        for seeder in &mut self.seeders {
            if seeder.exited().is_some_and(|(_, is_well)| !is_well || !self.race.tool.ends()) {
                bail!("the seeder ended, see {}", seeder.log());
            }
        }
        Ok(())
    }

    fn seeders_cpu_s(&mut self) -> f64 {
        self.seeders.iter_mut().map(|seeder| seeder.cost().cpu_s).sum()
    }

    fn end(&mut self) {
        let receivers = self.receivers.iter_mut().filter_map(Receiver::process);
        let mut processes: Vec<_> = self.seeders.iter_mut().chain(receivers).collect();
        processes.iter_mut().for_each(|process| process.terminate());
        let have_ended = || Ok(processes.iter_mut().all(|process| process.exited().is_some()));
        if wait_until("ending", GOODBYE, have_ended).is_err() {
            processes.iter_mut().for_each(|process| process.kill());
        }
    }

    /// Compares the data of every finished receiver, and tests the comparison itself.
    fn compare(&self) -> Result<()> {
        let (image, shape) = (self.setting.image, self.race.tool.shape());
        let complete = || self.receivers.iter().enumerate().filter(|(_, receiver)| receiver.is_complete());
        for (index, receiver) in complete() {
            let wrong = || format!("receiver {} is wrong", index + 1);
            image.compare(shape, &receiver.target()).with_context(wrong)?;
        }
        let (_, first) = complete().next().context("nobody finished")?;
        image.compare_notices_a_flipped_bit(shape, &first.target(), self.race.seed)
    }
}

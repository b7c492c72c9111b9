//! A session: every case, tool and number of receivers, as often as requested, in turns.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use metainfo::usual_piece_len;

use crate::image::Image;
use crate::machine::Use;
use crate::outcome::Race;
use crate::outcome::{Case, Misdeed, Outcome};
use crate::sandbox::SCRATCH;
use crate::tool::{self, Tool};
use crate::{Options, goodput, plot, summary};

/// Numbers of receivers in the shaped case.
const SHAPED: [usize; 4] = [1, 2, 8, 16];
/// Up to this many ports have speed [`FAST`], more have [`SLOW`]: two cores have to handle them all.
const FEW: usize = 8;
const FAST: f64 = 100.0;
const SLOW: f64 = 50.0;
/// Numbers of receivers in the unshaped case.
const RAW: [usize; 2] = [1, 3];
/// Receivers in the case with faults.
const FAULTY: usize = 8;
/// Machines in the case with hostile peers: eight receivers, and the hostile peers.
const HOSTILE: usize = 8 + Misdeed::ALL.len();
const RESULTS: &str = "results.json";

/// Runs these cases.
///
/// # Errors
/// If nothing can be measured on this machine. A failed run is an outcome; it is shown, and the exit code reports it.
pub fn run(cases: &[Case], options: &Options) -> Result<ExitCode> {
    // Use a copy, so that a build in the meantime changes nothing.
    let ezio = Path::new(SCRATCH).join("ezio");
    if options.ezio.is_file() {
        std::fs::copy(&options.ezio, &ezio).with_context(|| format!("copying {}", options.ezio.display()))?;
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let seed = options.seed.unwrap_or(clock);
    tool::prepare()?;
    std::fs::create_dir_all(&options.out).with_context(|| format!("making {}", options.out.display()))?;

    let mut missing = Vec::new();
    let mut races = plan(cases, options, seed);
    for tool in tools_of(&races) {
        if let Some(why) = tool.missing(&options.ezio) {
            println!("{} does not take part: {why}", tool.name());
            missing.push((tool, why));
            races.retain(|race| race.tool != tool);
        }
    }
    ensure!(!races.is_empty(), "there is nothing to run");
    measure_goodput(&mut races, seed)?;

    let mut outcomes = Vec::new();
    let mut image: Option<(u64, Image)> = None;
    for race in &races {
        let mib = if race.case == Case::Raw { options.raw_mib } else { options.mib };
        if image.as_ref().is_none_or(|(made, _)| *made != mib) {
            // Drop the old image first: there may not be room for both.
            drop(image.take());
            let dir = Path::new(SCRATCH).join("image");
            crate::sandbox::fresh_dir(&dir)?;
            let piece_len = options.piece_kib.map_or_else(|| usual_piece_len(mib << 20), |kib| kib << 10);
            image = Some((mib, Image::make(&dir, mib << 20, piece_len, seed)?));
        }
        let Some((_, image)) = &image else { continue };
        let name = format!("{}-{}-{}-{}", race.case.name(), race.receivers, race.tool.name(), race.run);
        let logs = options.out.join("logs").join(&name);
        crate::sandbox::fresh_dir(&logs)?;
        let outcome = race.run(image, &ezio, &logs).unwrap_or_else(|error| failed(race, image, &error));
        println!("{}", line(&name, &outcome));
        outcomes.push(outcome);
        save(&options.out, &outcomes)?;
    }
    show(&options.out, &outcomes, &missing)?;
    let is_all_well = outcomes.iter().all(|outcome| outcome.error.is_none());
    Ok(if is_all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows earlier results.
///
/// # Errors
/// If there are none.
pub fn report(out: &Path) -> Result<()> {
    let path = out.join(RESULTS);
    let text = std::fs::read(&path).with_context(|| format!("opening {}", path.display()))?;
    let outcomes: Vec<Outcome> =
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
    show(out, &outcomes, &[])
}

fn show(out: &Path, outcomes: &[Outcome], missing: &[(Tool, String)]) -> Result<()> {
    let tables = summary::tables(outcomes, missing);
    println!("\n{tables}");
    std::fs::write(out.join("summary.md"), tables).context("writing the summary")?;
    let svg = plot::svg(outcomes);
    if let Some(svg) = &svg {
        std::fs::write(out.join("ratio.svg"), svg).context("writing the plot")?;
    }
    let plot = if svg.is_some() { ", ratio.svg" } else { "" };
    println!("{}: {RESULTS}, summary.md{plot} and every program's log in logs/", out.display());
    Ok(())
}

fn save(out: &Path, outcomes: &[Outcome]) -> Result<()> {
    let text = serde_json::to_vec_pretty(outcomes).context("writing the results")?;
    std::fs::write(out.join(RESULTS), text).context("writing the results")
}

/// Orders runs by case, so that each image is made once, and within a case by run number, so that no tool gets all the
/// quiet minutes.
fn plan(cases: &[Case], options: &Options, seed: u64) -> Vec<Race> {
    let mut races = Vec::new();
    for &case in cases {
        let (tools, counts): (&[Tool], &[usize]) = match case {
            Case::Shaped => (&[Tool::Ezio, Tool::Aria2, Tool::Libtorrent, Tool::Udpcast], &SHAPED),
            // All of udpcast's receivers have to be there at the start.
            Case::Faults => (&[Tool::Ezio, Tool::Aria2, Tool::Libtorrent], &[FAULTY]),
            Case::Hostile => (&[Tool::Ezio], &[HOSTILE]),
            Case::Raw => (&[Tool::Ezio, Tool::Libtorrent, Tool::Socat], &RAW),
        };
        let tools = if options.tools.is_empty() { tools } else { &options.tools };
        let is_fixed = matches!(case, Case::Faults | Case::Hostile);
        let counts = if options.receivers.is_empty() || is_fixed { counts } else { &options.receivers };
        for run in 1..=options.runs {
            for &receivers in counts {
                for &tool in tools {
                    let is_impossible = is_fixed && !tool.has_tracker();
                    if is_impossible {
                        continue;
                    }
                    let by_number = if receivers > FEW && !is_fixed { SLOW } else { FAST };
                    let mbit = (case != Case::Raw).then(|| options.mbit.unwrap_or(by_number));
                    let number = races.len() as u64;
                    let seed = seed.wrapping_mul(0x9e37_79b9).wrapping_add(number);
                    races.push(Race { case, tool, receivers, mbit, goodput: None, run, seed });
                }
            }
        }
    }
    races
}

fn tools_of(races: &[Race]) -> Vec<Tool> {
    let mut tools: Vec<Tool> = races.iter().map(|race| race.tool).collect();
    tools.sort_unstable();
    tools.dedup();
    tools
}

fn measure_goodput(races: &mut [Race], seed: u64) -> Result<()> {
    let mut known: BTreeMap<u64, f64> = BTreeMap::new();
    for race in races {
        let Some(mbit) = race.mbit else { continue };
        let goodput = match known.get(&mbit.to_bits()) {
            Some(&goodput) => goodput,
            None => {
                let goodput = goodput::measure(mbit, seed)?;
                println!("a port of {mbit} Mbit/s carries {:.2} Mbit/s", goodput * 8e-6);
                known.insert(mbit.to_bits(), goodput);
                goodput
            }
        };
        race.goodput = Some(goodput);
    }
    Ok(())
}

fn failed(race: &Race, image: &Image, error: &anyhow::Error) -> Outcome {
    Outcome {
        race: race.clone(),
        image_len: image.len,
        network: String::new(),
        bound_s: None,
        peers: Vec::new(),
        seeder_sent: 0,
        seeder_cpu_s: 0.0,
        seeder_rss: 0,
        busy: Use::default(),
        error: Some(format!("{error:#}")),
    }
}

fn line(name: &str, outcome: &Outcome) -> String {
    if let Some(error) = &outcome.error {
        return format!("{name}: FAILED: {error}");
    }
    let mut parts = Vec::new();
    let mut say = |what: &str, value: Option<f64>, digits: usize| {
        parts.extend(value.map(|value| format!("{what} {value:.digits$}")));
    };
    say("ratio", outcome.ratio(), 3);
    say("with read-back", outcome.proved_ratio(), 3);
    say("late one's", outcome.late_ratio(), 3);
    if outcome.race.case == Case::Raw {
        say("MiB/s", outcome.rate().map(|rate| rate / f64::from(1 << 20)), 0);
    }
    say("last ÷ median", outcome.spread(), 3);
    say("copies", Some(outcome.copies()), 2);
    say("waste %", outcome.waste().map(|waste| waste * 100.0), 1);
    say("CPU s/GiB seeder", Some(outcome.seeder_cpu_per_gib()), 2);
    say("receiver", outcome.receiver_cpu_per_gib(), 2);
    say("peak MiB", Some(outcome.peak_rss() as f64 / f64::from(1 << 20)), 0);
    say("busy %", Some(outcome.busy.busy * 100.0), 0);
    say("by the tool", Some(outcome.own_share() * 100.0), 0);
    let mark = if outcome.busy.is_cpu_bound() { ", CPU BOUND" } else { "" };
    format!("{name}: {}{mark}", parts.join(", "))
}

//! The table and the plot: medians over runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::outcome::{Case, Outcome, median};
use crate::tool::Tool;

/// A figure over several runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Figure {
    /// `None` if no run has the figure.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Figure> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Some(Figure { median: median(&values)?, min: *values.first()?, max: *values.last()? })
    }
}

type Groups<'a> = BTreeMap<(Case, usize, Tool), Vec<&'a Outcome>>;

/// Groups runs of the same kind.
pub fn group(outcomes: &[Outcome]) -> Groups<'_> {
    let mut groups = Groups::new();
    for outcome in outcomes {
        let key = (outcome.race.case, outcome.race.receivers, outcome.race.tool);
        groups.entry(key).or_default().push(outcome);
    }
    groups
}

/// The ratio over the runs that count.
pub fn ratio(runs: &[&Outcome]) -> Option<Figure> {
    Figure::of(counting(runs).filter_map(|run| run.ratio()))
}

fn counting<'a>(runs: &'a [&Outcome]) -> impl Iterator<Item = &'a Outcome> {
    runs.iter().copied().filter(|run| run.error.is_none())
}

/// Markdown tables of everything.
pub fn tables(outcomes: &[Outcome], missing: &[(Tool, String)]) -> String {
    let mut out = String::new();
    for case in [Case::Shaped, Case::Faults, Case::Hostile, Case::Raw] {
        let groups = group(outcomes).into_iter().filter(|((of, _, _), _)| *of == case);
        let rows: Vec<String> = groups.map(|((_, n, tool), runs)| row(case, n, tool, &runs)).collect();
        if rows.is_empty() {
            continue;
        }
        out += heading(case);
        rows.iter().for_each(|row| out += row);
        for (tool, why) in missing {
            let _ = writeln!(out, "| {} | | {why} |", tool.name());
        }
        out.push('\n');
    }
    let goodputs: BTreeMap<String, f64> =
        outcomes.iter().filter_map(|run| Some((format!("{}", run.race.mbit?), run.race.goodput?))).collect();
    for (mbit, goodput) in goodputs {
        let _ = writeln!(out, "Goodput of a plain copy through a port of {mbit} Mbit/s: {:.2} Mbit/s.", goodput * 8e-6);
    }
    out
}

fn heading(case: Case) -> &'static str {
    match case {
        Case::Shaped => {
            "### Shaped ports, all started together\n\n\
             | tool | receivers | runs | ratio | with read-back | last ÷ median | seeder copies | waste | \
             CPU s/GiB seeder, receiver | peak MiB | machine busy, by the tool |\n\
             |---|---|---|---|---|---|---|---|---|---|---|\n"
        }
        Case::Faults => {
            "### One late, one at a tenth of the speed, one unplugged at half time\n\n\
             | tool | receivers | runs | ratio of the healthy | late one's own | last ÷ median | seeder copies | \
             waste | CPU s/GiB seeder, receiver | peak MiB | machine busy, by the tool |\n\
             |---|---|---|---|---|---|---|---|---|---|---|\n"
        }
        Case::Hostile => {
            "### Five hostile peers beside the receivers\n\n\
             | tool | machines | runs | ratio of the receivers | with read-back | last ÷ median | seeder copies | \
             waste | CPU s/GiB seeder, receiver | peak MiB | machine busy, by the tool |\n\
             |---|---|---|---|---|---|---|---|---|---|---|\n"
        }
        Case::Raw => {
            "### Unshaped, RAM to RAM, all on this machine\n\n\
             | tool | receivers | runs | MiB/s each | CPU s/GiB seeder, receiver | peak MiB | machine busy, by the tool |\n\
             |---|---|---|---|---|---|---|\n"
        }
    }
}

fn row(case: Case, n: usize, tool: Tool, runs: &[&Outcome]) -> String {
    let of = |figure: &dyn Fn(&Outcome) -> Option<f64>| Figure::of(counting(runs).filter_map(figure));
    let good = counting(runs).count();
    let runs_text = if good == runs.len() { format!("{good}") } else { format!("{good} of {}", runs.len()) };
    let name = tool.name();
    if good == 0 {
        let why = runs.first().and_then(|run| run.error.as_deref()).unwrap_or("no run");
        return format!("| {name} | {n} | {runs_text} | {why} |\n");
    }
    let cpu = format!(
        "{}, {}",
        plain(of(&|run| Some(run.seeder_cpu_per_gib())), 2),
        plain(of(&Outcome::receiver_cpu_per_gib), 2)
    );
    let rss = of(&|run| Some(run.peak_rss() as f64 / f64::from(1 << 20)));
    let bound = counting(runs).filter(|run| run.busy.is_cpu_bound()).count();
    let busy = of(&|run| Some(run.busy.busy * 100.0));
    let mark = if bound > 0 { format!(", CPU bound in {bound}") } else { String::new() };
    let own = of(&|run| Some(run.own_share() * 100.0));
    let end = format!("{cpu} | {} | {} %, {} %{mark} |\n", plain(rss, 0), plain(busy, 0), plain(own, 0));
    if case == Case::Raw {
        let rate = of(&|run| Some(run.rate()? / f64::from(1 << 20)));
        return format!("| {name} | {n} | {runs_text} | {} | {end}", range(rate, 0));
    }
    let second = if case == Case::Faults { of(&Outcome::late_ratio) } else { of(&Outcome::proved_ratio) };
    format!(
        "| {name} | {n} | {runs_text} | {} | {} | {} | {} | {} % | {end}",
        range(of(&Outcome::ratio), 3),
        range(second, 3),
        range(of(&Outcome::spread), 3),
        plain(of(&|run| Some(run.copies())), 2),
        plain(of(&|run| Some(run.waste()? * 100.0)), 1),
    )
}

fn plain(figure: Option<Figure>, digits: usize) -> String {
    figure.map_or("–".into(), |figure| format!("{:.digits$}", figure.median))
}

/// The median, and the range if there are several values.
fn range(figure: Option<Figure>, digits: usize) -> String {
    match figure {
        None => "–".into(),
        Some(Figure { median, min, max }) if min == max => format!("{median:.digits$}"),
        Some(Figure { median, min, max }) => format!("{median:.digits$} ({min:.digits$}–{max:.digits$})"),
    }
}

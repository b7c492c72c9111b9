//! The plot: ratio by number of receivers, one line per tool, as SVG.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::outcome::{Case, Outcome};
use crate::summary::{Figure, group, ratio};
use crate::tool::Tool;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Lowest value of the axis, and the minimum for its highest value.
const Y_MIN: f64 = 0.95;
const Y_MAX: f64 = 1.6;
/// The goal for the ratio.
const GOAL: f64 = 1.05;
/// Labels at the right end of lines are at least this far apart.
const LABEL_DISTANCE: f64 = 15.0;

/// The SVG, or nothing if there are no data.
pub fn svg(outcomes: &[Outcome]) -> Option<String> {
    let mut lines: BTreeMap<Tool, Vec<(usize, Figure)>> = BTreeMap::new();
    for ((case, n, tool), runs) in group(outcomes) {
        if let (Case::Shaped, Some(figure)) = (case, ratio(&runs)) {
            lines.entry(tool).or_default().push((n, figure));
        }
    }
    let mut counts: Vec<usize> = lines.values().flatten().map(|&(n, _)| n).collect();
    counts.sort_unstable();
    counts.dedup();
    let highest = lines.values().flatten().map(|(_, figure)| figure.max).fold(Y_MAX, f64::max) * 1.02;
    let at = |n: usize| counts.iter().position(|&count| count == n).unwrap_or(0) as f64;
    let steps = (counts.len().max(2) - 1) as f64;
    let x = |n: usize| LEFT + 20.0 + at(n) / steps * (WIDTH - LEFT - RIGHT - 40.0);
    let y = |value: f64| HEIGHT - BOTTOM - (value - Y_MIN) / (highest - Y_MIN) * (HEIGHT - TOP - BOTTOM);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">Time until the last receiver has everything ÷ physical limit\
         </text>\n"
    );
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut tick = 1.0;
    while tick <= highest {
        let at = y(tick);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick:.1}</text>",
            LEFT - 8.0,
            at + 4.0
        );
        tick += if highest > 3.0 { 0.5 } else { 0.1 };
    }
    let goal = y(GOAL);
    let _ = writeln!(
        out,
        "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{goal:.1}\" y2=\"{goal:.1}\" stroke=\"#888\" \
         stroke-dasharray=\"5 4\"/>"
    );
    for &n in &counts {
        let at = x(n);
        let _ = writeln!(out, "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{n}</text>", bottom + 18.0);
    }
    let middle = f64::midpoint(LEFT, right);
    let _ = writeln!(
        out,
        "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">receivers (bars: lowest and highest run; dashed: \
         goal)</text>",
        bottom + 38.0
    );
    let mut labels = Vec::new();
    for (&tool, points) in &lines {
        let colour = colour(tool);
        let path: Vec<String> = points.iter().map(|(n, f)| format!("{:.1},{:.1}", x(*n), y(f.median))).collect();
        let width = if tool == Tool::Ezio { 3 } else { 1 };
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
            path.join(" ")
        );
        for (n, figure) in points {
            let (at, low, high) = (x(*n), y(figure.min), y(figure.max));
            let _ = writeln!(
                out,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\" stroke=\"{colour}\"/>\
                 <circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>",
                y(figure.median)
            );
        }
        if let Some((_, last)) = points.last() {
            labels.push((y(last.median), tool, last.median));
        }
    }
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = f64::MIN;
    for (at, tool, value) in labels {
        let at = at.max(free);
        free = at + LABEL_DISTANCE;
        let (colour, name) = (colour(tool), tool.name());
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name} {value:.2}</text>",
            right + 6.0,
            at + 4.0
        );
    }
    out += "</svg>\n";
    (!counts.is_empty()).then_some(out)
}

fn colour(tool: Tool) -> &'static str {
    match tool {
        Tool::Ezio => "#c0392b",
        Tool::Aria2 => "#2471a3",
        Tool::Libtorrent => "#1e8449",
        Tool::LibtorrentSuper => "#7d9b1a",
        Tool::Udpcast => "#8e44ad",
        Tool::Socat => "#555555",
    }
}

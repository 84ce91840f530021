//! Results as a Markdown table and as JSON.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

use super::contender::Contender;
use super::growth::{Growth, exponent, factor};
use super::run::Results;
use super::sample::Sample;
use crate::shell;

/// Rows with what Berth has to reach: how many times better than containerd with runc, and with crun.
pub const GOALS: [(&str, f64, f64); 12] = [
    ("pod ready", 20.0, 10.0),
    ("30 pods, 10 at a time", 9.0, 5.0),
    ("ExecSync true", 25.0, 6.0),
    ("StopPodSandbox", 20.0, 18.0),
    ("StopContainer", 9.0, 5.0),
    ("helpers per idle pod", 20.0, 20.0),
    ("daemon, idle", 2.6, 2.6),
    ("ListContainerStats, 30 pods", 15.0, 15.0),
    ("pull of the big", 3.8, 3.8),
    ("RemoveImage", 50.0, 50.0),
    ("processor time per pod cycle", 10.0, 5.0),
    ("exec, stdin to stdout", 3.0, 3.0),
];

/// How many times longer a pod start may take with most pods on the node than with fewest.
pub const GROWTH: f64 = 1.5;

/// The table, and how many goals are met of how many.
#[derive(Debug, Default)]
pub struct Table {
    /// Markdown.
    pub text: String,
    /// Rows that reach their goal.
    pub met: usize,
    /// Rows that have one.
    pub goals: usize,
}

/// What the machine is, for the head of the table.
///
/// # Errors
/// `uname` failed.
pub fn machine() -> Result<String> {
    let kernel = shell::run(5, "uname", &["-srm"])?;
    let date = shell::run(5, "date", &["-u", "+%Y-%m-%d"])?;
    let processors = std::thread::available_parallelism()?;
    Ok(format!("{}, {}, {processors} processors", date.trim(), kernel.trim()))
}

impl Table {
    /// Rows with goals first, then all others.
    ///
    /// # Errors
    /// `uname` failed.
    pub fn new(results: &Results, growth: Option<&Growth>, contenders: &[Contender]) -> Result<Self> {
        let versions: Vec<_> = contenders.iter().map(|one| format!("{} {}", one.name, one.version)).collect();
        let mut table =
            Self { text: format!("{} · {}\n\n", machine()?, versions.join(" · ")), ..Self::default() };
        table.text.push_str("| row (median; p99; min) |");
        for contender in contenders {
            let _ = write!(table.text, " {} |", contender.name);
        }
        table.text.push_str(" ratios (spread) | goal |\n|---|");
        table.text.push_str(&"---|".repeat(contenders.len() + 2));
        table.text.push('\n');
        let mut rows: Vec<_> = results.iter().collect();
        rows.sort_by_key(|(row, _)| {
            GOALS.iter().position(|(prefix, ..)| row.starts_with(prefix)).unwrap_or(GOALS.len())
        });
        for (row, samples) in rows {
            table.row(row, |name| samples.get(name), contenders);
        }
        growth.into_iter().for_each(|growth| table.growth(growth));
        Ok(table)
    }

    fn row<'a>(&mut self, row: &str, samples: impl Fn(&str) -> Option<&'a Sample>, contenders: &[Contender]) {
        let _ = write!(self.text, "| {row} |");
        for contender in contenders {
            let _ = write!(self.text, " {} |", samples(&contender.name).map(cell).unwrap_or_default());
        }
        let own = samples("berth");
        let rivals = contenders.iter().filter(|one| one.name != "berth");
        let ratios: Vec<_> = rivals.filter_map(|one| Some(ratio(samples(&one.name)?, own?))).collect();
        let shown: Vec<_> = ratios.iter().map(|(_, text)| text.clone()).collect();
        let _ = write!(self.text, " {} |", shown.join(" · "));
        let goal = GOALS.iter().find(|(prefix, ..)| row.starts_with(prefix));
        let goal = goal.map(|(_, runc, crun)| {
            let reached = ratios.iter().zip([runc, crun]).all(|((ratio, _), goal)| ratio >= goal);
            self.judge(&format!("≥ {runc} · {crun}"), reached && !ratios.is_empty())
        });
        let _ = writeln!(self.text, " {} |", goal.unwrap_or_default());
    }

    fn judge(&mut self, goal: &str, reached: bool) -> String {
        self.goals += 1;
        self.met += usize::from(reached);
        format!("{goal}: {}", if reached { "met" } else { "not met" })
    }

    /// Berth alone, on a node that fills up.
    fn growth(&mut self, growth: &Growth) {
        self.text.push_str("\n| berth, pods on the node | medians, ms | exponent | last over first | goal |\n|---|---|---|---|---|\n");
        for (what, points) in growth {
            let shown: Vec<_> = points.iter().map(|(pods, median)| format!("{pods}: {median:.2}")).collect();
            let goal = if what.starts_with("pod ready") {
                self.judge(&format!("≤ {GROWTH}"), factor(points) <= GROWTH)
            } else {
                String::new()
            };
            let (exponent, factor) = (exponent(points), factor(points));
            let _ = writeln!(
                self.text,
                "| {what} | {} | {exponent:.2} | {factor:.2} | {goal} |",
                shown.join(" · ")
            );
        }
    }
}

fn cell(sample: &Sample) -> String {
    if sample.is_empty() {
        return "fails".to_owned();
    }
    if sample.len() < 3 {
        return format!("{:.2}", sample.median());
    }
    format!("{:.2}; {:.2}; {:.2}", sample.median(), sample.quantile(0.99), sample.quantile(0.0))
}

/// Their median over ours, and the range between the quartiles of the one over the other.
fn ratio(theirs: &Sample, ours: &Sample) -> (f64, String) {
    if theirs.is_empty() {
        return (f64::NAN, "–".to_owned());
    }
    let middle = theirs.median() / ours.median();
    let low = theirs.quantile(0.25) / ours.quantile(0.75);
    let high = theirs.quantile(0.75) / ours.quantile(0.25);
    (middle, format!("{middle:.1} ({low:.1}–{high:.1})"))
}

/// Everything measured.
///
/// # Errors
/// `uname` failed.
pub fn json(results: &Results, growth: Option<&Growth>, contenders: &[Contender]) -> Result<String> {
    let versions: serde_json::Map<_, _> =
        contenders.iter().map(|one| (one.name.clone(), json!(one.version))).collect();
    Ok(serde_json::to_string_pretty(
        &json!({ "machine": machine()?, "versions": versions, "results": results, "growth": growth }),
    )?)
}

//! Results as a Markdown table and as JSON.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

use super::contender::Contender;
use super::run::Results;
use super::sample::Sample;
use crate::shell;

/// Rows with what Berth has to reach: how many times better than containerd with runc, and with crun.
const GOALS: [(&str, f64, f64); 12] = [
    ("pod ready", 20.0, 10.0),
    ("30 pods", 9.0, 5.0),
    ("ExecSync true", 25.0, 6.0),
    ("StopPodSandbox", 20.0, 18.0),
    ("StopContainer", 9.0, 5.0),
    ("helpers per idle pod", 20.0, 20.0),
    ("daemon, idle", 2.6, 2.6),
    ("ListContainerStats", 15.0, 15.0),
    ("pull of the big image, durable", 3.8, 3.8),
    ("pull of 40 layers of 20 MB, durable", 3.8, 3.8),
    ("RemoveImage of the big image", 50.0, 50.0),
    ("processor time", 10.0, 5.0),
];

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

/// The table, and how many goals are met of how many.
///
/// # Errors
/// `uname` failed.
pub fn markdown(results: &Results, contenders: &[Contender]) -> Result<(String, usize, usize)> {
    let versions: Vec<_> = contenders.iter().map(|one| format!("{} {}", one.name, one.version)).collect();
    let mut text = format!("{} · {}\n\n| row (median; p99; min) |", machine()?, versions.join(" · "));
    for contender in contenders {
        let _ = write!(text, " {} |", contender.name);
    }
    text.push_str(" ratios (spread) | goal |\n|---|");
    text.push_str(&"---|".repeat(contenders.len() + 2));
    text.push('\n');
    let (mut met, mut goals) = (0, 0);
    for (row, samples) in results {
        let _ = write!(text, "| {row} |");
        for contender in contenders {
            let cell = samples.get(&contender.name).map(cell).unwrap_or_default();
            let _ = write!(text, " {cell} |");
        }
        let own = samples.get("berth");
        let ratios: Vec<(f64, String)> = contenders
            .iter()
            .filter(|one| one.name != "berth")
            .filter_map(|one| Some(ratio(samples.get(&one.name)?, own?)))
            .collect();
        let shown: Vec<_> = ratios.iter().map(|(_, text)| text.clone()).collect();
        let goal = GOALS.iter().find(|(prefix, ..)| row.starts_with(prefix));
        let verdict = goal.map(|(_, runc, crun)| {
            let reached =
                ratios.iter().zip([runc, crun]).all(|((ratio, _), goal)| ratio >= goal) && !ratios.is_empty();
            goals += 1;
            met += usize::from(reached);
            format!("≥ {runc} · {crun}: {}", if reached { "met" } else { "not met" })
        });
        let _ = writeln!(text, " {} | {} |", shown.join(" · "), verdict.unwrap_or_default());
    }
    Ok((text, met, goals))
}

fn cell(sample: &Sample) -> String {
    if sample.len() < 3 {
        return format!("{:.2}", sample.median());
    }
    format!("{:.2}; {:.2}; {:.2}", sample.median(), sample.quantile(0.99), sample.quantile(0.0))
}

/// Their median over ours, and the range between the quartiles of the one over the other.
fn ratio(theirs: &Sample, ours: &Sample) -> (f64, String) {
    let middle = theirs.median() / ours.median();
    let low = theirs.quantile(0.25) / ours.quantile(0.75);
    let high = theirs.quantile(0.75) / ours.quantile(0.25);
    (middle, format!("{middle:.1} ({low:.1}–{high:.1})"))
}

/// Everything measured.
///
/// # Errors
/// `uname` failed.
pub fn json(results: &Results, contenders: &[Contender]) -> Result<String> {
    let versions: serde_json::Map<_, _> =
        contenders.iter().map(|one| (one.name.clone(), json!(one.version))).collect();
    Ok(serde_json::to_string_pretty(
        &json!({ "machine": machine()?, "versions": versions, "results": results }),
    )?)
}

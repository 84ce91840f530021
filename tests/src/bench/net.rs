//! Connecting pods and letting them go: the network alone, without the rest of a pod.
//!
//! | side | what |
//! |---|---|
//! | built-in | Berth's routed network |
//! | same list, in process | Berth's `bridge`, `host-local` and `portmap` |
//! | reference | `bridge`, `host-local`, `portmap` and `loopback` of the reference plugins, each executed in turn |
//! | reference, nftables | the same, told to use nftables instead of iptables |
//!
//! A pod is a new network namespace with an interface, an address and a way out; every fifth one has a port of the node too.
//! Making and removing the namespace counts for every side and is done by the same code. One family of addresses: a second one
//! costs the reference plugins another run of iptables for each of the first.

mod side;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use super::action::milliseconds;
use super::growth::factor;
use super::machine::{cpu_seconds, number};
use super::sample::Sample;
use super::table::{GROWTH, machine};
use crate::report::line;
use crate::world::World;

use side::{Pod, Side};

/// Rounds over all sides.
const ROUNDS: usize = 4;
/// Pods of a round, one at a time.
const PODS: usize = 50;
/// One pod of so many has a port of the node.
const PUBLISHED: usize = 5;
/// Pods of a burst, all at once.
const BURST: usize = 30;
/// Pods on the node when growth is measured, and how many are measured there, after some that are not.
const STEPS: [usize; 4] = [10, 100, 300, 1000];
const MEASURED: usize = 200;
const WARMING: usize = 20;

const ADD: &str = "ADD: ms";
const ADD_PORT: &str = "ADD with a host port: ms";
const DEL: &str = "DEL: ms";
const DEL_PORT: &str = "DEL with a host port: ms";

/// How many times faster than every rival the built-in network has to be.
const GOALS: [(&str, f64); 4] = [(ADD, 15.0), (ADD_PORT, 15.0), (DEL, 30.0), (DEL_PORT, 30.0)];

/// Row, then side, then what was measured.
type Results = BTreeMap<&'static str, BTreeMap<&'static str, Sample>>;

/// Pods on the node, and the median in milliseconds.
type Points = Vec<(usize, f64)>;

/// Measures all sides, and how the built-in network's latencies grow.
///
/// # Errors
/// A pod cannot be connected or is not reached: a benchmark of something that does not work is worth nothing.
pub fn run(world: &World) -> Result<()> {
    let bin = PathBuf::from(std::env::var_os("RIVALS").context("RIVALS is not set: use tests/bench")?);
    let dir = world.dir.join("bench-net");
    let sides = [
        Side::built_in(&dir.join("built-in"))?,
        Side::same_list(&dir.join("same"))?,
        Side::reference("reference", &dir.join("iptables"), &bin, None)?,
        Side::reference("reference, nftables", &dir.join("nftables"), &bin, Some("nftables"))?,
    ];
    let mut results = Results::new();
    for round in 0..ROUNDS {
        line(format_args!("round {} of {ROUNDS}", round + 1));
        for side in &sides {
            let mut push = |row, ms| results.entry(row).or_default().entry(side.name).or_default().push(ms);
            side.inside(|| one_at_a_time(side, round, &mut push)).with_context(|| side.name)?;
            side.inside(|| burst(side, round, &mut push)).with_context(|| side.name)?;
        }
    }
    let [add, del] = sides[0].inside(|| growth(&sides[0]))?;
    let (text, met, goals) = table(&results, &sides, &[("ADD", add), ("DEL", del)])?;
    line(format_args!("\n{text}"));
    if let Some(dir) = std::env::var_os("BENCH_RESULTS").map(PathBuf::from) {
        keep(&dir, &text, &results)?;
    }
    line(format_args!("{met} of {goals} rows met"));
    Ok(())
}

fn keep(dir: &Path, text: &str, results: &Results) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("net.md"), text)?;
    Ok(std::fs::write(dir.join("net.json"), serde_json::to_string_pretty(results)?)?)
}

fn one_at_a_time(side: &Side, round: usize, push: &mut (dyn FnMut(&'static str, f64) + Send)) -> Result<()> {
    let before = cpu_seconds()?;
    let mut pods = Vec::new();
    for index in 0..PODS {
        let port = (index % PUBLISHED == 0).then(|| u16::try_from(20_000 + index)).transpose()?;
        let start = Instant::now();
        let pod = side.add(&format!("r{round}p{index}"), port)?;
        push(if port.is_some() { ADD_PORT } else { ADD }, milliseconds(start));
        pods.push((pod, port));
    }
    let half = cpu_seconds()?;
    for (pod, _) in pods.iter().step_by(PODS / 2).chain(pods.last()) {
        pod.reached()?;
    }
    let checked = cpu_seconds()?;
    for (pod, port) in pods {
        let start = Instant::now();
        side.del(pod)?;
        push(if port.is_some() { DEL_PORT } else { DEL }, milliseconds(start));
    }
    side.settle()?;
    let spent = cpu_seconds()? - checked + half - before;
    push("processor time per pod, ADD and DEL: ms", spent * 1e3 / number(PODS));
    Ok(())
}

fn burst(side: &Side, round: usize, push: &mut (dyn FnMut(&'static str, f64) + Send)) -> Result<()> {
    let start = Instant::now();
    let made = together(0..BURST, |index| {
        let start = Instant::now();
        let pod = side.add(&format!("r{round}b{index}"), None)?;
        Ok((pod, milliseconds(start)))
    })?;
    push("30 pods at once, ADD of all: ms", milliseconds(start));
    let mut pods: Vec<Pod> = Vec::new();
    for (pod, ms) in made {
        push("30 pods at once, ADD of one: ms", ms);
        pods.push(pod);
    }
    pods.iter().try_for_each(Pod::reached)?;
    let start = Instant::now();
    together(pods, |pod| side.del(pod))?;
    push("30 pods at once, DEL of all: ms", milliseconds(start));
    side.settle()
}

/// Does something with everything at the same time, each on a thread of its own in the caller's namespace.
fn together<I: Send, T: Send>(
    all: impl IntoIterator<Item = I>,
    work: impl Fn(I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = all.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        let ended = threads.into_iter().map(|t| t.join().map_err(|_| anyhow!("a thread panicked"))?);
        ended.collect()
    })
}

/// ADD and DEL on a node that fills up.
fn growth(side: &Side) -> Result<[Points; 2]> {
    let (mut adds, mut dels) = (Points::new(), Points::new());
    let mut crowd: Vec<Pod> = Vec::new();
    for step in STEPS {
        line(format_args!("{step} pods on the node"));
        while crowd.len() < step {
            crowd.push(side.add(&format!("crowd{}", crowd.len()), None)?);
        }
        let (mut add, mut del) = (Sample::default(), Sample::default());
        for index in 0..WARMING + MEASURED {
            let start = Instant::now();
            let pod = side.add(&format!("s{step}p{index}"), None)?;
            let added = milliseconds(start);
            pod.reached()?;
            let start = Instant::now();
            side.del(pod)?;
            if index >= WARMING {
                add.push(added);
                del.push(milliseconds(start));
            }
        }
        adds.push((step, add.median()));
        dels.push((step, del.median()));
    }
    crowd.into_iter().try_for_each(|pod| side.del(pod))?;
    side.settle()?;
    Ok([adds, dels])
}

/// The table, how many goals are met, and how many there are.
fn table(results: &Results, sides: &[Side], growth: &[(&str, Points)]) -> Result<(String, usize, usize)> {
    let (mut met, mut goals) = (0, 0);
    let mut judge = |reached: bool| {
        goals += 1;
        met += usize::from(reached);
        if reached { "met" } else { "not met" }
    };
    let names: Vec<_> = sides.iter().map(|side| side.name).collect();
    let mut text = format!(
        "{}\n\n| median; p99; min | {} | built-in over rivals | goal |\n",
        machine()?,
        names.join(" | ")
    );
    let _ = writeln!(text, "|---|{}---|---|", "---|".repeat(sides.len()));
    for (row, samples) in results {
        let cells: Vec<_> =
            names.iter().map(|name| samples.get(name).map(cell).unwrap_or_default()).collect();
        let median = |name: &str| samples.get(name).map_or(f64::NAN, Sample::median);
        let rivals = sides.iter().filter(|side| side.rival);
        let ratios: Vec<f64> = rivals.map(|side| median(side.name) / median(names[0])).collect();
        let shown: Vec<_> = ratios.iter().map(|ratio| format!("{ratio:.1}")).collect();
        let goal = GOALS.iter().find(|(known, _)| known == row);
        let goal =
            goal.map(|(_, goal)| format!("≥ {goal}: {}", judge(ratios.iter().all(|ratio| ratio >= goal))));
        let _ = writeln!(
            text,
            "| {row} | {} | {} | {} |",
            cells.join(" | "),
            shown.join(" · "),
            goal.unwrap_or_default()
        );
    }
    text.push_str(
        "\n| built-in, pods on the node | medians, ms | last over first | goal |\n|---|---|---|---|\n",
    );
    for (what, points) in growth {
        let shown: Vec<_> = points.iter().map(|(pods, median)| format!("{pods}: {median:.2}")).collect();
        let factor = factor(points);
        let _ = writeln!(
            text,
            "| {what} | {} | {factor:.2} | ≤ {GROWTH}: {} |",
            shown.join(" · "),
            judge(factor <= GROWTH)
        );
    }
    Ok((text, met, goals))
}

fn cell(sample: &Sample) -> String {
    if sample.len() < 8 {
        return format!("{:.2}", sample.median());
    }
    format!("{:.2}; {:.2}; {:.2}", sample.median(), sample.quantile(0.99), sample.quantile(0.0))
}

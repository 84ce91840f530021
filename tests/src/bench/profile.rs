//! `tests/bench profile`: where the time of a pod start, an exec and a removal goes, by the daemon's own account of its jobs.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::action;
use super::contender::Contender;
use super::machine::{self, number};
use super::sample::Sample;
use crate::images::BUSYBOX;
use crate::report::line;
use crate::shell;
use crate::suites::wait;
use crate::world::World;

/// A job as `berth jobs --json` shows it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    id: u64,
    name: String,
    took_nanos: u64,
    outcome: String,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    name: String,
    offset_nanos: u64,
    took_nanos: u64,
}

/// Runs pods and execs one at a time, and prints quantiles of each step in microseconds.
///
/// # Errors
/// An action fails, or the daemon does not tell its jobs.
pub fn run(world: &World, count: usize) -> Result<()> {
    let berth = Contender::berth(world)?;
    let logs = berth.dir.join("logs/profile");
    let (mut ready, mut exec, mut removed) = (Sample::default(), Sample::default(), Sample::default());
    let mut steps = Steps::default();
    wait(async {
        let mut client = berth.client().await?;
        client.pull(BUSYBOX).await?;
        machine::rest();
        for index in 0..count {
            let (taken, pod) = action::pod(&mut client, &format!("pod{index}"), &logs).await?;
            ready.push(taken.run + taken.create + taken.start);
            action::up(&pod, &logs).await?;
            for _ in 0..5 {
                exec.push(action::exec(&mut client, &pod).await?);
            }
            removed.push(action::remove(&mut client, &pod).await?);
            steps.take(&jobs(world, &berth)?);
        }
        Ok(())
    })?;
    for (what, sample) in [("pod ready", ready), ("ExecSync true", exec), ("pod removed", removed)] {
        line(format_args!("{what}, by the client: {}", quantiles(&sample, 1e3)));
    }
    steps.print();
    Ok(())
}

/// What the daemon remembers of its jobs.
fn jobs(world: &World, berth: &Contender) -> Result<Vec<Job>> {
    let address = format!("unix://{}", berth.socket.display());
    let program = world.berth.display().to_string();
    let text = shell::run(20, &program, &["jobs", "--json", "--address", &address])?;
    serde_json::from_str(&text).context("berth jobs --json")
}

/// When a step begins and how long it takes, in nanoseconds.
type StepSamples = (Sample, Sample);

/// Samples of each step of each kind of job, in nanoseconds, in the order in which they begin.
#[derive(Debug, Default)]
struct Steps {
    last: u64,
    samples: BTreeMap<(usize, String), (Sample, BTreeMap<String, StepSamples>)>,
}

impl Steps {
    /// Takes the jobs that are new since the last time.
    fn take(&mut self, jobs: &[Job]) {
        let order = ["RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "StopPodSandbox"];
        let newest = jobs.iter().map(|job| job.id).max().unwrap_or(self.last);
        for job in jobs.iter().filter(|job| job.id > self.last && job.outcome == "ok") {
            let place = order.iter().position(|name| *name == job.name).unwrap_or(order.len());
            let (total, steps) = self.samples.entry((place, job.name.clone())).or_default();
            total.push(number(job.took_nanos));
            for step in &job.steps {
                let (offset, took) = steps.entry(step.name.clone()).or_default();
                offset.push(number(step.offset_nanos));
                took.push(number(step.took_nanos));
            }
        }
        self.last = newest;
    }

    fn print(&self) {
        for ((_, name), (total, steps)) in &self.samples {
            line(format_args!("{name:<28} {}", quantiles(total, 1e-3)));
            let mut steps: Vec<_> = steps.iter().collect();
            steps.sort_by(|(_, (a, _)), (_, (b, _))| a.median().total_cmp(&b.median()));
            for (step, (offset, took)) in steps {
                let at = offset.median() / 1e3;
                line(format_args!("  {step:<26} {}   at {at:.0}", quantiles(took, 1e-3)));
            }
        }
    }
}

fn quantiles(sample: &Sample, scale: f64) -> String {
    let [min, quarter, half, most] = [0.0, 0.25, 0.5, 0.99].map(|q| sample.quantile(q) * scale);
    format!("min {min:6.0}  p25 {quarter:6.0}  p50 {half:6.0}  p99 {most:6.0} µs")
}

//! A node with many pods: how it is listed, what it holds in memory, what it costs when nothing happens, and how fast the daemon
//! is back after it was killed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::action::{self, Pod};
use super::contender::Contender;
use super::machine::{self, number};
use super::run::{Bench, Footprint, Results, remove_together, start_together};
use crate::report::line;
use crate::suites::wait;

/// How long a node is watched while it idles.
const IDLE: Duration = Duration::from_secs(5);

/// Fills the node of each contender step by step, measures at each, and empties it again.
///
/// # Errors
/// An action fails.
pub fn all(contenders: &mut [Contender], results: &mut Results) -> Result<()> {
    for contender in contenders {
        let name = contender.name.clone();
        // A rival's helpers for 500 pods take more memory than a small machine has, and minutes to start.
        let steps: &[usize] = if name == "berth" { &[10, 100, 300, 500] } else { &[10, 100] };
        line(format_args!("up to {} pods: {name}", steps.last().unwrap_or(&0)));
        let mut bench = Bench::new(contender, results, "density");
        one(&mut bench, steps).with_context(|| name)?;
    }
    Ok(())
}

fn one(bench: &mut Bench<'_>, steps: &[usize]) -> Result<()> {
    let empty = Footprint::now()?;
    let mut pods: Vec<Pod> = Vec::new();
    for &step in steps {
        wait(fill(bench, &mut pods, step))?;
        wait(lists(bench, &pods))?;
        let pid = bench.contender.pid();
        let pss = machine::processes()?.get(&pid).context("the daemon is gone")?.pss / 1024.0;
        bench.push(&format!("daemon with {step} pods: PSS in MiB"), pss);
        if step == 100 {
            let helpers = Footprint::now()?.helpers_since(&empty) / number(step);
            bench.push("helpers per pod among 100: PSS in KiB", helpers);
            wait(idle(bench, &pods))?;
        }
        if step == 100 || step == 300 {
            back(bench, &pods)?;
        }
    }
    wait(async { remove_together(&bench.contender.client().await?, pods, 10).await })
}

/// As many pods as the step wants; the hundred that make it a hundred from ten are started ninety at once.
async fn fill(bench: &mut Bench<'_>, pods: &mut Vec<Pod>, step: usize) -> Result<()> {
    let client = bench.contender.client().await?;
    let width = if step == 100 { step } else { 10 };
    let start = Instant::now();
    let more = start_together(&client, pods.len()..step, width, &bench.logs).await?;
    let taken = action::milliseconds(start);
    if step == 100 {
        bench.push("90 pods at once: ms", taken);
    }
    for pod in &more {
        action::up(pod, &bench.logs).await?;
    }
    pods.extend(more);
    Ok(())
}

async fn lists(bench: &mut Bench<'_>, pods: &[Pod]) -> Result<()> {
    let mut client = bench.contender.client().await?;
    let count = pods.len();
    for pod in pods.iter().rev().take(10) {
        let taken = action::relist(&mut client, count).await?;
        bench.push(&format!("ListPodSandbox + ListContainers, {count} pods: ms"), taken);
        let taken = action::stats(&mut client, count).await?;
        bench.push(&format!("ListContainerStats, {count} pods: ms"), taken);
        let taken = action::status(&mut client, pod).await?;
        bench.push(&format!("ContainerStatus, {count} pods: ms"), taken);
    }
    Ok(())
}

/// Processor time when nothing happens, and with an exec probe in each pod every ten seconds.
async fn idle(bench: &mut Bench<'_>, pods: &[Pod]) -> Result<()> {
    let mut client = bench.contender.client().await?;
    let before = machine::cpu_seconds()?;
    tokio::time::sleep(IDLE).await;
    let quiet = (machine::cpu_seconds()? - before) * 1e3 / IDLE.as_secs_f64();
    bench.push("idle, 100 pods: ms of processor time per second", quiet);
    let before = machine::cpu_seconds()?;
    let mut tick = tokio::time::interval(Duration::from_secs(10) / 100);
    let end = Instant::now() + IDLE;
    for pod in pods.iter().cycle() {
        if Instant::now() >= end {
            break;
        }
        tick.tick().await;
        action::exec(&mut client, pod).await?;
    }
    let probed = (machine::cpu_seconds()? - before) * 1e3 / IDLE.as_secs_f64();
    bench.push("100 pods with a probe each 10 s: ms of processor time per second", probed);
    Ok(())
}

/// The daemon is killed and started; all pods must be there and an old one must still take an exec.
fn back(bench: &mut Bench<'_>, pods: &[Pod]) -> Result<()> {
    let taken = bench.contender.restart()?;
    bench.push(&format!("daemon, restart with {} pods: ms", pods.len()), taken);
    let first = pods.first().context("no pods")?;
    wait(async {
        let mut client = bench.contender.client().await?;
        action::relist(&mut client, pods.len()).await?;
        action::exec(&mut client, first).await.map(drop)
    })
}

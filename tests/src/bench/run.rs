//! The rounds: every contender does the same, one after the other, again and again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::action::{self, MARKS, Pod};
use super::contender::Contender;
use super::machine;
use super::sample::Sample;
use crate::client::Client;
use crate::images::BUSYBOX;
use crate::report::line;
use crate::suites::wait;

/// Row, then contender, then what was measured.
pub type Results = BTreeMap<String, BTreeMap<String, Sample>>;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds over all contenders.
    pub rounds: usize,
    /// Pods one at a time in each round.
    pub pods: usize,
    /// Pods of a burst, ten at a time.
    pub burst: usize,
}

/// A contender under measurement.
struct Bench<'a> {
    contender: &'a Contender,
    results: &'a mut Results,
    logs: PathBuf,
}

/// Measures everything with every contender.
///
/// # Errors
/// An action fails: a benchmark of something that does not work is worth nothing.
pub fn all(contenders: &[Contender], effort: Effort, big: Option<&str>) -> Result<Results> {
    let mut results = Results::new();
    for contender in contenders {
        wait(async { Ok(contender.client().await?.pull(BUSYBOX).await.map(drop)?) })?;
        let idle = idle(contender)?;
        results
            .entry("daemon, idle: PSS in MiB".into())
            .or_default()
            .entry(contender.name.clone())
            .or_default()
            .push(idle);
    }
    for round in 0..effort.rounds {
        line(format_args!("round {} of {}", round + 1, effort.rounds));
        for contender in contenders {
            let logs = contender.dir.join(format!("logs/{round}"));
            let mut bench = Bench { contender, results: &mut results, logs };
            wait(bench.one_at_a_time(effort.pods)).with_context(|| contender.name.clone())?;
            wait(bench.burst(effort.burst)).with_context(|| contender.name.clone())?;
        }
        if let Some(image) = big {
            for contender in contenders {
                let mut bench = Bench { contender, results: &mut results, logs: PathBuf::new() };
                wait(bench.image(image)).with_context(|| contender.name.clone())?;
            }
        }
    }
    Ok(results)
}

fn idle(contender: &Contender) -> Result<f64> {
    let pid = contender.pid();
    Ok(machine::processes()?.get(&pid).context("the daemon is gone")?.pss / 1024.0)
}

// === impl Bench ===

impl Bench<'_> {
    fn push(&mut self, row: &str, value: f64) {
        let row = self.results.entry(row.to_owned()).or_default();
        row.entry(self.contender.name.clone()).or_default().push(value);
    }

    /// Pods one after the other: start, exec, stop, remove, and the processor time of it all.
    async fn one_at_a_time(&mut self, count: usize) -> Result<()> {
        let mut client = self.contender.client().await?;
        let before = machine::cpu_seconds()?;
        for number in 0..count {
            let name = format!("single{number}");
            let (taken, pod) = action::pod(&mut client, &name, &self.logs).await?;
            self.push("pod ready (run + create + start): ms", taken);
            action::inside(&mut client, &pod, &name).await?;
            let taken = action::remove(&mut client, &pod).await?;
            self.push("StopPodSandbox + RemovePodSandbox: ms", taken);
        }
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let cycle = (machine::cpu_seconds()? - before) * 1e3 / count as f64;
        self.push("processor time per pod cycle: ms", cycle);
        let (_, pod) = action::pod(&mut client, "exec", &self.logs).await?;
        for _ in 0..count {
            let taken = action::exec(&mut client, &pod).await?;
            self.push("ExecSync true: ms", taken);
        }
        let taken = self.execs_together(&pod, 16).await?;
        self.push("16 ExecSync true together: ms", taken);
        let taken = action::stop(&mut client, &pod).await?;
        self.push("StopContainer, ends at SIGTERM: ms", taken);
        action::remove(&mut client, &pod).await?;
        Ok(())
    }

    async fn execs_together(&self, pod: &Pod, count: usize) -> Result<f64> {
        let client = self.contender.client().await?;
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (mut client, pod) = (client.clone(), pod.clone());
            tasks.spawn(async move { action::exec(&mut client, &pod).await });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Many pods, ten at a time; what the runtime keeps for them; how it lists them; their removal.
    async fn burst(&mut self, count: usize) -> Result<()> {
        let mut client = self.contender.client().await?;
        let (mounts, processes) = (machine::mounts()?, machine::processes()?);
        let start = Instant::now();
        let pods = start_together(&client, count, &self.logs).await?;
        self.push(&format!("{count} pods, 10 at a time: ms"), start.elapsed().as_secs_f64() * 1e3);
        let helpers: f64 = machine::processes()?
            .iter()
            .filter(|(pid, process)| {
                !processes.contains_key(pid) && !MARKS.iter().any(|mark| process.command.contains(mark))
            })
            .map(|(_, process)| process.pss)
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let share = |total: f64| total / count as f64;
        self.push("helpers per idle pod: PSS in KiB", share(helpers));
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let mounted = machine::mounts()?.saturating_sub(mounts) as f64;
        self.push("host mounts per running pod", share(mounted));
        for _ in 0..10 {
            let taken = action::stats(&mut client, count).await?;
            self.push(&format!("ListContainerStats, {count} pods: ms"), taken);
            let taken = action::relist(&mut client, count).await?;
            self.push(&format!("ListPodSandbox + ListContainers, {count} pods: ms"), taken);
        }
        for pod in &pods {
            action::remove(&mut client, pod).await?;
        }
        Ok(())
    }

    /// A big image: pull until durable, remove.
    async fn image(&mut self, image: &str) -> Result<()> {
        let mut client = self.contender.client().await?;
        let taken = action::pull(&mut client, image, &self.contender.dir).await?;
        self.push("pull of the big image, durable: ms", taken);
        let taken = action::remove_image(&mut client, image).await?;
        self.push("RemoveImage of the big image: ms", taken);
        Ok(())
    }
}

async fn start_together(client: &Client, count: usize, logs: &Path) -> Result<Vec<Pod>> {
    let mut tasks = tokio::task::JoinSet::new();
    let mut pods = Vec::new();
    for number in 0..count {
        if tasks.len() == 10 {
            pods.extend(joined(&mut tasks).await?);
        }
        let (mut client, logs) = (client.clone(), logs.to_owned());
        tasks.spawn(async move { action::pod(&mut client, &format!("burst{number}"), &logs).await });
    }
    while !tasks.is_empty() {
        pods.extend(joined(&mut tasks).await?);
    }
    Ok(pods)
}

async fn joined(tasks: &mut tokio::task::JoinSet<Result<(f64, Pod)>>) -> Result<Option<Pod>> {
    let Some(done) = tasks.join_next().await else { return Ok(None) };
    Ok(Some(done??.1))
}

/// Pod start latency on a node that fills up, for one contender: pods on the node, then the median of the next twenty.
///
/// # Errors
/// An action fails.
pub fn growth(contender: &Contender, steps: &[usize]) -> Result<Vec<(usize, f64)>> {
    wait(async {
        let mut client = contender.client().await?;
        let logs = contender.dir.join("logs/growth");
        let mut pods = Vec::new();
        let mut points = Vec::new();
        for &step in steps {
            while pods.len() + 20 < step {
                pods.push(action::pod(&mut client, &format!("fill{}", pods.len()), &logs).await?.1);
            }
            let mut sample = Sample::default();
            for _ in 0..20 {
                let (taken, pod) = action::pod(&mut client, &format!("fill{}", pods.len()), &logs).await?;
                sample.push(taken);
                pods.push(pod);
            }
            points.push((step, sample.median()));
        }
        for pod in &pods {
            action::remove(&mut client, pod).await?;
        }
        Ok(points)
    })
}

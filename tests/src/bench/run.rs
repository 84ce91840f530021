//! The rounds: every contender does the same, one after the other, again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::action::{self, MARKS, Pod};
use super::contender::Contender;
use super::machine::{self, number};
use super::sample::Sample;
use crate::client::Client;
use crate::images::{BIG, BUSYBOX};
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
    /// Pulls of the big image.
    pub pulls: usize,
}

/// A contender under measurement, and where its values go.
#[derive(Debug)]
pub struct Bench<'a> {
    /// Who.
    pub contender: &'a mut Contender,
    /// All results.
    pub results: &'a mut Results,
    /// Directory of the pods' logs.
    pub logs: PathBuf,
}

/// Measures everything with every contender.
///
/// # Errors
/// An action fails: a benchmark of something that does not work is worth nothing.
pub fn all(contenders: &mut [Contender], effort: Effort) -> Result<Results> {
    let mut results = Results::new();
    for contender in &mut *contenders {
        wait(async { Ok(contender.client().await?.pull(BUSYBOX).await.map(drop)?) })?;
        Bench::new(contender, &mut results, "idle").idle()?;
    }
    for round in 0..effort.rounds {
        line(format_args!("round {} of {}", round + 1, effort.rounds));
        for contender in &mut *contenders {
            let name = contender.name.clone();
            let mut bench = Bench::new(contender, &mut results, &round.to_string());
            wait(bench.one_at_a_time(effort.pods)).with_context(|| name.clone())?;
            wait(bench.burst(effort.burst)).with_context(|| name)?;
        }
    }
    for round in 0..effort.pulls {
        line(format_args!("pull {} of {}", round + 1, effort.pulls));
        for contender in &mut *contenders {
            let name = contender.name.clone();
            let mut bench = Bench::new(contender, &mut results, "pull");
            wait(bench.image(BIG)).with_context(|| name)?;
        }
    }
    Ok(results)
}

// === impl Bench ===

impl<'a> Bench<'a> {
    /// Measures a contender.
    pub fn new(contender: &'a mut Contender, results: &'a mut Results, logs: &str) -> Self {
        let logs = contender.dir.join("logs").join(logs);
        Self { contender, results, logs }
    }

    /// Notes a value.
    pub fn push(&mut self, row: &str, value: f64) {
        let row = self.results.entry(row.to_owned()).or_default();
        row.entry(self.contender.name.clone()).or_default().push(value);
    }

    /// A daemon that has done nothing but pull one small image, and how long it takes to start.
    fn idle(&mut self) -> Result<()> {
        for _ in 0..3 {
            let taken = self.contender.restart()?;
            self.push("daemon, start to first answer: ms", taken);
        }
        // What a start leaves to be done in the background is done.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let pid = self.contender.pid();
        let pss = machine::processes()?.get(&pid).context("the daemon is gone")?.pss / 1024.0;
        self.push("daemon, idle: PSS in MiB", pss);
        let size: u64 = self
            .contender
            .programs()
            .iter()
            .filter_map(|path| Some(std::fs::metadata(path).ok()?.len()))
            .sum();
        self.push("programs on disk: MiB", number(size) / 1_048_576.0);
        Ok(())
    }

    /// Pods one after the other: start, exec, stop, remove, and the processor time of it all.
    async fn one_at_a_time(&mut self, count: usize) -> Result<()> {
        let mut client = self.contender.client().await?;
        let logs = self.logs.clone();
        let before = machine::cpu_seconds()?;
        for index in 0..count {
            let (taken, pod) = action::pod(&mut client, &format!("single{index}"), &logs).await?;
            action::up(&pod, &logs).await?;
            self.push("pod ready (run + create + start): ms", taken.run + taken.create + taken.start);
            self.push("RunPodSandbox: ms", taken.run);
            action::inside(&mut client, &pod).await?;
            let taken = action::remove(&mut client, &pod).await?;
            self.push("StopPodSandbox + RemovePodSandbox: ms", taken);
        }
        let cycle = (machine::cpu_seconds()? - before) * 1e3 / number(count);
        self.push("processor time per pod cycle: ms", cycle);
        let (_, pod) = action::pod(&mut client, "exec", &logs).await?;
        action::up(&pod, &logs).await?;
        for _ in 0..2 * count {
            let taken = action::exec(&mut client, &pod).await?;
            self.push("ExecSync true: ms", taken);
        }
        let taken = self.execs_together(&pod, 16).await?;
        self.push("16 ExecSync true together: ms", taken);
        let taken = action::exec_output(&mut client, &pod).await?;
        self.push("ExecSync with 8 MiB of output: ms", taken);
        for index in 0..count / 2 {
            let taken = action::container(&mut client, &pod, &format!("more{index}"), &logs).await?;
            let rows =
                ["CreateContainer", "StartContainer", "StopContainer, ends at SIGTERM", "RemoveContainer"];
            rows.iter().zip(taken).for_each(|(row, taken)| self.push(&format!("{row}: ms"), taken));
        }
        let taken = action::log(&mut client, &pod, "writer", &logs).await?;
        self.push("log of 64 MiB in lines of 64 bytes: ms", taken);
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
        Ok(action::milliseconds(start))
    }

    /// Many pods, ten at a time; what the runtime keeps for them; how it lists them; their removal.
    async fn burst(&mut self, count: usize) -> Result<()> {
        let mut client = self.contender.client().await?;
        let before = Footprint::now()?;
        let start = Instant::now();
        let pods = start_together(&client, 0..count, 10, &self.logs).await?;
        self.push(&format!("{count} pods, 10 at a time: ms"), action::milliseconds(start));
        for pod in &pods {
            action::up(pod, &self.logs).await?;
        }
        let now = Footprint::now()?;
        self.push("helpers per idle pod: PSS in KiB", now.helpers_since(&before) / number(count));
        self.push("host mounts per running pod", (now.mounts - before.mounts) / number(count));
        for _ in 0..10 {
            let taken = action::stats(&mut client, count).await?;
            self.push(&format!("ListContainerStats, {count} pods: ms"), taken);
            let taken = action::relist(&mut client, count).await?;
            self.push(&format!("ListPodSandbox + ListContainers, {count} pods: ms"), taken);
        }
        let start = Instant::now();
        remove_together(&client, pods, 10).await?;
        self.push(&format!("removal of {count} pods, 10 at a time: ms"), action::milliseconds(start));
        Ok(())
    }

    /// A big image: pull until durable, remove.
    async fn image(&mut self, image: &str) -> Result<()> {
        let mut client = self.contender.client().await?;
        let taken = action::pull(&mut client, image, &self.contender.dir).await?;
        self.push("pull of the big image, durable: ms", taken);
        let taken = action::remove_image(&mut client, image).await?;
        self.push("RemoveImage of it: ms", taken);
        Ok(())
    }
}

/// What a runtime keeps for its pods.
#[derive(Clone, Debug)]
pub struct Footprint {
    processes: BTreeMap<u32, machine::Process>,
    mounts: f64,
}

impl Footprint {
    /// Counts what there is on this machine.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn now() -> Result<Self> {
        Ok(Self { processes: machine::processes()?, mounts: number(machine::mounts()?) })
    }

    /// Memory of the processes that have come since and are no payload, in KiB of PSS.
    #[must_use]
    pub fn helpers_since(&self, before: &Self) -> f64 {
        self.since(before).map(|(_, process)| process.pss).sum()
    }

    /// The memory cgroups of these processes; `None` when one of them is charged to a cgroup that others were in before.
    #[must_use]
    pub fn cgroups_since(&self, before: &Self) -> Option<BTreeSet<PathBuf>> {
        let old: BTreeSet<_> =
            before.processes.keys().filter_map(|pid| machine::memory_cgroup(*pid)).collect();
        let new: BTreeSet<_> =
            self.since(before).filter_map(|(pid, _)| machine::memory_cgroup(*pid)).collect();
        new.is_disjoint(&old).then_some(new)
    }

    fn since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = (&'a u32, &'a machine::Process)> {
        self.processes.iter().filter(|(pid, process)| {
            !before.processes.contains_key(pid) && !MARKS.iter().any(|mark| process.command.contains(mark))
        })
    }
}

/// Starts pods, `width` of them at a time.
///
/// # Errors
/// One of them cannot be started.
pub async fn start_together(
    client: &Client,
    numbers: std::ops::Range<usize>,
    width: usize,
    logs: &Path,
) -> Result<Vec<Pod>> {
    let mut tasks = tokio::task::JoinSet::new();
    let mut pods = Vec::new();
    for index in numbers {
        if tasks.len() == width
            && let Some(done) = tasks.join_next().await
        {
            pods.push(done??);
        }
        let (mut client, logs) = (client.clone(), logs.to_owned());
        tasks.spawn(async move { Ok(action::pod(&mut client, &format!("many{index}"), &logs).await?.1) });
    }
    let rest: Result<Vec<Pod>> = tasks.join_all().await.into_iter().collect();
    pods.extend(rest?);
    Ok(pods)
}

/// Removes pods, `width` of them at a time.
///
/// # Errors
/// One of them cannot be removed.
pub async fn remove_together(client: &Client, pods: Vec<Pod>, width: usize) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for pod in pods {
        if tasks.len() == width
            && let Some(done) = tasks.join_next().await
        {
            done??;
        }
        let mut client = client.clone();
        tasks.spawn(async move { action::remove(&mut client, &pod).await });
    }
    tasks.join_all().await.into_iter().collect::<Result<Vec<f64>>>().map(drop)
}

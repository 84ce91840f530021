//! What a kubelet reads all the time, on a full node where pods are being made: how long it waits.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;

use super::action;
use super::contender::Contender;
use super::run::{Results, start_together};
use crate::client::{self, Client};
use crate::images::BUSYBOX;
use crate::report::line;
use crate::streams::roundtrip::{self, Carrier};
use crate::suites::wait;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Pods that run all the time.
    pub pods: usize,
    /// Pods in the making at any moment.
    pub creates: usize,
    /// Calls of each kind, at most.
    pub calls: usize,
    /// Bytes through exec.
    pub bytes: u64,
    /// How often, over each carrier.
    pub rounds: usize,
}

/// Rows of the throughput of exec.
const CARRIERS: [(&str, Carrier); 2] = [
    ("exec, stdin to stdout over SPDY: s per GiB", Carrier::Spdy),
    ("exec, stdin to stdout over WebSocket: s per GiB", Carrier::WebSocket),
];

/// Least time from one round of calls to the next: between two of them pods come and go.
const PACE: Duration = Duration::from_millis(40);
/// How long a contender is asked, unless it has not answered [`LEAST`] calls of each kind by then.
const ASKED: Duration = Duration::from_secs(60);
const LEAST: usize = 20;

/// Rows whose 99th percentile has a limit of its own, in milliseconds.
pub const LIMIT: f64 = 5.0;

/// Measures reads under load, then the throughput of exec.
///
/// # Errors
/// An action fails.
pub fn all(contenders: &[Contender], load: Load) -> Result<Results> {
    let mut results = Results::new();
    for contender in contenders {
        line(format_args!("{}: {} pods, {} in the making", contender.name, load.pods, load.creates));
        let rows = wait(Box::pin(reads(contender, load))).with_context(|| contender.name.clone())?;
        let rates = throughput(contender, load).with_context(|| contender.name.clone())?;
        for (row, values) in rows.into_iter().chain(rates) {
            results
                .entry(row.to_owned())
                .or_default()
                .entry(contender.name.clone())
                .or_default()
                .extend(&values);
        }
    }
    Ok(results)
}

/// Berth's rows above the limit.
#[must_use]
pub fn late(results: &Results) -> Vec<&str> {
    let above = |samples: &std::collections::BTreeMap<String, super::sample::Sample>| {
        samples.get("berth").is_none_or(|sample| sample.quantile(0.99) > LIMIT)
    };
    let rows = results.iter().filter(|(row, samples)| row.contains("under load") && above(samples));
    rows.map(|(row, _)| row.as_str()).collect()
}

/// Row and what was measured.
type Rows = Vec<(&'static str, Vec<f64>)>;

async fn reads(contender: &Contender, load: Load) -> Result<Rows> {
    let mut client = contender.client().await?;
    client.pull(BUSYBOX).await?;
    let logs = contender.dir.join("logs/reads");
    let pods = start_together(&client, 0..load.pods, 10, &logs).await?;
    let makers =
        Makers { socket: contender.socket.clone(), logs, stop: Arc::default(), made: Arc::default() };
    let running = makers.clone();
    // On a thread of their own: whoever reads must wait for the runtime alone, not for other clients.
    let thread = std::thread::spawn(move || wait(Box::pin(running.run(load.creates))));
    while makers.made.load(Ordering::Relaxed) == 0 && !thread.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The pods have been given all processors, but whoever holds the clock must not wait for one: that would be measured as well.
    rustix::process::setpriority_process(None, -20).context("go before all others")?;
    let rows = measure(&mut client, load, contender.rival()).await;
    rustix::process::setpriority_process(None, 0)?;
    makers.stop.store(true, Ordering::Relaxed);
    thread.join().map_err(|_| anyhow::anyhow!("the makers panicked"))??;
    line(format_args!("  {} pods were made meanwhile", makers.made.load(Ordering::Relaxed)));
    for pod in &pods {
        action::remove(&mut client, pod).await?;
    }
    rows
}

/// Clients that make pods and remove them, each one after the other.
#[derive(Clone, Debug)]
struct Makers {
    socket: PathBuf,
    logs: PathBuf,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
}

impl Makers {
    async fn run(self, count: usize) -> Result<()> {
        let mut makers = tokio::task::JoinSet::new();
        for number in 0..count {
            let client = client::connect(&self.socket).await?;
            makers.spawn(self.clone().one(client, number));
        }
        while let Some(done) = makers.join_next().await {
            done??;
        }
        Ok(())
    }

    async fn one(self, mut client: Client, number: usize) -> Result<()> {
        let mut round = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let name = format!("maker{number}-{round}");
            let (_, pod) = action::pod(&mut client, &name, &self.logs).await?;
            action::remove(&mut client, &pod).await?;
            self.made.fetch_add(1, Ordering::Relaxed);
            round += 1;
        }
        Ok(())
    }
}

/// A rival's call that fails is told and not measured.
async fn measure(client: &mut Client, load: Load, rival: bool) -> Result<Rows> {
    let mut rows: Rows = [
        "ListPodSandbox under load: ms",
        "ListContainers under load: ms",
        "Status under load: ms",
        "ListContainerStats under load: ms",
        "ListPodSandboxStats under load: ms",
    ]
    .into_iter()
    .map(|row| (row, Vec::new()))
    .collect();
    let mut failures = vec![Vec::new(); rows.len()];
    let start = Instant::now();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for round in 0..load.calls {
        if round >= LEAST && start.elapsed() > ASKED {
            line(format_args!("  {round} of {} calls of each kind in {} s", load.calls, ASKED.as_secs()));
            break;
        }
        pace.tick().await;
        for (which, (_, values)) in rows.iter_mut().enumerate() {
            let begun = Instant::now();
            match read(client, which).await {
                Ok(found) => {
                    values.push(begun.elapsed().as_secs_f64() * 1e3);
                    ensure!(found >= load.pods || which == 2, "only {found} of {}", load.pods);
                }
                Err(error) if rival => failures[which].push(format!("{error:#}")),
                Err(error) => return Err(error),
            }
        }
    }
    for ((row, _), failed) in rows.iter().zip(failures) {
        if let Some(first) = failed.first() {
            let first: String = first.chars().take(200).collect();
            line(format_args!("  {row}: {} calls failed: {first}", failed.len()));
        }
    }
    Ok(rows)
}

/// One call; how many entries it gave.
async fn read(client: &mut Client, which: usize) -> Result<usize> {
    let runtime = &mut client.runtime;
    Ok(match which {
        0 => runtime.list_pod_sandbox(api::ListPodSandboxRequest::default()).await?.into_inner().items.len(),
        1 => runtime
            .list_containers(api::ListContainersRequest::default())
            .await?
            .into_inner()
            .containers
            .len(),
        2 => runtime
            .status(api::StatusRequest::default())
            .await?
            .into_inner()
            .status
            .map_or(0, |s| s.conditions.len()),
        3 => runtime
            .list_container_stats(api::ListContainerStatsRequest::default())
            .await?
            .into_inner()
            .stats
            .len(),
        _ => {
            let request = api::ListPodSandboxStatsRequest::default();
            runtime.list_pod_sandbox_stats(request).await?.into_inner().stats.len()
        }
    })
}

/// Seconds per GiB of a pattern that goes through a command's standard input and output, every byte of it compared. A rival
/// that fails is told and not measured.
fn throughput(contender: &Contender, load: Load) -> Result<Rows> {
    let logs = contender.dir.join("logs/throughput");
    // Each `wait` is a runtime of its own, and a connection ends with it.
    let (_, pod) = wait(async { action::pod(&mut contender.client().await?, "throughput", &logs).await })?;
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let share = load.bytes as f64 / f64::from(1_u32 << 30);
    let mut rows: Rows = CARRIERS.iter().map(|(row, _)| (*row, Vec::new())).collect();
    for _ in 0..load.rounds {
        for ((_, carrier), (row, values)) in CARRIERS.iter().zip(&mut rows) {
            let request = api::ExecRequest {
                container_id: pod.container.clone(),
                cmd: roundtrip::command(load.bytes).to_vec(),
                stdin: true,
                stdout: true,
                ..Default::default()
            };
            let url =
                wait(async { Ok(contender.client().await?.runtime.exec(request).await?.into_inner().url) })?;
            match roundtrip::run(&url, *carrier, load.bytes).with_context(|| (*row).to_owned()) {
                Ok(seconds) => values.push(seconds / share),
                Err(error) if contender.rival() => line(format_args!("  {error:#}")),
                Err(error) => return Err(error),
            }
        }
    }
    wait(async { action::remove(&mut contender.client().await?, &pod).await })?;
    Ok(rows)
}

//! What a kubelet reads all the time, on a full node where pods are being made: how long it waits.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;

use super::action;
use super::contender::Contender;
use super::run::{Results, start_together};
use crate::client::Client;
use crate::images::BUSYBOX;
use crate::report::line;
use crate::shell;
use crate::suites::wait;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Pods that run all the time.
    pub pods: usize,
    /// Pods in the making at any moment.
    pub creates: usize,
    /// Calls of each kind.
    pub calls: usize,
    /// Bytes through exec.
    pub bytes: u64,
}

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
        let rate = throughput(contender, load.bytes).with_context(|| contender.name.clone())?;
        for (row, values) in
            rows.into_iter().chain([("exec, stdin to stdout over SPDY: s per GiB", vec![rate])])
        {
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

/// Row and milliseconds of each call.
type Rows = Vec<(&'static str, Vec<f64>)>;

async fn reads(contender: &Contender, load: Load) -> Result<Rows> {
    let mut client = contender.client().await?;
    client.pull(BUSYBOX).await?;
    let logs = contender.dir.join("logs/reads");
    let pods = start_together(&client, 0..load.pods, 10, &logs).await?;
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut makers = tokio::task::JoinSet::new();
    for number in 0..load.creates {
        let maker =
            Maker { client: contender.client().await?, stop: stop.clone(), made: made.clone(), number };
        let logs = logs.clone();
        makers.spawn(async move { maker.run(&logs).await });
    }
    let rows = measure(&mut client, load).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = makers.join_next().await {
        done??;
    }
    line(format_args!("  {} pods were made meanwhile", made.load(Ordering::Relaxed)));
    for pod in &pods {
        action::remove(&mut client, pod).await?;
    }
    rows
}

/// One client that makes pods, one after the other.
struct Maker {
    client: Client,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    number: usize,
}

impl Maker {
    async fn run(mut self, logs: &Path) -> Result<()> {
        let mut round = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let name = format!("maker{}-{round}", self.number);
            let (_, pod) = action::pod(&mut self.client, &name, logs).await?;
            action::remove(&mut self.client, &pod).await?;
            self.made.fetch_add(1, Ordering::Relaxed);
            round += 1;
        }
        Ok(())
    }
}

async fn measure(client: &mut Client, load: Load) -> Result<Rows> {
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
    for _ in 0..load.calls {
        for (which, (_, values)) in rows.iter_mut().enumerate() {
            let begun = Instant::now();
            let found = read(client, which).await?;
            values.push(begun.elapsed().as_secs_f64() * 1e3);
            ensure!(found >= load.pods || which == 2, "only {found} of {}", load.pods);
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

/// Seconds per GiB that crictl needs to send bytes into `cat` and read them back, over SPDY, which both speak.
fn throughput(contender: &Contender, bytes: u64) -> Result<f64> {
    let crictl = std::env::var("CRICTL").context("CRICTL is not set: use tests/bench")?;
    let logs = contender.dir.join("logs/throughput");
    let (mut client, pod) = wait(async {
        let mut client = contender.client().await?;
        let (_, pod) = action::pod(&mut client, "throughput", &logs).await?;
        Ok((client, pod))
    })?;
    let endpoint = format!("unix://{}", contender.socket.display());
    let config = contender.dir.join("crictl.yaml");
    std::fs::write(&config, "timeout: 30\n")?;
    let script = format!(
        "set -o pipefail; head -c {bytes} /dev/zero | {crictl} --config {} --runtime-endpoint {endpoint} \
         exec --transport spdy -i {} cat | wc -c",
        config.display(),
        pod.container
    );
    let begun = Instant::now();
    let text = shell::run(900, "bash", &["-c", &script])?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(text.trim() == bytes.to_string(), "{bytes} bytes came back as {}", text.trim());
    wait(async { action::remove(&mut client, &pod).await })?;
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let share = bytes as f64 / f64::from(1_u32 << 30);
    Ok(seconds / share)
}

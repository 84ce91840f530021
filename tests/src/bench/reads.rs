//! What a kubelet reads all the time, on a full node where pods are being made: how long it waits.
//!
//! Fifty clients make pods, one after the other each. First as fast as the runtime lets them: then a call is always in progress for each of
//! them, every processor is taken, and a fast runtime has to bear many times the pods of a slow one. Then held to so many pods a second
//! together, the same for every runtime. Whoever asks does so from a thread that goes before all others (nice -20, and slices short enough
//! to interrupt theirs), and so does not wait for the pods' own processes; how long it waited for a processor all the same is told, and so
//! is what the machine takes for the least there can be: [`FLOOR`].

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use engine::sys::thread;
use k8s_cri::v1 as api;

use super::action::{self, milliseconds};
use super::contender::Contender;
use super::machine::number;
use super::run::{Results, remove_together, start_together};
use super::sample::Sample;
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
    /// Clients that make pods and remove them, each one after the other.
    pub creates: usize,
    /// Pods a second that all of them make together when they are held back.
    pub rate: f64,
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
const ASKED: Duration = Duration::from_secs(30);
const LEAST: usize = 10;

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
            results.entry(row).or_default().entry(contender.name.clone()).or_default().extend(&values);
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
    let called = |row: &str| CALLS.iter().any(|call| row.split(' ').next() == Some(call));
    let rows = results.iter().filter(|(row, samples)| called(row) && above(samples));
    rows.map(|(row, _)| row.as_str()).collect()
}

/// Row and what was measured.
type Rows = Vec<(String, Vec<f64>)>;

async fn reads(contender: &Contender, load: Load) -> Result<Rows> {
    let mut client = contender.client().await?;
    client.pull(BUSYBOX).await?;
    let logs = contender.dir.join("logs/reads");
    let pods = start_together(&client, 0..load.pods, 10, &logs).await?;
    let mut rows = Rows::new();
    for rate in [None, Some(load.rate)] {
        rows.extend(under(contender, &mut client, load, rate).await?);
    }
    remove_together(&client, pods, 10).await?;
    Ok(rows)
}

/// Calls while pods are made, so many a second or as many as can be.
async fn under(contender: &Contender, client: &mut Client, load: Load, rate: Option<f64>) -> Result<Rows> {
    let makers = Makers {
        socket: contender.socket.clone(),
        logs: contender.dir.join("logs/reads"),
        period: rate.map(|rate| Duration::from_secs_f64(number(load.creates) / rate)),
        stop: Arc::default(),
        made: Arc::default(),
    };
    let running = makers.clone();
    // On a thread of their own: whoever reads must wait for the runtime alone, not for other clients.
    let thread = std::thread::spawn(move || wait(Box::pin(running.run(load.creates))));
    while makers.made.load(Ordering::Relaxed) == 0 && !thread.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (before, begun) = (makers.made.load(Ordering::Relaxed), Instant::now());
    // The pods have been given all processors, but whoever holds the clock must not wait for one: that would be measured as well.
    thread::go_ahead(-20).context("go before all others")?;
    let rows = measure(client, load, contender.rival(), rate).await;
    rustix::process::setpriority_process(None, 0)?;
    thread::fall_back()?;
    let made = number(makers.made.load(Ordering::Relaxed) - before);
    line(format_args!(
        "  {:.1} pods were made and removed a second meanwhile",
        made / begun.elapsed().as_secs_f64()
    ));
    makers.stop.store(true, Ordering::Relaxed);
    thread.join().map_err(|_| anyhow::anyhow!("the makers panicked"))??;
    rows
}

/// Clients that make pods and remove them, each one after the other.
#[derive(Clone, Debug)]
struct Makers {
    socket: PathBuf,
    logs: PathBuf,
    /// Least time from one pod of a maker to its next.
    period: Option<Duration>,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
}

impl Makers {
    async fn run(self, count: usize) -> Result<()> {
        let mut makers = tokio::task::JoinSet::new();
        for index in 0..count {
            let client = client::connect(&self.socket).await?;
            // Spread evenly over the period.
            let first = self.period.unwrap_or_default().mul_f64(number(index) / number(count));
            makers.spawn(self.clone().one(client, index, Instant::now() + first));
        }
        while let Some(done) = makers.join_next().await {
            done??;
        }
        Ok(())
    }

    async fn one(self, mut client: Client, number: usize, mut next: Instant) -> Result<()> {
        let mut round = 0;
        loop {
            tokio::time::sleep_until(next.into()).await;
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            // One that is late does not catch up: it would be two at once.
            next = Instant::now().max(next) + self.period.unwrap_or_default();
            let name = format!("maker{number}-{round}");
            let (_, pod) = action::pod(&mut client, &name, &self.logs).await?;
            action::remove(&mut client, &pod).await?;
            self.made.fetch_add(1, Ordering::Relaxed);
            round += 1;
        }
    }
}

/// The calls, as the rows name them.
const CALLS: [&str; 5] =
    ["ListPodSandbox", "ListContainers", "Status", "ListContainerStats", "ListPodSandboxStats"];

/// What is measured of one of [`CALLS`].
#[derive(Debug, Default)]
struct Measured {
    /// Milliseconds from the question to the decoded answer.
    took: Vec<f64>,
    /// Milliseconds of these in which the client itself was ready to go on and had no processor.
    waited: Sample,
    failures: Vec<String>,
}

/// A byte there and back between the client and a thread that does nothing else, both ahead of all others: what is left of a call when
/// nothing has to be done for it. Nobody's answers can come faster.
const FLOOR: &str = "a byte to another thread and back";

/// The other thread of [`FLOOR`].
struct Echo(UnixStream);

impl Echo {
    fn start() -> Result<Self> {
        let (near, mut far) = UnixStream::pair()?;
        std::thread::spawn(move || -> Result<()> {
            thread::go_ahead(-20)?;
            let mut byte = [0];
            loop {
                far.read_exact(&mut byte)?;
                far.write_all(&byte)?;
            }
        });
        Ok(Self(near))
    }

    /// Milliseconds.
    fn call(&mut self) -> Result<f64> {
        let begun = Instant::now();
        self.0.write_all(&[0])?;
        self.0.read_exact(&mut [0])?;
        Ok(milliseconds(begun))
    }
}

/// A rival's call that fails is told and not measured.
async fn measure(client: &mut Client, load: Load, rival: bool, rate: Option<f64>) -> Result<Rows> {
    let mut all: [Measured; CALLS.len()] = std::array::from_fn(|_| Measured::default());
    let start = Instant::now();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (own, mut echo, mut floor) = (Waiting::open()?, Echo::start()?, Vec::new());
    for round in 0..load.calls {
        if round >= LEAST && start.elapsed() > ASKED {
            line(format_args!("  {round} of {} calls of each kind in {} s", load.calls, ASKED.as_secs()));
            break;
        }
        pace.tick().await;
        floor.push(echo.call()?);
        for (which, measured) in all.iter_mut().enumerate() {
            let (before, begun) = (own.milliseconds()?, Instant::now());
            let outcome = read(client, which).await;
            let (took, waited) = (milliseconds(begun), own.milliseconds()? - before);
            match outcome {
                Ok(found) => {
                    ensure!(found >= load.pods || CALLS[which] == "Status", "only {found} of {}", load.pods);
                    measured.took.push(took);
                    measured.waited.push(waited);
                }
                Err(error) if rival => measured.failures.push(format!("{error:#}")),
                Err(error) => return Err(error),
            }
        }
    }
    let load =
        rate.map_or_else(|| "under load: ms".to_owned(), |rate| format!("at {rate} pods a second: ms"));
    let row = |(call, measured): (&&str, Measured)| {
        if let Some(first) = measured.failures.first() {
            let first: String = first.chars().take(200).collect();
            line(format_args!("  {call}: {} calls failed: {first}", measured.failures.len()));
        }
        if !measured.waited.is_empty() {
            let waited = measured.waited.quantile(0.99);
            line(format_args!(
                "  {call}: the client waited for a processor, 99th percentile: {waited:.2} ms"
            ));
        }
        (format!("{call} {load}"), measured.took)
    };
    let mut rows: Rows = CALLS.iter().zip(all).map(row).collect();
    rows.push((format!("{FLOOR} {load}"), floor));
    Ok(rows)
}

/// How long the thread that opened it has been ready to run without a processor, as the scheduler counts it.
struct Waiting(fs::File);

impl Waiting {
    fn open() -> Result<Self> {
        Ok(Self(fs::File::open("/proc/thread-self/schedstat")?))
    }

    /// The second number of the file, which is in nanoseconds.
    fn milliseconds(&self) -> Result<f64> {
        let mut text = [0; 100];
        let length = self.0.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..length])?;
        let waited: f64 = text.split(' ').nth(1).context("schedstat has no second number")?.parse()?;
        Ok(waited / 1e6)
    }
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
    let mut rows: Rows = CARRIERS.iter().map(|(row, _)| ((*row).to_owned(), Vec::new())).collect();
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
            match roundtrip::run(&url, *carrier, load.bytes).with_context(|| row.clone()) {
                Ok(seconds) => values.push(seconds / share),
                Err(error) if contender.rival() => line(format_args!("  {error:#}")),
                Err(error) => return Err(error),
            }
        }
    }
    wait(async { action::remove(&mut contender.client().await?, &pod).await })?;
    Ok(rows)
}

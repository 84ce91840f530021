//! What a kubelet reads all the time, on a full node where pods are being made: how long it waits.
//!
//! Fifty clients make pods, one after the other each, in three ways ([`Making`]). First they make pods and nothing else, so that always
//! fifty creates run: that is what the limit is for. Then each removes its pod again before it makes the next, as fast as the runtime lets
//! them: every processor is taken, and a fast runtime has to bear many times the pods of a slow one. Then held to so many pods a second
//! together, the same for every runtime. Whoever asks does so from a thread that goes before all others ([`thread::go_first`]), and so does
//! not wait for the pods' own processes; how long it waited for a processor all the same is told, and so is what the machine takes for the
//! least there can be: [`FLOOR`].

mod makers;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use engine::sys::thread;
use k8s_cri::v1 as api;

use self::makers::{Makers, Making};
use super::action::{self, milliseconds};
use super::contender::Contender;
use super::growth::SETTLED;
use super::machine::number;
use super::run::{Results, remove_together, start_together};
use super::sample::Sample;
use crate::client::Client;
use crate::images::BUSYBOX;
use crate::report::line;
use crate::streams::roundtrip::{self, Carrier};
use crate::suites::wait;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Pods that run all the time.
    pub pods: usize,
    /// Clients that make pods, each one after the other.
    pub creates: usize,
    /// Pods a second that all of them make and remove together when they are held back.
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

/// Pods that are made in one go, for each client, before all of them are removed.
const EACH: usize = 2;

/// What the 99th percentile of reads may be while creates run, in milliseconds.
pub const LIMIT: f64 = 5.0;

/// Measures reads under load, then the throughput of exec.
///
/// # Errors
/// An action fails.
pub fn all(contenders: &[Contender], load: Load) -> Result<Results> {
    let mut results = Results::new();
    for contender in contenders {
        line(format_args!("{}: {} pods, {} in the making", contender.name, load.pods, load.creates));
        let rows =
            first(|| wait(Box::pin(reads(contender, load)))).with_context(|| contender.name.clone())?;
        let rates = throughput(contender, load).with_context(|| contender.name.clone())?;
        for (row, values) in rows.into_iter().chain(rates) {
            results.entry(row).or_default().entry(contender.name.clone()).or_default().extend(&values);
        }
    }
    Ok(results)
}

/// Has it done by a thread that goes before all others: the pods are given all processors, but whoever holds the clock must not wait for
/// one, for that would be measured as well.
fn first<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let run = || {
        thread::go_first().context("go before all others")?;
        work()
    };
    let done = std::thread::scope(|scope| scope.spawn(run).join());
    done.map_err(|_| anyhow!("who reads panicked"))?
}

/// Berth's rows above the limit.
#[must_use]
pub fn late(results: &Results) -> Vec<&str> {
    let rows = CALLS.map(|call| format!("{call} {}", Making::Only.label()));
    let above = |samples: &std::collections::BTreeMap<String, Sample>| {
        samples.get("berth").is_none_or(|sample| sample.quantile(0.99) > LIMIT)
    };
    let late = results.iter().filter(|(row, samples)| rows.contains(row) && above(samples));
    late.map(|(row, _)| row.as_str()).collect()
}

/// Row and what was measured.
type Rows = Vec<(String, Vec<f64>)>;

async fn reads(contender: &Contender, load: Load) -> Result<Rows> {
    let mut client = contender.client().await?;
    client.pull(BUSYBOX).await?;
    let logs = contender.dir.join("logs/reads");
    let pods = start_together(&client, 0..load.pods, 10, &logs).await?;
    let mut rows = Rows::new();
    for making in [Making::Only, Making::Removing, Making::At(load.rate)] {
        rows.extend(under(contender, &mut client, load, making).await?);
    }
    remove_together(&client, pods, 10).await?;
    Ok(rows)
}

/// Calls while pods are made in that way.
async fn under(contender: &Contender, client: &mut Client, load: Load, making: Making) -> Result<Rows> {
    let mut kubelet = Kubelet::new(load.pods, contender.rival())?;
    let (mut asked, mut made) = (Duration::ZERO, 0);
    while kubelet.rounds() < load.calls && (kubelet.rounds() < LEAST || asked < ASKED) {
        kubelet.settle(client).await?;
        // On a thread of their own: whoever reads must wait for the runtime alone, not for other clients.
        let makers = Makers::start(contender, making, load.creates);
        makers.at_work().await;
        let (before, begun) = (makers.made(), Instant::now());
        let enough = making.leaves_pods().then_some(EACH * load.creates);
        let outcome = kubelet.ask(client, &makers, enough, load.calls, ASKED.saturating_sub(asked)).await;
        made += makers.made() - before;
        asked += begun.elapsed();
        let left = makers.end()?;
        outcome?;
        remove_together(client, left, 10).await?;
    }
    line(format_args!("  {}: {:.1} pods a second", making.label(), number(made) / asked.as_secs_f64()));
    if kubelet.rounds() < load.calls {
        line(format_args!("  {} of {} calls of each kind", kubelet.rounds(), load.calls));
    }
    Ok(kubelet.rows(&making.label()))
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
            thread::go_first()?;
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

/// Whoever reads.
struct Kubelet {
    /// Pods there are at least.
    pods: usize,
    /// A rival's call that fails is told and not measured.
    rival: bool,
    own: Waiting,
    echo: Echo,
    floor: Vec<f64>,
    calls: [Measured; CALLS.len()],
}

impl Kubelet {
    fn new(pods: usize, rival: bool) -> Result<Self> {
        let calls = std::array::from_fn(|_| Measured::default());
        Ok(Self { pods, rival, own: Waiting::open()?, echo: Echo::start()?, floor: Vec::new(), calls })
    }

    /// How often each call was made.
    fn rounds(&self) -> usize {
        self.floor.len()
    }

    /// Asks as it does later on, until what was there before is over and it is no newcomer: nothing of that is measured.
    async fn settle(&self, client: &mut Client) -> Result<()> {
        let start = Instant::now();
        let mut pace = tokio::time::interval(PACE);
        while start.elapsed() < SETTLED {
            pace.tick().await;
            for which in 0..CALLS.len() {
                match read(client, which).await {
                    Err(error) if !self.rival => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Asks until there have been so many rounds, or enough pods were made, or for so long but at least [`LEAST`] rounds.
    async fn ask(
        &mut self,
        client: &mut Client,
        makers: &Makers,
        enough: Option<usize>,
        rounds: usize,
        longest: Duration,
    ) -> Result<()> {
        let start = Instant::now();
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.rounds() < rounds
            && enough.is_none_or(|enough| makers.made() < enough)
            && (self.rounds() < LEAST || start.elapsed() < longest)
        {
            pace.tick().await;
            self.round(client).await?;
        }
        Ok(())
    }

    /// Each call once.
    async fn round(&mut self, client: &mut Client) -> Result<()> {
        self.floor.push(self.echo.call()?);
        for (which, measured) in self.calls.iter_mut().enumerate() {
            let (before, begun) = (self.own.milliseconds()?, Instant::now());
            let outcome = read(client, which).await;
            let (took, waited) = (milliseconds(begun), self.own.milliseconds()? - before);
            match outcome {
                Ok(found) => {
                    ensure!(found >= self.pods || CALLS[which] == "Status", "only {found} of {}", self.pods);
                    measured.took.push(took);
                    measured.waited.push(waited);
                }
                Err(error) if self.rival => measured.failures.push(format!("{error:#}")),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What was measured, with what is left to say of it.
    fn rows(self, label: &str) -> Rows {
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
            (format!("{call} {label}"), measured.took)
        };
        let mut rows: Rows = CALLS.iter().zip(self.calls).map(row).collect();
        rows.push((format!("{FLOOR} {label}"), self.floor));
        rows
    }
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

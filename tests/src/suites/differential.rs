//! Berth and containerd side by side: the same sequences of requests, every code and every field of every answer compared.
//!
//! `docs/differences.md` lists what differs and who is right by the proto's text. A difference that is not in that table
//! fails, and so does a row that no longer is true. Each row's first cell is the key this suite makes:
//! the RPC, the field, and for codes also the request and the state of what it is about.

mod plan;
mod requests;
mod runtime;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost_reflect::DynamicMessage;
use tonic::Status;

use super::wait;
use crate::bench::contender::Contender;
use crate::images::BUSYBOX;
use crate::report::{Report, line};
use crate::world::World;
use plan::{CONTAINERS, PODS, Step};
use requests::Names;
use runtime::{Facts, Runtime};

/// Sequences, unless the environment says otherwise (`BERTH_SEQUENCES`).
const SEQUENCES: u64 = 300;

/// What differs, then what Berth and containerd say.
type Key = (String, String, String);

/// Differences, and the sequences in which they were seen; none for one that only the whole run shows.
type Differences = BTreeMap<Key, BTreeSet<u64>>;

/// What comparing has shown so far.
#[derive(Default)]
struct Seen {
    differences: Differences,
    /// The numbers that each side had at least once, by RPC and field: zero in one answer may be too early to be anything else.
    numbers: [BTreeSet<String>; 2],
}

/// One of the two, in the middle of a sequence.
struct Side {
    runtime: Runtime,
    names: Names,
    /// Containers that end by themselves.
    ending: BTreeSet<String>,
}

/// Runs the suite.
///
/// # Errors
/// One of the two does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let runc = format!("{}/runc", std::env::var("RIVALS").context("RIVALS is not set: use tests/run")?);
    let contenders = [Contender::berth(world)?, Contender::containerd(world, &runc)?];
    let count = std::env::var("BERTH_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(SEQUENCES);
    let mut seen = Differences::new();
    report.case(&format!("{count} sequences run on both"), || {
        seen = wait(Box::pin(compare(&contenders, count)))?;
        Ok(())
    });
    let text = fs::read_to_string(world.tree.join("docs/differences.md"))?;
    let listed = rows(&text);
    report.case("every difference is in docs/differences.md", || {
        let new: Vec<_> = seen.iter().filter(|(key, _)| !listed.contains_key(*key)).collect();
        for ((key, ours, theirs), sequences) in &new {
            line(format_args!("| `{key}` | `{ours}` | `{theirs}` | | {sequences:?}"));
        }
        ensure!(new.is_empty(), "{} differences are not listed", new.len());
        Ok(())
    });
    report.case("every difference of the list is still there", || {
        let always = listed.iter().filter(|(_, at_times)| !**at_times);
        let gone: Vec<_> = always.map(|(key, _)| key).filter(|key| !seen.contains_key(*key)).collect();
        ensure!(gone.is_empty() || count < SEQUENCES, "{gone:#?}");
        Ok(())
    });
    Ok(())
}

/// How a row's last cell begins of which not every run has an example: what was measured by then depends on the machine.
const AT_TIMES: &str = "at times: ";

/// The rows of the table: keys and values, and whether that is seen at times only.
fn rows(text: &str) -> BTreeMap<Key, bool> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, key, ours, theirs, _, words, ..] = cells[..] else { return None };
        Some(((key.to_owned(), ours.to_owned(), theirs.to_owned()), words.starts_with(AT_TIMES)))
    })
    .collect()
}

async fn compare(contenders: &[Contender; 2], count: u64) -> Result<Differences> {
    let mut sides = Vec::new();
    for contender in contenders {
        contender.client().await?.pull(BUSYBOX).await?;
        let runtime = Runtime::connect(&contender.socket).await?;
        let logs = contender.dir.join("logs").display().to_string();
        let names = Names { pods: Vec::new(), containers: Vec::new(), logs, number: 0 };
        sides.push(Side { runtime, names, ending: BTreeSet::new() });
    }
    let mut seen = Seen::default();
    for number in 0..count {
        let steps = plan::sequence(number);
        for side in &mut sides {
            side.begin(number);
        }
        for step in &steps {
            let about = sides[0].about(step).await?;
            let mut both = Vec::new();
            for side in &mut sides {
                both.push(side.perform(step).await?);
            }
            seen.note(step, &about, [&both[0], &both[1]], number);
            if apart(step, &both[0], &both[1]) {
                break;
            }
        }
        for side in &mut sides {
            side.clear().await.with_context(|| format!("after sequence {number}"))?;
        }
    }
    Ok(seen.all())
}

/// Whether the two have different objects from here on, so that what follows cannot be compared.
fn apart(step: &Step, ours: &Facts, theirs: &Facts) -> bool {
    let done = |facts: &Facts| facts.get("code").is_some_and(|code| code == "Ok");
    requests::CHANGES.contains(&step.rpc) && done(ours) != done(theirs)
}

/// Whether this is a measured number (UInt64Value), which is only there if it is not zero.
fn is_number(path: &str) -> bool {
    path.ends_with(".value")
}

/// Whether a message or list that holds this field is missing on one side: that is the difference, not each field in it.
fn below_missing(path: &str, ours: &Facts, theirs: &Facts) -> bool {
    let ends = path.match_indices(['.', '[']).map(|(at, _)| at);
    ends.into_iter().any(|at| {
        let holder = &path[..at];
        let count = format!("{holder}.#");
        let there = |facts: &Facts| facts.contains_key(holder) || facts.contains_key(&count);
        path != count && there(ours) != there(theirs)
    })
}

// === impl Seen ===

impl Seen {
    /// Adds what differs between two answers to the same step.
    fn note(&mut self, step: &Step, about: &str, [ours, theirs]: [&Facts; 2], number: u64) {
        let unset = String::new();
        // Different codes: nothing else can be compared.
        let same_code = ours.get("code") == theirs.get("code");
        let paths: BTreeSet<&String> =
            ours.keys().chain(theirs.keys()).filter(|path| same_code || *path == "code").collect();
        for path in paths {
            let (mine, other) = (ours.get(path).unwrap_or(&unset), theirs.get(path).unwrap_or(&unset));
            if below_missing(path, ours, theirs) {
                continue;
            }
            let key = if path == "code" {
                format!("{} {path}: {}{about}", step.rpc, step.variant)
            } else {
                format!("{} {path}", step.rpc)
            };
            if is_number(path) {
                for (numbers, said) in self.numbers.iter_mut().zip([mine, other]) {
                    numbers.extend((!said.is_empty()).then(|| key.clone()));
                }
            } else if mine != other {
                // How many there are on one side alone is no news.
                let lonely = mine.is_empty() || other.is_empty();
                let some = |text: &str| {
                    if lonely && path.ends_with(".#") && !text.is_empty() { "some" } else { text }.to_owned()
                };
                let cell = |text: &str| text.replace('|', "/").replace('`', "'");
                let key = (cell(&key), cell(&some(mine)), cell(&some(other)));
                self.differences.entry(key).or_default().insert(number);
            }
        }
    }

    /// Every difference there was.
    fn all(mut self) -> Differences {
        let [ours, theirs] = &self.numbers;
        for key in ours.symmetric_difference(theirs) {
            let word = |side: &BTreeSet<String>| if side.contains(key) { "set" } else { "" }.to_owned();
            self.differences.insert((key.clone(), word(ours), word(theirs)), BTreeSet::new());
        }
        self.differences
    }
}

// === impl Side ===

impl Side {
    fn begin(&mut self, number: u64) {
        let ids = |kind: &str, count: usize| (0..count).map(|n| format!("{kind}{n}-not-made")).collect();
        self.names.number = number;
        self.names.pods = ids("pod", PODS);
        self.names.containers = ids("container", CONTAINERS);
    }

    /// The state of what a step is about, in words.
    async fn about(&self, step: &Step) -> Result<String> {
        let container = requests::ABOUT_CONTAINERS.contains(&step.rpc);
        let pod = requests::ABOUT_PODS.contains(&step.rpc);
        if !(container || pod) || matches!(step.variant, "absent" | "empty") {
            return Ok(String::new());
        }
        let (rpc, variant) = (if container { "ContainerStatus" } else { "PodSandboxStatus" }, "plain");
        let answer = self.send(&Step { rpc, variant, ..*step }).await?;
        let state = runtime::state(&answer).unwrap_or_else(|| "absent".to_owned());
        let state = state.rsplit('_').next().unwrap_or_default().to_lowercase();
        Ok(format!(", {} {state}", if container { "container" } else { "pod" }))
    }

    async fn send(&self, step: &Step) -> Result<Result<DynamicMessage, Status>> {
        self.runtime.call(step.rpc, requests::encode(step, &self.names)).await
    }

    /// Takes a step and keeps the ids it yields. A container that is to end is waited for.
    async fn perform(&mut self, step: &Step) -> Result<Facts> {
        let answer = self.send(step).await?;
        match step.rpc {
            "RunPodSandbox" => {
                self.names.pods[step.pod] = kept(&answer, "pod_sandbox_id", &self.names.pods[step.pod]);
            }
            "CreateContainer" => {
                let before = &self.names.containers[step.container];
                let made = kept(&answer, "container_id", before);
                if answer.is_ok() && requests::ends(step.variant) && made != *before {
                    self.ending.insert(made.clone());
                }
                self.names.containers[step.container] = made;
            }
            "StartContainer" if answer.is_ok() => self.settle(step).await?,
            _ => {}
        }
        Ok(runtime::facts(&answer))
    }

    /// Waits until a container that ends by itself has ended.
    async fn settle(&self, step: &Step) -> Result<()> {
        let container_id = self.names.containers[step.container].clone();
        if !self.ending.contains(&container_id) {
            return Ok(());
        }
        let request = cri::proto::ContainerStatusRequest { container_id, verbose: false };
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            let answer = self.runtime.call("ContainerStatus", request.encode_to_vec()).await?;
            if runtime::state(&answer).is_some_and(|state| state == "CONTAINER_EXITED") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("a container that ends by itself does not end")
    }

    /// Removes everything, so that the next sequence begins with nothing.
    async fn clear(&self) -> Result<()> {
        let listed = self.runtime.call("ListPodSandbox", Vec::new()).await?;
        let listed = listed.map_err(|status| anyhow::anyhow!("ListPodSandbox: {status}"))?;
        let listed = cri::proto::ListPodSandboxResponse::decode(listed.encode_to_vec().as_slice())?;
        for pod in listed.items {
            for rpc in ["StopPodSandbox", "RemovePodSandbox"] {
                let request = cri::proto::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
                if let Err(status) = self.runtime.call(rpc, request.encode_to_vec()).await? {
                    bail!("{rpc}: {status}");
                }
            }
        }
        Ok(())
    }
}

/// The id in an answer, or the one there was.
fn kept(answer: &Result<DynamicMessage, Status>, field: &str, before: &str) -> String {
    runtime::text(answer, field).unwrap_or_else(|| before.to_owned())
}
